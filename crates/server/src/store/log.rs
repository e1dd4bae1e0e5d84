//! The log of a running server.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use maru_directory::{Directory, Record};
use maru_protocol::Visibility;

use super::{
    Disk, Durability, FRAME_HEADER, Head, MAGIC, PoolIdentity, Replayed, StoreError, System,
    split_frame,
};

/// What a segment must have left for the next turn: the longest commit there can be, 4096 keys of 1
/// KiB with all that is recorded of each. A server has a turn stored before it grows beyond.
const TURN_BYTES: u64 = 8 << 20;

/// What is left on top for what is never refused: sessions that come and go.
const SPARE_BYTES: u64 = 1 << 20;

/// The sizes a segment can have, in bytes, without its checkpoint.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=64 << 20;

/// Bytes of the oldest segment that are looked at in one turn: some tenths of a millisecond.
const LOOK_BYTES: usize = 128 << 10;

/// What is stored in one frame of all that is stored at once.
const FRAME_BYTES: usize = 1 << 20;

/// A log is tidied up once it is longer than what is true of it by this factor, and some segments.
const SLACK: u64 = 2;

/// The log of a running server.
#[derive(Debug)]
pub struct Log<D> {
    disk: D,
    durability: Durability,
    visibility: Visibility,
    /// Of how many hosts it is known on the disk, if that matters.
    hosts: Option<usize>,
    pool: PoolIdentity,
    epoch: u64,
    system: System,
    segment_bytes: u64,
    /// Numbers and lengths, oldest first; the last is written to.
    segments: VecDeque<(u64, u64)>,
    /// Bytes set aside for the last.
    room: u64,
    /// No segment could be begun.
    full: bool,
    /// How far the oldest segment was looked at.
    looked: u64,
    /// Bytes of it to be looked at, for those that were written since.
    owed: u64,
}

/// What a log is begun with.
#[derive(Debug)]
pub struct Beginning {
    /// The memory that the records are of.
    pub pool: PoolIdentity,
    /// The epoch that begins.
    pub epoch: u64,
    /// What it is written under.
    pub system: System,
    /// How much a crash may take.
    pub durability: Durability,
    /// How what one host writes reaches another. Where their caches may hold lines, it outlives the
    /// operating system in any case which hosts there are.
    pub visibility: Visibility,
}

