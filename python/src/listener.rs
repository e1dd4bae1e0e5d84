//! A listener in Python.

use maru_l1::{L1Listener, ObjectKey};
use pyo3::prelude::*;
use pyo3::types::PyList;

/// Tells a Python object with LMCache's `on_l1_keys_*` methods; keys are told as key strings. What it
/// raises is written to `sys.unraisablehook`.
#[derive(Debug)]
pub(crate) struct Listener(pub(crate) Py<PyAny>);

impl Listener {
    fn tell(&self, method: &str, keys: &[ObjectKey]) {
        // At the end of the process nobody listens any more.
        let _ = Python::try_attach(|py| {
            let told = PyList::new(py, keys.iter().map(ObjectKey::as_str))
                .and_then(|keys| self.0.bind(py).call_method1(method, (keys,)));
            if let Err(error) = told {
                error.write_unraisable(py, Some(self.0.bind(py)));
            }
        });
    }
}

impl L1Listener for Listener {
    fn reserved_read(&self, keys: &[ObjectKey]) {
        self.tell("on_l1_keys_reserved_read", keys);
    }
    fn read_finished(&self, keys: &[ObjectKey]) {
        self.tell("on_l1_keys_read_finished", keys);
    }
    fn reserved_write(&self, keys: &[ObjectKey]) {
        self.tell("on_l1_keys_reserved_write", keys);
    }
    fn write_finished(&self, keys: &[ObjectKey]) {
        self.tell("on_l1_keys_write_finished", keys);
    }
    fn finish_write_and_reserve_read(&self, keys: &[ObjectKey]) {
        self.tell("on_l1_keys_finish_write_and_reserve_read", keys);
    }
    fn deleted_by_manager(&self, keys: &[ObjectKey]) {
        self.tell("on_l1_keys_deleted_by_manager", keys);
    }
    fn accessed(&self, keys: &[ObjectKey]) {
        self.tell("on_l1_keys_accessed", keys);
    }
    fn deletions_missed(&self) {
        let _ = Python::try_attach(|py| {
            if let Err(error) = self.0.bind(py).call_method0("on_l1_deletions_missed") {
                error.write_unraisable(py, Some(self.0.bind(py)));
            }
        });
    }
}
