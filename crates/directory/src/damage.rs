//! Chunks whose bytes are not what was committed, or cannot be read.
//!
//! The directory never sees a byte. It says what is to be looked at: whatever somebody suspects, and
//! bit by bit everything. The driver looks, and condemns what it finds bad. From then on the key is
//! a miss and its page is not used any more; who pins it keeps it until they release it. Of a page
//! that it has reserved, a writer knows best: nobody has to look.

use std::collections::VecDeque;

use maru_protocol::{Checksum, Handle, SessionId};

use crate::Directory;
use crate::entries::Resident;
use crate::ids::{EntryId, PageAt, ReservationId};
use crate::pages::{PageState, Why};
use crate::record::Record;

/// The most suspicions that wait to be looked into; beyond, the look at everything finds it later.
const SUSPECTED_MAX: usize = 1024;

/// Pages passed over in one step of the look at everything.
const LOOKS_MAX: usize = 256;

/// A chunk to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Its page. If that is another chunk's by the time of the verdict, the verdict counts for nothing.
    pub handle: Handle,
    /// The chunk's length in bytes.
    pub length: u64,
    /// What its bytes should give; without one, all that can be seen is whether they can be read.
    pub checksum: Option<Checksum>,
}

/// What is to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    suspected: VecDeque<Handle>,
    /// Where the look at everything goes on.
    at: PageAt,
}

impl Directory {
    pub(crate) fn suspect(&mut self, id: SessionId, handles: &[Handle]) {
        for handle in handles {
            if let Some((page, reservation)) = self.reservation(id, *handle) {
                self.withdraw_reserved(id, page, reservation);
            } else if self.looks.suspected.len() < SUSPECTED_MAX {
                self.looks.suspected.push_back(*handle);
            }
        }
    }

    /// A session's reservation is gone, and nobody gets its page any more.
    fn withdraw_reserved(&mut self, id: SessionId, page: PageAt, reservation: ReservationId) {
        let entry = self.unlink(reservation).entry;
        self.entries.remove_if_empty(entry);
        if let Some(instance) = self.sessions.instance_of(id) {
            self.discharge(instance, self.pages.page_bytes(page));
        }
        self.stains.forget(page);
        self.pages.set(page, PageState::Quarantined(Why::Damaged));
        self.pages.journal.write(&Record::Damaged { page });
        self.counters.damaged += 1;
    }

    /// The next chunk to look at: one that somebody suspects, if there is one, else, if `all`, the next
    /// of all that have a checksum. `None` if there is none, or none nearby: ask again later.
    pub fn next_look(&mut self, all: bool) -> Option<Look> {
        if self.store_full {
            // What is condemned leaves records.
            return None;
        }
        while let Some(handle) = self.looks.suspected.pop_front() {
            if let Some((_, PageState::Resident(entry))) = self.pages.find(handle)
                && let Some(resident) = self.entries.get(entry).resident
            {
                return Some(self.look(&resident));
            }
        }
        let steps = if all { LOOKS_MAX } else { 0 };
        (0..steps).find_map(|_| {
            let at = self.pages.step(&mut self.looks.at)?;
            let PageState::Resident(entry) = self.pages.get(at).state else {
                return None;
            };
            let resident = self.entries.get(entry).resident?;
            resident.checksum.map(|_| self.look(&resident))
        })
    }

    fn look(&self, resident: &Resident) -> Look {
        let location = self.location(resident);
        Look { handle: location.handle, length: location.length, checksum: resident.checksum }
    }

    /// The chunk under `handle` was found bad: readers find it no more, and its page is not used any
    /// more. Returns its key; `None` if there is no such chunk any more.
    pub fn condemn(&mut self, handle: Handle) -> Option<Box<[u8]>> {
        let Some((at, PageState::Resident(entry))) = self.pages.find(handle) else {
            return None;
        };
        if self.ghosts.contains(&entry) {
            return None;
        }
        let key = self.entries.get(entry).key.clone();
        self.counters.damaged += 1;
        self.pages.journal.write(&Record::Damaged { page: at });
        if self.entries.get(entry).pins == 0 {
            self.withdraw_to(entry, None, PageState::Quarantined(Why::Damaged));
        } else {
            self.make_ghost(entry);
        }
        Some(key)
    }

    /// Has those who pin an entry go on with one that no key leads to.
    fn make_ghost(&mut self, id: EntryId) {
        self.policy.unpin(id);
        self.policy.remove(id);
        let ghost = self.entries.split(id);
        self.ghosts.insert(ghost);
        if let Some(resident) = self.entries.get(ghost).resident {
            self.pages.set(resident.page, PageState::Resident(ghost));
        }
        for session in self.sessions.live.values_mut() {
            if let Some(held) = session.pins.swap_remove(&id) {
                session.pins.insert(ghost, held);
            }
        }
        let key = self.entries.remove_if_empty(id);
        let key = key.unwrap_or_else(|| self.entries.get(id).key.clone());
        self.watching.withdrawn(None, || key);
    }

    /// Nobody pins a ghost any more.
    pub(crate) fn end_ghost(&mut self, id: EntryId) {
        self.ghosts.remove(&id);
        let Some(resident) = self.entries.forget(id).resident else {
            return;
        };
        self.discharge(resident.writer, self.pages.page_bytes(resident.page));
        self.pages.region_mut(resident.page).pinned -= 1;
        self.pages.set(resident.page, PageState::Quarantined(Why::Damaged));
        self.forget_if_idle(resident.writer);
    }
}
