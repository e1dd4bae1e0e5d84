//! Making a directory again from its records.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use indexmap::{IndexMap, IndexSet};
use maru_protocol::{Checksum, Generation, Key, SessionId, Visibility};

use crate::claims::Claims;
use crate::entries::Resident;
use crate::ids::{EntryId, HostId, InstanceId, PageAt};
use crate::pages::{Page, PageState, Why};
use crate::record::{Record, append};
use crate::sessions::{Instance, Kept, Phase, Replies, Session, Vanished, Writer};
use crate::stains::{Hosts, numbers};
use crate::writing::stored;
use crate::{Config, ConfigError, Directory, Geometry, Millis, ProcessId};

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

    /// Forgets a chunk that was found.
    pub fn forget(&mut self, page: PageAt) {
        if let Ok(slot) = self.slot(page) {
            *slot = Slot::Vacant;
        }
    }

    /// Of chunks that are recorded twice, forgets the earlier ones. Returns their keys.
    pub fn forget_doubles(&mut self) -> Vec<Vec<u8>> {
        let mut latest: HashMap<&[u8], (Generation, PageAt)> = HashMap::new();
        let mut doubles = Vec::new();
        for (page, chunk) in self.chunks() {
            let this = (chunk.generation, page);
            let known = latest.entry(&chunk.key).or_insert(this);
            if *known != this {
                let earlier = this.min(*known);
                *known = this.max(*known);
                doubles.push((earlier.1, chunk.key.to_vec()));
            }
        }
        for (page, _) in &doubles {
            self.forget(*page);
        }
        doubles.into_iter().map(|(_, key)| key).collect()
    }

    /// What is recorded may be behind the pool, or have gaps: no chunk and no session of it counts, and
    /// any page may still be written to. Caches of any host may hold lines of any page.
    pub fn distrust(&mut self, visibility: Visibility) {
        let count = u32::try_from(self.hosts.names.len());
        let hosts: Vec<u32> = (0..count.expect("they are numbered in u32")).collect();
        let stained = visibility == Visibility::CacheLine && !hosts.is_empty();
        for region in &mut self.regions {
            let slots = region.slots.iter();
            let damaged: Vec<bool> = slots.map(|slot| matches!(slot, Slot::Damaged)).collect();
            if !damaged.contains(&true) {
                // One page, or none.
                region.page_bytes = if stained { region.bytes } else { 0 };
            }
            let capacity = region.bytes.checked_div(region.page_bytes).unwrap_or(0);
            let slot = |index: usize| match damaged.get(index) {
                Some(true) => Slot::Damaged,
                _ if stained => Slot::Stained(Generation(0), hosts.clone()),
                _ => Slot::Vacant,
            };
            let capacity = usize::try_from(capacity).expect("a region has fewer than 2^32 pages");
            region.slots = (0..capacity).map(slot).collect();
        }
        self.sessions.clear();
        self.unclaimed.clear();
        self.withheld = true;
    }

    /// Takes pages whose memory was found to be bad into use again. Returns how many.
    pub fn forgive_damage(&mut self) -> u64 {
        let mut forgiven = 0;
        for slot in self.regions.iter_mut().flat_map(|region| &mut region.slots) {
            if matches!(slot, Slot::Damaged) {
                *slot = Slot::Vacant;
                forgiven += 1;
            }
        }
        forgiven
    }

    /// Has all this be of another memory, in which region `n` is region `places[n]` of the new one, or
    /// is gone. Sessions hold places in the old one, so none of them can come back.
    pub fn move_to(
        &mut self,
        geometry: &Geometry,
        places: &[Option<u32>],
    ) -> Result<(), RecoveryError> {
        let mut moved = Self::new(geometry)?;
        for (old, place) in std::mem::take(&mut self.regions).into_iter().zip(places) {
            let Some(new) = place.and_then(|place| moved.regions.get_mut(place as usize)) else {
                continue;
            };
            if new.bytes == old.bytes {
                (new.page_bytes, new.slots) = (old.page_bytes, old.slots);
            }
        }
        (self.geometry, self.regions) = (moved.geometry, moved.regions);
        self.sessions.clear();
        Ok(())
    }

    /// The directory, in a new epoch. Its sessions of before may come back, and say what they hold.
    pub fn finish(mut self, config: Config, now: Millis) -> Result<Directory, RecoveryError> {
        let (epoch, found) = (config.epoch, self.next_generation.saturating_sub(1) >> 32);
        let sessions = self.sessions.keys().map(|session| session.0 >> 24).max();
        let found = found.max(sessions.unwrap_or(0));
        if found >= epoch {
            return Err(RecoveryError::Epoch { found, epoch });
        }
        let mut directory = Directory::new(config, &self.geometry, now)?;
        // All of this is recorded already.
        let recorded = !std::mem::replace(&mut directory.pages.journal.off, true);
        let (instances, hosts) = self.name_all(&mut directory);
        let awaited = self.restore_sessions(&mut directory, now, &instances, &hosts);
        let unclaimed: Hosts = self.unclaimed.iter().map(|host| hosts[*host as usize]).collect();
        let settled = unclaimed.is_empty();
        directory.claims = Claims::new(awaited, now, unclaimed);
        let unknown = !settled || directory.unclaimed_matter();
        let mut chunks = Vec::new();
        let mut regions = Vec::new();
        for (region, state) in (0..).zip(std::mem::take(&mut self.regions)) {
            let page_bytes = state.page_bytes;
            let pages = vacant_pages(&mut directory, region, state, unknown, &hosts, &mut chunks);
            regions.push((page_bytes, pages));
        }
        // The latest are the least likely to be evicted: nothing better is known.
        chunks.sort_unstable_by_key(|(_, chunk)| chunk.generation);
        for (page, chunk) in &chunks {
            let entry = new_entry(&mut directory, chunk)?;
            let (_, pages) = &mut regions[page.region as usize];
            pages[page.index as usize].state = PageState::Resident(entry);
        }
        for (region, (page_bytes, pages)) in (0..).zip(regions) {
            if pages.iter().any(|page| page.state != PageState::Free) {
                directory.pages.restore(region, page_bytes, pages);
            }
        }
        for (page, chunk) in chunks {
            let (writer, host) = (instances[chunk.instance as usize], hosts[chunk.host as usize]);
            restore_chunk(&mut directory, now, page, &chunk, writer, host);
        }
        for vanished in directory.sessions.vanished.values() {
            let bytes = vanished.pages.iter().map(|at| directory.pages.page_bytes(*at));
            directory.sessions.instances[vanished.instance.index()].charged_bytes +=
                bytes.sum::<u64>();
        }
        directory.pages.journal.off = !recorded;
        if self.withheld {
            directory.withhold(now);
        }
        Ok(directory)
    }

    /// Gives the instances and hosts that something belongs to their numbers.
    fn name_all(&self, directory: &mut Directory) -> (Vec<InstanceId>, Vec<HostId>) {
        let chunks = self.chunks().map(|(_, chunk)| (chunk.instance, chunk.host));
        let sessions = self.sessions.values();
        let sessions = sessions.map(|known| (known.record.instance, known.record.host));
        let mut used: (BTreeSet<u32>, BTreeSet<u32>) = chunks.chain(sessions).unzip();
        used.1.extend(&self.unclaimed);
        for slot in self.regions.iter().flat_map(|region| &region.slots) {
            if let Slot::Stained(_, hosts) = slot {
                used.1.extend(hosts);
            }
        }
        // Those without a use get the number of another, which nobody asks for.
        let mut instances = vec![InstanceId::new(0); self.instances.names.len()];
        for index in used.0 {
            let name = self.instances.names[index as usize].clone();
            let budget_bytes = self.budgets.get(&index).copied().unwrap_or(0);
            let instance = Instance { name, budget_bytes, charged_bytes: 0, sessions: 0 };
            let number = directory.sessions.instances.insert(instance);
            instances[index as usize] = InstanceId::new(number);
        }
        let mut hosts = vec![HostId::new(0); self.hosts.names.len()];
        for index in used.1 {
            let name = self.hosts.names[index as usize].clone();
            let (number, _) = directory.sessions.hosts.insert_full(name);
            hosts[index as usize] = HostId::new(number);
        }
        (instances, hosts)
    }

    /// Returns the sessions that may come back.
    fn restore_sessions(
        &mut self,
        directory: &mut Directory,
        now: Millis,
        instances: &[InstanceId],
        hosts: &[HostId],
    ) -> BTreeSet<SessionId> {
        let hasher = directory.entries.hasher();
        let mut awaited = BTreeSet::new();
        for (id, known) in std::mem::take(&mut self.sessions) {
            let Opened { secret, instance, host, process } = known.record;
            let session = Session {
                secret,
                instance: instances[instance as usize],
                host: hosts[host as usize],
                process,
                phase: Phase::Restored,
                heard: now,
                writer: Writer::MayWrite,
                claiming: true,
                pins: IndexMap::with_hasher(hasher.clone()),
                pin_count: 0,
                reservations: IndexSet::with_hasher(hasher.clone()),
                replies: known.replies,
            };
            directory.sessions.instance_mut(session.instance).sessions += 1;
            if known.stage == Stage::Live {
                directory.sessions.live.insert(id, session);
                awaited.insert(id);
            } else {
                let until = now + directory.config.quarantine_ms;
                let mut vanished = Vanished::new(&session, until);
                vanished.unclaimed = known.stage == Stage::Ended;
                directory.sessions.vanished.insert(id, vanished);
            }
        }
        awaited
    }
}

