//! The L1 cache of LMCache's multi-process mode: one contract, two managers.
//!
//! [`L1Manager`] is what a cache server asks of its first tier: stage a chunk, finish it, lock it for
//! reading, give it back. [`LocalL1Manager`] does that over private DRAM, [`MaruL1Manager`] over the
//! pool that many instances share, and code that knows the contract need not know which it has.
//! Errors are values, one a key ([`L1Error`]); an [`L1Listener`] hears what happens.
//!
//! [`L1ManagerConfig`] says what either is made from; [`L1Args`] reads it from flags, environment and
//! a file. An [`EvictionController`] evicts from a private L1; a shared one's server does so itself.
//!
//! ```
//! use maru_l1::{
//!     KvRank, L1Manager, L1ManagerConfig, L1MemoryConfig, LocalL1Manager, MemoryLayoutDesc,
//!     ObjectKey, Write,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = L1MemoryConfig { bytes: 1 << 20, initial_bytes: 1 << 20, ..Default::default() };
//! let config = L1ManagerConfig { memory, ..L1ManagerConfig::default() };
//! let l1: Box<dyn L1Manager> = Box::new(LocalL1Manager::new(config)?);
//!
//! let key = ObjectKey::new("org/model", KvRank::pack(1, 0, 1, 0), &[0xc0, 0xff], 0, "")?;
//! let layout = MemoryLayoutDesc::opaque(64 << 10)?;
//! for staged in l1.reserve_write(&[Write::retained(key.clone())], &layout, "store") {
//!     staged?.write(|bytes| bytes.fill(7))?;
//! }
//! l1.finish_write(&[key.clone()], "store").remove(0)?;
//!
//! let chunk = l1.reserve_read(&[key.clone()], 1).remove(0)?;
//! assert_eq!(chunk.read(|bytes| bytes[0])?, 7);
//! l1.finish_read(&[key], 1).remove(0)?;
//! # Ok(())
//! # }
//! ```

mod clock;
mod config;
mod contract;
mod error;
mod eviction;
mod key;
mod layout;
mod listener;
mod local;
mod lock;
mod maru;
mod object;
mod staging;

pub use clock::{Clock, ManualClock, MonotonicClock};
pub use config::{
    ConfigOrigin, EvictionConfig, EvictionPolicyKind, L1Args, L1ConfigError, L1ManagerConfig,
    L1MemoryConfig, MaruL1Config,
};
pub use contract::{
    L1Backend, L1Manager, L1ManagerId, L1MemoryDesc, L1Status, MemoryUsage, ObjectState, Outcomes,
    READ_LOCKS_MAX, Write,
};
pub use error::L1Error;
pub use eviction::{EVICTION_INTERVAL, EvictionController, EvictionStatus};
pub use key::{KeyError, KvRank, ObjectKey};
pub use layout::{DType, LayoutError, MemoryLayoutDesc};
pub use listener::L1Listener;
pub use local::{LocalL1Error, LocalL1Manager};
pub use maru::{MaruL1Error, MaruL1Manager};
pub use object::{ReadObject, WriteObject};
