//! Memory of the pool as Python sees it: the buffer protocol.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use maru_client::PoolMemory as Mapped;
use maru_memory::PoolMapping;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::{ffi, intern};

/// A part of a mapping, at an address that stays good as long as this is kept: nothing is ever
/// unmapped while the mapping is there.
#[derive(Debug)]
pub(crate) struct View {
    mapping: Arc<PoolMapping>,
    offset: u64,
    bytes: u64,
    writable: bool,
    /// Python's buffers over it that are alive.
    exports: AtomicUsize,
}

impl View {
    /// The caller has seen that there is memory in all of it, and for as long as it matters who may
    /// write there, has the right to.
    pub(crate) const fn new(
        mapping: Arc<PoolMapping>,
        offset: u64,
        bytes: u64,
        writable: bool,
    ) -> Self {
        Self { mapping, offset, bytes, writable, exports: AtomicUsize::new(0) }
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn address(&self) -> usize {
        let base = if self.writable {
            self.mapping.write_base().cast_const()
        } else {
            self.mapping.read_base()
        };
        base.addr() + usize::try_from(self.offset).unwrap_or(usize::MAX)
    }

    /// Whether a buffer of Python's looks at it.
    pub(crate) fn is_exported(&self) -> bool {
        self.exports.load(Ordering::SeqCst) > 0
    }

    /// Answers `__getbuffer__` of `owner`, whose view this is.
    ///
    /// # Safety
    ///
    /// `buffer` is what the interpreter asked to be filled.
    pub(crate) unsafe fn export(
        &self,
        owner: Bound<'_, PyAny>,
        buffer: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let base = if self.writable {
            self.mapping.write_base()
        } else {
            self.mapping.read_base().cast_mut()
        };
        let offset = usize::try_from(self.offset)
            .map_err(|_| PyBufferError::new_err("the page lies beyond this process's addresses"))?;
        let bytes = isize::try_from(self.bytes)
            .map_err(|_| PyBufferError::new_err("the page is larger than a buffer can be"))?;
        let start = base.wrapping_add(offset);
        let read_only = c_int::from(!self.writable);
        // SAFETY: `buffer` is to be filled. The range is mapped for as long as `owner` lives, which the
        // buffer keeps alive; a read-only one is never given as writable.
        let result = unsafe {
            ffi::PyBuffer_FillInfo(buffer, owner.as_ptr(), start.cast(), bytes, read_only, flags)
        };
        if result != 0 {
            return Err(PyErr::fetch(owner.py()));
        }
        self.exports.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Answers `__releasebuffer__`.
    pub(crate) fn unexport(&self) {
        self.exports.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The whole pool, from its first device to the end of its last.
#[pyclass(frozen, module = "maru._native")]
#[derive(Debug)]
pub(crate) struct PoolMemory {
    view: View,
}

impl PoolMemory {
    pub(crate) fn new(pool: Mapped, writable: bool) -> Self {
        let devices = pool.topology.devices.iter();
        let bytes = devices.map(|device| device.offset + device.bytes).max().unwrap_or(0);
        Self { view: View::new(pool.mapping, 0, bytes, writable) }
    }
}

#[pymethods]
impl PoolMemory {
    fn __len__(&self) -> usize {
        usize::try_from(self.view.bytes()).unwrap_or(usize::MAX)
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        buffer: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        // SAFETY: the interpreter asks for it to be filled.
        unsafe { slf.get().view.export(slf.clone().into_any(), buffer, flags) }
    }

    unsafe fn __releasebuffer__(&self, _buffer: *mut ffi::Py_buffer) {
        self.view.unexport();
    }
}

/// The bytes of another object's buffer, of one piece, whatever its items are. It is held as long as
/// this is.
///
/// That no other thread touches them while they are copied without the GIL is the caller's affair, as
/// with every function that fills a buffer, `readinto` among them.
#[derive(Debug)]
pub(crate) struct Bytes(PyBuffer<u8>);

impl Bytes {
    pub(crate) fn readable(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let view = py.import(intern!(py, "builtins"))?.getattr(intern!(py, "memoryview"))?;
        let bytes = view.call1((object,))?.call_method1(intern!(py, "cast"), ("B",))?;
        PyBuffer::get(&bytes).map(Self)
    }

    pub(crate) fn writable(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let bytes = Self::readable(object)?;
        if bytes.0.readonly() {
            return Err(PyTypeError::new_err("the buffer to copy into is read-only"));
        }
        Ok(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self.0.len_bytes() {
            0 => &[],
            // SAFETY: so many bytes lie there in one piece, for as long as the buffer is held.
            len => unsafe { slice::from_raw_parts(self.0.buf_ptr().cast(), len) },
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self.0.len_bytes() {
            0 => &mut [],
            // SAFETY: as above; and `writable` has seen that they may be written to.
            len => unsafe { slice::from_raw_parts_mut(self.0.buf_ptr().cast(), len) },
        }
    }
}
