//! Requests and replies.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Checksum, Chunk, EntryPage, Handle, HolderPage, HostInfo, Key, Location, Refusal, RegionInfo,
    Stats,
};

/// Names one session; no two of a pool ever have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What proves that a connection may resume a session; drawn at random by the server.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; 16]);

/// A secret is never shown.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The wish to go on with a session after its connection was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The session.
    pub session: SessionId,
    /// Its secret, from [`Welcome`].
    pub secret: Secret,
}

/// The first message of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello<'a> {
    /// The instance's name: what `maru pins` shows, and what budgets are counted for.
    pub instance: &'a str,
    /// The host the instance runs on: instances with equal hosts share a cache-coherent memory.
    pub host: &'a str,
    /// How many bytes this instance may have in the pool; 0 for no limit. What it wrote before it
    /// had a limit counts, but does not make room for it.
    pub budget_bytes: u64,
    /// The session to go on with, if there is one.
    pub resume: Option<Resume>,
    /// Other processes, too, write to what this instance reserves: that its own is dead does not say
    /// that nobody writes any more (rule 7).
    pub outside_writers: bool,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The session, new or resumed.
    pub session: SessionId,
    /// What resumes it.
    pub secret: Secret,
    /// Which session it is.
    pub standing: Standing,
    /// The life of the directory.
    pub epoch: u64,
    /// What the server takes.
    pub limits: Limits,
    /// Writers say a checksum of what they commit.
    pub checksums: bool,
    /// The pool's memory.
    pub topology: Topology,
}

/// What a welcome gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// A new session. One that was asked for is gone, with all it held.
    New,
    /// The session that was asked for, with all it holds.
    Resumed,
    /// The session that was asked for; but the server was restarted since, and does not know what it
    /// holds. Before anything else it wants to be told: [`Body::Claim`].
    Restored,
}

/// What the server takes, and how long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long a session lives unheard, in milliseconds.
    pub lease_ms: u64,
    /// How long a session outlives its connection, in milliseconds.
    pub resume_ms: u64,
    /// The longest frame, in bytes.
    pub frame_bytes_max: u32,
    /// The most keys or handles in one request.
    pub batch_max: u32,
    /// The most requests of one session that may be unacknowledged.
    pub window: u32,
}

/// The pool's memory: devices back to back in one address range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The address range to reserve, in bytes; beyond the devices there is room for later ones.
    pub address_space_bytes: u64,
    /// How what one host writes reaches another.
    pub visibility: Visibility,
    /// The devices, by offset.
    pub devices: Vec<Device>,
}

/// How what one host writes to the pool's memory reaches another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visibility {
    /// By itself: all instances are on one host, or the fabric keeps the caches coherent.
    #[default]
    Coherent,
    /// By cache lines: a writer writes its lines back before it commits, a reader on another host
    /// invalidates them before its first load. So it is with CXL 2.0 memory that hosts share.
    CacheLine,
}

/// One device of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its identity, as in its header: what an instance maps must carry the same.
    pub uuid: Uuid,
    /// Where it lies on the server's host.
    pub path: String,
    /// Where it begins in the pool's address range, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// One request of a session.
///
/// A request that changes state is applied once, however often it is sent (rule 5): the server
/// keeps its reply until `acked` passes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request<'a> {
    /// The number of the request in its session, from 1.
    pub seq: u64,
    /// All replies up to and including this number have arrived.
    pub acked: u64,
    /// What is asked.
    #[serde(borrow)]
    pub body: Body<'a>,
}

