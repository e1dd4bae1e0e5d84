//! Pages of a session.
#![allow(unsafe_code)] // The buffer protocol.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use maru_client as client;
use maru_protocol::Location;
use pyo3::exceptions::{PyBufferError, PyIndexError};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::error::{failed, over};
use crate::view::{Bytes, View};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `acquire` found, by key.
#[pyclass(frozen, module = "maru._native")]
#[derive(Debug)]
pub(crate) struct PinnedPages {
    found: Mutex<Vec<Found>>,
    /// Their session, which lives as long as its pages do, unless it is closed.
    owner: Py<PyAny>,
}

#[derive(Debug)]
enum Found {
    Miss,
    /// Nobody has asked for it yet.
    Page(client::PinnedPage),
    Made(Py<PinnedPage>),
}

impl PinnedPages {
    pub(crate) fn new(owner: Py<PyAny>, found: Vec<Option<client::PinnedPage>>) -> Self {
        let found = found.into_iter().map(|page| page.map_or(Found::Miss, Found::Page));
        Self { owner, found: Mutex::new(found.collect()) }
    }

    /// Everything that nobody has asked for yet.
    pub(crate) fn take_unmade(&self) -> Vec<client::PinnedPage> {
        let mut found = lock(&self.found);
        let unmade = found.iter_mut().filter(|found| matches!(found, Found::Page(_)));
        let taken = unmade.map(|found| std::mem::replace(found, Found::Miss));
        let page = |found| if let Found::Page(page) = found { Some(page) } else { None };
        taken.filter_map(page).collect()
    }

    /// The pages that were asked for.
    pub(crate) fn made(&self, py: Python<'_>) -> Vec<Py<PinnedPage>> {
        let found = lock(&self.found);
        let made = |found: &Found| {
            if let Found::Made(page) = found { Some(page.clone_ref(py)) } else { None }
        };
        found.iter().filter_map(made).collect()
    }
}

#[pymethods]
impl PinnedPages {
    fn __len__(&self) -> usize {
        lock(&self.found).len()
    }

    #[getter]
    fn hits(&self) -> usize {
        lock(&self.found).iter().filter(|found| !matches!(found, Found::Miss)).count()
    }

    fn is_hit(&self, index: usize) -> PyResult<bool> {
        let found = lock(&self.found);
        let found = found.get(index).ok_or_else(|| PyIndexError::new_err("no such key"))?;
        Ok(!matches!(found, Found::Miss))
    }

    fn __getitem__(&self, py: Python<'_>, index: isize) -> PyResult<Option<Py<PinnedPage>>> {
        let mut found = lock(&self.found);
        let index =
            if index < 0 { found.len().checked_add_signed(index) } else { index.try_into().ok() };
        let place = index.and_then(|index| found.get_mut(index));
        let place = place.ok_or_else(|| PyIndexError::new_err("no such key"))?;
        match std::mem::replace(place, Found::Miss) {
            Found::Miss => Ok(None),
            Found::Made(page) => {
                *place = Found::Made(page.clone_ref(py));
                Ok(Some(page))
            }
            Found::Page(page) => {
                let page = Py::new(py, PinnedPage::new(self.owner.clone_ref(py), page))?;
                *place = Found::Made(page.clone_ref(py));
                Ok(Some(page))
            }
        }
    }
}

/// A chunk in the pool, pinned and read-only.
#[pyclass(frozen, weakref, module = "maru._native")]
#[derive(Debug)]
pub(crate) struct PinnedPage {
    page: Mutex<Option<Arc<client::PinnedPage>>>,
    view: View,
    location: Location,
    /// Its session.
    _owner: Py<PyAny>,
}

impl PinnedPage {
    fn new(owner: Py<PyAny>, page: client::PinnedPage) -> Self {
        let location = page.location();
        let mapping = Arc::clone(page.mapping());
        let view = View::new(mapping, location.offset(), location.length, false);
        Self { page: Mutex::new(Some(Arc::new(page))), view, location, _owner: owner }
    }

    fn page(&self) -> PyResult<Arc<client::PinnedPage>> {
        lock(&self.page).clone().ok_or_else(|| over("the page"))
    }

    /// Takes the pin from Python. `None` if it was given back before.
    pub(crate) fn take(&self) -> PyResult<Option<client::PinnedPage>> {
        if self.view.is_exported() {
            return Err(PyBufferError::new_err(
                "somebody still looks at the page: release the memoryview (or drop the tensor) first",
            ));
        }
        // A thread that copies from it just now gives it back when it is done.
        Ok(lock(&self.page).take().and_then(Arc::into_inner))
    }
}

