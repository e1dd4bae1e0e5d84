//! The state machine: sessions come, ask, and go.

use std::collections::BTreeSet;

use indexmap::{IndexMap, IndexSet};
use maru_protocol::{
    Answer, Body, Counters, Hello, Refusal, Reply, Request, Secret, SessionId, Standing,
};

use crate::claims::Claims;
use crate::damage::Looks;
use crate::entries::Entries;
use crate::ids::{EntryId, HostId};
use crate::pages::Pages;
use crate::record::Record;
use crate::rules::Sampled;
use crate::sessions::{Kept, Phase, Replies, Seen, Session, Sessions, Writer};
use crate::stains::Stains;
use crate::watching::Watching;
use crate::{Config, ConfigError, EvictionPolicy, Geometry, Lru, Millis, ProcessId};

/// The longest instance or host name, in bytes.
const NAME_LEN_MAX: usize = 128;

/// The most hosts that a directory tells apart in one life: a restart forgets those without a chunk.
const HOSTS_MAX: u32 = 1 << 16;

/// The index of one pool. See the crate's description.
#[derive(Debug)]
pub struct Directory {
    pub(crate) config: Config,
    pub(crate) entries: Entries,
    pub(crate) pages: Pages,
    pub(crate) sessions: Sessions,
    pub(crate) policy: Box<dyn EvictionPolicy>,
    pub(crate) counters: Counters,
    /// Pins of all sessions.
    pub(crate) pins: u64,
    /// Entries with a pin.
    pub(crate) entries_pinned: u64,
    /// The high watermark was passed, and the low one is not reached yet.
    pub(crate) evicting: bool,
    pub(crate) watching: Watching,
    pub(crate) claims: Claims,
    pub(crate) stains: Stains,
    pub(crate) looks: Looks,
    /// Entries that no key leads to: found bad while they were pinned.
    pub(crate) ghosts: BTreeSet<EntryId>,
    /// Nothing can be stored.
    pub(crate) store_full: bool,
    /// Where the next sampled check of the rules goes on.
    pub(crate) sampled: Sampled,
    started: Millis,
}

/// A session that was opened or resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The session.
    pub session: SessionId,
    /// What resumes it.
    pub secret: Secret,
    /// Whether it is the one that [`Hello::resume`] named.
    pub standing: Standing,
}

impl Directory {
    /// An empty directory over this memory, evicting by [`Lru`].
    pub fn new(config: Config, geometry: &Geometry, now: Millis) -> Result<Self, ConfigError> {
        config.check()?;
        let mut pages = Pages::new(geometry, config.epoch)?;
        pages.journal.off = !config.recorded;
        Ok(Self {
            entries: Entries::new(config.hash_seed),
            pages,
            sessions: Sessions::default(),
            policy: Box::new(Lru::default()),
            counters: Counters::default(),
            pins: 0,
            entries_pinned: 0,
            evicting: false,
            watching: Watching::default(),
            claims: Claims::default(),
            stains: Stains::default(),
            looks: Looks::default(),
            ghosts: BTreeSet::new(),
            store_full: false,
            sampled: Sampled::default(),
            started: now,
            config,
        })
    }

    /// What the directory was told at its start.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether no session reads a page or has one to write to, no vanished writer could, and no cache
    /// holds lines: whoever serves the pool next, and knows nothing of it, may grant any page.
    #[must_use]
    pub fn nobody_holds(&self) -> bool {
        self.pins == 0
            && self.sessions.reservations.is_empty()
            && self.sessions.vanished.is_empty()
            && self.pages.reasons.unclaimed == 0
            && self.pages.reasons.stained == 0
            && !self.is_withheld()
    }

    /// Sessions of before a restart that have not said yet what they hold.
    #[must_use]
    pub fn sessions_awaited(&self) -> u64 {
        self.claims.awaited_len()
    }

    /// When it began.
    pub(crate) const fn started(&self) -> Millis {
        self.started
    }

    /// Takes the records of what changed for good since this was called last. To be stored before
    /// anybody is let know of what made them.
    #[must_use]
    pub fn take_records(&mut self) -> Vec<u8> {
        self.pages.journal.take()
    }

    /// How many hosts were ever here.
    #[must_use]
    pub fn hosts_len(&self) -> usize {
        self.sessions.hosts.len()
    }

    /// How many bytes of records there are to be taken.
    #[must_use]
    pub fn records_len(&self) -> usize {
        self.pages.journal.len()
    }

