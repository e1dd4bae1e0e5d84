//! Private memory of this process, out of which blocks are handed.
//!
//! An arena is one range of addresses, reserved whole at the start and given memory as it fills, so
//! that a large limit costs nothing until it is needed, and no block ever moves. It is for a cache
//! that nobody else sees; what is shared is in a [`PoolMapping`](crate::PoolMapping).
//!
//! # Why these slices are sound
//!
//! The memory is private, so no other process sees or changes it. Within this one, an extent is in
//! the free list or belongs to one [`BlockMut`] or [`Block`], which gives it back when dropped and
//! not before; neither can be cloned. Both keep the arena mapped. Memory only ever is added, and
//! reads as zero until it is written, so no byte is uninitialised.
#![allow(unsafe_code)]

use std::fmt;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::error::ArenaError;
use crate::free_list::FreeList;
use crate::host::Host;
use crate::populate::bring_in;
use crate::range::{AddressRange, to_usize};

/// Huge pages of x86-64 and of arm64 with small pages: what the arena starts at, and grows by, a
/// multiple of.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// The least that an arena grows by, so that a small one does not grow at every block.
const LEAST_GROWTH_BYTES: u64 = 64 << 20;

/// How large an arena is, and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaConfig {
    /// The limit in bytes: rounded down to `align_bytes`, with huge pages up to 2 MiB before.
    pub bytes: u64,
    /// What has its memory from the start, in bytes; the rest gets it when it is needed. Rounded up
    /// to 2 MiB, and no more than `bytes`. Huge pages are all taken at the start.
    pub initial_bytes: u64,
    /// Blocks start at multiples of this and take up whole ones: a power of two up to 2 MiB.
    pub align_bytes: u64,
    /// Take the huge pages of 2 MiB that the host has set aside. Otherwise it is ordinary memory,
    /// with transparent huge pages where the kernel has them.
    pub huge_pages: bool,
}

/// A range of private memory and what of it is free.
///
/// It stays mapped until the last handle and block is gone. After a `fork`, only the parent may use
/// it.
pub struct Arena {
    range: AddressRange,
    bytes: u64,
    align_bytes: u64,
    free_list: Mutex<FreeList>,
}

impl Arena {
    /// Reserves the addresses and brings in the initial memory, on all cores.
    pub fn new(config: &ArenaConfig) -> Result<Arc<Self>, ArenaError> {
        let align_bytes = config.align_bytes;
        if !align_bytes.is_power_of_two() || align_bytes > HUGE_PAGE_BYTES {
            return Err(ArenaError::Alignment { align_bytes });
        }
        let page = if config.huge_pages { HUGE_PAGE_BYTES } else { page_bytes() };
        let too_large = || ArenaError::Reserve { bytes: config.bytes, source: Errno::NOMEM.into() };
        let mapped = config.bytes.checked_next_multiple_of(page).ok_or_else(too_large)?;
        let bytes = if config.huge_pages { mapped } else { config.bytes };
        let bytes = bytes - bytes % align_bytes;
        if bytes == 0 {
            return Err(ArenaError::TooSmall { bytes: config.bytes, align_bytes });
        }
        let range = if config.huge_pages {
            AddressRange::huge_pages(mapped)
                .map_err(|errno| no_huge_pages(&Host::default(), errno, mapped))
        } else {
            AddressRange::reserve(mapped, HUGE_PAGE_BYTES)
                .map_err(|errno| ArenaError::Reserve { bytes, source: errno.into() })
        }?;
        let fail = |bytes| move |errno: Errno| ArenaError::Memory { bytes, source: errno.into() };
        // A child that inherited it would make each of the parent's first stores afterwards a copy,
        // and huge pages have none to spare for that.
        range.keep_from_children(0, mapped).map_err(fail(bytes))?;
        let initial = if config.huge_pages {
            bytes
        } else {
            range.prefer_huge_pages(0, mapped);
            round_up(config.initial_bytes.min(bytes), HUGE_PAGE_BYTES).min(bytes)
        };
        let arena = Self { range, bytes, align_bytes, free_list: Mutex::default() };
        if initial > 0 {
            if !config.huge_pages {
                arena.back(0, initial).map_err(fail(initial))?;
            }
            bring_in(&arena.range, round_up(initial, page)).map_err(fail(initial))?;
            arena.free_list().grow(initial);
        }
        Ok(Arc::new(arena))
    }

    /// `count` blocks of `len` bytes, or nothing if not all of them fit. They start at multiples of
    /// the alignment and take up whole ones, at least one.
    ///
    /// What is in them is undefined: zeros, or what an earlier block has left.
    pub fn allocate(self: &Arc<Self>, len: u64, count: usize) -> Option<Vec<BlockMut>> {
        let whole = len.max(1).checked_next_multiple_of(self.align_bytes)?;
        let mut free_list = self.free_list();
        let offsets = match free_list.take(whole, count) {
            Ok(offsets) => offsets,
            Err(missing) => {
                self.grow(&mut free_list, missing)?;
                free_list.take(whole, count).ok()?
            }
        };
        // Blocks that are dropped take the lock.
        drop(free_list);
        let block = |offset| BlockMut(Extent { arena: Arc::clone(self), offset, len, whole });
        Some(offsets.into_iter().map(block).collect())
    }

