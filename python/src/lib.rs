//! The native module of the Python packages: sessions and pages for `maru`, both L1 managers for
//! `maru_lmcache`. What it offers is typed and explained in `packages/maru/_native.pyi`.
//!
//! Nothing waits or copies while it holds the GIL, and no Python object is made for a page before it
//! is asked for.

// What Python calls takes what Python gives.
#![allow(clippy::needless_pass_by_value)]

mod client;
mod convert;
mod error;
mod l1;
mod listener;
mod page;
mod view;

use pyo3::prelude::*;

/// The native module.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::add_to(module)?;
    module.add_class::<client::Client>()?;
    module.add_class::<client::Refused>()?;
    module.add_class::<client::Committed>()?;
    module.add_class::<client::Presence>()?;
    module.add_class::<client::Deletion>()?;
    module.add_class::<page::PinnedPages>()?;
    module.add_class::<page::PinnedPage>()?;
    module.add_class::<page::ReservedPage>()?;
    module.add_class::<view::PoolMemory>()?;
    module.add_class::<l1::L1Manager>()?;
    module.add_class::<l1::Chunks>()?;
    module.add_class::<l1::Chunk>()
}
