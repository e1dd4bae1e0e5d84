//! One session with the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use maru_protocol::{Body, Limits, Resume, Secret, SessionId, Welcome};

use crate::ClientError;

/// One session of a [`crate::Conversation`]. Whoever holds something of it holds it, too, to know
/// whether that is still protected.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    secret: Secret,
    epoch: u64,
    limits: Limits,
    checksums: bool,
    /// The server is known to have kept the session up to this moment, in microseconds: when the
    /// last answered request was sent.
    confirmed_us: AtomicU64,
    lost: AtomicBool,
    /// Writable pages of this session that are out. In one order with `lost`: who takes a page either
    /// sees that the session is lost, or is counted when it is let go.
    writable: AtomicUsize,
}

impl Session {
    /// `sent`: when the hello was sent that the server welcomed.
    pub(super) fn new(welcome: &Welcome, sent: Duration) -> Self {
        let session = Self {
            id: welcome.session,
            secret: welcome.secret,
            epoch: welcome.epoch,
            limits: welcome.limits,
            checksums: welcome.checksums,
            confirmed_us: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            writable: AtomicUsize::new(0),
        };
        session.confirm(sent);
        session
    }

    /// Its name at the server.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// The life of the directory that it began in.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the server takes, and how long it waits.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether a checksum is said with each commit.
    #[must_use]
    pub const fn has_checksums(&self) -> bool {
        self.checksums
    }

    /// The most keys or handles in one request.
    #[must_use]
    pub fn batch_max(&self) -> usize {
        self.limits.batch_max.max(1) as usize
    }

    /// How long it may be unheard before it is renewed: two renewals may go astray.
    #[must_use]
    pub const fn renew_after(&self) -> Duration {
        Duration::from_millis(self.limits.lease_ms / 3)
    }

    /// What proves that a connection speaks for it.
    #[must_use]
    pub const fn resume(&self) -> Resume {
        Resume { session: self.id, secret: self.secret }
    }

    /// What tells the server, in a later session, that nothing of this one is written to any more.
    #[must_use]
    pub const fn let_go(&self) -> Body<'static> {
        Body::LetGo { session: self.id, secret: self.secret }
    }

    /// An answer to a request that was sent at `sent` has come.
    pub(super) fn confirm(&self, sent: Duration) {
        let us = u64::try_from(sent.as_micros()).unwrap_or(u64::MAX);
        self.confirmed_us.fetch_max(us, Ordering::Release);
    }

    /// It is over, or another has taken its place.
    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    /// Whether it is known to be over: then nothing that it held is protected.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Whether the server cannot have ended the session by `now`. A session outlives its connection
    /// by `resume_ms`, and silence by `lease_ms`; both count from after the last request that it
    /// answered was sent. A tenth is left off, for clocks that run at different speeds.
    /// `false` means not known, not lost.
    #[must_use]
    pub fn is_certainly_alive(&self, now: Duration) -> bool {
        let grace = Duration::from_millis(self.limits.resume_ms.min(self.limits.lease_ms)) * 9 / 10;
        let confirmed = Duration::from_micros(self.confirmed_us.load(Ordering::Acquire));
        !self.is_lost() && now < confirmed + grace
    }

    pub(super) fn is_written_to(&self) -> bool {
        self.writable.load(Ordering::SeqCst) > 0
    }
}

/// A writable page of a session is out: until this is dropped, the server is not told that nothing
/// of the session is written to any more.
#[derive(Debug)]
pub struct Writing(Arc<Session>);

impl Writing {
    /// Before a page is handed out. [`ClientError::SessionLost`] if it must not be: the server may
    /// have been told already.
    pub fn begin(session: &Arc<Session>) -> Result<Self, ClientError> {
        session.writable.fetch_add(1, Ordering::SeqCst);
        let writing = Self(Arc::clone(session));
        // Only now: until it counts, the session can be lost and let go.
        if session.is_lost() { Err(ClientError::SessionLost) } else { Ok(writing) }
    }

    /// What was written may be in the caches for good: the server is never told otherwise.
    pub(crate) fn never_end(self) {
        std::mem::forget(self);
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.writable.fetch_sub(1, Ordering::SeqCst);
    }
}
