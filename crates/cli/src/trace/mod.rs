//! Request traces: what a serving system was asked, reduced to which KV blocks each request needs.
//!
//! A trace is a file of one JSON object a line, in the order of time:
//!
//! ```text
//! {"timestamp": 1500, "input_length": 1100, "output_length": 40, "hash_ids": [0, 1, 7]}
//! ```
//!
//! `timestamp` is in milliseconds, the lengths are in tokens, and `hash_ids` names the blocks of the
//! prompt, 512 tokens each, the last one perhaps shorter. An id stands for the block and everything
//! before it, so equal ids are reusable KV. [`read`] takes such a file in, [`Generator`] makes one up.

mod command;
mod generator;
mod random;
mod reader;

use serde::{Deserialize, Serialize};

pub(crate) use command::TraceCommand;
pub(crate) use generator::{Generator, GeneratorSettings, SettingsError, generate, write};
pub(crate) use reader::{BadLines, Trace, read};

/// One request of a trace. The field names in the file are those of the published traces; fields
/// beyond these four are allowed there, and passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TraceRequest {
    /// When it arrived, in milliseconds of the trace's own time.
    #[serde(rename = "timestamp")]
    pub(crate) timestamp_ms: u64,
    /// Tokens of the prompt.
    pub(crate) input_length: u64,
    /// Tokens of the answer.
    pub(crate) output_length: u64,
    /// The blocks of the prompt, first to last; no id twice.
    pub(crate) hash_ids: Vec<u64>,
}
