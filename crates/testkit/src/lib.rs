//! What the tests of Maru share. Everything here fails loudly: a helper that cannot do its part
//! panics, and whatever waits gives up after a time that only a hang can take.
//!
//! - [`FaultProxy`] stands between a client and a server, and misbehaves on command.
//! - [`conformance`] is what every L1 manager must do, case by case.
//! - [`TestPool`] is a server with a small pool of its own, and knows whether anything is left.

use std::time::Duration;

pub mod conformance;
mod disk;
mod fault;
mod pool;
mod rewrite;
pub mod simulation;

pub use disk::MemoryDisk;
pub use fault::{ANY, Fault, FaultProxy};
pub use pool::{SHORT, TestPool, next_epoch};

/// Only a hang takes this long.
const WATCHDOG: Duration = Duration::from_mins(1);
