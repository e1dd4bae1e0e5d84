//! Regions and their pages: which page is in which state, and where a free one is.

use std::collections::{BTreeMap, BTreeSet};

use maru_protocol::{Generation, Handle, PAGE_ALIGN, RegionId};

use crate::ids::{EntryId, InstanceId, PageAt, QueueId, ReservationId};
use crate::record::{Journal, Record};
use crate::{ConfigError, Geometry, Millis};

/// Rule 1: a page is in exactly one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageState {
    Free,
    Reserved(ReservationId),
    Resident(EntryId),
    Quarantined(Why),
}

/// Why a page that nobody has is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// A vanished writer could still write to it.
    Writer,
    /// A session of before the restart may have reserved it, and was not heard yet.
    Unclaimed,
    /// Caches of hosts may hold unwritten lines of it.
    Stained,
    /// Its memory is bad.
    Damaged,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    pub(crate) generation: Generation,
    pub(crate) state: PageState,
}

/// Pages by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) reserved: u64,
    pub(crate) resident: u64,
    pub(crate) quarantined: u64,
}

impl Tally {
    pub(crate) const fn used(self) -> u64 {
        self.reserved + self.resident + self.quarantined
    }

    fn slot(&mut self, state: PageState) -> Option<&mut u64> {
        match state {
            PageState::Free => None,
            PageState::Reserved(_) => Some(&mut self.reserved),
            PageState::Resident(_) => Some(&mut self.resident),
            PageState::Quarantined(_) => Some(&mut self.quarantined),
        }
    }

    fn change(&mut self, from: PageState, to: PageState, unit: u64) {
        if let Some(count) = self.slot(from) {
            *count -= unit;
        }
        if let Some(count) = self.slot(to) {
            *count += unit;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// The size it is cut for; 0 while it is cut for none.
    pub(crate) page_bytes: u64,
    /// Pages that were used since the region was cut; those behind them are free.
    pub(crate) pages: Vec<Page>,
    /// Pages among these that are free again.
    pub(crate) free: Vec<u32>,
    pub(crate) tally: Tally,
    /// Resident pages with a pin.
    pub(crate) pinned: u64,
    /// When one of its pages was last used.
    pub(crate) touched: Millis,
}

impl Region {
    pub(crate) fn capacity(&self) -> u64 {
        self.bytes.checked_div(self.page_bytes).unwrap_or(0)
    }

    pub(crate) fn free_pages(&self) -> u64 {
        self.capacity() - self.tally.used()
    }

    /// Whether eviction alone would empty it.
    pub(crate) fn can_be_vacated(&self) -> bool {
        self.tally.used() == self.tally.resident && self.pinned == 0
    }
}

/// Quarantined pages by the reasons that are counted one by one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reasons {
    pub(crate) unclaimed: u64,
    pub(crate) stained: u64,
    pub(crate) damaged: u64,
}

impl Reasons {
    pub(crate) fn count(&mut self, state: PageState) -> Option<&mut u64> {
        match state {
            PageState::Quarantined(Why::Unclaimed) => Some(&mut self.unclaimed),
            PageState::Quarantined(Why::Stained) => Some(&mut self.stained),
            PageState::Quarantined(Why::Damaged) => Some(&mut self.damaged),
            _ => None,
        }
    }
}

/// The regions that are cut for one page size.
#[derive(Debug, Default)]
pub(crate) struct Class {
    pub(crate) regions: BTreeSet<u32>,
    /// Those with a free page. The lowest is used first, so that high ones run empty.
    open: BTreeSet<u32>,
    pub(crate) free_pages: u64,
    /// The eviction queues of this size: one for all, and one for each writer with a budget.
    pub(crate) queues: Vec<Queue>,
}

impl Class {
    /// Resident pages without a pin.
    pub(crate) fn evictable(&self) -> u64 {
        self.queues.iter().map(|queue| queue.evictable).sum()
    }
}

/// Entries of one page size, and of one writer if that has a budget.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) owner: Option<InstanceId>,
    pub(crate) id: QueueId,
    /// How many of them have no pin.
    pub(crate) evictable: u64,
}

