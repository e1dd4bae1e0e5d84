//! Chunks in the hands of callers.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::L1Error;

/// Memory that a chunk is written into.
pub(crate) trait WriteBuffer: fmt::Debug + Send {
    fn bytes_mut(&mut self) -> &mut [u8];
    fn len(&self) -> u64;
    fn offset(&self) -> u64;
    /// Whether it is known that the memory cannot become resident any more.
    fn is_lost(&self) -> bool {
        false
    }
}

/// Memory that a chunk is read from.
pub(crate) trait ReadBuffer: fmt::Debug + Send + Sync {
    fn len(&self) -> u64;
    fn offset(&self) -> u64;
    /// Shows the bytes to `read`. `true` if they were the chunk's all the time.
    fn read(&self, read: &mut dyn FnMut(&[u8])) -> bool;
    /// Whether the chunk may be read, as far as is known without asking anybody.
    fn is_live(&self) -> bool {
        true
    }
}

/// A resident chunk. Cheap to clone.
///
/// The contract allows to read it while its read lock lasts. A read that comes too late is an
/// error, or right all the same; it never gives wrong bytes. The object keeps the memory mapped,
/// not the lock.
#[derive(Debug, Clone)]
pub struct ReadObject {
    buffer: Arc<dyn ReadBuffer>,
}

impl ReadObject {
    pub(crate) fn new(buffer: Arc<dyn ReadBuffer>) -> Self {
        Self { buffer }
    }

    /// Tells chunks apart: equal for objects of one chunk that are there at the same time.
    #[must_use]
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.buffer).addr()
    }

    /// The chunk's length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.buffer.len()
    }

    /// Where it lies in the L1's buffer ([`crate::L1MemoryDesc`]), in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.buffer.offset()
    }

    /// Whether the chunk may be read, as far as is known without asking anybody: its lock was not given
    /// back, and it is not known to be damaged or lost.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.buffer.is_live()
    }

    /// Lets `read` look at the bytes in place. What it returns counts only if this does not fail:
    /// `KEY_NOT_READABLE` says that the chunk was not protected all the time, or, before anything is
    /// read, that it is damaged.
    pub fn read<T>(&self, read: impl FnOnce(&[u8]) -> T) -> Result<T, L1Error> {
        let (mut read, mut value) = (Some(read), None);
        let good = self.buffer.read(&mut |bytes| value = read.take().map(|read| read(bytes)));
        value.filter(|_| good).ok_or(L1Error::KeyNotReadable)
    }
}

/// Staged space. Cheap to clone.
///
/// It can be written to until the write is finished, discarded, or handed to another writer because
/// it had expired. So a late writer changes nothing that anybody reads.
#[derive(Debug, Clone)]
pub struct WriteObject {
    slot: Arc<dyn WriteSlot>,
    bytes: u64,
    offset: u64,
}

impl WriteObject {
    /// Its length in bytes: the layout's.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it lies in the L1's buffer ([`crate::L1MemoryDesc`]), in bytes.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Tells reservations apart: equal for objects of one that are there at the same time.
    #[must_use]
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.slot).addr()
    }

    /// Whether it can still be written to. For who writes by its offset; keeps nobody from finishing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.slot.is_open()
    }

    /// Lets `write` write the bytes in place; what was there before is undefined.
    /// `KEY_IN_WRONG_STATE` if they are not this writer's any more, or another call is at it. While
    /// `write` runs, the space is not reclaimed, whatever its age, and the write cannot be finished.
    pub fn write<T>(&self, write: impl FnOnce(&mut [u8]) -> T) -> Result<T, L1Error> {
        let mut write = Some(write);
        let mut value = None;
        self.slot.with(&mut |bytes| value = write.take().map(|write| write(bytes)));
        value.ok_or(L1Error::KeyInWrongState)
    }
}

trait WriteSlot: fmt::Debug + Send + Sync {
    /// Calls `write`, unless the memory is gone.
    fn with(&self, write: &mut dyn FnMut(&mut [u8]));
    /// Whether the memory is not gone.
    fn is_open(&self) -> bool;
}

/// Holds the memory of one reservation until the writer may not write any more.
#[derive(Debug)]
pub(crate) struct Slot<B> {
    /// Locked for long by a writer only, for a moment by who looks at it.
    buffer: Mutex<Option<B>>,
    /// A writer is at it, or about to be.
    writing: AtomicBool,
    /// Nobody may write any more: a writer that is at it takes the memory along.
    over: AtomicBool,
}

