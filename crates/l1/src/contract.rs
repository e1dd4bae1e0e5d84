//! The L1 contract: what every manager does, and what it answers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::{
    L1Error, L1Listener, L1ManagerConfig, MemoryLayoutDesc, ObjectKey, ReadObject, WriteObject,
};

/// The most read locks one call takes or gives back on a key; more are taken for so many.
pub const READ_LOCKS_MAX: u32 = 128;

/// One answer a key, in the order of the keys.
pub type Outcomes<T> = Vec<Result<T, L1Error>>;

/// One L1 cache: the contract of LMCache's multi-process mode (`L1ManagerInterface` of LMCache
/// 0.5.6, and the protocol of the Maru pull request). Names in code font that are not Rust's are
/// the contract's.
///
/// A chunk is *staged* by a writer, under a key and the writer's tag, where nobody sees it. When
/// the writer is done it becomes *resident*: readers find it. The first to finish wins; what
/// another stages for the same key is discarded when that one finishes.
///
/// ```text
///  reserve_write(key, tag)        finish_write(tag)              delete, clear, eviction
/// -------------------> staged ----------------------> resident --------------------------> gone
///                        |  finish_write_and_delete      |  ^
///                        +----------------> gone         v  |
///                                             reserve_read / finish_read (counted read locks)
/// ```
///
/// Locks run out: a reservation [`L1ManagerConfig::write_ttl`] after it was made, read locks
/// [`L1ManagerConfig::read_ttl`] after the last was taken. What ran out protects nothing.
///
/// All methods may be called from any thread. Every operation on keys answers a key at a time, and
/// is atomic for each key. A key that comes twice in a batch is served twice, in order.
pub trait L1Manager: fmt::Debug + Send + Sync {
    /// `l1_manager_id`: tells the managers of a process apart.
    fn id(&self) -> L1ManagerId;

    /// `config`: what the manager was made from.
    fn config(&self) -> &L1ManagerConfig;

    /// `register_listener`: tells `listener` from now on what happens. For good.
    fn register_listener(&self, listener: Arc<dyn L1Listener>);

    /// `reserve_read`: takes `read_locks` (1 to [`READ_LOCKS_MAX`], others are brought into that
    /// range) on each resident chunk.
    ///
    /// Errors: `KEY_NOT_EXIST` for a key that is not resident, staged or not.
    /// Listeners: `reserved_read` with the keys that were there.
    fn reserve_read(&self, keys: &[ObjectKey], read_locks: u32) -> Outcomes<ReadObject>;

    /// `unsafe_read`: the chunks that are read-locked already, without another lock.
    ///
    /// Errors: `KEY_NOT_EXIST`; `KEY_NOT_READABLE` for a resident chunk that nobody has locked.
    /// Listeners: nothing.
    fn unsafe_read(&self, keys: &[ObjectKey]) -> Outcomes<ReadObject>;

    /// `finish_read`: gives back `read_locks` on each chunk, at most those that are held. A
    /// temporary chunk dies with its last lock.
    ///
    /// Errors: `KEY_NOT_EXIST`; `KEY_IN_WRONG_STATE` where no lock is held (any more), or where it
    /// cannot be said that it was held all the time: then what was read does not count.
    /// Listeners: `read_finished` with the keys that were locked, then `deleted_by_manager` with
    /// the temporary ones that died, but for those that somebody stages anew.
    fn finish_read(&self, keys: &[ObjectKey], read_locks: u32) -> Outcomes<()>;

    /// `reserve_write`: stages space of `layout` for each write, invisible until finished. Memory is
    /// found for all that need it, or for none. A reservation of the same tag that has expired is
    /// handed over: the earlier writer's object is dead from then on.
    ///
    /// Errors: `KEY_NOT_WRITABLE` for a chunk that is resident, or that `tag` stages already;
    /// `OUT_OF_MEMORY` for each key that needed memory.
    /// Listeners: `reserved_write` with the keys that were staged.
    fn reserve_write(
        &self,
        writes: &[Write],
        layout: &MemoryLayoutDesc,
        tag: &str,
    ) -> Outcomes<WriteObject>;

    /// `finish_write`: makes what `tag` staged resident. If somebody else was first, what was staged
    /// is discarded and the answer is success all the same: the chunk is there.
    ///
    /// Errors: `KEY_NOT_EXIST` if `tag` stages no such chunk; `KEY_IN_WRONG_STATE` if the
    /// reservation has expired (it stays staged until it is reclaimed), if a thread is still inside
    /// [`WriteObject::write`], or if whether it became resident is not known.
    /// Listeners: `write_finished` with the keys that became resident, but temporary ones.
    fn finish_write(&self, keys: &[ObjectKey], tag: &str) -> Outcomes<()>;