/// What is asked. The order of the variants is their code on the wire: append, never insert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body<'a> {
    /// Nothing but to be heard. Answer: [`Answer::Renewed`].
    Renew,
    /// Pages to write new chunks into. Answer: [`Answer::Reserved`].
    Reserve {
        /// The chunks.
        #[serde(borrow)]
        keys: Vec<Key<'a>>,
        /// The size of a page in bytes: the largest length the chunks can have.
        page_bytes: u64,
        /// Tells writers of one instance apart: a session holds one reservation a (key, tag).
        tag: u64,
        /// Refuse a key that somebody else is writing at this moment.
        unless_being_written: bool,
    },
    /// Makes written pages visible; their bytes must be visible before this is sent (rule 2).
    /// Answer: [`Answer::Committed`].
    Commit {
        /// What was written.
        items: Vec<CommitItem>,
        /// Pins to take on each resident chunk in the same step; 0 for none.
        pins: u32,
        /// The keys that they become resident under, one an item, whatever they were reserved for;
        /// or none, for those.
        #[serde(borrow)]
        names: Vec<Key<'a>>,
    },
    /// Gives reserved pages back unseen; the instance writes to them no more.
    /// Answer: [`Answer::Released`].
    Abort {
        /// The reservations.
        handles: Vec<Handle>,
    },
    /// Which chunks are there. Changes nothing (rule 10). Answer: [`Answer::Contained`].
    Contains {
        /// The chunks.
        #[serde(borrow)]
        keys: Vec<Key<'a>>,
    },
    /// Look up and pin. Answer: [`Answer::Acquired`].
    Acquire {
        /// The chunks.
        #[serde(borrow)]
        keys: Vec<Key<'a>>,
        /// Pins to take on each.
        pins: u32,
        /// Stop at the first chunk that is not there: a prefix is useful only as far as it goes.
        stop_at_miss: bool,
    },
    /// Gives pins back. Answer: [`Answer::Released`].
    Release {
        /// The pinned pages.
        handles: Vec<Handle>,
        /// Pins to give back on each.
        pins: u32,
    },
    /// Forgets chunks that nobody pins. Answer: [`Answer::Deleted`].
    Delete {
        /// The chunks.
        #[serde(borrow)]
        keys: Vec<Key<'a>>,
    },
    /// Counts as use, without reading. Answer: [`Answer::Contained`].
    Touch {
        /// The chunks.
        #[serde(borrow)]
        keys: Vec<Key<'a>>,
    },
    /// Numbers of the whole pool. Answer: [`Answer::Stats`].
    Stats,
    /// A page of the entries. Answer: [`Answer::Entries`].
    List {
        /// Only keys that begin so; may be empty.
        prefix: &'a [u8],
        /// Where to go on: 0, then [`EntryPage::next`].
        cursor: u64,
        /// The most entries to return.
        limit: u32,
    },
    /// A page of what sessions hold. Answer: [`Answer::Holders`].
    Holders {
        /// Where to go on: 0, then [`HolderPage::next`].
        cursor: u64,
        /// The most holdings to return.
        limit: u32,
    },
    /// The regions. Answer: [`Answer::Regions`].
    Regions,
    /// This instance writes no more to what its earlier, ended session had reserved (rule 7).
    /// Answer: [`Answer::Done`].
    LetGo {
        /// The earlier session.
        session: SessionId,
        /// Its secret: nobody else may say so.
        secret: Secret,
    },
    /// The end of the session; what it reserved, it writes to no more. Answer: [`Answer::Done`]; to
    /// one that comes twice, [`Refusal::SessionEnded`].
    Goodbye,
    /// What a restored session holds, as it knows from the answers that it has. What it has asked to
    /// give back and has no answer to, it does not claim. Several may follow each other; nothing
    /// else is answered before the last. Answer: [`Answer::Done`]; if the server cannot have granted
    /// that, [`Refusal::Claim`], and the session ends.
    Claim {
        /// Its pins.
        pins: Vec<PinClaim>,
        /// Its reservations.
        #[serde(borrow)]
        reservations: Vec<ReservationClaim<'a>>,
        /// Numbers of the commits that it has no answer to and will send again: what those pinned, if
        /// they were applied, is claimed with this.
        commits: Vec<u64>,
        /// That was all.
        last: bool,
    },
    /// What lies there is not what was committed, or cannot be read: the server is to look for
    /// itself. What the session has reserved itself cannot be written, or not be made visible: the
    /// reservation is gone, and nobody gets the page any more. Answer: [`Answer::Done`].
    Suspect {
        /// The pages.
        handles: Vec<Handle>,
    },
    /// This host has written back what its caches held of these pages, which [`Answer::Renewed`]
    /// asked for. Answer: [`Answer::Done`].
    Cleaned {
        /// The pages.
        handles: Vec<Handle>,
    },
    /// A host is powered off or was started anew: its caches hold nothing any more. Answer:
    /// [`Answer::Done`], or [`Refusal::HostInUse`].
    HostGone {
        /// The host, as its instances said in their hello.
        host: &'a str,
    },
    /// The hosts. Answer: [`Answer::Hosts`].
    Hosts,
}

impl Body<'_> {
    /// Whether the request changes state, so that its reply must be kept (rule 5).
    #[must_use]
    pub const fn changes_state(&self) -> bool {
        match self {
            Self::Reserve { .. }
            | Self::Commit { .. }
            | Self::Abort { .. }
            | Self::Acquire { .. }
            | Self::Release { .. }
            | Self::Delete { .. }
            | Self::Touch { .. }
            | Self::LetGo { .. }
            | Self::Goodbye
            | Self::Suspect { .. }
            | Self::Cleaned { .. }
            | Self::HostGone { .. } => true,
            // Claims begin anew with each hello, so none is sent again.
            Self::Claim { .. }
            | Self::Renew
            | Self::Contains { .. }
            | Self::Stats
            | Self::List { .. }
            | Self::Holders { .. }
            | Self::Regions
            | Self::Hosts => false,
        }
    }

    /// Whether what it does outlives the server: then so does its reply, and it is refused where
    /// nothing can be stored.
    #[must_use]
    pub const fn is_durable(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::Delete { .. })
    }

    /// The request's name, as logs and metrics show it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Renew => "renew",
            Self::Reserve { .. } => "reserve",
            Self::Commit { .. } => "commit",
            Self::Abort { .. } => "abort",
            Self::Contains { .. } => "contains",
            Self::Acquire { .. } => "acquire",
            Self::Release { .. } => "release",
            Self::Delete { .. } => "delete",
            Self::Touch { .. } => "touch",
            Self::Stats => "stats",
            Self::List { .. } => "list",
            Self::Holders { .. } => "holders",
            Self::Regions => "regions",
            Self::LetGo { .. } => "let_go",
            Self::Goodbye => "goodbye",
            Self::Claim { .. } => "claim",
            Self::Suspect { .. } => "suspect",
            Self::Cleaned { .. } => "cleaned",
            Self::HostGone { .. } => "host_gone",
            Self::Hosts => "hosts",
        }
    }
}

