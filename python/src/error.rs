//! Errors as exceptions.

use std::fmt;

use maru_client::ClientError;
use pyo3::create_exception;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

create_exception!(maru._native, MaruError, PyRuntimeError, "What the pool could not do, and why.");
create_exception!(maru._native, Unreachable, MaruError, "The server is not there, or is silent.");
create_exception!(
    maru._native,
    Stale,
    MaruError,
    "What was read may be another chunk's: discard it."
);
create_exception!(maru._native, Damaged, MaruError, "What was read is not what was stored.");

pub(crate) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("MaruError", py.get_type::<MaruError>())?;
    module.add("Unreachable", py.get_type::<Unreachable>())?;
    module.add("Stale", py.get_type::<Stale>())?;
    module.add("Damaged", py.get_type::<Damaged>())
}

/// What a client could not do.
pub(crate) fn failed(error: ClientError) -> PyErr {
    let text = error.to_string();
    match error {
        ClientError::Unreachable { .. } | ClientError::Timeout { .. } => Unreachable::new_err(text),
        ClientError::Stale => Stale::new_err(text),
        ClientError::Damaged { .. } => Damaged::new_err(text),
        ClientError::BadLength { .. } => PyValueError::new_err(text),
        _ => MaruError::new_err(text),
    }
}

/// What somebody asked for that cannot be.
pub(crate) fn wrong(error: impl fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// What was closed or given away before.
pub(crate) fn over(what: &str) -> PyErr {
    PyValueError::new_err(format!("{what} was closed, committed or released before"))
}
