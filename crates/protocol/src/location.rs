//! Where a chunk lies.

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// Names one region of the pool for as long as the server lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegionId(pub u32);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One use of a page. Each grant of a page gets a number that no other grant in the pool ever had,
/// so a handle from an earlier use can be told from the present one (rule 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// All pages start and end on this boundary, in bytes: no cache line or memory page has two owners,
/// and direct I/O from a page works.
pub const PAGE_ALIGN: u64 = 4096;

/// Names one grant of one page, whoever holds it: a reservation or a resident entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Handle {
    /// The region the page lies in.
    pub region: RegionId,
    /// Where the page begins, in bytes from the start of the pool's address range.
    pub offset: u64,
    /// Which grant of the page.
    pub generation: Generation,
}

/// Where a chunk lies: a [`Handle`] and how many bytes of the page are the chunk's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Location {
    /// The page.
    pub handle: Handle,
    /// The chunk's length in bytes; at most the page's.
    pub length: u64,
}

impl Location {
    /// The location of `length` bytes at `handle`.
    #[must_use]
    pub const fn new(handle: Handle, length: u64) -> Self {
        Self { handle, length }
    }

    /// Where the chunk begins, in bytes from the start of the pool's address range.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.handle.offset
    }

    /// Which grant of the page.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.handle.generation
    }
}

/// A resident chunk, with what a reader must know before it loads the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Chunk {
    /// Where it lies.
    pub location: Location,
    /// Its checksum, if its writer made one.
    pub checksum: Option<Checksum>,
    /// It was written on another host than the reader's: where hosts are not coherent, the reader
    /// invalidates its lines first.
    pub foreign: bool,
}

/// A checksum of a chunk's bytes. Which function makes it is for writers and readers to agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Checksum(NonZeroU64);

impl Checksum {
    /// The checksum whose function gave `hash`; 0 counts as 1, so that an absent one takes no room.
    #[must_use]
    pub const fn new(hash: u64) -> Self {
        match NonZeroU64::new(hash) {
            Some(hash) => Self(hash),
            None => Self(NonZeroU64::MIN),
        }
    }
}
