//! The reference: what a directory should answer, written from DESIGN.md and the protocol's
//! documentation with sorted maps and no cleverness. Where they leave a choice (which page is
//! granted, who of several equals is evicted), it learns the choice from the directory and checks
//! that it was a legal one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use maru_directory::rules::{self, Owner, Snapshot};
use maru_directory::{Config, Geometry, Millis, Opened, PageAt};
use maru_protocol::{
    Answer, Checksum, Counters, Generation, Handle, Hello, Refusal, Secret, SessionId, Standing,
};

/// A key; all are static, see [`crate::op::KEYS`].
pub(crate) type Name = &'static [u8];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Connected,
    Dropped(Millis),
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Writer {
    MayWrite,
    Dead,
    Done,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) secret: Secret,
    pub(crate) instance: String,
    pub(crate) host: String,
    pub(crate) phase: Phase,
    pub(crate) heard: Millis,
    pub(crate) writer: Writer,
    pub(crate) pins: BTreeMap<Name, (u32, Millis)>,
    /// Pins on what no key leads to any more.
    pub(crate) ghosts: BTreeMap<Generation, (u32, Millis)>,
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
    pub(crate) key: Name,
    pub(crate) writer: String,
    pub(crate) host: String,
    pub(crate) checksum: Option<Checksum>,
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
pub(crate) struct Vanished {
    pub(crate) secret: Secret,
    pub(crate) instance: String,
    pub(crate) host: String,
    pub(crate) writer: Writer,
    pub(crate) pages: BTreeMap<Generation, (Handle, u64)>,
    pub(crate) until: Millis,
}

/// A vacant page that caches may hold lines of.
#[derive(Debug)]
pub(crate) struct Stain {
    pub(crate) handle: Handle,
    pub(crate) page_bytes: u64,
    pub(crate) hosts: BTreeSet<String>,
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
    /// What no key leads to, and somebody pins.
    pub(crate) ghosts: BTreeMap<Generation, Entry>,
    pub(crate) vanished: BTreeMap<SessionId, Vanished>,
    pub(crate) stains: BTreeMap<Generation, Stain>,
    /// Pages that were stained when they were granted, and are not committed.
    pub(crate) granted_stained: BTreeSet<Generation>,
    /// Pages not used any more, with their sizes.
    pub(crate) damaged: Vec<(Handle, u64)>,
    /// All that were ever here.
    pub(crate) hosts: BTreeSet<String>,
    pub(crate) hosts_gone: BTreeSet<String>,
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
            ghosts: BTreeMap::new(),
            vanished: BTreeMap::new(),
            stains: BTreeMap::new(),
            granted_stained: BTreeSet::new(),
            damaged: Vec::new(),
            hosts: BTreeSet::new(),
            hosts_gone: BTreeSet::new(),
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
            let (secret, standing) = (resume.secret, Standing::Resumed);
            let opened = Opened { session: resume.session, secret, standing };
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
        assert!(opened.standing == Standing::New && opened.secret == fresh);
        self.last_session = opened.session;
        self.hosts.insert(hello.host.into());
        self.hosts_gone.remove(hello.host);
        self.budgets.insert(hello.instance.into(), hello.budget_bytes);
        self.counters.sessions_opened += 1;
        let session = Session {
            secret: fresh,
            instance: hello.instance.into(),
            host: hello.host.into(),
            phase: Phase::Connected,
            heard: now,
            writer: Writer::MayWrite,
            pins: BTreeMap::new(),
            ghosts: BTreeMap::new(),
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
        self.writer_gone(id, Writer::Dead);
        let ended = self.end(id);
        self.counters.sessions_dropped += u64::from(ended);
        ended
    }

