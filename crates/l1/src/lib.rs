//! The L1 cache of LMCache's multi-process mode: one contract, [`L1Manager`], over private DRAM
//! ([`LocalL1Manager`]) and over the shared pool ([`MaruL1Manager`]).

mod clock;
mod config;
mod contract;
mod error;
mod eviction;
mod key;
mod layout;
mod listener;
mod local;
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
