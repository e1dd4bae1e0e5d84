//! The L1 over the shared pool.
//!
//! What is resident, and who reads it, the directory knows. Here is only what is in flight: what
//! this manager stages, and what it holds. Requests go to the server with no lock held, so a slow
//! server keeps nobody waiting who does not ask it something.

mod held;
mod pool;
mod reading;
mod removing;
mod upkeep;
mod writing;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use maru_client::{ClientError, PoolMemory, ReservedPage};
use maru_protocol::{Presence, RegionInfo};

use self::held::{Right, State};
use self::pool::Pool;
use self::upkeep::Touched;
use crate::contract::Counts;
use crate::listener::{Event, Listeners};
use crate::lock::lock;
use crate::{
    Clock, L1Backend, L1ConfigError, L1Listener, L1Manager, L1ManagerConfig, L1ManagerId,
    L1MemoryDesc, L1Status, LayoutError, MaruL1Config, MemoryLayoutDesc, MemoryUsage,
    MonotonicClock, ObjectKey, ObjectState, Outcomes, ReadObject, Write, WriteObject,
};

/// [`L1Manager`] over the shared pool.
///
/// Where it differs from a private one, because others share it:
///
/// - A chunk that another instance stored is resident here, too: writing it is refused, which saves
///   the copy.
/// - A temporary chunk is this manager's alone, in a page that it has reserved: readers elsewhere do
///   not find it, and to who would delete it the key is locked. One that is not read within a read
///   lock's time is dropped.
/// - `delete` and `clear` never touch what another instance reads, nor, with or without `force`,
///   what it writes.
/// - The server evicts, so [`L1Manager::is_key_evictable`] is true for expired reservations only.
///   What it evicts, and what others delete, listeners hear as `deleted_by_manager`, a moment later.
/// - A chunk that is not what was stored ([`MaruL1Config::verify`]) cannot be read by who has locked
///   it, and is a miss from then on. Whoever reads by its offset looks for itself.
/// - With [`MaruL1Config::outside_writers`], what is staged and has not expired is not taken from its
///   writer by `force` either; at the close it is left to the server, which quarantines it.
/// - A server that does not answer makes reads misses, writes `OUT_OF_MEMORY`, and the end of a write
///   `KEY_IN_WRONG_STATE`: then the chunk is stored, whole, or it is not.
///
/// Reservations and read locks whose time is over are given back in the background.
pub struct MaruL1Manager {
    shared: Arc<Shared>,
}

/// What the manager and its threads share.
#[derive(Debug)]
struct Shared {
    id: L1ManagerId,
    config: L1ManagerConfig,
    clock: Arc<dyn Clock>,
    listeners: Listeners,
    pool: Pool,
    state: Mutex<State>,
    /// A key is no longer being changed.
    changed: Condvar,
    touched: Touched,
    /// The last usage that the server told.
    usage: Mutex<MemoryUsage>,
    /// Tags for the server, one a call.
    next_tag: AtomicU64,
    watching: AtomicBool,
}

/// Why a shared manager cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaruL1Error {
    /// The configuration has no server.
    #[error("the configuration names no Maru server: give --maru-server-url")]
    NoServer,
    /// A setting that cannot be.
    #[error(transparent)]
    Config(#[from] L1ConfigError),
    /// The server refused, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A layout that is not of whole tokens.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No page of the pool is so large.
    #[error(
        "a chunk has {bytes} bytes, and the largest page that the pool can have {page_max}: give \
         the server a larger --region-size, or the model fewer tokens a chunk"
    )]
    ChunkTooLarge {
        /// Bytes of a chunk.
        bytes: u64,
        /// Bytes of a region.
        page_max: u64,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for the L1's upkeep: {0}")]
    Thread(std::io::Error),
}

impl MaruL1Manager {
    /// A session with the configured server, and the thread that looks after what expires.
    pub fn new(config: L1ManagerConfig) -> Result<Self, MaruL1Error> {
        let manager = Self::with_clock(config, Arc::new(MonotonicClock::default()))?;
        upkeep::start(&manager.shared).map_err(MaruL1Error::Thread)?;
        Ok(manager)
    }

