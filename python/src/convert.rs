//! What Python gives, as what the crates take, and back.

use std::time::Duration;

use maru_client::Verify;
use maru_l1::{KvRank, ObjectKey};
use maru_protocol::{Endpoint, Key};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use serde::Serialize;

use crate::error::wrong;

/// A key of the directory, given as text or bytes.
#[derive(Debug, FromPyObject)]
pub(crate) enum AnyKey {
    Text(String),
    Bytes(Vec<u8>),
}

impl AnyKey {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The keys as the directory takes them.
pub(crate) fn wire(keys: &[AnyKey]) -> PyResult<Vec<Key<'_>>> {
    keys.iter().map(|key| Key::new(key.bytes()).map_err(wrong)).collect()
}

/// A key of the L1 contract: LMCache's `ObjectKey`, or its key string.
#[derive(Debug)]
pub(crate) struct L1Key(pub(crate) ObjectKey);

impl FromPyObject<'_, '_> for L1Key {
    type Error = PyErr;

    fn extract(key: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        if let Ok(text) = key.cast::<PyString>() {
            return text.to_cow()?.parse().map(Self).map_err(wrong);
        }
        let py = key.py();
        let model = key.getattr(intern!(py, "model_name"))?;
        let hash = key.getattr(intern!(py, "chunk_hash"))?;
        let salt = key.getattr(intern!(py, "cache_salt"))?;
        let key = ObjectKey::new(
            &model.cast::<PyString>()?.to_cow()?,
            KvRank(key.getattr(intern!(py, "kv_rank"))?.extract()?),
            hash.cast::<PyBytes>()?.as_bytes(),
            key.getattr(intern!(py, "object_group_id"))?.extract()?,
            &salt.cast::<PyString>()?.to_cow()?,
        );
        key.map(Self).map_err(wrong)
    }
}

pub(crate) fn object_keys(keys: Vec<L1Key>) -> Vec<ObjectKey> {
    keys.into_iter().map(|key| key.0).collect()
}

pub(crate) fn endpoint(server: &str) -> PyResult<Endpoint> {
    server.parse().map_err(wrong)
}

pub(crate) fn verify(name: &str) -> PyResult<Verify> {
    match name {
        "off" => Ok(Verify::Off),
        "sample" => Ok(Verify::Sample),
        "always" => Ok(Verify::Always),
        _ => Err(PyValueError::new_err(format!(
            "verify={name:?}: it is one of \"off\", \"sample\", \"always\""
        ))),
    }
}

/// A time of at least a millisecond.
pub(crate) fn seconds(name: &str, seconds: f64) -> PyResult<Duration> {
    let time = Duration::try_from_secs_f64(seconds).ok();
    time.filter(|time| time.as_millis() > 0).ok_or_else(|| {
        PyValueError::new_err(format!("{name}={seconds}: it must be at least 0.001 seconds"))
    })
}

/// A report as Python's own dictionaries and lists.
pub(crate) fn report<'py>(py: Python<'py>, report: &impl Serialize) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_string(report).map_err(wrong)?;
    py.import(intern!(py, "json"))?.call_method1(intern!(py, "loads"), (text,))
}
