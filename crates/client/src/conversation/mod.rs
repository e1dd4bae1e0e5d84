//! One instance's side of the talk with a server: sessions, numbered requests, retries.
//!
//! Nothing in this folder does I/O, looks at a clock or has a thread.

mod holdings;
mod returns;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use maru_protocol::{
    Answer, Body, Frame, FrameError, FrameKind, HEADER_LEN, Handle, PinClaim, Refusal,
    ReleaseOutcome, Reply, Request, Resume, Standing, Welcome,
};

use self::holdings::{Claim, Holdings};
pub use self::returns::Return;
pub use self::session::{Session, Writing};
use crate::ClientError;

/// One instance's side of the talk with a server, for those who bring their own I/O, such as a
/// simulation. [`crate::Client`] is this with sockets, threads and mapped memory.
///
/// Whoever drives it makes the connections, one after the other. On each the hello has what
/// [`Conversation::hello`] says, and the welcome goes to [`Conversation::welcomed`]. From then on what
/// it gives is sent over this connection in that order, and the frames that come over it, and over
/// no older one, go to [`Conversation::received`]. That a connection broke is not told: what has no
/// answer is sent again over the next.
///
/// Times are since a start that the driver chose, and never go back.
#[derive(Debug)]
pub struct Conversation {
    /// The most requests on their way at a time.
    in_flight_max: usize,
    /// The session that was begun last; `None` before the first.
    session: Option<Arc<Session>>,
    /// Ended sessions that the server may hold pages in quarantine for.
    lost: Vec<Arc<Session>>,
    /// Counts up over sessions too, so that a number means one request.
    next_seq: u64,
    pending: BTreeMap<u64, Pending>,
    /// What the present session holds.
    holdings: Holdings,
    /// What was granted to those who had stopped waiting.
    orphans: Vec<Return>,
    /// No session is begun or resumed any more.
    closed: bool,
}

/// A request that is to be sent now, if there is a connection.
#[derive(Debug)]
pub struct Asked<'a> {
    /// Its number, for [`Conversation::take_outcome`] or [`Conversation::abandon`].
    pub seq: u64,
    /// Its bytes.
    pub frame: &'a [u8],
}

/// Why a connection must be closed. Another one may do better.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The server takes nothing more from it.
    #[error("the server refused: {0}")]
    Refused(Refusal),
    /// What came cannot be read.
    #[error(transparent)]
    Unreadable(#[from] FrameError),
    /// What came is no reply.
    #[error("{0:?} where Reply is expected")]
    Unexpected(FrameKind),
    /// It has no session, as far as the server knows; the next hello tells whether that lives.
    #[error("{}", Refusal::SessionEnded)]
    SessionEnded,
}

/// A request without an answer, or with one that its caller has not taken yet.
#[derive(Debug)]
struct Pending {
    session: Arc<Session>,
    frame: Vec<u8>,
    /// It tells a restarted server what is held; nobody waits for it.
    claim: bool,
    /// When it was sent last.
    sent: Duration,
    /// So many pins it asks for on each chunk.
    pins: u32,
    /// What it is answered changes what is held: [`Holdings::matter`].
    holds: bool,
    /// The caller's patience has run out. The request stays: the server may have applied it, and
    /// what it then grants must be given back.
    abandoned: bool,
    outcome: Option<Result<Answer, ClientError>>,
}

impl Conversation {
    /// Before the first hello. `in_flight_max`: the most requests without an answer at a time, if
    /// the server does not allow fewer.
    #[must_use]
    pub fn new(in_flight_max: u32) -> Self {
        Self {
            in_flight_max: in_flight_max.max(1) as usize,
            session: None,
            lost: Vec::new(),
            next_seq: 1,
            pending: BTreeMap::new(),
            holdings: Holdings::default(),
            orphans: Vec::new(),
            closed: false,
        }
    }

