//! Key to entry: a hash table of numbers into a slab.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use maru_protocol::{Checksum, Key};
use slab::Slab;
use std::hash::BuildHasher;

use crate::Millis;
use crate::ids::{EntryId, HostId, InstanceId, PageAt, QueueId, ReservationId};

/// A key that is resident, or being written, or both.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Box<[u8]>,
    hash: u64,
    pub(crate) resident: Option<Resident>,
    /// Pins of all sessions together.
    pub(crate) pins: u32,
    /// The first of the reservations for this key; each names the next.
    pub(crate) writers: Option<ReservationId>,
}

/// What readers find.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resident {
    pub(crate) page: PageAt,
    /// The chunk's length in bytes.
    pub(crate) length: u32,
    pub(crate) writer: InstanceId,
    /// Where the writer was.
    pub(crate) host: HostId,
    pub(crate) queue: QueueId,
    /// When it was last used.
    pub(crate) touched: Millis,
    pub(crate) checksum: Option<Checksum>,
}

/// What the table holds: half of the key's hash beside the entry's number, so that a look-up in it
/// reads no entry but the right one.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u32,
    entry: EntryId,
}

/// All entries.
#[derive(Debug)]
pub(crate) struct Entries {
    table: HashTable<Slot>,
    slab: Slab<Entry>,
    hasher: FixedState,
    /// The length of all keys together.
    key_bytes: u64,
}

impl Entries {
    pub(crate) fn new(hash_seed: u64) -> Self {
        let hasher = FixedState::with_seed(hash_seed);
        Self { table: HashTable::new(), slab: Slab::new(), hasher, key_bytes: 0 }
    }

    pub(crate) fn hasher(&self) -> FixedState {
        self.hasher.clone()
    }

    pub(crate) fn find(&self, key: Key<'_>) -> Option<EntryId> {
        self.find_hashed(key, self.hasher.hash_one(key.bytes()))
    }

    fn find_hashed(&self, key: Key<'_>, hash: u64) -> Option<EntryId> {
        let same = |slot: &Slot| self.is_at(key, hash, *slot);
        self.table.find(hash, same).map(|slot| slot.entry)
    }

    fn is_at(&self, key: Key<'_>, hash: u64, slot: Slot) -> bool {
        slot.hash == half(hash) && *self.slab[slot.entry.index()].key == *key.bytes()
    }

    /// Finds many keys at once, a stage for all of them before the next: the cache misses of a stage
    /// do not wait for each other, which makes a batch several times as fast as its keys one by one.
    pub(crate) fn find_all(&self, keys: &[Key<'_>]) -> Vec<Option<EntryId>> {
        let hashes: Vec<u64> = keys.iter().map(|key| self.hasher.hash_one(key.bytes())).collect();
        // Nearly always the right entry, without a look at it.
        let likely = |hash: &u64| self.table.find(*hash, |slot| slot.hash == half(*hash)).copied();
        let likely: Vec<Option<Slot>> = hashes.iter().map(likely).collect();
        self.warm(likely.iter().flatten().map(|slot| slot.entry));
        let found = keys.iter().zip(hashes).zip(likely).map(|((key, hash), likely)| {
            let slot = likely?;
            let right = self.is_at(*key, hash, slot);
            if right { Some(slot.entry) } else { self.find_hashed(*key, hash) }
        });
        found.collect()
    }

    /// Reads entries so that they are in the cache when they are needed.
    pub(crate) fn warm(&self, ids: impl Iterator<Item = EntryId>) {
        let read = ids.fold(0, |sum, id| sum ^ self.slab[id.index()].pins);
        std::hint::black_box(read);
    }

    /// Finds the entry of `key`, or makes one that is neither resident nor being written.
    pub(crate) fn find_or_insert(&mut self, key: Key<'_>) -> EntryId {
        let hash = self.hasher.hash_one(key.bytes());
        if let Some(id) = self.find_hashed(key, hash) {
            return id;
        }
        let Self { table, slab, .. } = self;
        self.key_bytes += key.bytes().len() as u64;
        let key = key.bytes().into();
        let index = slab.insert(Entry { key, hash, resident: None, pins: 0, writers: None });
        let entry = EntryId::new(index);
        let slot = Slot { hash: half(hash), entry };
        table.insert_unique(hash, slot, |slot| slab[slot.entry.index()].hash);
        entry
    }

    /// Moves what is resident, with its pins, to an entry of its own that no key leads to.
    pub(crate) fn split(&mut self, id: EntryId) -> EntryId {
        let whole = &mut self.slab[id.index()];
        let (key, hash) = (whole.key.clone(), whole.hash);
        let (resident, pins) = (whole.resident.take(), std::mem::take(&mut whole.pins));
        EntryId::new(self.slab.insert(Entry { key, hash, resident, pins, writers: None }))
    }

    /// Forgets an entry that no key leads to.
    pub(crate) fn forget(&mut self, id: EntryId) -> Entry {
        self.slab.remove(id.index())
    }

    /// Forgets the entry if it is neither resident nor being written; then its key is the caller's.
    pub(crate) fn remove_if_empty(&mut self, id: EntryId) -> Option<Box<[u8]>> {
        let entry = &self.slab[id.index()];
        if entry.resident.is_some() || entry.writers.is_some() {
            return None;
        }
        if let Ok(found) = self.table.find_entry(entry.hash, |slot| slot.entry == id) {
            found.remove();
        }
        let key = self.slab.remove(id.index()).key;
        self.key_bytes -= key.len() as u64;
        Some(key)
    }

    pub(crate) fn get(&self, id: EntryId) -> &Entry {
        &self.slab[id.index()]
    }

    pub(crate) fn get_mut(&mut self, id: EntryId) -> &mut Entry {
        &mut self.slab[id.index()]
    }

    /// The entry with this number, if there is one now.
    pub(crate) fn at(&self, index: usize) -> Option<&Entry> {
        self.slab.get(index)
    }

    /// One more than the highest number that may be in use.
    pub(crate) fn end(&self) -> usize {
        self.slab.capacity()
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) const fn key_bytes(&self) -> u64 {
        self.key_bytes
    }

    pub(crate) fn table_len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (EntryId, &Entry)> {
        self.slab.iter().map(|(index, entry)| (EntryId::new(index), entry))
    }
}

/// The half of a hash that the table itself uses least.
#[expect(clippy::cast_possible_truncation)]
const fn half(hash: u64) -> u32 {
    (hash >> 16) as u32
}
