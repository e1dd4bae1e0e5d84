//! Making room: where the pages of a reserve come from.
//!
//! In this order: free pages of the size; an uncut region; the coldest entry of the size; a whole
//! region of another size that has been idle for clearly longer than that entry. The last is how
//! memory moves between models. As in memcached's slab automover, ages decide, and by a margin of a
//! quarter, so that two sizes of equal use do not take regions from each other in turn.

use maru_protocol::{ReserveOutcome, SessionId};

use crate::ids::{EntryId, InstanceId};
use crate::pages::{Class, PageState, Queue};
use crate::{Directory, Millis};

/// Why an entry is evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Room,
    Region,
    Watermark,
    Budget,
}

impl Directory {
    /// Makes sure that `wanted` pages of this size are free and within the instance's budget, or
    /// changes nothing.
    pub(crate) fn make_room(
        &mut self,
        now: Millis,
        id: SessionId,
        page_bytes: u64,
        wanted: u64,
    ) -> Result<(), ReserveOutcome> {
        if wanted == 0 {
            return Ok(());
        }
        if self.is_withheld() {
            return Err(ReserveOutcome::OutOfMemory);
        }
        let session = self.sessions.live.get(&id).ok_or(ReserveOutcome::OutOfMemory)?;
        let (instance, host) = (session.instance, session.host);
        let excess = self.over_budget(instance, page_bytes * wanted)?;
        if self.pages.free_pages(page_bytes) < wanted {
            // What nobody has claimed goes before what is evicted.
            self.sweep_unclaimed(u32::MAX);
        }
        let wanted = wanted.saturating_sub(self.stains.count(host, page_bytes));
        if self.pages.free_pages(page_bytes) < wanted && !self.could_free(page_bytes, wanted) {
            return Err(ReserveOutcome::OutOfMemory);
        }
        self.evict_own(instance, excess);
        while self.pages.free_pages(page_bytes) < wanted {
            if !self.free_one_step(now, page_bytes) {
                return Err(ReserveOutcome::OutOfMemory);
            }
        }
        Ok(())
    }

    /// Whether any entry may go: none while pins may be held that are not known.
    fn may_evict(&self) -> bool {
        !self.claims.are_open()
    }

    /// By how many bytes the instance would be over its budget with `wanted` more; an error if it
    /// cannot lose that much.
    fn over_budget(&self, id: InstanceId, wanted: u64) -> Result<u64, ReserveOutcome> {
        let instance = self.sessions.instance(id);
        if instance.budget_bytes == 0 {
            return Ok(0);
        }
        let excess = (instance.charged_bytes + wanted).saturating_sub(instance.budget_bytes);
        let own = |queue: &&Queue| queue.owner == Some(id);
        let classes = self.pages.classes.iter();
        let evictable: u64 = classes
            .flat_map(|(size, class)| {
                class.queues.iter().filter(own).map(move |queue| (size, queue))
            })
            .map(|(size, queue)| size * queue.evictable)
            .sum();
        let evictable = if self.may_evict() { evictable } else { 0 };
        if evictable >= excess { Ok(excess) } else { Err(ReserveOutcome::OverBudget) }
    }

    /// Evicts the instance's own coldest entries of any size until `excess` bytes are free.
    fn evict_own(&mut self, id: InstanceId, excess: u64) {
        let mut freed = 0;
        while freed < excess {
            let sizes = self.pages.classes.keys();
            let own = sizes.filter_map(|size| {
                let (entry, touched) = self.coldest(*size, |owner| owner == Some(id))?;
                Some((touched, entry, *size))
            });
            let Some((_, entry, size)) = own.min() else {
                break;
            };
            self.evict(entry, Cause::Budget);
            freed += size;
        }
    }

    /// Whether enough pages of this size could be made free by cutting and evicting.
    fn could_free(&self, page_bytes: u64, wanted: u64) -> bool {
        let own = self.pages.classes.get(&page_bytes);
        let evictable = |class: &Class| if self.may_evict() { class.evictable() } else { 0 };
        let own = own.map_or(0, |class| class.free_pages + evictable(class));
        let mut possible = own + self.pages.pages_in(self.pages.uncut.iter(), page_bytes);
        for (size, class) in &self.pages.classes {
            if possible >= wanted {
                break;
            }
            if *size != page_bytes {
                let vacatable = class.regions.iter().filter(|index| self.can_vacate(**index));
                possible += self.pages.pages_in(vacatable, page_bytes);
            }
        }
        possible >= wanted
    }

