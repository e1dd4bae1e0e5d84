//! Who is told what happens in an L1.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, ThreadId};

use crate::ObjectKey;
use crate::lock::lock;

/// Is told what happens to keys: `L1ManagerListener`.
///
/// Calls come after the state has changed and before the method that changed it returns, one at a
/// time and in the order of the changes, except [`L1Listener::accessed`], which comes at any time.
/// No lock of the manager is held meanwhile, so a listener may ask the manager, or change it; what
/// that leads to is told once the present call has returned. It must not wait for another thread
/// that calls a manager, nor run or drop an eviction controller: that thread may be waiting for this
/// call. A call never has an empty list. One that panics is logged, and the others are told.
///
/// All methods do nothing unless written.
pub trait L1Listener: fmt::Debug + Send + Sync {
    /// `on_l1_keys_reserved_read`: read locks were taken on resident chunks.
    fn reserved_read(&self, _keys: &[ObjectKey]) {}
    /// `on_l1_keys_read_finished`: read locks were given back.
    fn read_finished(&self, _keys: &[ObjectKey]) {}
    /// `on_l1_keys_reserved_write`: space was staged.
    fn reserved_write(&self, _keys: &[ObjectKey]) {}
    /// `on_l1_keys_write_finished`: chunks became resident. Not told of temporary ones, which must
    /// not go on to other tiers.
    fn write_finished(&self, _keys: &[ObjectKey]) {}
    /// `on_l1_keys_finish_write_and_reserve_read`: chunks became resident and read-locked in one
    /// step: a promotion from another tier, which is not told as `write_finished`.
    fn finish_write_and_reserve_read(&self, _keys: &[ObjectKey]) {}
    /// `on_l1_keys_deleted_by_manager`: nothing is left of these keys, neither resident nor staged.
    fn deleted_by_manager(&self, _keys: &[ObjectKey]) {}
    /// `on_l1_keys_accessed`: keys were used, as [`crate::L1Manager::touch_keys`] was told.
    fn accessed(&self, _keys: &[ObjectKey]) {}
    /// Some deletions that others made could not be told: the server was away, or this listener too
    /// slow. Whoever keeps a list of what is resident should ask anew. Not in LMCache's contract.
    fn deletions_missed(&self) {}
}

/// One thing to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    ReservedRead,
    ReadFinished,
    ReservedWrite,
    WriteFinished,
    FinishWriteAndReserveRead,
    Deleted,
    /// Has no keys.
    DeletionsMissed,
}

/// The listeners of one manager, and what they are still to be told.
///
/// Events are queued while the manager's state is locked, so their order is that of the changes,
/// and told after it is unlocked.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    registered: RwLock<Vec<Arc<dyn L1Listener>>>,
    queue: Mutex<VecDeque<(Event, Vec<ObjectKey>)>>,
    /// Held by whoever tells.
    telling: Mutex<()>,
    teller: Mutex<Option<ThreadId>>,
}

impl Listeners {
    pub(crate) fn register(&self, listener: Arc<dyn L1Listener>) {
        self.registered.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    fn registered(&self) -> Vec<Arc<dyn L1Listener>> {
        self.registered.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Queues an event. The caller holds the lock under which it came about.
    pub(crate) fn queue(&self, event: Event, keys: Vec<ObjectKey>) {
        if !keys.is_empty() {
            lock(&self.queue).push_back((event, keys));
        }
    }

    /// Queues that deletions may have gone untold.
    pub(crate) fn queue_deletions_missed(&self) {
        lock(&self.queue).push_back((Event::DeletionsMissed, Vec::new()));
    }

    /// Tells everything that is queued, or waits until another thread has. Not under a lock.
    pub(crate) fn tell(&self) {
        let me = thread::current().id();
        // Nothing left, and nobody in the middle of telling it. In this order: who tells says so
        // before taking from the queue.
        let done = lock(&self.queue).is_empty() && lock(&self.teller).is_none();
        // A listener has called the manager: what came of it is told when that listener is done.
        if done || *lock(&self.teller) == Some(me) {
            return;
        }
        let _telling = lock(&self.telling);
        let _teller = Teller::begin(&self.teller, me);
        let listeners = self.registered();
        while let Some((event, keys)) = self.next() {
            for listener in &listeners {
                guarded(|| match event {
                    Event::ReservedRead => listener.reserved_read(&keys),
                    Event::ReadFinished => listener.read_finished(&keys),
                    Event::ReservedWrite => listener.reserved_write(&keys),
                    Event::WriteFinished => listener.write_finished(&keys),
                    Event::FinishWriteAndReserveRead => {
                        listener.finish_write_and_reserve_read(&keys);
                    }
                    Event::Deleted => listener.deleted_by_manager(&keys),
                    Event::DeletionsMissed => listener.deletions_missed(),
                });
            }
        }
    }

    fn next(&self) -> Option<(Event, Vec<ObjectKey>)> {
        lock(&self.queue).pop_front()
    }

    /// Tells at once, whatever else goes on.
    pub(crate) fn accessed(&self, keys: &[ObjectKey]) {
        if !keys.is_empty() {
            for listener in self.registered() {
                guarded(|| listener.accessed(keys));
            }
        }
    }
}

/// A listener's panic must not end the thread that tells, which may be the one behind a manager.
fn guarded(tell: impl FnOnce()) {
    if panic::catch_unwind(AssertUnwindSafe(tell)).is_err() {
        tracing::error!("a listener panicked; whoever wrote it should look at the message above");
    }
}

/// Says who tells, until it drops: also if a listener panics.
struct Teller<'a>(&'a Mutex<Option<ThreadId>>);

impl<'a> Teller<'a> {
    fn begin(teller: &'a Mutex<Option<ThreadId>>, me: ThreadId) -> Self {
        *lock(teller) = Some(me);
        Self(teller)
    }
}

impl Drop for Teller<'_> {
    fn drop(&mut self) {
        *lock(self.0) = None;
    }
}