/// One written page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitItem {
    /// The reservation.
    pub handle: Handle,
    /// How many bytes were written, from the page's start.
    pub length: u64,
    /// Their checksum, if the pool has checksums.
    pub checksum: Option<Checksum>,
}

/// Pins that a restored session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinClaim {
    /// The pinned page.
    pub handle: Handle,
    /// How many pins on it.
    pub count: u32,
}

/// A reservation that a restored session holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationClaim<'a> {
    /// The page.
    pub handle: Handle,
    /// The chunk it is for.
    #[serde(borrow)]
    pub key: Key<'a>,
    /// The writer's tag.
    pub tag: u64,
    /// The number of the commit that it has asked for and has no answer to. If that was applied,
    /// there is nothing to claim.
    pub committing: Option<u64>,
}

/// The answer to the request with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's number.
    pub seq: u64,
    /// What came of it.
    pub result: Result<Answer, Refusal>,
}

/// What came of a request that was not refused; lists are in the order of the request's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done; nothing to say.
    Done,
    /// To [`Body::Reserve`].
    Reserved(Vec<ReserveOutcome>),
    /// To [`Body::Commit`].
    Committed(Vec<CommitOutcome>),
    /// To [`Body::Contains`] and [`Body::Touch`].
    Contained(Vec<Presence>),
    /// To [`Body::Acquire`]: where the chunk lies, or `None` for a miss. With `stop_at_miss` the
    /// list ends before the first miss.
    Acquired(Vec<Option<Chunk>>),
    /// To [`Body::Release`] and [`Body::Abort`].
    Released(Vec<ReleaseOutcome>),
    /// To [`Body::Delete`].
    Deleted(Vec<DeleteOutcome>),
    /// To [`Body::Stats`].
    Stats(Box<Stats>),
    /// To [`Body::List`].
    Entries(EntryPage),
    /// To [`Body::Holders`].
    Holders(HolderPage),
    /// To [`Body::Regions`].
    Regions(Vec<RegionInfo>),
    /// To [`Body::Renew`]: pages, vacant now, that the caches of this host may hold unwritten lines
    /// of. Whoever can, writes those back and says so ([`Body::Cleaned`]).
    Renewed(Vec<Location>),
    /// To [`Body::Hosts`].
    Hosts(Vec<HostInfo>),
}

/// What came of reserving one key. Memory is granted to all keys that need it, or to none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReserveOutcome {
    /// A page to write into; `length` is the page's.
    Granted(Location),
    /// Somebody stored this chunk already: there is nothing to write.
    Resident,
    /// Somebody else is writing it, and the request wished to be refused then.
    BeingWritten,
    /// This session holds a reservation for this key and tag.
    AlreadyReserved,
    /// The batch needs more pages than can be made free; none was granted.
    OutOfMemory,
    /// The batch needs more than the instance's budget leaves; none was granted.
    OverBudget,
}

/// What came of committing one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommitOutcome {
    /// The chunk is resident, here.
    Committed(Chunk),
    /// Somebody else was first; our page was given back and the chunk is resident there.
    Superseded(Chunk),
    /// This session has no such reservation: a stale handle, or one never granted (rule 8).
    NotReserved,
    /// The length is not 1 up to the page's; the reservation stays.
    BadLength,
}

/// What came of releasing a pin or aborting a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReleaseOutcome {
    /// Given back.
    Released,
    /// This session does not hold it, or not so often; nothing changed (rules 4 and 8).
    NotHeld,
}

/// What came of deleting one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeleteOutcome {
    /// It is gone.
    Deleted,
    /// Somebody reads it; it stays (rule 3).
    Pinned,
    /// It is not resident, but somebody is writing it.
    Reserved,
    /// There is no such chunk.
    Missing,
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// Readers find it.
    Resident,
    /// Somebody is writing it; readers do not find it.
    Reserved,
    /// There is no such chunk.
    Missing,
}
