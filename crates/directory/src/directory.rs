//! The state machine: sessions come, ask, and go.

use hashbrown::HashSet;
use indexmap::{IndexMap, IndexSet};
use maru_protocol::{
    Answer, Body, CommitItem, CommitOutcome, Counters, DeleteOutcome, Handle, Hello, Key, Location,
    Presence, Refusal, ReleaseOutcome, Reply, Request, ReserveOutcome, Secret, SessionId,
};

use crate::entries::{Entries, EntryId, Resident};
use crate::pages::{PageAt, PageState, Pages};
use crate::rules::Sampled;
use crate::sessions::{
    Phase, PinHold, Replies, Reservation, ReservationId, Seen, Session, Sessions,
};
use crate::{Config, ConfigError, EvictionPolicy, Geometry, Lru, Millis, PINS_PER_SESSION_MAX};

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
        check_name(hello.instance)?;
        check_name(hello.host)?;
        if let Some(resume) = hello.resume
            && let Some(session) = self.sessions.live.get_mut(&resume.session)
            && session.secret == resume.secret
            && !matches!(session.phase, Phase::Ended(_))
        {
            session.phase = Phase::Connected;
            session.heard = now;
            return Ok(Opened {
                session: resume.session,
                secret: resume.secret,
                resumed: true,
            });
        }
        // Ended sessions count until they are drained: their number must be bounded too.
        if self.sessions.live.len() >= self.config.sessions_max as usize {
            return Err(Refusal::TooManySessions {
                limit: self.config.sessions_max,
            });
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
        Ok(Opened {
            session: id,
            secret: fresh,
            resumed: false,
        })
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
            Body::Reserve {
                keys,
                page_bytes,
                tag,
                unless_being_written,
            } => self.reserve(now, id, keys, *page_bytes, *tag, *unless_being_written),
            Body::Commit { items, pins } => self.commit(now, id, items, *pins),
            Body::Abort { handles } => {
                let aborted = handles.iter().map(|handle| self.abort(id, *handle));
                Ok(Answer::Released(aborted.collect()))
            }
            Body::Contains { keys } => {
                let present = keys.iter().map(|key| self.presence(*key));
                Ok(Answer::Contained(present.collect()))
            }
            Body::Acquire {
                keys,
                pins,
                stop_at_miss,
            } => self.acquire(now, id, keys, *pins, *stop_at_miss),
            Body::Release { handles, pins } => {
                let released = handles
                    .iter()
                    .map(|handle| self.release(now, id, *handle, *pins));
                Ok(Answer::Released(released.collect()))
            }
            Body::Delete { keys } => {
                let deleted = keys.iter().map(|key| self.delete(*key));
                Ok(Answer::Deleted(deleted.collect()))
            }
            Body::Touch { keys } => {
                let touched = keys.iter().map(|key| self.touch(now, *key));
                Ok(Answer::Contained(touched.collect()))
            }
            Body::Stats => Ok(Answer::Stats(Box::new(self.stats(now)))),
            Body::List {
                prefix,
                cursor,
                limit,
            } => Ok(Answer::Entries(self.list(now, prefix, *cursor, *limit))),
            Body::Holders { cursor, limit } => {
                Ok(Answer::Holders(self.holders(now, *cursor, *limit)))
            }
            Body::Regions => Ok(Answer::Regions(self.regions())),
            Body::LetGo { session, secret } => {
                self.let_go(*session, *secret);
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
        if len > max {
            Err(Refusal::BatchTooLarge { len, max })
        } else {
            Ok(())
        }
    }

    /// What is known of a key; changes nothing (rule 10).
    fn presence(&self, key: Key<'_>) -> Presence {
        match self.entries.find(key).map(|id| self.entries.get(id)) {
            Some(entry) if entry.resident.is_some() => Presence::Resident,
            Some(_) => Presence::Reserved,
            None => Presence::Missing,
        }
    }

    fn reserve(
        &mut self,
        now: Millis,
        id: SessionId,
        keys: &[Key<'_>],
        page_bytes: u64,
        tag: u64,
        unless_being_written: bool,
    ) -> Result<Answer, Refusal> {
        let max = self.pages.page_bytes_max();
        if page_bytes == 0 || page_bytes > max {
            return Err(Refusal::PageSize { page_bytes, max });
        }
        let length = page_bytes;
        let page_bytes = Pages::round_up(page_bytes);
        let conflicts: Vec<Option<ReserveOutcome>> = keys
            .iter()
            .map(|key| self.conflict(id, *key, tag, unless_being_written))
            .collect();
        // A key that the batch names twice needs one page.
        let mut wanted = HashSet::with_capacity_and_hasher(keys.len(), self.entries.hasher());
        let free = keys.iter().zip(&conflicts).filter(|(_, c)| c.is_none());
        wanted.extend(free.map(|(key, _)| key.bytes()));
        let wanted = wanted.len() as u64;
        let shortage = self.make_room(now, id, page_bytes, wanted).err();
        let outcomes: Vec<ReserveOutcome> = keys
            .iter()
            .zip(conflicts)
            .map(|(key, conflict)| {
                // Asked again, since the batch may name a key twice.
                conflict
                    .or(shortage)
                    .or_else(|| self.conflict(id, *key, tag, unless_being_written))
                    .or_else(|| self.grant(now, id, *key, page_bytes, length, tag))
                    .unwrap_or(ReserveOutcome::OutOfMemory)
            })
            .collect();
        self.count_reserve(&outcomes);
        self.pages.uncut_unused();
        Ok(Answer::Reserved(outcomes))
    }

    fn count_reserve(&mut self, outcomes: &[ReserveOutcome]) {
        for outcome in outcomes {
            let counter = match outcome {
                ReserveOutcome::Granted(_) => &mut self.counters.granted,
                ReserveOutcome::Resident => &mut self.counters.refused_resident,
                ReserveOutcome::BeingWritten | ReserveOutcome::AlreadyReserved => {
                    &mut self.counters.refused_being_written
                }
                ReserveOutcome::OutOfMemory => &mut self.counters.refused_out_of_memory,
                ReserveOutcome::OverBudget => &mut self.counters.refused_over_budget,
            };
            *counter += 1;
        }
    }

    /// Why `key` cannot be reserved, apart from memory.
    fn conflict(
        &self,
        id: SessionId,
        key: Key<'_>,
        tag: u64,
        unless_being_written: bool,
    ) -> Option<ReserveOutcome> {
        let entry = self.entries.get(self.entries.find(key)?);
        if entry.resident.is_some() {
            return Some(ReserveOutcome::Resident);
        }
        if self
            .writers(entry.writers)
            .any(|writer| writer.session == id && writer.tag == tag)
        {
            return Some(ReserveOutcome::AlreadyReserved);
        }
        (unless_being_written && entry.writers.is_some()).then_some(ReserveOutcome::BeingWritten)
    }

    /// The reservations that begin with `first`.
    pub(crate) fn writers(
        &self,
        first: Option<ReservationId>,
    ) -> impl Iterator<Item = &Reservation> {
        let first = first.map(|id| self.sessions.reservation(id));
        std::iter::successors(first, |writer| {
            writer.next.map(|id| self.sessions.reservation(id))
        })
    }

    fn grant(
        &mut self,
        now: Millis,
        id: SessionId,
        key: Key<'_>,
        page_bytes: u64,
        length: u64,
        tag: u64,
    ) -> Option<ReserveOutcome> {
        let instance = self.sessions.instance_of(id)?;
        let entry = self.entries.find_or_insert(key);
        let next = self.entries.get(entry).writers;
        let page = PageAt {
            region: u32::MAX,
            index: u32::MAX,
        };
        let reservation = Reservation {
            session: id,
            entry,
            page,
            tag,
            since: now,
            next,
        };
        let reservation = self.sessions.add_reservation(reservation);
        let Some(page) = self.pages.take(page_bytes, reservation) else {
            self.sessions.reservations.remove(reservation.index());
            self.entries.remove_if_empty(entry);
            return None;
        };
        self.sessions.reservations[reservation.index()].page = page;
        self.entries.get_mut(entry).writers = Some(reservation);
        self.sessions
            .live
            .get_mut(&id)?
            .reservations
            .insert(reservation);
        self.sessions.instance_mut(instance).charged_bytes += page_bytes;
        Some(ReserveOutcome::Granted(Location::new(
            self.pages.handle(page),
            length,
        )))
    }

    /// The reservation that `handle` names, if this session holds it.
    fn reservation(&self, id: SessionId, handle: Handle) -> Option<(PageAt, ReservationId)> {
        match self.pages.find(handle)? {
            (page, PageState::Reserved(reservation))
                if self.sessions.reservation(reservation).session == id =>
            {
                Some((page, reservation))
            }
            _ => None,
        }
    }

    /// Takes a reservation off the books of its key and its session; its page is the caller's.
    pub(crate) fn unlink(&mut self, id: ReservationId) -> Reservation {
        let gone = self.sessions.reservations.remove(id.index());
        if let Some(session) = self.sessions.live.get_mut(&gone.session) {
            session.reservations.swap_remove(&id);
        }
        let mut link = &mut self.entries.get_mut(gone.entry).writers;
        while let Some(other) = *link
            && other != id
        {
            link = &mut self.sessions.reservations[other.index()].next;
        }
        *link = gone.next;
        gone
    }

    fn commit(
        &mut self,
        now: Millis,
        id: SessionId,
        items: &[CommitItem],
        pins: u32,
    ) -> Result<Answer, Refusal> {
        if pins > 0 {
            self.check_pins(id, items.len(), pins)?;
        }
        let committed = items
            .iter()
            .map(|item| self.commit_one(now, id, *item, pins));
        Ok(Answer::Committed(committed.collect()))
    }

    fn commit_one(
        &mut self,
        now: Millis,
        id: SessionId,
        item: CommitItem,
        pins: u32,
    ) -> CommitOutcome {
        let Some((page, reservation)) = self.reservation(id, item.handle) else {
            return CommitOutcome::NotReserved;
        };
        if item.length == 0 || item.length > self.pages.page_bytes(page) {
            return CommitOutcome::BadLength;
        }
        // A page is at most a region, a region at most 1 GiB.
        #[expect(clippy::cast_possible_truncation)]
        let length = item.length as u32;
        let entry = self.unlink(reservation).entry;
        let winner = self.entries.get(entry).resident;
        if let Some(winner) = winner {
            self.free(page, id);
            self.counters.superseded += 1;
            self.pin(now, id, entry, pins);
            return CommitOutcome::Superseded(self.location(&winner));
        }
        let resident = self.make_resident(now, id, entry, page, length);
        self.counters.committed += 1;
        self.pin(now, id, entry, pins);
        CommitOutcome::Committed(self.location(&resident))
    }

    /// From here on readers find the entry (rule 2).
    fn make_resident(
        &mut self,
        now: Millis,
        id: SessionId,
        entry: EntryId,
        page: PageAt,
        length: u32,
    ) -> Resident {
        let writer = self.sessions.live[&id].instance;
        let owner = (self.sessions.instance(writer).budget_bytes > 0).then_some(writer);
        let queue = self.pages.queue_for(page, owner);
        let resident = Resident {
            page,
            length,
            writer,
            queue,
            touched: now,
        };
        self.pages.set(page, PageState::Resident(entry));
        self.pages.queue_mut(page, queue).evictable += 1;
        self.pages.region_mut(page).touched = now;
        self.entries.get_mut(entry).resident = Some(resident);
        self.policy.insert(entry, queue);
        resident
    }

    pub(crate) fn location(&self, resident: &Resident) -> Location {
        Location::new(self.pages.handle(resident.page), resident.length.into())
    }

    /// Frees a page that `id`'s instance reserved or wrote.
    fn free(&mut self, page: PageAt, id: SessionId) {
        let bytes = self.pages.page_bytes(page);
        if let Some(instance) = self.sessions.instance_of(id) {
            self.sessions.instance_mut(instance).charged_bytes -= bytes;
        }
        self.pages.set(page, PageState::Free);
    }

    fn abort(&mut self, id: SessionId, handle: Handle) -> ReleaseOutcome {
        let Some((page, reservation)) = self.reservation(id, handle) else {
            return ReleaseOutcome::NotHeld;
        };
        let entry = self.unlink(reservation).entry;
        self.free(page, id);
        self.entries.remove_if_empty(entry);
        self.counters.aborted += 1;
        ReleaseOutcome::Released
    }

    fn check_pins(&self, id: SessionId, entries: usize, pins: u32) -> Result<(), Refusal> {
        let held = self
            .sessions
            .live
            .get(&id)
            .map_or(0, |session| session.pin_count);
        let asked = entries as u64 * u64::from(pins);
        if pins == 0 || held + asked > PINS_PER_SESSION_MAX {
            return Err(Refusal::Pins {
                pins,
                held,
                max: PINS_PER_SESSION_MAX,
            });
        }
        Ok(())
    }

    fn acquire(
        &mut self,
        now: Millis,
        id: SessionId,
        keys: &[Key<'_>],
        pins: u32,
        stop_at_miss: bool,
    ) -> Result<Answer, Refusal> {
        self.check_pins(id, keys.len(), pins)?;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let hit = self.entries.find(*key).and_then(|entry| {
                let resident = self.entries.get(entry).resident?;
                self.use_entry(now, entry);
                self.pin(now, id, entry, pins);
                Some(self.location(&resident))
            });
            let counter = if hit.is_some() {
                &mut self.counters.hits
            } else {
                &mut self.counters.misses
            };
            *counter += 1;
            if stop_at_miss && hit.is_none() {
                break;
            }
            found.push(hit);
        }
        Ok(Answer::Acquired(found))
    }

    /// Counts as a use of a resident entry.
    fn use_entry(&mut self, now: Millis, entry: EntryId) {
        self.policy.touch(entry);
        if let Some(resident) = &mut self.entries.get_mut(entry).resident {
            resident.touched = now;
            self.pages.region_mut(resident.page).touched = now;
        }
    }

    /// Adds `count` pins of a session to a resident entry.
    fn pin(&mut self, now: Millis, id: SessionId, entry: EntryId, count: u32) {
        let state = self.entries.get_mut(entry);
        let (Some(session), Some(resident)) = (self.sessions.live.get_mut(&id), state.resident)
        else {
            return;
        };
        if count == 0 {
            return;
        }
        if state.pins == 0 {
            self.policy.pin(entry);
            self.pages
                .queue_mut(resident.page, resident.queue)
                .evictable -= 1;
            self.pages.region_mut(resident.page).pinned += 1;
            self.entries_pinned += 1;
        }
        state.pins += count;
        let held = session.pins.entry(entry).or_insert(PinHold {
            count: 0,
            since: now,
        });
        held.count += count;
        session.pin_count += u64::from(count);
        self.pins += u64::from(count);
    }

    fn release(
        &mut self,
        now: Millis,
        id: SessionId,
        handle: Handle,
        count: u32,
    ) -> ReleaseOutcome {
        let Some((_, PageState::Resident(entry))) = self.pages.find(handle) else {
            return ReleaseOutcome::NotHeld;
        };
        self.unpin(now, id, entry, count)
    }

    /// Takes back `count` of a session's own pins on an entry, or none (rule 4).
    pub(crate) fn unpin(
        &mut self,
        now: Millis,
        id: SessionId,
        entry: EntryId,
        count: u32,
    ) -> ReleaseOutcome {
        let Some(session) = self.sessions.live.get_mut(&id) else {
            return ReleaseOutcome::NotHeld;
        };
        match session.pins.get_mut(&entry) {
            Some(held) if held.count > count && count > 0 => held.count -= count,
            Some(held) if held.count == count => {
                session.pins.swap_remove(&entry);
            }
            _ => return ReleaseOutcome::NotHeld,
        }
        session.pin_count -= u64::from(count);
        self.pins -= u64::from(count);
        let state = self.entries.get_mut(entry);
        state.pins -= count;
        if state.pins == 0 {
            self.entries_pinned -= 1;
            self.policy.unpin(entry);
            if let Some(resident) = &mut state.resident {
                resident.touched = now;
                self.pages
                    .queue_mut(resident.page, resident.queue)
                    .evictable += 1;
                let region = self.pages.region_mut(resident.page);
                region.pinned -= 1;
                region.touched = now;
            }
        }
        ReleaseOutcome::Released
    }

    fn delete(&mut self, key: Key<'_>) -> DeleteOutcome {
        let Some(id) = self.entries.find(key) else {
            return DeleteOutcome::Missing;
        };
        let entry = self.entries.get(id);
        if entry.resident.is_none() {
            DeleteOutcome::Reserved
        } else if entry.pins > 0 {
            DeleteOutcome::Pinned
        } else {
            self.withdraw(id);
            self.counters.deleted += 1;
            DeleteOutcome::Deleted
        }
    }

    /// Frees the page of a resident entry without pins (rule 3); the caller has looked.
    pub(crate) fn withdraw(&mut self, id: EntryId) {
        let entry = self.entries.get_mut(id);
        debug_assert_eq!(entry.pins, 0, "rule 3: a pinned entry stays");
        let Some(resident) = entry.resident.take() else {
            return;
        };
        self.policy.remove(id);
        self.pages
            .queue_mut(resident.page, resident.queue)
            .evictable -= 1;
        let bytes = self.pages.page_bytes(resident.page);
        self.sessions.instance_mut(resident.writer).charged_bytes -= bytes;
        self.pages.set(resident.page, PageState::Free);
        self.entries.remove_if_empty(id);
        self.forget_if_idle(resident.writer);
    }

    fn touch(&mut self, now: Millis, key: Key<'_>) -> Presence {
        let presence = self.presence(key);
        if presence == Presence::Resident
            && let Some(entry) = self.entries.find(key)
        {
            self.use_entry(now, entry);
        }
        presence
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let reason = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > NAME_LEN_MAX {
        format!("it has {} bytes, more than {NAME_LEN_MAX}", name.len())
    } else if name.chars().any(char::is_control) {
        "it has control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(Refusal::InstanceName { reason })
}
