//! A directory and its reference side by side: each [`Op`] is done to both, and after each step
//! they must agree and every rule must hold.

use std::collections::{BTreeSet, VecDeque};

use maru_directory::rules::{self, Rule, Snapshot, Step};
use maru_directory::{Config, Directory, Millis, ProcessId, Record, Recovery};
use maru_protocol::{
    Answer, Body, Counters, EntryInfo, Handle, Hello, HolderInfo, Reply, Request, ReserveOutcome,
    Resume, Secret, SessionId, Standing,
};

use crate::answers::Effect;
use crate::op::{Acked, Ask, HOSTS, INSTANCES, KEYS, Numbering, Op, Resuming, Setup, budget};
use crate::reference::{Model, Phase};

/// Requests remembered, to be sent again.
const HISTORY: usize = 64;

/// How long an ended session's cleaning may be put off while time passes in small steps; rule 6
/// leaves 100 ms at least.
const PUT_OFF_MS: u64 = 90;

#[derive(Debug, Default, Clone, Copy)]
struct Peer {
    session: Option<(SessionId, Secret)>,
    sent: u64,
}

pub(crate) struct World {
    pub(crate) setup: Setup,
    directory: Directory,
    pub(crate) model: Model,
    now: Millis,
    /// When all that had to be cleaned up last was.
    cleaned: Millis,
    peers: [Peer; INSTANCES.len()],
    sessions: Vec<(SessionId, Secret)>,
    /// All that were ever granted.
    pub(crate) handles: Vec<Handle>,
    history: VecDeque<(SessionId, Request<'static>)>,
    snapshot: Snapshot,
    /// All records so far.
    log: Vec<u8>,
    /// Hosts that were ever said to be gone.
    hosts_gone: BTreeSet<String>,
}

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        let (config, geometry) = (setup.config(), setup.geometry());
        let model = Model::new(config.clone(), &geometry);
        let directory = Directory::new(config, &geometry, Millis(0)).expect("the setup is legal");
        Self {
            snapshot: Snapshot::of(&directory),
            setup,
            directory,
            model,
            now: Millis(0),
            cleaned: Millis(0),
            peers: [Peer::default(); INSTANCES.len()],
            sessions: Vec::new(),
            handles: Vec::new(),
            history: VecDeque::new(),
            log: Vec::new(),
            hosts_gone: BTreeSet::new(),
        }
    }

    pub(crate) fn step(&mut self, op: &Op) {
        match op {
            Op::Hello { peer, budget, resuming, watched } => {
                self.hello(*peer, *budget, *resuming, *watched);
            }
            Op::Disconnect { peer } => {
                if let Some((id, _)) = self.peer(*peer).session {
                    self.directory.disconnected(self.now, id);
                    self.model.disconnected(self.now, id);
                    let before = self.after(None);
                    unchanged(Rule::Once, &before, &self.snapshot);
                }
            }
            Op::WriterDead { session } => {
                if let Some((id, _)) = self.any_session(*session) {
                    let ended = self.directory.writer_dead(self.now, id);
                    assert_eq!(ended, self.model.writer_dead(id));
                    self.after(None);
                }
            }
            Op::WriterStopped { session } => {
                if let Some((id, _)) = self.any_session(*session) {
                    self.directory.writer_stopped(self.now, id);
                    self.model.writer_stopped(self.now, id);
                    self.after(None);
                }
            }
            Op::Pass { time } => self.pass(*time),
            Op::Tick => {
                self.tick();
            }
            Op::Condemn { handle } => {
                let recent = self.handles.iter().rev().nth(usize::from(*handle) % 16);
                if let Some(handle) = recent.copied() {
                    let condemned = self.directory.condemn(handle);
                    assert_eq!(condemned.as_deref(), self.model.condemn(handle));
                    self.after(None);
                }
            }
            Op::Recover { checkpoint, compact } => self.recover(*checkpoint, *compact),
            Op::Replay { back } => {
                let place = self.history.len().checked_sub(1 + usize::from(*back) % HISTORY);
                if let Some((id, request)) = place.and_then(|place| self.history.get(place)) {
                    let (id, request) = (*id, request.clone());
                    self.ask(id, &request);
                }
            }
            Op::Ask { peer, revive, numbering, acked, ask } => {
                self.ask_numbered(*peer, *revive, *numbering, *acked, ask);
            }
        }
    }

    fn peer(&self, peer: u8) -> Peer {
        self.peers[usize::from(peer) % INSTANCES.len()]
    }

    pub(crate) fn any_session(&self, choice: u8) -> Option<(SessionId, Secret)> {
        let place = usize::from(choice).checked_rem(self.sessions.len())?;
        // The latest are the most interesting.
        self.sessions.iter().rev().nth(place).copied()
    }

    fn hello(&mut self, peer: u8, choice: u8, resuming: Resuming, watched: bool) {
        let place = usize::from(peer) % INSTANCES.len();
        let resume = match resuming {
            Resuming::Not => None,
            Resuming::Own => self.peers[place].session,
            Resuming::WrongSecret => self.peers[place].session.map(|(id, _)| (id, Secret([9; 16]))),
            Resuming::Any(choice) => self.any_session(choice),
        };
        let hello = Hello {
            instance: INSTANCES[place],
            host: HOSTS[place],
            budget_bytes: budget(choice),
            resume: resume.map(|(session, secret)| Resume { session, secret }),
            outside_writers: false,
        };
        let fresh = Secret((self.sessions.len() as u128).to_le_bytes());
        let process = watched.then_some(ProcessId { pid: 1, started: 2 });
        let got = self.directory.hello(self.now, &hello, fresh, process);
        self.model.hello(self.now, &hello, fresh, &got);
        self.after(None);
        let Ok(opened) = got else {
            return;
        };
        let session = (opened.session, opened.secret);
        if self.peers[place].session != Some(session) {
            self.peers[place] = Peer { session: Some(session), sent: 0 };
        }
        if opened.standing == Standing::New {
            self.sessions.push(session);
        }
    }

    fn pass(&mut self, time: u8) {
        let config = self.directory.config();
        let ms = match time {
            0..200 => u64::from(time) % 5,
            200..236 => u64::from(time) / 8,
            236..240 => config.resume_ms.saturating_sub(1),
            240..244 => config.resume_ms,
            244..247 => config.lease_ms.saturating_sub(1),
            247..251 => config.quarantine_ms,
            251..253 => config.lease_ms,
            253..255 => 10_000_000,
            255 => 1 << 50,
        };
        if (self.now + ms) - self.cleaned > PUT_OFF_MS {
            while self.tick() {}
        }
        self.now = self.now + ms;
        self.after(None);
    }

    /// Whether there is more to do.
    fn tick(&mut self) -> bool {
        let tick = self.directory.tick(self.now);
        let after = Snapshot::of(&self.directory);
        self.model.tick(self.now, &tick, &after);
        self.after(None);
        if !tick.more {
            self.cleaned = self.now;
        }
        tick.more
    }

    fn ask_numbered(&mut self, peer: u8, revive: bool, by: Numbering, acked: Acked, ask: &Ask) {
        let place = usize::from(peer) % INSTANCES.len();
        if revive && !self.is_connected(place) {
            self.hello(peer, peer, Resuming::Own, peer.is_multiple_of(2));
        }
        let Peer { session: Some((id, _)), sent } = self.peers[place] else {
            return;
        };
        let seq = match by {
            Numbering::Next => sent.saturating_add(1),
            Numbering::Skipping(by) => sent.saturating_add(2 + u64::from(by)),
            Numbering::Again => sent,
            Numbering::Zero => 0,
            Numbering::Last => u64::MAX,
        };
        let acked = match acked {
            // What is sent again has not been answered.
            Acked::All => sent - u64::from(matches!(by, Numbering::Again)).min(sent),
            Acked::Nothing => 0,
            Acked::Ahead(by) => sent.saturating_add(1 + u64::from(by)),
            Acked::Everything => u64::MAX,
        };
        let body = self.body(id, ask);
        if let Body::List { prefix, cursor: 0, limit } = body {
            self.list_all(id, prefix, limit);
        } else if let Body::Holders { cursor: 0, limit } = body {
            self.holders_all(id, limit);
        }
        let request = Request { seq, acked, body };
        let sent = if matches!(by, Numbering::Last) { sent } else { sent.max(seq) };
        // Whoever acknowledged what it did not send goes on behind that.
        let ran_ahead = if acked == u64::MAX { sent } else { acked };
        self.peers[place].sent = sent.max(ran_ahead);
        self.ask(id, &request);
        self.history.push_back((id, request));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }

    fn is_connected(&self, place: usize) -> bool {
        let session = self.peers[place].session;
        let session = session.and_then(|(id, _)| self.model.sessions.get(&id));
        session.is_some_and(|session| session.phase == Phase::Connected)
    }

    fn ask(&mut self, id: SessionId, request: &Request<'static>) -> Reply {
        let reply = self.directory.apply(self.now, id, request);
        let after = Snapshot::of(&self.directory);
        let effect = self.model.apply(self.now, id, request, &reply, &after);
        self.hosts_gone.extend(self.model.hosts_gone.iter().cloned());
        self.learn_handles(&reply);
        let before = self.after(Some(id));
        match effect {
            Effect::Repeated => unchanged(Rule::Once, &before, &self.snapshot),
            Effect::Look => unchanged(Rule::ALookIsNotATouch, &before, &self.snapshot),
            Effect::Change => {}
        }
        reply
    }

    fn learn_handles(&mut self, reply: &Reply) {
        if let Ok(Answer::Reserved(outcomes)) = &reply.result {
            for outcome in outcomes {
                if let ReserveOutcome::Granted(location) = outcome {
                    self.handles.push(location.handle);
                }
            }
        }
    }

    /// Makes another directory of the records: it has all that was acknowledged (rule 9).
    fn recover(&mut self, checkpoint: bool, compact: bool) {
        self.log.extend(self.directory.take_records());
        if compact {
            self.log.clear();
        }
        if checkpoint || compact {
            self.log.extend(self.directory.checkpoint());
        }
        if compact {
            for (page, generation) in self.directory.chunks().collect::<Vec<_>>() {
                self.directory.append_stored(page, generation, &mut self.log);
            }
        }
        let mut recovery = Recovery::new(&self.setup.geometry()).expect("the setup is legal");
        let mut log = &self.log[..];
        while !log.is_empty() {
            let record = Record::take(&mut log).expect("it was written whole");
            recovery.replay(record).expect("it makes sense");
        }
        let config = Config { epoch: 8, ..self.setup.config() };
        let other = recovery.finish(config, self.now).expect("the records make sense");
        let after = Snapshot::of(&other);
        let checked = rules::acknowledged_is_recoverable(&self.snapshot, &after)
            .and_then(|()| rules::check(&other, self.now));
        checked.unwrap_or_else(|violation| panic!("{violation}"));
        self.model.compare_recovered(&after);
    }

    /// Checks every rule, and the reference against the directory. Returns the snapshot before.
    fn after(&mut self, actor: Option<SessionId>) -> Snapshot {
        let after = Snapshot::of(&self.directory);
        let before = std::mem::replace(&mut self.snapshot, after);
        let step = Step {
            before: &before,
            after: &self.snapshot,
            actor,
            gone: &self.model.gone,
            hosts_gone: &self.hosts_gone,
            now: self.now,
        };
        let checked =
            rules::check(&self.directory, self.now).and_then(|()| rules::check_step(&step));
        checked.unwrap_or_else(|violation| panic!("{violation}"));
        self.model.compare(&self.snapshot);
        before
    }

    /// Follows a listing to its end: each entry is there once.
    fn list_all(&mut self, id: SessionId, prefix: &'static [u8], limit: u32) {
        let mut rows: Vec<EntryInfo> = Vec::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let body = Body::List { prefix, cursor: from, limit };
            let reply = self.ask(id, &Request { seq: 0, acked: 0, body });
            let Ok(Answer::Entries(page)) = reply.result else {
                return;
            };
            rows.extend(page.entries);
            cursor = page.next;
        }
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(rows, self.model.entry_infos(self.now, prefix), "each entry once");
    }

    fn holders_all(&mut self, id: SessionId, limit: u32) {
        let mut rows: Vec<HolderInfo> = Vec::new();
        let mut cursor = Some(0);
        while let Some(cursor_now) = cursor {
            let body = Body::Holders { cursor: cursor_now, limit };
            let reply = self.ask(id, &Request { seq: 0, acked: 0, body });
            let Ok(Answer::Holders(page)) = reply.result else {
                return;
            };
            rows.extend(page.holders);
            cursor = page.next;
        }
        let mut known = self.model.holder_infos(self.now);
        let order = |row: &HolderInfo| (row.session, row.location.generation(), row.held_ms);
        rows.sort_by_key(order);
        known.sort_by_key(order);
        assert_eq!(rows, known, "each holding once");
    }

    /// Lets everybody vanish and all time pass: nothing may be held then. Returns the counters.
    pub(crate) fn end(mut self) -> Counters {
        let config = self.directory.config();
        let long = config.lease_ms + config.quarantine_ms;
        for _ in 0..2 {
            while self.tick() {}
            self.now = self.now + long;
        }
        while self.tick() {}
        let vacant = self.model.stains.len() + self.model.damaged.len();
        let full = self.snapshot.pages.len() == self.snapshot.entries.len() + vacant;
        assert!(full && self.model.sessions.is_empty(), "nobody is left, and nothing is held");
        assert_eq!(self.model.pins_on(KEYS[0]), 0);
        self.hello(0, 0, Resuming::Not, false);
        let (id, _) = self.peers[0].session.expect("there is room");
        let reply = self.ask(id, &Request { seq: 1, acked: 0, body: Body::Stats });
        match reply.result {
            Ok(Answer::Stats(stats)) => stats.counters,
            other => panic!("stats are answered {other:?}"),
        }
    }
}

fn unchanged(rule: Rule, before: &Snapshot, after: &Snapshot) {
    let checked = rules::nothing_changed(rule, before, after);
    checked.unwrap_or_else(|violation| panic!("{violation}"));
}
