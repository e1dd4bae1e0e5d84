//! Who is connected, what each holds, and the replies owed to it.

use std::collections::{BTreeMap, VecDeque};

use foldhash::fast::FixedState;
use indexmap::{IndexMap, IndexSet};
use maru_protocol::{Answer, Refusal, Secret, SessionId};

use crate::Millis;
use crate::ids::{EntryId, HostId, InstanceId, PageAt, ReservationId};
use crate::record::{ProcessId, Record};
use crate::stains::Hosts;

/// What outlives the sessions of one name: what it has written.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) name: String,
    /// 0 for no limit.
    pub(crate) budget_bytes: u64,
    /// Bytes of all pages it reserved, wrote, or may still be writing.
    pub(crate) charged_bytes: u64,
    /// Its sessions, those that vanished included.
    pub(crate) sessions: u32,
}

/// A page granted to one writer for one key.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) session: SessionId,
    pub(crate) entry: EntryId,
    pub(crate) page: PageAt,
    pub(crate) tag: u64,
    pub(crate) since: Millis,
    /// The next reservation for the same key.
    pub(crate) next: Option<ReservationId>,
}

/// A session's pins on one entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PinHold {
    pub(crate) count: u32,
    pub(crate) since: Millis,
}

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It has a connection.
    Connected,
    /// Its connection is gone since then; it may come back.
    Dropped(Millis),
    /// It is of before the server's restart, and may come back.
    Restored,
    /// It is over since then; what it held is being taken back, a bounded part each tick.
    Ended(Millis),
}

/// What is known of the writer behind a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Writer {
    /// It may write.
    MayWrite,
    /// It is dead and writes no more; what it wrote may still be in its host's caches alone.
    Dead,
    /// It said that it writes no more, and has written back all that it wrote.
    Done,
}

impl Writer {
    /// The hosts whose caches may hold lines of what it wrote, once it is over.
    pub(crate) fn leaves_lines_on(self, host: HostId) -> Hosts {
        if self == Self::Done { Hosts::new() } else { Hosts::from([host]) }
    }
}

/// One connected instance: its lease, reservations, pins and owed replies.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) secret: Secret,
    pub(crate) instance: InstanceId,
    pub(crate) host: HostId,
    /// The process behind it, if its death would be seen.
    pub(crate) process: Option<ProcessId>,
    pub(crate) phase: Phase,
    /// When it was last heard.
    pub(crate) heard: Millis,
    pub(crate) writer: Writer,
    /// It was restored, and has not said yet what it holds.
    pub(crate) claiming: bool,
    pub(crate) pins: IndexMap<EntryId, PinHold, FixedState>,
    /// All its pins together, so that they can be limited.
    pub(crate) pin_count: u64,
    pub(crate) reservations: IndexSet<ReservationId, FixedState>,
    pub(crate) replies: Replies,
}

impl Session {
    /// What outlives the server of it.
    pub(crate) fn record(&self, session: SessionId) -> Record<'static> {
        let (secret, process) = (self.secret, self.process);
        let (instance, host) = (self.instance.number(), self.host.number());
        Record::Opened { session, secret, instance, host, process }
    }

    /// Whether it is over, and a restarted server need not know of it: whatever it had reserved, it
    /// writes no more.
    pub(crate) fn leaves_nothing(&self) -> bool {
        matches!(self.phase, Phase::Ended(_)) && self.writer == Writer::Done
    }

    /// How many entries it pins and reservations it has.
    pub(crate) fn holdings(&self) -> usize {
        self.pins.len() + self.reservations.len()
    }
}

/// The replies kept for a session, so that a request sent twice is answered twice with the same
/// answer and applied once (rule 5).
#[derive(Debug, Default)]
pub(crate) struct Replies {
    /// All numbers up to here were acknowledged; their replies are forgotten.
    pub(crate) floor: u64,
    pub(crate) kept: BTreeMap<u64, Kept>,
}

/// A reply that may be asked for again.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) result: Result<Answer, Refusal>,
    /// Whether it outlives the server.
    pub(crate) durable: bool,
    /// Pins that the request took on each chunk.
    pub(crate) pins: u32,
}

impl Kept {
    pub(crate) fn record(&self, session: SessionId, seq: u64, acked: u64) -> Record<'static> {
        Record::Replied { session, seq, acked, pins: self.pins, result: self.result.clone() }
    }
}

/// What is known of a request's number.
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    /// It is new.
    New,
    /// It was answered so.
    Answered(&'a Result<Answer, Refusal>),
    /// It cannot be answered.
    Refused(Refusal),
}

