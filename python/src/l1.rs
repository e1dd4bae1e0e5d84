//! The L1 managers.

use std::path::PathBuf;
use std::sync::Arc;

use maru_l1::{
    L1Error, L1ManagerConfig, L1MemoryConfig, LocalL1Manager, MaruL1Config, MaruL1Error,
    MaruL1Manager, MemoryLayoutDesc, Outcomes, ReadObject, Write, WriteObject,
};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::convert::{L1Key, endpoint, object_keys, report, seconds, verify};
use crate::error::{MaruError, failed, wrong};
use crate::listener::Listener;
use crate::view::{Bytes, PoolMemory};

/// LMCache's `L1Error`, by its number there.
const fn code<T>(outcome: &Result<T, L1Error>) -> u8 {
    match outcome {
        Ok(_) => 1,
        Err(L1Error::KeyNotExist) => 2,
        Err(L1Error::KeyNotReadable) => 3,
        Err(L1Error::KeyNotWritable) => 4,
        Err(L1Error::KeyInWrongState) => 5,
        Err(L1Error::KeyIsLocked) => 6,
        Err(L1Error::OutOfMemory) => 7,
    }
}

fn codes<T>(outcomes: &Outcomes<T>) -> Vec<u8> {
    outcomes.iter().map(code).collect()
}

fn cannot_start(error: MaruL1Error) -> PyErr {
    match error {
        MaruL1Error::Client(error) => failed(error),
        MaruL1Error::Thread(_) => MaruError::new_err(error.to_string()),
        other => wrong(other),
    }
}

/// A chunk that a manager gave.
#[derive(Debug, Clone)]
enum Object {
    Read(ReadObject),
    Write(WriteObject),
}

/// What a manager answered to a batch, by key.
#[pyclass(frozen, module = "maru._native")]
#[derive(Debug)]
pub(crate) struct Chunks {
    outcomes: Outcomes<Object>,
}

impl Chunks {
    fn get(&self, index: usize) -> PyResult<&Object> {
        let outcome = self.outcomes.get(index);
        let outcome = outcome.ok_or_else(|| PyIndexError::new_err("no such key in the batch"))?;
        let refused = |error: &L1Error| PyValueError::new_err(error.to_string());
        outcome.as_ref().map_err(refused)
    }
}

#[pymethods]
impl Chunks {
    fn __len__(&self) -> usize {
        self.outcomes.len()
    }

    #[getter]
    fn codes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &codes(&self.outcomes))
    }

    fn place(&self, index: usize) -> PyResult<(usize, u64, u64)> {
        Ok(match self.get(index)? {
            Object::Read(object) => (object.id(), object.offset(), object.bytes()),
            Object::Write(object) => (object.id(), object.offset(), object.bytes()),
        })
    }

    fn chunk(&self, index: usize) -> PyResult<Chunk> {
        Ok(Chunk { object: self.get(index)?.clone() })
    }
}

/// One chunk.
#[pyclass(frozen, module = "maru._native")]
#[derive(Debug)]
pub(crate) struct Chunk {
    object: Object,
}

#[pymethods]
impl Chunk {
    fn __len__(&self) -> usize {
        let bytes = match &self.object {
            Object::Read(object) => object.bytes(),
            Object::Write(object) => object.bytes(),
        };
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    #[getter]
    fn is_writable(&self) -> bool {
        matches!(self.object, Object::Write(_))
    }

    fn is_open(&self) -> bool {
        match &self.object {
            Object::Read(object) => object.is_live(),
            Object::Write(object) => object.is_open(),
        }
    }

    fn copy_to(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Object::Read(object) = &self.object else {
            return Err(PyValueError::new_err(
                "the chunk is being written: nothing can be read yet",
            ));
        };
        let mut buffer = Bytes::writable(buffer)?;
        check_length(buffer.bytes().len(), object.bytes())?;
        let copy = |bytes: &[u8]| buffer.bytes_mut().copy_from_slice(bytes);
        Ok(py.detach(|| object.read(copy)).is_ok())
    }

    fn copy_from(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Object::Write(object) = &self.object else {
            return Err(PyValueError::new_err("the chunk is resident: it is read-only"));
        };
        let buffer = Bytes::readable(buffer)?;
        check_length(buffer.bytes().len(), object.bytes())?;
        let copy = |bytes: &mut [u8]| bytes.copy_from_slice(buffer.bytes());
        Ok(py.detach(|| object.write(copy)).is_ok())
    }
}

fn check_length(found: usize, bytes: u64) -> PyResult<()> {
    if found as u64 == bytes {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("a buffer of {found} bytes for a chunk of {bytes}")))
}

