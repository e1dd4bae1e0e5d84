//! What is being written: reservations, by key and by the writer's tag.
//!
//! Both managers keep theirs here, so a reservation means the same on private and on shared memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::TtlLock;
use crate::contract::Counts;
use crate::object::{Slot, WriteBuffer};
use crate::{L1Error, ObjectKey, WriteObject};

/// All reservations of one manager.
#[derive(Debug)]
pub(crate) struct Staging<B> {
    by_key: HashMap<ObjectKey, Vec<Staged<B>>>,
    ttl: Duration,
    bytes: u64,
}

#[derive(Debug)]
struct Staged<B> {
    tag: Box<str>,
    /// `None` while the memory is being asked for.
    slot: Option<Arc<Slot<B>>>,
    bytes: u64,
    lock: TtlLock,
    temporary: bool,
}

impl<B: WriteBuffer + 'static> Staged<B> {
    /// Whether it can be reclaimed: it has expired, or can never be finished.
    fn is_over(&self, now: Duration) -> bool {
        !self.lock.is_locked(now) || self.slot.as_ref().is_some_and(|slot| slot.is_lost())
    }
}

/// What came of asking for a reservation.
#[derive(Debug)]
pub(crate) enum Begun<B> {
    /// This tag has one.
    Taken,
    /// It had one that expired; this is the same memory.
    HandedOver(WriteObject),
    /// The place is kept: memory is to be found for it, or it is to be cancelled.
    Pending {
        /// It had one that expired and does not fit.
        discarded: Option<B>,
    },
}

/// Staged memory, taken from its writer.
#[derive(Debug)]
pub(crate) struct Taken<B> {
    pub(crate) buffer: B,
    pub(crate) temporary: bool,
}

impl<B: WriteBuffer + 'static> Staging<B> {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { by_key: HashMap::new(), ttl, bytes: 0 }
    }

    /// Bytes that are staged.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Asks for a reservation of `bytes`.
    pub(crate) fn begin(
        &mut self,
        now: Duration,
        key: &ObjectKey,
        tag: &str,
        temporary: bool,
        bytes: u64,
    ) -> Begun<B> {
        let mut lock = TtlLock::OPEN;
        lock.lock(now, self.ttl, 1);
        let all = self.by_key.entry(key.clone()).or_default();
        let mut discarded = None;
        if let Some(index) = all.iter().position(|staged| *staged.tag == *tag) {
            let staged = &mut all[index];
            let slot = staged.slot.as_ref().filter(|_| staged.is_over(now));
            let Some(buffer) = slot.and_then(|slot| slot.take()) else {
                return Begun::Taken;
            };
            if buffer.len() == bytes && !buffer.is_lost() {
                let (slot, object) = Slot::new(buffer);
                (staged.slot, staged.lock, staged.temporary) = (Some(slot), lock, temporary);
                return Begun::HandedOver(object);
            }
            // Made for another layout, or lost with its session: given back, and asked for anew.
            self.bytes -= staged.bytes;
            all.swap_remove(index);
            discarded = Some(buffer);
        }
        all.push(Staged { tag: tag.into(), slot: None, bytes: 0, lock, temporary });
        Begun::Pending { discarded }
    }

    /// Memory was found for a pending reservation.
    pub(crate) fn fill(&mut self, key: &ObjectKey, tag: &str, buffer: B) -> Option<WriteObject> {
        let staged = self.find(key, tag)?;
        let bytes = buffer.len();
        let (slot, object) = Slot::new(buffer);
        (staged.slot, staged.bytes) = (Some(slot), bytes);
        self.bytes += bytes;
        Some(object)
    }

    /// No memory was found for a pending reservation.
    pub(crate) fn cancel(&mut self, key: &ObjectKey, tag: &str) {
        self.retain(key, |staged| *staged.tag != *tag);
    }

    fn find(&mut self, key: &ObjectKey, tag: &str) -> Option<&mut Staged<B>> {
        self.by_key.get_mut(key)?.iter_mut().find(|staged| *staged.tag == *tag)
    }

    /// Ends a live reservation: its memory is the caller's.
    pub(crate) fn take(
        &mut self,
        now: Duration,
        key: &ObjectKey,
        tag: &str,
    ) -> Result<Taken<B>, L1Error> {
        let staged = self.find(key, tag).ok_or(L1Error::KeyNotExist)?;
        let slot = staged.slot.as_ref().ok_or(L1Error::KeyNotExist)?;
        if !staged.lock.is_locked(now) {
            tracing::warn!(%key, tag, "a write is finished after its reservation expired");
            return Err(L1Error::KeyInWrongState);
        }
        let buffer = slot.take().ok_or(L1Error::KeyInWrongState)?;
        let temporary = staged.temporary;
        self.bytes -= staged.bytes;
        self.retain(key, |staged| *staged.tag != *tag);
        Ok(Taken { buffer, temporary })
    }

    /// Takes the memory of the key's reservations that have expired, or with `force` of all, but
    /// what a thread is writing to at this moment or still waits for.
    pub(crate) fn reclaim(&mut self, now: Duration, key: &ObjectKey, force: bool) -> Vec<B> {
        let mut reclaimed = Vec::new();
        let mut freed = 0;
        self.retain(key, |staged| {
            let slot = staged.slot.as_ref().filter(|_| force || staged.is_over(now));
            let Some(buffer) = slot.and_then(|slot| slot.take()) else {
                return true;
            };
            freed += staged.bytes;
            reclaimed.push(buffer);
            false
        });
        self.bytes -= freed;
        reclaimed
    }

    fn retain(&mut self, key: &ObjectKey, keep: impl FnMut(&Staged<B>) -> bool) {
        if let Some(all) = self.by_key.get_mut(key) {
            all.retain(keep);
            if all.is_empty() {
                self.by_key.remove(key);
            }
        }
    }

    /// Ends all reservations and takes their memory, but what a thread is writing to at this moment:
    /// that goes when it is done.
    pub(crate) fn take_all(&mut self) -> Vec<B> {
        self.bytes = 0;
        let all = self.by_key.drain().flat_map(|(_, all)| all);
        all.filter_map(|staged| staged.slot.and_then(|slot| slot.end())).collect()
    }

    /// Whether anything is staged under the key, live or expired. What is still being asked for is
    /// not: it may yet be refused.
    pub(crate) fn contains(&self, key: &ObjectKey) -> bool {
        self.by_key.get(key).is_some_and(|all| all.iter().any(|staged| staged.slot.is_some()))
    }

    /// Whether a reservation of the key can be reclaimed.
    pub(crate) fn has_expired(&self, now: Duration, key: &ObjectKey) -> bool {
        let over = |staged: &Staged<B>| staged.slot.is_some() && staged.is_over(now);
        self.by_key.get(key).is_some_and(|all| all.iter().any(over))
    }

    /// The keys under which something is staged.
    pub(crate) fn keys(&self) -> Vec<ObjectKey> {
        self.by_key.keys().cloned().collect()
    }

    /// How many reservations there are: those that are locked are live.
    pub(crate) fn counts(&self, now: Duration) -> Counts {
        let all = self.by_key.values().flatten();
        Counts::of(all.map(|staged| (staged.lock.is_locked(now), staged.temporary)))
    }
}