    pub(crate) fn writer_gone(&mut self, id: SessionId, how: Writer) {
        self.gone.insert(id);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.writer = session.writer.max(how);
        }
        if let Some(vanished) = self.vanished.get_mut(&id) {
            vanished.writer = vanished.writer.max(how);
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

    pub(crate) fn pins_on_ghost(&self, ghost: Generation) -> u32 {
        let held = self.sessions.values().filter_map(|s| s.ghosts.get(&ghost));
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
        let entries = self.entries.values().chain(self.ghosts.values());
        let resident = entries.map(|e| (e.handle, e.page_bytes));
        let quarantined = self.vanished.values().flat_map(|one| one.pages.values().copied());
        let stained = self.stains.values().map(|stain| (stain.handle, stain.page_bytes));
        let vacant = quarantined.chain(stained).chain(self.damaged.iter().copied());
        reserved.chain(resident).chain(vacant).collect()
    }

    /// Bytes of the pages that an instance reserved, wrote, or may still be writing.
    pub(crate) fn charged(&self, instance: &str) -> u64 {
        let sessions = self.sessions.values().filter(|s| s.instance == instance);
        let reserved = sessions.flat_map(|s| s.reservations.values().map(|r| r.page_bytes));
        let entries = self.entries.values().chain(self.ghosts.values());
        let entries = entries.filter(|e| e.writer == instance);
        let kept = self.vanished.values().filter(|one| one.instance == instance);
        let quarantined = kept.flat_map(|q| q.pages.values().map(|(_, bytes)| *bytes));
        reserved.chain(entries.map(|e| e.page_bytes)).chain(quarantined).sum()
    }

    fn place(&self, handle: Handle, page_bytes: u64) -> PageAt {
        let (offset, _) = self.regions[handle.region.0 as usize];
        let index = (handle.offset - offset) / page_bytes;
        let index = u32::try_from(index).expect("regions are small");
        PageAt { region: handle.region.0, index }
    }

    /// What a directory shows that was made again: as before, but for what sessions held, which is
    /// unclaimed or free.
    pub(crate) fn compare_recovered(&self, after: &Snapshot) {
        let mut lasting = BTreeMap::new();
        let mut add =
            |handle: Handle, bytes, owner| lasting.insert(self.place(handle, bytes), owner);
        for (key, entry) in &self.entries {
            add(entry.handle, entry.page_bytes, Owner::Resident(key.to_vec()));
        }
        // A session that may come back may have been granted it.
        for stain in self.stains.values().filter(|_| !after.unclaimed_matter) {
            add(stain.handle, stain.page_bytes, Owner::Stained(stain.hosts.clone()));
        }
        let is_over = |s: &&Session| s.phase == Phase::Ended && s.writer == Writer::Done;
        let (over, others): (Vec<&Session>, Vec<&Session>) =
            self.sessions.values().partition(is_over);
        // Who writes no more is forgotten, but not what its pages were stained with before.
        for session in over.into_iter().filter(|_| !after.unclaimed_matter) {
            let stained = session.reservations.iter();
            for (_, held) in stained.filter(|(of, _)| self.granted_stained.contains(of)) {
                let hosts = [session.host.clone()].into();
                add(held.handle, held.page_bytes, Owner::Stained(hosts));
            }
        }
        let ghosts = self.ghosts.values().map(|ghost| (ghost.handle, ghost.page_bytes));
        for (handle, bytes) in self.damaged.iter().copied().chain(ghosts) {
            add(handle, bytes, Owner::Damaged);
        }
        for (id, held) in &self.vanished {
            for (handle, bytes) in held.pages.values() {
                add(*handle, *bytes, Owner::Quarantined(*id, Millis(0)));
            }
        }
        let found = after.pages.iter().filter(|(_, (_, owner))| *owner != Owner::Unclaimed);
        let found: BTreeMap<_, _> = found
            .map(|(at, (_, owner))| match owner {
                Owner::Quarantined(id, _) => (*at, Owner::Quarantined(*id, Millis(0))),
                owner => (*at, owner.clone()),
            })
            .collect();
        assert_eq!(found, lasting, "the directory made again (left), and reference");
        for held in others.into_iter().flat_map(|s| s.reservations.values()) {
            let page = after.pages.get(&self.place(held.handle, held.page_bytes));
            let kept = matches!(page, Some((_, Owner::Unclaimed)));
            assert!(kept, "{held:?} could be granted to others: {page:?}");
        }
        for stain in self.stains.values() {
            let page = after.pages.get(&self.place(stain.handle, stain.page_bytes));
            assert!(page.is_some(), "{stain:?} could be granted to others");
        }
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
        for ghost in self.ghosts.values() {
            let pins = self.pins_on_ghost(ghost.handle.generation);
            own(ghost.handle, ghost.page_bytes, Owner::Ghost(pins));
        }
        for (id, held) in &self.vanished {
            for (handle, bytes) in held.pages.values() {
                own(*handle, *bytes, Owner::Quarantined(*id, held.until));
            }
        }
        for stain in self.stains.values() {
            own(stain.handle, stain.page_bytes, Owner::Stained(stain.hosts.clone()));
        }
        for (handle, bytes) in &self.damaged {
            own(*handle, *bytes, Owner::Damaged);
        }
        assert_eq!(after.pages, pages, "directory (left) and reference: pages");
        let entries = self.entries.iter();
        let seen = |(key, entry): (&Name, &Entry)| {
            let length = u32::try_from(entry.length).expect("pages are small");
            let (pins, touched) = (self.pins_on(key), entry.touched);
            (key.to_vec(), rules::Seen { handle: entry.handle, length, pins, touched })
        };
        let entries: BTreeMap<_, _> = entries.map(seen).collect();
        assert_eq!(after.entries, entries, "directory (left) and reference: entries");
        let live = self.sessions.iter().filter(|(_, s)| s.phase != Phase::Ended);
        let pins: BTreeMap<_, _> = live
            .flat_map(|(id, s)| {
                let handle = |key: &Name| self.entries[key].handle;
                let pins = s.pins.iter().map(move |(key, held)| ((*id, handle(key)), held.0));
                let handle = |ghost: &Generation| self.ghosts[ghost].handle;
                let ghosts = s.ghosts.iter().map(move |(at, held)| ((*id, handle(at)), held.0));
                pins.chain(ghosts)
            })
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
