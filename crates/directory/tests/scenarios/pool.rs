//! A small pool and the words to tell stories about it.

use std::collections::BTreeMap;

use maru_directory::rules::{self, Snapshot};
use maru_directory::{
    Config, DeviceSpan, Directory, Geometry, Millis, ProcessId, Record, Recovery, Tick,
};
use maru_protocol::{
    Answer, Body, Chunk, CommitItem, CommitOutcome, DeleteOutcome, Handle, Hello, Key, Location,
    PinClaim, Presence, Refusal, RegionInfo, ReleaseOutcome, Request, ReservationClaim,
    ReserveOutcome, Resume, Secret, SessionId, Standing, Stats,
};

/// The page size of most stories, in bytes: a region has two of them.
pub(crate) const MIB: u64 = 1 << 20;

/// The time of every wait below, in milliseconds; none is the default, so that none hides.
pub(crate) fn config() -> Config {
    Config {
        lease_ms: 10_000,
        resume_ms: 800,
        quarantine_ms: 30_000,
        window: 4,
        batch_max: 8,
        watermark_high_permille: 1000,
        watermark_low_permille: 1000,
        recorded: true,
        ..Config::default()
    }
}

/// One device of `mib` MiB in regions of 2 MiB.
pub(crate) fn memory(mib: u64) -> Geometry {
    Geometry {
        devices: vec![DeviceSpan { offset: 0, bytes: mib * MIB, reserved: 0 }],
        region_bytes: 2 * MIB,
    }
}

pub(crate) struct Pool {
    pub(crate) directory: Directory,
    pub(crate) now: Millis,
    memory: Geometry,
    sent: BTreeMap<SessionId, u64>,
    secrets: u8,
    /// All records so far.
    log: Vec<u8>,
}

impl Pool {
    pub(crate) fn new(mib: u64) -> Self {
        Self::with(config(), &memory(mib))
    }

    pub(crate) fn with(config: Config, memory: &Geometry) -> Self {
        Self {
            directory: Directory::new(config, memory, Millis(0)).unwrap(),
            now: Millis(0),
            memory: memory.clone(),
            sent: BTreeMap::new(),
            secrets: 0,
            log: Vec::new(),
        }
    }

    /// The secret of the `n`th session, from 1.
    pub(crate) fn secret(n: u8) -> Secret {
        Secret([n; 16])
    }

    pub(crate) fn hello(&mut self, instance: &str) -> SessionId {
        self.hello_with_budget(instance, 0)
    }

    pub(crate) fn hello_with_budget(&mut self, instance: &str, budget_bytes: u64) -> SessionId {
        self.open(
            &Hello { instance, host: "host", budget_bytes, resume: None, outside_writers: false },
            None,
        )
    }

    /// A session of an instance on this host.
    pub(crate) fn hello_from(&mut self, instance: &str, host: &str) -> SessionId {
        self.open(
            &Hello { instance, host, budget_bytes: 0, resume: None, outside_writers: false },
            None,
        )
    }

    /// A session whose process would be seen to die.
    pub(crate) fn hello_watched(&mut self, instance: &str) -> SessionId {
        let hello =
            Hello { instance, host: "host", budget_bytes: 0, resume: None, outside_writers: false };
        self.open(&hello, Some(ProcessId { pid: 1, started: 2 }))
    }

    fn open(&mut self, hello: &Hello<'_>, process: Option<ProcessId>) -> SessionId {
        self.secrets += 1;
        let secret = Self::secret(self.secrets);
        self.directory.hello(self.now, hello, secret, process).unwrap().session
    }

    /// Whether the session is resumed with this secret; if not, a new one is opened.
    pub(crate) fn resume(&mut self, session: SessionId, secret: Secret) -> bool {
        self.standing(session, secret) == Standing::Resumed
    }