/// The pages of a region, those of chunks free. Its chunks come on top of `chunks`.
fn vacant_pages(
    directory: &mut Directory,
    region: u32,
    mut state: Region,
    unknown: bool,
    hosts: &[HostId],
    chunks: &mut Vec<(PageAt, Chunk)>,
) -> Vec<Page> {
    if unknown && let Some(capacity) = state.bytes.checked_div(state.page_bytes) {
        // Somebody may hold any page that nothing is known of.
        let capacity = usize::try_from(capacity).expect("a region has fewer than 2^32 pages");
        state.slots.resize_with(capacity, Slot::default);
    }
    let unclaimed = if unknown { PageState::Quarantined(Why::Unclaimed) } else { PageState::Free };
    let vacant = Page { generation: Generation(0), state: unclaimed };
    let page = |(index, slot): (u32, Slot)| {
        let at = PageAt { region, index };
        let (generation, why) = match slot {
            Slot::Vacant => return vacant,
            Slot::Stored(chunk) => {
                let generation = chunk.generation;
                chunks.push((at, chunk));
                return Page { generation, state: PageState::Free };
            }
            Slot::Quarantined(generation, session) => {
                let Some(vanished) = directory.sessions.vanished.get_mut(&session) else {
                    return vacant;
                };
                vanished.pages.push(at);
                // It may have been stained when it was granted.
                directory.stains.keep(at, Hosts::from([vanished.host]));
                (generation, Why::Writer)
            }
            Slot::Stained(generation, of) => {
                let of: Hosts = of.iter().map(|host| hosts[*host as usize]).collect();
                if unknown {
                    // It may be granted to its host.
                    directory.stains.keep(at, of);
                    (generation, Why::Unclaimed)
                } else {
                    directory.stains.insert(of, state.page_bytes, at);
                    (generation, Why::Stained)
                }
            }
            Slot::Damaged => (Generation(0), Why::Damaged),
        };
        Page { generation, state: PageState::Quarantined(why) }
    };
    (0..).zip(state.slots).map(page).collect()
}

