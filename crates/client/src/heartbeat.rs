//! The thread behind a client: renews the lease, reconnects when the connection breaks while nobody
//! asks anything, gives back what was dropped, writes back what others of this host have left.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use maru_protocol::{Answer, Body, Handle, Location};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::link::{Failed, Link, MappedSession};
use crate::suspicion::{Suspicion, Suspicions};
use crate::{ClientError, Return};

/// How soon the server is tried again while it cannot be reached.
const RETRY: Duration = Duration::from_millis(100);

/// Things that were dropped and are still to be given back, and pages that were found bad.
#[derive(Debug)]
pub(crate) struct Returns {
    queue: Mutex<Vec<Return>>,
    suspicions: Suspicions,
    /// Held while things are given back: whoever flushes waits for what another thread is at.
    flushing: Mutex<()>,
    /// Wakes the heartbeat.
    wake: OwnedFd,
}

impl Returns {
    pub(crate) fn new() -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            queue: Mutex::default(),
            suspicions: Suspicions::default(),
            flushing: Mutex::default(),
            wake,
        })
    }

    /// Queues something; the heartbeat sends it.
    pub(crate) fn push(&self, item: Return) {
        let mut queue = self.lock();
        queue.push(item);
        if queue.len() == 1 {
            self.wake();
        }
    }

    /// Queues that a page is bad.
    pub(crate) fn suspect(&self, suspicion: Suspicion) {
        self.suspicions.push(suspicion);
        self.wake();
    }

    /// Whether a chunk was found bad here.
    pub(crate) fn is_suspected(&self, handle: Handle) -> bool {
        self.suspicions.is_known(handle)
    }

    /// Before the goodbye: tells of pages that could not be written. If that fails, none will be said.
    pub(crate) fn settle(&self, link: &Link) {
        // A forked child says none.
        if link.check_owner().is_ok()
            && self.suspicions.has_reserved()
            && let Err(error) = self.flush(link)
        {
            tracing::debug!(%error, "there are pages that could not be written");
        }
    }

    pub(crate) fn wake(&self) {
        // If the counter is full, the heartbeat is awake anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_le_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Return>> {
        // Nothing panics while the queue is half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is queued.
    pub(crate) fn flush(&self, link: &Link) -> Result<(), ClientError> {
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.suspicions.flush(link)?;
        let mut queue = std::mem::take(&mut *self.lock());
        queue.extend(link.take_orphans());
        while let Some((session, body, batch)) = Return::next_batch(&mut queue) {
            match link.call(body, Some(&session)) {
                // A session that is over holds nothing.
                Ok(_) | Err(Failed { error: ClientError::SessionLost, .. }) => {}
                Err(Failed { error, in_flight }) => {
                    if !in_flight {
                        queue.extend(batch);
                    }
                    self.lock().extend(queue);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Runs until the client is gone.
pub(crate) fn run(link: &Weak<Link>, returns: &Arc<Returns>) {
    let mut wait = RETRY;
    loop {
        let Some(stream) = link.upgrade().map(|link| link.stream()) else {
            return;
        };
        let mut fds = vec![PollFd::new(&returns.wake, PollFlags::IN)];
        if let Some(stream) = &stream {
            // Not the bytes that come, those are for whoever waits; only the end.
            fds.push(PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::RDHUP));
        }
        let time = Timespec::try_from(wait).ok();
        if let Err(error) = poll(&mut fds, time.as_ref())
            && error != rustix::io::Errno::INTR
        {
            tracing::warn!(%error, "the heartbeat cannot wait for events");
            std::thread::sleep(RETRY);
        }
        let mut counter = [0; 8];
        let _ = rustix::io::read(&returns.wake, &mut counter);
        let Some(link) = link.upgrade().filter(|link| !link.is_closed()) else {
            return;
        };
        wait = match beat(&link, returns) {
            Ok(wait) => wait,
            Err(error) => {
                tracing::debug!(%error, "the heartbeat did not reach the server");
                RETRY
            }
        };
    }
}

/// One heartbeat. Returns how long to wait for the next.
fn beat(link: &Link, returns: &Returns) -> Result<Duration, ClientError> {
    returns.flush(link)?;
    let (mapped, answer) = link.call(Body::Renew, None)?;
    let stained = if let Answer::Renewed(stained) = answer { stained } else { Vec::new() };
    let cleaned = clean(&mapped, &stained);
    for handles in cleaned.chunks(mapped.session.batch_max()) {
        link.call(Body::Cleaned { handles: handles.to_vec() }, Some(&mapped.session))?;
    }
    // Late answers may have come with that one.
    if link.has_orphans() {
        returns.flush(link)?;
    }
    while let Some(gone) = link.take_let_go() {
        if let Err(failed) = link.call(gone.let_go(), None) {
            link.keep_lost(gone);
            return Err(failed.into());
        }
    }
    // There may be more to clean.
    Ok(if cleaned.is_empty() { mapped.session.renew_after() } else { Duration::ZERO })
}

/// Writes back what this host's caches may hold of these pages. Returns those that are done.
fn clean(mapped: &MappedSession, stained: &[Location]) -> Vec<Handle> {
    let is_clean = |location: &&Location| {
        let (offset, generation) = (location.offset(), location.generation().0);
        let cleaned = mapped.memory.mapping.clean(offset, location.length, generation);
        cleaned.inspect_err(|error| tracing::warn!(%error, "a page cannot be cleaned")).is_ok()
    };
    stained.iter().filter(is_clean).map(|location| location.handle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClientConfig;

    /// A flush came back at once when another thread had taken the queue and not sent it yet.
    #[test]
    fn a_flush_waits_for_the_one_before_it() {
        let (returns, link) = (Returns::new().unwrap(), Link::new(ClientConfig::default()));
        let (told, done) = std::sync::mpsc::channel();
        let first = returns.flushing.lock().unwrap();
        std::thread::scope(|scope| {
            let (returns, link, second) = (&returns, &link, told.clone());
            scope.spawn(move || {
                second.send("begins").unwrap();
                returns.flush(link).unwrap();
                second.send("second").unwrap();
            });
            assert_eq!(done.recv(), Ok("begins"));
            (0..1000).for_each(|_| std::thread::yield_now());
            told.send("first").unwrap();
            drop(first);
        });
        assert_eq!((done.recv(), done.recv()), (Ok("first"), Ok("second")));
    }
}
