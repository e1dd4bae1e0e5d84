//! What takes chunks away.

use maru_client::ReservedPage;
use maru_protocol::{DeleteOutcome, Key, Presence};

use super::Shared;
use super::held::{Right, State};
use crate::contract::succeeded;
use crate::listener::Event;
use crate::{L1Error, ObjectKey, Outcomes};

impl Shared {
    /// One round trip, and one more where something of this manager has to be given back first.
    pub(super) fn delete(&self, keys: &[ObjectKey], force: bool) -> Outcomes<()> {
        let _changing = self.changing(keys);
        let (mut discarded, mut ended, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        let mut outcomes: Outcomes<()> = self.locked(|state, now| {
            let delete = |(index, key): (usize, &ObjectKey)| {
                let reclaimed = state.staging.reclaim(now, key, force);
                let reclaimed_some = !reclaimed.is_empty();
                discarded.extend(reclaimed);
                if state.staging.contains(key) {
                    return Err(L1Error::KeyIsLocked);
                }
                if let Some(held) = state.held(key) {
                    if held.lock.is_locked(now) && !force {
                        return Err(L1Error::KeyIsLocked);
                    }
                    let temporary = held.page.is_temporary();
                    ended.extend(state.held.remove(key).and_then(|held| held.page.end()));
                    if temporary {
                        return Ok(());
                    }
                }
                asked.push((index, reclaimed_some));
                Ok(())
            };
            keys.iter().enumerate().map(delete).collect()
        });
        self.discard(discarded, ended);
        let wire: Vec<Key<'_>> = asked.iter().map(|(index, _)| keys[*index].wire()).collect();
        for ((index, reclaimed), deleted) in asked.iter().zip(self.pool.delete(&wire)) {
            outcomes[*index] = match deleted {
                Some(DeleteOutcome::Deleted) => Ok(()),
                Some(DeleteOutcome::Missing) if *reclaimed => Ok(()),
                Some(DeleteOutcome::Missing) => Err(L1Error::KeyNotExist),
                Some(DeleteOutcome::Pinned | DeleteOutcome::Reserved) | None => {
                    Err(L1Error::KeyIsLocked)
                }
            };
        }
        let gone = succeeded(keys, &outcomes);
        self.locked(|_, _| self.listeners.queue(Event::Deleted, gone));
        outcomes
    }

    pub(super) fn clear(&self, force: bool) {
        let (mut discarded, mut ended, mut reclaimed) = (Vec::new(), Vec::new(), Vec::new());
        self.locked(|state, now| {
            let mut gone = Vec::new();
            for key in state.staging.keys() {
                let pages = state.staging.reclaim(now, &key, force);
                if !pages.is_empty() {
                    discarded.extend(pages);
                    reclaimed.push(key);
                }
            }
            for (key, held) in state.held.extract_if(|_, held| force || !held.lock.is_locked(now)) {
                if held.page.is_temporary() {
                    gone.push(key);
                }
                ended.extend(held.page.end());
            }
            reclaimed.retain(|key| !gone.contains(key));
            // At once: from here on a new one of the same key can come.
            self.listeners.queue(Event::Deleted, gone);
        });
        self.discard(discarded, ended);
        let mut cursor = Some(0);
        while let Some((found, next)) = cursor.and_then(|cursor| self.pool.list(cursor)) {
            cursor = next;
            // Keys that are none of ours are deleted all the same, with nobody to tell.
            let parse = |key: &Vec<u8>| std::str::from_utf8(key).ok()?.parse::<ObjectKey>().ok();
            let keys: Vec<ObjectKey> = found.iter().filter_map(parse).collect();
            let _changing = self.changing(&keys);
            let wire: Vec<Key<'_>> = found.iter().filter_map(|key| Key::new(key).ok()).collect();
            let deleted = self.pool.delete(&wire);
            let deleted = wire.iter().zip(deleted).filter_map(|(key, outcome)| {
                let deleted = outcome == Some(DeleteOutcome::Deleted);
                deleted.then(|| parse(&key.bytes().to_vec())).flatten()
            });
            let deleted: Vec<ObjectKey> = deleted.collect();
            reclaimed.retain(|key| !deleted.contains(key));
            self.locked(|_, _| self.listeners.queue(Event::Deleted, deleted));
        }
        let gone = self.gone(reclaimed);
        self.locked(|_, _| self.listeners.queue(Event::Deleted, gone));
    }

    fn is_nothing_left(state: &mut State, key: &ObjectKey) -> bool {
        !state.staging.contains(key) && state.held(key).is_none()
    }

    /// Of keys of which something was discarded, those that are now gone.
    pub(super) fn gone(&self, keys: Vec<ObjectKey>) -> Vec<ObjectKey> {
        let keys: Vec<ObjectKey> = {
            let mut state = self.lock();
            keys.into_iter().filter(|key| Self::is_nothing_left(&mut state, key)).collect()
        };
        let asked: Vec<&ObjectKey> = keys.iter().collect();
        let presence = self.pool.contains(&asked);
        let gone = |presence: &Option<Presence>| !matches!(presence, Some(Presence::Resident));
        let gone = keys.iter().zip(&presence).filter(|(_, presence)| gone(presence));
        gone.map(|(key, _)| key.clone()).collect()
    }

    /// Gives pages back, now: nobody finds memory missing that is free.
    pub(super) fn discard(&self, pages: Vec<ReservedPage>, rights: Vec<Right>) {
        let some = !pages.is_empty();
        drop(pages);
        self.pool.give_back(rights);
        if some {
            self.pool.flush();
        }
    }
}