impl<B: WriteBuffer + 'static> Slot<B> {
    /// A slot, and the writer's access to it.
    pub(crate) fn new(buffer: B) -> (Arc<Self>, WriteObject) {
        let (bytes, offset) = (buffer.len(), buffer.offset());
        let slot = Arc::new(Self {
            buffer: Mutex::new(Some(buffer)),
            writing: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let object = WriteObject { slot: Arc::clone(&slot) as Arc<dyn WriteSlot>, bytes, offset };
        (slot, object)
    }

    /// Takes the memory from the writer, for good; `None` while the writer is at it.
    pub(crate) fn take(&self) -> Option<B> {
        let buffer = self.idle()?.take()?;
        self.over.store(true, Ordering::SeqCst);
        Some(buffer)
    }

    /// The same; while the writer is at it, the memory goes as soon as that is done.
    pub(crate) fn end(&self) -> Option<B> {
        self.over.store(true, Ordering::SeqCst);
        self.take()
    }

    /// Whether the memory cannot become resident any more, as far as can be seen.
    pub(crate) fn is_lost(&self) -> bool {
        self.idle().is_some_and(|buffer| buffer.as_ref().is_some_and(WriteBuffer::is_lost))
    }
}

impl<B> Slot<B> {
    /// The memory, if nobody is at it.
    fn idle(&self) -> Option<MutexGuard<'_, Option<B>>> {
        match self.buffer.try_lock() {
            Ok(buffer) => Some(buffer),
            // A writer that panicked is not at it any more. What it left is the writer's to answer
            // for: whoever finishes says that the bytes are good.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Ends a write, and looks whether the memory was to go meanwhile. Not inside the write: whoever ends
/// the slot either finds it idle, or is seen here.
struct Afterwards<'a, B>(&'a Slot<B>);

impl<B> Drop for Afterwards<'_, B> {
    fn drop(&mut self) {
        self.0.writing.store(false, Ordering::SeqCst);
        if self.0.over.load(Ordering::SeqCst) {
            drop(self.0.idle().and_then(|mut buffer| buffer.take()));
        }
    }
}

impl<B: WriteBuffer> WriteSlot for Slot<B> {
    fn with(&self, write: &mut dyn FnMut(&mut [u8])) {
        if self.writing.swap(true, Ordering::SeqCst) {
            return;
        }
        let _afterwards = Afterwards(self);
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = buffer.as_mut().filter(|_| !self.over.load(Ordering::SeqCst)) {
            write(buffer.bytes_mut());
        }
    }

    fn is_open(&self) -> bool {
        !self.over.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Bytes(Vec<u8>);

    impl WriteBuffer for Bytes {
        fn bytes_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn offset(&self) -> u64 {
            4096
        }
    }

    #[test]
    fn a_writer_writes_until_the_memory_is_taken() {
        let (slot, object) = Slot::new(Bytes(vec![0; 3]));
        assert_eq!((object.bytes(), object.offset()), (3, 4096));
        assert_eq!(object.write(|bytes| bytes.fill(7)), Ok(()));
        assert!(object.is_open());
        assert_eq!(slot.take().unwrap().0, [7, 7, 7]);
        assert!(!object.is_open());
        let late = object.write(|bytes| bytes.fill(9));
        assert_eq!(late, Err(L1Error::KeyInWrongState));
        assert!(slot.take().is_none());
    }

    #[test]
    fn memory_is_not_taken_from_under_a_writer() {
        let (slot, object) = Slot::new(Bytes(vec![0; 3]));
        object.write(|_| assert!(slot.take().is_none())).unwrap();
        assert!(slot.take().is_some());
    }

    #[test]
    fn memory_that_ends_during_a_write_goes_with_it() {
        let (slot, object) = Slot::new(Bytes(vec![0; 3]));
        object.write(|_| assert!(slot.end().is_none())).unwrap();
        assert!(slot.buffer.lock().unwrap().is_none());
        assert_eq!(object.write(|_| ()), Err(L1Error::KeyInWrongState));
        let (slot, object) = Slot::new(Bytes(vec![0; 3]));
        assert!(slot.end().is_some());
        assert_eq!(object.write(|_| ()), Err(L1Error::KeyInWrongState));
    }

    /// It was refused when somebody looked at the slot just then, and a writer that did not mind
    /// finished what it had not written.
    #[test]
    fn a_look_does_not_keep_a_writer_from_writing() {
        let (slot, object) = Slot::new(Bytes(vec![0; 3]));
        let looking = slot.buffer.lock().unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| object.write(|bytes| bytes.fill(7)));
            while !slot.writing.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            drop(looking);
            assert_eq!(writer.join().unwrap(), Ok(()));
        });
        assert_eq!(slot.take().unwrap().0, [7, 7, 7]);
    }

    #[test]
    fn one_call_writes_at_a_time() {
        let (_slot, object) = Slot::new(Bytes(vec![0; 3]));
        let inside = object.write(|_| object.write(|_| ()));
        assert_eq!(inside, Ok(Err(L1Error::KeyInWrongState)));
    }

    #[test]
    fn a_panic_inside_a_write_does_not_keep_the_memory() {
        let (slot, object) = Slot::new(Bytes(vec![0; 3]));
        let broken = object.clone();
        let thread = std::thread::spawn(move || broken.write(|_| panic!("on purpose")));
        assert!(thread.join().is_err());
        assert!(slot.take().is_some());
    }
}
