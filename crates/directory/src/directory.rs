//! The state machine: sessions come, ask, and go.

use indexmap::{IndexMap, IndexSet};
use maru_protocol::{Answer, Body, Counters, Hello, Refusal, Reply, Request, Secret, SessionId};

use crate::entries::Entries;
use crate::pages::Pages;
use crate::rules::Sampled;
use crate::sessions::{Phase, Replies, Seen, Session, Sessions};
use crate::watching::Watching;
use crate::{Config, ConfigError, EvictionPolicy, Geometry, Lru, Millis};

/// The longest instance or host name, in bytes.
const NAME_LEN_MAX: usize = 128;

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
    pub resumed: bool,
}

impl Directory {
    /// An empty directory over this memory, evicting by [`Lru`].
    pub fn new(config: Config, geometry: &Geometry, now: Millis) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            entries: Entries::new(config.hash_seed),
            pages: Pages::new(geometry, config.epoch)?,
            sessions: Sessions::default(),
            policy: Box::new(Lru::default()),
            counters: Counters::default(),
            pins: 0,
            entries_pinned: 0,
            evicting: false,
            watching: Watching::default(),
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

    /// When it began.
    pub(crate) const fn started(&self) -> Millis {
        self.started
    }

    /// Opens a session for a new connection, or goes on with one whose connection was lost.
    /// `fresh` becomes the secret of a new session: random, and never given twice.
    pub fn hello(
        &mut self,
        now: Millis,
        hello: &Hello<'_>,
        fresh: Secret,
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
            return Ok(Opened { session: resume.session, secret: resume.secret, resumed: true });
        }
        // Ended sessions count until they are drained: their number must be bounded too.
        if self.sessions.live.len() >= self.config.sessions_max as usize {
            return Err(Refusal::TooManySessions { limit: self.config.sessions_max });
        }
        let instance = self.sessions.instance_named(hello.instance);
        let known = self.sessions.instance_mut(instance);
        known.sessions += 1;
        known.budget_bytes = hello.budget_bytes;
        let id = self.sessions.next_id(self.config.epoch);
        let hasher = foldhash::fast::FixedState::with_seed(self.config.hash_seed);
        let session = Session {
            secret: fresh,
            instance,
            host: hello.host.to_owned(),
            phase: Phase::Connected,
            heard: now,
            writer_gone: false,
            pins: IndexMap::with_hasher(hasher.clone()),
            pin_count: 0,
            reservations: IndexSet::with_hasher(hasher),
            replies: Replies::default(),
        };
        self.sessions.live.insert(id, session);
        self.counters.sessions_opened += 1;
        Ok(Opened { session: id, secret: fresh, resumed: false })
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
                self.answer_once(now, id, request)
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
            session.replies.kept.insert(seq, result.clone());
        }
        result
    }

    fn answer(&mut self, now: Millis, id: SessionId, body: &Body<'_>) -> Result<Answer, Refusal> {
        self.check_batch(body)?;
        match body {
            Body::Renew => Ok(Answer::Done),
            Body::Reserve { keys, page_bytes, tag, unless_being_written } => {
                self.reserve(now, id, keys, *page_bytes, *tag, *unless_being_written)
            }
            Body::Commit { items, pins } => self.commit(now, id, items, *pins),
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
            Body::Abort { handles } | Body::Release { handles, .. } => handles.len(),
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
