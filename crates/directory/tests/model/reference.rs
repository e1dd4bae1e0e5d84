//! The reference: what a directory should answer, written from DESIGN.md and the protocol's
//! documentation with sorted maps and no cleverness. Where they leave a choice (which page is
//! granted, who of several equals is evicted), it learns the choice from the directory and checks
//! that it was a legal one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use maru_directory::rules::{Owner, Snapshot};
use maru_directory::{Config, Geometry, Millis, Opened};
use maru_protocol::{Answer, Counters, Generation, Handle, Hello, Refusal, Secret, SessionId};

/// A key; all are static, see [`crate::op::KEYS`].
pub(crate) type Name = &'static [u8];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Connected,
    Dropped(Millis),
    Ended,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) secret: Secret,
    pub(crate) instance: String,
    pub(crate) host: String,
    pub(crate) phase: Phase,
    pub(crate) heard: Millis,
    pub(crate) writer_gone: bool,
    pub(crate) pins: BTreeMap<Name, (u32, Millis)>,
    pub(crate) reservations: BTreeMap<Generation, Reservation>,
    pub(crate) floor: u64,
    pub(crate) replies: BTreeMap<u64, Result<Answer, Refusal>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Reservation {
    pub(crate) key: Name,
    pub(crate) tag: u64,
    pub(crate) handle: Handle,
    pub(crate) page_bytes: u64,
    pub(crate) since: Millis,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) handle: Handle,
    pub(crate) length: u64,
    pub(crate) page_bytes: u64,
    pub(crate) writer: String,
    /// Whether its writer had a budget, so that it weighs its entries among themselves.
    pub(crate) budgeted: bool,
    pub(crate) touched: Millis,
    /// Later uses have higher numbers; those in one step whose order is open have the same.
    pub(crate) order: u64,
}

impl Entry {
    /// Entries that are weighed against each other: equal for those.
    pub(crate) fn queue(&self) -> (u64, Option<&str>) {
        (self.page_bytes, self.budgeted.then_some(&self.writer))
    }
}

#[derive(Debug)]
pub(crate) struct Quarantine {
    pub(crate) secret: Secret,
    pub(crate) instance: String,
    pub(crate) pages: BTreeMap<Generation, (Handle, u64)>,
    pub(crate) until: Millis,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: Config,
    /// Offset and size of each region.
    pub(crate) regions: Vec<(u64, u64)>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    /// Those that ended, in that order, until they hold nothing.
    pub(crate) ended: VecDeque<SessionId>,
    pub(crate) entries: BTreeMap<Name, Entry>,
    pub(crate) quarantines: BTreeMap<SessionId, Quarantine>,
    pub(crate) budgets: BTreeMap<String, u64>,
    /// When a page of each region was last used.
    pub(crate) region_used: BTreeMap<u32, Millis>,
    /// Sessions that write no more.
    pub(crate) gone: BTreeSet<SessionId>,
    pub(crate) counters: Counters,
    pub(crate) evicted: u64,
    /// The watermark's eviction was put off by the bound on a tick's work.
    pub(crate) evicting: bool,
    pub(crate) next_generation: u64,
    last_session: SessionId,
    uses: u64,
}

impl Model {
    pub(crate) fn new(config: Config, geometry: &Geometry) -> Self {
        Self {
            regions: regions(geometry),
            sessions: BTreeMap::new(),
            ended: VecDeque::new(),
            entries: BTreeMap::new(),
            quarantines: BTreeMap::new(),
            budgets: BTreeMap::new(),
            region_used: BTreeMap::new(),
            gone: BTreeSet::new(),
            counters: Counters::default(),
            evicted: 0,
            evicting: false,
            next_generation: 0,
            last_session: SessionId(0),
            uses: 0,
            config,
        }
    }

    /// A number for a use that is later than all before.
    pub(crate) fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    pub(crate) fn hello(
        &mut self,
        now: Millis,
        hello: &Hello<'_>,
        fresh: Secret,
        got: &Result<Opened, Refusal>,
    ) {
        if let Some(resume) = hello.resume
            && let Some(session) = self.sessions.get_mut(&resume.session)
            && session.secret == resume.secret
            && session.phase != Phase::Ended
        {
            session.phase = Phase::Connected;
            session.heard = now;
            let opened = Opened { session: resume.session, secret: resume.secret, resumed: true };
            assert_eq!(*got, Ok(opened), "a session is resumed with its secret");
            return;
        }
        if self.sessions.len() >= self.config.sessions_max as usize {
            let limit = self.config.sessions_max;
            assert_eq!(*got, Err(Refusal::TooManySessions { limit }));
            return;
        }
        let opened = got.clone().expect("there is room for a session");
        assert!(opened.session > self.last_session, "a new session has a new number");
        assert!(!opened.resumed && opened.secret == fresh);
        self.last_session = opened.session;
        self.budgets.insert(hello.instance.into(), hello.budget_bytes);
        self.counters.sessions_opened += 1;
        let session = Session {
            secret: fresh,
            instance: hello.instance.into(),
            host: hello.host.into(),
            phase: Phase::Connected,
            heard: now,
            writer_gone: false,
            pins: BTreeMap::new(),
            reservations: BTreeMap::new(),
            floor: 0,
            replies: BTreeMap::new(),
        };
        self.sessions.insert(opened.session, session);
    }

