//! Reading a log again.

use maru_directory::{Record, Recovery};

use super::{Disk, Flaw, Head, MAGIC, StoreError, split_frame};

/// How far reading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Replayed {
    /// The segments, oldest first, and how long each is.
    pub segments: Vec<(u64, u64)>,
    /// Segments that were being begun when the server ended; nothing is in them.
    pub unfinished: Vec<u64>,
    /// Bytes behind the last whole frame: what a turn had begun to write, and nobody knows of.
    pub torn_bytes: u64,
    /// What could not be read, where that was asked to be passed over.
    pub problems: Vec<StoreError>,
}

/// The head of the newest segment that has one: what the store is of. `None` if nothing was stored.
pub fn head(disk: &mut impl Disk) -> Result<Option<Head>, StoreError> {
    let segments = disk.list().map_err(StoreError::io("list the segments of"))?;
    let mut flaw = None;
    for (segment, len) in segments.into_iter().rev() {
        // A head is a line or two for each device.
        let bytes = disk.read(segment, 0, 1 << 20).map_err(StoreError::io("read"))?;
        match split_head(&bytes) {
            Ok((head, _)) => return Ok(Some(head)),
            Err(why) => flaw = Some((segment, len, why)),
        }
    }
    match flaw {
        // One that was being begun when the first server of this pool was killed.
        Some((1, _, _)) | None => Ok(None),
        Some((segment, _, why)) => Err(StoreError::Corrupt { segment, offset: 0, why }),
    }
}

/// Reads all segments, oldest first. `tolerant`: passes over what makes no sense, and tells of it.
pub fn replay(
    disk: &mut impl Disk,
    recovery: &mut Recovery,
    tolerant: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Replayed, StoreError> {
    let listed = disk.list().map_err(StoreError::io("list the segments of"))?;
    let total = listed.values().sum();
    let mut done = 0;
    let mut replayed = Replayed::default();
    let last = listed.keys().next_back().copied();
    for (segment, len) in listed {
        let bytes = read_all(disk, segment, len)?;
        let is_last = Some(segment) == last;
        match read_segment(segment, &bytes, &mut replayed, recovery, tolerant) {
            Ok(end) => replayed.segments.push((segment, end as u64)),
            // What comes behind a crash, of the segment that was written to.
            Err(Stopped { at: 0, .. }) if is_last => replayed.unfinished.push(segment),
            Err(Stopped { at, why: StoreError::Corrupt { why, .. } }) if is_last && torn(&why) => {
                replayed.segments.push((segment, at as u64));
                replayed.torn_bytes = (bytes.len() - at) as u64;
            }
            Err(Stopped { at, why }) if tolerant => {
                replayed.segments.push((segment, at as u64));
                replayed.problems.push(why);
            }
            Err(Stopped { why, .. }) => return Err(why),
        }
        done += len;
        progress(Progress { done, total });
    }
    Ok(replayed)
}

/// Whether it can come of a write that was cut off.
fn torn(why: &Flaw) -> bool {
    matches!(why, Flaw::CutOff | Flaw::Checksum)
}

fn read_all(disk: &mut impl Disk, segment: u64, len: u64) -> Result<Vec<u8>, StoreError> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    disk.read(segment, 0, len).map_err(StoreError::io("read"))
}

/// Where reading a segment came to a stop, and why.
struct Stopped {
    at: usize,
    why: StoreError,
}

fn split_head(bytes: &[u8]) -> Result<(Head, usize), Flaw> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(Flaw::Magic)?;
    let (payload, len) = split_frame(rest)?.ok_or(Flaw::CutOff)?;
    let head = postcard::from_bytes(payload);
    let head = head.map_err(|error| Flaw::Unreadable(error.to_string()))?;
    Ok((head, MAGIC.len() + len))
}

/// Returns where it ends.
fn read_segment(
    segment: u64,
    bytes: &[u8],
    replayed: &mut Replayed,
    recovery: &mut Recovery,
    tolerant: bool,
) -> Result<usize, Stopped> {
    let corrupt = |at: usize, why| Stopped {
        at,
        why: StoreError::Corrupt { segment, offset: at as u64, why },
    };
    let (head, mut at) = split_head(bytes).map_err(|why| corrupt(0, why))?;
    let follows = replayed.segments.last().is_none_or(|(before, _)| before + 1 == segment);
    if head.number != segment || !follows {
        let why = StoreError::Sequence { segment };
        if !tolerant {
            return Err(Stopped { at, why });
        }
        replayed.problems.push(why);
    }
    while let Some((mut payload, len)) =
        split_frame(&bytes[at..]).map_err(|why| corrupt(at, why))?
    {
        while !payload.is_empty() {
            let record = Record::take(&mut payload);
            let unreadable = |error: postcard::Error| Flaw::Unreadable(error.to_string());
            let record = record.map_err(|error| corrupt(at, unreadable(error)))?;
            if let Err(error) = recovery.replay(record) {
                let why = StoreError::Records(error);
                if !tolerant {
                    return Err(Stopped { at, why });
                }
                replayed.problems.push(why);
            }
        }
        at += len;
    }
    Ok(at)
}
