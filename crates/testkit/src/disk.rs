//! A disk of memory, for logs: it can be crashed, filled up, and looked at.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use maru_server::store::Disk;

/// A disk of memory. Clones are the same disk, so that what a killed server wrote is still there.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    segments: BTreeMap<u64, Segment>,
    /// Bytes of all segments together beyond which nothing is set aside.
    capacity: Option<u64>,
    /// Writes that the operating system has not taken yet: see [`MemoryDisk::hold_writes`].
    held: Option<Vec<(u64, u64, Vec<u8>)>>,
}

#[derive(Debug, Default, Clone)]
struct Segment {
    bytes: Vec<u8>,
    /// Set aside, those with bytes included.
    room: u64,
    /// What a power failure leaves.
    synced: Vec<u8>,
}

impl MemoryDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of it as it is now: another disk.
    #[must_use]
    pub fn image(&self) -> Self {
        let state = self.lock();
        let segments = state.segments.clone();
        Self(Arc::new(Mutex::new(State { segments, capacity: None, held: None })))
    }

    /// What a power failure leaves of it: another disk.
    #[must_use]
    pub fn durable_image(&self) -> Self {
        let image = self.image();
        for segment in image.lock().segments.values_mut() {
            segment.bytes.clone_from(&segment.synced);
        }
        image
    }

    /// Has no more than so many bytes from now on; `None` for no limit. What is set aside stays.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// From now on writes are said to be done and are not: they are lost with the server.
    pub fn hold_writes(&self) {
        self.lock().held.get_or_insert_default();
    }

    /// Takes all writes that were held.
    pub fn take_held_writes(&self) {
        let mut state = self.lock();
        for (segment, offset, bytes) in state.held.replace(Vec::new()).unwrap_or_default() {
            if let Some(segment) = state.segments.get_mut(&segment) {
                segment.write(offset, &bytes);
            }
        }
    }

    /// The segments' bytes, to look at or to damage.
    pub fn with_bytes<T>(&self, segment: u64, change: impl FnOnce(&mut Vec<u8>) -> T) -> Option<T> {
        self.lock().segments.get_mut(&segment).map(|segment| change(&mut segment.bytes))
    }

    /// Forgets everything.
    pub fn erase(&self) {
        *self.lock() = State::default();
    }
}

impl Segment {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).expect("segments of tests are small");
        let end = start + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(bytes);
    }
}

impl State {
    fn set_aside(&mut self, segment: u64, room: u64) -> io::Result<()> {
        let others = self.segments.iter().filter(|(number, _)| **number != segment);
        let taken: u64 = others.map(|(_, segment)| segment.room).sum();
        if self.capacity.is_some_and(|capacity| taken + room > capacity) {
            return Err(ErrorKind::StorageFull.into());
        }
        self.segments.entry(segment).or_default().room = room;
        Ok(())
    }

    fn segment(&mut self, segment: u64) -> io::Result<&mut Segment> {
        self.segments.get_mut(&segment).ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    fn list(&mut self) -> io::Result<BTreeMap<u64, u64>> {
        let state = self.lock();
        let segments = state.segments.iter();
        Ok(segments.map(|(number, segment)| (*number, segment.bytes.len() as u64)).collect())
    }

    fn create(&mut self, segment: u64, room: u64) -> io::Result<()> {
        self.lock().set_aside(segment, room)
    }

    fn extend(&mut self, segment: u64, room: u64) -> io::Result<()> {
        self.lock().set_aside(segment, room)
    }

    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        if let Some(held) = &mut state.held {
            held.push((segment, offset, bytes.to_vec()));
            return Ok(());
        }
        let segment = state.segment(segment)?;
        assert!(offset + bytes.len() as u64 <= segment.room, "more is written than was set aside");
        segment.write(offset, bytes);
        Ok(())
    }

    fn sync(&mut self, segment: u64) -> io::Result<()> {
        let mut state = self.lock();
        let segment = state.segment(segment)?;
        segment.synced = segment.bytes.clone();
        Ok(())
    }

    fn seal(&mut self, segment: u64, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        let segment = state.segment(segment)?;
        segment.bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        segment.room = len;
        Ok(())
    }

    fn read(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut state = self.lock();
        let bytes = &state.segment(segment)?.bytes;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(len).min(bytes.len());
        Ok(bytes[start..end].to_vec())
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        self.lock().segments.remove(&segment);
        Ok(())
    }
}