    /// `finish_write_and_reserve_read`: finishes, and read-locks the resident chunk in the same
    /// step; if somebody else was first, theirs. For promotions from other tiers.
    ///
    /// Errors: as [`L1Manager::finish_write`].
    /// Listeners: `reserved_read` with the keys where somebody else was first, then
    /// `finish_write_and_reserve_read` with the others, temporary or not; never `write_finished`.
    fn finish_write_and_reserve_read(
        &self,
        keys: &[ObjectKey],
        read_locks: u32,
        tag: &str,
    ) -> Outcomes<ReadObject>;

    /// `finish_write_and_delete`: discards what `tag` staged; nobody ever sees it.
    ///
    /// Errors: as [`L1Manager::finish_write`].
    /// Listeners: `deleted_by_manager` with the keys of which nothing is left, staged by another tag
    /// or resident.
    fn finish_write_and_delete(&self, keys: &[ObjectKey], tag: &str) -> Outcomes<()>;

    /// `delete`: deletes resident chunks, and reclaims reservations that have expired. With `force`,
    /// also what is locked by this manager; what another process reads stays in any case.
    ///
    /// Errors: `KEY_NOT_EXIST`; `KEY_IS_LOCKED` for a chunk that is read-locked, or staged by a live
    /// reservation.
    /// Listeners: `deleted_by_manager` with the keys that are gone; nothing of a refused one, which
    /// an eviction policy keeps and tries again.
    fn delete(&self, keys: &[ObjectKey], force: bool) -> Outcomes<()>;

    /// `clear`: deletes all chunks that are not read-locked, and reclaims reservations that have
    /// expired; a live one keeps itself, but not the resident chunk of its key. With `force`, all
    /// that [`L1Manager::delete`] may. On a shared pool that is everybody's.
    ///
    /// Listeners: `deleted_by_manager` with the keys that are gone.
    fn clear(&self, force: bool);

    /// `touch_keys`: counts the keys as used. Never waits for a lock of the manager or for a server.
    ///
    /// Listeners: `accessed`, and no other method ever leads to it.
    fn touch_keys(&self, keys: &[ObjectKey]);

    /// `is_key_evictable`: whether an eviction controller of this process may delete the key now: it
    /// is resident and not read-locked, or a reservation of it has expired. Of a shared pool's
    /// resident chunks it may delete none: their server evicts. Never waits for a server.
    fn is_key_evictable(&self, key: &ObjectKey) -> bool;

    /// `get_memory_usage`: bytes used and bytes there are.
    fn memory_usage(&self) -> MemoryUsage;

    /// `get_staging_memory_usage`: bytes that are staged by this manager; part of those used.
    fn staging_memory_usage(&self) -> u64;

    /// `get_capacity_bytes_by_backend`: bytes there can be, by the kind of memory.
    fn capacity_bytes_by_backend(&self) -> BTreeMap<L1Backend, u64>;

    /// `get_l1_memory_desc`: the one buffer that all chunks lie in, for adapters that register
    /// memory. `None` once closed.
    fn memory_desc(&self) -> Option<L1MemoryDesc>;

    /// `get_object_state`: what is known of a resident chunk; `None` for one that is not.
    fn object_state(&self, key: &ObjectKey) -> Option<ObjectState>;

    /// `report_status`: numbers for a status page.
    fn report_status(&self) -> L1Status;

    /// `memcheck`: whether the books are in order.
    fn memcheck(&self) -> bool;

    /// `close`: gives back everything this manager holds. What a private one stored is gone; what a
    /// shared one stored stays. Afterwards there is no key, and no memory. Twice is as good as once.
    fn close(&self);
}

/// Tells the managers of a process apart, whatever their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct L1ManagerId(pub u64);

impl L1ManagerId {
    /// One that no other manager of this process has.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for L1ManagerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One chunk to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Its key.
    pub key: ObjectKey,
    /// It is dropped after its last read, and never told as written: a passage, not a store.
    pub temporary: bool,
}

impl Write {
    /// A chunk that stays.
    #[must_use]
    pub const fn retained(key: ObjectKey) -> Self {
        Self { key, temporary: false }
    }

    /// A chunk that dies after its last read.
    #[must_use]
    pub const fn temporary(key: ObjectKey) -> Self {
        Self { key, temporary: true }
    }
}

/// Bytes of an L1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// Bytes that hold chunks, staged ones included.
    pub used_bytes: u64,
    /// Bytes that could.
    pub total_bytes: u64,
}

impl MemoryUsage {
    /// The used part, 0 to 1.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn ratio(self) -> f64 {
        if self.total_bytes == 0 { 0.0 } else { self.used_bytes as f64 / self.total_bytes as f64 }
    }
}

