//! A reserved range of addresses and what is mapped into it: the crate's system calls on memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

use rustix::io::{self, Errno};
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};
use rustix::process::{Pid, getpid};

use crate::guarded::{self, Fault};

/// How a range may be used by this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Loads only: a store faults.
    Read,
    /// Loads and stores.
    Write,
}

/// Addresses that nobody else in the process gets, with no memory behind them until [`Self::map`] or
/// [`Self::back`].
#[derive(Debug)]
pub(crate) struct AddressRange {
    base: NonNull<u8>,
    len: usize,
    owner: Pid,
}

// SAFETY: it is an address and a length; all methods are system calls, which may run on any thread.
unsafe impl Send for AddressRange {}
// SAFETY: as above; methods that would pull memory from under a reference are `unsafe` themselves.
unsafe impl Sync for AddressRange {}

impl AddressRange {
    /// Reserves `len` bytes from a multiple of `alignment`; both multiples of the page size.
    pub(crate) fn reserve(len: u64, alignment: u64) -> io::Result<Self> {
        let whole = len.checked_add(alignment).ok_or(Errno::INVAL)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, at an address of the kernel's choice, touches nothing that exists.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), to_usize(whole), ProtFlags::empty(), flags)? };
        let start = start.cast::<u8>();
        let (len, alignment) = (to_usize(len), to_usize(alignment));
        let before = start.addr().next_multiple_of(alignment) - start.addr();
        let after = alignment - before;
        // SAFETY: `before + len + after` is what was mapped just now; the two ends are given back,
        // and no pointer to them was handed out.
        unsafe {
            if before > 0 {
                munmap(start.cast(), before)?;
            }
            if after > 0 {
                munmap(start.add(before + len).cast(), after)?;
            }
        }
        // SAFETY: `before` is less than what was mapped.
        let base = unsafe { NonNull::new_unchecked(start.add(before)) };
        Ok(Self { base, len, owner: getpid() })
    }

    /// `len` bytes of private memory, a multiple of 2 MiB, from the huge pages that the host has set
    /// aside.
    pub(crate) fn huge_pages(len: u64) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        let len = to_usize(len);
        // SAFETY: as in `reserve`.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, flags)? };
        let base = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len, owner: getpid() })
    }

    /// Lets a part have private memory, zero at first, which comes in as it is touched. Only for
    /// ranges that nothing is mapped into.
    pub(crate) fn back(&self, offset: u64, len: u64) -> io::Result<()> {
        let at = self.part(offset, len);
        let protection = MprotectFlags::READ | MprotectFlags::WRITE;
        // Not `mmap`: one that fails may leave a hole, which others could get.
        // SAFETY: the part is ours, and what could be done with it before still can.
        unsafe { mprotect(at.cast(), to_usize(len), protection) }
    }

    /// Maps the first `len` bytes of `file` at `offset` of this range, in place of what is there.
    ///
    /// # Safety
    /// Nothing refers to `offset..offset + len` of this range.
    pub(crate) unsafe fn map(
        &self,
        file: &File,
        offset: u64,
        len: u64,
        view: View,
    ) -> io::Result<()> {
        let at = self.part(offset, len);
        let protection = match view {
            View::Read => ProtFlags::READ,
            View::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the part is in this range, which is ours, and unused, as the caller promises.
        unsafe { mmap(at.cast(), to_usize(len), protection, flags, file.as_fd(), 0)? };
        Ok(())
    }

    /// Takes the memory away again; the addresses stay reserved.
    ///
    /// # Safety
    /// Nothing refers to `offset..offset + len` of this range.
    pub(crate) unsafe fn unmap(&self, offset: u64, len: u64) -> io::Result<()> {
        let at = self.part(offset, len);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as in `map`.
        unsafe { mmap_anonymous(at.cast(), to_usize(len), ProtFlags::empty(), flags)? };
        Ok(())
    }

    /// Keeps a mapped part out of forked children.
    pub(crate) fn keep_from_children(&self, offset: u64, len: u64) -> io::Result<()> {
        self.advise(offset, len, Advice::LinuxDontFork)
    }

    /// Asks for huge pages in a mapped part. Only speed hangs on it, and not every kind of memory
    /// knows the request, so a refusal is no error.
    pub(crate) fn prefer_huge_pages(&self, offset: u64, len: u64) {
        let _ = self.advise(offset, len, Advice::LinuxHugepage);
    }

    /// Brings a mapped part in, as loads (or stores of what is there) to every page would.
    pub(crate) fn populate(&self, offset: u64, len: u64, view: View) -> io::Result<()> {
        let advice = match view {
            View::Read => Advice::LinuxPopulateRead,
            View::Write => Advice::LinuxPopulateWrite,
        };
        self.advise(offset, len, advice)
    }

    fn advise(&self, offset: u64, len: u64, advice: Advice) -> io::Result<()> {
        let at = self.part(offset, len);
        // SAFETY: the part is ours, and none of the three kinds of advice above changes contents.
        unsafe { madvise(at.cast(), to_usize(len), advice)? };
        Ok(())
    }

    /// The address of `offset`, which is checked, as is that `len` bytes follow in the range.
    pub(crate) fn part(&self, offset: u64, len: u64) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len()), "{offset}+{len} is outside {self:?}");
        // SAFETY: just checked: it stays within the one mapping.
        unsafe { self.base.as_ptr().add(to_usize(offset)) }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }
}

