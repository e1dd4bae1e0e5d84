//! One instance: what it does, and what it believes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use maru_client::{Conversation, Return, Session, Writing};
use maru_directory::ProcessId;
use maru_protocol::{
    Answer, Body, Checksum, Chunk, CommitItem, CommitOutcome, Handle, Key, Location,
    ReserveOutcome, SessionId,
};

use super::memory::{Host, LINE_BYTES, Memory, lines};
use super::plan::{Act, Setup};

/// The keys that are ever used.
pub(super) const KEYS: [&[u8]; 10] =
    [b"m@0", b"m@1", b"m@2", b"m@3", b"m@4", b"m@5", b"m@6", b"m@7", b"m@8", b"m@9"];

/// The most requests it has on its way.
const WAITING_MAX: usize = 6;

/// What a line of a chunk holds.
pub(super) fn content(key: usize, line: u64) -> u64 {
    // Not 0, and nothing that another line holds.
    (key as u64 + 1) << 8 | (line + 1)
}

/// The checksum of a chunk with these lines.
pub(super) fn checksum(lines: &[u64]) -> Checksum {
    Checksum::new(lines.iter().fold(7, |sum: u64, line| sum.rotate_left(9) ^ line))
}

pub(super) fn key(key: usize) -> Key<'static> {
    Key::new(KEYS[key]).expect("they are short")
}

/// One instance's process, and what comes in its place when it is killed.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) name: &'static str,
    pub(super) host: Host,
    /// Tells its process from those before it.
    pub(super) process: ProcessId,
    pub(super) talk: Conversation,
    /// Its connection, by number.
    pub(super) wire: Option<u64>,
    /// When it said hello over that, if it was not welcomed yet.
    pub(super) greeted: Option<u64>,
    pub(super) partitioned: bool,
    pub(super) waiting: BTreeMap<u64, Waiting>,
    pub(super) writable: Vec<Writable>,
    pub(super) readable: Vec<Readable>,
    returns: Vec<Return>,
    /// Since when it is stopped.
    pub(super) stopped: Option<u64>,
    /// Until when what it began to write under each session may yet be written. No copy is in flight
    /// for longer than a quarantine, from when its session was known to live or its process was last
    /// seen stopped.
    write_until: BTreeMap<SessionId, u64>,
    /// Sessions up to this one were in a store that is lost: no server looks at their processes.
    forgotten: SessionId,
    next_beat: u64,
    readables: u64,
}

/// What an answer is waited for.
#[derive(Debug)]
pub(super) struct Waiting {
    /// When it was sent first.
    sent: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Reserve(Vec<usize>),
    /// Whether it pins.
    Commit(Vec<usize>, bool),
    Acquire(Vec<usize>),
    Beat,
    /// A round trip that shows whether what was read from these counts.
    Confirm(u64),
    LetGo(Arc<Session>),
    Nothing,
}

/// A page that it writes.
#[derive(Debug)]
pub(super) struct Writable {
    pub(super) handle: Handle,
    pub(super) bytes: u64,
    key: usize,
    session: Arc<Session>,
    _writing: Writing,
    /// Lines, from its beginning.
    written: usize,
    non_temporal: bool,
}

/// A chunk that it reads.
#[derive(Debug)]
pub(super) struct Readable {
    id: u64,
    pub(super) handle: Handle,
    length: u64,
    key: usize,
    checksum: Option<Checksum>,
    pub(super) session: Arc<Session>,
    pub(super) seen: Vec<u64>,
}

/// What was read and counts.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) key: usize,
    pub(super) handle: Handle,
    pub(super) length: u64,
    pub(super) seen: Vec<u64>,
    pub(super) checksum: Option<Checksum>,
}

/// The world as an instance sees it.
pub(super) struct Surroundings<'a> {
    pub(super) now: u64,
    pub(super) setup: Setup,
    pub(super) memory: &'a mut Memory,
    pub(super) quarantine_ms: u64,
}