    /// About how many bytes the records of all chunks take.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        // What is recorded beside the key: at most five bytes a number, and a checksum.
        self.entries.key_bytes() + self.entries.len() as u64 * 40
    }

    /// Says whether records can be stored at present. While they cannot, what would make many of them
    /// is refused or put off; what is refused is told so.
    pub fn set_store_full(&mut self, full: bool) {
        self.store_full = full;
    }

    /// Opens a session for a new connection, or goes on with one whose connection was lost.
    /// `fresh` becomes the secret of a new session: random, and never given twice. `process` is the
    /// one behind it, if the driver sees whether it lives.
    pub fn hello(
        &mut self,
        now: Millis,
        hello: &Hello<'_>,
        fresh: Secret,
        process: Option<ProcessId>,
    ) -> Result<Opened, Refusal> {
        check_name("instance", hello.instance)?;
        check_name("host", hello.host)?;
        if let Some(resume) = hello.resume
            && let Some(session) = self.sessions.live.get_mut(&resume.session)
            && session.secret == resume.secret
            && !matches!(session.phase, Phase::Ended(_))
        {
            session.phase = Phase::Connected;
            session.heard = now;
            let standing = if session.claiming { Standing::Restored } else { Standing::Resumed };
            if standing == Standing::Restored {
                self.restart_claims(now, resume.session);
            }
            return Ok(Opened { session: resume.session, secret: resume.secret, standing });
        }
        // Ended sessions count until they are drained: their number must be bounded too.
        if self.sessions.live.len() >= self.config.sessions_max as usize {
            return Err(Refusal::TooManySessions { limit: self.config.sessions_max });
        }
        let host = self.host(hello.host)?;
        self.stains.host_is_here(host);
        let instance = self.sessions.instance_named(hello.instance);
        let known = self.sessions.instance_mut(instance);
        known.sessions += 1;
        known.budget_bytes = hello.budget_bytes;
        let (number, name, budget_bytes) = (instance.number(), hello.instance, hello.budget_bytes);
        self.pages.journal.write(&Record::Instance { instance: number, name, budget_bytes });
        let id = self.sessions.next_id(self.config.epoch);
        let hasher = foldhash::fast::FixedState::with_seed(self.config.hash_seed);
        let session = Session {
            secret: fresh,
            instance,
            host,
            process,
            phase: Phase::Connected,
            heard: now,
            writer: Writer::MayWrite,
            claiming: false,
            pins: IndexMap::with_hasher(hasher.clone()),
            pin_count: 0,
            reservations: IndexSet::with_hasher(hasher),
            replies: Replies::default(),
        };
        self.pages.journal.write(&session.record(id));
        self.sessions.live.insert(id, session);
        self.counters.sessions_opened += 1;
        Ok(Opened { session: id, secret: fresh, standing: Standing::New })
    }

    /// The number of a host.
    fn host(&mut self, name: &str) -> Result<HostId, Refusal> {
        if let Some(host) = self.sessions.host_named(name) {
            return Ok(host);
        }
        if self.sessions.hosts.len() >= HOSTS_MAX as usize {
            return Err(Refusal::TooManyHosts { limit: HOSTS_MAX });
        }
        let (index, _) = self.sessions.hosts.insert_full(name.to_owned());
        let host = HostId::new(index);
        self.pages.journal.write(&Record::Host { host: host.number(), name });
        Ok(host)
    }

    /// The session's connection is gone. It may be resumed for a while; then it ends.
    pub fn disconnected(&mut self, now: Millis, session: SessionId) {
        if let Some(session) = self.sessions.live.get_mut(&session)
            && session.phase == Phase::Connected
        {
            session.phase = Phase::Dropped(now);
        }
    }

    /// Answers one request of a session. A request that changes state is applied once, however
    /// often it comes (rule 5); any request renews the lease.
    pub fn apply(&mut self, now: Millis, id: SessionId, request: &Request<'_>) -> Reply {
        let seq = request.seq;
        self.counters.requests += 1;
        let result = match self.sessions.live.get_mut(&id) {
            Some(session) if session.phase == Phase::Connected => {
                session.heard = now;
                session.replies.acknowledge(request.acked);
                if session.claiming {
                    self.check_batch(&request.body)
                        .and_then(|()| self.claim(now, id, &request.body))
                } else {
                    self.answer_once(now, id, request)
                }
            }
            _ => Err(Refusal::SessionEnded),
        };
        self.counters.refusals += u64::from(result.is_err());
        Reply { seq, result }
    }

    fn answer_once(
        &mut self,
        now: Millis,
        id: SessionId,
        request: &Request<'_>,
    ) -> Result<Answer, Refusal> {
        if !request.body.changes_state() {
            return self.answer(now, id, &request.body);
        }
        let seq = request.seq;
        if let Some(session) = self.sessions.live.get(&id) {
            match session.replies.look_up(seq, self.config.window) {
                Seen::Answered(result) => {
                    self.counters.replays += 1;
                    return result.clone();
                }
                Seen::Refused(refusal) => return Err(refusal),
                Seen::New => {}
            }
        }
        let result = self.answer(now, id, &request.body);
        // A goodbye has ended the session, whose reply nobody will ask for again.
        if let Some(session) = self.sessions.live.get_mut(&id) {
            let pins = if let Body::Commit { pins, .. } = request.body { pins } else { 0 };
            // What was refused changed nothing, and may be asked anew after a restart.
            let durable = request.body.is_durable() && result.is_ok();
            let kept = Kept { result: result.clone(), durable, pins };
            if durable && !self.pages.journal.off {
                self.pages.journal.write(&kept.record(id, seq, session.replies.floor));
            }
            session.replies.kept.insert(seq, kept);
        }
        result
    }

    fn answer(&mut self, now: Millis, id: SessionId, body: &Body<'_>) -> Result<Answer, Refusal> {
        self.check_batch(body)?;
        if self.store_full && (body.is_durable() || matches!(body, Body::Reserve { .. })) {
            return Err(Refusal::StoreFull);
        }
        match body {
            Body::Renew => Ok(Answer::Renewed(self.stained_here(id))),
            Body::Reserve { keys, page_bytes, tag, unless_being_written } => {
                self.reserve(now, id, keys, *page_bytes, *tag, *unless_being_written)
            }
            Body::Commit { items, pins, names } => self.commit(now, id, items, *pins, names),
            Body::Abort { handles } => {
                let aborted = handles.iter().map(|handle| self.abort(id, *handle));
                Ok(Answer::Released(aborted.collect()))
            }
            Body::Contains { keys } => {
                let entries = self.entries.find_all(keys).into_iter();
                Ok(Answer::Contained(entries.map(|entry| self.presence(entry)).collect()))
            }
            Body::Acquire { keys, pins, stop_at_miss } => {
                self.acquire(now, id, keys, *pins, *stop_at_miss)
            }
            Body::Release { handles, pins } => Ok(self.release_all(now, id, handles, *pins)),
            Body::Delete { keys } => {
                let deleted = keys.iter().map(|key| self.delete(id, *key));
                Ok(Answer::Deleted(deleted.collect()))
            }
            Body::Touch { keys } => {
                let touched = keys.iter().map(|key| self.touch(now, *key));
                Ok(Answer::Contained(touched.collect()))
            }
            Body::Stats => Ok(Answer::Stats(Box::new(self.stats(now)))),
            Body::List { prefix, cursor, limit } => {
                Ok(Answer::Entries(self.list(now, prefix, *cursor, *limit)))
            }
            Body::Holders { cursor, limit } => {
                Ok(Answer::Holders(self.holders(now, *cursor, *limit)))
            }
            Body::Regions => Ok(Answer::Regions(self.regions())),
            Body::LetGo { session, secret } => {
                self.let_go(now, *session, *secret);
                Ok(Answer::Done)
            }
            Body::Goodbye => {
                self.goodbye(now, id);
                Ok(Answer::Done)
            }
            // Its claims are made: this is one of them that comes late.
            Body::Claim { .. } => Ok(Answer::Done),
            Body::Suspect { handles } => {
                self.suspect(id, handles);
                Ok(Answer::Done)
            }
            Body::Cleaned { handles } => {
                self.cleaned(id, handles);
                Ok(Answer::Done)
            }
            Body::HostGone { host } => self.host_gone(host),
            Body::Hosts => Ok(Answer::Hosts(self.host_infos())),
        }
    }

    fn check_batch(&self, body: &Body<'_>) -> Result<(), Refusal> {
        let len = match body {
            Body::Reserve { keys, .. }
            | Body::Contains { keys }
            | Body::Acquire { keys, .. }
            | Body::Delete { keys }
            | Body::Touch { keys } => keys.len(),
            Body::Commit { items, .. } => items.len(),
            Body::Abort { handles }
            | Body::Release { handles, .. }
            | Body::Suspect { handles }
            | Body::Cleaned { handles } => handles.len(),
            Body::Claim { pins, reservations, commits, .. } => {
                pins.len() + reservations.len() + commits.len()
            }
            _ => 0,
        } as u64;
        let max = u64::from(self.config.batch_max);
        if len > max { Err(Refusal::BatchTooLarge { len, max }) } else { Ok(()) }
    }
}

fn check_name(whose: &str, name: &str) -> Result<(), Refusal> {
    let reason = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > NAME_LEN_MAX {
        format!("it has {} bytes, more than {NAME_LEN_MAX}", name.len())
    } else if name.chars().any(char::is_control) {
        "it has control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(Refusal::Name { whose: whose.to_owned(), reason })
}