    /// As which a session comes back.
    pub(crate) fn standing(&mut self, session: SessionId, secret: Secret) -> Standing {
        let resume = Some(Resume { session, secret });
        let hello = Hello {
            instance: "back",
            host: "host",
            budget_bytes: 0,
            resume,
            outside_writers: false,
        };
        let fresh = Secret([200; 16]);
        self.directory.hello(self.now, &hello, fresh, None).unwrap().standing
    }

    /// The server is killed at this moment, and another takes its place.
    pub(crate) fn restart(&mut self) {
        self.log.extend(self.directory.take_records());
        let before = Snapshot::of(&self.directory);
        let old = self.directory.config();
        let config = Config { epoch: old.epoch + 1, ..old.clone() };
        let mut recovery = Recovery::new(&self.memory).unwrap();
        let mut log = &self.log[..];
        while !log.is_empty() {
            recovery.replay(Record::take(&mut log).unwrap()).unwrap();
        }
        self.directory = recovery.finish(config, self.now).unwrap();
        self.log.extend(self.directory.checkpoint());
        rules::check(&self.directory, self.now).unwrap();
        let after = Snapshot::of(&self.directory);
        rules::acknowledged_is_recoverable(&before, &after).unwrap();
    }

    /// The log begins anew with a checkpoint and what is resident.
    pub(crate) fn compact(&mut self) {
        drop(self.directory.take_records());
        self.log = self.directory.checkpoint();
        for (page, generation) in self.directory.chunks().collect::<Vec<_>>() {
            self.directory.append_stored(page, generation, &mut self.log);
        }
    }

    /// The `n`th session comes back after a restart, and claims this.
    pub(crate) fn claim(
        &mut self,
        id: SessionId,
        n: u8,
        pins: &[(Handle, u32)],
        reservations: &[(Handle, &str)],
    ) -> Result<Answer, Refusal> {
        assert_eq!(self.standing(id, Self::secret(n)), Standing::Restored);
        let pins = pins.iter().map(|(handle, count)| PinClaim { handle: *handle, count: *count });
        let reservations = reservations.iter().map(|(handle, name)| {
            let key = Key::new(name.as_bytes()).unwrap();
            ReservationClaim { handle: *handle, key, tag: 0, committing: None }
        });
        let (pins, reservations) = (pins.collect(), reservations.collect());
        self.ask(id, Body::Claim { pins, reservations, commits: Vec::new(), last: true })
    }

    /// Asks under the next number, with all before acknowledged.
    pub(crate) fn ask(&mut self, id: SessionId, body: Body<'_>) -> Result<Answer, Refusal> {
        let sent = self.sent.entry(id).or_default();
        *sent += 1;
        let (seq, acked) = (*sent, *sent - 1);
        self.send(id, &Request { seq, acked, body })
    }

    pub(crate) fn send(&mut self, id: SessionId, request: &Request<'_>) -> Result<Answer, Refusal> {
        let reply = self.directory.apply(self.now, id, request);
        rules::check(&self.directory, self.now).unwrap();
        reply.result
    }

    pub(crate) fn pass(&mut self, ms: u64) {
        self.now = self.now + ms;
    }

    /// One tick after `ms`.
    pub(crate) fn tick(&mut self, ms: u64) -> Tick {
        self.pass(ms);
        let tick = self.directory.tick(self.now);
        assert_eq!(tick.violation, None);
        rules::check(&self.directory, self.now).unwrap();
        tick
    }

    pub(crate) fn reserve(
        &mut self,
        id: SessionId,
        names: &[&str],
        page_bytes: u64,
    ) -> Vec<ReserveOutcome> {
        let body =
            Body::Reserve { keys: keys(names), page_bytes, tag: 0, unless_being_written: false };
        match self.ask(id, body) {
            Ok(Answer::Reserved(outcomes)) => outcomes,
            other => panic!("a reserve is answered {other:?}"),
        }
    }

    /// Reserves a page that must be granted.
    pub(crate) fn grant(&mut self, id: SessionId, name: &str, page_bytes: u64) -> Handle {
        match self.reserve(id, &[name], page_bytes)[..] {
            [ReserveOutcome::Granted(location)] => location.handle,
            ref other => panic!("{name} is not granted: {other:?}"),
        }
    }

