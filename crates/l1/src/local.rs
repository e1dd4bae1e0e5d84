//! The L1 over private DRAM.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use maru_memory::{Arena, ArenaConfig, ArenaError, Block, BlockMut};

use crate::clock::TtlLock;
use crate::contract::{Counts, clamp_read_locks, succeeded};
use crate::listener::{Event, Listeners};
use crate::lock::lock;
use crate::object::{ReadBuffer, WriteBuffer};
use crate::staging::{Begun, Staging};
use crate::{
    Clock, L1Backend, L1ConfigError, L1Error, L1Listener, L1Manager, L1ManagerConfig, L1ManagerId,
    L1MemoryDesc, L1Status, MemoryLayoutDesc, MemoryUsage, MonotonicClock, ObjectKey, ObjectState,
    Outcomes, ReadObject, Write, WriteObject,
};

/// [`L1Manager`] over memory of this process: LMCache's stock `L1Manager`.
///
/// Memory of a chunk that is deleted while somebody still has its [`ReadObject`] is given out again
/// only when that is dropped: a late reader sees the old chunk, never another.
#[derive(Debug)]
pub struct LocalL1Manager {
    id: L1ManagerId,
    config: L1ManagerConfig,
    clock: Arc<dyn Clock>,
    arena: Arc<Arena>,
    listeners: Listeners,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    resident: HashMap<ObjectKey, Resident>,
    staging: Staging<BlockMut>,
    closed: bool,
}

#[derive(Debug)]
struct Resident {
    block: Arc<Block>,
    lock: TtlLock,
    temporary: bool,
}

impl Resident {
    fn object(&self) -> ReadObject {
        ReadObject::new(Arc::clone(&self.block) as Arc<dyn ReadBuffer>)
    }
}

impl WriteBuffer for BlockMut {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }
    fn len(&self) -> u64 {
        self.len()
    }
    fn offset(&self) -> u64 {
        self.offset()
    }
}

impl ReadBuffer for Block {
    fn len(&self) -> u64 {
        self.len()
    }
    fn offset(&self) -> u64 {
        self.offset()
    }
    /// The memory is this block's until the last object of it is dropped.
    fn read(&self, read: &mut dyn FnMut(&[u8])) -> bool {
        read(self.bytes());
        true
    }
}

