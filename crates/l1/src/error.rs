//! What an L1 says of one key that it cannot serve.

use serde::{Deserialize, Serialize};

/// Why an operation was not done for one key. The contract's `SUCCESS` is `Ok`.
///
/// Errors are values, one a key: a manager neither panics nor gives up on the other keys of a
/// batch, and what its server says or does not say ends up as one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum L1Error {
    /// `KEY_NOT_EXIST`: readers find no such chunk, or the writer stages none.
    #[error("there is no such chunk in L1")]
    KeyNotExist,
    /// `KEY_NOT_READABLE`: the chunk is there, but nobody holds a read lock on it.
    #[error("the chunk is not read-locked: reserve it for reading first")]
    KeyNotReadable,
    /// `KEY_NOT_WRITABLE`: the chunk is stored already, or this writer stages it already.
    #[error("the chunk is stored already, or is being written under the same tag")]
    KeyNotWritable,
    /// `KEY_IN_WRONG_STATE`: the lock that this step ends has run out, was lost, or was not taken.
    #[error("the lock has expired or was not taken: what was read or written does not count")]
    KeyInWrongState,
    /// `KEY_IS_LOCKED`: somebody reads or writes the chunk.
    #[error("the chunk is being read or written: try again later")]
    KeyIsLocked,
    /// `OUT_OF_MEMORY`: the batch does not fit; nothing of it was taken.
    #[error("L1 has no room for the batch")]
    OutOfMemory,
}