    pub(crate) fn disconnected(&mut self, now: Millis, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id)
            && session.phase == Phase::Connected
        {
            session.phase = Phase::Dropped(now);
        }
    }

    /// Whether the session was not over before.
    pub(crate) fn writer_dead(&mut self, id: SessionId) -> bool {
        self.writer_gone(id);
        let ended = self.end(id);
        self.counters.sessions_dropped += u64::from(ended);
        ended
    }

    pub(crate) fn writer_gone(&mut self, id: SessionId) {
        self.gone.insert(id);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.writer_gone = true;
        }
        if let Some(quarantine) = self.quarantines.get_mut(&id) {
            quarantine.until = Millis(0);
        }
    }

    /// Whether the session was not over before.
    pub(crate) fn end(&mut self, id: SessionId) -> bool {
        match self.sessions.get_mut(&id) {
            Some(session) if session.phase != Phase::Ended => {
                session.phase = Phase::Ended;
                self.ended.push_back(id);
                true
            }
            _ => false,
        }
    }

    /// Pins of all sessions on a key.
    pub(crate) fn pins_on(&self, key: Name) -> u32 {
        let held = self.sessions.values().filter_map(|s| s.pins.get(key));
        held.map(|(count, _)| count).sum()
    }

    pub(crate) fn being_written(&self, key: Name) -> bool {
        let mut reservations = self.sessions.values().flat_map(|s| s.reservations.values());
        reservations.any(|reservation| reservation.key == key)
    }

    /// All pages that are not free, with their sizes.
    pub(crate) fn used_pages(&self) -> Vec<(Handle, u64)> {
        let sessions = self.sessions.values();
        let reserved =
            sessions.flat_map(|s| s.reservations.values().map(|r| (r.handle, r.page_bytes)));
        let resident = self.entries.values().map(|e| (e.handle, e.page_bytes));
        let quarantined = self.quarantines.values().flat_map(|q| q.pages.values().copied());
        reserved.chain(resident).chain(quarantined).collect()
    }

    /// Bytes of the pages that an instance reserved, wrote, or may still be writing.
    pub(crate) fn charged(&self, instance: &str) -> u64 {
        let sessions = self.sessions.values().filter(|s| s.instance == instance);
        let reserved = sessions.flat_map(|s| s.reservations.values().map(|r| r.page_bytes));
        let entries = self.entries.values().filter(|e| e.writer == instance);
        let kept = self.quarantines.values().filter(|q| q.instance == instance);
        let quarantined = kept.flat_map(|q| q.pages.values().map(|(_, bytes)| *bytes));
        reserved.chain(entries.map(|e| e.page_bytes)).chain(quarantined).sum()
    }

    fn place(&self, handle: Handle, page_bytes: u64) -> (u32, u32) {
        let (offset, _) = self.regions[handle.region.0 as usize];
        let index = (handle.offset - offset) / page_bytes;
        (handle.region.0, u32::try_from(index).expect("regions are small"))
    }

    /// Everything a snapshot shows must be what the reference knows.
    pub(crate) fn compare(&self, after: &Snapshot) {
        let mut pages = BTreeMap::new();
        let mut own = |handle: Handle, bytes, owner| {
            let before = pages.insert(self.place(handle, bytes), (handle.generation, owner));
            assert_eq!(before, None, "a page has two owners");
        };
        for (id, session) in &self.sessions {
            for held in session.reservations.values() {
                own(held.handle, held.page_bytes, Owner::Reserved(*id));
            }
        }
        for (key, entry) in &self.entries {
            own(entry.handle, entry.page_bytes, Owner::Resident(key.to_vec()));
        }
        for (id, held) in &self.quarantines {
            for (handle, bytes) in held.pages.values() {
                own(*handle, *bytes, Owner::Quarantined(*id, held.until));
            }
        }
        assert_eq!(after.pages, pages, "directory (left) and reference: pages");
        let entries = self.entries.iter();
        let entries: BTreeMap<_, _> = entries
            .map(|(key, entry)| (key.to_vec(), (entry.handle, self.pins_on(key), entry.touched)))
            .collect();
        assert_eq!(after.entries, entries, "directory (left) and reference: entries");
        let live = self.sessions.iter().filter(|(_, s)| s.phase != Phase::Ended);
        let pins: BTreeMap<_, _> = live
            .flat_map(|(id, s)| s.pins.iter().map(|(key, held)| ((*id, key.to_vec()), held.0)))
            .collect();
        assert_eq!(after.pins, pins, "directory (left) and reference: pins");
    }
}

/// Where regions lie: at multiples of their size, without the devices' headers, on 4 KiB bounds.
fn regions(geometry: &Geometry) -> Vec<(u64, u64)> {
    let mut regions = Vec::new();
    for device in &geometry.devices {
        let end = (device.offset + device.bytes) / 4096 * 4096;
        let mut from = (device.offset + device.reserved).div_ceil(4096) * 4096;
        while from < end {
            let to = (from / geometry.region_bytes + 1) * geometry.region_bytes;
            regions.push((from, to.min(end) - from));
            from = to;
        }
    }
    regions
}
