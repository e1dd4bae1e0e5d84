//! What can go wrong on the instance's side.

use std::io;
use std::sync::Arc;

use maru_memory::{DeviceError, MappingError, PluginError};
use maru_protocol::{Endpoint, FrameError, Refusal};

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server cannot be reached.
    #[error(
        "cannot reach the server at {endpoint}: {source}; is it running? start one with `maru serve`"
    )]
    Unreachable {
        /// Where it should be.
        endpoint: Endpoint,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// The server does not answer.
    #[error("the server at {endpoint} did not answer within {timeout_ms} ms")]
    Timeout {
        /// Where it is.
        endpoint: Endpoint,
        /// How long was waited.
        timeout_ms: u128,
    },
    /// The server refused, with a reason.
    #[error("the server refused: {0}")]
    Refused(#[from] Refusal),
    /// The session ended while the request was on its way: whether it was applied is not known.
    /// Pins and reservations of the session are gone; chunks whose commit was applied are there.
    #[error(
        "the session with the server was lost; what it held is gone, and whether this request was applied is not known"
    )]
    SessionLost,
    /// The page's session has ended: its bytes may be somebody else's by now.
    #[error(
        "the page is no longer protected: the session that pinned it has ended; acquire it again"
    )]
    Stale,
    /// What came is not a reply.
    #[error(
        "the server at {endpoint} sent something unreadable: {reason}; is it a Maru server of this version?"
    )]
    Protocol {
        /// Where it is.
        endpoint: Endpoint,
        /// What is wrong.
        reason: String,
    },
    /// A request that does not fit into a frame.
    #[error("the request cannot be sent: {0}; split the batch")]
    Unsendable(FrameError),
    /// The pool's memory cannot be opened here.
    #[error("cannot open the pool's memory: {0}")]
    Device(Arc<DeviceError>),
    /// The pool's memory cannot be mapped, or a location lies outside it.
    #[error(transparent)]
    Mapping(Arc<MappingError>),
    /// The library that makes pages visible to other hosts cannot be used.
    #[error("cannot map a pool whose hosts are not cache-coherent: {0}")]
    Plugin(Arc<PluginError>),
    /// What is in the page is not what was committed, or cannot be read. The server is told; the chunk
    /// is a miss from now on.
    #[error("the chunk at pool offset {offset:#x} is damaged: {reason}; compute it again")]
    Damaged {
        /// Where its page begins, in bytes from the start of the pool's address range.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// The server has another pool than before, and places in the first were handed out.
    #[error(
        "the server at {endpoint} has another pool than before, and what was handed out of the first \
         means nothing in it: restart this instance"
    )]
    OtherPool {
        /// Where it is.
        endpoint: Endpoint,
    },
    /// More bytes than the page has.
    #[error("{len} bytes are not 1 to the page's {page_len}")]
    BadLength {
        /// What was asked for.
        len: u64,
        /// What the page has.
        page_len: u64,
    },
}

impl From<DeviceError> for ClientError {
    fn from(error: DeviceError) -> Self {
        Self::Device(Arc::new(error))
    }
}

impl From<PluginError> for ClientError {
    fn from(error: PluginError) -> Self {
        Self::Plugin(Arc::new(error))
    }
}

impl From<MappingError> for ClientError {
    fn from(error: MappingError) -> Self {
        Self::Mapping(Arc::new(error))
    }
}
