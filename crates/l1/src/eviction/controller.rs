//! Looks at the memory, and has the policy's choice deleted.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::choice::policy;
use super::tracker::Tracker;
use crate::lock::lock;
use crate::{EvictionConfig, EvictionPolicyKind, L1Manager, MemoryUsage, ObjectKey};

/// How often a controller looks at the memory, as LMCache does.
pub const EVICTION_INTERVAL: Duration = Duration::from_secs(1);

/// Evicts from a private L1: LMCache's `L1EvictionController`.
///
/// Once [`EvictionConfig::trigger_watermark`] of the memory is used, it deletes
/// [`EvictionConfig::ratio`] of the keys, the policy's choice of those that nobody holds; then looks
/// again an interval later. Keys that turn out to be locked are tried again.
///
/// Over a shared pool it is quiet: it listens to nothing, starts no thread and deletes nothing. The
/// pool's server evicts. So it is with [`EvictionPolicyKind::None`].
///
/// It knows of the keys that it has seen come: make it before anything is stored. Dropping it ends
/// its thread.
#[derive(Debug)]
pub struct EvictionController {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Numbers for a status page, under LMCache's names where it has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvictionStatus {
    /// Nothing is wrong: the thread runs, or there is none to run.
    pub is_healthy: bool,
    /// The thread runs.
    pub thread_alive: bool,
    /// Which chunks go first.
    #[serde(rename = "eviction_policy")]
    pub policy: EvictionPolicyKind,
    /// [`EvictionConfig::isolate_salts`].
    pub isolate_salts: bool,
    /// [`EvictionConfig::trigger_watermark`].
    pub trigger_watermark: f64,
    /// [`EvictionConfig::ratio`].
    #[serde(rename = "eviction_ratio")]
    pub ratio: f64,
    /// Keys that could be evicted if nobody held them.
    pub tracked: u64,
    /// How often the memory was found too full.
    pub runs: u64,
    /// Keys that were evicted.
    pub evicted: u64,
}

#[derive(Debug)]
struct Shared {
    manager: Arc<dyn L1Manager>,
    config: EvictionConfig,
    /// `None` if there is nothing to evict here.
    tracker: Option<Arc<Tracker>>,
    /// Held by who evicts: two at a time would propose the same.
    evicting: Mutex<()>,
    wake: Mutex<Wake>,
    woken: Condvar,
    runs: AtomicU64,
    evicted: AtomicU64,
}

/// Why the thread should not wait any longer.
#[derive(Debug, Default)]
struct Wake {
    stop: bool,
    poked: bool,
}