#[derive(Debug, Clone)]
enum Kind {
    Local(Arc<LocalL1Manager>),
    Maru(Arc<MaruL1Manager>),
}

/// An L1 manager: private, or over the shared pool.
#[pyclass(frozen, weakref, module = "maru._native")]
#[derive(Debug)]
pub(crate) struct L1Manager {
    kind: Kind,
}

impl L1Manager {
    fn manager(&self) -> &dyn maru_l1::L1Manager {
        match &self.kind {
            Kind::Local(manager) => &**manager,
            Kind::Maru(manager) => &**manager,
        }
    }

    fn shared(&self) -> PyResult<&MaruL1Manager> {
        match &self.kind {
            Kind::Maru(manager) => Ok(manager),
            Kind::Local(_) => Err(PyValueError::new_err("a private L1 has no pool")),
        }
    }

    /// Works without the GIL.
    fn work<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&dyn maru_l1::L1Manager) -> T + Send,
    ) -> T {
        let manager = self.manager();
        py.detach(|| work(manager))
    }
}

fn read(outcomes: Outcomes<ReadObject>) -> Chunks {
    let outcomes = outcomes.into_iter().map(|outcome| outcome.map(Object::Read));
    Chunks { outcomes: outcomes.collect() }
}

/// Those that cannot be read, though they are locked, are found out here rather than in the tensor.
/// A server that is away is waited for once, not for each chunk.
fn verified(outcomes: Outcomes<ReadObject>) -> Outcomes<ReadObject> {
    let mut is_away = false;
    let verify = |outcome: Result<ReadObject, L1Error>| {
        let object = outcome?;
        if is_away {
            return Err(L1Error::KeyNotReadable);
        }
        object.read(|_| ()).inspect_err(|_| is_away = object.is_live())?;
        Ok(object)
    };
    outcomes.into_iter().map(verify).collect()
}

/// Whoever writes does so by the offset: now is when the page is made ready for that.
fn opened(outcome: Result<WriteObject, L1Error>) -> Result<Object, L1Error> {
    let object = outcome?;
    // If its session ended already, finishing the write will say so.
    let _ = object.write(|_| ());
    Ok(Object::Write(object))
}

/// Giving everything back takes a while, and listeners may be told meanwhile: not under the GIL.
impl Drop for L1Manager {
    fn drop(&mut self) {
        Python::try_attach(|py| py.detach(|| self.manager().close()));
    }
}

