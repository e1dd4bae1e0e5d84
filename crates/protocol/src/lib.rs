//! What travels between an instance and the server: keys, locations, requests, replies, framing.
//!
//! An instance opens a connection, sends [`Hello`], gets [`Welcome`], and then sends
//! [`Request`]s, each answered by one [`Reply`] with the same sequence number. On another
//! connection, begun with [`Watch`], the server sends [`Event`]s. `docs/wire.md` draws the bytes; a
//! test there and here pins them.
//!
//! This crate knows nobody and does no I/O: it turns values into frames and frames into values.

mod endpoint;
mod event;
mod frame;
mod key;
mod location;
mod message;
mod refusal;
mod report;

pub use endpoint::{Endpoint, EndpointError};
pub use event::{Event, Watch};
pub use frame::{
    FRAME_BYTES_MAX, Frame, FrameError, FrameKind, HEADER_LEN, Header, VERSION, decode, encode,
};
pub use key::{KEY_LEN_MAX, Key, KeyError};
pub use location::{Checksum, Chunk, Generation, Handle, Location, PAGE_ALIGN, RegionId};
pub use message::{
    Answer, Body, CommitItem, CommitOutcome, DeleteOutcome, Device, Hello, Limits, PinClaim,
    Presence, ReleaseOutcome, Reply, Request, ReservationClaim, ReserveOutcome, Resume, Secret,
    SessionId, Standing, Topology, Visibility, Welcome,
};
pub use refusal::Refusal;
pub use report::{
    Counters, EntryInfo, EntryPage, HolderInfo, HolderPage, HoldingKind, HostInfo, RegionInfo,
    SessionInfo, Stats,
};
