//! What each request should be answered, and what it should change.

use maru_directory::rules::Snapshot;
use maru_directory::{Millis, PINS_PER_SESSION_MAX};
use maru_protocol::{
    Answer, Body, Chunk, CommitItem, CommitOutcome, DeleteOutcome, Generation, Handle, Key,
    Location, Presence, Refusal, ReleaseOutcome, Reply, Request, ReserveOutcome, Secret, SessionId,
};

use crate::reference::{Entry, Model, Name, Phase, Reservation, Session, Writer};

/// What a request may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing: it was answered before, or refused (rule 5).
    Repeated,
    /// Nothing: it only looks (rule 10).
    Look,
    Change,
}

type Expected = Result<Answer, Refusal>;

/// One request with what the directory made of it, where the reference has to learn.
pub(crate) struct Seen<'a> {
    pub(crate) now: Millis,
    pub(crate) id: SessionId,
    pub(crate) answer: &'a Expected,
    pub(crate) after: &'a Snapshot,
}

/// The keys of a request, as the reference keeps them.
pub(crate) fn name(key: &Key<'static>) -> Name {
    key.bytes()
}

impl Model {
    /// Follows one request: the reply must be the expected one.
    pub(crate) fn apply(
        &mut self,
        now: Millis,
        id: SessionId,
        request: &Request<'static>,
        reply: &Reply,
        after: &Snapshot,
    ) -> Effect {
        assert_eq!(reply.seq, request.seq, "a reply carries its request's number");
        self.counters.requests += 1;
        let seen = Seen { now, id, answer: &reply.result, after };
        let (expected, effect) = self.expect(&seen, request);
        assert_eq!(reply.result, expected, "directory (left) and reference, asked {request:?}");
        self.counters.refusals += u64::from(expected.is_err());
        effect
    }

    fn expect(&mut self, seen: &Seen<'_>, request: &Request<'static>) -> (Expected, Effect) {
        let (seq, window) = (request.seq, self.config.window);
        let session = match self.sessions.get_mut(&seen.id) {
            Some(session) if session.phase == Phase::Connected => session,
            _ => return (Err(Refusal::SessionEnded), Effect::Repeated),
        };
        session.heard = seen.now;
        session.floor = session.floor.max(request.acked);
        let floor = session.floor;
        session.replies.retain(|seq, _| *seq > floor);
        if !request.body.changes_state() {
            return (self.answer(seen, &request.body), Effect::Look);
        }
        if let Some(reply) = session.replies.get(&seq) {
            self.counters.replays += 1;
            return (reply.clone(), Effect::Repeated);
        }
        if seq <= floor {
            let floor = floor.saturating_add(1);
            return (Err(Refusal::AlreadyAcknowledged { seq, floor }), Effect::Repeated);
        }
        if session.replies.len() >= window as usize {
            return (Err(Refusal::WindowFull { window }), Effect::Repeated);
        }
        let expected = self.answer(seen, &request.body);
        let session = self.sessions.get_mut(&seen.id).expect("nothing here removes one");
        session.replies.insert(seq, expected.clone());
        let refused = expected.is_err();
        (expected, if refused { Effect::Repeated } else { Effect::Change })
    }

