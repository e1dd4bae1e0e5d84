//! A writer's calls.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use maru_client::{Committed, Reserved, ReservedPage};

use super::Shared;
use super::held::{Right, State};
use crate::contract::{clamp_read_locks, succeeded};
use crate::listener::Event;
use crate::staging::Begun;
use crate::{L1Error, MemoryLayoutDesc, ObjectKey, Outcomes, ReadObject, Write, WriteObject};

/// Chunks that a writer finished, by what becomes of them.
struct Finished {
    /// To be committed: their place in the batch, and the page.
    retained: Vec<(usize, ReservedPage)>,
    /// To be kept here.
    temporary: Vec<(usize, ReservedPage)>,
    /// Not needed: a temporary chunk of the key is held, and nothing becomes resident beside it.
    late: Vec<(usize, ReservedPage)>,
}

impl Shared {
    /// One round trip, and one more where a reservation has expired. What another instance stored
    /// already is `KEY_NOT_WRITABLE`.
    pub(super) fn reserve_write(
        &self,
        writes: &[Write],
        layout: &MemoryLayoutDesc,
        tag: &str,
    ) -> Outcomes<WriteObject> {
        let keys: Vec<ObjectKey> = writes.iter().map(|write| write.key.clone()).collect();
        let _changing = self.changing(&keys);
        let stored_meanwhile = self.expired_but_resident(&keys);
        let (mut pending, mut discarded, mut outgrown) = (Vec::new(), Vec::new(), Vec::new());
        let mut outcomes: Outcomes<WriteObject> = {
            let (mut state, now) = self.state();
            let begin = |(index, write): (usize, &Write)| {
                if state.closed {
                    return Err(L1Error::OutOfMemory);
                }
                if state.held(&write.key).is_some() || stored_meanwhile.contains(&write.key) {
                    return Err(L1Error::KeyNotWritable);
                }
                let (bytes, temporary) = (layout.bytes(), write.temporary);
                match state.staging.begin(now, &write.key, tag, temporary, bytes) {
                    Begun::Taken => Err(L1Error::KeyNotWritable),
                    Begun::HandedOver(object) => Ok(object),
                    Begun::Pending { discarded: old } => {
                        outgrown.extend(old.is_some().then_some(index));
                        discarded.extend(old);
                        pending.push(index);
                        Err(L1Error::OutOfMemory)
                    }
                }
            };
            writes.iter().enumerate().map(begin).collect()
        };
        self.discard(discarded, Vec::new());
        let asked: Vec<&ObjectKey> = pending.iter().map(|index| &keys[*index]).collect();
        let own_tag = self.next_tag.fetch_add(1, Ordering::Relaxed);
        let reserved = self.pool.reserve(&asked, layout.bytes(), own_tag).unwrap_or_default();
        let mut reserved = reserved.into_iter();
        self.locked(|state, _| {
            for index in pending {
                let key = &keys[index];
                outcomes[index] = match reserved.next() {
                    Some(Reserved::Page(page)) => {
                        state.staging.fill(key, tag, page).ok_or(L1Error::OutOfMemory)
                    }
                    refused => {
                        state.staging.cancel(key, tag);
                        Err(match refused {
                            None | Some(Reserved::OutOfMemory | Reserved::OverBudget) => {
                                L1Error::OutOfMemory
                            }
                            Some(_) => L1Error::KeyNotWritable,
                        })
                    }
                };
            }
            self.listeners.queue(Event::ReservedWrite, succeeded(&keys, &outcomes));
            // Of a key that was refused for another reason, the chunk is resident.
            let left_out = |index: &usize| matches!(outcomes[*index], Err(L1Error::OutOfMemory));
            let gone = outgrown.into_iter().filter(left_out);
            self.queue_gone(state, gone.map(|index| keys[index].clone()));
        });
        outcomes
    }