fn new_entry(directory: &mut Directory, chunk: &Chunk) -> Result<EntryId, RecoveryError> {
    let two = || RecoveryError::TwoPages { key: chunk.key.to_vec() };
    let key = Key::new(&chunk.key).map_err(|_| two())?;
    let before = directory.entries.len();
    let entry = directory.entries.find_or_insert(key);
    if directory.entries.len() > before { Ok(entry) } else { Err(two()) }
}

fn restore_chunk(
    directory: &mut Directory,
    now: Millis,
    page: PageAt,
    chunk: &Chunk,
    writer: InstanceId,
    host: HostId,
) {
    let PageState::Resident(entry) = directory.pages.get(page).state else {
        return;
    };
    let queue = directory.queue_of(page, writer);
    let (length, checksum) = (chunk.length, chunk.checksum);
    let resident = Resident { page, length, writer, host, queue, touched: now, checksum };
    directory.pages.queue_mut(page, queue).evictable += 1;
    directory.pages.region_mut(page).touched = now;
    directory.entries.get_mut(entry).resident = Some(resident);
    directory.policy.insert(entry, queue);
    let bytes = directory.pages.page_bytes(page);
    directory.sessions.instance_mut(writer).charged_bytes += bytes;
    directory.counters.recovered += 1;
}