    /// The session that was begun last, be it lost; `None` before the first, and once all is closed.
    #[must_use]
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.session.as_ref().filter(|_| !self.closed)
    }

    /// The session that the hello of a new connection asks to go on with.
    /// [`ClientError::SessionLost`] once all is closed: then nothing connects again.
    pub fn hello(&self) -> Result<Option<Resume>, ClientError> {
        if self.closed {
            return Err(ClientError::SessionLost);
        }
        let going_on = self.session.as_ref().filter(|session| !session.is_lost());
        Ok(going_on.map(|session| session.resume()))
    }

    /// The server welcomed a new connection, to a hello that was sent at `sent`: begins the session,
    /// or goes on with it. Returns the frames that are to be sent now, in their order: what a server
    /// that was restarted has to know, and everything unanswered.
    ///
    /// [`ClientError::SessionLost`] if the connection is of no use, since the session that it resumes
    /// was lost meanwhile, or all is closed.
    pub fn welcomed(
        &mut self,
        now: Duration,
        sent: Duration,
        welcome: &Welcome,
    ) -> Result<impl Iterator<Item = &[u8]>, ClientError> {
        let going_on = self.hello()?.is_some_and(|resume| resume.session == welcome.session);
        if welcome.standing != Standing::New && !going_on {
            return Err(ClientError::SessionLost);
        }
        // They were of another connection, and say what was held then.
        self.pending.retain(|_, pending| !pending.claim);
        match welcome.standing {
            Standing::New => {
                self.end_session();
                self.session = Some(Arc::new(Session::new(welcome, sent)));
            }
            Standing::Resumed => {}
            // Until now it has relied on the times of the server before.
            Standing::Restored if self.relies_on_other_limits(welcome) => {
                self.end_session();
                return Err(ClientError::SessionLost);
            }
            Standing::Restored => {
                self.give_back_all();
                self.claim()?;
            }
        }
        let unanswered = |pending: &&mut Pending| pending.is_unanswered();
        for pending in self.pending.values_mut().filter(unanswered) {
            pending.sent = now;
        }
        let unanswered = |claim| {
            let pending = self.pending.values();
            let these = move |one: &&Pending| one.is_unanswered() && one.claim == claim;
            pending.filter(these).map(|pending| pending.frame.as_slice())
        };
        Ok(unanswered(true).chain(unanswered(false)))
    }

    /// What was on its way back when the server was killed is back: it is not claimed.
    fn give_back_all(&mut self) {
        let mut done = Vec::new();
        for (seq, pending) in self.pending.iter_mut().filter(|(_, one)| one.is_unanswered()) {
            let body = pending.request().map(|request| request.body);
            if let Some(body @ (Body::Abort { .. } | Body::Release { .. })) = body
                && let Body::Abort { handles } | Body::Release { handles, .. } = &body
            {
                let answer = Answer::Released(vec![ReleaseOutcome::Released; handles.len()]);
                self.holdings.book(&body, &answer);
                done.push((*seq, answer));
            }
        }
        for (seq, answer) in done {
            self.take_answer(seq, Ok(answer));
        }
    }

    /// Tells a server that was restarted what its session holds.
    fn claim(&mut self) -> Result<(), ClientError> {
        let session = self.session.as_ref().ok_or(ClientError::SessionLost)?;
        let mut committing = BTreeMap::new();
        let mut commits = Vec::new();
        for (seq, pending) in self.pending.iter().filter(|(_, one)| one.is_unanswered()) {
            if let Some(Request { body: Body::Commit { items, pins, .. }, .. }) = pending.request()
            {
                committing.extend(items.iter().map(|item| (item.handle, *seq)));
                commits.extend((pins > 0).then_some(*seq));
            }
        }
        let acked = self.first_unanswered() - 1;
        let by_commit = |handle: Handle| committing.get(&handle).copied();
        let parts = self.holdings.claims(session.batch_max(), by_commit);
        let last = parts.len() - 1;
        let mut frames = Vec::new();
        for (part, Claim { pins, reservations }) in parts.into_iter().enumerate() {
            let seq = self.next_seq + part as u64;
            let (commits, last) =
                if part == last { (commits.clone(), true) } else { (vec![], false) };
            let body = Body::Claim { pins, reservations, commits, last };
            frames.push((seq, encode(&Request { seq, acked, body })?));
        }
        let session = Arc::clone(session);
        for (seq, frame) in frames {
            let mut pending = Pending::new(Arc::clone(&session), frame, Duration::ZERO, 0);
            (pending.claim, pending.abandoned) = (true, true);
            self.pending.insert(seq, pending);
            self.next_seq = seq + 1;
        }
        Ok(())
    }

    /// The pages that the present session pins, and how often, by the answers that came.
    pub fn pins(&self) -> impl Iterator<Item = PinClaim> {
        self.holdings.pins()
    }

    /// The pages that the present session has reserved, by the answers that came.
    pub fn reservations(&self) -> impl Iterator<Item = Handle> {
        self.holdings.reservations()
    }

    /// Whether every request has its answer.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.pending.values().all(|pending| !pending.is_unanswered())
    }

    /// Whether the server can remember the answer to one more request, and not too many are on
    /// their way.
    #[must_use]
    pub fn may_ask(&self) -> bool {
        let Some(session) = &self.session else {
            return false;
        };
        // Since everything was answered that came before.
        let unacknowledged = self.next_seq - self.first_unanswered();
        let in_flight = self.pending.values().filter(|pending| pending.is_unanswered()).count();
        unacknowledged < u64::from(session.limits().window) && in_flight < self.in_flight_max
    }

    /// Numbers a request and keeps it until it is answered; if the connection breaks on the way, it
    /// is sent again over the next. Only while [`Conversation::may_ask`] says so.
    ///
    /// `session`: fail with [`ClientError::SessionLost`] rather than ask in any other session than
    /// this. [`ClientError::Unsendable`] for what does not fit into a frame.
    pub fn ask(
        &mut self,
        now: Duration,
        session: Option<&Arc<Session>>,
        body: Body<'_>,
    ) -> Result<Asked<'_>, ClientError> {
        let current = self.session.as_ref().ok_or(ClientError::SessionLost)?;
        if session.is_some_and(|session| !Arc::ptr_eq(session, current)) {
            return Err(ClientError::SessionLost);
        }
        let pins = match body {
            Body::Acquire { pins, .. } | Body::Commit { pins, .. } => pins,
            _ => 0,
        };
        let (seq, acked) = (self.next_seq, self.first_unanswered() - 1);
        let holds = Holdings::matter(&body);
        let frame = encode(&Request { seq, acked, body })?;
        self.next_seq += 1;
        let mut pending = Pending::new(Arc::clone(current), frame, now, pins);
        pending.holds = holds;
        let Pending { frame, .. } = self.pending.entry(seq).or_insert(pending);
        Ok(Asked { seq, frame })
    }

    /// A frame has come over the connection. On an error the connection must be closed, and nothing
    /// more that came over it counts.
    pub fn received(&mut self, frame: Frame<'_>) -> Result<(), ConnectionError> {
        match frame.kind {
            FrameKind::Reply => self.answered(maru_protocol::decode(frame.body)?),
            FrameKind::Refused => Err(ConnectionError::Refused(maru_protocol::decode(frame.body)?)),
            kind => Err(ConnectionError::Unexpected(kind)),
        }
    }

    fn answered(&mut self, reply: Reply) -> Result<(), ConnectionError> {
        let waits = |pending: &&mut Pending| pending.is_unanswered();
        let Some(pending) = self.pending.get_mut(&reply.seq).filter(waits) else {
            return Ok(());
        };
        // Only a session that still is one answers; a refusal may be that it is none.
        if let Ok(answer) = &reply.result {
            pending.session.confirm(pending.sent);
            if let Answer::Acquired(found) = answer {
                self.holdings.acquired(found, pending.pins);
            } else if pending.holds
                && let Some(Request { body, .. }) = pending.request()
            {
                self.holdings.book(&body, answer);
            }
        }
        // Who cannot say what it holds has lost it.
        let ended = matches!(
            reply.result,
            Err(Refusal::SessionEnded | Refusal::Claim { .. } | Refusal::ClaimFirst)
        );
        self.take_answer(
            reply.seq,
            match reply.result {
                Err(_) if ended => Err(ClientError::SessionLost),
                result => result.map_err(ClientError::Refused),
            },
        );
        if ended { Err(ConnectionError::SessionEnded) } else { Ok(()) }
    }

    fn take_answer(&mut self, seq: u64, outcome: Result<Answer, ClientError>) {
        let Some(pending) = self.pending.get_mut(&seq) else {
            return;
        };
        pending.outcome = Some(outcome);
        if pending.abandoned {
            self.abandon(seq);
        }
    }

    /// What came of a request, once.
    pub fn take_outcome(&mut self, seq: u64) -> Option<Result<Answer, ClientError>> {
        let outcome = self.pending.get_mut(&seq)?.outcome.take()?;
        self.pending.remove(&seq);
        Some(outcome)
    }

    /// Nobody waits for the outcome any more. The server may still apply the request: what that
    /// grants is to be given back, see [`Conversation::take_orphans`].
    pub fn abandon(&mut self, seq: u64) {
        let Some(pending) = self.pending.get_mut(&seq) else {
            return;
        };
        pending.abandoned = true;
        if let Some(outcome) = pending.outcome.take() {
            if let Ok(answer) = outcome {
                let returns = Return::all_of(&pending.session, &answer, pending.pins);
                self.orphans.extend(returns);
            }
            self.pending.remove(&seq);
        }
    }

    /// Whether [`Conversation::take_orphans`] has any.
    #[must_use]
    pub fn has_orphans(&self) -> bool {
        !self.orphans.is_empty()
    }

    /// What was granted to those who had stopped waiting, to be given back.
    pub fn take_orphans(&mut self) -> Vec<Return> {
        std::mem::take(&mut self.orphans)
    }

    /// Whether a request was sent about `timeout` ago and has no answer: then the connection is
    /// better closed. Sent again over another, the request may have an answer after all; without,
    /// everything would pile up behind.
    #[must_use]
    pub fn is_hanging(&self, now: Duration, timeout: Duration) -> bool {
        let oldest = self.pending.values().find(|pending| pending.is_unanswered());
        oldest.is_some_and(|oldest| now.saturating_sub(oldest.sent) >= timeout * 9 / 10)
    }

    fn relies_on_other_limits(&self, welcome: &Welcome) -> bool {
        self.session.as_ref().is_some_and(|session| *session.limits() != welcome.limits)
    }

    /// Goes on with another session: this one's server does not make sense. Whether it is the
    /// present one, so that its connection must be closed.
    pub fn give_up(&mut self, session: &Arc<Session>) -> bool {
        let present = self.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session));
        if present {
            self.end_session();
        }
        present
    }

    /// Ends everything for good. Returns the session to say goodbye in; `None` if a writable page of
    /// it is out, since a goodbye promises that nothing more is written.
    pub fn close(&mut self) -> Option<Arc<Session>> {
        self.closed = true;
        let session = self.session.as_ref()?;
        // Before the goodbye: once the server has it, nothing protects what is still being read.
        session.lose();
        (!session.is_written_to()).then(|| Arc::clone(session))
    }

    /// Whether it was closed.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// An ended session of which no writable page is out any more. The caller tells the server with
    /// [`Session::let_go`], or keeps it with [`Conversation::keep_lost`].
    pub fn take_let_go(&mut self) -> Option<Arc<Session>> {
        let index = self.lost.iter().position(|session| !session.is_written_to())?;
        Some(self.lost.swap_remove(index))
    }

    /// Has the server told another time that nothing of this session is written to any more.
    pub fn keep_lost(&mut self, session: Arc<Session>) {
        self.lost.push(session);
    }

    /// The session is over: what was on its way is lost. It stays in its place until another takes it.
    pub(crate) fn end_session(&mut self) {
        if let Some(old) = self.session.as_ref().filter(|old| !old.is_lost()) {
            tracing::warn!(session = %old.id(), "a session was lost; a new one begins");
            old.lose();
            self.lost.push(Arc::clone(old));
        }
        self.holdings.clear();
        self.pending.retain(|_, pending| !pending.abandoned);
        for pending in self.pending.values_mut() {
            pending.outcome.get_or_insert(Err(ClientError::SessionLost));
        }
    }

    /// The lowest number that has no answer yet; if all have, the next.
    fn first_unanswered(&self) -> u64 {
        let first = self.pending.iter().find(|(_, pending)| pending.is_unanswered());
        first.map_or(self.next_seq, |(first, _)| *first)
    }
}

fn encode(request: &Request<'_>) -> Result<Vec<u8>, ClientError> {
    let mut frame = Vec::new();
    maru_protocol::encode(FrameKind::Request, request, &mut frame)
        .map_err(ClientError::Unsendable)?;
    Ok(frame)
}

impl Pending {
    const fn new(session: Arc<Session>, frame: Vec<u8>, sent: Duration, pins: u32) -> Self {
        Self {
            session,
            frame,
            sent,
            pins,
            claim: false,
            holds: false,
            abandoned: false,
            outcome: None,
        }
    }

    /// What was asked.
    fn request(&self) -> Option<Request<'_>> {
        // It was encoded here.
        maru_protocol::decode(self.frame.get(HEADER_LEN..)?).ok()
    }

    const fn is_unanswered(&self) -> bool {
        self.outcome.is_none()
    }
}
