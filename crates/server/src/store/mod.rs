//! What outlives the server: a log of records in segments.
//!
//! A log of our own, since the stores that are well kept are built for more than it takes here, and
//! are an order of magnitude slower at this (docs/performance.md has the figures): memory is the
//! truth, and the log is read once in the life of a server.
//!
//! ```text
//! segment   "MARULOG1", then frames to its end; numbered in the order in which they were begun
//! frame     u32 length, u64 checksum of the payload (both little-endian), payload
//! payload   in the first frame of a segment a head; in the second the state without the chunks, as
//!           records; in all others what one turn of the server changed, as records
//! ```
//!
//! A turn is one frame, so after a crash it is there whole, or not at all. A segment has its memory
//! before it is begun: what is refused for lack of space is refused before anything is done. Segments
//! are removed oldest first, after what is still true of them was written again at the end; each
//! begins with everything but the chunks, so nothing else is lost with those before it.

mod disk;
mod log;
mod replay;

use std::fmt;
use std::io;

use maru_directory::{Geometry, RecoveryError};
use maru_memory::checksum;
use maru_protocol::{Device, Topology, Visibility};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use disk::{Disk, FileDisk};
pub use log::{Beginning, Log};
pub use replay::{Progress, Replayed, head, replay};

/// How much a crash may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// What is acknowledged outlives the server's process: it is with the operating system.
    #[default]
    Process,
    /// It outlives a power failure: it is on the disk. Each write waits for that.
    Fsync,
    /// Nothing outlives the server.
    None,
}

/// What a segment begins with: whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The segment's number.
    pub number: u64,
    /// The epoch it was begun in.
    pub epoch: u64,
    /// The memory that the records are of.
    pub pool: PoolIdentity,
    /// What it was written under.
    pub system: System,
    /// Whether what was acknowledged outlives the operating system.
    pub fsync: bool,
    /// How what one host wrote reached another.
    pub visibility: Visibility,
}

impl Head {
    /// Whether what was told last may be missing: the operating system came down, and did not wait for
    /// the disk. `may_be_written`: the pool was being served.
    pub(crate) fn is_behind(&self, system: &System, may_be_written: bool) -> bool {
        may_be_written && !self.fsync && self.system.boot != system.boot
    }
}

/// The operating system that a server runs under.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Tells its runs apart: what was not on the disk when it came down is lost.
    pub boot: String,
    /// The PID namespace, in which numbers of processes mean what they mean.
    pub processes: String,
}

/// The memory of a pool, for a store to know it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolIdentity {
    /// The devices, by offset.
    pub devices: Vec<DeviceIdentity>,
    /// The size of a region in bytes.
    pub region_bytes: u64,
}

impl PoolIdentity {
    /// Of a pool that is laid out so.
    #[must_use]
    pub fn new(topology: &Topology, geometry: &Geometry) -> Self {
        let devices = topology.devices.iter();
        let identity = |device: &Device| DeviceIdentity {
            uuid: device.uuid,
            offset: device.offset,
            bytes: device.bytes,
        };
        Self { devices: devices.map(identity).collect(), region_bytes: geometry.region_bytes }
    }
}

/// One device of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// Its name.
    pub uuid: Uuid,
    /// Where it begins in the pool's address range, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system said no.
    #[error("cannot {what} the store: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A segment is not what a server wrote.
    #[error("segment {segment} of the store is corrupt at byte {offset}: {why}")]
    Corrupt {
        /// Its number.
        segment: u64,
        /// Where.
        offset: u64,
        /// What is wrong.
        why: Flaw,
    },
    /// The segments are not of one pool, or one is missing between others.
    #[error("segment {segment} of the store does not follow the one before it")]
    Sequence {
        /// Its number.
        segment: u64,
    },
    /// The records make no directory.
    #[error("the store's records make no sense: {0}")]
    Records(#[from] RecoveryError),
}

/// What is wrong with a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// It does not begin as a segment does.
    Magic,
    /// It ends in the middle of a frame.
    CutOff,
    /// A frame's checksum does not match.
    Checksum,
    /// A head or a record cannot be read.
    Unreadable(String),
}

impl Flaw {
    /// Whether a write that was cut off leaves it.
    const fn may_be_torn(&self) -> bool {
        !matches!(self, Self::Unreadable(_))
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("it does not begin as a segment does"),
            Self::CutOff => f.write_str("it ends in the middle of a frame"),
            Self::Checksum => f.write_str("a frame's checksum does not match"),
            Self::Unreadable(error) => write!(f, "what it holds cannot be read ({error})"),
        }
    }
}

impl StoreError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

const MAGIC: [u8; 8] = *b"MARULOG1";

/// A frame's length and checksum.
const FRAME_HEADER: usize = 12;

/// Appends a frame with this payload.
fn append_frame(payload: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(payload.len()).expect("a turn is far below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&checksum(payload).to_le_bytes());
    out.extend_from_slice(payload);
}

/// The payload of the first frame in `bytes`, and its length with all; `None` at a clean end.
fn split_frame(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Flaw> {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER>() else {
        return if bytes.iter().all(|byte| *byte == 0) { Ok(None) } else { Err(Flaw::CutOff) };
    };
    let [l0, l1, l2, l3, sum @ ..] = *header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len == 0 {
        // Room that was not written to. No frame is empty.
        return Ok(None);
    }
    let payload = rest.get(..len).ok_or(Flaw::CutOff)?;
    if checksum(payload) != u64::from_le_bytes(sum) {
        return Err(Flaw::Checksum);
    }
    Ok(Some((payload, FRAME_HEADER + len)))
}
