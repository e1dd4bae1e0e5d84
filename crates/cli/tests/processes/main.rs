//! Real processes of the `maru` program: as its user meets it, end to end, and killed.
// Helpers of tests may fail loudly, like tests, and tell what they saw.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;
mod hosts;
mod kill;
mod program;
mod replay;
