//! What the server tells of itself: counters, entries, holdings, regions.

use serde::{Deserialize, Serialize};

use crate::{Checksum, Location, RegionId, SessionId};

/// Numbers of the whole pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The life of the directory.
    pub epoch: u64,
    /// How long the server has served, in milliseconds.
    pub uptime_ms: u64,
    /// All bytes that regions cover.
    pub capacity_bytes: u64,
    /// Bytes of regions that are cut for no page size at present.
    pub uncut_bytes: u64,
    /// Bytes of free pages in cut regions.
    pub free_bytes: u64,
    /// Bytes of reserved pages.
    pub reserved_bytes: u64,
    /// Bytes of resident pages.
    pub resident_bytes: u64,
    /// Bytes of quarantined pages.
    pub quarantined_bytes: u64,
    /// Bytes at the ends of cut regions that no page of their size fits into.
    pub tail_bytes: u64,
    /// Pages now free in cut regions.
    pub pages_free: u64,
    /// Pages now reserved.
    pub pages_reserved: u64,
    /// Pages now resident.
    pub pages_resident: u64,
    /// Pages now quarantined, those of the next three counts included.
    pub pages_quarantined: u64,
    /// Pages that a session of before the server's restart may hold, and nobody has claimed.
    pub pages_unclaimed: u64,
    /// Vacant pages that a host's caches may hold unwritten lines of.
    pub pages_stained: u64,
    /// Pages whose memory was found to be bad; they are not used any more.
    pub pages_damaged: u64,
    /// Pins held by all sessions.
    pub pins: u64,
    /// Entries that at least one session pins.
    pub entries_pinned: u64,
    /// Sessions of before the server's restart that have not said yet what they hold. While there are
    /// any, nothing is evicted or deleted.
    pub sessions_awaited: u64,
    /// Nothing can be stored: writes are refused.
    pub store_full: bool,
    /// For how long yet no page is granted, in milliseconds: the pool's store is gone, and whoever
    /// wrote to it before may still do so.
    pub withheld_ms: u64,
    /// The sessions.
    pub sessions: Vec<SessionInfo>,
    /// What happened so far.
    pub counters: Counters,
}

impl Stats {
    /// Bytes of pages that somebody has, or may still write to.
    #[must_use]
    pub const fn used_bytes(&self) -> u64 {
        self.reserved_bytes + self.resident_bytes + self.quarantined_bytes
    }

    /// Bytes of the capacity that no state accounts for. Anything but 0 breaks rule 1.
    #[must_use]
    pub fn lost_bytes(&self) -> i128 {
        let known = [
            self.uncut_bytes,
            self.free_bytes,
            self.reserved_bytes,
            self.resident_bytes,
            self.quarantined_bytes,
            self.tail_bytes,
        ];
        i128::from(self.capacity_bytes) - known.into_iter().map(i128::from).sum::<i128>()
    }
}

/// What happened since the server started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests answered, replays included.
    pub requests: u64,
    /// Requests answered from a kept reply.
    pub replays: u64,
    /// Requests refused.
    pub refusals: u64,
    /// Keys acquired.
    pub hits: u64,
    /// Keys asked for by an acquire and not found; those behind a first miss are not asked for.
    pub misses: u64,
    /// Pages granted to writers.
    pub granted: u64,
    /// Chunks that became resident.
    pub committed: u64,
    /// Chunks discarded because another writer was first.
    pub superseded: u64,
    /// Reservations given back by their writer.
    pub aborted: u64,
    /// Keys not granted because the chunk was resident.
    pub refused_resident: u64,
    /// Keys not granted because somebody else was writing the chunk.
    pub refused_being_written: u64,
    /// Keys not granted for lack of memory.
    pub refused_out_of_memory: u64,
    /// Keys not granted for lack of budget.
    pub refused_over_budget: u64,
    /// Entries evicted to make room inside a reserve.
    pub evicted_for_room: u64,
    /// Entries evicted because their region went to another page size.
    pub evicted_for_region: u64,
    /// Entries evicted by the high watermark.
    pub evicted_by_watermark: u64,
    /// Entries evicted because their writer was at its budget.
    pub evicted_for_budget: u64,
    /// Entries deleted on request.
    pub deleted: u64,
    /// Entries found again when the server started.
    pub recovered: u64,
    /// Chunks withdrawn because their bytes were not what was committed or could not be read, and
    /// reservations because their page could not be written.
    pub damaged: u64,
    /// Sessions opened.
    pub sessions_opened: u64,
    /// Sessions of before the server's restart that came back.
    pub sessions_restored: u64,
    /// Sessions that ended with a goodbye.
    pub sessions_closed: u64,
    /// Sessions that ended because their connection was gone too long or their process died.
    pub sessions_dropped: u64,
    /// Sessions that ended because their lease ran out.
    pub sessions_expired: u64,
    /// Pins released for sessions that ended.
    pub pins_reclaimed: u64,
    /// Pages that went into quarantine.
    pub quarantined: u64,
    /// Checks of the eleven rules made while running.
    pub rule_checks: u64,
    /// Checks that found a rule broken. Anything but 0 is a defect of Maru.
    pub rule_violations: u64,
}

