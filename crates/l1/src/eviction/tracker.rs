//! The listener between a manager and a policy.

use std::sync::{Mutex, MutexGuard};

use super::policy::L1EvictionPolicy;
use crate::lock::lock;
use crate::{L1Listener, ObjectKey};

/// Feeds a policy. The manager keeps it for good, so it knows no manager, and once it is retired
/// nothing at all.
///
/// Its lock is taken by listeners' calls, and held while a policy asks the manager whether a key can
/// be evicted. That takes the manager's own lock, which nobody holds while calling listeners. Anything
/// that itself calls listeners must not be called under it.
#[derive(Debug)]
pub(super) struct Tracker(Mutex<Option<Box<dyn L1EvictionPolicy>>>);

impl Tracker {
    pub(super) fn new(policy: Box<dyn L1EvictionPolicy>) -> Self {
        Self(Mutex::new(Some(policy)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<dyn L1EvictionPolicy>>> {
        // A policy that panicked may order badly, but its keys can be evicted all the same.
        lock(&self.0)
    }

    /// How many keys are tracked.
    pub(super) fn len(&self) -> usize {
        self.lock().as_ref().map_or(0, |policy| policy.len())
    }

    /// This part of the tracked keys, but at least one unless it is none.
    pub(super) fn part(&self, ratio: f64) -> usize {
        if ratio > 0.0 { part(self.len(), ratio).max(1) } else { 0 }
    }

    /// So many of the tracked keys, if so many are evictable.
    pub(super) fn victims(
        &self,
        count: usize,
        evictable: &dyn Fn(&ObjectKey) -> bool,
    ) -> Vec<ObjectKey> {
        let mut policy = self.lock();
        policy.as_mut().map_or_else(Vec::new, |policy| policy.victims(count, evictable))
    }

    pub(super) fn retire(&self) {
        *self.lock() = None;
    }

    /// A prompt's later chunks are of no use without the earlier ones, so they are taken to be
    /// colder: a batch is told from its end.
    fn tell(&self, keys: &[ObjectKey], tell: fn(&mut dyn L1EvictionPolicy, &ObjectKey)) {
        if let Some(policy) = self.lock().as_mut() {
            keys.iter().rev().for_each(|key| tell(policy.as_mut(), key));
        }
    }
}

/// Part of a number of keys.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of a number is one itself, and about the right one"
)]
fn part(count: usize, ratio: f64) -> usize {
    (count as f64 * ratio.clamp(0.0, 1.0)) as usize
}

impl L1Listener for Tracker {
    fn reserved_write(&self, keys: &[ObjectKey]) {
        self.tell(keys, |policy, key| policy.reserved(key));
    }

    fn write_finished(&self, keys: &[ObjectKey]) {
        self.tell(keys, |policy, key| policy.created(key));
    }

    fn finish_write_and_reserve_read(&self, keys: &[ObjectKey]) {
        self.tell(keys, |policy, key| policy.created(key));
    }

    fn accessed(&self, keys: &[ObjectKey]) {
        self.tell(keys, |policy, key| policy.touched(key));
    }

    fn deleted_by_manager(&self, keys: &[ObjectKey]) {
        self.tell(keys, |policy, key| policy.removed(key));
    }
}
