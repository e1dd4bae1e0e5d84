//! Refusals: a request that cannot be granted is answered, with what to do about it (rule 11).

use serde::{Deserialize, Serialize};

/// Why the server did not do what was asked.
///
/// The order of the variants is their code on the wire: append, never insert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer speaks another version of the protocol.
    #[error(
        "this server speaks protocol version {server}, not {client}: install matching releases"
    )]
    Version {
        /// The server's version.
        server: u8,
        /// The peer's version.
        client: u8,
    },
    /// The bytes are not a message. The connection is closed.
    #[error("malformed message: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// A message of this kind is not expected now. The connection is closed.
    #[error("unexpected message: {reason}")]
    Unexpected {
        /// What was expected.
        reason: String,
    },
    /// The name of an instance or a host must be 1 to 128 bytes of text without control characters.
    #[error("the {whose}'s name is refused: {reason}; choose another")]
    Name {
        /// Which name: `instance` or `host`.
        whose: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server holds as many sessions as it may.
    #[error("the server already holds {limit} sessions; raise --sessions-max or stop an instance")]
    TooManySessions {
        /// The limit.
        limit: u32,
    },
    /// The session has ended: its lease ran out, its connection was gone too long, or it said
    /// goodbye. Its pins are released and its reservations withdrawn. Say hello again.
    #[error("the session has ended (lease expired or connection lost); connect again")]
    SessionEnded,
    /// The sequence number was answered and acknowledged before, so it cannot be answered again.
    #[error("request {seq} was already acknowledged; requests below {floor} are forgotten")]
    AlreadyAcknowledged {
        /// The request's number.
        seq: u64,
        /// The lowest number still remembered.
        floor: u64,
    },
    /// More requests are unacknowledged than the server remembers.
    #[error("more than {window} requests are unacknowledged; acknowledge replies first")]
    WindowFull {
        /// How many the server remembers for a session.
        window: u32,
    },
    /// A batch holds more keys or handles than the server takes.
    #[error("a batch of {len} is too large: at most {max} in one request; split it")]
    BatchTooLarge {
        /// How many there were.
        len: u64,
        /// How many there may be.
        max: u64,
    },
    /// A page of this size fits into no region.
    #[error("a page of {page_bytes} bytes is impossible: 1 to {max} fit this pool's regions")]
    PageSize {
        /// What was asked for.
        page_bytes: u64,
        /// The largest page, in bytes.
        max: u64,
    },
    /// Pins of no unit, or more than a session may hold.
    #[error(
        "{pins} pins on each key are impossible: at least 1, and with the {held} held at most {max}"
    )]
    Pins {
        /// What was asked for on each key.
        pins: u32,
        /// What the session holds.
        held: u64,
        /// What a session may hold.
        max: u64,
    },
    /// The session was restored after a restart of the server and has not said what it holds.
    #[error("the server was restarted: claim what the session holds before anything else")]
    ClaimFirst,
    /// What a session claims to hold cannot be: it ends.
    #[error("what the session claims to hold cannot be ({reason}); connect again")]
    Claim {
        /// What is wrong with it.
        reason: String,
    },
    /// What the request does could not be made to last.
    #[error(
        "the server's store is full, so nothing can be written for now (reading goes on): make room \
         on its file system; it goes on by itself"
    )]
    StoreFull,
    /// Instances of more hosts were here than can be told apart.
    #[error("instances of {limit} hosts have been here; restart the server to forget old ones")]
    TooManyHosts {
        /// The limit.
        limit: u32,
    },
    /// A host that was said to be gone is not.
    #[error("instances on that host are connected, so it cannot be gone")]
    HostInUse,
    /// A commit has other than one name an item, or none at all.
    #[error("{names} names for {items} items to be committed: give one each, or none at all")]
    Names {
        /// How many there were.
        names: u64,
        /// For so many items.
        items: u64,
    },
}
