//! Reading a log again.

use maru_directory::{Record, Recovery};

use super::{Disk, FRAME_HEADER, Flaw, Head, MAGIC, StoreError, split_frame};

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
    /// Segments to be removed: they were being begun when the server ended, and nothing is in them.
    pub unfinished: Vec<u64>,
    /// Bytes behind the last whole frame: what a turn had begun to write, and nobody knows of.
    pub torn_bytes: u64,
    /// What could not be read, where that was asked to be passed over.
    pub problems: Vec<StoreError>,
}

impl Replayed {
    /// Of a disk on which nothing is of use.
    pub(crate) fn nothing(disk: &mut impl Disk) -> Result<Self, StoreError> {
        let segments = disk.list().map_err(StoreError::io("list the segments of"))?;
        Ok(Self { unfinished: segments.into_keys().collect(), ..Self::default() })
    }

    /// Has all segments be removed before another is begun.
    pub(crate) fn discard(&mut self) {
        self.unfinished.extend(self.segments.drain(..).map(|(segment, _)| segment));
        self.unfinished.sort_unstable();
    }
}

/// The head of the newest segment that has one: what the store is of. `None` if nothing was stored, or
/// nothing of it was on the disk when the operating system came down.
pub fn head(disk: &mut impl Disk) -> Result<Option<Head>, StoreError> {
    let segments = disk.list().map_err(StoreError::io("list the segments of"))?;
    let is_alone = segments.len() == 1;
    let mut flaw = None;
    for segment in segments.into_keys().rev() {
        // A head is a line or two for each device.
        let bytes = disk.read(segment, 0, 1 << 20).map_err(StoreError::io("read"))?;
        match split_head(&bytes) {
            Ok((head, _)) => return Ok(Some(head)),
            Err(_) if bytes.iter().take(MAGIC.len()).all(|byte| *byte == 0) => {}
            // The one that was being begun when the first server of this pool was killed.
            Err(_) if is_alone && segment == 1 && !holds_a_frame(&bytes) => {}
            Err(why) => flaw = Some((segment, why)),
        }
    }
    match flaw {
        None => Ok(None),
        Some((segment, why)) => Err(StoreError::Corrupt { segment, offset: 0, why }),
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
            // What comes of a crash, of the segment that was written to: its last write is cut off.
            Err(Stopped { at, why: StoreError::Corrupt { why, .. } })
                if is_last && why.may_be_torn() && !holds_a_frame(&bytes[at..]) =>
            {
                if at == 0 {
                    replayed.unfinished.push(segment);
                } else {
                    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                    replayed.segments.push((segment, at as u64));
                    replayed.torn_bytes = end.saturating_sub(at) as u64;
                }
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

/// Whether a whole frame begins somewhere in `bytes`, but not with them. Looks for small ones: most
/// are, and nearly everything else is not taken for one at once.
fn holds_a_frame(bytes: &[u8]) -> bool {
    (1..bytes.len()).any(|at| {
        let rest = &bytes[at..];
        let small = rest.first_chunk().is_some_and(|len| u32::from_le_bytes(*len) < 64 << 10);
        small && matches!(split_frame(rest), Ok(Some(_)))
    })
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
    loop {
        let rest = &bytes[at..];
        let (mut payload, len) = match (split_frame(rest), rest.first_chunk()) {
            (Ok(Some(frame)), _) => frame,
            (Ok(None), _) if rest.iter().all(|byte| *byte == 0) => break,
            (Ok(None), _) => return Err(corrupt(at, Flaw::CutOff)),
            // Its length may still be right.
            (Err(why @ Flaw::Checksum), Some(len)) if tolerant && holds_a_frame(rest) => {
                replayed.problems.push(corrupt(at, why).why);
                at += FRAME_HEADER + u32::from_le_bytes(*len) as usize;
                continue;
            }
            (Err(why), _) => return Err(corrupt(at, why)),
        };
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
