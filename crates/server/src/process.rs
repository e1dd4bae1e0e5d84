//! The processes behind sessions: when one is dead, nothing of it can write any more.

use std::os::fd::{AsRawFd, OwnedFd};

use maru_protocol::SessionId;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::listener::Stream;

/// The process behind one session, held by a descriptor that its number cannot be mistaken by.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) session: SessionId,
    pidfd: OwnedFd,
}

impl Process {
    /// Waits for the death of the peer of a Unix socket; `None` where the peer is on another host, in another
    /// PID namespace, or gone. Then quarantine ends by the clock.
    pub(crate) fn peer(
        stream: &Stream,
        session: SessionId,
        registry: &Registry,
        token: Token,
    ) -> Option<Self> {
        let Stream::Unix(socket) = stream else {
            return None;
        };
        let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
        // A peer outside our PID namespace has the number 0.
        let pid = Pid::from_raw(peer.pid.as_raw_nonzero().get())?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        registry.register(&mut SourceFd(&pidfd.as_raw_fd()), token, Interest::READABLE).ok()?;
        Some(Self { session, pidfd })
    }

    pub(crate) fn deregister(&self, registry: &Registry) {
        let _ = registry.deregister(&mut SourceFd(&self.pidfd.as_raw_fd()));
    }
}