const fn duration(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Instance {
    pub(super) fn new(name: &'static str, host: Host, process: ProcessId) -> Self {
        Self {
            name,
            host,
            process,
            talk: Conversation::new(64),
            wire: None,
            greeted: None,
            stopped: None,
            partitioned: false,
            waiting: BTreeMap::new(),
            writable: Vec::new(),
            readable: Vec::new(),
            returns: Vec::new(),
            write_until: BTreeMap::new(),
            forgotten: SessionId(0),
            next_beat: 0,
            readables: 0,
        }
    }

    /// The session was known to live at `sent`.
    pub(super) fn confirmed(&mut self, session: SessionId, sent: u64, quarantine_ms: u64) {
        let until = self.write_until.entry(session).or_default();
        *until = (sent + quarantine_ms).max(*until);
    }

    /// The server saw that its process is stopped, and will not trust it to be done but after another
    /// quarantine.
    pub(super) fn seen_stopped(&mut self, now: u64, quarantine_ms: u64) {
        let since = self.stopped.unwrap_or(now);
        let forgotten = self.forgotten;
        let known = self.write_until.iter_mut().filter(|(session, _)| **session > forgotten);
        for (_, until) in known.filter(|(_, until)| **until > since) {
            *until = now + quarantine_ms;
        }
    }

    /// The store of the servers up to now is lost.
    pub(super) fn be_forgotten(&mut self) {
        let last = self.write_until.last_key_value();
        self.forgotten = last.map_or(self.forgotten, |(session, _)| *session);
    }

    /// Asks; returns the frame to be sent.
    fn ask(&mut self, now: u64, body: Body<'_>, what: What) -> Option<Vec<u8>> {
        if self.waiting.len() >= WAITING_MAX || !self.talk.may_ask() {
            return None;
        }
        let asked = self.talk.ask(duration(now), None, body).ok()?;
        let (seq, frame) = (asked.seq, asked.frame.to_vec());
        self.waiting.insert(seq, Waiting { sent: now, what });
        Some(frame)
    }

    /// What ends something that it has begun, or else begins something.
    pub(super) fn next_act(&self, choice: u8) -> Act {
        let all = |page: &Writable| lines(page.handle.offset, page.bytes).count();
        let whole = self.writable.iter().filter(|page| page.written == all(page)).count();
        if whole > usize::from(choice % 2) || (whole > 0 && whole == self.writable.len()) {
            Act::Commit
        } else if !self.writable.is_empty() && choice.is_multiple_of(2) {
            Act::Write
        } else if !self.readable.is_empty() {
            Act::Read
        } else if self.returns.len() > usize::from(choice % 4) {
            Act::Flush
        } else if choice.is_multiple_of(3) {
            Act::Reserve
        } else {
            Act::Acquire
        }
    }

    pub(super) fn reserve(&mut self, around: &Surroundings<'_>, choice: u8) -> Option<Vec<u8>> {
        let first = usize::from(choice) % KEYS.len();
        let mut chosen = vec![first];
        if choice >= 128 {
            // Of the same size.
            chosen.push((first + 2) % KEYS.len());
        }
        let page_bytes = page_bytes(around.setup, first);
        let keys = chosen.iter().map(|chosen| key(*chosen)).collect();
        let (tag, unless_being_written) = (u64::from(choice % 2), choice.is_multiple_of(4));
        let body = Body::Reserve { keys, page_bytes, tag, unless_being_written };
        self.ask(around.now, body, What::Reserve(chosen))
    }

    /// Stores some lines. Returns the page that was written to.
    pub(super) fn write(&mut self, around: &mut Surroundings<'_>, choice: u8) -> Option<Handle> {
        let place = usize::from(choice).checked_rem(self.writable.len())?;
        let until = self.write_until.get(&self.writable[place].session.id());
        if until.is_none_or(|until| around.now >= *until) {
            return None;
        }
        let host = self.host;
        let page = &mut self.writable[place];
        let all = lines(page.handle.offset, page.bytes);
        if page.written == 0 && !page.non_temporal {
            around.memory.acquire(host, all.clone());
        }
        let (from, some) = (page.written, usize::from(choice % 3) + 1);
        for (index, line) in (0..).zip(all).skip(from).take(some) {
            let value = content(page.key, index);
            if page.non_temporal {
                around.memory.store_non_temporal(host, line, value);
            } else {
                around.memory.store(host, line, value);
            }
            page.written += 1;
        }
        (page.written > from).then_some(page.handle)
    }

    /// Commits what is written whole, of the present session.
    pub(super) fn commit(&mut self, around: &mut Surroundings<'_>, choice: u8) -> Option<Vec<u8>> {
        let session = Arc::clone(self.talk.session()?);
        if self.waiting.len() >= WAITING_MAX || !self.talk.may_ask() {
            return None;
        }
        let whole = |page: &mut Writable| {
            Arc::ptr_eq(&page.session, &session)
                && page.written == lines(page.handle.offset, page.bytes).count()
        };
        let pages: Vec<Writable> = self.writable.extract_if(.., whole).collect();
        if pages.is_empty() {
            return None;
        }
        let (mut items, mut keys) = (Vec::new(), Vec::new());
        for page in pages {
            let all = lines(page.handle.offset, page.bytes);
            if !page.non_temporal && !around.memory.chunks_unpublished {
                around.memory.publish(self.host, all.clone());
            }
            let made = || {
                let lines: Vec<u64> =
                    (0..page.bytes / LINE_BYTES).map(|line| content(page.key, line)).collect();
                checksum(&lines)
            };
            let checksum = around.setup.checksums.then(made);
            items.push(CommitItem { handle: page.handle, length: page.bytes, checksum });
            keys.push(page.key);
        }
        let pins = u32::from(choice % 2);
        self.ask(
            around.now,
            Body::Commit { items, pins, names: Vec::new() },
            What::Commit(keys, pins > 0),
        )
    }

    /// Gives a page up that it was to write.
    pub(super) fn drop_writable(&mut self, memory: &mut Memory, choice: u8) {
        if let Some(place) = usize::from(choice).checked_rem(self.writable.len()) {
            let page = self.writable.swap_remove(place);
            self.let_page_go(memory, &page);
        }
    }

    fn let_page_go(&mut self, memory: &mut Memory, page: &Writable) {
        if page.written > 0 && !page.non_temporal {
            memory.publish(self.host, lines(page.handle.offset, page.bytes));
        }
        self.give_back(&page.session, page.handle, 0);
    }

    fn give_back(&mut self, session: &Arc<Session>, handle: Handle, pins: u32) {
        if !session.is_lost() {
            self.returns.push(Return { session: Arc::clone(session), handle, pins });
        }
    }

    pub(super) fn acquire(&mut self, now: u64, choice: u8) -> Option<Vec<u8>> {
        // Some are read more than others, and by the same instance more than once at a time.
        let first = usize::from(choice) % if choice.is_multiple_of(2) { 3 } else { KEYS.len() };
        let chosen: Vec<usize> =
            (0..=usize::from(choice % 3)).map(|more| (first + more) % KEYS.len()).collect();
        let keys = chosen.iter().map(|chosen| key(*chosen)).collect();
        let body = Body::Acquire { keys, pins: 1, stop_at_miss: choice >= 128 };
        self.ask(now, body, What::Acquire(chosen))
    }

    /// Loads some lines. What is read to its end counts if the session is known to live, or else after
    /// a round trip: its frame is to be sent.
    pub(super) fn read(
        &mut self,
        around: &mut Surroundings<'_>,
        choice: u8,
    ) -> (Option<Verdict>, Option<Vec<u8>>) {
        let Some(place) = usize::from(choice).checked_rem(self.readable.len()) else {
            return (None, None);
        };
        let page = &mut self.readable[place];
        let all = lines(page.handle.offset, page.length);
        let some = usize::from(choice % 4) + 1;
        for line in all.clone().skip(page.seen.len()).take(some) {
            page.seen.push(around.memory.load(self.host, line));
        }
        if page.seen.len() < all.count() {
            return (None, None);
        }
        if page.session.is_certainly_alive(duration(around.now)) {
            return (Some(self.judge(place)), None);
        }
        let (id, session) = (page.id, Arc::clone(&page.session));
        if self.talk.session().is_some_and(|present| Arc::ptr_eq(present, &session)) {
            return (None, self.ask(around.now, Body::Renew, What::Confirm(id)));
        }
        // Stale.
        self.readable.swap_remove(place);
        (None, None)
    }

    fn judge(&mut self, place: usize) -> Verdict {
        let page = self.readable.swap_remove(place);
        self.give_back(&page.session, page.handle, 1);
        let Readable { key, handle, length, seen, checksum, .. } = page;
        Verdict { key, handle, length, seen, checksum }
    }

    pub(super) fn drop_readable(&mut self, choice: u8) {
        if let Some(place) = usize::from(choice).checked_rem(self.readable.len()) {
            let page = self.readable.swap_remove(place);
            self.give_back(&page.session, page.handle, 1);
        }
    }

    pub(super) fn delete(&mut self, now: u64, choice: u8) -> Option<Vec<u8>> {
        let keys = vec![key(usize::from(choice) % KEYS.len())];
        self.ask(now, Body::Delete { keys }, What::Nothing)
    }

    pub(super) fn look(&mut self, now: u64, choice: u8) -> Option<Vec<u8>> {
        let keys = vec![key(usize::from(choice) % KEYS.len())];
        let body = if choice >= 128 { Body::Contains { keys } } else { Body::Stats };
        self.ask(now, body, What::Nothing)
    }

    pub(super) fn touch(&mut self, now: u64, choice: u8) -> Option<Vec<u8>> {
        let keys = vec![key(usize::from(choice) % KEYS.len())];
        self.ask(now, Body::Touch { keys }, What::Nothing)
    }

    pub(super) fn suspect(&mut self, now: u64, handle: Handle) -> Option<Vec<u8>> {
        self.ask(now, Body::Suspect { handles: vec![handle] }, What::Nothing)
    }

    /// Whether it is time to be heard.
    pub(super) fn beat_is_due(&self, now: u64) -> bool {
        now >= self.next_beat
    }

    /// What a heartbeat sends: a renewal, and that it has let go of what it lost.
    pub(super) fn beat(&mut self, now: u64) -> Vec<Vec<u8>> {
        let Some(session) = self.talk.session().cloned() else {
            return Vec::new();
        };
        let mut frames = Vec::from_iter(self.ask(now, Body::Renew, What::Beat));
        let after = u64::try_from(session.renew_after().as_millis()).unwrap_or(u64::MAX);
        self.next_beat = now + after;
        while let Some(gone) = self.talk.take_let_go() {
            let Some(frame) = self.ask(now, gone.let_go(), What::LetGo(Arc::clone(&gone))) else {
                self.talk.keep_lost(gone);
                break;
            };
            frames.push(frame);
        }
        frames
    }

    /// Gives back what was dropped.
    pub(super) fn flush(&mut self, now: u64) -> Vec<Vec<u8>> {
        let orphans = self.talk.take_orphans();
        self.returns.extend(orphans);
        let mut frames = Vec::new();
        while let Some((session, body, batch)) = Return::next_batch(&mut self.returns) {
            let present = self.talk.session().is_some_and(|one| Arc::ptr_eq(one, &session));
            if !present {
                // A session that is over holds nothing.
                continue;
            }
            let Some(frame) = self.ask(now, body, What::Nothing) else {
                self.returns.extend(batch);
                break;
            };
            frames.push(frame);
        }
        frames
    }

    /// Waits no more for some answer.
    pub(super) fn give_up_waiting(&mut self, choice: u8) {
        let Some(place) = usize::from(choice).checked_rem(self.waiting.len()) else {
            return;
        };
        let Some(seq) = self.waiting.keys().nth(place).copied() else {
            return;
        };
        self.waiting.remove(&seq);
        self.talk.abandon(seq);
    }

    /// Ends its session in good order, if it can.
    pub(super) fn leave(&mut self, now: u64, memory: &mut Memory) -> Option<Vec<u8>> {
        while !self.writable.is_empty() {
            self.drop_writable(memory, 0);
        }
        self.readable.clear();
        self.returns.clear();
        let session = self.talk.close()?;
        let asked = self.talk.ask(duration(now), Some(&session), Body::Goodbye).ok()?;
        Some(asked.frame.to_vec())
    }

    /// Takes the outcomes that have come. Returns what was read and counts now, and frames to send.
    pub(super) fn take_outcomes(
        &mut self,
        around: &mut Surroundings<'_>,
    ) -> (Vec<Verdict>, Vec<Vec<u8>>) {
        let (mut verdicts, mut frames) = (Vec::new(), Vec::new());
        for seq in self.waiting.keys().copied().collect::<Vec<_>>() {
            let Some(outcome) = self.talk.take_outcome(seq) else {
                continue;
            };
            let Some(Waiting { sent, what }) = self.waiting.remove(&seq) else {
                continue;
            };
            let session = self.talk.session().cloned();
            match (outcome, session) {
                (Ok(answer), Some(session)) => {
                    self.confirmed(session.id(), sent, around.quarantine_ms);
                    verdicts.extend(self.answered(&session, what, answer, around, &mut frames));
                }
                (_, _) => {
                    if let What::LetGo(gone) = what {
                        self.talk.keep_lost(gone);
                    }
                }
            }
        }
        (verdicts, frames)
    }

    fn answered(
        &mut self,
        session: &Arc<Session>,
        what: What,
        answer: Answer,
        around: &mut Surroundings<'_>,
        frames: &mut Vec<Vec<u8>>,
    ) -> Option<Verdict> {
        match (what, answer) {
            (What::Reserve(keys), Answer::Reserved(outcomes)) => {
                for (key, outcome) in keys.into_iter().zip(outcomes) {
                    if let ReserveOutcome::Granted(location) = outcome {
                        self.granted(session, key, location);
                    }
                }
            }
            (What::Commit(keys, true), Answer::Committed(outcomes)) => {
                for (key, outcome) in keys.into_iter().zip(outcomes) {
                    if let CommitOutcome::Committed(chunk) | CommitOutcome::Superseded(chunk) =
                        outcome
                    {
                        self.pinned(session, key, chunk, around);
                    }
                }
            }
            (What::Acquire(keys), Answer::Acquired(found)) => {
                for (key, chunk) in keys.into_iter().zip(found) {
                    if let Some(chunk) = chunk {
                        self.pinned(session, key, chunk, around);
                    }
                }
            }
            (What::Confirm(id), _) => {
                let place = self.readable.iter().position(|page| page.id == id)?;
                return Some(self.judge(place));
            }
            (What::Beat, Answer::Renewed(stained)) if !stained.is_empty() => {
                let mut handles = Vec::new();
                for Location { handle, length } in stained {
                    around.memory.publish(self.host, lines(handle.offset, length));
                    handles.push(handle);
                }
                frames.extend(self.ask(around.now, Body::Cleaned { handles }, What::Nothing));
            }
            _ => {}
        }
        None
    }

    fn granted(&mut self, session: &Arc<Session>, key: usize, location: Location) {
        match Writing::begin(session) {
            Ok(writing) => self.writable.push(Writable {
                handle: location.handle,
                bytes: location.length,
                key,
                session: Arc::clone(session),
                _writing: writing,
                written: 0,
                non_temporal: location.handle.generation.0.is_multiple_of(3),
            }),
            Err(_) => self.give_back(session, location.handle, 0),
        }
    }

    fn pinned(
        &mut self,
        session: &Arc<Session>,
        key: usize,
        chunk: Chunk,
        around: &mut Surroundings<'_>,
    ) {
        let Location { handle, length } = chunk.location;
        if chunk.foreign && !around.memory.chunks_unacquired {
            around.memory.acquire(self.host, lines(handle.offset, length));
        }
        self.readables += 1;
        let (id, session) = (self.readables, Arc::clone(session));
        let checksum = chunk.checksum;
        self.readable.push(Readable { id, handle, length, key, checksum, session, seen: vec![] });
    }
}

/// The size of the pages of a key, in bytes.
fn page_bytes(setup: Setup, key: usize) -> u64 {
    if setup.two_sizes && key % 2 == 1 { 8 * LINE_BYTES } else { 4 * LINE_BYTES }
}
