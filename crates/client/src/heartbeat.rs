//! The thread behind a client: renews the lease, reconnects when the connection breaks while nobody
//! asks anything, gives back what was dropped.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use maru_protocol::{Answer, Body, CommitOutcome, Handle, Location, ReserveOutcome};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::ClientError;
use crate::link::{Failed, Link, Orphan};
use crate::session::Session;

/// How soon the server is tried again while it cannot be reached.
const RETRY: Duration = Duration::from_millis(100);

/// Things that were dropped and are still to be given back.
#[derive(Debug)]
pub(crate) struct Returns {
    queue: Mutex<Vec<Return>>,
    /// Held while things are given back: whoever flushes waits for what another thread is at.
    flushing: Mutex<()>,
    /// Wakes the heartbeat.
    wake: OwnedFd,
}

/// One thing to give back.
#[derive(Debug)]
pub(crate) struct Return {
    pub(crate) session: Arc<Session>,
    pub(crate) handle: Handle,
    /// So many pins; 0 for a reservation.
    pub(crate) pins: u32,
}

impl Returns {
    pub(crate) fn new() -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { queue: Mutex::new(Vec::new()), flushing: Mutex::new(()), wake })
    }

    /// Queues something; the heartbeat sends it.
    pub(crate) fn push(&self, item: Return) {
        let mut queue = self.lock();
        queue.push(item);
        if queue.len() == 1 {
            self.wake();
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
        let mut queue = std::mem::take(&mut *self.lock());
        queue.extend(link.take_orphans().iter().flat_map(returns_of));
        while let Some(first) = queue.first() {
            let (session, pins) = (Arc::clone(&first.session), first.pins);
            let batch_max = session.limits.batch_max as usize;
            let alike = |item: &Return| Arc::ptr_eq(&item.session, &session) && item.pins == pins;
            let mut batch: Vec<Return> = queue.extract_if(.., |item| alike(item)).collect();
            queue.extend(batch.split_off(batch.len().min(batch_max)));
            let handles = batch.iter().map(|item| item.handle).collect();
            let body = match pins {
                0 => Body::Abort { handles },
                pins => Body::Release { handles, pins },
            };
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

/// What an answer granted that nobody waited for.
fn returns_of(orphan: &Orphan) -> Vec<Return> {
    let give_back = |location: &Location, pins| {
        let session = Arc::clone(&orphan.session);
        Return { session, handle: location.handle, pins }
    };
    match &orphan.answer {
        Answer::Reserved(outcomes) => outcomes
            .iter()
            .filter_map(|outcome| match outcome {
                ReserveOutcome::Granted(location) => Some(give_back(location, 0)),
                _ => None,
            })
            .collect(),
        Answer::Acquired(found) => {
            found.iter().flatten().map(|location| give_back(location, orphan.pins)).collect()
        }
        Answer::Committed(outcomes) if orphan.pins > 0 => outcomes
            .iter()
            .filter_map(|outcome| match outcome {
                CommitOutcome::Committed(location) | CommitOutcome::Superseded(location) => {
                    Some(give_back(location, orphan.pins))
                }
                CommitOutcome::NotReserved | CommitOutcome::BadLength => None,
            })
            .collect(),
        _ => Vec::new(),
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
    let (session, _) = link.call(Body::Renew, None)?;
    // Late answers may have come with that one.
    if link.has_orphans() {
        returns.flush(link)?;
    }
    while let Some(gone) = link.take_let_go() {
        let resume = gone.resume();
        let body = Body::LetGo { session: resume.session, secret: resume.secret };
        if let Err(failed) = link.call(body, None) {
            link.keep_lost(gone);
            return Err(failed.into());
        }
    }
    Ok(Duration::from_millis(session.limits.lease_ms / 3))
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