/// All pages of the pool.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) regions: Vec<Region>,
    /// Regions that are cut for no size.
    pub(crate) uncut: BTreeSet<u32>,
    pub(crate) classes: BTreeMap<u64, Class>,
    pub(crate) tally: Tally,
    /// The same in bytes.
    pub(crate) tally_bytes: Tally,
    pub(crate) reasons: Reasons,
    pub(crate) capacity_bytes: u64,
    pub(crate) journal: Journal,
    largest_region: u64,
    first_generation: u64,
    next_generation: u64,
    /// A fault: the next page that is granted keeps its generation.
    #[cfg(feature = "plant")]
    pub(crate) keeps_generation: bool,
    /// Regions that were cut since [`Self::uncut_unused`].
    fresh: Vec<u32>,
    free_queues: Vec<QueueId>,
    queues_made: usize,
}

impl Pages {
    pub(crate) fn new(geometry: &Geometry, epoch: u64) -> Result<Self, ConfigError> {
        let regions: Vec<Region> = geometry
            .regions()?
            .into_iter()
            .map(|(offset, bytes)| Region {
                offset,
                bytes,
                page_bytes: 0,
                pages: Vec::new(),
                free: Vec::new(),
                tally: Tally::default(),
                pinned: 0,
                touched: Millis::default(),
            })
            .collect();
        let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
        Ok(Self {
            uncut: (0..count).collect(),
            classes: BTreeMap::new(),
            tally: Tally::default(),
            tally_bytes: Tally::default(),
            reasons: Reasons::default(),
            journal: Journal::default(),
            capacity_bytes: regions.iter().map(|region| region.bytes).sum(),
            largest_region: regions.iter().map(|region| region.bytes).max().unwrap_or(0),
            regions,
            first_generation: epoch << 32,
            next_generation: epoch << 32,
            #[cfg(feature = "plant")]
            keeps_generation: false,
            fresh: Vec::new(),
            free_queues: Vec::new(),
            queues_made: 0,
        })
    }

    /// The largest page that any region could be cut for, in bytes.
    pub(crate) fn page_bytes_max(&self) -> u64 {
        self.largest_region
    }

    /// The first generation of this life of the directory.
    pub(crate) const fn first_generation(&self) -> u64 {
        self.first_generation
    }

    pub(crate) const fn next_generation(&self) -> u64 {
        self.next_generation
    }

    pub(crate) fn region(&self, at: PageAt) -> &Region {
        &self.regions[at.region as usize]
    }

    pub(crate) fn region_mut(&mut self, at: PageAt) -> &mut Region {
        &mut self.regions[at.region as usize]
    }

    pub(crate) fn get(&self, at: PageAt) -> Page {
        self.region(at).pages[at.index as usize]
    }

    /// Reads pages so that they are in the cache when they are needed.
    pub(crate) fn warm(&self, pages: impl Iterator<Item = PageAt>) {
        let read = pages.fold(0, |sum, at| sum ^ self.get(at).generation.0);
        std::hint::black_box(read);
    }

    pub(crate) fn page_bytes(&self, at: PageAt) -> u64 {
        self.region(at).page_bytes
    }

    pub(crate) fn class_mut(&mut self, at: PageAt) -> &mut Class {
        let size = self.page_bytes(at);
        self.classes.get_mut(&size).expect("a cut region's size has a class")
    }

    pub(crate) fn handle(&self, at: PageAt) -> Handle {
        let region = self.region(at);
        Handle {
            region: RegionId(at.region),
            offset: region.offset + u64::from(at.index) * region.page_bytes,
            generation: self.get(at).generation,
        }
    }

    /// The page that `handle` names, if it is still granted under that generation (rule 8).
    pub(crate) fn find(&self, handle: Handle) -> Option<(PageAt, PageState)> {
        let at = self.place(handle)?;
        let page = self.get(at);
        let granted = page.generation == handle.generation && page.state != PageState::Free;
        granted.then_some((at, page.state))
    }

    /// The page that lies where `handle` says, of whatever generation.
    pub(crate) fn place(&self, handle: Handle) -> Option<PageAt> {
        let region = self.regions.get(handle.region.0 as usize)?;
        let inside = handle.offset.checked_sub(region.offset)?;
        if region.page_bytes == 0 || !inside.is_multiple_of(region.page_bytes) {
            return None;
        }
        let index = inside / region.page_bytes;
        region.pages.get(usize::try_from(index).ok()?)?;
        Some(PageAt { region: handle.region.0, index: u32::try_from(index).ok()? })
    }

