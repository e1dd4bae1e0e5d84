//! What the directory tells of itself. Nothing here changes anything.

use maru_protocol::{
    EntryInfo, EntryPage, HolderInfo, HolderPage, HoldingKind, HostInfo, Location, RegionId,
    RegionInfo, SessionId, SessionInfo, Stats,
};

use crate::entries::Entry;
use crate::ids::EntryId;
use crate::sessions::{Phase, Session};
use crate::{Directory, Millis};

/// The most rows in one answer: a full page of rows with the longest keys fits into a frame.
const ROWS_MAX: u32 = 4096;

/// Entries looked at for one row of an answer: a prefix that hardly anything has must not make one
/// request walk the whole table.
const LOOKS_PER_ROW: usize = 16;

impl Directory {
    pub(crate) fn stats(&self, now: Millis) -> Stats {
        Stats {
            epoch: self.config.epoch,
            uptime_ms: now - self.started(),
            sessions_awaited: self.claims.awaited_len(),
            store_full: self.store_full,
            withheld_ms: self.withheld_ms(now),
            pins: self.pins,
            entries_pinned: self.entries_pinned,
            sessions: self.session_infos(now),
            counters: self.counters,
            ..self.page_stats()
        }
    }

    /// The numbers of pages and bytes alone: what a tick checks needs no list of sessions.
    pub(crate) fn page_stats(&self) -> Stats {
        let pages = &self.pages;
        let mut stats = Stats {
            capacity_bytes: pages.capacity_bytes,
            reserved_bytes: pages.tally_bytes.reserved,
            resident_bytes: pages.tally_bytes.resident,
            quarantined_bytes: pages.tally_bytes.quarantined,
            pages_reserved: pages.tally.reserved,
            pages_resident: pages.tally.resident,
            pages_quarantined: pages.tally.quarantined,
            pages_unclaimed: pages.reasons.unclaimed,
            pages_stained: pages.reasons.stained,
            pages_damaged: pages.reasons.damaged,
            ..Stats::default()
        };
        for region in &pages.regions {
            if region.page_bytes == 0 {
                stats.uncut_bytes += region.bytes;
            } else {
                stats.pages_free += region.free_pages();
                stats.free_bytes += region.free_pages() * region.page_bytes;
                stats.tail_bytes += region.bytes - region.capacity() * region.page_bytes;
            }
        }
        stats
    }

    fn session_infos(&self, now: Millis) -> Vec<SessionInfo> {
        let sessions = self.sessions.live.iter();
        sessions
            .map(|(id, session)| {
                let instance = self.sessions.instance(session.instance);
                SessionInfo {
                    session: *id,
                    instance: instance.name.clone(),
                    host: self.sessions.host(session.host).to_owned(),
                    connected: session.phase == Phase::Connected,
                    heard_ms_ago: now - session.heard,
                    pins: session.pin_count,
                    reservations: session.reservations.len() as u64,
                    instance_bytes: instance.charged_bytes,
                    budget_bytes: instance.budget_bytes,
                }
            })
            .collect()
    }

    pub(crate) fn list(&self, now: Millis, prefix: &[u8], cursor: u64, limit: u32) -> EntryPage {
        let limit = limit.clamp(1, ROWS_MAX) as usize;
        let start = usize::try_from(cursor).unwrap_or(usize::MAX).min(self.entries.end());
        let end = start.saturating_add(limit * LOOKS_PER_ROW).min(self.entries.end());
        let mut entries = Vec::new();
        let mut next = start;
        while next < end && entries.len() < limit {
            let entry = self.entries.at(next).filter(|entry| entry.key.starts_with(prefix));
            let is_ghost = self.ghosts.contains(&EntryId::new(next));
            let entry = entry.filter(|_| !is_ghost);
            entries.extend(entry.and_then(|entry| self.entry_info(now, entry)));
            next += 1;
        }
        EntryPage { entries, next: (next < self.entries.end()).then_some(next as u64) }
    }

    fn entry_info(&self, now: Millis, entry: &Entry) -> Option<EntryInfo> {
        let resident = entry.resident?;
        Some(EntryInfo {
            key: entry.key.to_vec(),
            location: self.location(&resident),
            page_bytes: self.pages.page_bytes(resident.page),
            writer: self.sessions.instance(resident.writer).name.clone(),
            host: self.sessions.host(resident.host).to_owned(),
            checksum: resident.checksum,
            pins: entry.pins,
            used_ms_ago: now - resident.touched,
        })
    }

    /// The holdings of all sessions, one row after the other; the cursor counts rows.
    pub(crate) fn holders(&self, now: Millis, cursor: u64, limit: u32) -> HolderPage {
        let limit = limit.clamp(1, ROWS_MAX) as usize;
        let mut skip = usize::try_from(cursor).unwrap_or(usize::MAX);
        let mut holders = Vec::new();
        let mut more = false;
        for (id, session) in &self.sessions.live {
            let rows = skip.min(session.holdings())..session.holdings();
            skip -= rows.start;
            more |= rows.len() > limit - holders.len();
            let rows = rows.take(limit - holders.len());
            holders.extend(rows.filter_map(|row| self.holder_info(now, *id, session, row)));
        }
        let next = more.then(|| cursor.saturating_add(limit as u64));
        HolderPage { holders, next }
    }

    /// Row `row` of what a session holds: first its pins, then its reservations.
    fn holder_info(
        &self,
        now: Millis,
        id: SessionId,
        session: &Session,
        row: usize,
    ) -> Option<HolderInfo> {
        let (kind, entry, location, since) =
            if let Some((entry, held)) = session.pins.get_index(row) {
                let entry = self.entries.get(*entry);
                let location = self.location(&entry.resident?);
                (HoldingKind::Pin { count: held.count }, entry, location, held.since)
            } else {
                let reservation = session.reservations.get_index(row - session.pins.len())?;
                let held = self.sessions.reservation(*reservation);
                let bytes = self.pages.page_bytes(held.page);
                let location = Location::new(self.pages.handle(held.page), bytes);
                (HoldingKind::Reservation, self.entries.get(held.entry), location, held.since)
            };
        Some(HolderInfo {
            session: id,
            instance: self.sessions.instance(session.instance).name.clone(),
            kind,
            key: entry.key.to_vec(),
            location,
            held_ms: now - since,
        })
    }

    /// The hosts; where they are too many for an answer, those that have something first.
    pub(crate) fn host_infos(&self) -> Vec<HostInfo> {
        let hosts = self.sessions.hosts.iter().cloned();
        let mut infos: Vec<HostInfo> =
            hosts.map(|host| HostInfo { host, sessions: 0, pages_stained: 0 }).collect();
        for session in self.sessions.live.values() {
            infos[session.host.index()].sessions += 1;
        }
        for host in self.stains.iter().flat_map(|(_, hosts)| hosts) {
            infos[host.index()].pages_stained += 1;
        }
        infos.sort_by_key(|info| info.sessions + info.pages_stained == 0);
        infos.truncate(ROWS_MAX as usize);
        infos
    }

    pub(crate) fn regions(&self) -> Vec<RegionInfo> {
        // There are at most 2^23 regions of 2 MiB: their numbers are u32 all over.
        (0_u32..)
            .zip(&self.pages.regions)
            .map(|(index, region)| RegionInfo {
                region: RegionId(index),
                offset: region.offset,
                bytes: region.bytes,
                page_bytes: region.page_bytes,
                pages: region.capacity(),
                free: region.capacity().saturating_sub(region.tally.used()),
                reserved: region.tally.reserved,
                resident: region.tally.resident,
                quarantined: region.tally.quarantined,
            })
            .collect()
    }
}
