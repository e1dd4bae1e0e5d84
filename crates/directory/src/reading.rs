//! A reader's requests: contains, acquire, release, touch; and delete.

use maru_protocol::{
    Answer, DeleteOutcome, Handle, Key, Presence, Refusal, ReleaseOutcome, SessionId,
};

use crate::ids::EntryId;
use crate::pages::PageState;
use crate::sessions::PinHold;
use crate::{Directory, Millis, PINS_PER_SESSION_MAX};

impl Directory {
    /// What is known of a key whose entry this is; changes nothing (rule 10).
    pub(crate) fn presence(&self, entry: Option<EntryId>) -> Presence {
        match entry.map(|id| self.entries.get(id)) {
            Some(entry) if entry.resident.is_some() => Presence::Resident,
            Some(_) => Presence::Reserved,
            None => Presence::Missing,
        }
    }

    pub(crate) fn check_pins(
        &self,
        id: SessionId,
        entries: usize,
        pins: u32,
    ) -> Result<(), Refusal> {
        let held = self.sessions.live.get(&id).map_or(0, |session| session.pin_count);
        let asked = entries as u64 * u64::from(pins);
        if pins == 0 || held + asked > PINS_PER_SESSION_MAX {
            return Err(Refusal::Pins { pins, held, max: PINS_PER_SESSION_MAX });
        }
        Ok(())
    }