/// Why a private manager cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalL1Error {
    /// A setting that cannot be.
    #[error(transparent)]
    Config(#[from] L1ConfigError),
    /// The system does not give the memory.
    #[error(transparent)]
    Memory(#[from] ArenaError),
}

impl LocalL1Manager {
    /// A manager with memory of its own.
    pub fn new(config: L1ManagerConfig) -> Result<Self, LocalL1Error> {
        Self::with_clock(config, Arc::new(MonotonicClock::default()))
    }

    /// The same, with locks that expire by `clock`.
    pub fn with_clock(
        config: L1ManagerConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LocalL1Error> {
        config.check()?;
        let memory = &config.memory;
        let arena = Arena::new(&ArenaConfig {
            bytes: memory.bytes,
            initial_bytes: memory.initial_bytes,
            align_bytes: memory.align_bytes,
            huge_pages: memory.huge_pages,
        })?;
        let staging = Staging::new(config.write_ttl);
        let state = State { resident: HashMap::new(), staging, closed: false };
        Ok(Self {
            id: L1ManagerId::next(),
            config,
            clock,
            arena,
            listeners: Listeners::default(),
            state: Mutex::new(state),
        })
    }

    /// Does `work` under the lock, at one moment, and then tells the listeners.
    fn locked<T>(&self, work: impl FnOnce(&mut State, Duration) -> T) -> T {
        let result = {
            let (mut state, now) = self.state();
            work(&mut state, now)
        };
        self.listeners.tell();
        result
    }

    /// The state, and the time since it is locked: a thread that had to wait works with no old one.
    fn state(&self) -> (MutexGuard<'_, State>, Duration) {
        let state = self.lock();
        let now = self.clock.now();
        (state, now)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Tells that these are gone, but for those of which something is left.
    fn queue_gone(&self, state: &State, keys: impl IntoIterator<Item = ObjectKey>) {
        let left =
            |key: &ObjectKey| state.staging.contains(key) || state.resident.contains_key(key);
        let gone = keys.into_iter().filter(|key| !left(key));
        self.listeners.queue(Event::Deleted, gone.collect());
    }

    /// Finishes one write. Says whether the chunk became resident now.
    fn admit(
        state: &mut State,
        now: Duration,
        key: &ObjectKey,
        tag: &str,
    ) -> Result<bool, L1Error> {
        let taken = state.staging.take(now, key, tag)?;
        if state.resident.contains_key(key) {
            return Ok(false);
        }
        let block = Arc::new(taken.buffer.freeze());
        let resident = Resident { block, lock: TtlLock::OPEN, temporary: taken.temporary };
        state.resident.insert(key.clone(), resident);
        Ok(true)
    }

    /// Deletes one key; an error says why not.
    fn delete_one(
        state: &mut State,
        now: Duration,
        key: &ObjectKey,
        force: bool,
    ) -> Result<(), L1Error> {
        if !state.resident.contains_key(key) && !state.staging.contains(key) {
            return Err(L1Error::KeyNotExist);
        }
        drop(state.staging.reclaim(now, key, force));
        let locked = |resident: &Resident| resident.lock.is_locked(now) && !force;
        if state.staging.contains(key) || state.resident.get(key).is_some_and(locked) {
            return Err(L1Error::KeyIsLocked);
        }
        state.resident.remove(key);
        Ok(())
    }
}

impl L1Manager for LocalL1Manager {
    fn id(&self) -> L1ManagerId {
        self.id
    }

    fn config(&self) -> &L1ManagerConfig {
        &self.config
    }

    fn register_listener(&self, listener: Arc<dyn L1Listener>) {
        self.listeners.register(listener);
    }

    fn reserve_read(&self, keys: &[ObjectKey], read_locks: u32) -> Outcomes<ReadObject> {
        let (count, ttl) = (clamp_read_locks(read_locks), self.config.read_ttl);
        self.locked(|state, now| {
            let reserve = |key: &ObjectKey| {
                let resident = state.resident.get_mut(key).ok_or(L1Error::KeyNotExist)?;
                resident.lock.lock(now, ttl, count);
                Ok(resident.object())
            };
            let outcomes: Outcomes<ReadObject> = keys.iter().map(reserve).collect();
            self.listeners.queue(Event::ReservedRead, succeeded(keys, &outcomes));
            outcomes
        })
    }

    fn unsafe_read(&self, keys: &[ObjectKey]) -> Outcomes<ReadObject> {
        self.locked(|state, now| {
            let read = |key: &ObjectKey| match state.resident.get(key) {
                None => Err(L1Error::KeyNotExist),
                Some(resident) if resident.lock.is_locked(now) => Ok(resident.object()),
                Some(_) => Err(L1Error::KeyNotReadable),
            };
            keys.iter().map(read).collect()
        })
    }

    fn finish_read(&self, keys: &[ObjectKey], read_locks: u32) -> Outcomes<()> {
        let count = clamp_read_locks(read_locks);
        self.locked(|state, now| {
            let mut dead = Vec::new();
            let finish = |key: &ObjectKey| {
                let resident = state.resident.get_mut(key).ok_or(L1Error::KeyNotExist)?;
                if !resident.lock.is_locked(now) {
                    tracing::warn!(%key, "a read is finished without a lock");
                    return Err(L1Error::KeyInWrongState);
                }
                resident.lock.unlock(count);
                if resident.temporary && !resident.lock.is_locked(now) {
                    state.resident.remove(key);
                    dead.push(key.clone());
                }
                Ok(())
            };
            let outcomes: Outcomes<()> = keys.iter().map(finish).collect();
            self.listeners.queue(Event::ReadFinished, succeeded(keys, &outcomes));
            self.queue_gone(state, dead);
            outcomes
        })
    }

    fn reserve_write(
        &self,
        writes: &[Write],
        layout: &MemoryLayoutDesc,
        tag: &str,
    ) -> Outcomes<WriteObject> {
        self.locked(|state, now| {
            if state.closed {
                return vec![Err(L1Error::OutOfMemory); writes.len()];
            }
            let (mut pending, mut outgrown) = (Vec::new(), Vec::new());
            let begin = |(index, write): (usize, &Write)| {
                if state.resident.contains_key(&write.key) {
                    return Err(L1Error::KeyNotWritable);
                }
                let (bytes, temporary) = (layout.bytes(), write.temporary);
                match state.staging.begin(now, &write.key, tag, temporary, bytes) {
                    Begun::Taken => Err(L1Error::KeyNotWritable),
                    Begun::HandedOver(object) => Ok(object),
                    Begun::Pending { discarded } => {
                        outgrown.extend(discarded.map(|_| write.key.clone()));
                        pending.push(index);
                        Err(L1Error::OutOfMemory)
                    }
                }
            };
            let mut outcomes: Outcomes<WriteObject> =
                writes.iter().enumerate().map(begin).collect();
            let mut blocks = self.arena.allocate(layout.bytes(), pending.len()).map(Vec::into_iter);
            for index in pending {
                let key = &writes[index].key;
                match blocks.as_mut().and_then(Iterator::next) {
                    Some(block) => {
                        let object = state.staging.fill(key, tag, block);
                        outcomes[index] = object.ok_or(L1Error::OutOfMemory);
                    }
                    None => state.staging.cancel(key, tag),
                }
            }
            let keys: Vec<ObjectKey> = writes.iter().map(|write| write.key.clone()).collect();
            self.listeners.queue(Event::ReservedWrite, succeeded(&keys, &outcomes));
            self.queue_gone(state, outgrown);
            outcomes
        })
    }

    fn finish_write(&self, keys: &[ObjectKey], tag: &str) -> Outcomes<()> {
        self.locked(|state, now| {
            let mut written = Vec::new();
            let finish = |key: &ObjectKey| {
                let admitted = Self::admit(state, now, key, tag)?;
                if admitted && !state.resident[key].temporary {
                    written.push(key.clone());
                }
                Ok(())
            };
            let outcomes = keys.iter().map(finish).collect();
            self.listeners.queue(Event::WriteFinished, written);
            outcomes
        })
    }

    fn finish_write_and_reserve_read(
        &self,
        keys: &[ObjectKey],
        read_locks: u32,
        tag: &str,
    ) -> Outcomes<ReadObject> {
        let (count, ttl) = (clamp_read_locks(read_locks), self.config.read_ttl);
        self.locked(|state, now| {
            let (mut admitted, mut found) = (Vec::new(), Vec::new());
            let finish = |key: &ObjectKey| {
                let first = Self::admit(state, now, key, tag)?;
                if first { &mut admitted } else { &mut found }.push(key.clone());
                let resident = state.resident.get_mut(key).ok_or(L1Error::KeyNotExist)?;
                resident.lock.lock(now, ttl, count);
                Ok(resident.object())
            };
            let outcomes = keys.iter().map(finish).collect();
            self.listeners.queue(Event::ReservedRead, found);
            self.listeners.queue(Event::FinishWriteAndReserveRead, admitted);
            outcomes
        })
    }

    fn finish_write_and_delete(&self, keys: &[ObjectKey], tag: &str) -> Outcomes<()> {
        self.locked(|state, now| {
            let mut gone = Vec::new();
            let discard = |key: &ObjectKey| {
                drop(state.staging.take(now, key, tag)?);
                gone.push(key.clone());
                Ok(())
            };
            let outcomes = keys.iter().map(discard).collect();
            self.queue_gone(state, gone);
            outcomes
        })
    }

    fn delete(&self, keys: &[ObjectKey], force: bool) -> Outcomes<()> {
        self.locked(|state, now| {
            let delete = |key: &ObjectKey| Self::delete_one(state, now, key, force);
            let outcomes: Outcomes<()> = keys.iter().map(delete).collect();
            self.listeners.queue(Event::Deleted, succeeded(keys, &outcomes));
            outcomes
        })
    }

    fn clear(&self, force: bool) {
        self.locked(|state, now| {
            let stays = |resident: &Resident| resident.lock.is_locked(now) && !force;
            let cleared = state.resident.extract_if(|_, resident| !stays(resident));
            let mut gone: BTreeSet<ObjectKey> = cleared.map(|(key, _)| key).collect();
            for key in state.staging.keys() {
                if !state.staging.reclaim(now, &key, force).is_empty() {
                    gone.insert(key);
                }
            }
            self.queue_gone(state, gone);
        });
    }

    fn touch_keys(&self, keys: &[ObjectKey]) {
        self.listeners.accessed(keys);
    }

    fn is_key_evictable(&self, key: &ObjectKey) -> bool {
        let (state, now) = self.state();
        let unlocked = |resident: &Resident| !resident.lock.is_locked(now);
        state.resident.get(key).is_some_and(unlocked) || state.staging.has_expired(now, key)
    }

    fn memory_usage(&self) -> MemoryUsage {
        MemoryUsage { used_bytes: self.arena.used_bytes(), total_bytes: self.arena.grown_bytes() }
    }

    fn staging_memory_usage(&self) -> u64 {
        self.lock().staging.bytes()
    }

    fn capacity_bytes_by_backend(&self) -> BTreeMap<L1Backend, u64> {
        BTreeMap::from([(L1Backend::Dram, self.arena.bytes())])
    }

    fn memory_desc(&self) -> Option<L1MemoryDesc> {
        (!self.lock().closed).then(|| L1MemoryDesc {
            address: self.arena.base().addr(),
            bytes: self.arena.bytes(),
            align_bytes: self.arena.align_bytes(),
            stable_bytes: Some(self.arena.grown_bytes()),
        })
    }

    fn object_state(&self, key: &ObjectKey) -> Option<ObjectState> {
        let (state, now) = self.state();
        let resident = state.resident.get(key)?;
        let read_locks = resident.lock.count(now);
        Some(ObjectState { read_locks, temporary: resident.temporary })
    }

    fn report_status(&self) -> L1Status {
        let (resident, staged) = {
            let (state, now) = self.state();
            let resident = state.resident.values();
            let resident = resident.map(|one| (one.lock.is_locked(now), one.temporary));
            (Counts::of(resident), state.staging.counts(now))
        };
        L1Status::of(self, resident, staged)
    }

    fn memcheck(&self) -> bool {
        self.arena.check()
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.resident.clear();
        state.staging.take_all();
    }
}
