//! Time, and locks that it opens.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Tells the time since some moment; never goes back.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time now.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct MonotonicClock(Instant);

impl Default for MonotonicClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A clock that stands still until it is told to go on: for tests.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// Lets `time` pass, counted in whole milliseconds.
    pub fn advance(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// A counted lock that nobody holds any more once its time to live is over. The time counts from
/// the last time it was taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TtlLock {
    count: u32,
    expires: Duration,
}

impl TtlLock {
    pub(crate) const OPEN: Self = Self { count: 0, expires: Duration::ZERO };

    /// Takes it `times` over. What an expired lock counted is forgotten.
    pub(crate) fn lock(&mut self, now: Duration, ttl: Duration, times: u32) {
        let (held, until) = if self.is_locked(now) { (self.count, self.expires) } else { (0, now) };
        self.count = held.saturating_add(times);
        self.expires = until.max(now.saturating_add(ttl));
    }

    /// Gives it back `times` over, but never more often than it was taken.
    pub(crate) fn unlock(&mut self, times: u32) {
        self.count = self.count.saturating_sub(times);
    }

    pub(crate) fn is_locked(&self, now: Duration) -> bool {
        self.count > 0 && now < self.expires
    }

    /// How often it is held.
    pub(crate) fn count(&self, now: Duration) -> u32 {
        if self.is_locked(now) { self.count } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lock_expires_its_time_after_it_was_last_taken() {
        let mut lock = TtlLock::OPEN;
        lock.lock(at(0), TTL, 1);
        lock.lock(at(6), TTL, 2);
        assert_eq!(lock.count(at(15)), 3);
        assert_eq!(lock.count(at(16)), 0);
    }

    #[test]
    fn what_expired_does_not_count_again() {
        let mut lock = TtlLock::OPEN;
        lock.lock(at(0), TTL, 5);
        lock.lock(at(10), TTL, 1);
        assert_eq!(lock.count(at(10)), 1);
    }

    #[test]
    fn it_is_not_given_back_more_often_than_taken() {
        let mut lock = TtlLock::OPEN;
        lock.lock(at(0), TTL, 1);
        lock.unlock(3);
        assert!(!lock.is_locked(at(0)));
        lock.lock(at(1), TTL, 1);
        assert_eq!(lock.count(at(1)), 1);
    }
}
