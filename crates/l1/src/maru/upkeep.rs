//! What goes on behind a shared manager: what has expired is given back, the server hears what was
//! used, and listeners hear what the server evicts.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use maru_client::PoolEvent;

use super::Shared;
use crate::ObjectKey;
use crate::lock::lock;

/// The longest wait between two rounds.
const ROUND_MAX: Duration = Duration::from_secs(1);

/// The shortest: a time to live of nothing must not keep a core busy.
const ROUND_MIN: Duration = Duration::from_millis(20);

/// Used keys that wait to be told; what comes on top is not told. Recency is a hint.
const TOUCHED_MAX: usize = 1 << 16;

/// How long one wait for the server's events takes, so that the end is noticed.
const EVENTS_WAIT: Duration = Duration::from_millis(500);

/// Keys that were used, for the server to hear of in the next round: not at once, since each telling
/// is a round trip.
#[derive(Debug, Default)]
pub(super) struct Touched {
    queue: Mutex<Queue>,
    end: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    keys: Vec<ObjectKey>,
    closed: bool,
}

impl Touched {
    pub(super) fn push(&self, keys: &[ObjectKey]) {
        let mut queue = self.lock();
        let room = TOUCHED_MAX - queue.keys.len();
        queue.keys.extend(keys.iter().take(room).cloned());
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.end.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn take(&self) -> Vec<ObjectKey> {
        std::mem::take(&mut self.lock().keys)
    }

    /// Waits for the next round. `false` at the end.
    fn wait(&self, round: Duration) -> bool {
        let queue = self.lock();
        let waited = self.end.wait_timeout_while(queue, round, |queue| !queue.closed);
        !waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }
}

impl Shared {
    /// One round. See [`super::MaruL1Manager::keep_up`].
    pub(super) fn keep_up(&self) {
        self.sweep();
        let touched = self.touched.take();
        self.pool.touch(&touched);
    }

    /// Gives back what has expired.
    fn sweep(&self) {
        let (mut pages, mut rights, mut reclaimed) = (Vec::new(), Vec::new(), Vec::new());
        self.locked(|state, now| {
            for key in state.staging.keys() {
                let expired = state.staging.reclaim(now, &key, false);
                if !expired.is_empty() {
                    tracing::warn!(%key, "a reservation has expired; its space is given back");
                    pages.extend(expired);
                    reclaimed.push(key);
                }
            }
            let mut dead = Vec::new();
            for (key, held) in state.take_expired(now) {
                tracing::warn!(%key, "read locks have expired, or the chunk was lost; it is let go");
                if held.page.is_temporary() {
                    dead.push(key);
                }
                rights.extend(held.page.end());
            }
            self.queue_gone(state, dead);
        });
        let some = !pages.is_empty();
        drop(pages);
        self.pool.give_back(rights);
        if some {
            self.pool.flush();
            let _changing = self.changing(&reclaimed);
            self.tell_gone(&reclaimed);
        }
    }

    /// Tells listeners what left the pool without this manager's doing.
    fn tell(&self, event: PoolEvent) {
        match event {
            PoolEvent::Gone(keys) => {
                // Who stores under other names than ours is not listened for.
                let parse = |key: Vec<u8>| String::from_utf8(key).ok()?.parse().ok();
                let keys: Vec<ObjectKey> = keys.into_iter().filter_map(parse).collect();
                self.locked(|state, _| self.queue_gone(state, keys));
            }
            PoolEvent::Missed => self.listeners.queue_deletions_missed(),
        }
        self.listeners.tell();
    }
}

/// Starts the thread that keeps a manager up. It ends with the manager.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    let ttl = shared.config.read_ttl.min(shared.config.write_ttl);
    let round = (ttl / 4).clamp(ROUND_MIN, ROUND_MAX);
    let run = move || {
        while shared.touched.wait(round) {
            shared.keep_up();
            shared.listeners.tell();
        }
    };
    std::thread::Builder::new().name("maru-l1-upkeep".to_owned()).spawn(run)?;
    Ok(())
}

/// Starts the thread that listens to the server, once. It ends with the manager.
pub(super) fn watch(shared: &Arc<Shared>) {
    if shared.watching.swap(true, Ordering::SeqCst) {
        return;
    }
    let Ok(client) = shared.pool.client() else {
        return;
    };
    let (shared, mut watch) = (Arc::clone(shared), client.watch());
    let run = move || {
        let mut has_begun = false;
        while !watch.is_closed() {
            let event = watch.next(EVENTS_WAIT);
            if !has_begun && watch.is_watching() {
                // Since the listener came there was time for deletions.
                has_begun = true;
                shared.tell(PoolEvent::Missed);
            }
            if let Some(event) = event {
                shared.tell(event);
            }
        }
    };
    let started = std::thread::Builder::new().name("maru-l1-events".to_owned()).spawn(run);
    if let Err(error) = started {
        tracing::warn!(%error, "what the server evicts will not be told");
    }
}