impl EvictionController {
    /// A controller that evicts when told, by [`EvictionController::run_once`].
    pub fn new(manager: Arc<dyn L1Manager>, config: EvictionConfig) -> Self {
        let policy = if manager.config().maru.is_some() { None } else { policy(&config) };
        let tracker = policy.map(|policy| Arc::new(Tracker::new(policy)));
        if let Some(tracker) = &tracker {
            manager.register_listener(Arc::clone(tracker) as _);
        }
        let shared = Shared {
            manager,
            config,
            tracker,
            evicting: Mutex::default(),
            wake: Mutex::default(),
            woken: Condvar::new(),
            runs: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), thread: None }
    }

    /// Evicts from now on by itself, every `interval` if need be ([`EVICTION_INTERVAL`], unless there
    /// is a reason) and when poked. Where it is to be quiet, this does nothing.
    ///
    /// Errors: the system has no thread to give.
    pub fn start(&mut self, interval: Duration) -> io::Result<()> {
        if self.thread.is_none() && self.shared.tracker.is_some() {
            let shared = Arc::clone(&self.shared);
            let run = move || shared.run(interval);
            let builder = std::thread::Builder::new().name("maru-l1-eviction".to_owned());
            self.thread = Some(builder.spawn(run)?);
        }
        Ok(())
    }

    /// Evicts if the memory is too full. Says how many keys.
    #[expect(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn run_once(&self) -> usize {
        self.shared.evict(false)
    }

    /// Evicts so many keys, however full the memory is: for a writer that found no room and does not
    /// wait for the thread. Says how many went.
    #[expect(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn make_room(&self, count: usize) -> usize {
        let Some(tracker) = &self.shared.tracker else { return 0 };
        let _evicting = lock(&self.shared.evicting);
        self.shared.delete(tracker, count)
    }

    /// Somebody found no room: has the thread look at once. What counts then is the memory there is,
    /// not what there could be: a private L1 that asked the system for more has just been refused.
    pub fn poke(&self) {
        lock(&self.shared.wake).poked = true;
        self.shared.woken.notify_one();
    }

    /// `report_status`.
    #[must_use]
    pub fn status(&self) -> EvictionStatus {
        let (shared, config) = (&self.shared, self.shared.config);
        let thread_alive = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        EvictionStatus {
            is_healthy: thread_alive || self.thread.is_none(),
            thread_alive,
            policy: config.policy,
            isolate_salts: config.isolate_salts,
            trigger_watermark: config.trigger_watermark,
            ratio: config.ratio,
            tracked: shared.tracker.as_ref().map_or(0, |tracker| tracker.len() as u64),
            runs: shared.runs.load(Ordering::Relaxed),
            evicted: shared.evicted.load(Ordering::Relaxed),
        }
    }
}

impl Drop for EvictionController {
    fn drop(&mut self) {
        lock(&self.shared.wake).stop = true;
        self.shared.woken.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the eviction thread has panicked");
        }
        if let Some(tracker) = &self.shared.tracker {
            tracker.retire();
        }
    }
}

impl Shared {
    fn run(&self, interval: Duration) {
        // If nothing can be evicted, pokes do not help: looking all the time would only take time
        // from those who could let go.
        let mut deaf = false;
        loop {
            let wake = lock(&self.wake);
            let waits = |wake: &mut Wake| !wake.stop && (deaf || !wake.poked);
            let woken = self.woken.wait_timeout_while(wake, interval, waits);
            let (mut wake, _) = woken.unwrap_or_else(PoisonError::into_inner);
            if wake.stop {
                return;
            }
            let pressed = mem::take(&mut wake.poked);
            drop(wake);
            deaf = self.evict(pressed) == 0 && pressed;
        }
    }

    fn evict(&self, pressed: bool) -> usize {
        let Some(tracker) = &self.tracker else { return 0 };
        let _evicting = lock(&self.evicting);
        if !self.is_full(pressed) {
            return 0;
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.delete(tracker, tracker.part(self.config.ratio))
    }

    /// Deletes the policy's choice of so many keys. Says how many went.
    fn delete(&self, tracker: &Tracker, count: usize) -> usize {
        let evictable = |key: &ObjectKey| self.manager.is_key_evictable(key);
        let victims = tracker.victims(count, &evictable);
        // Tells the listeners, the tracker too, which by now holds no lock.
        let outcomes = self.manager.delete(&victims, false);
        let evicted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        tracing::debug!(proposed = victims.len(), evicted, "L1 was full: some of it was evicted");
        self.evicted.fetch_add(evicted as u64, Ordering::Relaxed);
        evicted
    }

    /// Whether the watermark is reached. A private L1 grows when it must, so what counts is what it
    /// can become, unless somebody was `pressed`.
    fn is_full(&self, pressed: bool) -> bool {
        let now = self.manager.memory_usage();
        let capacity: u64 = self.manager.capacity_bytes_by_backend().values().sum();
        let grown = MemoryUsage { total_bytes: capacity.max(now.total_bytes), ..now };
        let full = |usage: MemoryUsage| usage.ratio() >= self.config.trigger_watermark;
        full(grown) || pressed && full(now)
    }
}

#[cfg(test)]
mod tests;