    /// Free pages of this size in regions that are cut for it.
    pub(crate) fn free_pages(&self, page_bytes: u64) -> u64 {
        self.classes.get(&page_bytes).map_or(0, |class| class.free_pages)
    }

    /// An uncut region that at least one page of this size fits into.
    pub(crate) fn uncut_region(&self, page_bytes: u64) -> Option<u32> {
        let fits = |region: &&u32| self.regions[**region as usize].bytes >= page_bytes;
        self.uncut.iter().find(fits).copied()
    }

    /// Gives an uncut region the pages that it had before a restart.
    pub(crate) fn restore(&mut self, index: u32, page_bytes: u64, pages: Vec<Page>) {
        let region = &mut self.regions[index as usize];
        region.page_bytes = page_bytes;
        for (page, place) in pages.iter().zip(0..) {
            if page.state == PageState::Free {
                region.free.push(place);
            }
            region.tally.change(PageState::Free, page.state, 1);
            self.tally.change(PageState::Free, page.state, 1);
            self.tally_bytes.change(PageState::Free, page.state, page_bytes);
            if let Some(count) = self.reasons.count(page.state) {
                *count += 1;
            }
        }
        region.pages = pages;
        self.uncut.remove(&index);
        let class = self.classes.entry(page_bytes).or_default();
        class.regions.insert(index);
        class.free_pages += region.free_pages();
        if region.free_pages() > 0 {
            class.open.insert(index);
        }
    }

    /// Cuts an uncut region into pages of this size.
    pub(crate) fn cut(&mut self, index: u32, page_bytes: u64) {
        let region = &mut self.regions[index as usize];
        self.journal.write(&Record::Cut { region: index, page_bytes });
        self.uncut.remove(&index);
        self.fresh.push(index);
        region.page_bytes = page_bytes;
        let class = self.classes.entry(page_bytes).or_default();
        class.regions.insert(index);
        class.open.insert(index);
        class.free_pages += region.capacity();
    }

    /// Takes a free page of this size, for the reservation to come.
    pub(crate) fn take(&mut self, page_bytes: u64, reservation: ReservationId) -> Option<PageAt> {
        let index = self.classes.get(&page_bytes)?.open.first().copied()?;
        let region = &mut self.regions[index as usize];
        let page = region.free.pop().unwrap_or_else(|| {
            let generation = Generation(0);
            region.pages.push(Page { generation, state: PageState::Free });
            // A region has fewer than 2^32 pages: it is at most 1 GiB, and a page at least 4 KiB.
            #[expect(clippy::cast_possible_truncation)]
            let last = (region.pages.len() - 1) as u32;
            last
        });
        let at = PageAt { region: index, index: page };
        self.grant(at, reservation);
        Some(at)
    }

    /// Grants a page to a reservation; its next generation begins.
    pub(crate) fn grant(&mut self, at: PageAt, reservation: ReservationId) {
        self.set(at, PageState::Reserved(reservation));
        #[cfg(feature = "plant")]
        if std::mem::take(&mut self.keeps_generation) && self.get(at).generation.0 > 0 {
            return;
        }
        self.begin(at, Generation(self.next_generation));
        self.next_generation += 1;
    }

    /// Has a page be of this generation.
    pub(crate) fn begin(&mut self, at: PageAt, generation: Generation) {
        self.region_mut(at).pages[at.index as usize].generation = generation;
    }

