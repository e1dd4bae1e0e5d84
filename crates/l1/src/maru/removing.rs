//! What takes chunks away.

use std::collections::BTreeSet;

use maru_client::ReservedPage;
use maru_protocol::{DeleteOutcome, Key, Presence};

use super::Shared;
use super::held::Right;
use crate::contract::succeeded;
use crate::{L1Error, ObjectKey, Outcomes};

impl Shared {
    /// One round trip, and one more where something of this manager has to be given back first.
    pub(super) fn delete(&self, keys: &[ObjectKey], force: bool) -> Outcomes<()> {
        let _changing = self.changing(keys);
        let reclaims_live = force && !self.has_outside_writers();
        let (mut discarded, mut ended, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        let mut outcomes: Outcomes<()> = self.locked(|state, now| {
            let delete = |(index, key): (usize, &ObjectKey)| {
                if state.closed {
                    return Err(L1Error::KeyNotExist);
                }
                let reclaimed = state.staging.reclaim(now, key, reclaims_live);
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
        let mut unknown = false;
        for ((index, reclaimed), deleted) in asked.iter().zip(self.pool.delete(&wire)) {
            unknown |= deleted.is_none();
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
        self.locked(|state, _| {
            self.queue_gone(state, gone);
            if unknown {
                self.listeners.queue_deletions_missed();
            }
        });
        outcomes
    }

    pub(super) fn clear(&self, force: bool) {
        let reclaims_live = force && !self.has_outside_writers();
        let (mut discarded, mut ended) = (Vec::new(), Vec::new());
        let (mut reclaimed, mut cleared) = (BTreeSet::new(), BTreeSet::new());
        self.locked(|state, now| {
            for key in state.staging.keys() {
                let pages = state.staging.reclaim(now, &key, reclaims_live);
                if !pages.is_empty() {
                    discarded.extend(pages);
                    reclaimed.insert(key);
                }
            }
            for (key, held) in state.held.extract_if(|_, held| force || !held.lock.is_locked(now)) {
                if held.page.is_temporary() {
                    cleared.insert(key);
                }
                ended.extend(held.page.end());
            }
            // At once: from here on a new one of the same key can come.
            self.queue_gone(state, cleared.iter().cloned());
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
            cleared.extend(deleted.iter().cloned());
            self.locked(|state, _| self.queue_gone(state, deleted));
        }
        let reclaimed: Vec<ObjectKey> = reclaimed.difference(&cleared).cloned().collect();
        let _changing = self.changing(&reclaimed);
        self.tell_gone(&reclaimed);
    }

    /// Of keys of which something was discarded, tells those that are now gone. The caller changes
    /// them.
    pub(super) fn tell_gone(&self, keys: &[ObjectKey]) {
        let asked: Vec<&ObjectKey> = keys.iter().collect();
        let presence = self.pool.contains(&asked);
        let unknown = presence.contains(&None);
        let missing = |presence: &Option<Presence>| {
            presence.is_some_and(|presence| presence != Presence::Resident)
        };
        let gone = keys.iter().zip(presence).filter(|(_, presence)| missing(presence));
        self.locked(|state, _| {
            self.queue_gone(state, gone.map(|(key, _)| key.clone()));
            if unknown {
                self.listeners.queue_deletions_missed();
            }
        });
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
