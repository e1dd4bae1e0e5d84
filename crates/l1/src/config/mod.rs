//! What a manager is told at its start.

mod args;
mod available;
mod check;
mod error;
mod file;
mod flags;
mod layers;
mod resolve;
#[cfg(test)]
mod tests;
mod value;

use std::path::PathBuf;
use std::time::Duration;

use maru_client::{ClientConfig, Verify};
use maru_protocol::Endpoint;
use serde::{Deserialize, Serialize};

pub use args::L1Args;
pub use error::{ConfigOrigin, L1ConfigError};

/// What an L1 manager is made from: `L1ManagerConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct L1ManagerConfig {
    /// Its private memory. A shared manager takes none of it.
    pub memory: L1MemoryConfig,
    /// The pool, if the L1 is the shared one.
    pub maru: Option<MaruL1Config>,
    /// How long a reservation lives: `write_ttl_seconds`.
    pub write_ttl: Duration,
    /// How long a read lock lives after it was last taken: `read_ttl_seconds`.
    pub read_ttl: Duration,
    /// When and what a private L1 evicts.
    pub eviction: EvictionConfig,
}

impl Default for L1ManagerConfig {
    /// A private L1 with LMCache's times.
    fn default() -> Self {
        Self {
            memory: L1MemoryConfig::default(),
            maru: None,
            write_ttl: Duration::from_mins(10),
            read_ttl: Duration::from_mins(5),
            eviction: EvictionConfig::default(),
        }
    }
}

/// The memory of a private L1: `L1MemoryManagerConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct L1MemoryConfig {
    /// Its size in bytes.
    pub bytes: u64,
    /// How much of it is there from the start, in bytes; the rest comes when it is needed. At most
    /// `bytes`.
    pub initial_bytes: u64,
    /// Chunks begin at multiples of this, a power of two.
    pub align_bytes: u64,
    /// Take the memory from the 2 MiB huge pages that the system has set aside, all at the start.
    pub huge_pages: bool,
}

impl Default for L1MemoryConfig {
    /// 4 GiB, and a sixteenth of that at the start: LMCache takes 20 GiB then, because it registers
    /// them with the GPU.
    fn default() -> Self {
        Self { bytes: 4 << 30, initial_bytes: 256 << 20, align_bytes: 4096, huge_pages: false }
    }
}

/// The shared L1: `MaruL1Config`.
#[expect(clippy::struct_excessive_bools, reason = "settings, each for itself")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaruL1Config {
    /// The server: `server_url`.
    pub server: Endpoint,
    /// How many bytes this instance may have in the pool, unless `auto_expand`: `pool_size`.
    pub pool_bytes: u64,
    /// The instance's name; from host and process if it is `None`. `instance_id`.
    pub instance: Option<String>,
    /// How long a request may take: `timeout_ms`.
    pub timeout: Duration,
    /// The most requests on their way at a time: `max_inflight`.
    pub in_flight_max: u32,
    /// Bring the whole pool's mapping in at the start, rather than as pages are used: `eager_map`.
    pub eager_map: bool,
    /// Take more than `pool_bytes` wherever the pool has room: `auto_expand`.
    pub auto_expand: bool,
    /// Which chunks are held against their checksums before they are read, once a pin.
    pub verify: Verify,
    /// The host's name, if the kernel's boot id does not tell which instances share their caches. See
    /// [`ClientConfig::host`].
    pub host: Option<String>,
    /// The library that makes chunks visible to other hosts, if the pool needs one: an absolute path.
    pub visibility_plugin: Option<PathBuf>,
    /// Other processes write into staged chunks, by their offsets. See
    /// [`ClientConfig::outside_writers`]. No flag: whoever hands offsets out knows.
    #[serde(default)]
    pub outside_writers: bool,
    /// Have nothing to do with another pool than the first, should the server come back with one: for
    /// who goes by the address of [`crate::L1MemoryDesc`]. No flag, for the same reason.
    #[serde(default)]
    pub one_pool: bool,
}

impl MaruL1Config {
    /// The pool of this server, with Maru's defaults.
    #[must_use]
    pub const fn new(server: Endpoint) -> Self {
        Self {
            server,
            pool_bytes: 100 << 20,
            instance: None,
            timeout: Duration::from_secs(2),
            in_flight_max: 64,
            eager_map: true,
            auto_expand: true,
            verify: Verify::Sample,
            host: None,
            visibility_plugin: None,
            outside_writers: false,
            one_pool: false,
        }
    }

    /// The same as a client is told it.
    #[must_use]
    pub fn client_config(&self) -> ClientConfig {
        let defaults = ClientConfig::default();
        ClientConfig {
            endpoint: self.server.clone(),
            instance: self.instance.clone().unwrap_or(defaults.instance),
            timeout: self.timeout,
            budget_bytes: if self.auto_expand { 0 } else { self.pool_bytes },
            in_flight_max: self.in_flight_max,
            eager_map: self.eager_map,
            verify: self.verify,
            host: self.host.clone(),
            visibility_plugin: self.visibility_plugin.clone(),
            outside_writers: self.outside_writers,
            one_pool: self.one_pool,
            device_paths: defaults.device_paths,
        }
    }
}

/// When a private L1 evicts, and what: `EvictionConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvictionConfig {
    /// Which chunks go first.
    pub policy: EvictionPolicyKind,
    /// Take them from the cache salt that has most, so that no user pushes another's out: LMCache's
    /// `IsolatedLRU` is `Lru` with this.
    pub isolate_salts: bool,
    /// Evict once this part of the memory is used, 0 to 1: `trigger_watermark`.
    pub trigger_watermark: f64,
    /// How much of what is stored then goes, 0 to 1: `eviction_ratio`.
    pub ratio: f64,
}

impl Default for EvictionConfig {
    /// LMCache's.
    fn default() -> Self {
        Self {
            policy: EvictionPolicyKind::Lru,
            isolate_salts: false,
            trigger_watermark: 0.8,
            ratio: 0.2,
        }
    }
}

/// An eviction policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EvictionPolicyKind {
    /// Least recently used first.
    #[default]
    #[serde(rename = "LRU")]
    Lru,
    /// Three static queues: new ones must prove themselves.
    #[serde(rename = "S3-FIFO")]
    S3Fifo,
    /// Balances recency and frequency by what it regrets.
    #[serde(rename = "ARC")]
    Arc,
    /// Nothing is evicted.
    #[serde(rename = "noop")]
    None,
}
