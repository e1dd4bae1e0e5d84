//! A writer's requests: reserve, commit, abort.

use std::iter;

use hashbrown::HashSet;
use maru_protocol::{
    Answer, Chunk, CommitItem, CommitOutcome, Generation, Handle, Key, Location, Refusal,
    ReleaseOutcome, ReserveOutcome, SessionId,
};

use crate::entries::Resident;
use crate::ids::{EntryId, InstanceId, PageAt, QueueId, ReservationId};
use crate::pages::{PageState, Pages};
use crate::record::Record;
use crate::sessions::{Reservation, Session};
use crate::stains::Hosts;
use crate::{Directory, Millis};

impl Directory {
    pub(crate) fn reserve(
        &mut self,
        now: Millis,
        id: SessionId,
        keys: &[Key<'_>],
        page_bytes: u64,
        tag: u64,
        unless_being_written: bool,
    ) -> Result<Answer, Refusal> {
        let max = self.pages.page_bytes_max();
        if page_bytes == 0 || page_bytes > max {
            return Err(Refusal::PageSize { page_bytes, max });
        }
        let length = page_bytes;
        let page_bytes = Pages::round_up(page_bytes);
        let conflicts: Vec<Option<ReserveOutcome>> =
            keys.iter().map(|key| self.conflict(id, *key, tag, unless_being_written)).collect();
        // A key that the batch names twice needs one page.
        let mut wanted = HashSet::with_capacity_and_hasher(keys.len(), self.entries.hasher());
        let free = keys.iter().zip(&conflicts).filter(|(_, c)| c.is_none());
        wanted.extend(free.map(|(key, _)| key.bytes()));
        let shortage = self.make_room(now, id, page_bytes, wanted.len() as u64).err();
        let outcomes: Vec<ReserveOutcome> = keys
            .iter()
            .zip(conflicts)
            .map(|(key, conflict)| {
                // Asked again, since the batch may name a key twice.
                conflict
                    .or(shortage)
                    .or_else(|| self.conflict(id, *key, tag, unless_being_written))
                    .or_else(|| self.grant(now, id, *key, page_bytes, length, tag))
                    .unwrap_or(ReserveOutcome::OutOfMemory)
            })
            .collect();
        self.count_reserve(&outcomes);
        self.pages.uncut_unused();
        Ok(Answer::Reserved(outcomes))
    }

    fn count_reserve(&mut self, outcomes: &[ReserveOutcome]) {
        for outcome in outcomes {
            let counter = match outcome {
                ReserveOutcome::Granted(_) => &mut self.counters.granted,
                ReserveOutcome::Resident => &mut self.counters.refused_resident,
                ReserveOutcome::BeingWritten | ReserveOutcome::AlreadyReserved => {
                    &mut self.counters.refused_being_written
                }
                ReserveOutcome::OutOfMemory => &mut self.counters.refused_out_of_memory,
                ReserveOutcome::OverBudget => &mut self.counters.refused_over_budget,
            };
            *counter += 1;
        }
    }

    /// Why `key` cannot be reserved, apart from memory.
    fn conflict(
        &self,
        id: SessionId,
        key: Key<'_>,
        tag: u64,
        unless_being_written: bool,
    ) -> Option<ReserveOutcome> {
        let entry = self.entries.get(self.entries.find(key)?);
        if entry.resident.is_some() {
            return Some(ReserveOutcome::Resident);
        }
        if self.writers(entry.writers).any(|writer| writer.session == id && writer.tag == tag) {
            return Some(ReserveOutcome::AlreadyReserved);
        }
        (unless_being_written && entry.writers.is_some()).then_some(ReserveOutcome::BeingWritten)
    }

    /// The reservations that begin with `first`.
    pub(crate) fn writers(
        &self,
        first: Option<ReservationId>,
    ) -> impl Iterator<Item = &Reservation> {
        let first = first.map(|id| self.sessions.reservation(id));
        std::iter::successors(first, |writer| writer.next.map(|id| self.sessions.reservation(id)))
    }

    fn grant(
        &mut self,
        now: Millis,
        id: SessionId,
        key: Key<'_>,
        page_bytes: u64,
        length: u64,
        tag: u64,
    ) -> Option<ReserveOutcome> {
        let host = self.sessions.live.get(&id)?.host;
        let page = self.book(now, id, key, tag, |directory, reservation| {
            let Self { pages, stains, .. } = directory;
            // Pages that no other host can have go first.
            match stains.take(host, page_bytes) {
                Some(at) => {
                    pages.grant(at, reservation);
                    Some(at)
                }
                None => pages.take(page_bytes, reservation),
            }
        })?;
        Some(ReserveOutcome::Granted(Location::new(self.pages.handle(page), length)))
    }

    /// Books the page that `take` gives as reserved for a key.
    pub(crate) fn book(
        &mut self,
        now: Millis,
        id: SessionId,
        key: Key<'_>,
        tag: u64,
        take: impl FnOnce(&mut Self, ReservationId) -> Option<PageAt>,
    ) -> Option<PageAt> {
        let instance = self.sessions.instance_of(id)?;
        let entry = self.entries.find_or_insert(key);
        let next = self.entries.get(entry).writers;
        let page = PageAt { region: u32::MAX, index: u32::MAX };
        let reservation = Reservation { session: id, entry, page, tag, since: now, next };
        let reservation = self.sessions.add_reservation(reservation);
        let Some(page) = take(self, reservation) else {
            self.sessions.reservations.remove(reservation.index());
            self.entries.remove_if_empty(entry);
            return None;
        };
        self.sessions.reservations[reservation.index()].page = page;
        self.entries.get_mut(entry).writers = Some(reservation);
        self.sessions.live.get_mut(&id)?.reservations.insert(reservation);
        let bytes = self.pages.page_bytes(page);
        self.sessions.instance_mut(instance).charged_bytes += bytes;
        Some(page)
    }

    /// The reservation that `handle` names, if this session holds it.
    pub(crate) fn reservation(
        &self,
        id: SessionId,
        handle: Handle,
    ) -> Option<(PageAt, ReservationId)> {
        match self.pages.find(handle)? {
            (page, PageState::Reserved(reservation))
                if self.sessions.reservation(reservation).session == id =>
            {
                Some((page, reservation))
            }
            _ => None,
        }
    }

    /// Takes a reservation off the books of its key and its session; its page is the caller's.
    pub(crate) fn unlink(&mut self, id: ReservationId) -> Reservation {
        let gone = self.sessions.reservations.remove(id.index());
        if let Some(session) = self.sessions.live.get_mut(&gone.session) {
            session.reservations.swap_remove(&id);
        }
        let mut link = &mut self.entries.get_mut(gone.entry).writers;
        while let Some(other) = *link
            && other != id
        {
            link = &mut self.sessions.reservations[other.index()].next;
        }
        *link = gone.next;
        gone
    }

    pub(crate) fn commit(
        &mut self,
        now: Millis,
        id: SessionId,
        items: &[CommitItem],
        pins: u32,
        names: &[Key<'_>],
    ) -> Result<Answer, Refusal> {
        if !names.is_empty() && names.len() != items.len() {
            let (names, items) = (names.len() as u64, items.len() as u64);
            return Err(Refusal::Names { names, items });
        }
        if pins > 0 {
            self.check_pins(id, items.len(), pins)?;
        }
        let names = names.iter().copied().map(Some).chain(iter::repeat(None));
        let each = items.iter().zip(names);
        let committed = each.map(|(item, name)| self.commit_one(now, id, *item, pins, name));
        Ok(Answer::Committed(committed.collect()))
    }

    fn commit_one(
        &mut self,
        now: Millis,
        id: SessionId,
        item: CommitItem,
        pins: u32,
        name: Option<Key<'_>>,
    ) -> CommitOutcome {
        let Some((page, reservation)) = self.reservation(id, item.handle) else {
            return CommitOutcome::NotReserved;
        };
        if item.length == 0 || item.length > self.pages.page_bytes(page) {
            return CommitOutcome::BadLength;
        }
        let reserved_for = self.unlink(reservation).entry;
        let entry = name.map_or(reserved_for, |name| self.entries.find_or_insert(name));
        if entry != reserved_for {
            self.entries.remove_if_empty(reserved_for);
        }
        let winner = self.entries.get(entry).resident;
        if let Some(winner) = winner {
            if self.stains.forget(page) {
                self.pages.journal.write(&Record::Vacated { page });
            }
            self.free(page, id);
            self.counters.superseded += 1;
            self.pin(now, id, entry, pins);
            return CommitOutcome::Superseded(self.chunk(id, &winner));
        }
        let resident = self.make_resident(now, id, entry, page, item);
        self.counters.committed += 1;
        self.pin(now, id, entry, pins);
        CommitOutcome::Committed(self.chunk(id, &resident))
    }

    /// From here on readers find the entry (rule 2).
    fn make_resident(
        &mut self,
        now: Millis,
        id: SessionId,
        entry: EntryId,
        page: PageAt,
        item: CommitItem,
    ) -> Resident {
        let Session { instance: writer, host, .. } = self.sessions.live[&id];
        // A page is at most a region, a region at most 1 GiB.
        #[expect(clippy::cast_possible_truncation)]
        let length = item.length as u32;
        let queue = self.queue_of(page, writer);
        let checksum = item.checksum;
        let resident = Resident { page, length, writer, host, queue, touched: now, checksum };
        self.stains.forget(page);
        self.pages.set(page, PageState::Resident(entry));
        self.pages.queue_mut(page, queue).evictable += 1;
        self.pages.region_mut(page).touched = now;
        self.entries.get_mut(entry).resident = Some(resident);
        self.policy.insert(entry, queue);
        if let Ok(key) = Key::new(&self.entries.get(entry).key) {
            let record = stored(&resident, item.handle.generation, key);
            self.pages.journal.write(&record);
        }
        resident
    }

    /// The queue that a page of this writer is weighed in.
    pub(crate) fn queue_of(&mut self, page: PageAt, writer: InstanceId) -> QueueId {
        let owner = (self.sessions.instance(writer).budget_bytes > 0).then_some(writer);
        self.pages.queue_for(page, owner)
    }

    pub(crate) fn location(&self, resident: &Resident) -> Location {
        Location::new(self.pages.handle(resident.page), resident.length.into())
    }

    /// A resident chunk, as the session has to know it.
    pub(crate) fn chunk(&self, id: SessionId, resident: &Resident) -> Chunk {
        let foreign = self.sessions.live.get(&id).is_none_or(|reader| reader.host != resident.host);
        Chunk { location: self.location(resident), checksum: resident.checksum, foreign }
    }

    /// Frees a page that `id`'s instance reserved, and whose lines its host has written back.
    fn free(&mut self, page: PageAt, id: SessionId) {
        let bytes = self.pages.page_bytes(page);
        if let Some(instance) = self.sessions.instance_of(id) {
            self.sessions.instance_mut(instance).charged_bytes -= bytes;
        }
        self.vacate_page(page, &Hosts::new());
    }

    pub(crate) fn abort(&mut self, id: SessionId, handle: Handle) -> ReleaseOutcome {
        let Some((page, reservation)) = self.reservation(id, handle) else {
            return ReleaseOutcome::NotHeld;
        };
        let entry = self.unlink(reservation).entry;
        self.free(page, id);
        self.entries.remove_if_empty(entry);
        self.counters.aborted += 1;
        ReleaseOutcome::Released
    }
}

/// The record of a resident chunk.
pub(crate) fn stored<'a>(resident: &Resident, generation: Generation, key: Key<'a>) -> Record<'a> {
    let Resident { page, length, checksum, .. } = *resident;
    let (instance, host) = (resident.writer.number(), resident.host.number());
    Record::Stored { page, generation, length, checksum, instance, host, key }
}
