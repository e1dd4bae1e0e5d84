//! A pool as one range of addresses.
//!
//! Every device is mapped whole, twice: into a read-only view, from which [`PageView`]s come, and
//! into a writable view, from which [`PageMut`]s come. Both lay the devices out by pool offset, so
//! a page is `base + offset` in either. A stray store through a reader's pointer faults instead of
//! changing somebody else's page. The writable view is kept out of forked children: one that lived
//! on would write under a session that the directory thinks ended with its parent.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use crate::Device;
use crate::error::MappingError;
use crate::extents::Extents;
use crate::guarded;
use crate::header::DATA_START;
use crate::page::{PageMut, PageView};
use crate::range::{AddressRange, View};
use crate::visibility::Visibility;

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
    visibility: Visibility,
    devices: RwLock<Extents<Arc<MappedDevice>>>,
    writable: Mutex<Extents<()>>,
}

/// What is kept of a mapped device.
#[derive(Debug)]
pub(crate) struct MappedDevice {
    /// For plug-ins, which may have to ask its driver.
    pub(crate) file: File,
    /// For messages.
    pub(crate) path: PathBuf,
}

impl PoolMapping {
    /// Reserves two ranges of `address_space_bytes`, rounded up to 2 MiB, without any memory. They
    /// cannot grow, so they should be as large as the pool may ever become; 1 TiB costs nothing.
    ///
    /// `visibility` is the pool's, the same for all its instances.
    pub fn new(address_space_bytes: u64, visibility: Visibility) -> Result<Self, MappingError> {
        let too_large = io::ErrorKind::InvalidInput;
        let fail = |source| MappingError::Reserve { bytes: address_space_bytes, source };
        let bytes = address_space_bytes.max(1).checked_next_multiple_of(DEVICE_ALIGNMENT);
        let bytes = bytes.ok_or_else(|| fail(too_large.into()))?;
        let reserve = || AddressRange::reserve(bytes, BASE_ALIGNMENT).map_err(|e| fail(e.into()));
        Ok(Self {
            read: reserve()?,
            write: reserve()?,
            visibility,
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
        let fail = |source| MappingError::Map { path: path(), offset, source };
        let file = device.file().try_clone().map_err(fail)?;
        guarded::install();
        self.map_both(device, offset).map_err(|errno| {
            // SAFETY: no device was there, so no page either. A failure leaves memory mapped that
            // nobody will use, which is harmless.
            let _ = unsafe { self.read.unmap(offset, len).and(self.write.unmap(offset, len)) };
            fail(errno.into())
        })?;
        let mapped = Arc::new(MappedDevice { file, path: path() });
        devices.insert(offset, len, mapped).expect("checked above, under the same lock");
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
        Ok(PageView::new(Arc::clone(self), offset, len))
    }

    /// The page of `len` bytes at pool offset `offset`, to write. The caller has reserved it.
    pub fn write(self: &Arc<Self>, offset: u64, len: u64) -> Result<PageMut, MappingError> {
        self.check_page(offset, len)?;
        self.writable()
            .insert(offset, len, ())
            .map_err(|(other, _)| MappingError::AlreadyWritable { offset, len, other })?;
        Ok(PageMut::new(Arc::clone(self), offset, len))
    }

    /// Takes back the right to the writable page at `offset`.
    pub(crate) fn end_write(&self, offset: u64) {
        self.writable().remove(offset);
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

    pub(crate) fn visibility(&self) -> &Visibility {
        &self.visibility
    }

    /// The device of a page that was handed out, and the pool offset where it starts.
    pub(crate) fn device_of(&self, page_offset: u64) -> (u64, Arc<MappedDevice>) {
        let devices = self.devices();
        let (start, device) =
            devices.containing(page_offset, 0).expect("pages lie in devices, and devices stay");
        (start, Arc::clone(device))
    }

    pub(crate) fn view(&self, view: View) -> &AddressRange {
        match view {
            View::Read => &self.read,
            View::Write => &self.write,
        }
    }

    fn devices(&self) -> RwLockReadGuard<'_, Extents<Arc<MappedDevice>>> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self) -> MutexGuard<'_, Extents<()>> {
        self.writable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
