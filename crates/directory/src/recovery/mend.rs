//! What can be mended of records that do not fit their pool, or have gaps.

use std::collections::HashMap;

use maru_protocol::{Generation, Visibility};

use super::{Recovery, RecoveryError, Slot};
use crate::Geometry;
use crate::ids::PageAt;

impl Recovery {
    /// Forgets a chunk that was found, or that a page is bad.
    pub fn forget(&mut self, page: PageAt) {
        self.put(page, Slot::Vacant);
    }

    /// A page cannot be read: it is not used any more.
    pub fn condemn(&mut self, page: PageAt) {
        self.put(page, Slot::Damaged);
    }

    fn put(&mut self, page: PageAt, state: Slot) {
        // One that there is not cannot be in the way.
        if let Ok(slot) = self.slot(page) {
            *slot = state;
        }
    }

    /// Of chunks that are recorded twice, forgets the earlier ones. Returns how many.
    pub fn forget_doubles(&mut self) -> u64 {
        let mut latest: HashMap<&[u8], PageAt> = HashMap::new();
        let mut chunks: Vec<_> = self.chunks().collect();
        chunks.sort_unstable_by_key(|(_, chunk)| chunk.generation);
        let earlier =
            chunks.into_iter().filter_map(|(page, chunk)| latest.insert(&chunk.key, page));
        let earlier: Vec<PageAt> = earlier.collect();
        for page in &earlier {
            self.forget(*page);
        }
        earlier.len() as u64
    }

    /// What is recorded may be behind the pool, or have gaps. No session of it counts, and no chunk
    /// but those to `keep`: whoever says so has looked at their bytes, or knows better. If the pool
    /// `may_be_written`, nothing is granted for a while, and caches of any host may hold lines of any
    /// other page.
    pub fn distrust(
        &mut self,
        visibility: Visibility,
        may_be_written: bool,
        keep: impl Fn(PageAt) -> bool,
    ) {
        let count = u32::try_from(self.hosts.names.len());
        let hosts: Vec<u32> = (0..count.expect("they are numbered in u32")).collect();
        let stained = may_be_written && visibility == Visibility::CacheLine && !hosts.is_empty();
        for (number, region) in (0..).zip(&mut self.regions) {
            let stays = |(index, slot): (u32, &Slot)| match slot {
                Slot::Damaged => true,
                Slot::Stored(_) => keep(PageAt { region: number, index }),
                _ => false,
            };
            let stays: Vec<bool> = (0..).zip(&region.slots).map(stays).collect();
            if !stays.contains(&true) {
                // One page, or none.
                region.page_bytes = if stained { region.bytes } else { 0 };
            }
            let capacity = region.bytes.checked_div(region.page_bytes).unwrap_or(0);
            let capacity = usize::try_from(capacity).expect("a region has fewer than 2^32 pages");
            region.slots.resize_with(capacity, Slot::default);
            let stays = stays.into_iter().chain(std::iter::repeat(false));
            for (slot, _) in region.slots.iter_mut().zip(stays).filter(|(_, stays)| !stays) {
                *slot = if stained {
                    Slot::Stained(Generation(0), hosts.clone())
                } else {
                    Slot::Vacant
                };
            }
        }
        self.sessions.clear();
        self.unclaimed.clear();
        self.withheld = may_be_written;
    }

    /// Has all this be of another memory; `moved` says where what lay at an offset lies now, if it is
    /// there. No session counts any more: they hold places in the old one.
    pub fn move_to(
        &mut self,
        geometry: &Geometry,
        visibility: Visibility,
        may_be_written: bool,
        moved: impl Fn(u64) -> Option<u64>,
    ) -> Result<(), RecoveryError> {
        let mut other = Self::new(geometry)?;
        for old in std::mem::take(&mut self.regions) {
            let place = moved(old.offset);
            let mut regions = other.regions.iter_mut();
            let same = regions.find(|new| Some(new.offset) == place && new.bytes == old.bytes);
            if let Some(new) = same {
                (new.page_bytes, new.slots) = (old.page_bytes, old.slots);
            }
        }
        (self.geometry, self.regions) = (other.geometry, other.regions);
        self.distrust(visibility, may_be_written, |_| true);
        Ok(())
    }
}