    /// Keys with a reservation that could be handed over, if somebody had not stored the chunk since:
    /// the server, which would say so, is not asked for space there.
    fn expired_but_resident(&self, keys: &[ObjectKey]) -> HashSet<ObjectKey> {
        let expired: Vec<&ObjectKey> = {
            let (state, now) = self.state();
            keys.iter().filter(|key| state.staging.has_expired(now, key)).collect()
        };
        let resident = self.are_resident(&expired);
        let resident = expired.iter().zip(resident).filter(|(_, resident)| *resident);
        resident.map(|(key, _)| (*key).clone()).collect()
    }

    /// One round trip; a second one if the batch has both temporary chunks and others.
    pub(super) fn finish_write(&self, keys: &[ObjectKey], tag: &str) -> Outcomes<()> {
        let _changing = self.changing(keys);
        let mut discarded = Vec::new();
        let (mut outcomes, finished) = self.finish(keys, tag, &mut discarded);
        discarded.extend(finished.late.into_iter().map(|(_, page)| page));
        let asked: Vec<&ObjectKey> =
            finished.temporary.iter().map(|(index, _)| &keys[*index]).collect();
        let resident = self.are_resident(&asked);
        let (places, pages): (Vec<usize>, Vec<_>) = finished.retained.into_iter().unzip();
        let committed = self.pool.commit(pages);
        let mut spare = Vec::new();
        self.locked(|state, now| {
            for ((index, page), resident) in finished.temporary.into_iter().zip(resident) {
                if resident {
                    discarded.push(page);
                } else if self.keep(state, now, &keys[index], page, 0, &mut spare).is_none() {
                    outcomes[index] = Err(L1Error::KeyInWrongState);
                }
            }
            let (mut written, mut unknown) = (Vec::new(), false);
            for (index, committed) in places.into_iter().zip(committed) {
                match committed {
                    Some(Committed::Stored(_)) => written.push(keys[index].clone()),
                    Some(_) => {}
                    None => {
                        // It may be resident, or gone.
                        outcomes[index] = Err(L1Error::KeyInWrongState);
                        unknown = true;
                    }
                }
            }
            self.listeners.queue(Event::WriteFinished, written);
            if unknown {
                self.listeners.queue_deletions_missed();
            }
        });
        self.discard(discarded, spare);
        outcomes
    }

    /// As many round trips as [`Shared::finish_write`].
    pub(super) fn finish_write_and_reserve_read(
        &self,
        keys: &[ObjectKey],
        read_locks: u32,
        tag: &str,
    ) -> Outcomes<ReadObject> {
        let count = clamp_read_locks(read_locks);
        let _changing = self.changing(keys);
        let mut discarded = Vec::new();
        let (taken, finished) = self.finish(keys, tag, &mut discarded);
        let wrong_state =
            |taken: Result<(), L1Error>| Err(taken.err().unwrap_or(L1Error::KeyInWrongState));
        let mut outcomes: Outcomes<ReadObject> = taken.into_iter().map(wrong_state).collect();
        let asked: Vec<&ObjectKey> =
            finished.temporary.iter().map(|(index, _)| &keys[*index]).collect();
        let resident = self.pool.acquire(&asked);
        let (places, pages): (Vec<usize>, Vec<_>) = finished.retained.into_iter().unzip();
        let promoted = self.pool.promote(pages);
        let (mut spare, ttl) = (Vec::new(), self.read_ttl());
        self.locked(|state, now| {
            // Places in the batch, and whether the chunk there is the one that was finished.
            let mut done: Vec<(usize, bool)> = Vec::new();
            let mut unknown = false;
            for (index, page) in finished.late {
                discarded.push(page);
                if let Some(held) = state.held_mut(&keys[index]) {
                    held.lock.lock(now, ttl, count);
                    outcomes[index] = Ok(held.object());
                    done.push((index, false));
                }
            }
            for ((index, page), resident) in finished.temporary.into_iter().zip(resident) {
                let key = &keys[index];
                if let Some(resident) = resident {
                    discarded.push(page);
                    let right = Right::Pinned(resident);
                    let (object, unneeded) = state.hold(now, ttl, key, right, count);
                    spare.extend(unneeded);
                    outcomes[index] = Ok(object);
                    done.push((index, false));
                } else if let Some((object, kept)) =
                    self.keep(state, now, key, page, count, &mut spare)
                {
                    outcomes[index] = Ok(object);
                    done.push((index, kept));
                }
            }
            for (index, promoted) in places.into_iter().zip(promoted) {
                let Some(promoted) = promoted else {
                    unknown = true;
                    continue;
                };
                let right = Right::Pinned(promoted.page);
                let (object, unneeded) = state.hold(now, ttl, &keys[index], right, count);
                spare.extend(unneeded);
                outcomes[index] = Ok(object);
                done.push((index, !promoted.superseded));
            }
            done.sort_unstable();
            let those = |own: bool| {
                let those = done.iter().filter(move |(_, first)| *first == own);
                those.map(|(index, _)| keys[*index].clone()).collect()
            };
            self.listeners.queue(Event::ReservedRead, those(false));
            self.listeners.queue(Event::FinishWriteAndReserveRead, those(true));
            if unknown {
                self.listeners.queue_deletions_missed();
            }
        });
        self.discard(discarded, spare);
        outcomes
    }