    /// Moves a page to another state, with all the books. The region goes back to the pool when its
    /// last page is free.
    pub(crate) fn set(&mut self, at: PageAt, to: PageState) {
        let region = &mut self.regions[at.region as usize];
        let page = &mut region.pages[at.index as usize];
        let from = std::mem::replace(&mut page.state, to);
        region.tally.change(from, to, 1);
        self.tally.change(from, to, 1);
        self.tally_bytes.change(from, to, region.page_bytes);
        if let Some(count) = self.reasons.count(from) {
            *count -= 1;
        }
        if let Some(count) = self.reasons.count(to) {
            *count += 1;
        }
        // Records tell of nothing else. A page that is free again may have been stained when it was
        // granted.
        let told = matches!(
            from,
            PageState::Resident(_) | PageState::Quarantined(Why::Writer | Why::Stained)
        );
        if told && to == PageState::Free {
            self.journal.write(&Record::Vacated { page: at });
        }
        let class = self.classes.get_mut(&region.page_bytes);
        let class = class.expect("a cut region's size has a class");
        match (from, to) {
            (PageState::Free, PageState::Free) => {}
            (PageState::Free, _) => {
                class.free_pages -= 1;
                if region.free_pages() == 0 {
                    class.open.remove(&at.region);
                }
            }
            (_, PageState::Free) => {
                region.free.push(at.index);
                class.free_pages += 1;
                class.open.insert(at.region);
                if region.tally.used() == 0 {
                    self.uncut(at.region);
                }
            }
            _ => {}
        }
    }

    /// Takes an empty region back from its page size.
    fn uncut(&mut self, index: u32) {
        let region = &mut self.regions[index as usize];
        let page_bytes = region.page_bytes;
        let capacity = region.capacity();
        self.journal.write(&Record::Cut { region: index, page_bytes: 0 });
        (region.pages, region.free, region.page_bytes) = (Vec::new(), Vec::new(), 0);
        self.uncut.insert(index);
        let class = self.classes.get_mut(&page_bytes).expect("a cut region's size has a class");
        class.regions.remove(&index);
        class.open.remove(&index);
        class.free_pages -= capacity;
        if class.regions.is_empty() {
            self.free_queues.extend(class.queues.iter().map(|queue| queue.id));
            self.classes.remove(&page_bytes);
        }
    }

    /// The eviction queue for pages like `at` that `owner` wrote; `None` for writers without budget.
    pub(crate) fn queue_for(&mut self, at: PageAt, owner: Option<InstanceId>) -> QueueId {
        let known = self.class_mut(at).queues.iter().find(|queue| queue.owner == owner);
        if let Some(queue) = known {
            return queue.id;
        }
        let id = self.free_queues.pop().unwrap_or_else(|| {
            self.queues_made += 1;
            QueueId::new(self.queues_made - 1)
        });
        self.class_mut(at).queues.push(Queue { owner, id, evictable: 0 });
        id
    }

    /// The queue of a resident page.
    pub(crate) fn queue_mut(&mut self, at: PageAt, id: QueueId) -> &mut Queue {
        let queues = &mut self.class_mut(at).queues;
        queues.iter_mut().find(|queue| queue.id == id).expect("a queue lives while it has entries")
    }

    /// Forgets the queues of an instance that has nothing in the pool.
    pub(crate) fn forget_owner(&mut self, owner: InstanceId) {
        let Self { classes, free_queues, .. } = self;
        for class in classes.values_mut() {
            let gone = class.queues.extract_if(.., |queue| queue.owner == Some(owner));
            free_queues.extend(gone.map(|queue| queue.id));
        }
    }

    /// Gives regions back that were cut and then not needed.
    pub(crate) fn uncut_unused(&mut self) {
        while let Some(index) = self.fresh.pop() {
            let region = &self.regions[index as usize];
            if region.page_bytes > 0 && region.tally.used() == 0 {
                self.uncut(index);
            }
        }
    }

    /// How many pages of this size all of `regions` would give together.
    pub(crate) fn pages_in<'a>(
        &self,
        regions: impl Iterator<Item = &'a u32>,
        page_bytes: u64,
    ) -> u64 {
        regions.map(|region| self.regions[*region as usize].bytes / page_bytes).sum()
    }

    /// Moves a place one step on, around all regions; the page it was at, or `None` at a region's end.
    pub(crate) fn step(&self, at: &mut PageAt) -> Option<PageAt> {
        let PageAt { region, index } = *at;
        if (index as usize) < self.regions[region as usize].pages.len() {
            at.index += 1;
            return Some(PageAt { region, index });
        }
        let next = (region as usize + 1) % self.regions.len();
        let region = u32::try_from(next).expect("regions are numbered in u32");
        *at = PageAt { region, index: 0 };
        None
    }

    /// Rounds a page size up to what pages are aligned to.
    pub(crate) const fn round_up(page_bytes: u64) -> u64 {
        page_bytes.next_multiple_of(PAGE_ALIGN)
    }
}
