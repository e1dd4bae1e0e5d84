//! One session with a server.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use maru_client as client;
use maru_client::{Acquire, ClientConfig, ClientError, Reserve, Reserved};
use maru_protocol as protocol;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;

use crate::convert::{AnyKey, endpoint, report, seconds, verify, wire};
use crate::error::{failed, over, wrong};
use crate::page::{PinnedPage, PinnedPages, ReservedPage};
use crate::view::PoolMemory;

/// Why a key was not reserved.
#[pyclass(frozen, eq, eq_int, hash, rename_all = "SCREAMING_SNAKE_CASE", module = "maru._native")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Refused {
    Resident,
    BeingWritten,
    AlreadyReserved,
    OutOfMemory,
    OverBudget,
}

/// What came of committing a page.
#[pyclass(frozen, eq, eq_int, hash, rename_all = "SCREAMING_SNAKE_CASE", module = "maru._native")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Committed {
    Stored,
    Superseded,
    NotReserved,
    Unwritable,
}

/// What is known of a key.
#[pyclass(frozen, eq, eq_int, hash, rename_all = "SCREAMING_SNAKE_CASE", module = "maru._native")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Presence {
    Resident,
    Reserved,
    Missing,
}

/// What came of deleting a key.
#[pyclass(frozen, eq, eq_int, hash, rename_all = "SCREAMING_SNAKE_CASE", module = "maru._native")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Deletion {
    Deleted,
    Pinned,
    Reserved,
    Missing,
}

fn presence(known: Vec<protocol::Presence>) -> Vec<Presence> {
    let known = known.into_iter().map(|one| match one {
        protocol::Presence::Resident => Presence::Resident,
        protocol::Presence::Reserved => Presence::Reserved,
        protocol::Presence::Missing => Presence::Missing,
    });
    known.collect()
}

fn committed(outcomes: Vec<client::Committed>) -> Vec<Committed> {
    let outcomes = outcomes.into_iter().map(|one| match one {
        client::Committed::Stored(_) => Committed::Stored,
        client::Committed::Superseded(_) => Committed::Superseded,
        client::Committed::NotReserved => Committed::NotReserved,
        client::Committed::Unwritable => Committed::Unwritable,
    });
    outcomes.collect()
}

/// One session with a server; any thread may use it.
#[pyclass(frozen, weakref, module = "maru._native")]
#[derive(Debug)]
pub(crate) struct Client {
    client: Mutex<Option<client::Client>>,
    instance: String,
}

impl Client {
    fn client(&self) -> PyResult<client::Client> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        client.clone().ok_or_else(|| over("the client"))
    }

    /// Asks without the GIL.
    fn ask<T: Send>(
        &self,
        py: Python<'_>,
        ask: impl FnOnce(&client::Client) -> Result<T, ClientError> + Send,
    ) -> PyResult<T> {
        let client = self.client()?;
        py.detach(|| ask(&client)).map_err(failed)
    }
}

