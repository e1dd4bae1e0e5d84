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
use std::ops::Range;
use std::slice;
use std::sync::Arc;

use rustix::param::page_size;

use crate::error::MappingError;
use crate::guarded::{self, Fault};
use crate::mapping::PoolMapping;
use crate::range::{View, to_usize};

/// A page to read. It keeps the mapping alive, but not the pin: that is the caller's.
#[derive(Clone)]
pub struct PageView(Span);

impl PageView {
    pub(crate) fn new(mapping: Arc<PoolMapping>, offset: u64, len: u64) -> Self {
        Self(Span { mapping, view: View::Read, offset, len })
    }

    /// The bytes, where they are: nothing is copied.
    ///
    /// A load from memory that fails ends the process (SIGBUS); [`Self::copy_to`] is safe from
    /// that.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the span is mapped readable for as long as `self` lives; the caller's pin keeps
        // the bytes as they are (see the module documentation).
        unsafe { slice::from_raw_parts(self.as_ptr(), to_usize(self.0.len)) }
    }

    /// Copies the page into `buffer`, which must be as long. If memory fails, what is in the buffer
    /// is undefined.
    pub fn copy_to(&self, buffer: &mut [u8]) -> Result<(), MappingError> {
        self.0.check_length(buffer)?;
        // SAFETY: the span is mapped, and the caller's pin keeps its bytes as they are (see the
        // module documentation), so it is apart from what is borrowed exclusively; the handler came
        // with its device.
        let result = unsafe { guarded::copy(buffer.as_mut_ptr(), self.as_ptr(), buffer.len()) };
        result.map_err(|fault| self.0.copy_error(fault, buffer))
    }

    /// The address of the first byte, valid for loads while `self` lives.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.0.ptr()
    }

    /// Its pool offset in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Its length in bytes; never zero.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a page is never empty")]
    pub fn len(&self) -> u64 {
        self.0.len
    }
}

impl fmt::Debug for PageView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageView({:#x}+{:#x})", self.0.offset, self.0.len)
    }
}

/// A page to write. While it lives, its process gets no other one over the same bytes.
pub struct PageMut(Span);

impl PageMut {
    pub(crate) fn new(mapping: Arc<PoolMapping>, offset: u64, len: u64) -> Self {
        Self(Span { mapping, view: View::Write, offset, len })
    }

    /// The bytes, where they are: what is stored here is in the pool.
    ///
    /// A store to memory that fails ends the process (SIGBUS); [`Self::copy_from`] is safe from
    /// that.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the span is mapped writable for as long as `self` lives. No other `PageMut` of
        // this process overlaps it; others keep away while it is reserved (see the module
        // documentation).
        unsafe { slice::from_raw_parts_mut(self.as_mut_ptr(), to_usize(self.0.len)) }
    }

    /// Copies `buffer`, which must be as long, into the page. If memory fails, what is in the page
    /// is undefined.
    ///
    /// Large pages go around the caches: a writer has no use for its chunk any more.
    pub fn copy_from(&mut self, buffer: &[u8]) -> Result<(), MappingError> {
        self.0.check_length(buffer)?;
        let (to, from, len) = (self.0.ptr(), buffer.as_ptr(), buffer.len());
        // SAFETY: the span is mapped writable, and only this page's to write (see `bytes_mut`), so
        // it is apart from any other slice; the handler came with its device.
        let result = unsafe {
            if len < guarded::STREAM_LEN_MIN {
                guarded::copy(to, from, len)
            } else {
                guarded::copy_through(to, from, len)
            }
        };
        result.map_err(|fault| self.0.copy_error(fault, buffer))
    }

    /// The address of the first byte, valid for loads and stores while `self` lives.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.ptr()
    }

    /// Its pool offset in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Its length in bytes; never zero.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a page is never empty")]
    pub fn len(&self) -> u64 {
        self.0.len
    }
}

impl Drop for PageMut {
    fn drop(&mut self) {
        self.0.mapping.end_write(self.0.offset);
    }
}

impl fmt::Debug for PageMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageMut({:#x}+{:#x})", self.0.offset, self.0.len)
    }
}

/// A part of one view of a mapping.
#[derive(Clone)]
struct Span {
    mapping: Arc<PoolMapping>,
    view: View,
    offset: u64,
    len: u64,
}

impl Span {
    fn ptr(&self) -> *mut u8 {
        self.mapping.view(self.view).part(self.offset, self.len)
    }

    fn check_length(&self, buffer: &[u8]) -> Result<(), MappingError> {
        let (page, buffer) = (self.len, buffer.len() as u64);
        if page == buffer { Ok(()) } else { Err(MappingError::LengthMismatch { page, buffer }) }
    }

    /// For a copy between the page and `buffer`, either of which may have failed.
    fn copy_error(&self, fault: Fault, buffer: &[u8]) -> MappingError {
        let Range { start, end } = buffer.as_ptr_range();
        // Of damaged memory the kernel may tell only the page.
        let first = start.addr() / page_size() * page_size();
        if (first..end.addr()).contains(&fault.address) {
            MappingError::Buffer
        } else {
            self.media_error(fault)
        }
    }

    fn media_error(&self, fault: Fault) -> MappingError {
        // The page of damaged memory may be larger than ours, and start before it.
        let inside = fault.address.saturating_sub(self.ptr().addr()) as u64;
        MappingError::Media {
            path: self.mapping.device_of(self.offset).path.clone(),
            offset: self.offset + inside.min(self.len - 1),
            damaged: fault.damaged,
        }
    }
}
