//! The processes behind sessions: when one is dead, nothing of it can write any more.

use std::os::fd::{AsRawFd, OwnedFd};

use maru_directory::ProcessId;
use maru_protocol::SessionId;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::listener::Stream;
use crate::store::System;

/// The process behind one session, held by a descriptor that its number cannot be mistaken by.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) session: SessionId,
    pidfd: OwnedFd,
}

/// A process that can be waited for.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: ProcessId,
    pidfd: OwnedFd,
}

/// The peer of a Unix socket; `None` where it is on another host, in another PID namespace, or gone.
/// Then quarantine ends by the clock.
pub(crate) fn peer(stream: &Stream) -> Option<Found> {
    let Stream::Unix(socket) = stream else {
        return None;
    };
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    // A peer outside our PID namespace has the number 0.
    let pid = Pid::from_raw(peer.pid.as_raw_nonzero().get())?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let number = u32::try_from(pid.as_raw_nonzero().get()).ok()?;
    Some(Found { id: ProcessId { pid: number, started: started(number)? }, pidfd })
}

/// What became of a process that an earlier server knew.
#[derive(Debug)]
pub(crate) enum Fate {
    Dead,
    Alive(Found),
    /// It cannot be told, nor waited for.
    Unknown,
}

/// What became of a process.
pub(crate) fn fate(id: ProcessId) -> Fate {
    let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else {
        return Fate::Unknown;
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // Its number may be another's by now. Where it cannot be seen since when that one runs, it
        // is taken for the one that was.
        Ok(pidfd) if started(id.pid).is_none_or(|started| started == id.started) => {
            Fate::Alive(Found { id, pidfd })
        }
        Ok(_) | Err(Errno::SRCH) => Fate::Dead,
        Err(_) => Fate::Unknown,
    }
}

/// When a process started, in ticks of the kernel's clock since the boot.
fn started(pid: u32) -> Option<u64> {
    stat(pid, |fields| fields.nth(19)?.parse().ok())
}

/// Whether a process is stopped, by a signal or by who traces it.
pub(crate) fn is_stopped(id: ProcessId) -> bool {
    let stopped = stat(id.pid, |fields| Some(matches!(fields.next()?, "T" | "t")));
    stopped == Some(true) && started(id.pid) == Some(id.started)
}

/// Something of what the kernel tells of a process, in fields from the third on.
fn stat<T>(
    pid: u32,
    read: impl FnOnce(&mut std::str::SplitWhitespace<'_>) -> Option<T>,
) -> Option<T> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    read(&mut fields.split_whitespace())
}

/// What this process runs under.
pub(crate) fn system() -> System {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    System { boot: boot.trim().to_owned(), processes: space.display().to_string() }
}

impl Found {
    /// Waits for its death.
    pub(crate) fn wait(
        self,
        session: SessionId,
        registry: &Registry,
        token: Token,
    ) -> std::io::Result<Process> {
        let mut source = SourceFd(&self.pidfd.as_raw_fd());
        registry.register(&mut source, token, Interest::READABLE)?;
        Ok(Process { session, pidfd: self.pidfd })
    }
}

impl Process {
    pub(crate) fn deregister(&self, registry: &Registry) {
        let _ = registry.deregister(&mut SourceFd(&self.pidfd.as_raw_fd()));
    }
}
