//! The settings on the command line.

// Doc comments here are help texts on a terminal, where backticks would show.
#![allow(clippy::doc_markdown)]

use std::path::PathBuf;

use clap::Args;

/// The settings of an L1, with LMCache's flags and names; to be flattened into a command's
/// arguments. [`L1Args::resolve`] makes a configuration of them, the environment and a file.
///
/// Values are the text that was given, since flags, variables and files are read by the same
/// parsers, and refused in the same words.
#[expect(clippy::struct_excessive_bools, reason = "a switch has two flags")]
#[derive(Debug, Clone, Default, Args)]
pub struct L1Args {
    /// A file of settings in TOML, named like the flags: l1-size-gb = 8, maru-auto-expand = false.
    /// A flag comes before its environment variable, and both before the file.
    /// [env: MARU_L1_CONFIG]
    #[arg(long, value_name = "FILE", help_heading = "L1 memory")]
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub l1_config: Option<PathBuf>,
    /// The size of the private L1, in GB of 2^30 bytes; less if less memory is available. Nothing is
    /// taken of it with --maru-server-url. [default: 4] [env: MARU_L1_SIZE_GB]
    #[arg(long, value_name = "GB", help_heading = "L1 memory", allow_negative_numbers = true)]
    pub l1_size_gb: Option<String>,
    /// Take memory as it is needed, beyond --l1-init-size-gb. The default, but for huge pages.
    /// [env: MARU_L1_USE_LAZY]
    #[arg(long, help_heading = "L1 memory", overrides_with = "no_l1_use_lazy")]
    pub l1_use_lazy: bool,
    /// Take all memory at the start.
    #[arg(long, help_heading = "L1 memory", overrides_with = "l1_use_lazy")]
    pub no_l1_use_lazy: bool,
    /// How much of --l1-size-gb to take at the start, in GB. [default: 0.25] [env:
    /// MARU_L1_INIT_SIZE_GB]
    #[arg(long, value_name = "GB", help_heading = "L1 memory", allow_negative_numbers = true)]
    pub l1_init_size_gb: Option<String>,
    /// Chunks begin at multiples of this, a power of two. [default: 4096] [env: MARU_L1_ALIGN_BYTES]
    #[arg(long, value_name = "BYTES", help_heading = "L1 memory", allow_negative_numbers = true)]
    pub l1_align_bytes: Option<String>,
    /// Take the memory from the huge pages of 2 MiB that the system has set aside, all at the start.
    /// [env: MARU_L1_USE_HUGEPAGES]
    #[arg(long, help_heading = "L1 memory", overrides_with = "no_l1_use_hugepages")]
    pub l1_use_hugepages: bool,
    /// Take ordinary memory: the default.
    #[arg(long, help_heading = "L1 memory", overrides_with = "l1_use_hugepages")]
    pub no_l1_use_hugepages: bool,
    /// How long a reservation for writing lives. [default: 600] [env: MARU_L1_WRITE_TTL_SECONDS]
    #[arg(long, value_name = "SECONDS", help_heading = "L1 memory", allow_negative_numbers = true)]
    pub l1_write_ttl_seconds: Option<String>,
    /// How long a read lock lives after it was last taken. [default: 300] [env:
    /// MARU_L1_READ_TTL_SECONDS]
    #[arg(long, value_name = "SECONDS", help_heading = "L1 memory", allow_negative_numbers = true)]
    pub l1_read_ttl_seconds: Option<String>,
    /// Keep L1 in the pool of this server: maru://HOST:PORT, tcp://HOST:PORT, unix:///PATH or
    /// /PATH. [env: MARU_SERVER_URL]
    #[arg(long, value_name = "URL", help_heading = "Maru")]
    pub maru_server_url: Option<String>,
    /// How much of the pool this instance may fill, in GB, with --no-maru-auto-expand. [default:
    /// 0.09765625] [env: MARU_POOL_SIZE_GB]
    #[arg(long, value_name = "GB", help_heading = "Maru", allow_negative_numbers = true)]
    pub maru_pool_size_gb: Option<String>,
    /// The instance's name; instances of one name share what they may fill. Default: from host and
    /// process. [env: MARU_INSTANCE_ID]
    #[arg(long, value_name = "NAME", help_heading = "Maru")]
    pub maru_instance_id: Option<String>,
    /// How long a request may take, reconnecting included. [default: 2000] [env: MARU_TIMEOUT_MS]
    #[arg(long, value_name = "MS", help_heading = "Maru", allow_negative_numbers = true)]
    pub maru_timeout_ms: Option<String>,
    /// The most requests on their way at a time. [default: 64] [env: MARU_MAX_INFLIGHT]
    #[arg(long, value_name = "N", help_heading = "Maru", allow_negative_numbers = true)]
    pub maru_max_inflight: Option<String>,
    /// Bring in the mapping of the whole pool at the start: the default. [env: MARU_EAGER_MAP]
    #[arg(long, help_heading = "Maru", overrides_with = "no_maru_eager_map")]
    pub maru_eager_map: bool,
    /// Bring in the mapping as pages are used.
    #[arg(long, help_heading = "Maru", overrides_with = "maru_eager_map")]
    pub no_maru_eager_map: bool,
    /// Fill more than --maru-pool-size-gb wherever the pool has room: the default. [env:
    /// MARU_AUTO_EXPAND]
    #[arg(long, help_heading = "Maru", overrides_with = "no_maru_auto_expand")]
    pub maru_auto_expand: bool,
    /// Fill no more than --maru-pool-size-gb.
    #[arg(long, help_heading = "Maru", overrides_with = "maru_auto_expand")]
    pub no_maru_auto_expand: bool,
    /// Which chunks are held against their checksums before they are read, if the server asks for
    /// checksums: off, sample (one in 16), or always. [default: sample] [env: MARU_VERIFY]
    #[arg(long, value_name = "WHICH", help_heading = "Maru")]
    pub maru_verify: Option<String>,
    /// The host's name: the same for instances whose processors share a cache-coherent view of the
    /// pool, and for no others. Default: the kernel's boot id. [env: MARU_HOST_ID]
    #[arg(long, value_name = "NAME", help_heading = "Maru")]
    pub maru_host_id: Option<String>,
    /// The library that makes chunks visible to other hosts, where the processor's own instructions
    /// are not enough: an absolute path. [env: MARU_VISIBILITY_PLUGIN]
    #[arg(long, value_name = "FILE", help_heading = "Maru")]
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub maru_visibility_plugin: Option<String>,
    /// What a private L1 evicts first: LRU, S3-FIFO, ARC, IsolatedLRU (LRU with
    /// --eviction-isolate-salts), or noop for nothing. Of a shared pool, its server evicts.
    /// [default: LRU] [env: MARU_EVICTION_POLICY]
    #[arg(long, value_name = "POLICY", help_heading = "Eviction")]
    pub eviction_policy: Option<String>,
    /// Evict from the cache salt that has most, so that no user pushes another's out. [env:
    /// MARU_EVICTION_ISOLATE_SALTS]
    #[arg(long, help_heading = "Eviction", overrides_with = "no_eviction_isolate_salts")]
    pub eviction_isolate_salts: bool,
    /// Evict regardless of cache salts: the default, but for IsolatedLRU.
    #[arg(long, help_heading = "Eviction", overrides_with = "eviction_isolate_salts")]
    pub no_eviction_isolate_salts: bool,
    /// Evict once this part of the memory is used, 0 to 1. [default: 0.8] [env:
    /// MARU_EVICTION_TRIGGER_WATERMARK]
    #[arg(long, value_name = "PART", help_heading = "Eviction", allow_negative_numbers = true)]
    pub eviction_trigger_watermark: Option<String>,
    /// How much of it then goes, 0 to 1. [default: 0.2] [env: MARU_EVICTION_RATIO]
    #[arg(long, value_name = "PART", help_heading = "Eviction", allow_negative_numbers = true)]
    pub eviction_ratio: Option<String>,
}
