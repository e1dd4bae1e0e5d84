//! The shared index: which key lies where, who reads it, who may write.
//!
//! A pure state machine. [`Directory::apply`] takes a request of a session and returns the reply;
//! [`Directory::tick`] lets time pass. There is no clock, thread, socket, file or random source in
//! here: whoever drives the directory brings the time and the secrets, so tests, the fuzzer and
//! the server all drive the same functions.
//!
//! What must hold after every step is written down once, in [`rules`].

mod checkpoint;
mod claims;
mod config;
mod damage;
mod directory;
mod entries;
mod eviction;
mod ids;
mod pages;
#[cfg(feature = "plant")]
mod plant;
mod reading;
mod reclaim;
mod record;
mod recovery;
mod report;
mod room;
pub mod rules;
mod sessions;
mod stains;
mod watching;
mod writing;

pub use config::{Config, ConfigError, DeviceSpan, Geometry, Millis};
pub use damage::Look;
pub use directory::{Directory, Opened};
pub use eviction::{EvictionPolicy, Lru};
pub use ids::{EntryId, PageAt, QueueId};
pub use reclaim::Tick;
pub use record::{ProcessId, Record};
pub use recovery::{Recovery, RecoveryError};
pub use watching::Gone;

/// The most pins a session may hold: with the limit on sessions, no entry's count can overflow.
pub const PINS_PER_SESSION_MAX: u64 = 1 << 21;

/// The most sessions a directory may be configured for; see [`PINS_PER_SESSION_MAX`].
pub const SESSIONS_MAX: u32 = 1024;
