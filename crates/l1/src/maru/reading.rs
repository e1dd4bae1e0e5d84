//! A reader's calls.

use super::Shared;
use super::held::Right;
use crate::contract::{clamp_read_locks, succeeded};
use crate::listener::Event;
use crate::{L1Error, ObjectKey, Outcomes, ReadObject};

impl Shared {
    /// One round trip, and none for chunks that this manager holds already.
    pub(super) fn reserve_read(&self, keys: &[ObjectKey], read_locks: u32) -> Outcomes<ReadObject> {
        let (count, ttl) = (clamp_read_locks(read_locks), self.read_ttl());
        let mut missing = Vec::new();
        let mut outcomes: Outcomes<ReadObject> = {
            let (mut state, now) = self.state();
            let reserve = |(index, key): (usize, &ObjectKey)| {
                let Some(held) = state.held_mut(key) else {
                    missing.push(index);
                    return Err(L1Error::KeyNotExist);
                };
                held.lock.lock(now, ttl, count);
                Ok(held.object())
            };
            let outcomes = keys.iter().enumerate().map(reserve).collect();
            if missing.is_empty() {
                self.listeners.queue(Event::ReservedRead, succeeded(keys, &outcomes));
                return outcomes;
            }
            outcomes
        };
        let asked: Vec<&ObjectKey> = missing.iter().map(|index| &keys[*index]).collect();
        let pages = self.pool.acquire(&asked);
        let mut spare = Vec::new();
        self.locked(|state, now| {
            for (index, page) in missing.into_iter().zip(pages) {
                let Some(page) = page.filter(|_| !state.closed) else {
                    continue;
                };
                let right = Right::Pinned(page);
                let (object, unneeded) = state.hold(now, ttl, &keys[index], right, count);
                spare.extend(unneeded);
                outcomes[index] = Ok(object);
            }
            self.listeners.queue(Event::ReservedRead, succeeded(keys, &outcomes));
        });
        self.pool.give_back(spare);
        outcomes
    }

    /// No round trip, but to tell what is wrong with a key.
    pub(super) fn unsafe_read(&self, keys: &[ObjectKey]) -> Outcomes<ReadObject> {
        let mut unknown = Vec::new();
        let mut outcomes: Outcomes<ReadObject> = {
            let (state, now) = self.state();
            let read = |(index, key): (usize, &ObjectKey)| match state.held(key) {
                Some(held) if held.lock.is_locked(now) => Ok(held.object()),
                Some(_) => Err(L1Error::KeyNotReadable),
                None => {
                    unknown.push(index);
                    Err(L1Error::KeyNotExist)
                }
            };
            keys.iter().enumerate().map(read).collect()
        };
        self.explain(keys, &unknown, &mut outcomes, L1Error::KeyNotReadable);
        outcomes
    }

    /// One round trip where last locks are given back, and one more if the server was not heard of
    /// lately, or to tell what is wrong with a key.
    pub(super) fn finish_read(&self, keys: &[ObjectKey], read_locks: u32) -> Outcomes<()> {
        let count = clamp_read_locks(read_locks);
        // Before the locks go: what is held now, and alive, was held all the time.
        let alive = self.pool.is_alive();
        let (mut unknown, mut ended) = (Vec::new(), Vec::new());
        let mut outcomes: Outcomes<()> = self.locked(|state, now| {
            let mut dead = Vec::new();
            let finish = |(index, key): (usize, &ObjectKey)| {
                let Some(held) = state.held_mut(key) else {
                    unknown.push(index);
                    return Err(L1Error::KeyNotExist);
                };
                if !held.lock.is_locked(now) {
                    tracing::warn!(%key, "a read is finished without a lock");
                    return Err(L1Error::KeyInWrongState);
                }
                held.lock.unlock(count);
                if !held.lock.is_locked(now)
                    && let Some(held) = state.held.remove(key)
                {
                    if held.page.is_temporary() {
                        dead.push(key.clone());
                    }
                    ended.extend(held.page.end());
                }
                if alive { Ok(()) } else { Err(L1Error::KeyInWrongState) }
            };
            let outcomes = keys.iter().enumerate().map(finish).collect();
            self.listeners.queue(Event::ReadFinished, succeeded(keys, &outcomes));
            self.queue_gone(state, dead);
            outcomes
        });
        self.pool.give_back(ended);
        self.explain(keys, &unknown, &mut outcomes, L1Error::KeyInWrongState);
        outcomes
    }

    /// Sets `error` for each of these places whose key is resident; `KEY_NOT_EXIST` for the others.
    fn explain<T>(
        &self,
        keys: &[ObjectKey],
        unknown: &[usize],
        outcomes: &mut Outcomes<T>,
        error: L1Error,
    ) {
        if unknown.is_empty() {
            return;
        }
        let asked: Vec<&ObjectKey> = unknown.iter().map(|index| &keys[*index]).collect();
        for (index, resident) in unknown.iter().zip(self.are_resident(&asked)) {
            outcomes[*index] = Err(if resident { error } else { L1Error::KeyNotExist });
        }
    }
}