    fn answer(&mut self, seen: &Seen<'_>, body: &Body<'static>) -> Expected {
        self.check_batch(body)?;
        let id = seen.id;
        Ok(match body {
            Body::Renew => Answer::Renewed(self.stained_here(seen)),
            Body::Reserve { .. } => Answer::Reserved(self.reserve(seen, body)?),
            Body::Commit { items, pins, names } => {
                if !names.is_empty() && names.len() != items.len() {
                    let (names, items) = (names.len() as u64, items.len() as u64);
                    return Err(Refusal::Names { names, items });
                }
                self.check_pins(id, items.len(), *pins, *pins > 0)?;
                let each = items.iter().enumerate().map(|(at, item)| {
                    self.commit(seen.now, id, *item, *pins, names.get(at).map(name))
                });
                Answer::Committed(each.collect())
            }
            Body::Abort { handles } => {
                Answer::Released(handles.iter().map(|handle| self.abort(id, *handle)).collect())
            }
            Body::Contains { keys } => {
                Answer::Contained(keys.iter().map(|key| self.presence(name(key))).collect())
            }
            Body::Acquire { keys, pins, stop_at_miss } => {
                self.check_pins(id, keys.len(), *pins, true)?;
                Answer::Acquired(self.acquire(seen.now, id, keys, *pins, *stop_at_miss))
            }
            Body::Release { handles, pins } => {
                let each = handles.iter().map(|handle| self.release(seen.now, id, *handle, *pins));
                Answer::Released(each.collect())
            }
            Body::Delete { keys } => {
                Answer::Deleted(keys.iter().map(|key| self.delete(name(key))).collect())
            }
            Body::Touch { keys } => {
                let each = keys.iter().map(|key| self.touch(seen.now, name(key)));
                Answer::Contained(each.collect())
            }
            Body::LetGo { session, secret } => {
                self.let_go(*session, *secret);
                Answer::Done
            }
            Body::Goodbye => {
                self.writer_gone(id, Writer::Done);
                self.end(id);
                self.counters.sessions_closed += 1;
                Answer::Done
            }
            Body::Claim { .. } => Answer::Done,
            Body::Suspect { handles } => {
                for handle in handles {
                    self.suspect(id, *handle);
                }
                Answer::Done
            }
            Body::Cleaned { handles } => {
                for handle in handles {
                    self.cleaned(id, *handle);
                }
                Answer::Done
            }
            Body::HostGone { host } => {
                if self.sessions.values().any(|session| session.host == *host) {
                    return Err(Refusal::HostInUse);
                }
                if self.hosts.contains(*host) {
                    self.hosts_gone.insert((*host).to_owned());
                }
                Answer::Done
            }
            look => self.look(seen, look),
        })
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
            _ => 0,
        } as u64;
        let max = u64::from(self.config.batch_max);
        if len > max { Err(Refusal::BatchTooLarge { len, max }) } else { Ok(()) }
    }

    fn check_pins(&self, id: SessionId, len: usize, pins: u32, asked: bool) -> Result<(), Refusal> {
        let session = &self.sessions[&id];
        let held = session.pins.values().chain(session.ghosts.values());
        let held = held.map(|(count, _)| u64::from(*count)).sum();
        let max = PINS_PER_SESSION_MAX;
        if asked && (pins == 0 || held + len as u64 * u64::from(pins) > max) {
            return Err(Refusal::Pins { pins, held, max });
        }
        Ok(())
    }

    pub(crate) fn presence(&self, key: Name) -> Presence {
        if self.entries.contains_key(key) {
            Presence::Resident
        } else if self.being_written(key) {
            Presence::Reserved
        } else {
            Presence::Missing
        }
    }

    /// The reservation that a handle names, if it is this session's own (rule 8).
    fn reservation(&self, id: SessionId, handle: Handle) -> Option<Reservation> {
        let held = self.sessions[&id].reservations.get(&handle.generation)?;
        (held.handle == handle).then_some(*held)
    }

    fn commit(
        &mut self,
        now: Millis,
        id: SessionId,
        item: CommitItem,
        pins: u32,
        name: Option<Name>,
    ) -> CommitOutcome {
        let Some(held) = self.reservation(id, item.handle) else {
            return CommitOutcome::NotReserved;
        };
        if !(1..=held.page_bytes).contains(&item.length) {
            return CommitOutcome::BadLength;
        }
        let order = self.next_use();
        let session = self.sessions.get_mut(&id).expect("it asks");
        session.reservations.remove(&item.handle.generation);
        self.granted_stained.remove(&item.handle.generation);
        let (writer, host) = (session.instance.clone(), session.host.clone());
        let key = name.unwrap_or(held.key);
        if let Some(winner) = self.chunk(id, key) {
            self.pin(now, id, key, pins);
            self.counters.superseded += 1;
            return CommitOutcome::Superseded(winner);
        }
        let entry = Entry {
            handle: held.handle,
            length: item.length,
            page_bytes: held.page_bytes,
            budgeted: self.budgets[&writer] > 0,
            writer,
            host,
            checksum: item.checksum,
            key,
            touched: now,
            order,
        };
        self.entries.insert(key, entry);
        self.region_used.insert(held.handle.region.0, now);
        self.pin(now, id, key, pins);
        self.counters.committed += 1;
        CommitOutcome::Committed(self.chunk(id, key).expect("it was just stored"))
    }

    /// A resident chunk, as a session is told of it.
    fn chunk(&self, id: SessionId, key: Name) -> Option<Chunk> {
        let entry = self.entries.get(key)?;
        let location = Location::new(entry.handle, entry.length);
        let foreign = self.sessions[&id].host != entry.host;
        Some(Chunk { location, checksum: entry.checksum, foreign })
    }

    /// The pages that a session's host stained; of many, which are told is open.
    fn stained_here(&self, seen: &Seen<'_>) -> Vec<Location> {
        let host = &self.sessions[&seen.id].host;
        let here = self.stains.values().filter(|stain| stain.hosts.contains(host));
        let mut here: Vec<Location> =
            here.map(|stain| Location::new(stain.handle, stain.page_bytes)).collect();
        let Ok(Answer::Renewed(told)) = seen.answer else { return here };
        let place = |location: &Location| told.iter().position(|one| one == location);
        here.sort_by_key(place);
        here.truncate(64);
        here
    }

    fn cleaned(&mut self, id: SessionId, handle: Handle) {
        let host = &self.sessions[&id].host;
        if let Some(stain) = self.stains.get_mut(&handle.generation)
            && stain.handle == handle
        {
            stain.hosts.remove(host);
            if stain.hosts.is_empty() {
                self.stains.remove(&handle.generation);
            }
        }
    }

    fn abort(&mut self, id: SessionId, handle: Handle) -> ReleaseOutcome {
        let Some(held) = self.reservation(id, handle) else {
            return ReleaseOutcome::NotHeld;
        };
        let session = self.sessions.get_mut(&id).expect("it asks");
        session.reservations.remove(&handle.generation);
        let host = session.host.clone();
        self.vacate((handle, held.page_bytes), true, host);
        self.counters.aborted += 1;
        ReleaseOutcome::Released
    }

    fn pin(&mut self, now: Millis, id: SessionId, key: Name, count: u32) {
        if count > 0 {
            let session = self.sessions.get_mut(&id).expect("it asks");
            session.pins.entry(key).or_insert((0, now)).0 += count;
        }
    }

    fn acquire(
        &mut self,
        now: Millis,
        id: SessionId,
        keys: &[Key<'static>],
        pins: u32,
        stop_at_miss: bool,
    ) -> Vec<Option<Chunk>> {
        let mut found = Vec::new();
        for key in keys {
            if self.touch(now, name(key)) == Presence::Resident {
                self.pin(now, id, name(key), pins);
                self.counters.hits += 1;
                found.push(self.chunk(id, name(key)));
            } else {
                self.counters.misses += 1;
                if stop_at_miss {
                    break;
                }
                found.push(None);
            }
        }
        found
    }

    fn touch(&mut self, now: Millis, key: Name) -> Presence {
        let order = self.next_use();
        if let Some(entry) = self.entries.get_mut(key) {
            (entry.touched, entry.order) = (now, order);
            self.region_used.insert(entry.handle.region.0, now);
        }
        self.presence(key)
    }

    fn release(
        &mut self,
        now: Millis,
        id: SessionId,
        handle: Handle,
        count: u32,
    ) -> ReleaseOutcome {
        if self.ghosts.get(&handle.generation).is_some_and(|ghost| ghost.handle == handle) {
            return self.release_ghost(id, handle.generation, count);
        }
        let mut entries = self.entries.iter();
        let Some((key, _)) = entries.find(|(_, entry)| entry.handle == handle) else {
            return ReleaseOutcome::NotHeld;
        };
        let (key, pins) = (*key, &mut self.sessions.get_mut(&id).expect("it asks").pins);
        match pins.get_mut(key) {
            Some((held, _)) if count > 0 && count <= *held => {
                *held -= count;
                if *held == 0 {
                    pins.remove(key);
                }
            }
            _ => return ReleaseOutcome::NotHeld,
        }
        let order = self.next_use();
        self.unpinned(now, key, order);
        ReleaseOutcome::Released
    }

    fn release_ghost(&mut self, id: SessionId, ghost: Generation, count: u32) -> ReleaseOutcome {
        let pins = &mut self.sessions.get_mut(&id).expect("it asks").ghosts;
        match pins.get_mut(&ghost) {
            Some((held, _)) if count > 0 && count <= *held => {
                *held -= count;
                if *held == 0 {
                    pins.remove(&ghost);
                    self.ghost_unpinned(ghost);
                }
                ReleaseOutcome::Released
            }
            _ => ReleaseOutcome::NotHeld,
        }
    }

    /// The quarantine of a writer that is stopped begins anew.
    pub(crate) fn writer_stopped(&mut self, now: Millis, id: SessionId) {
        if let Some(vanished) = self.vanished.get_mut(&id) {
            vanished.until = now + self.config.quarantine_ms;
        }
    }

    /// Once nobody pins a ghost, its page is not used any more.
    pub(crate) fn ghost_unpinned(&mut self, ghost: Generation) {
        let mut holders = self.sessions.values();
        if !holders.any(|session| session.ghosts.contains_key(&ghost)) {
            let entry = self.ghosts.remove(&ghost).expect("it was pinned");
            self.damaged.push((entry.handle, entry.page_bytes));
        }
    }

    /// A page that its writer found bad is not used any more.
    fn suspect(&mut self, id: SessionId, handle: Handle) {
        if let Some(held) = self.reservation(id, handle) {
            let session = self.sessions.get_mut(&id).expect("it asks");
            session.reservations.remove(&handle.generation);
            self.granted_stained.remove(&handle.generation);
            self.damaged.push((handle, held.page_bytes));
            self.counters.damaged += 1;
        }
    }

    /// A page was found bad. Returns the key that it was resident under.
    pub(crate) fn condemn(&mut self, handle: Handle) -> Option<Name> {
        let mut entries = self.entries.iter();
        let (key, _) = entries.find(|(_, entry)| entry.handle == handle)?;
        let key = *key;
        let entry = self.entries.remove(key).expect("it is there");
        self.counters.damaged += 1;
        let (ghost, page) = (handle.generation, (entry.handle, entry.page_bytes));
        let mut pinned = false;
        for session in self.sessions.values_mut() {
            if let Some(held) = session.pins.remove(key) {
                session.ghosts.insert(ghost, held);
                pinned = true;
            }
        }
        if pinned {
            self.ghosts.insert(ghost, entry);
        } else {
            self.damaged.push(page);
        }
        Some(key)
    }

    /// The return of the last pin counts as a use.
    pub(crate) fn unpinned(&mut self, now: Millis, key: Name, order: u64) {
        if self.pins_on(key) == 0
            && let Some(entry) = self.entries.get_mut(key)
        {
            (entry.touched, entry.order) = (now, order);
            self.region_used.insert(entry.handle.region.0, now);
        }
    }

    fn delete(&mut self, key: Name) -> DeleteOutcome {
        match self.presence(key) {
            Presence::Resident if self.pins_on(key) > 0 => DeleteOutcome::Pinned,
            Presence::Resident => {
                self.entries.remove(key);
                self.counters.deleted += 1;
                DeleteOutcome::Deleted
            }
            Presence::Reserved => DeleteOutcome::Reserved,
            Presence::Missing => DeleteOutcome::Missing,
        }
    }

    fn let_go(&mut self, id: SessionId, secret: Secret) {
        let known = match self.sessions.get(&id) {
            Some(session) if session.phase == Phase::Connected => None,
            Some(session) => Some(session.secret),
            None => self.vanished.get(&id).map(|held| held.secret),
        };
        if known != Some(secret) {
            return;
        }
        self.writer_gone(id, Writer::Done);
        let dropped = |session: &Session| matches!(session.phase, Phase::Dropped(_));
        if self.sessions.get(&id).is_some_and(dropped) {
            self.end(id);
            self.counters.sessions_dropped += 1;
        }
    }

    /// Why a key cannot be reserved, apart from memory.
    pub(crate) fn conflict(
        &self,
        id: SessionId,
        key: Name,
        tag: u64,
        unless_being_written: bool,
    ) -> Option<ReserveOutcome> {
        let mut own = self.sessions[&id].reservations.values();
        if self.entries.contains_key(key) {
            Some(ReserveOutcome::Resident)
        } else if own.any(|held| held.key == key && held.tag == tag) {
            Some(ReserveOutcome::AlreadyReserved)
        } else {
            (unless_being_written && self.being_written(key))
                .then_some(ReserveOutcome::BeingWritten)
        }
    }
}
