//! Pages: what a reader and a writer hold.
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
use std::slice;
use std::sync::Arc;

use crate::error::MappingError;
use crate::mapping::PoolMapping;
use crate::range::{View, to_usize};

/// A page to read. It keeps the mapping alive, but not the pin: that is the caller's.
#[derive(Clone)]
pub struct PageView {
    mapping: Arc<PoolMapping>,
    offset: u64,
    len: u64,
}

impl PageView {
    pub(crate) fn new(mapping: Arc<PoolMapping>, offset: u64, len: u64) -> Self {
        Self { mapping, offset, len }
    }

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
        self.mapping.view(View::Read).part(self.offset, self.len)
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
    pub(crate) fn new(mapping: Arc<PoolMapping>, offset: u64, len: u64) -> Self {
        Self { mapping, offset, len }
    }

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
        self.mapping.view(View::Write).part(self.offset, self.len)
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
        self.mapping.end_write(self.offset);
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