    pub(crate) fn acquire(
        &mut self,
        now: Millis,
        id: SessionId,
        keys: &[Key<'_>],
        pins: u32,
        stop_at_miss: bool,
    ) -> Result<Answer, Refusal> {
        self.check_pins(id, keys.len(), pins)?;
        let entries = self.entries.find_all(keys);
        let page = |id: EntryId| Some(self.entries.get(id).resident?.page);
        let resident = || entries.iter().flatten().copied().filter(|id| page(*id).is_some());
        self.pages.warm(resident().filter_map(page));
        self.policy.warm(&mut resident());
        let mut found = Vec::with_capacity(keys.len());
        for entry in entries {
            let hit = entry.and_then(|entry| {
                let resident = self.entries.get(entry).resident?;
                self.pin(now, id, entry, pins);
                self.use_entry(now, entry);
                Some(self.chunk(id, &resident))
            });
            let counter =
                if hit.is_some() { &mut self.counters.hits } else { &mut self.counters.misses };
            *counter += 1;
            if stop_at_miss && hit.is_none() {
                break;
            }
            found.push(hit);
        }
        Ok(Answer::Acquired(found))
    }

    /// Counts as a use of a resident entry.
    fn use_entry(&mut self, now: Millis, entry: EntryId) {
        self.policy.touch(entry);
        if let Some(resident) = &mut self.entries.get_mut(entry).resident {
            resident.touched = now;
            self.pages.region_mut(resident.page).touched = now;
        }
    }

    /// Adds `count` pins of a session to a resident entry.
    pub(crate) fn pin(&mut self, now: Millis, id: SessionId, entry: EntryId, count: u32) {
        let state = self.entries.get_mut(entry);
        let (Some(session), Some(resident)) = (self.sessions.live.get_mut(&id), state.resident)
        else {
            return;
        };
        if count == 0 {
            return;
        }
        if state.pins == 0 {
            self.policy.pin(entry);
            self.pages.queue_mut(resident.page, resident.queue).evictable -= 1;
            self.pages.region_mut(resident.page).pinned += 1;
            self.entries_pinned += 1;
        }
        state.pins += count;
        let held = session.pins.entry(entry).or_insert(PinHold { count: 0, since: now });
        held.count += count;
        session.pin_count += u64::from(count);
        self.pins += u64::from(count);
    }

    pub(crate) fn release_all(
        &mut self,
        now: Millis,
        id: SessionId,
        handles: &[Handle],
        count: u32,
    ) -> Answer {
        let entries = handles.iter().filter_map(|handle| match self.pages.find(*handle)? {
            (_, PageState::Resident(entry)) => Some(entry),
            _ => None,
        });
        self.entries.warm(entries);
        let released = handles.iter().map(|handle| self.release(now, id, *handle, count));
        Answer::Released(released.collect())
    }

    fn release(
        &mut self,
        now: Millis,
        id: SessionId,
        handle: Handle,
        count: u32,
    ) -> ReleaseOutcome {
        let Some((_, PageState::Resident(entry))) = self.pages.find(handle) else {
            return ReleaseOutcome::NotHeld;
        };
        self.unpin(now, id, entry, count)
    }

    /// Takes back `count` of a session's own pins on an entry, or none (rule 4).
    pub(crate) fn unpin(
        &mut self,
        now: Millis,
        id: SessionId,
        entry: EntryId,
        count: u32,
    ) -> ReleaseOutcome {
        let Some(session) = self.sessions.live.get_mut(&id) else {
            return ReleaseOutcome::NotHeld;
        };
        match session.pins.get_mut(&entry) {
            Some(held) if held.count > count && count > 0 => held.count -= count,
            Some(held) if held.count == count => {
                session.pins.swap_remove(&entry);
            }
            _ => return ReleaseOutcome::NotHeld,
        }
        session.pin_count -= u64::from(count);
        self.pins -= u64::from(count);
        let state = self.entries.get_mut(entry);
        state.pins -= count;
        if state.pins == 0 {
            self.entries_pinned -= 1;
            if self.ghosts.contains(&entry) {
                self.end_ghost(entry);
                return ReleaseOutcome::Released;
            }
            self.policy.unpin(entry);
            if let Some(resident) = &mut state.resident {
                resident.touched = now;
                self.pages.queue_mut(resident.page, resident.queue).evictable += 1;
                let region = self.pages.region_mut(resident.page);
                region.pinned -= 1;
                region.touched = now;
            }
        }
        ReleaseOutcome::Released
    }

    pub(crate) fn delete(&mut self, id: SessionId, key: Key<'_>) -> DeleteOutcome {
        let Some(found) = self.entries.find(key) else {
            return DeleteOutcome::Missing;
        };
        let entry = self.entries.get(found);
        if entry.resident.is_none() {
            DeleteOutcome::Reserved
        } else if entry.pins > 0 || self.claims.are_open() {
            DeleteOutcome::Pinned
        } else {
            self.withdraw(found, Some(id));
            self.counters.deleted += 1;
            DeleteOutcome::Deleted
        }
    }

    /// Frees the page of a resident entry without pins (rule 3); the caller has looked. `by` is the
    /// session that asked for this very entry to go.
    pub(crate) fn withdraw(&mut self, id: EntryId, by: Option<SessionId>) {
        self.withdraw_to(id, by, PageState::Free);
    }

    /// The same, and its page goes into this state.
    pub(crate) fn withdraw_to(&mut self, id: EntryId, by: Option<SessionId>, to: PageState) {
        let entry = self.entries.get_mut(id);
        debug_assert_eq!(entry.pins, 0, "rule 3: a pinned entry stays");
        let Some(resident) = entry.resident.take() else {
            return;
        };
        self.policy.remove(id);
        self.pages.queue_mut(resident.page, resident.queue).evictable -= 1;
        self.discharge(resident.writer, self.pages.page_bytes(resident.page));
        self.pages.set(resident.page, to);
        let key = self.entries.remove_if_empty(id);
        self.watching.withdrawn(by, || key.unwrap_or_else(|| self.entries.get(id).key.clone()));
        self.forget_if_idle(resident.writer);
    }

    pub(crate) fn touch(&mut self, now: Millis, key: Key<'_>) -> Presence {
        let entry = self.entries.find(key);
        let presence = self.presence(entry);
        if presence == Presence::Resident
            && let Some(entry) = entry
        {
            self.use_entry(now, entry);
        }
        presence
    }
}