impl<D: Disk> Log<D> {
    /// Goes on behind what was replayed, with a segment of its own. Whatever lies behind the last
    /// frame that was read is gone.
    pub fn begin(
        mut disk: D,
        replayed: &Replayed,
        beginning: Beginning,
        directory: &Directory,
    ) -> Result<Self, StoreError> {
        if let Some((last, len)) = replayed.segments.last() {
            disk.seal(*last, *len).map_err(StoreError::io("end a segment of"))?;
        }
        if beginning.durability == Durability::Fsync {
            // Those of a life that did not wait for the disk.
            let mut segments = replayed.segments.iter();
            let synced = segments.try_for_each(|(segment, _)| disk.sync(*segment));
            synced.map_err(StoreError::io("write back"))?;
        }
        for segment in &replayed.unfinished {
            disk.remove(*segment).map_err(StoreError::io("remove an unfinished segment of"))?;
        }
        let Beginning { pool, epoch, system, durability, visibility } = beginning;
        let bytes: u64 = pool.devices.iter().map(|device| device.bytes).sum();
        let segment_bytes = (bytes / 256).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end());
        let segments = replayed.segments.iter().copied().collect();
        let mut log = Self {
            disk,
            durability,
            visibility,
            hosts: (visibility == Visibility::CacheLine).then_some(0),
            pool,
            epoch,
            system,
            segment_bytes,
            segments,
            room: 0,
            full: false,
            looked: 0,
            owed: 0,
        };
        log.next_segment(directory).map_err(StoreError::io("begin a segment of"))?;
        Ok(log)
    }

    /// Whether there is no space for what the next turn may have to write.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// The length of all segments, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|(_, len)| len).sum()
    }

    /// Stores what a turn changed, after which there are so many hosts. When this is back, a crash
    /// takes no more than [`Durability`] says.
    pub fn append(&mut self, records: &[u8], hosts: usize) -> Result<(), StoreError> {
        self.append_frame(records)?;
        if self.hosts.is_some_and(|known| known < hosts) {
            self.sync()?;
            self.hosts = Some(hosts);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let current = self.segments.back();
        let synced = current.map_or(Ok(()), |(current, _)| self.disk.sync(*current));
        synced.map_err(StoreError::io("write back"))
    }

    fn append_frame(&mut self, records: &[u8]) -> Result<(), StoreError> {
        let mut frame = Vec::with_capacity(FRAME_HEADER + records.len());
        super::append_frame(records, &mut frame);
        self.write(&frame).map_err(StoreError::io("write to"))?;
        self.owed += frame.len() as u64 * SLACK;
        if self.durability == Durability::Fsync { self.sync() } else { Ok(()) }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some((current, len)) = self.segments.back_mut() else {
            return Err(ErrorKind::NotFound.into());
        };
        let end = *len + bytes.len() as u64;
        if end > self.room {
            self.disk.extend(*current, end)?;
            self.room = end;
        }
        self.disk.write(*current, *len, bytes)?;
        *len = end;
        Ok(())
    }

    /// Makes room for the next turn, and tidies up. To be called when all of the directory's records
    /// are appended.
    pub fn keep_up(&mut self, directory: &Directory) -> Result<(), StoreError> {
        if self.is_used_up() {
            match self.next_segment(directory) {
                Ok(()) => {
                    if std::mem::take(&mut self.full) {
                        tracing::info!("the store has room again: writes are accepted");
                    }
                }
                Err(error) if is_full(&error) => {
                    if !std::mem::replace(&mut self.full, true) {
                        let bytes = self.segment_bytes;
                        tracing::error!(
                            %error,
                            "the store is full: writes are refused until {bytes} bytes are free"
                        );
                    }
                }
                Err(source) => {
                    return Err(StoreError::Io { what: "begin a segment of", source });
                }
            }
        }
        if self.full { Ok(()) } else { self.tidy(directory) }
    }

    /// Whether the segment that is written to may not have room for another turn.
    fn is_used_up(&self) -> bool {
        let len = self.segments.back().map_or(0, |(_, len)| *len);
        self.room.saturating_sub(len) < TURN_BYTES + SPARE_BYTES
    }

    /// Begins a segment: all that is true, but for the chunks.
    fn next_segment(&mut self, directory: &Directory) -> io::Result<()> {
        let last = self.segments.back().copied();
        let number = last.map_or(1, |(number, _)| number + 1);
        let head = Head {
            number,
            epoch: self.epoch,
            pool: self.pool.clone(),
            system: self.system.clone(),
            fsync: self.durability == Durability::Fsync,
            visibility: self.visibility,
        };
        let mut bytes = MAGIC.to_vec();
        super::append_frame(&postcard::to_stdvec(&head).map_err(io::Error::other)?, &mut bytes);
        let checkpoint = directory.checkpoint();
        if !checkpoint.is_empty() {
            super::append_frame(&checkpoint, &mut bytes);
        }
        let room = bytes.len() as u64 + self.segment_bytes;
        self.disk.create(number, room)?;
        self.disk.write(number, 0, &bytes)?;
        if self.durability == Durability::Fsync || self.hosts.is_some() {
            self.disk.sync(number)?;
        }
        if let Some((last, len)) = last {
            self.disk.seal(last, len)?;
        }
        self.segments.push_back((number, bytes.len() as u64));
        self.room = room;
        Ok(())
    }

    /// Looks at a part of the oldest segment, the larger the more was written meanwhile, and writes
    /// what is still true of it again. So the log is never much longer than twice what is true, and
    /// nobody waits for that.
    fn tidy(&mut self, directory: &Directory) -> Result<(), StoreError> {
        let (Some((oldest, len)), true) = (self.segments.front().copied(), self.is_long(directory))
        else {
            self.owed = 0;
            return Ok(());
        };
        let begun = self.looked > 0;
        let from = if begun { self.looked } else { MAGIC.len() as u64 };
        let part = usize::try_from(self.owed).unwrap_or(LOOK_BYTES).min(LOOK_BYTES);
        let bytes = self.read_frames(oldest, from, part)?;
        let (mut done, mut still) = (0, Vec::new());
        while let Ok(Some((payload, frame))) = split_frame(&bytes[done..]) {
            // The first is the head.
            if begun || done > 0 {
                keep(payload, directory, &mut still);
            }
            done += frame;
        }
        self.looked = from + done as u64;
        self.owed = self.owed.saturating_sub(done as u64);
        if !still.is_empty() {
            let owed = self.owed;
            self.append_frame(&still)?;
            self.owed = owed;
        }
        let is_over = self.looked >= len;
        if !is_over && done == 0 {
            tracing::error!(segment = oldest, "the store is damaged: all chunks are stored again");
            self.append_all(directory)?;
        }
        if is_over || done == 0 {
            self.disk.remove(oldest).map_err(StoreError::io("remove a segment of"))?;
            self.segments.pop_front();
            self.looked = 0;
        }
        Ok(())
    }

    /// Stores all chunks, again or for the first time.
    pub(crate) fn append_all(&mut self, directory: &Directory) -> Result<(), StoreError> {
        let mut records = Vec::new();
        for (page, generation) in directory.chunks() {
            directory.append_stored(page, generation, &mut records);
            if records.len() > FRAME_BYTES {
                self.append_frame(&records)?;
                records.clear();
                if self.is_used_up() {
                    self.next_segment(directory).map_err(StoreError::io("begin a segment of"))?;
                }
            }
        }
        if records.is_empty() { Ok(()) } else { self.append_frame(&records) }
    }

    /// About `len` bytes of a segment; one frame at least.
    fn read_frames(&mut self, segment: u64, from: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let failed = || StoreError::io("read");
        let bytes = self.disk.read(segment, from, len.max(FRAME_HEADER)).map_err(failed())?;
        match bytes.first_chunk::<4>() {
            Some(first) if FRAME_HEADER + u32::from_le_bytes(*first) as usize > bytes.len() => {
                let frame = FRAME_HEADER + u32::from_le_bytes(*first) as usize;
                self.disk.read(segment, from, frame).map_err(failed())
            }
            _ => Ok(bytes),
        }
    }

    fn is_long(&self, directory: &Directory) -> bool {
        let enough = directory.record_bytes() * SLACK + self.segment_bytes * 2;
        self.segments.len() > 1 && self.bytes() > enough
    }

    /// Nothing comes behind this: waits until all of it would outlive the operating system.
    pub fn close(&mut self) -> Result<(), StoreError> {
        let mut segments = self.segments.iter();
        let synced = segments.try_for_each(|(segment, _)| self.disk.sync(*segment));
        synced.map_err(StoreError::io("write back"))
    }

    /// What lies below, for a look at it.
    pub fn disk(&mut self) -> &mut D {
        &mut self.disk
    }
}

/// Appends the chunks of these records that are still resident as they were.
fn keep(mut records: &[u8], directory: &Directory, still: &mut Vec<u8>) {
    while !records.is_empty() {
        match Record::take(&mut records) {
            Ok(Record::Stored { page, generation, .. }) => {
                directory.append_stored(page, generation, still);
            }
            Ok(_) => {}
            // It was read at the start, or written since: it was whole then.
            Err(_) => return,
        }
    }
}

/// Whether an error means that there is no space, and may be over when others make some.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
