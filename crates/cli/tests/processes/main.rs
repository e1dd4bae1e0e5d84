//! Real processes of the `maru` program: as its user meets it, end to end, and killed.
#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

mod common;
mod doctor;
mod hosts;
mod kill;
mod program;
mod replay;
mod store;
