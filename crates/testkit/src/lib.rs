//! What the tests of Maru share. Everything here fails loudly: a helper that cannot do its part
//! panics, and whatever waits gives up after a time that only a hang can take.
//!
//! - [`FaultProxy`] stands between a client and a server, and misbehaves on command.
//! - [`conformance`] is what every L1 manager must do, case by case.
//! - [`Program`], [`Serving`] and [`Replaying`] are real processes of the `maru` program, and [`kill`] is
//!   what becomes of them when they are killed and stopped.
//! - [`TestPool`] is a server with a small pool of its own, and knows whether anything is left.

use std::time::Duration;

pub mod conformance;
mod disk;
mod fault;
pub mod kill;
mod pool;
mod processes;
mod rewrite;
pub mod simulation;

pub use disk::MemoryDisk;
pub use fault::{ANY, Fault, FaultProxy};
pub use pool::{SHORT, TestPool, assert_nothing_left, next_epoch};
pub use processes::{Instance, Program, Replayed, Replaying, Serving, text, wait_until};

/// Only a hang takes this long.
const WATCHDOG: Duration = Duration::from_mins(1);