    pub(crate) fn commit(&mut self, id: SessionId, handle: Handle, length: u64) -> CommitOutcome {
        let items = vec![CommitItem { handle, length, checksum: None }];
        match self.ask(id, Body::Commit { items, pins: 0, names: Vec::new() }) {
            Ok(Answer::Committed(outcomes)) => outcomes[0],
            other => panic!("a commit is answered {other:?}"),
        }
    }

    /// Reserves and commits one full page.
    pub(crate) fn store_sized(&mut self, id: SessionId, name: &str, page_bytes: u64) -> Location {
        let handle = self.grant(id, name, page_bytes);
        let location = Location::new(handle, page_bytes);
        let outcome = self.commit(id, handle, page_bytes);
        assert_eq!(outcome, CommitOutcome::Committed(local(location)));
        location
    }

    pub(crate) fn store(&mut self, id: SessionId, name: &str) -> Location {
        self.store_sized(id, name, MIB)
    }

    /// Stores several, one millisecond apart, so that their ages differ.
    pub(crate) fn store_all(&mut self, id: SessionId, names: &[&str]) {
        for name in names {
            self.pass(1);
            self.store(id, name);
        }
    }

    pub(crate) fn acquire(&mut self, id: SessionId, name: &str) -> Option<Location> {
        let body = Body::Acquire { keys: keys(&[name]), pins: 1, stop_at_miss: false };
        match self.ask(id, body) {
            Ok(Answer::Acquired(found)) => found[0].map(|chunk| chunk.location),
            other => panic!("an acquire is answered {other:?}"),
        }
    }

    pub(crate) fn release(&mut self, id: SessionId, handle: Handle) -> ReleaseOutcome {
        let handles = vec![handle];
        released(self.ask(id, Body::Release { handles, pins: 1 }))
    }

    pub(crate) fn abort(&mut self, id: SessionId, handle: Handle) -> ReleaseOutcome {
        let handles = vec![handle];
        released(self.ask(id, Body::Abort { handles }))
    }

    pub(crate) fn delete(&mut self, id: SessionId, name: &str) -> DeleteOutcome {
        match self.ask(id, Body::Delete { keys: keys(&[name]) }) {
            Ok(Answer::Deleted(outcomes)) => outcomes[0],
            other => panic!("a delete is answered {other:?}"),
        }
    }

    /// Which of these are resident, by a look.
    pub(crate) fn resident(&mut self, id: SessionId, names: &[&'static str]) -> Vec<&'static str> {
        let present = match self.ask(id, Body::Contains { keys: keys(names) }) {
            Ok(Answer::Contained(present)) => present,
            other => panic!("a contains is answered {other:?}"),
        };
        let both = names.iter().zip(present);
        let resident = both.filter(|(_, presence)| *presence == Presence::Resident);
        resident.map(|(name, _)| *name).collect()
    }

    pub(crate) fn stats(&mut self, id: SessionId) -> Stats {
        match self.ask(id, Body::Stats) {
            Ok(Answer::Stats(stats)) => *stats,
            other => panic!("stats are answered {other:?}"),
        }
    }

    pub(crate) fn regions(&mut self, id: SessionId) -> Vec<RegionInfo> {
        match self.ask(id, Body::Regions) {
            Ok(Answer::Regions(regions)) => regions,
            other => panic!("regions are answered {other:?}"),
        }
    }
}

/// A chunk of the reader's own host, without a checksum.
pub(crate) const fn local(location: Location) -> Chunk {
    Chunk { location, checksum: None, foreign: false }
}

fn released(answer: Result<Answer, Refusal>) -> ReleaseOutcome {
    match answer {
        Ok(Answer::Released(outcomes)) => outcomes[0],
        other => panic!("a release is answered {other:?}"),
    }
}

pub(crate) fn keys<'a>(names: &[&'a str]) -> Vec<Key<'a>> {
    names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect()
}
