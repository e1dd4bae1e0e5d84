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
//!
//! # Cache lines
//!
//! Pages start at multiples of 4096 bytes, so no line has two owners. A [`PageMut`] knows what this
//! host's caches may hold of it ([`Lines`]), so that nothing is written back twice, nor left behind.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fmt;
use std::ops::Range;
use std::slice;
use std::sync::Arc;

use rustix::param::page_size;

use crate::checksum::checksum_of_pieces;
use crate::error::MappingError;
use crate::guarded::{self, Fault};
use crate::mapping::PoolMapping;
use crate::plugin::{DeviceRange, Operation, VisibilityPlugin};
use crate::range::{View, to_usize};
use crate::visibility::Visibility;

/// The generation that a plug-in is told when a writer drops what its host still has of a page: that
/// of nothing.
const NO_GENERATION: u64 = 0;

/// A page to read. It keeps the mapping alive, but not the pin: that is the caller's.
#[derive(Clone)]
pub struct PageView(Span);

impl PageView {
    pub(crate) fn new(mapping: Arc<PoolMapping>, offset: u64, len: u64) -> Self {
        Self(Span { mapping, view: View::Read, offset, len })
    }

    /// The bytes, where they are: nothing is copied.
    ///
    /// A load from memory that fails ends the process (SIGBUS); [`Self::copy_to`] and
    /// [`Self::checksum`] are safe from that.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the span is mapped readable for as long as `self` lives; the caller's pin keeps
        // the bytes as they are (see the module documentation).
        unsafe { slice::from_raw_parts(self.as_ptr(), to_usize(self.0.len)) }
    }

    /// Makes sure that what is loaded from now on is what the writer published as `generation` on
    /// another host, in [`Visibility::CacheLine`]; else it does nothing.
    ///
    /// It is needed for each generation, after its commit was seen and before its first load, even
    /// if this host never read the page: its processor may have looked ahead. It is not needed if
    /// the writer is on this host.
    pub fn acquire(&self, generation: u64) -> Result<(), MappingError> {
        let span = &self.0;
        span.synchronize(Operation::Acquire, span.len, generation).map_err(|e| span.error(e))
    }

    /// Copies the page into `buffer`, which must be as long. If memory fails, what is in the buffer
    /// is undefined.
    pub fn copy_to(&self, buffer: &mut [u8]) -> Result<(), MappingError> {
        self.0.check_length(buffer)?;
        self.0.load(0, buffer)
    }

    /// The [checksum](crate::checksum()) of the page.
    pub fn checksum(&self) -> Result<u64, MappingError> {
        checksum_of_pieces(to_usize(self.0.len), |offset, piece| self.0.load(offset, piece))
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
///
/// In [`Visibility::CacheLine`], [`Self::publish`] comes before the commit, and [`Self::write_back`]
/// before the page is given back without one.
pub struct PageMut {
    span: Span,
    lines: Lines,
    /// Why the lines that an earlier generation left behind could not be dropped.
    stale: Option<Failure>,
}

/// What this host's caches may hold of a writable page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// Lines of an earlier generation, or what a device stored.
    Unknown,
    /// What was stored, and not written back.
    Dirty,
    /// Nothing that memory does not have.
    Clean,
}

impl PageMut {
    pub(crate) fn new(mapping: Arc<PoolMapping>, offset: u64, len: u64) -> Self {
        let span = Span { mapping, view: View::Write, offset, len };
        Self { span, lines: Lines::Unknown, stale: None }
    }

