//! A pool as one range of addresses, and the pages that are handed out of it.
//!
//! Every device is mapped whole, twice: into a read-only view, from which [`PageView`]s come, and
//! into a writable view, from which [`PageMut`]s come. Both lay the devices out by pool offset, so
//! a page is `base + offset` in either. A stray store through a reader's pointer faults instead of
//! changing somebody else's page. The writable view is kept out of forked children: one that lived
//! on would write under a session that the directory thinks ended with its parent.
//!
//! # Why these slices are sound
//!
//! `&[u8]` promises that the bytes do not change, `&mut [u8]` that nobody else looks, and other
//! processes map the same memory. What upholds the promises is the directory, by its rules:
//!
//! * a page is free, reserved by one session, or resident under one key (rule 1), and a key
//!   resolves only after its writer is done with the page (rule 2): nobody reads what is being
//!   written;
//! * a pinned page is neither freed nor granted again, whoever asks (rule 3): nobody writes what is
//!   being read;
//! * a page whose writer vanished is not granted before that writer is known to be gone (rule 7).
//!
//! So [`PoolMapping::read`] is for pages that the caller has pinned, for as long as the view lives,
//! and [`PoolMapping::write`] for pages that it has reserved, until it commits. Within one process
//! the mapping itself refuses a second [`PageMut`] over bytes that have one, so a mistake there is
//! an error. It does not watch readers: that would cost two table updates a read. What remains is
//! a caller that reads without a pin, or a process with write access to the memory that does not
//! follow the protocol; against the latter no file mapping has a defence.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use crate::Device;
use crate::error::MappingError;
use crate::extents::Extents;
use crate::header::DATA_START;
use crate::range::{AddressRange, View, to_usize};

/// Both views start at a multiple of this, the largest alignment that DAX devices and huge pages
/// have on x86-64. Addresses cost nothing.
const BASE_ALIGNMENT: u64 = 1 << 30;

/// Devices start at multiples of this at least, so that huge pages can map them.
const DEVICE_ALIGNMENT: u64 = 2 << 20;

/// All devices of a pool in one range of addresses, read-only and writable.
///
/// Devices can be added at any time; they stay mapped until the last handle, view and page is gone.
/// After a `fork`, only the parent may use it.
#[derive(Debug)]
pub struct PoolMapping {
    read: AddressRange,
    write: AddressRange,
    devices: RwLock<Extents>,
    writable: Mutex<Extents>,
}

impl PoolMapping {
    /// Reserves two ranges of `address_space_bytes`, rounded up to 2 MiB, without any memory. They
    /// cannot grow, so they should be as large as the pool may ever become; 1 TiB costs nothing.
    pub fn new(address_space_bytes: u64) -> Result<Self, MappingError> {
        let too_large = io::ErrorKind::InvalidInput;
        let fail = |source| MappingError::Reserve { bytes: address_space_bytes, source };
        let bytes = address_space_bytes.max(1).checked_next_multiple_of(DEVICE_ALIGNMENT);
        let bytes = bytes.ok_or_else(|| fail(too_large.into()))?;
        let reserve = || AddressRange::reserve(bytes, BASE_ALIGNMENT).map_err(|e| fail(e.into()));
        Ok(Self {
            read: reserve()?,
            write: reserve()?,
            devices: RwLock::default(),
            writable: Mutex::default(),
        })
    }

    /// Maps `device` whole at `pool_offset`, a multiple of 2 MiB and of the device's alignment.
    ///
    /// The device may be dropped afterwards. Its server's lock then lasts as long as the mapping.
    pub fn add_device(&self, device: &Device, pool_offset: u64) -> Result<(), MappingError> {
        let (offset, len) = (pool_offset, device.bytes());
        let path = || device.path().to_owned();
        let alignment = device.alignment().max(DEVICE_ALIGNMENT);
        if alignment > BASE_ALIGNMENT || !offset.is_multiple_of(alignment) {
            return Err(MappingError::Misaligned { path: path(), offset, alignment });
        }
        let end = offset.saturating_add(len);
        let address_space_bytes = self.address_space_bytes();
        if end > address_space_bytes {
            return Err(MappingError::OutsideAddressSpace {
                path: path(),
                end,
                address_space_bytes,
            });
        }
        // Held to the end: no page comes out of a device that is mapped by half.
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((other, _)) = devices.overlapping(offset, len) {
            return Err(MappingError::Overlap { path: path(), offset, len, other });
        }
        self.map_both(device, offset).map_err(|errno| {
            // SAFETY: no device was there, so no page either. A failure leaves memory mapped that
            // nobody will use, which is harmless.
            let _ = unsafe { self.read.unmap(offset, len).and(self.write.unmap(offset, len)) };
            MappingError::Map { path: path(), offset, source: errno.into() }
        })?;
        devices.insert(offset, len).expect("checked above, under the same lock");
        Ok(())
    }

    /// The caller holds `devices` and has found the place free.
    fn map_both(&self, device: &Device, offset: u64) -> rustix::io::Result<()> {
        let len = device.bytes();
        // SAFETY: no device is there, so no page was handed out, so nothing refers to it.
        unsafe {
            self.read.map(device.file(), offset, len, View::Read)?;
            self.write.map(device.file(), offset, len, View::Write)?;
        }
        self.write.keep_from_children(offset, len)?;
        self.read.prefer_huge_pages(offset, len);
        self.write.prefer_huge_pages(offset, len);
        Ok(())
    }

