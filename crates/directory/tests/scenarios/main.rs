//! What a directory promises, one story for each promise. The rules' numbers are DESIGN.md's.

// Helpers of tests stand outside of the test functions.
#![allow(clippy::unwrap_used)]

mod damaging;
mod dying;
mod hosts;
mod pool;
mod restarting;
mod room;
mod sharing;
mod telling;
mod watching;