/// It says goodbye, which takes a round trip: not under the GIL.
impl Drop for Client {
    fn drop(&mut self) {
        let client = self.client.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        Python::try_attach(|py| py.detach(|| drop(client)));
    }
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (
        server=None, *, instance=None, host=None, timeout_seconds=5.0, budget_bytes=0,
        device_paths=Vec::new(), in_flight_max=64, eager_map=false, visibility_plugin=None,
        verify="sample", outside_writers=false,
    ))]
    #[expect(clippy::too_many_arguments, reason = "all by name")]
    fn new(
        py: Python<'_>,
        server: Option<&str>,
        instance: Option<String>,
        host: Option<String>,
        timeout_seconds: f64,
        budget_bytes: u64,
        device_paths: Vec<PathBuf>,
        in_flight_max: u32,
        eager_map: bool,
        visibility_plugin: Option<PathBuf>,
        verify: &str,
        outside_writers: bool,
    ) -> PyResult<Self> {
        let defaults = ClientConfig::default();
        let config = ClientConfig {
            endpoint: server.map_or(Ok(defaults.endpoint), endpoint)?,
            instance: instance.unwrap_or(defaults.instance),
            host,
            timeout: seconds("timeout_seconds", timeout_seconds)?,
            budget_bytes,
            device_paths,
            in_flight_max,
            eager_map,
            visibility_plugin,
            verify: self::verify(verify)?,
            outside_writers,
            one_pool: false,
        };
        let instance = config.instance.clone();
        let client = py.detach(|| client::Client::connect(config)).map_err(failed)?;
        Ok(Self { client: Mutex::new(Some(client)), instance })
    }

    #[getter]
    fn instance(&self) -> &str {
        &self.instance
    }

    #[getter]
    fn batch_max(&self) -> PyResult<usize> {
        Ok(self.client()?.batch_max())
    }

    #[pyo3(signature = (keys, page_bytes, *, tag=0, unless_being_written=false))]
    fn reserve(
        slf: &Bound<'_, Self>,
        keys: Vec<AnyKey>,
        page_bytes: u64,
        tag: u64,
        unless_being_written: bool,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let keys = wire(&keys)?;
        let how = Reserve { tag, unless_being_written };
        let reserve = |client: &client::Client| client.reserve(&keys, page_bytes, how);
        granted(slf, slf.get().ask(slf.py(), reserve)?)
    }

    fn reserve_unnamed(
        slf: &Bound<'_, Self>,
        count: usize,
        page_bytes: u64,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let reserve = |client: &client::Client| client.reserve_unnamed(count, page_bytes);
        granted(slf, slf.get().ask(slf.py(), reserve)?)
    }

    fn commit(&self, py: Python<'_>, pages: Vec<Py<ReservedPage>>) -> PyResult<Vec<Committed>> {
        let pages = taken(&pages)?;
        self.ask(py, |client| client.commit(pages)).map(committed)
    }

    fn commit_as(
        &self,
        py: Python<'_>,
        keys: Vec<AnyKey>,
        pages: Vec<Py<ReservedPage>>,
    ) -> PyResult<Vec<Committed>> {
        let keys = wire(&keys)?;
        if keys.len() != pages.len() {
            return Err(wrong(format_args!(
                "{} keys for {} pages: give one each",
                keys.len(),
                pages.len()
            )));
        }
        let pages = taken(&pages)?;
        self.ask(py, |client| client.commit_as(keys.into_iter().zip(pages))).map(committed)
    }

    #[pyo3(signature = (keys, *, stop_at_miss=false))]
    fn acquire(
        slf: &Bound<'_, Self>,
        keys: Vec<AnyKey>,
        stop_at_miss: bool,
    ) -> PyResult<PinnedPages> {
        let keys = wire(&keys)?;
        let acquire = |client: &client::Client| client.acquire(&keys, Acquire { stop_at_miss });
        let found = slf.get().ask(slf.py(), acquire)?;
        Ok(PinnedPages::new(slf.clone().into_any().unbind(), found))
    }

    /// Takes pages one by one, or all that one `acquire` gave.
    fn release(&self, py: Python<'_>, pages: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut taken = Vec::new();
        let one_by_one = match pages.cast::<PinnedPages>() {
            Ok(pages) => {
                taken = pages.get().take_unmade();
                pages.get().made(py)
            }
            Err(_) => pages.extract::<Vec<Py<PinnedPage>>>()?,
        };
        for page in one_by_one {
            taken.extend(page.get().take()?);
        }
        self.ask(py, |client| client.release(taken))
    }

    fn contains(&self, py: Python<'_>, keys: Vec<AnyKey>) -> PyResult<Vec<Presence>> {
        let keys = wire(&keys)?;
        self.ask(py, |client| client.contains(&keys)).map(presence)
    }

    fn touch(&self, py: Python<'_>, keys: Vec<AnyKey>) -> PyResult<Vec<Presence>> {
        let keys = wire(&keys)?;
        self.ask(py, |client| client.touch(&keys)).map(presence)
    }

    fn delete(&self, py: Python<'_>, keys: Vec<AnyKey>) -> PyResult<Vec<Deletion>> {
        let keys = wire(&keys)?;
        let deleted = self.ask(py, |client| client.delete(&keys))?;
        let deleted = deleted.into_iter().map(|one| match one {
            protocol::DeleteOutcome::Deleted => Deletion::Deleted,
            protocol::DeleteOutcome::Pinned => Deletion::Pinned,
            protocol::DeleteOutcome::Reserved => Deletion::Reserved,
            protocol::DeleteOutcome::Missing => Deletion::Missing,
        });
        Ok(deleted.collect())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stats = self.ask(py, client::Client::stats)?;
        report(py, &stats)
    }

    fn regions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let regions = self.ask(py, client::Client::regions)?;
        report(py, &regions)
    }

    fn topology<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let memory = self.ask(py, client::Client::memory)?;
        report(py, &memory.topology)
    }

    #[pyo3(signature = (*, writable=false))]
    fn memory(&self, py: Python<'_>, writable: bool) -> PyResult<PoolMemory> {
        let memory = self.ask(py, client::Client::memory)?;
        Ok(PoolMemory::new(memory, writable))
    }

    fn confirm(&self, py: Python<'_>) -> PyResult<()> {
        self.ask(py, client::Client::confirm)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.ask(py, client::Client::flush)
    }

    fn close(&self, py: Python<'_>) {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It says goodbye.
        py.detach(|| drop(client));
    }
}

/// A page or a refusal for each key.
fn granted(owner: &Bound<'_, Client>, reserved: Vec<Reserved>) -> PyResult<Vec<Py<PyAny>>> {
    let py = owner.py();
    let granted = reserved.into_iter().map(|one| {
        let refused = match one {
            Reserved::Page(page) => {
                return ReservedPage::new(owner.clone().into_any().unbind(), page).into_py_any(py);
            }
            Reserved::Resident => Refused::Resident,
            Reserved::BeingWritten => Refused::BeingWritten,
            Reserved::AlreadyReserved => Refused::AlreadyReserved,
            Reserved::OutOfMemory => Refused::OutOfMemory,
            Reserved::OverBudget => Refused::OverBudget,
        };
        refused.into_py_any(py)
    });
    granted.collect()
}

/// The reservations of these pages; or none, if one of them was taken before.
fn taken(pages: &[Py<ReservedPage>]) -> PyResult<Vec<client::ReservedPage>> {
    if !pages.iter().all(|page| page.get().is_open()) {
        return Err(over("a page"));
    }
    let distinct: HashSet<*mut _> = pages.iter().map(Py::as_ptr).collect();
    if distinct.len() < pages.len() {
        return Err(wrong("a page is there twice: it can have one chunk"));
    }
    pages.iter().map(|page| page.get().take()).collect()
}