    /// The page of `len` bytes at pool offset `offset`, to read. The caller has pinned it.
    pub fn read(self: &Arc<Self>, offset: u64, len: u64) -> Result<PageView, MappingError> {
        self.check_page(offset, len)?;
        Ok(PageView { mapping: Arc::clone(self), offset, len })
    }

    /// The page of `len` bytes at pool offset `offset`, to write. The caller has reserved it.
    pub fn write(self: &Arc<Self>, offset: u64, len: u64) -> Result<PageMut, MappingError> {
        self.check_page(offset, len)?;
        self.writable()
            .insert(offset, len)
            .map_err(|(other, _)| MappingError::AlreadyWritable { offset, len, other })?;
        Ok(PageMut { mapping: Arc::clone(self), offset, len })
    }

    fn check_page(&self, offset: u64, len: u64) -> Result<(), MappingError> {
        match self.devices().containing(offset, len) {
            Some((device, _)) if offset - device >= DATA_START && len > 0 => Ok(()),
            _ => Err(MappingError::OutOfBounds { offset, len }),
        }
    }

    /// Checks that a range, header area or not, is all in one mapped device.
    pub(crate) fn check_mapped(&self, offset: u64, len: u64) -> Result<(), MappingError> {
        match self.devices().containing(offset, len) {
            Some(_) => Ok(()),
            None => Err(MappingError::OutOfBounds { offset, len }),
        }
    }

    /// Where the read-only view starts: what lies at pool offset `n` is `n` bytes behind it.
    #[must_use]
    pub fn read_base(&self) -> *const u8 {
        self.read.part(0, 0)
    }

    /// Where the writable view starts. For registering the memory with a GPU or a network adapter;
    /// whoever stores through it must have reserved the page.
    #[must_use]
    pub fn write_base(&self) -> *mut u8 {
        self.write.part(0, 0)
    }

    /// How large each view is in bytes, with the addresses where no device is.
    #[must_use]
    pub fn address_space_bytes(&self) -> u64 {
        self.read.len()
    }

    pub(crate) fn view(&self, view: View) -> &AddressRange {
        match view {
            View::Read => &self.read,
            View::Write => &self.write,
        }
    }

    fn devices(&self) -> RwLockReadGuard<'_, Extents> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self) -> MutexGuard<'_, Extents> {
        self.writable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page to read. It keeps the mapping alive, but not the pin: that is the caller's.
#[derive(Clone)]
pub struct PageView {
    mapping: Arc<PoolMapping>,
    offset: u64,
    len: u64,
}

impl PageView {
    /// The bytes, where they are: nothing is copied.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the part is mapped readable for as long as `self.mapping` lives; the caller's pin
        // keeps the bytes as they are (see the module documentation).
        unsafe { slice::from_raw_parts(self.as_ptr(), to_usize(self.len)) }
    }

    /// Copies the page into `buffer`, which must be as long.
    pub fn copy_to(&self, buffer: &mut [u8]) -> Result<(), MappingError> {
        check_lengths(self.len, buffer)?;
        buffer.copy_from_slice(self.bytes());
        Ok(())
    }

    /// The address of the first byte, valid for loads while `self` lives.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.mapping.read.part(self.offset, self.len)
    }

    /// Its pool offset in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its length in bytes; never zero.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a page is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }
}

impl fmt::Debug for PageView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageView({:#x}+{:#x})", self.offset, self.len)
    }
}

/// A page to write. While it lives, its process gets no other one over the same bytes.
pub struct PageMut {
    mapping: Arc<PoolMapping>,
    offset: u64,
    len: u64,
}

impl PageMut {
    /// The bytes, where they are: what is stored here is in the pool.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the part is mapped writable for as long as `self.mapping` lives. No other
        // `PageMut` of this process overlaps it; others keep away while it is reserved (see the
        // module documentation).
        unsafe { slice::from_raw_parts_mut(self.as_mut_ptr(), to_usize(self.len)) }
    }

    /// Copies `buffer`, which must be as long, into the page.
    pub fn copy_from(&mut self, buffer: &[u8]) -> Result<(), MappingError> {
        check_lengths(self.len, buffer)?;
        self.bytes_mut().copy_from_slice(buffer);
        Ok(())
    }

    /// The address of the first byte, valid for loads and stores while `self` lives.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.mapping.write.part(self.offset, self.len)
    }

    /// Its pool offset in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its length in bytes; never zero.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a page is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }
}

impl Drop for PageMut {
    fn drop(&mut self) {
        self.mapping.writable().remove(self.offset);
    }
}

impl fmt::Debug for PageMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageMut({:#x}+{:#x})", self.offset, self.len)
    }
}

fn check_lengths(page: u64, buffer: &[u8]) -> Result<(), MappingError> {
    let buffer = buffer.len() as u64;
    if page == buffer { Ok(()) } else { Err(MappingError::LengthMismatch { page, buffer }) }
}
