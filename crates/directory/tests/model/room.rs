//! What a reserve should grant, and whom it may evict for that.

use std::collections::{BTreeMap, BTreeSet};

use maru_directory::Millis;
use maru_directory::rules::Snapshot;
use maru_protocol::{
    Answer, Body, Generation, Handle, Location, Refusal, ReserveOutcome, SessionId,
};

use crate::answers::{Seen, name};
use crate::reference::{Entry, Model, Name, Reservation};

impl Model {
    pub(crate) fn reserve(
        &mut self,
        seen: &Seen<'_>,
        body: &Body<'static>,
    ) -> Result<Vec<ReserveOutcome>, Refusal> {
        let Body::Reserve { keys, page_bytes, tag, unless_being_written } = body else {
            panic!("a reserve is given");
        };
        let (length, tag, unless) = (*page_bytes, *tag, *unless_being_written);
        let max = self.regions.iter().map(|(_, bytes)| *bytes).max().expect("there is one");
        if length == 0 || length > max {
            return Err(Refusal::PageSize { page_bytes: length, max });
        }
        let page_bytes = length.div_ceil(4096) * 4096;
        let conflict = |model: &Self, key| model.conflict(seen.id, key, tag, unless);
        // A chunk that is there when the request comes is answered so, even if making room for the
        // others of its batch then evicts it.
        let before: Vec<_> = keys.iter().map(|key| conflict(self, name(key))).collect();
        let wanted = keys.iter().zip(&before).filter(|(_, conflict)| conflict.is_none());
        let wanted: BTreeSet<Name> = wanted.map(|(key, _)| name(key)).collect();
        let shortage = self.make_room(seen, page_bytes, wanted.len() as u64).err();
        let mut outcomes = Vec::new();
        for (place, key) in keys.iter().map(name).enumerate() {
            // A key that the batch names twice is granted once.
            let refused = before[place].or(shortage).or_else(|| conflict(self, key));
            let outcome = refused.unwrap_or_else(|| {
                let location = granted(seen.answer, place);
                self.take_stained(seen.id, location.handle, page_bytes);
                self.check_grant(location, length, page_bytes);
                let reservation =
                    Reservation { key, tag, handle: location.handle, page_bytes, since: seen.now };
                let session = self.sessions.get_mut(&seen.id).expect("it asks");
                session.reservations.insert(location.generation(), reservation);
                ReserveOutcome::Granted(location)
            });
            self.count(outcome);
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// Stained pages that only this session's host can have, of one size.
    fn own_stains(&self, id: SessionId, page_bytes: u64) -> Vec<Generation> {
        let host = &self.sessions[&id].host;
        let own = self
            .stains
            .iter()
            .filter(|(_, stain)| stain.page_bytes == page_bytes && stain.hosts.iter().eq([host]));
        own.map(|(generation, _)| *generation).collect()
    }

    /// If there are any, they go first.
    fn take_stained(&mut self, id: SessionId, granted: Handle, page_bytes: u64) {
        let own = self.own_stains(id, page_bytes);
        let place = |handle: Handle| (handle.region, handle.offset);
        let at = |stain: &Generation| place(self.stains[stain].handle) == place(granted);
        let taken = own.iter().copied().find(at);
        assert!(
            taken.is_some() || own.is_empty(),
            "{granted:?} was granted, and {own:?} were left"
        );
        if let Some(taken) = taken {
            self.stains.remove(&taken);
            self.granted_stained.insert(granted.generation);
        }
    }

    fn count(&mut self, outcome: ReserveOutcome) {
        let counters = &mut self.counters;
        *match outcome {
            ReserveOutcome::Granted(_) => &mut counters.granted,
            ReserveOutcome::Resident => &mut counters.refused_resident,
            ReserveOutcome::BeingWritten | ReserveOutcome::AlreadyReserved => {
                &mut counters.refused_being_written
            }
            ReserveOutcome::OutOfMemory => &mut counters.refused_out_of_memory,
            ReserveOutcome::OverBudget => &mut counters.refused_over_budget,
        } += 1;
    }

    /// A granted page lies in a region of its size, is free, and has a new generation.
    fn check_grant(&mut self, location: Location, length: u64, page_bytes: u64) {
        let handle = location.handle;
        let (offset, bytes) = self.regions[handle.region.0 as usize];
        let inside = handle.offset.checked_sub(offset).expect("inside its region");
        assert!(inside.is_multiple_of(page_bytes) && inside + page_bytes <= bytes, "{handle:?}");
        assert!(handle.offset.is_multiple_of(4096), "pages are aligned");
        assert_eq!(location.length, length);
        for (used, used_bytes) in self.used_pages() {
            if used.region == handle.region {
                assert_eq!(used_bytes, page_bytes, "a region has pages of one size");
                assert_ne!(used.offset, handle.offset, "a page is granted twice");
            }
        }
        assert!(handle.generation.0 >= self.next_generation, "a generation is new");
        self.next_generation = handle.generation.0 + 1;
    }

    /// Follows the making of room for `wanted` pages: nothing at all, or enough.
    fn make_room(
        &mut self,
        seen: &Seen<'_>,
        page_bytes: u64,
        wanted: u64,
    ) -> Result<(), ReserveOutcome> {
        if wanted == 0 {
            return Ok(());
        }
        let instance = self.sessions[&seen.id].instance.clone();
        let budget = self.budgets[&instance];
        let excess = match budget {
            0 => 0,
            _ => (self.charged(&instance) + page_bytes * wanted).saturating_sub(budget),
        };
        let own = self.entries.iter().filter(|(key, e)| self.may_go(key) && own(e, &instance));
        if own.map(|(_, entry)| entry.page_bytes).sum::<u64>() < excess {
            return Err(ReserveOutcome::OverBudget);
        }
        let wanted = wanted.saturating_sub(self.own_stains(seen.id, page_bytes).len() as u64);
        if self.pages_possible(page_bytes) < wanted {
            return Err(ReserveOutcome::OutOfMemory);
        }
        let tied = self.evict_own(seen.after, &instance, excess);
        if !tied {
            self.check_room_made(seen, page_bytes, wanted);
        }
        for key in self.vanished(seen.after) {
            self.evicted(key);
        }
        Ok(())
    }

    /// Whether nobody pins a resident key.
    fn may_go(&self, key: Name) -> bool {
        self.pins_on(key) == 0
    }

    pub(crate) fn vanished(&self, after: &Snapshot) -> BTreeSet<Name> {
        let keys = self.entries.keys().copied();
        keys.filter(|key| !after.entries.contains_key(*key)).collect()
    }

    pub(crate) fn evicted(&mut self, key: Name) {
        assert!(self.may_go(key), "rule 3: {key:?} was evicted and is pinned");
        self.entries.remove(key);
        self.evicted += 1;
    }

    /// The entries that may go first, of those that `which` chooses.
    fn coldest(&self, which: impl Fn(&Entry) -> bool) -> BTreeSet<Name> {
        let may_go = |(key, entry): &(&Name, &Entry)| self.may_go(key) && which(entry);
        let all: Vec<(&Name, &Entry)> = self.entries.iter().filter(may_go).collect();
        let colder = |a: &Entry, b: &Entry| {
            a.touched < b.touched || (a.queue() == b.queue() && a.order < b.order)
        };
        let first = all.iter().filter(|(_, e)| !all.iter().any(|(_, other)| colder(other, e)));
        first.map(|(key, _)| **key).collect()
    }

    /// A budget's own entries go strictly by age, until enough are gone. Returns whether entries of
    /// several sizes were equally old, so that it is open which of them went for the budget and
    /// which for room.
    fn evict_own(&mut self, after: &Snapshot, instance: &str, excess: u64) -> bool {
        let mut freed = 0;
        let mut tied = false;
        while freed < excess {
            let coldest = self.coldest(|entry| own(entry, instance));
            let gone = self.vanished(after);
            let first = coldest.intersection(&gone).next();
            let first = first.unwrap_or_else(|| panic!("one of {coldest:?} goes, not {gone:?}"));
            freed += self.entries[*first].page_bytes;
            tied |= coldest.len() > 1;
            self.evicted(first);
        }
        tied
    }

    /// No more goes than needed, and the coldest first.
    fn check_room_made(&self, seen: &Seen<'_>, page_bytes: u64, wanted: u64) {
        let gone = self.vanished(seen.after);
        let available = self.pages_available(page_bytes);
        if available >= wanted {
            assert!(gone.is_empty(), "{gone:?} were evicted, and there was room");
            return;
        }
        let same: Vec<Name> =
            gone.iter().copied().filter(|key| self.entries[key].page_bytes == page_bytes).collect();
        let mut regions: BTreeMap<u32, u64> = BTreeMap::new();
        for key in gone.iter().filter(|key| !same.contains(key)) {
            let region = self.entries[key].handle.region.0;
            regions.insert(region, self.regions[region as usize].1 / page_bytes);
        }
        for region in regions.keys() {
            let used =
                self.used_pages().into_iter().filter(|(handle, _)| handle.region.0 == *region);
            let evicted = gone.iter().filter(|key| self.entries[*key].handle.region.0 == *region);
            assert_eq!(used.count(), evicted.count(), "region {region} is not emptied");
        }
        let gained = same.len() as u64 + regions.values().sum::<u64>();
        let last = regions.values().copied().max().unwrap_or(1);
        assert!(available + gained >= wanted, "{gone:?} do not make room");
        assert!(available + gained < wanted + last, "{gone:?} are more than needed");
        self.check_same_size(&gone, page_bytes);
        self.check_regions(seen.now, &gone, &regions, page_bytes);
    }

    /// Of one size, the least recently used go first.
    fn check_same_size(&self, gone: &BTreeSet<Name>, page_bytes: u64) {
        let stays = |key: &Name| !gone.contains(key) && self.may_go(key);
        for evicted in gone.iter().map(|key| &self.entries[key]) {
            for (key, kept) in self.entries.iter().filter(|(key, _)| stays(key)) {
                let weighed = evicted.page_bytes == page_bytes && kept.page_bytes == page_bytes;
                assert!(!weighed || not_after(evicted, kept), "{key:?} is colder than {evicted:?}");
            }
        }
    }

    /// A region of another size goes where all of it is idle for clearly longer than our own
    /// coldest, and is then the longest idle that can go.
    fn check_regions(
        &self,
        now: Millis,
        gone: &BTreeSet<Name>,
        regions: &BTreeMap<u32, u64>,
        page_bytes: u64,
    ) {
        let idle = |region: u32| u128::from(now - self.region_used[&region]);
        let fits = |region: u32| self.regions[region as usize].1 >= page_bytes;
        let all = 0..u32::try_from(self.regions.len()).expect("few");
        let kept: Vec<u32> = all
            .filter(|region| !regions.contains_key(region) && fits(*region))
            .filter(|region| self.can_be_vacated(*region) && self.size_of(*region) != page_bytes)
            .collect();
        for (region, other) in regions.keys().flat_map(|r| kept.iter().map(move |k| (r, k))) {
            assert!(idle(*region) >= idle(*other), "region {other} is idle for longer");
        }
        let own = |evicted: bool| {
            let same = self.entries.iter().filter(move |(key, entry)| {
                self.may_go(key) && entry.page_bytes == page_bytes && gone.contains(*key) == evicted
            });
            same.map(|(_, entry)| u128::from(now - entry.touched))
        };
        let coldest_kept = own(false).max();
        for region in regions.keys() {
            let clearly = coldest_kept.is_none_or(|own| idle(*region) * 4 > own * 5);
            assert!(clearly, "region {region} went, and our own coldest is as old");
        }
        let Some(youngest) = own(true).min() else { return };
        for region in kept {
            let alike = idle(region) * 4 <= youngest * 5;
            assert!(alike, "our own went, and region {region} is idle for clearly longer");
        }
    }

    /// The size that a region is cut for; 0 for none.
    pub(crate) fn size_of(&self, region: u32) -> u64 {
        let used = self.used_pages();
        used.iter().find(|(handle, _)| handle.region.0 == region).map_or(0, |(_, bytes)| *bytes)
    }

    fn can_be_vacated(&self, region: u32) -> bool {
        let used = self.used_pages().into_iter().filter(|(handle, _)| handle.region.0 == region);
        let used = used.count();
        let mut here = self.entries.iter().filter(|(_, e)| e.handle.region.0 == region);
        used > 0 && here.clone().count() == used && here.all(|(key, _)| self.may_go(key))
    }

    /// Pages of this size that are free, or would be if uncut regions were cut.
    fn pages_available(&self, page_bytes: u64) -> u64 {
        self.count_pages(page_bytes, |_| false, |_| false)
    }

    /// Pages of this size that could be free after every eviction that is allowed.
    fn pages_possible(&self, page_bytes: u64) -> u64 {
        let unpinned = |generation| {
            let mut entries = self.entries.iter();
            entries.any(|(key, e)| e.handle.generation == generation && self.may_go(key))
        };
        self.count_pages(page_bytes, unpinned, |region| self.can_be_vacated(region))
    }

    fn count_pages(
        &self,
        page_bytes: u64,
        page: impl Fn(maru_protocol::Generation) -> bool,
        whole: impl Fn(u32) -> bool,
    ) -> u64 {
        let used = self.used_pages();
        (0_u32..)
            .zip(&self.regions)
            .map(|(region, (_, bytes))| {
                let all = bytes / page_bytes;
                let here = used.iter().filter(|(handle, _)| handle.region.0 == region);
                match self.size_of(region) {
                    size if size == page_bytes => {
                        all - here.filter(|(handle, _)| !page(handle.generation)).count() as u64
                    }
                    0 => all,
                    _ if whole(region) => all,
                    _ => 0,
                }
            })
            .sum()
    }

    /// Who would be allowed to go next from the whole pool, by age alone.
    pub(crate) fn check_globally_coldest(&self, gone: &BTreeSet<Name>) {
        for evicted in gone.iter().map(|key| &self.entries[key]) {
            let stays = |key: &Name| !gone.contains(key) && self.may_go(key);
            for (key, kept) in self.entries.iter().filter(|(key, _)| stays(key)) {
                assert!(not_after(evicted, kept), "{key:?} is colder than {evicted:?}");
            }
        }
    }
}

fn own(entry: &Entry, instance: &str) -> bool {
    entry.budgeted && entry.writer == instance
}

/// Whether the one may go before the other.
fn not_after(evicted: &Entry, kept: &Entry) -> bool {
    let same_queue = evicted.queue() == kept.queue();
    evicted.touched <= kept.touched && (!same_queue || evicted.order <= kept.order)
}

fn granted(answer: &Result<Answer, Refusal>, place: usize) -> Location {
    match answer {
        Ok(Answer::Reserved(outcomes)) => match outcomes.get(place) {
            Some(ReserveOutcome::Granted(location)) => *location,
            other => panic!("key {place} is to be granted, not {other:?}"),
        },
        other => panic!("a reserve is answered {other:?}"),
    }
}