    /// The bytes, where they are: what is stored here is in the pool.
    ///
    /// A store to memory that fails ends the process (SIGBUS); [`Self::copy_from`] is safe from
    /// that.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the span is mapped writable for as long as `self` lives. No other `PageMut` of
        // this process overlaps it; others keep away while it is reserved (see the module
        // documentation).
        unsafe { slice::from_raw_parts_mut(self.as_mut_ptr(), to_usize(self.span.len)) }
    }

    /// Copies `buffer`, which must be as long, into the page. If memory fails, what is in the page
    /// is undefined.
    ///
    /// Large pages, and in [`Visibility::CacheLine`] all, go around the caches: a writer has no use
    /// for its chunk any more, and nothing is left to be written back.
    pub fn copy_from(&mut self, buffer: &[u8]) -> Result<(), MappingError> {
        self.span.check_length(buffer)?;
        let (to, from, len) = (self.span.ptr(), buffer.as_ptr(), buffer.len());
        // SAFETY: the span is mapped writable, and only this page's to write (see `bytes_mut`), so
        // it is apart from any other slice; the handler came with its device.
        let result = unsafe {
            if self.span.is_coherent() && len < guarded::STREAM_LEN_MIN {
                guarded::copy(to, from, len)
            } else {
                guarded::copy_through(to, from, len)
            }
        };
        if let Err(fault) = result {
            // How far it came is not known.
            self.lines = Lines::Dirty;
            return Err(self.span.copy_error(fault, buffer));
        }
        if self.lines == Lines::Unknown {
            self.lines = Lines::Clean;
        }
        Ok(())
    }

    /// Makes the first `len` bytes, which are to be committed as `generation`, visible to other
    /// hosts, in [`Visibility::CacheLine`]; else it does nothing. After an error they must not be
    /// committed.
    ///
    /// Bytes that a device stored without the help of [`Self::as_mut_ptr`] are taken care of too, if
    /// nothing was copied into the page.
    pub fn publish(&mut self, len: u64, generation: u64) -> Result<(), MappingError> {
        self.check_chunk(len)?;
        if let Some(failure) = &self.stale {
            return Err(self.span.error(failure.clone()));
        }
        // Dirty lines behind `len` would be written back some day, over the next owner's bytes.
        let len = if self.lines == Lines::Clean { len } else { self.span.len };
        if self.lines != Lines::Clean || self.span.has_plugin() {
            self.synchronize(len, generation)?;
        }
        Ok(())
    }

    /// The [checksum](crate::checksum()) of the first `len` bytes.
    pub fn checksum(&mut self, len: u64) -> Result<u64, MappingError> {
        self.check_chunk(len)?;
        if self.lines == Lines::Unknown {
            // Others find what is in memory, and not what this host may still have of before.
            let page = self.span.len;
            self.synchronize(page, NO_GENERATION)?;
            let dropped = self.span.synchronize(Operation::Acquire, page, NO_GENERATION);
            dropped.map_err(|failure| self.span.error(failure))?;
        }
        checksum_of_pieces(to_usize(len), |offset, piece| self.span.load(offset, piece))
    }

    /// Writes back what this host's caches may hold of the page, in [`Visibility::CacheLine`], when
    /// it is given back and not committed; `generation` is that of the reservation. Otherwise those
    /// lines would be written back some day, over the next owner's bytes.
    pub fn write_back(&mut self, generation: u64) -> Result<(), MappingError> {
        if self.lines == Lines::Clean {
            Ok(())
        } else {
            self.synchronize(self.span.len, generation)
        }
    }

    fn check_chunk(&self, len: u64) -> Result<(), MappingError> {
        let page = self.span.len;
        if len <= page { Ok(()) } else { Err(MappingError::BeyondPage { page, len }) }
    }

    fn synchronize(&mut self, len: u64, generation: u64) -> Result<(), MappingError> {
        let done = self.span.synchronize(Operation::Publish, len, generation);
        done.map_err(|failure| self.span.error(failure))?;
        self.lines = Lines::Clean;
        Ok(())
    }

    /// The address of the first byte, valid for loads and stores while `self` lives. What is stored
    /// after a [`Self::publish`] needs another one, and this call before.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        // A line that is older than the memory must not be filled up and written back.
        if self.lines == Lines::Unknown {
            let page = self.span.len;
            self.stale = self.span.synchronize(Operation::Acquire, page, NO_GENERATION).err();
        }
        self.lines = Lines::Dirty;
        self.span.ptr()
    }

    /// Its pool offset in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.span.offset
    }

    /// Its length in bytes; never zero.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a page is never empty")]
    pub fn len(&self) -> u64 {
        self.span.len
    }
}

