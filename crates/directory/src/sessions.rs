//! Who is connected, what each holds, and the replies owed to it.

use std::collections::{BTreeMap, VecDeque};

use foldhash::fast::FixedState;
use indexmap::{IndexMap, IndexSet};
use maru_protocol::{Answer, Refusal, Secret, SessionId};

use crate::Millis;
use crate::ids::{EntryId, InstanceId, PageAt, ReservationId};

/// What outlives the sessions of one name: what it has written.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) name: String,
    /// 0 for no limit.
    pub(crate) budget_bytes: u64,
    /// Bytes of all pages it reserved, wrote, or may still be writing.
    pub(crate) charged_bytes: u64,
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
    /// It is over since then; what it held is being taken back, a bounded part each tick.
    Ended(Millis),
}

/// One connected instance: its lease, reservations, pins and owed replies.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) secret: Secret,
    pub(crate) instance: InstanceId,
    pub(crate) host: String,
    pub(crate) phase: Phase,
    /// When it was last heard.
    pub(crate) heard: Millis,
    /// Its writer said that it writes no more, or is known dead: its pages need no quarantine.
    pub(crate) writer_gone: bool,
    pub(crate) pins: IndexMap<EntryId, PinHold, FixedState>,
    /// All its pins together, so that they can be limited.
    pub(crate) pin_count: u64,
    pub(crate) reservations: IndexSet<ReservationId, FixedState>,
    pub(crate) replies: Replies,
}

impl Session {
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
    pub(crate) kept: BTreeMap<u64, Result<Answer, Refusal>>,
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
        if let Some(result) = self.kept.get(&seq) {
            Seen::Answered(result)
        } else if seq <= self.floor {
            Seen::Refused(Refusal::AlreadyAcknowledged { seq, floor: self.floor.saturating_add(1) })
        } else if self.kept.len() >= window as usize {
            Seen::Refused(Refusal::WindowFull { window })
        } else {
            Seen::New
        }
    }
}

/// Pages that a vanished writer could still be writing to (rule 7).
#[derive(Debug)]
pub(crate) struct Quarantine {
    pub(crate) secret: Secret,
    pub(crate) instance: InstanceId,
    pub(crate) pages: Vec<PageAt>,
    /// When they are free in any case; at once when the writer is known to be gone.
    pub(crate) until: Millis,
}

/// All sessions and what belongs to them.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    pub(crate) live: BTreeMap<SessionId, Session>,
    pub(crate) reservations: slab::Slab<Reservation>,
    pub(crate) instances: slab::Slab<Instance>,
    /// Sessions in [`Phase::Ended`], oldest first.
    pub(crate) ended: VecDeque<SessionId>,
    pub(crate) quarantines: BTreeMap<SessionId, Quarantine>,
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
