//! Making a directory again from its records.

mod finish;
mod mend;

use std::collections::{BTreeMap, HashMap};

use indexmap::IndexSet;
use maru_protocol::{Checksum, Generation, SessionId};

use crate::ids::PageAt;
use crate::record::Record;
use crate::sessions::{Kept, Replies};
use crate::{ConfigError, Geometry, ProcessId};

/// Why records make no directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// The pool has no such page.
    #[error("page {index} of region {region} is recorded, and the pool has no such page")]
    NoSuchPage {
        /// The region.
        region: u32,
        /// The page's place in it.
        index: u32,
    },
    /// A region is recorded to be cut for a size that is none.
    #[error("region {region} is recorded to be cut into pages of {page_bytes} bytes")]
    PageSize {
        /// The region.
        region: u32,
        /// The size in bytes.
        page_bytes: u64,
    },
    /// A number stands for an instance or a host, and no earlier record says for which.
    #[error("{what} {number} is recorded and was never named")]
    Nameless {
        /// `instance` or `host`.
        what: &'static str,
        /// The number.
        number: u32,
    },
    /// One chunk is recorded twice.
    #[error("{} is recorded in two pages", key.escape_ascii())]
    TwoPages {
        /// The chunk's key.
        key: Vec<u8>,
    },
    /// The epoch that is to begin is not later than all before it.
    #[error("epoch {found} is recorded, so epoch {epoch} cannot begin")]
    Epoch {
        /// The latest epoch of which something is recorded.
        found: u64,
        /// The one that was to begin.
        epoch: u64,
    },
    /// The directory cannot be configured so.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A directory that is being made again.
#[derive(Debug)]
pub struct Recovery {
    geometry: Geometry,
    regions: Vec<Region>,
    hosts: Names,
    instances: Names,
    /// How many bytes each instance may have.
    budgets: HashMap<u32, u64>,
    sessions: BTreeMap<SessionId, Known>,
    /// Above all generations that are recorded.
    next_generation: u64,
    /// Whose caches may hold lines of pages that nothing is known of.
    unclaimed: Vec<u32>,
    withheld: bool,
}

/// A chunk that was found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// Its page.
    pub page: PageAt,
    /// Where the page begins, in bytes from the start of the pool's address range.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its checksum, if it has one.
    pub checksum: Option<Checksum>,
    /// Its key.
    pub key: &'a [u8],
}

#[derive(Debug, Default)]
struct Region {
    offset: u64,
    bytes: u64,
    page_bytes: u64,
    slots: Vec<Slot>,
}

/// What is recorded of a page.
#[derive(Debug, Default)]
enum Slot {
    #[default]
    Vacant,
    Stored(Chunk),
    Quarantined(Generation, SessionId),
    Stained(Generation, Vec<u32>),
    Damaged,
}

#[derive(Debug)]
struct Chunk {
    key: Box<[u8]>,
    generation: Generation,
    checksum: Option<Checksum>,
    length: u32,
    instance: u32,
    host: u32,
}

/// Names, and which number stands for which at this point of the records.
#[derive(Debug, Default)]
struct Names {
    names: IndexSet<String>,
    numbers: HashMap<u32, u32>,
}

impl Names {
    fn name(&mut self, number: u32, name: &str) -> u32 {
        let (index, _) = self.names.insert_full(name.to_owned());
        let index = u32::try_from(index).expect("names are numbered in u32 where they come from");
        self.numbers.insert(number, index);
        index
    }

    fn index(&self, what: &'static str, number: u32) -> Result<u32, RecoveryError> {
        self.numbers.get(&number).copied().ok_or(RecoveryError::Nameless { what, number })
    }

    fn indices(&self, what: &'static str, numbers: &[u32]) -> Result<Vec<u32>, RecoveryError> {
        numbers.iter().map(|number| self.index(what, *number)).collect()
    }
}

/// A session of before.
#[derive(Debug)]
struct Known {
    record: Opened,
    stage: Stage,
    replies: Replies,
}

#[derive(Debug, Clone, Copy)]
struct Opened {
    secret: maru_protocol::Secret,
    instance: u32,
    host: u32,
    process: Option<ProcessId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It may come back, and holds what it says.
    Live,
    /// It is over; what it had reserved is not all recorded.
    Ended,
    /// It is over; what it had reserved is in quarantine.
    Drained,
}

impl Recovery {
    /// Of a directory over this memory.
    pub fn new(geometry: &Geometry) -> Result<Self, ConfigError> {
        let regions = geometry.regions()?.into_iter();
        let region = |(offset, bytes)| Region { offset, bytes, ..Region::default() };
        Ok(Self {
            geometry: geometry.clone(),
            regions: regions.map(region).collect(),
            hosts: Names::default(),
            instances: Names::default(),
            budgets: HashMap::new(),
            sessions: BTreeMap::new(),
            next_generation: 0,
            unclaimed: Vec::new(),
            withheld: false,
        })
    }