impl Replies {
    /// Forgets what is acknowledged.
    pub(crate) fn acknowledge(&mut self, acked: u64) {
        if acked > self.floor {
            self.floor = acked;
            while let Some(reply) = self.kept.first_entry()
                && *reply.key() <= acked
            {
                drop(reply.remove());
            }
        }
    }

    /// Whether `seq` is new, and if it is, whether its reply could be kept.
    pub(crate) fn look_up(&self, seq: u64, window: u32) -> Seen<'_> {
        if let Some(kept) = self.kept.get(&seq) {
            Seen::Answered(&kept.result)
        } else if seq <= self.floor {
            Seen::Refused(Refusal::AlreadyAcknowledged { seq, floor: self.floor.saturating_add(1) })
        } else if self.kept.len() >= window as usize {
            Seen::Refused(Refusal::WindowFull { window })
        } else {
            Seen::New
        }
    }
}

/// A writer that vanished (rule 7): what it could still write to is kept from others.
#[derive(Debug)]
pub(crate) struct Vanished {
    pub(crate) secret: Secret,
    pub(crate) instance: InstanceId,
    pub(crate) host: HostId,
    /// The process behind it, if its death would be seen.
    pub(crate) process: Option<ProcessId>,
    pub(crate) writer: Writer,
    /// When it is taken to write no more.
    pub(crate) until: Millis,
    /// Pages it could still write to.
    pub(crate) pages: Vec<PageAt>,
    /// It is of before the server's restart: it could write to any page that nobody has claimed.
    pub(crate) unclaimed: bool,
}

impl Vanished {
    pub(crate) fn new(session: &Session, until: Millis) -> Self {
        Self {
            secret: session.secret,
            instance: session.instance,
            host: session.host,
            process: session.process,
            writer: session.writer,
            until,
            pages: Vec::new(),
            unclaimed: false,
        }
    }

    /// What outlives the server of it, as of any session.
    pub(crate) fn record(&self, session: SessionId) -> Record<'static> {
        let (secret, process) = (self.secret, self.process);
        let (instance, host) = (self.instance.number(), self.host.number());
        Record::Opened { session, secret, instance, host, process }
    }

    /// Whether it writes no more, for all that can be known.
    pub(crate) fn is_over(&self, now: Millis) -> bool {
        self.writer > Writer::MayWrite || self.until <= now
    }
}

/// All sessions and what belongs to them.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    pub(crate) live: BTreeMap<SessionId, Session>,
    pub(crate) reservations: slab::Slab<Reservation>,
    pub(crate) instances: slab::Slab<Instance>,
    /// Sessions in [`Phase::Ended`], oldest first.
    pub(crate) ended: VecDeque<SessionId>,
    pub(crate) vanished: BTreeMap<SessionId, Vanished>,
    /// Every host that was ever here, by number.
    pub(crate) hosts: IndexSet<String>,
    last_id: u64,
}

impl Sessions {
    pub(crate) fn next_id(&mut self, epoch: u64) -> SessionId {
        self.last_id += 1;
        // Unlike in any earlier life of the directory, so that nobody resumes a stranger's session.
        SessionId((epoch << 24) + self.last_id)
    }

    pub(crate) fn instance(&self, id: InstanceId) -> &Instance {
        &self.instances[id.index()]
    }

    pub(crate) fn instance_mut(&mut self, id: InstanceId) -> &mut Instance {
        &mut self.instances[id.index()]
    }

    pub(crate) fn host(&self, id: HostId) -> &str {
        &self.hosts[id.index()]
    }

    pub(crate) fn host_named(&self, name: &str) -> Option<HostId> {
        self.hosts.get_index_of(name).map(HostId::new)
    }

    pub(crate) fn instance_of(&self, session: SessionId) -> Option<InstanceId> {
        self.live.get(&session).map(|session| session.instance)
    }

    /// The instance with this name, made if it is new.
    pub(crate) fn instance_named(&mut self, name: &str) -> InstanceId {
        let known = self.instances.iter().find(|(_, instance)| instance.name == name);
        let index = match known {
            Some((index, _)) => index,
            None => self.instances.insert(Instance {
                name: name.to_owned(),
                budget_bytes: 0,
                charged_bytes: 0,
                sessions: 0,
            }),
        };
        InstanceId::new(index)
    }

    pub(crate) fn add_reservation(&mut self, reservation: Reservation) -> ReservationId {
        let index = self.reservations.insert(reservation);
        ReservationId::new(index)
    }

    pub(crate) fn reservation(&self, id: ReservationId) -> &Reservation {
        &self.reservations[id.index()]
    }
}