impl Counters {
    /// Entries evicted, for whatever cause.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted_for_room
            + self.evicted_for_region
            + self.evicted_by_watermark
            + self.evicted_for_budget
    }
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The session.
    pub session: SessionId,
    /// Its instance.
    pub instance: String,
    /// Its instance's host.
    pub host: String,
    /// Whether a connection belongs to it at present.
    pub connected: bool,
    /// How long ago it was heard, in milliseconds.
    pub heard_ms_ago: u64,
    /// Pins it holds.
    pub pins: u64,
    /// Reservations it holds.
    pub reservations: u64,
    /// Bytes in the pool that its instance wrote or reserved.
    pub instance_bytes: u64,
    /// What the instance may write; 0 for no limit.
    pub budget_bytes: u64,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryPage {
    /// The entries.
    pub entries: Vec<EntryInfo>,
    /// Where to go on; `None` at the end.
    pub next: Option<u64>,
}

/// One resident entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryInfo {
    /// The key's bytes.
    pub key: Vec<u8>,
    /// Where the chunk lies.
    pub location: Location,
    /// The size of its page in bytes.
    pub page_bytes: u64,
    /// The instance that wrote it.
    pub writer: String,
    /// The host that it was written on.
    pub host: String,
    /// Its checksum, if its writer made one.
    pub checksum: Option<Checksum>,
    /// Pins on it.
    pub pins: u32,
    /// How long ago it was used, in milliseconds.
    pub used_ms_ago: u64,
}

/// A page of what sessions hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderPage {
    /// The holdings.
    pub holders: Vec<HolderInfo>,
    /// Where to go on; `None` at the end.
    pub next: Option<u64>,
}

/// One thing that one session holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderInfo {
    /// The session.
    pub session: SessionId,
    /// Its instance.
    pub instance: String,
    /// What it holds.
    pub kind: HoldingKind,
    /// The key's bytes.
    pub key: Vec<u8>,
    /// Where the chunk lies.
    pub location: Location,
    /// For how long, in milliseconds.
    pub held_ms: u64,
}

/// What a session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldingKind {
    /// Pins on a resident chunk.
    Pin {
        /// How many.
        count: u32,
    },
    /// A page being written.
    Reservation,
}

/// One host that the server was told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Its name.
    pub host: String,
    /// Sessions of its instances.
    pub sessions: u64,
    /// Vacant pages that its caches may hold unwritten lines of.
    pub pages_stained: u64,
}

/// One region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionInfo {
    /// The region.
    pub region: RegionId,
    /// Where it begins, in bytes from the start of the pool's address range.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The page size it is cut for, in bytes; 0 while it is cut for none.
    pub page_bytes: u64,
    /// Pages it has at that size.
    pub pages: u64,
    /// Pages free.
    pub free: u64,
    /// Pages reserved.
    pub reserved: u64,
    /// Pages resident.
    pub resident: u64,
    /// Pages quarantined.
    pub quarantined: u64,
}