    /// Takes the next record. One that makes no sense changes nothing.
    pub fn replay(&mut self, record: Record<'_>) -> Result<(), RecoveryError> {
        match record {
            Record::Host { host, name } => drop(self.hosts.name(host, name)),
            Record::Instance { instance, name, budget_bytes } => {
                let index = self.instances.name(instance, name);
                self.budgets.insert(index, budget_bytes);
            }
            Record::Opened { session, secret, instance, host, process } => {
                let instance = self.instances.index("instance", instance)?;
                let host = self.hosts.index("host", host)?;
                let record = Opened { secret, instance, host, process };
                let known = Known { record, stage: Stage::Live, replies: Replies::default() };
                self.sessions.entry(session).or_insert(known);
            }
            Record::Ended { session } => self.set_stage(session, Stage::Ended),
            Record::Drained { session } => self.set_stage(session, Stage::Drained),
            Record::Forgotten { session } => drop(self.sessions.remove(&session)),
            Record::Cut { region, page_bytes } => self.cut(region, page_bytes)?,
            Record::Stored { page, generation, length, checksum, instance, host, key } => {
                let instance = self.instances.index("instance", instance)?;
                let host = self.hosts.index("host", host)?;
                let key = key.bytes().into();
                let chunk = Chunk { key, generation, checksum, length, instance, host };
                self.set(page, generation, Slot::Stored(chunk))?;
            }
            Record::Vacated { page } => *self.slot(page)? = Slot::Vacant,
            Record::Quarantined { page, generation, session } => {
                self.set(page, generation, Slot::Quarantined(generation, session))?;
            }
            Record::Stained { page, generation, hosts } => {
                let hosts = self.hosts.indices("host", &hosts)?;
                self.set(page, generation, Slot::Stained(generation, hosts))?;
            }
            Record::Damaged { page } => *self.slot(page)? = Slot::Damaged,
            Record::Replied { session, seq, acked, pins, result } => {
                if let Some(known) = self.sessions.get_mut(&session) {
                    known.replies.acknowledge(acked);
                    known.replies.kept.insert(seq, Kept { result, durable: true, pins });
                }
            }
            Record::Unclaimed { hosts } => self.unclaimed = self.hosts.indices("host", &hosts)?,
            Record::Withheld { withheld } => self.withheld = withheld,
        }
        Ok(())
    }

    fn set_stage(&mut self, session: SessionId, stage: Stage) {
        if let Some(known) = self.sessions.get_mut(&session) {
            known.stage = stage;
        }
    }

    fn cut(&mut self, region: u32, page_bytes: u64) -> Result<(), RecoveryError> {
        let none = RecoveryError::NoSuchPage { region, index: 0 };
        let state = self.regions.get_mut(region as usize).ok_or(none)?;
        let aligned = page_bytes.is_multiple_of(maru_protocol::PAGE_ALIGN);
        if !aligned || page_bytes > state.bytes {
            return Err(RecoveryError::PageSize { region, page_bytes });
        }
        // Between two sizes a region is of none. So one that is cut for its own size was not cut:
        // a checkpoint says again what is so.
        if state.page_bytes != page_bytes {
            (state.page_bytes, state.slots) = (page_bytes, Vec::new());
        }
        Ok(())
    }

    fn slot(&mut self, page: PageAt) -> Result<&mut Slot, RecoveryError> {
        let PageAt { region, index } = page;
        let none = RecoveryError::NoSuchPage { region, index };
        let Some(state) = self.regions.get_mut(region as usize) else {
            return Err(none);
        };
        let capacity = state.bytes.checked_div(state.page_bytes).unwrap_or(0);
        if u64::from(index) >= capacity {
            return Err(none);
        }
        let place = index as usize;
        if state.slots.len() <= place {
            state.slots.resize_with(place + 1, Slot::default);
        }
        Ok(&mut state.slots[place])
    }

    fn set(&mut self, page: PageAt, of: Generation, to: Slot) -> Result<(), RecoveryError> {
        *self.slot(page)? = to;
        self.next_generation = self.next_generation.max(of.0.saturating_add(1));
        Ok(())
    }

    /// The chunks that were found, by page.
    pub fn found(&self) -> impl Iterator<Item = Found<'_>> {
        self.chunks().map(|(page, chunk)| {
            let Region { offset, page_bytes, .. } = self.regions[page.region as usize];
            let offset = offset + u64::from(page.index) * page_bytes;
            let (length, checksum, key) = (chunk.length.into(), chunk.checksum, &*chunk.key);
            Found { page, offset, length, checksum, key }
        })
    }

    fn chunks(&self) -> impl Iterator<Item = (PageAt, &Chunk)> {
        let regions = (0..).zip(&self.regions);
        regions.flat_map(|(region, state)| {
            (0..).zip(&state.slots).filter_map(move |(index, slot)| match slot {
                Slot::Stored(chunk) => Some((PageAt { region, index }, chunk)),
                _ => None,
            })
        })
    }

    /// Numbers of processes do not mean any more what they meant: whether a writer of before is dead
    /// cannot be seen.
    pub fn forget_processes(&mut self) {
        for known in self.sessions.values_mut() {
            known.record.process = None;
        }
    }
}