impl Drop for PageMut {
    fn drop(&mut self) {
        self.span.mapping.end_write(self.span.offset);
    }
}

impl fmt::Debug for PageMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageMut({:#x}+{:#x})", self.span.offset, self.span.len)
    }
}

/// See [`PoolMapping::clean`].
pub(crate) fn clean(
    mapping: Arc<PoolMapping>,
    offset: u64,
    len: u64,
    generation: u64,
) -> Result<(), MappingError> {
    let span = Span { mapping, view: View::Write, offset, len };
    // Not an acquire: a library may drop lines unwritten then, and a writer of this host may have the
    // page again.
    let done = span.synchronize(Operation::Publish, len, generation);
    done.map_err(|failure| span.error(failure))
}

/// A part of one view of a mapping.
#[derive(Clone)]
struct Span {
    mapping: Arc<PoolMapping>,
    view: View,
    offset: u64,
    len: u64,
}

/// Why lines could not be written back or dropped.
#[derive(Clone)]
enum Failure {
    Memory(Fault),
    Plugin { plugin: VisibilityPlugin, operation: Operation, status: c_int },
}

impl Span {
    fn ptr(&self) -> *mut u8 {
        self.mapping.view(self.view).part(self.offset, self.len)
    }

    fn is_coherent(&self) -> bool {
        matches!(self.mapping.visibility(), Visibility::Coherent)
    }

    fn has_plugin(&self) -> bool {
        matches!(self.mapping.visibility(), Visibility::CacheLine { plugin: Some(_) })
    }

    fn check_length(&self, buffer: &[u8]) -> Result<(), MappingError> {
        let (page, buffer) = (self.len, buffer.len() as u64);
        if page == buffer { Ok(()) } else { Err(MappingError::LengthMismatch { page, buffer }) }
    }

    /// Copies what lies `start` bytes from the beginning.
    fn load(&self, start: usize, buffer: &mut [u8]) -> Result<(), MappingError> {
        let len = buffer.len();
        assert!(start + len <= to_usize(self.len), "{start}+{len} is outside of the page");
        // SAFETY: the part is mapped, and the caller's pin keeps its bytes as they are (see the
        // module documentation), so it is apart from what is borrowed exclusively; the handler came
        // with its device.
        let result = unsafe { guarded::copy(buffer.as_mut_ptr(), self.ptr().add(start), len) };
        result.map_err(|fault| self.copy_error(fault, buffer))
    }

    /// Has the first `len` bytes written back or dropped, as the pool's visibility asks for.
    fn synchronize(&self, operation: Operation, len: u64, generation: u64) -> Result<(), Failure> {
        let (address, len) = (self.ptr(), to_usize(len));
        match self.mapping.visibility() {
            Visibility::Coherent => Ok(()),
            Visibility::CacheLine { plugin: None } => {
                // SAFETY: the span is mapped; the handler came with its device.
                let result = unsafe {
                    match operation {
                        Operation::Publish => guarded::write_back(address, len),
                        Operation::Acquire => guarded::invalidate(address, len),
                    }
                };
                result.map_err(Failure::Memory)
            }
            Visibility::CacheLine { plugin: Some(plugin) } => {
                let (start, device) = self.mapping.device_of(self.offset);
                let offset = self.offset - start;
                let range = DeviceRange { device: &device.file, offset, address, len };
                let result = plugin.call(operation, &range, generation);
                result.map_err(|status| {
                    let plugin = plugin.clone();
                    Failure::Plugin { plugin, operation, status }
                })
            }
        }
    }

    fn error(&self, failure: Failure) -> MappingError {
        match failure {
            Failure::Memory(fault) => self.media_error(fault),
            Failure::Plugin { plugin, operation, status } => MappingError::Plugin {
                path: plugin.path().to_owned(),
                operation: operation.name(),
                offset: self.offset,
                status,
            },
        }
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
            path: self.mapping.device_of(self.offset).1.path.clone(),
            offset: self.offset + inside.min(self.len - 1),
            damaged: fault.damaged,
        }
    }
}