impl Drop for AddressRange {
    fn drop(&mut self) {
        // A forked child did not get the writable devices: other mappings may lie there by now.
        if getpid() == self.owner {
            // SAFETY: the range is ours, and whoever holds references into it keeps `self` alive.
            // The call fails for no valid range, and there is nobody to tell.
            let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}

/// Reads the first `N` bytes of a device; `map_len` is a length that it can be mapped with. Through
/// a mapping, since DAX devices have no `read`. What another host wrote with [`write_first`] is seen,
/// coherent memory or not.
pub(crate) fn read_first<const N: usize>(file: &File, map_len: u64) -> io::Result<[u8; N]> {
    assert!(N as u64 <= map_len);
    let range = AddressRange::reserve(map_len, map_len)?;
    // SAFETY: the range is new.
    unsafe { range.map(file, 0, map_len, View::Read)? };
    let (first, mut bytes) = (range.part(0, map_len), [0; N]);
    guarded::install();
    // SAFETY: `N` bytes are mapped; they are copied, so nothing hangs on what other processes do.
    let copied = unsafe {
        guarded::invalidate(first, N).and_then(|()| guarded::copy(bytes.as_mut_ptr(), first, N))
    };
    copied.map_err(errno_of).and(Ok(bytes))
}

/// Writes the first bytes of a device, with the same `map_len` as [`read_first`].
pub(crate) fn write_first(file: &File, map_len: u64, bytes: &[u8]) -> io::Result<()> {
    assert!(bytes.len() as u64 <= map_len);
    let range = AddressRange::reserve(map_len, map_len)?;
    // SAFETY: the range is new.
    unsafe { range.map(file, 0, map_len, View::Write)? };
    let (first, len) = (range.part(0, map_len), bytes.len());
    guarded::install();
    // SAFETY: `len` bytes are mapped writable, and no one has a reference to them.
    let copied = unsafe {
        guarded::copy(first, bytes.as_ptr(), len).and_then(|()| guarded::write_back(first, len))
    };
    copied.map_err(errno_of)
}

/// What a system call would have said.
const fn errno_of(fault: Fault) -> Errno {
    if fault.damaged { Errno::HWPOISON } else { Errno::NXIO }
}

/// Every length here is below the size of a mapping, and addresses have 64 bits (see lib.rs).
pub(crate) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("usize has 64 bits")
}