    fn can_vacate(&self, region: u32) -> bool {
        self.may_evict() && self.pages.regions[region as usize].can_be_vacated()
    }

    /// One step towards more free pages of this size; `false` if there is none.
    fn free_one_step(&mut self, now: Millis, page_bytes: u64) -> bool {
        if let Some(region) = self.pages.uncut_region(page_bytes) {
            self.pages.cut(region, page_bytes);
            return true;
        }
        if !self.may_evict() {
            return false;
        }
        let own = self.coldest(page_bytes, |_| true);
        let other = self.idlest_region_of_others(page_bytes);
        match (own, other) {
            (Some((entry, touched)), Some((_, other_touched)))
                if (now - other_touched) * 4 <= (now - touched) * 5 =>
            {
                self.evict(entry, Cause::Room);
            }
            (_, Some((region, _))) => self.vacate(region),
            (Some((entry, _)), None) => self.evict(entry, Cause::Room),
            (None, None) => return false,
        }
        true
    }

    /// The coldest unpinned entry of this size in the queues that `of` chooses by their owner.
    fn coldest(
        &self,
        page_bytes: u64,
        of: impl Fn(Option<InstanceId>) -> bool,
    ) -> Option<(EntryId, Millis)> {
        let queues = &self.pages.classes.get(&page_bytes)?.queues;
        queues
            .iter()
            .filter(|queue| of(queue.owner))
            .filter_map(|queue| self.policy.coldest(queue.id))
            .filter_map(|entry| Some((entry, self.entries.get(entry).resident?.touched)))
            .min_by_key(|(_, touched)| *touched)
    }

    /// The region of another size that eviction would empty and that is unused for longest, with
    /// when its hottest entry was last used.
    fn idlest_region_of_others(&self, page_bytes: u64) -> Option<(u32, Millis)> {
        let others = self.pages.classes.iter().filter(|(size, _)| **size != page_bytes);
        others
            .flat_map(|(_, class)| &class.regions)
            .map(|index| (*index, &self.pages.regions[*index as usize]))
            .filter(|(_, region)| region.can_be_vacated() && region.bytes >= page_bytes)
            .map(|(index, region)| (index, region.touched))
            .min_by_key(|(_, touched)| *touched)
    }

    /// Evicts all entries of a region, which then belongs to no size.
    fn vacate(&mut self, region: u32) {
        let pages = &self.pages.regions[region as usize].pages;
        let entries: Vec<EntryId> = pages
            .iter()
            .filter_map(|page| match page.state {
                PageState::Resident(entry) => Some(entry),
                _ => None,
            })
            .collect();
        for entry in entries {
            self.evict(entry, Cause::Region);
        }
    }

    pub(crate) fn evict(&mut self, entry: EntryId, cause: Cause) {
        self.withdraw(entry, None);
        let counter = match cause {
            Cause::Room => &mut self.counters.evicted_for_room,
            Cause::Region => &mut self.counters.evicted_for_region,
            Cause::Watermark => &mut self.counters.evicted_by_watermark,
            Cause::Budget => &mut self.counters.evicted_for_budget,
        };
        *counter += 1;
    }

    /// Above the high watermark, evicts the globally coldest entries down to the low one, at most
    /// `work` of them; the next tick goes on. Returns how many.
    pub(crate) fn evict_to_watermark(&mut self, work: u32) -> u32 {
        if self.pages.reasons.unclaimed > 0 {
            // Most of these pages are vacant, and are soon known to be.
            return 0;
        }
        let share = |permille: u32| {
            let bytes = u128::from(self.pages.capacity_bytes) * u128::from(permille) / 1000;
            u64::try_from(bytes).unwrap_or(u64::MAX)
        };
        let (high, low) =
            (share(self.config.watermark_high_permille), share(self.config.watermark_low_permille));
        self.evicting |= self.pages.tally_bytes.used() > high;
        if !self.evicting || !self.may_evict() {
            return 0;
        }
        let mut done = 0;
        while done < work && self.pages.tally_bytes.used() > low {
            let sizes = self.pages.classes.keys();
            let coldest = sizes.filter_map(|size| self.coldest(*size, |_| true));
            let Some((entry, _)) = coldest.min_by_key(|(_, touched)| *touched) else {
                break;
            };
            self.evict(entry, Cause::Watermark);
            done += 1;
        }
        // Only the bound on the work puts the rest off.
        self.evicting = done == work && self.pages.tally_bytes.used() > low;
        done
    }
}