#[pymethods]
impl L1Manager {
    #[staticmethod]
    #[pyo3(signature = (
        bytes, *, initial_bytes=None, align_bytes=4096, huge_pages=false,
        write_ttl_seconds=600.0, read_ttl_seconds=300.0,
    ))]
    fn local(
        py: Python<'_>,
        bytes: u64,
        initial_bytes: Option<u64>,
        align_bytes: u64,
        huge_pages: bool,
        write_ttl_seconds: f64,
        read_ttl_seconds: f64,
    ) -> PyResult<Self> {
        let initial_bytes = initial_bytes.unwrap_or(bytes);
        let config = L1ManagerConfig {
            memory: L1MemoryConfig { bytes, initial_bytes, align_bytes, huge_pages },
            write_ttl: seconds("write_ttl_seconds", write_ttl_seconds)?,
            read_ttl: seconds("read_ttl_seconds", read_ttl_seconds)?,
            ..L1ManagerConfig::default()
        };
        let manager = py.detach(|| LocalL1Manager::new(config)).map_err(wrong)?;
        Ok(Self { kind: Kind::Local(Arc::new(manager)) })
    }

    #[staticmethod]
    #[pyo3(signature = (
        server, *, pool_bytes=104_857_600, instance=None, timeout_seconds=2.0, in_flight_max=64,
        eager_map=true, auto_expand=true, verify="sample", host=None, visibility_plugin=None,
        outside_writers=false, write_ttl_seconds=600.0, read_ttl_seconds=300.0,
    ))]
    #[expect(clippy::too_many_arguments, reason = "all by name")]
    fn maru(
        py: Python<'_>,
        server: &str,
        pool_bytes: u64,
        instance: Option<String>,
        timeout_seconds: f64,
        in_flight_max: u32,
        eager_map: bool,
        auto_expand: bool,
        verify: &str,
        host: Option<String>,
        visibility_plugin: Option<PathBuf>,
        outside_writers: bool,
        write_ttl_seconds: f64,
        read_ttl_seconds: f64,
    ) -> PyResult<Self> {
        let maru = MaruL1Config {
            server: endpoint(server)?,
            pool_bytes,
            instance,
            timeout: seconds("timeout_seconds", timeout_seconds)?,
            in_flight_max,
            eager_map,
            auto_expand,
            verify: self::verify(verify)?,
            host,
            visibility_plugin,
            outside_writers,
            // Python goes by addresses.
            one_pool: true,
        };
        let config = L1ManagerConfig {
            maru: Some(maru),
            write_ttl: seconds("write_ttl_seconds", write_ttl_seconds)?,
            read_ttl: seconds("read_ttl_seconds", read_ttl_seconds)?,
            ..L1ManagerConfig::default()
        };
        let manager = py.detach(|| MaruL1Manager::new(config)).map_err(cannot_start)?;
        Ok(Self { kind: Kind::Maru(Arc::new(manager)) })
    }

    fn register_listener(&self, py: Python<'_>, listener: Py<PyAny>) {
        let listener = Arc::new(Listener(listener));
        self.work(py, |manager| manager.register_listener(listener));
    }

    fn register_kv_layout(
        &self,
        py: Python<'_>,
        chunk_bytes: u64,
        tokens_per_chunk: u64,
    ) -> PyResult<u64> {
        let manager = self.shared()?;
        let layout = MemoryLayoutDesc::opaque(chunk_bytes).map_err(wrong)?;
        let register = || manager.register_kv_layout(&layout, tokens_per_chunk);
        py.detach(register).map_err(cannot_start)
    }

    #[pyo3(signature = (keys, read_locks=1))]
    fn reserve_read(&self, py: Python<'_>, keys: Vec<L1Key>, read_locks: u32) -> Chunks {
        let keys = object_keys(keys);
        read(self.work(py, |manager| manager.reserve_read(&keys, read_locks)))
    }

    fn unsafe_read(&self, py: Python<'_>, keys: Vec<L1Key>) -> Chunks {
        let keys = object_keys(keys);
        read(self.work(py, |manager| verified(manager.unsafe_read(&keys))))
    }

    #[pyo3(signature = (keys, read_locks=1))]
    fn finish_read(&self, py: Python<'_>, keys: Vec<L1Key>, read_locks: u32) -> Vec<u8> {
        let keys = object_keys(keys);
        codes(&self.work(py, |manager| manager.finish_read(&keys, read_locks)))
    }

    #[pyo3(signature = (keys, temporary, chunk_bytes, tag=""))]
    fn reserve_write(
        &self,
        py: Python<'_>,
        keys: Vec<L1Key>,
        temporary: Vec<bool>,
        chunk_bytes: u64,
        tag: &str,
    ) -> PyResult<Chunks> {
        if keys.len() != temporary.len() {
            return Err(PyValueError::new_err(format!(
                "{} keys, but {} say whether they are temporary: give one each",
                keys.len(),
                temporary.len()
            )));
        }
        let layout = MemoryLayoutDesc::opaque(chunk_bytes).map_err(wrong)?;
        let write = |(key, temporary): (L1Key, bool)| Write { key: key.0, temporary };
        let writes: Vec<Write> = keys.into_iter().zip(temporary).map(write).collect();
        let outcomes = self.work(py, |manager| {
            manager.reserve_write(&writes, &layout, tag).into_iter().map(opened).collect()
        });
        Ok(Chunks { outcomes })
    }

    #[pyo3(signature = (keys, tag=""))]
    fn finish_write(&self, py: Python<'_>, keys: Vec<L1Key>, tag: &str) -> Vec<u8> {
        let keys = object_keys(keys);
        codes(&self.work(py, |manager| manager.finish_write(&keys, tag)))
    }

    #[pyo3(signature = (keys, read_locks=1, tag=""))]
    fn finish_write_and_reserve_read(
        &self,
        py: Python<'_>,
        keys: Vec<L1Key>,
        read_locks: u32,
        tag: &str,
    ) -> Chunks {
        let keys = object_keys(keys);
        read(self.work(py, |manager| manager.finish_write_and_reserve_read(&keys, read_locks, tag)))
    }

    #[pyo3(signature = (keys, tag=""))]
    fn finish_write_and_delete(&self, py: Python<'_>, keys: Vec<L1Key>, tag: &str) -> Vec<u8> {
        let keys = object_keys(keys);
        codes(&self.work(py, |manager| manager.finish_write_and_delete(&keys, tag)))
    }

    #[pyo3(signature = (keys, force=false))]
    fn delete(&self, py: Python<'_>, keys: Vec<L1Key>, force: bool) -> Vec<u8> {
        let keys = object_keys(keys);
        codes(&self.work(py, |manager| manager.delete(&keys, force)))
    }

    #[pyo3(signature = (force=false))]
    fn clear(&self, py: Python<'_>, force: bool) {
        self.work(py, |manager| manager.clear(force));
    }

    fn touch_keys(&self, py: Python<'_>, keys: Vec<L1Key>) {
        let keys = object_keys(keys);
        self.work(py, |manager| manager.touch_keys(&keys));
    }

    fn is_key_evictable(&self, py: Python<'_>, key: L1Key) -> bool {
        self.work(py, |manager| manager.is_key_evictable(&key.0))
    }

    fn memory_usage(&self, py: Python<'_>) -> (u64, u64) {
        let usage = self.work(py, |manager| manager.memory_usage());
        (usage.used_bytes, usage.total_bytes)
    }

    fn staging_memory_usage(&self, py: Python<'_>) -> u64 {
        self.work(py, |manager| manager.staging_memory_usage())
    }

    fn capacity_bytes_by_backend<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let capacity = self.work(py, |manager| manager.capacity_bytes_by_backend());
        report(py, &capacity)
    }

    /// Address, bytes, alignment, and how many bytes are there to stay.
    fn memory_desc(&self, py: Python<'_>) -> Option<(usize, u64, u64, Option<u64>)> {
        let desc = self.work(py, |manager| manager.memory_desc())?;
        Some((desc.address, desc.bytes, desc.align_bytes, desc.stable_bytes))
    }

    /// Read locks, and whether it is temporary.
    fn object_state(&self, py: Python<'_>, key: L1Key) -> Option<(u32, bool)> {
        let state = self.work(py, |manager| manager.object_state(&key.0))?;
        Some((state.read_locks, state.temporary))
    }

    fn report_status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let status = self.work(py, |manager| manager.report_status());
        report(py, &status)
    }

    fn memcheck(&self, py: Python<'_>) -> bool {
        self.work(py, |manager| manager.memcheck())
    }

    fn close(&self, py: Python<'_>) {
        self.work(py, |manager| manager.close());
    }

    #[pyo3(signature = (*, writable=false))]
    fn memory(&self, py: Python<'_>, writable: bool) -> PyResult<PoolMemory> {
        let manager = self.shared()?;
        let memory = py.detach(|| manager.memory()).map_err(cannot_start)?;
        Ok(PoolMemory::new(memory, writable))
    }

    fn topology<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let manager = self.shared()?;
        let memory = py.detach(|| manager.memory()).map_err(cannot_start)?;
        report(py, &memory.topology)
    }

    fn regions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let manager = self.shared()?;
        let regions = py.detach(|| manager.regions()).map_err(cannot_start)?;
        report(py, &regions)
    }
}
