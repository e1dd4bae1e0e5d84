//! What a replay measured: the JSON of `maru replay --json`, and what the report draws.

use std::collections::BTreeMap;

use maru_l1::EvictionPolicyKind;
use serde::{Deserialize, Serialize};

/// The calls of a block's life, in order, as the L1 contract names them.
pub(crate) const CALLS: [&str; 4] =
    ["reserve_read", "finish_read", "reserve_write", "finish_write"];

/// The same trace over private L1s and over a shared one of the same total size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// The trace.
    pub(crate) trace: TraceInfo,
    /// How it was replayed.
    pub(crate) options: ReplayOptions,
    /// One L1 an instance; `None` where it was not asked for.
    pub(crate) private: Option<Run>,
    /// One for all.
    pub(crate) shared: Option<Run>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TraceInfo {
    /// The file, or the generator's settings in words.
    pub(crate) source: String,
    pub(crate) requests: u64,
    pub(crate) blocks: u64,
    pub(crate) distinct_blocks: u64,
    /// Lines that were not requests, passed over with `--skip-bad-lines`.
    pub(crate) skipped_lines: u64,
    /// From the first to the last request, in milliseconds of the trace's own time.
    pub(crate) span_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReplayOptions {
    pub(crate) instances: u32,
    /// Of all instances together, in blocks.
    pub(crate) capacity_blocks: u64,
    pub(crate) page_bytes: u64,
    /// What a private L1 evicts first. Of a shared one, its server decides.
    pub(crate) eviction_policy: EvictionPolicyKind,
    /// How many times faster than the trace's own time; `None` for as fast as it goes.
    pub(crate) speed_up: Option<f64>,
    pub(crate) seed: u64,
}

impl ReplayOptions {
    /// The policy, as on the command line.
    pub(crate) const fn policy_name(&self) -> &'static str {
        match self.eviction_policy {
            EvictionPolicyKind::Lru => "LRU",
            EvictionPolicyKind::S3Fifo => "S3-FIFO",
            EvictionPolicyKind::Arc => "ARC",
            EvictionPolicyKind::None => "noop",
        }
    }
}

/// One replay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Share of the requested blocks that were found as part of a present prefix.
    pub(crate) prefix_hit_rate: f64,
    pub(crate) requests: u64,
    pub(crate) blocks_requested: u64,
    pub(crate) blocks_hit: u64,
    /// Blocks written to the end; now and then one that another instance had stored meanwhile.
    pub(crate) blocks_stored: u64,
    /// Blocks beyond the present prefix that were not written: they were there.
    pub(crate) blocks_not_stored_again: u64,
    /// Blocks that found no memory.
    pub(crate) blocks_without_memory: u64,
    /// KV bytes that no instance had to compute again: those of the blocks hit.
    pub(crate) bytes_not_recomputed: u64,
    /// Bytes read from L1 and compared with what they should be.
    pub(crate) bytes_verified: u64,
    /// Bytes among them that were not. Anything but 0 is a defect.
    pub(crate) wrong_bytes: u64,
    /// Blocks that left to make room.
    pub(crate) evictions: u64,
    /// Speed of the copies alone, the time of all instances added up.
    pub(crate) gb_per_s: Throughput,
    /// By call: [`CALLS`].
    pub(crate) latency_us: BTreeMap<String, Latency>,
    /// Wall-clock seconds of the whole replay.
    pub(crate) seconds: f64,
    /// Instances that were lost on the way.
    pub(crate) instances_lost: u32,
    /// At the end, of all L1s together: pins and reservations that nobody gave back, and pages
    /// whose state nobody knows. Anything but 0 is a defect.
    pub(crate) pins_left: u64,
    pub(crate) reservations_left: u64,
    pub(crate) pages_lost: i64,
    /// The course of it.
    pub(crate) course: Vec<Sample>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Throughput {
    /// Copied into L1, in 10^9 bytes a second.
    pub(crate) write: f64,
    /// Copied out of it, in 10^9 bytes a second.
    pub(crate) read: f64,
}

/// The distribution of one kind of call's times, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    /// The distribution: (percentile from 0 to 100, microseconds), growing.
    pub(crate) percentiles: Vec<(f64, f64)>,
}

/// One moment of a replay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Requests done.
    pub(crate) requests: u64,
    /// Seconds since the start.
    pub(crate) seconds: f64,
    /// Share of the blocks requested since the last sample that were hits.
    pub(crate) hit_rate: f64,
    /// Bytes in use: resident, reserved or quarantined.
    pub(crate) used_bytes: u64,
    /// Bytes in all.
    pub(crate) capacity_bytes: u64,
}