    /// A manager whose locks expire by `clock`, and that gives back what has expired only when
    /// [`MaruL1Manager::keep_up`] is called: for tests, and for who has a thread for it.
    pub fn with_clock(config: L1ManagerConfig, clock: Arc<dyn Clock>) -> Result<Self, MaruL1Error> {
        config.check()?;
        let maru: &MaruL1Config = config.maru.as_ref().ok_or(MaruL1Error::NoServer)?;
        let shared = Shared {
            id: L1ManagerId::next(),
            pool: Pool::connect(maru.client_config())?,
            clock,
            listeners: Listeners::default(),
            state: Mutex::new(State::new(config.write_ttl)),
            changed: Condvar::new(),
            touched: Touched::default(),
            usage: Mutex::default(),
            next_tag: AtomicU64::new(0),
            watching: AtomicBool::new(false),
            config,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Gives back reservations and read locks whose time is over, and tells the server what was used.
    pub fn keep_up(&self) {
        self.told(Shared::keep_up);
    }

    /// `register_kv_layout`: says at the start whether chunks of this layout, with so many tokens each,
    /// can be stored at all. Returns the bytes of a token.
    ///
    /// The pool serves any number of layouts at a time and asks for none beforehand; one that is too
    /// large and was not registered is refused when it is first written, with `OUT_OF_MEMORY`.
    pub fn register_kv_layout(
        &self,
        layout: &MemoryLayoutDesc,
        tokens_per_chunk: u64,
    ) -> Result<u64, MaruL1Error> {
        let token_bytes = layout.bytes_per_token(tokens_per_chunk)?;
        let regions = self.regions()?;
        let page_max = regions.iter().map(|region| region.bytes).max().unwrap_or(0);
        if layout.bytes() > page_max {
            return Err(MaruL1Error::ChunkTooLarge { bytes: layout.bytes(), page_max });
        }
        Ok(token_bytes)
    }

    /// The pool's memory in this process. It stays mapped for as long as that is kept.
    pub fn memory(&self) -> Result<PoolMemory, MaruL1Error> {
        Ok(self.shared.pool.memory()?)
    }

    /// The pool's regions, as the server has them at the moment.
    pub fn regions(&self) -> Result<Vec<RegionInfo>, MaruL1Error> {
        Ok(self.shared.pool.client()?.regions()?)
    }

    /// Does `work`, and tells the listeners what came of it. Not before: what they do in turn must
    /// not wait for what `work` holds.
    fn told<T>(&self, work: impl FnOnce(&Shared) -> T) -> T {
        let result = work(&self.shared);
        self.shared.listeners.tell();
        result
    }
}

impl fmt::Debug for MaruL1Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MaruL1Manager").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

impl Drop for MaruL1Manager {
    fn drop(&mut self) {
        self.close();
    }
}

/// Keys that a thread changes at the server; others that wish to change them wait.
struct Changing<'a> {
    shared: &'a Shared,
    keys: &'a [ObjectKey],
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        for key in self.keys {
            state.changing.remove(key);
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Does `work` under the lock, at one moment.
    fn locked<T>(&self, work: impl FnOnce(&mut State, Duration) -> T) -> T {
        let (mut state, now) = self.state();
        work(&mut state, now)
    }

    /// The state, and the time since it is locked: a thread that had to wait works with no old one.
    fn state(&self) -> (MutexGuard<'_, State>, Duration) {
        let state = self.lock();
        let now = self.clock.now();
        (state, now)
    }

    /// Tells that these are gone, but for those of which this manager has something.
    fn queue_gone(&self, state: &State, keys: impl IntoIterator<Item = ObjectKey>) {
        let left = |key: &ObjectKey| state.staging.contains(key) || state.held(key).is_some();
        let gone = keys.into_iter().filter(|key| !left(key));
        self.listeners.queue(Event::Deleted, gone.collect());
    }

    /// Waits until no other thread changes these keys at the server: so listeners hear of changes of
    /// one key in the order in which they came about. Only those who change a key wait.
    fn changing<'a>(&'a self, keys: &'a [ObjectKey]) -> Changing<'a> {
        let mut state = self.lock();
        while keys.iter().any(|key| state.changing.contains(key)) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.changing.extend(keys.iter().cloned());
        Changing { shared: self, keys }
    }

    /// Whether others may still write to what is staged, whatever becomes of this manager.
    fn has_outside_writers(&self) -> bool {
        self.config.maru.as_ref().is_some_and(|maru| maru.outside_writers)
    }

    fn read_ttl(&self) -> Duration {
        self.config.read_ttl
    }

    /// For keys that are not held: whether they are resident all the same.
    fn are_resident(&self, keys: &[&ObjectKey]) -> Vec<bool> {
        let presence = self.pool.contains(keys).into_iter();
        presence.map(|presence| presence == Some(Presence::Resident)).collect()
    }
}

impl L1Manager for MaruL1Manager {
    fn id(&self) -> L1ManagerId {
        self.shared.id
    }

    fn config(&self) -> &L1ManagerConfig {
        &self.shared.config
    }

    fn register_listener(&self, listener: Arc<dyn L1Listener>) {
        self.shared.listeners.register(listener);
        upkeep::watch(&self.shared);
    }

    fn reserve_read(&self, keys: &[ObjectKey], read_locks: u32) -> Outcomes<ReadObject> {
        self.told(|shared| shared.reserve_read(keys, read_locks))
    }

    fn unsafe_read(&self, keys: &[ObjectKey]) -> Outcomes<ReadObject> {
        self.shared.unsafe_read(keys)
    }

    fn finish_read(&self, keys: &[ObjectKey], read_locks: u32) -> Outcomes<()> {
        self.told(|shared| shared.finish_read(keys, read_locks))
    }

    fn reserve_write(
        &self,
        writes: &[Write],
        layout: &MemoryLayoutDesc,
        tag: &str,
    ) -> Outcomes<WriteObject> {
        self.told(|shared| shared.reserve_write(writes, layout, tag))
    }

    fn finish_write(&self, keys: &[ObjectKey], tag: &str) -> Outcomes<()> {
        self.told(|shared| shared.finish_write(keys, tag))
    }

    fn finish_write_and_reserve_read(
        &self,
        keys: &[ObjectKey],
        read_locks: u32,
        tag: &str,
    ) -> Outcomes<ReadObject> {
        self.told(|shared| shared.finish_write_and_reserve_read(keys, read_locks, tag))
    }

    fn finish_write_and_delete(&self, keys: &[ObjectKey], tag: &str) -> Outcomes<()> {
        self.told(|shared| shared.finish_write_and_delete(keys, tag))
    }

    fn delete(&self, keys: &[ObjectKey], force: bool) -> Outcomes<()> {
        self.told(|shared| shared.delete(keys, force))
    }

    fn clear(&self, force: bool) {
        self.told(|shared| shared.clear(force));
    }

    /// The server hears of it later.
    fn touch_keys(&self, keys: &[ObjectKey]) {
        self.shared.listeners.accessed(keys);
        self.shared.touched.push(keys);
    }

    fn is_key_evictable(&self, key: &ObjectKey) -> bool {
        let (state, now) = self.shared.state();
        state.staging.has_expired(now, key)
    }

    /// Of the whole pool, whoever uses it; as last heard, if the server does not answer.
    fn memory_usage(&self) -> MemoryUsage {
        if self.shared.lock().closed {
            return MemoryUsage::default();
        }
        self.shared.pool.flush();
        let stats = self.shared.pool.stats();
        let mut usage = lock(&self.shared.usage);
        if let Some(stats) = stats {
            let (used_bytes, total_bytes) = (stats.used_bytes(), stats.capacity_bytes);
            *usage = MemoryUsage { used_bytes, total_bytes };
        }
        *usage
    }

    fn staging_memory_usage(&self) -> u64 {
        self.shared.lock().staging.bytes()
    }

    fn capacity_bytes_by_backend(&self) -> BTreeMap<L1Backend, u64> {
        let mut capacity = BTreeMap::new();
        for device in self.shared.pool.memory().iter().flat_map(|memory| &memory.topology.devices) {
            let dax = device.path.starts_with("/dev/dax");
            let backend = if dax { L1Backend::Devdax } else { L1Backend::Dram };
            *capacity.entry(backend).or_default() += device.bytes;
        }
        capacity
    }

    /// The writable view of the pool: one range for both directions.
    fn memory_desc(&self) -> Option<L1MemoryDesc> {
        let memory = self.shared.pool.memory().ok()?;
        let devices = memory.topology.devices.iter();
        let bytes = devices.map(|device| device.offset + device.bytes).max().unwrap_or(0);
        Some(L1MemoryDesc {
            address: memory.mapping.write_base().addr(),
            bytes,
            align_bytes: maru_protocol::PAGE_ALIGN,
            stable_bytes: Some(bytes),
        })
    }

    fn object_state(&self, key: &ObjectKey) -> Option<ObjectState> {
        {
            let (state, now) = self.shared.state();
            if let Some(held) = state.held(key) {
                let (read_locks, temporary) = (held.lock.count(now), held.page.is_temporary());
                return Some(ObjectState { read_locks, temporary });
            }
        }
        let resident = self.shared.are_resident(&[key]) == [true];
        resident.then_some(ObjectState { read_locks: 0, temporary: false })
    }

    /// Of what is resident in the pool, whoever stored it, and of what this manager holds and stages.
    fn report_status(&self) -> L1Status {
        let resident = self.shared.pool.stats().map_or(0, |stats| stats.pages_resident);
        let (held, staged) = {
            let (state, now) = self.shared.state();
            let held = state.held.values().filter(|held| !held.page.is_lost());
            let held = held.map(|one| (one.lock.is_locked(now), one.page.is_temporary()));
            (Counts::of(held), state.staging.counts(now))
        };
        L1Status::of(self, held.among(resident), staged)
    }

    /// Whether the server answers, and has found its rules kept and every byte accounted for.
    fn memcheck(&self) -> bool {
        let stats = self.shared.pool.stats();
        stats.is_some_and(|stats| stats.lost_bytes() == 0 && stats.counters.rule_violations == 0)
    }

    fn close(&self) {
        let shared = &*self.shared;
        let (discarded, ended) = {
            let mut state = shared.lock();
            state.closed = true;
            let discarded = state.staging.take_all();
            let ended: Vec<Right> =
                state.held.drain().filter_map(|(_, held)| held.page.end()).collect();
            (discarded, ended)
        };
        if shared.has_outside_writers() {
            discarded.into_iter().for_each(ReservedPage::leave);
        } else {
            drop(discarded);
        }
        shared.pool.give_back(ended);
        shared.touched.close();
        shared.pool.close();
    }
}