    /// Two round trips: one gives the pages back, one asks whether the keys are gone.
    pub(super) fn finish_write_and_delete(&self, keys: &[ObjectKey], tag: &str) -> Outcomes<()> {
        let _changing = self.changing(keys);
        let (mut discarded, mut dropped) = (Vec::new(), Vec::new());
        let outcomes = self.locked(|state, now| {
            let discard = |key: &ObjectKey| {
                let taken = state.staging.take(now, key, tag)?;
                discarded.push(taken.buffer);
                dropped.push(key.clone());
                Ok(())
            };
            keys.iter().map(discard).collect()
        });
        self.discard(discarded, Vec::new());
        self.tell_gone(&dropped);
        outcomes
    }

    /// Ends the writing of these keys. What cannot be stored any more is given back with
    /// `discarded`.
    fn finish(
        &self,
        keys: &[ObjectKey],
        tag: &str,
        discarded: &mut Vec<ReservedPage>,
    ) -> (Outcomes<()>, Finished) {
        let (retained, temporary, late) = (Vec::new(), Vec::new(), Vec::new());
        let mut finished = Finished { retained, temporary, late };
        let outcomes = self.locked(|state, now| {
            let finish = |(index, key): (usize, &ObjectKey)| {
                let taken = state.staging.take(now, key, tag)?;
                let page = taken.buffer;
                if page.is_lost() {
                    discarded.push(page);
                    return Err(L1Error::KeyInWrongState);
                }
                let held = state.held(key);
                let becomes = if taken.temporary {
                    &mut finished.temporary
                } else if held.is_some_and(|held| held.page.is_temporary()) {
                    &mut finished.late
                } else {
                    &mut finished.retained
                };
                becomes.push((index, page));
                Ok(())
            };
            keys.iter().enumerate().map(finish).collect()
        });
        (outcomes, finished)
    }

    /// Keeps a temporary chunk here, unless the key is held by now: then that one counts. `None` if
    /// its page was lost. Says whether it was kept.
    fn keep(
        &self,
        state: &mut State,
        now: Duration,
        key: &ObjectKey,
        page: ReservedPage,
        read_locks: u32,
        spare: &mut Vec<Right>,
    ) -> Option<(ReadObject, bool)> {
        let right = Right::Private(page.into_private().ok()?);
        let (object, unneeded) = state.hold(now, self.read_ttl(), key, right, read_locks);
        let kept = unneeded.is_none();
        spare.extend(unneeded);
        Some((object, kept))
    }
}
