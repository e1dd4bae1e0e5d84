//! What a case works on.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use maru_l1::{
    KvRank, L1Error, L1Listener, L1Manager, ManualClock, MemoryLayoutDesc, ObjectKey, Outcomes,
    ReadObject, Write, WriteObject,
};

/// Bytes of a chunk in the suite.
pub const PAGE: u64 = 8192;
/// How long a subject's reservations live: not the default.
pub const WRITE_TTL: Duration = Duration::from_mins(7);
/// How long a subject's read locks live.
pub const READ_TTL: Duration = Duration::from_mins(3);

/// Who evicts what is resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evictor {
    /// A controller of this process may.
    Own,
    /// A server does, and nobody else may.
    Server,
}

/// Makes managers of one kind.
pub trait Factory: fmt::Debug + Send + Sync {
    /// The kind's name.
    fn name(&self) -> &'static str;
    /// A manager with room for `pages` chunks of [`PAGE`] bytes, no more, that nobody else uses;
    /// with [`WRITE_TTL`] and [`READ_TTL`] by the clock of the subject.
    fn subject(&self, pages: u64) -> Subject;
}

/// A manager, and what a case needs to work on it.
#[derive(Debug)]
pub struct Subject {
    /// The manager.
    pub manager: Arc<dyn L1Manager>,
    /// Its time.
    pub clock: Arc<ManualClock>,
    /// Who evicts from it.
    pub evictor: Evictor,
    /// So many chunks it has room for.
    pub pages: u64,
    /// Lives as long as the subject: the server, if it has one.
    pub keep: Box<dyn fmt::Debug + Send + Sync>,
}

/// The key of the chunk with this number.
pub(super) fn key(number: u8) -> ObjectKey {
    ObjectKey::new("model", KvRank(0), &[number; 4], 0, "").expect("a good key")
}

/// The first `count` keys.
pub(super) fn keys(count: u8) -> Vec<ObjectKey> {
    (0..count).map(key).collect()
}

/// The layout of [`PAGE`] bytes.
pub(super) fn layout() -> MemoryLayoutDesc {
    MemoryLayoutDesc::opaque(PAGE).expect("a good layout")
}

/// What each object is filled with, all over, or why it cannot be read.
#[track_caller]
pub(super) fn bytes_of(objects: Outcomes<ReadObject>) -> Outcomes<u8> {
    let byte = |object: ReadObject| {
        assert_eq!(object.bytes(), PAGE, "its length");
        object.read(|bytes| {
            assert_eq!(bytes.len() as u64, PAGE, "its length");
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mixture of bytes");
            bytes[0]
        })
    };
    objects.into_iter().map(|object| object.and_then(byte)).collect()
}

/// The answers without the objects.
pub(super) fn outline<T>(outcomes: &Outcomes<T>) -> Outcomes<()> {
    outcomes.iter().map(|outcome| outcome.as_ref().map(|_| ()).map_err(|error| *error)).collect()
}

impl Subject {
    /// Stages, and fills each chunk with `byte`. Panics if one is refused.
    #[track_caller]
    pub(super) fn stage(&self, keys: &[ObjectKey], tag: &str, byte: u8) -> Vec<WriteObject> {
        let writes: Vec<Write> = keys.iter().cloned().map(Write::retained).collect();
        self.stage_all(&writes, tag, byte)
    }

    /// The same with temporary chunks.
    #[track_caller]
    pub(super) fn stage_temporary(&self, keys: &[ObjectKey], tag: &str, byte: u8) {
        let writes: Vec<Write> = keys.iter().cloned().map(Write::temporary).collect();
        self.stage_all(&writes, tag, byte);
    }

    #[track_caller]
    fn stage_all(&self, writes: &[Write], tag: &str, byte: u8) -> Vec<WriteObject> {
        let objects = self.manager.reserve_write(writes, &layout(), tag);
        assert_eq!(objects.len(), writes.len(), "an answer a write");
        let fill = |object: Result<WriteObject, L1Error>| {
            let object = object.unwrap_or_else(|error| panic!("not staged: {error:?}"));
            assert_eq!(object.bytes(), PAGE, "its length");
            let filled = object.write(|bytes| {
                assert_eq!(bytes.len() as u64, PAGE, "its length");
                bytes.fill(byte);
            });
            assert_eq!(filled, Ok(()), "what is staged can be written to");
            object
        };
        objects.into_iter().map(fill).collect()
    }

    /// Makes chunks resident that are filled with `byte`.
    #[track_caller]
    pub(super) fn store(&self, keys: &[ObjectKey], byte: u8) {
        self.stage(keys, "store", byte);
        assert_eq!(self.manager.finish_write(keys, "store"), ok(keys.len()));
    }

    /// Makes temporary chunks resident.
    #[track_caller]
    pub(super) fn store_temporary(&self, keys: &[ObjectKey], byte: u8) {
        self.stage_temporary(keys, "store", byte);
        assert_eq!(self.manager.finish_write(keys, "store"), ok(keys.len()));
    }

    /// Takes a read lock on each, and says what is read.
    #[track_caller]
    pub(super) fn read(&self, keys: &[ObjectKey]) -> Outcomes<u8> {
        bytes_of(self.manager.reserve_read(keys, 1))
    }

    /// Reads what is locked already.
    #[track_caller]
    pub(super) fn read_again(&self, keys: &[ObjectKey]) -> Outcomes<u8> {
        bytes_of(self.manager.unsafe_read(keys))
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> u64 {
        self.manager.memory_usage().used_bytes
    }

    /// How many read locks the chunk has; `None` if it is not resident.
    pub(super) fn locks(&self, key: &ObjectKey) -> Option<u32> {
        self.manager.object_state(key).map(|state| state.read_locks)
    }

    /// Writes down what the manager tells from now on.
    pub(super) fn listen(&self) -> Arc<Recorder> {
        let recorder = Arc::new(Recorder::default());
        self.manager.register_listener(Arc::clone(&recorder) as Arc<dyn L1Listener>);
        recorder
    }
}

/// `count` successes.
pub(super) fn ok(count: usize) -> Outcomes<()> {
    vec![Ok(()); count]
}

/// One thing that was told: the listener's method, and the keys.
pub type Told = (&'static str, Vec<ObjectKey>);

/// A listener that writes down what it is told.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<Told>>);

impl Recorder {
    fn note(&self, event: &'static str, keys: &[ObjectKey]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((event, keys.to_vec()));
    }

    /// What was told since this was last asked.
    pub fn take(&self) -> Vec<Told> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl L1Listener for Recorder {
    fn reserved_read(&self, keys: &[ObjectKey]) {
        self.note("reserved_read", keys);
    }
    fn read_finished(&self, keys: &[ObjectKey]) {
        self.note("read_finished", keys);
    }
    fn reserved_write(&self, keys: &[ObjectKey]) {
        self.note("reserved_write", keys);
    }
    fn write_finished(&self, keys: &[ObjectKey]) {
        self.note("write_finished", keys);
    }
    fn finish_write_and_reserve_read(&self, keys: &[ObjectKey]) {
        self.note("finish_write_and_reserve_read", keys);
    }
    fn deleted_by_manager(&self, keys: &[ObjectKey]) {
        self.note("deleted_by_manager", keys);
    }
    fn accessed(&self, keys: &[ObjectKey]) {
        self.note("accessed", keys);
    }
    fn deletions_missed(&self) {
        self.note("deletions_missed", &[]);
    }
}