    /// Bytes that blocks take up, in whole alignments.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.free_list().used()
    }

    /// Bytes that can be used so far, without growing. Those beyond the initial ones get their
    /// memory as they are first touched.
    #[must_use]
    pub fn grown_bytes(&self) -> u64 {
        self.free_list().grown()
    }

    /// The limit in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What offsets of blocks are multiples of, in bytes.
    #[must_use]
    pub fn align_bytes(&self) -> u64 {
        self.align_bytes
    }

    /// Where it starts, at a multiple of 2 MiB: a block is its offset behind it. For registering
    /// the memory with a GPU or a network adapter; only the first [`Self::grown_bytes`] are there.
    #[must_use]
    pub fn base(&self) -> *const u8 {
        self.range.part(0, 0)
    }

    /// Whether the bookkeeping is consistent: free extents are sorted, apart and inside, and free
    /// and used bytes make up the grown ones. For tests and monitoring; it looks at each extent.
    #[must_use]
    pub fn check(&self) -> bool {
        let free_list = self.free_list();
        free_list.check() && free_list.grown() <= self.bytes
    }

    /// Grows by at least `missing` bytes, and by as much as there is already: few steps make any
    /// size. `None` if the limit or the kernel does not let it.
    fn grow(&self, free_list: &mut FreeList, missing: u64) -> Option<()> {
        let grown = free_list.grown();
        let room = self.bytes - grown;
        if missing > room {
            return None;
        }
        let step = |bytes: u64| round_up(bytes, HUGE_PAGE_BYTES).min(room);
        let steps = [step(missing.max(grown).max(LEAST_GROWTH_BYTES)), step(missing)];
        let added = steps.into_iter().find(|len| self.back(grown, *len).is_ok())?;
        free_list.grow(added);
        Some(())
    }

    fn back(&self, offset: u64, len: u64) -> rustix::io::Result<()> {
        // Only the limit may end within a page, and the range was reserved to the end of that.
        self.range.back(offset, round_up(len, page_bytes()))
    }

    fn free_list(&self) -> MutexGuard<'_, FreeList> {
        self.free_list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free_list = self.free_list();
        let (used, grown) = (free_list.used(), free_list.grown());
        write!(f, "Arena({used:#x} of {grown:#x} of {:#x} used)", self.bytes)
    }
}

/// Rounds up what is far below 2^64: sizes of mappings.
fn round_up(bytes: u64, multiple: u64) -> u64 {
    bytes.next_multiple_of(multiple)
}

fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

fn no_huge_pages(host: &Host, errno: Errno, bytes: u64) -> ArenaError {
    if errno != Errno::NOMEM {
        return ArenaError::HugePages { source: errno.into() };
    }
    // A host that does not tell has none.
    let count = |which| host.huge_pages(HUGE_PAGE_BYTES, which).unwrap_or(0);
    let needed = bytes / HUGE_PAGE_BYTES;
    // Those that are free but promised to another mapping are not to be had.
    let free = count("free_hugepages").saturating_sub(count("resv_hugepages"));
    let total = count("nr_hugepages") + needed.saturating_sub(free);
    ArenaError::TooFewHugePages { needed, free, total }
}

/// What a block owns.
struct Extent {
    arena: Arc<Arena>,
    offset: u64,
    len: u64,
    /// `len` in whole alignments.
    whole: u64,
}

impl Extent {
    fn ptr(&self) -> *mut u8 {
        self.arena.range.part(self.offset, self.len)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        self.arena.free_list().give(self.offset, self.whole);
    }
}

/// A block of an arena to fill. Its memory is given back when it is dropped.
pub struct BlockMut(Extent);

impl BlockMut {
    /// The bytes. Until they are written they are undefined: zeros, or what an earlier block has
    /// left.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the part has memory for as long as the arena lives, which the extent keeps; it is
        // this block's alone, which is borrowed exclusively (see the module documentation).
        unsafe { slice::from_raw_parts_mut(self.0.ptr(), to_usize(self.0.len)) }
    }

    /// Its length in bytes, as asked for.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "nobody has a use for an empty block")]
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Where it is in the arena, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Ends the writing: from now on it is only read.
    #[must_use]
    pub fn freeze(self) -> Block {
        Block(self.0)
    }
}

impl fmt::Debug for BlockMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockMut({:#x}+{:#x})", self.0.offset, self.0.len)
    }
}

/// A block of an arena to read. Its memory is given back when it is dropped.
pub struct Block(Extent);

impl Block {
    /// The bytes, where they are: nothing is copied.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as in `BlockMut::bytes_mut`; nothing writes to a frozen block.
        unsafe { slice::from_raw_parts(self.0.ptr(), to_usize(self.0.len)) }
    }

    /// Its length in bytes, as asked for.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "nobody has a use for an empty block")]
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Where it is in the arena, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.offset
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:#x}+{:#x})", self.0.offset, self.0.len)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_shortage_of_huge_pages_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host { sys: dir.path().to_owned(), meminfo: dir.path().join("meminfo") };
        let shortage = || match no_huge_pages(&host, Errno::NOMEM, 64 << 20) {
            ArenaError::TooFewHugePages { needed, free, total } => (needed, free, total),
            other => panic!("{other}"),
        };
        assert_eq!(shortage(), (32, 0, 32));

        let pages = dir.path().join("kernel/mm/hugepages/hugepages-2048kB");
        fs::create_dir_all(&pages).unwrap();
        for (count, value) in [("nr_hugepages", 100), ("free_hugepages", 12), ("resv_hugepages", 2)]
        {
            fs::write(pages.join(count), format!("{value}\n")).unwrap();
        }
        assert_eq!(shortage(), (32, 10, 122));

        let error = no_huge_pages(&host, Errno::INVAL, 64 << 20);
        assert!(matches!(error, ArenaError::HugePages { .. }), "{error}");
    }
}
