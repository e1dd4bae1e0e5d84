//! Which chunk goes first.

use std::fmt;

use crate::ObjectKey;

/// Orders keys by how soon they should go. It deletes nothing by itself, and whatever it proposes
/// stays with it until it hears that it is gone: what turned out to be locked is proposed again.
///
/// A key is tracked from [`reserved`](Self::reserved) on, so that a reservation whose writer
/// vanished is evicted like anything else, to [`removed`](Self::removed).
pub(crate) trait L1EvictionPolicy: fmt::Debug + Send {
    /// Somebody begins to write the key. No use of it yet.
    fn reserved(&mut self, key: &ObjectKey);
    /// The key became resident. No use of it yet either.
    fn created(&mut self, key: &ObjectKey);
    /// The key was used. One that is not tracked is none of the policy's business.
    fn touched(&mut self, key: &ObjectKey);
    /// The key is gone, evicted or not.
    fn removed(&mut self, key: &ObjectKey);
    /// Up to `count` tracked keys that are `evictable`, in the order in which to delete them. Of what
    /// it proposes, the policy may learn when that is removed, unless it has proposed others since.
    fn victims(&mut self, count: usize, evictable: &dyn Fn(&ObjectKey) -> bool) -> Vec<ObjectKey>;
    /// How many keys are tracked.
    fn len(&self) -> usize;
    /// How many keys that are gone it remembers.
    fn ghosts(&self) -> usize {
        0
    }
    /// Forgets those.
    fn forget_ghosts(&mut self) {}
}