/// A kind of memory: `L1BackendType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum L1Backend {
    /// The machine's own memory.
    Dram,
    /// A DAX device: CXL memory.
    Devdax,
}

/// A buffer that all chunks lie in: `L1MemoryDesc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L1MemoryDesc {
    /// Its address in this process. Whoever stores through it must have reserved the place; whoever goes
    /// by it on a shared pool wants [`crate::MaruL1Config::one_pool`].
    pub address: usize,
    /// Its size in bytes, as large as it will become.
    pub bytes: u64,
    /// Chunks begin at multiples of this.
    pub align_bytes: u64,
    /// So many bytes from its start on can be registered now and will not move or go;
    /// `stable_registration_size`. `None` if that cannot be said.
    pub stable_bytes: Option<u64>,
}

/// What is known of a resident chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectState {
    /// Read locks that this manager has given out and that have not expired.
    pub read_locks: u32,
    /// It dies after its last read.
    pub temporary: bool,
}

/// Numbers for a status page, under the contract's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct L1Status {
    /// [`L1Manager::memcheck`].
    pub is_healthy: bool,
    /// Resident and staged chunks: a shared manager counts all that are resident in the pool, and
    /// what it stages itself.
    pub total_object_count: u64,
    /// Live reservations.
    pub write_locked_count: u64,
    /// Resident chunks with a live read lock of this manager.
    pub read_locked_count: u64,
    /// Temporary chunks, staged or resident.
    pub temporary_count: u64,
    /// Staged chunks, expired ones included.
    pub staging_object_count: u64,
    /// Their bytes.
    pub staging_bytes: u64,
    /// [`MemoryUsage::used_bytes`].
    pub memory_used_bytes: u64,
    /// [`MemoryUsage::total_bytes`].
    pub memory_total_bytes: u64,
    /// What it was configured to become.
    pub memory_configured_bytes: u64,
    /// [`L1Manager::capacity_bytes_by_backend`].
    pub capacity_bytes_by_backend: BTreeMap<L1Backend, u64>,
    /// [`MemoryUsage::ratio`].
    pub memory_usage_ratio: f64,
    /// How long a reservation lives.
    pub write_ttl_seconds: f64,
    /// How long a read lock lives.
    pub read_ttl_seconds: f64,
}

/// Numbers of chunks that a manager keeps, staged or resident.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    all: u64,
    locked: u64,
    temporary: u64,
}

impl Counts {
    /// Counts chunks, each of which is locked or not, and temporary or not.
    pub(crate) fn of(chunks: impl Iterator<Item = (bool, bool)>) -> Self {
        chunks.fold(Self::default(), |counts, (locked, temporary)| Self {
            all: counts.all + 1,
            locked: counts.locked + u64::from(locked),
            temporary: counts.temporary + u64::from(temporary),
        })
    }

    /// The same of chunks that are all in a shared pool with so many, but for temporary ones.
    pub(crate) const fn among(self, resident: u64) -> Self {
        Self { all: resident + self.temporary, ..self }
    }
}

impl L1Status {
    /// The status of a manager that keeps so many chunks.
    pub(crate) fn of(manager: &dyn L1Manager, resident: Counts, staged: Counts) -> Self {
        let (usage, config) = (manager.memory_usage(), manager.config());
        let capacity = manager.capacity_bytes_by_backend();
        Self {
            is_healthy: manager.memcheck(),
            total_object_count: resident.all + staged.all,
            write_locked_count: staged.locked,
            read_locked_count: resident.locked,
            temporary_count: resident.temporary + staged.temporary,
            staging_object_count: staged.all,
            staging_bytes: manager.staging_memory_usage(),
            memory_used_bytes: usage.used_bytes,
            memory_total_bytes: usage.total_bytes,
            memory_configured_bytes: capacity.values().sum(),
            capacity_bytes_by_backend: capacity,
            memory_usage_ratio: usage.ratio(),
            write_ttl_seconds: config.write_ttl.as_secs_f64(),
            read_ttl_seconds: config.read_ttl.as_secs_f64(),
        }
    }
}

/// Brings a number of read locks into its range; says so if it was not.
pub(crate) fn clamp_read_locks(read_locks: u32) -> u32 {
    let clamped = read_locks.clamp(1, READ_LOCKS_MAX);
    if clamped != read_locks {
        tracing::warn!(read_locks, clamped, "a number of read locks was brought into its range");
    }
    clamped
}

/// The keys whose outcome is a success.
pub(crate) fn succeeded<T>(keys: &[ObjectKey], outcomes: &Outcomes<T>) -> Vec<ObjectKey> {
    let good = keys.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
    good.map(|(key, _)| key.clone()).collect()
}
