//! What the requests that only look should show.

use std::collections::BTreeSet;

use maru_directory::Millis;
use maru_protocol::{
    Answer, Body, Counters, EntryInfo, HolderInfo, HoldingKind, HostInfo, Location, RegionId,
    RegionInfo, SessionInfo, Stats,
};

use crate::answers::Seen;
use crate::reference::{Model, Phase};

impl Model {
    pub(crate) fn look(&self, seen: &Seen<'_>, body: &Body<'_>) -> Answer {
        let now = seen.now;
        match (body, seen.answer) {
            (Body::Regions, _) => Answer::Regions(self.region_infos()),
            (Body::Hosts, Ok(Answer::Hosts(hosts))) => {
                let mut seen = hosts.clone();
                seen.sort_by(|a, b| a.host.cmp(&b.host));
                assert_eq!(seen, self.host_infos(), "each host once");
                Answer::Hosts(hosts.clone())
            }
            (Body::Stats, Ok(Answer::Stats(stats))) => {
                Answer::Stats(Box::new(self.stats(now, stats.counters)))
            }
            (Body::List { prefix, limit, .. }, Ok(Answer::Entries(page))) => {
                let known = self.entry_infos(now, prefix);
                assert!(page.entries.len() <= (*limit).max(1) as usize);
                assert!(page.entries.iter().all(|row| known.contains(row)), "{page:?}");
                Answer::Entries(page.clone())
            }
            (Body::Holders { limit, .. }, Ok(Answer::Holders(page))) => {
                let known = self.holder_infos(now);
                assert!(page.holders.len() <= (*limit).max(1) as usize);
                assert!(page.holders.iter().all(|row| known.contains(row)), "{page:?}");
                Answer::Holders(page.clone())
            }
            (body, answer) => panic!("{body:?} is answered {answer:?}"),
        }
    }

    pub(crate) fn entry_infos(&self, now: Millis, prefix: &[u8]) -> Vec<EntryInfo> {
        let entries = self.entries.iter().filter(|(key, _)| key.starts_with(prefix));
        entries
            .map(|(key, entry)| EntryInfo {
                key: key.to_vec(),
                location: Location::new(entry.handle, entry.length),
                page_bytes: entry.page_bytes,
                writer: entry.writer.clone(),
                host: entry.host.clone(),
                checksum: entry.checksum,
                pins: self.pins_on(key),
                used_ms_ago: now - entry.touched,
            })
            .collect()
    }

    pub(crate) fn holder_infos(&self, now: Millis) -> Vec<HolderInfo> {
        let mut rows = Vec::new();
        for (id, session) in &self.sessions {
            let row = |kind, key: &[u8], location, since| HolderInfo {
                session: *id,
                instance: session.instance.clone(),
                kind,
                key: key.to_vec(),
                location,
                held_ms: now - since,
            };
            for (key, (count, since)) in &session.pins {
                let entry = &self.entries[key];
                let location = Location::new(entry.handle, entry.length);
                rows.push(row(HoldingKind::Pin { count: *count }, key, location, *since));
            }
            for (ghost, (count, since)) in &session.ghosts {
                let entry = &self.ghosts[ghost];
                let location = Location::new(entry.handle, entry.length);
                rows.push(row(HoldingKind::Pin { count: *count }, entry.key, location, *since));
            }
            for held in session.reservations.values() {
                let location = Location::new(held.handle, held.page_bytes);
                rows.push(row(HoldingKind::Reservation, held.key, location, held.since));
            }
        }
        rows
    }

    fn host_infos(&self) -> Vec<HostInfo> {
        let info = |host: &String| {
            let sessions = self.sessions.values().filter(|session| session.host == *host).count();
            let stained = self.stains.values().filter(|stain| stain.hosts.contains(host)).count();
            let (sessions, pages_stained) = (sessions as u64, stained as u64);
            HostInfo { host: host.clone(), sessions, pages_stained }
        };
        self.hosts.iter().map(info).collect()
    }