#[pymethods]
impl PinnedPage {
    #[getter]
    fn region(&self) -> u32 {
        self.location.handle.region.0
    }

    #[getter]
    fn offset(&self) -> u64 {
        self.location.offset()
    }

    #[getter]
    fn generation(&self) -> u64 {
        self.location.generation().0
    }

    #[getter]
    fn address(&self) -> usize {
        self.view.address()
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.view.bytes()).unwrap_or(usize::MAX)
    }

    fn is_lost(&self) -> bool {
        lock(&self.page).as_ref().is_none_or(|page| page.is_lost())
    }

    fn confirm(&self, py: Python<'_>) -> PyResult<()> {
        let page = self.page()?;
        py.detach(|| page.confirm()).map_err(failed)
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        let page = self.page()?;
        py.detach(|| page.verify()).map_err(failed)
    }

    fn copy_to(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        let page = self.page()?;
        let mut buffer = Bytes::writable(buffer)?;
        py.detach(|| page.copy_to(buffer.bytes_mut())).map_err(failed)
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let page = self.take()?;
        py.detach(|| drop(page));
        Ok(())
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        buffer: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        slf.get().page().map_err(|_| PyBufferError::new_err("the page was released before"))?;
        // SAFETY: the interpreter asks for it to be filled.
        unsafe { slf.get().view.export(slf.clone().into_any(), buffer, flags) }
    }

    unsafe fn __releasebuffer__(&self, _buffer: *mut ffi::Py_buffer) {
        self.view.unexport();
    }
}

/// A page of the pool to write a new chunk into.
#[pyclass(frozen, weakref, module = "maru._native")]
#[derive(Debug)]
pub(crate) struct ReservedPage {
    page: Mutex<Option<client::ReservedPage>>,
    view: View,
    location: Location,
    /// Its session.
    _owner: Py<PyAny>,
}

impl ReservedPage {
    pub(crate) fn new(owner: Py<PyAny>, page: client::ReservedPage) -> Self {
        let location = page.location();
        let mapping = Arc::clone(page.mapping());
        let view = View::new(mapping, location.offset(), location.length, true);
        Self { page: Mutex::new(Some(page)), view, location, _owner: owner }
    }

    /// Takes the reservation from Python.
    pub(crate) fn take(&self) -> PyResult<client::ReservedPage> {
        lock(&self.page).take().ok_or_else(|| over("the page"))
    }
}

#[pymethods]
impl ReservedPage {
    #[getter]
    fn region(&self) -> u32 {
        self.location.handle.region.0
    }

    #[getter]
    fn offset(&self) -> u64 {
        self.location.offset()
    }

    #[getter]
    fn generation(&self) -> u64 {
        self.location.generation().0
    }

    #[getter]
    fn address(&self) -> usize {
        self.view.address()
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.view.bytes()).unwrap_or(usize::MAX)
    }

    pub(crate) fn is_open(&self) -> bool {
        match self.page.try_lock() {
            Ok(page) => page.is_some(),
            Err(TryLockError::Poisoned(page)) => page.into_inner().is_some(),
            // Somebody copies into it.
            Err(TryLockError::WouldBlock) => true,
        }
    }

    fn set_length(&self, length: u64) -> PyResult<()> {
        let mut page = lock(&self.page);
        page.as_mut().ok_or_else(|| over("the page"))?.set_length(length).map_err(failed)
    }

    fn copy_from(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        let buffer = Bytes::readable(buffer)?;
        py.detach(|| {
            let mut page = lock(&self.page);
            let page = page.as_mut().ok_or_else(|| over("the page"))?;
            page.copy_from(buffer.bytes()).map_err(failed)?;
            if self.view.is_exported() {
                // More may be written in place: what was copied is not all that will be there.
                page.bytes_mut();
            }
            Ok(())
        })
    }

    fn abort(&self, py: Python<'_>) {
        let page = lock(&self.page).take();
        py.detach(|| drop(page));
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        buffer: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        {
            let Ok(mut page) = slf.get().page.try_lock() else {
                return Err(PyBufferError::new_err("a thread copies into the page: wait for it"));
            };
            let over = || PyBufferError::new_err("the page was committed or given up before");
            // From here on it may be written in place.
            page.as_mut().ok_or_else(over)?.bytes_mut();
        }
        // SAFETY: the interpreter asks for it to be filled.
        unsafe { slf.get().view.export(slf.clone().into_any(), buffer, flags) }
    }

    unsafe fn __releasebuffer__(&self, _buffer: *mut ffi::Py_buffer) {
        self.view.unexport();
    }
}