impl Directory {
    /// The records that make all that lasts, but for the chunks: what a log can begin with.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut add = |record: Record<'_>| append(&record, &mut bytes);
        add(Record::Withheld { withheld: self.is_withheld() });
        for (host, name) in (0..).zip(&self.sessions.hosts) {
            add(Record::Host { host, name });
        }
        for (index, instance) in &self.sessions.instances {
            let (number, budget_bytes) = (InstanceId::new(index).number(), instance.budget_bytes);
            add(Record::Instance { instance: number, name: &instance.name, budget_bytes });
        }
        let live = self.sessions.live.iter();
        for (id, session) in live.filter(|(_, session)| !session.leaves_nothing()) {
            add(session.record(*id));
            if matches!(session.phase, Phase::Ended(_)) {
                add(Record::Ended { session: *id });
            }
            let kept = session.replies.kept.iter().filter(|(_, kept)| kept.durable);
            kept.for_each(|(seq, kept)| add(kept.record(*id, *seq, session.replies.floor)));
        }
        let gone = self.sessions.vanished.iter();
        for (id, vanished) in gone.filter(|(id, _)| !self.sessions.live.contains_key(id)) {
            let session = *id;
            add(vanished.record(session));
            add(Record::Ended { session });
            if !vanished.unclaimed {
                add(Record::Drained { session });
            }
        }
        for (region, state) in (0..).zip(&self.pages.regions) {
            if state.page_bytes > 0 {
                add(Record::Cut { region, page_bytes: state.page_bytes });
            }
        }
        add(self.claims.record());
        for (page, hosts) in self.stains.iter().chain(self.stains.kept()) {
            let generation = self.pages.get(page).generation;
            add(Record::Stained { page, generation, hosts: numbers(hosts) });
        }
        // After what a page was stained with when it was granted.
        for (session, vanished) in &self.sessions.vanished {
            for page in &vanished.pages {
                let generation = self.pages.get(*page).generation;
                add(Record::Quarantined { page: *page, generation, session: *session });
            }
        }
        self.add_damaged(&mut add);
        bytes
    }

    fn add_damaged(&self, add: &mut impl FnMut(Record<'_>)) {
        if self.pages.reasons.damaged == 0 && self.ghosts.is_empty() {
            return;
        }
        for (region, state) in (0..).zip(&self.pages.regions) {
            for (index, page) in (0..).zip(&state.pages) {
                let damaged = match page.state {
                    PageState::Quarantined(why) => why == Why::Damaged,
                    PageState::Resident(entry) => self.ghosts.contains(&entry),
                    _ => false,
                };
                if damaged {
                    add(Record::Damaged { page: PageAt { region, index } });
                }
            }
        }
    }

    /// Appends the record of the chunk that is resident in a page, if it is of this generation.
    pub fn append_stored(&self, page: PageAt, generation: Generation, bytes: &mut Vec<u8>) {
        let here = self.pages.regions.get(page.region as usize);
        let here = here.and_then(|region| region.pages.get(page.index as usize));
        if let Some(Page { generation: now, state: PageState::Resident(entry) }) = here
            && *now == generation
            && !self.ghosts.contains(entry)
            && let entry = self.entries.get(*entry)
            && let (Some(resident), Ok(key)) = (&entry.resident, Key::new(&entry.key))
        {
            append(&stored(resident, generation, key), bytes);
        }
    }

    /// All chunks, as [`Directory::append_stored`] takes them.
    pub fn chunks(&self) -> impl Iterator<Item = (PageAt, Generation)> {
        let residents = self.entries.iter().filter_map(|(_, entry)| entry.resident);
        residents.map(|resident| (resident.page, self.pages.get(resident.page).generation))
    }
}