    fn region_infos(&self) -> Vec<RegionInfo> {
        let info = |(region, (offset, bytes)): (u32, &(u64, u64))| {
            let page_bytes = self.size_of(region);
            let pages = bytes.checked_div(page_bytes).unwrap_or(0);
            let here = |handle: &maru_protocol::Handle| handle.region.0 == region;
            let sessions = self.sessions.values();
            let reserved = sessions.flat_map(|s| s.reservations.values());
            let reserved = reserved.filter(|held| here(&held.handle)).count() as u64;
            let resident = self.entries.values().map(|e| e.handle);
            let ghosts = self.ghosts.values().map(|e| e.handle);
            let resident = resident.chain(ghosts).filter(here).count() as u64;
            let quarantined = self.vanished.values().flat_map(|one| one.pages.values());
            let quarantined = quarantined.map(|(handle, _)| *handle);
            let stained = self.stains.values().map(|stain| stain.handle);
            let damaged = self.damaged.iter().map(|(handle, _)| *handle);
            let quarantined = quarantined.chain(stained).chain(damaged);
            let quarantined = quarantined.filter(here).count() as u64;
            RegionInfo {
                region: RegionId(region),
                offset: *offset,
                bytes: *bytes,
                page_bytes,
                pages,
                free: pages - reserved - resident - quarantined,
                reserved,
                resident,
                quarantined,
            }
        };
        (0_u32..).zip(&self.regions).map(info).collect()
    }

    /// All numbers; of the evictions only the sum is determined, so `seen` says how it is split.
    fn stats(&self, now: Millis, seen: Counters) -> Stats {
        assert_eq!(seen.evicted(), self.evicted, "evictions");
        let counters = Counters {
            evicted_for_room: seen.evicted_for_room,
            evicted_for_region: seen.evicted_for_region,
            evicted_by_watermark: seen.evicted_by_watermark,
            evicted_for_budget: seen.evicted_for_budget,
            ..self.counters
        };
        let held = |session: &crate::reference::Session| {
            let pins = session.pins.values().chain(session.ghosts.values());
            pins.map(|(count, _)| u64::from(*count)).sum::<u64>()
        };
        let pinned = self.sessions.values().flat_map(|s| s.pins.keys());
        let ghosts = self.sessions.values().flat_map(|s| s.ghosts.keys());
        let ghosts = ghosts.collect::<BTreeSet<_>>().len() as u64;
        let mut stats = Stats {
            epoch: self.config.epoch,
            uptime_ms: now.0,
            capacity_bytes: self.regions.iter().map(|(_, bytes)| bytes).sum(),
            pins: self.sessions.values().map(held).sum(),
            entries_pinned: pinned.collect::<BTreeSet<_>>().len() as u64 + ghosts,
            pages_stained: self.stains.len() as u64,
            pages_damaged: self.damaged.len() as u64,
            counters,
            ..Stats::default()
        };
        for region in self.region_infos() {
            stats.pages_free += region.free;
            stats.pages_reserved += region.reserved;
            stats.pages_resident += region.resident;
            stats.pages_quarantined += region.quarantined;
            stats.free_bytes += region.free * region.page_bytes;
            stats.reserved_bytes += region.reserved * region.page_bytes;
            stats.resident_bytes += region.resident * region.page_bytes;
            stats.quarantined_bytes += region.quarantined * region.page_bytes;
            match region.page_bytes {
                0 => stats.uncut_bytes += region.bytes,
                size => stats.tail_bytes += region.bytes % size,
            }
        }
        let sessions = self.sessions.iter().map(|(id, session)| SessionInfo {
            session: *id,
            instance: session.instance.clone(),
            host: session.host.clone(),
            connected: session.phase == Phase::Connected,
            heard_ms_ago: now - session.heard,
            pins: held(session),
            reservations: session.reservations.len() as u64,
            instance_bytes: self.charged(&session.instance),
            budget_bytes: self.budgets[&session.instance],
        });
        stats.sessions = sessions.collect();
        stats
    }
}
