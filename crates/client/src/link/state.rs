//! The books of a link: which requests are on their way, and in which session.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maru_protocol::{Answer, Body, FrameKind, Refusal, Reply, Request};

use crate::ClientError;
use crate::session::Session;
use crate::stream::{Inbox, Stream};

/// What the threads of a link share.
#[derive(Debug)]
pub(super) struct State {
    /// `None` while the connection is broken.
    pub(super) stream: Option<Arc<Stream>>,
    /// A thread connects; it does not hold the lock meanwhile.
    pub(super) connecting: bool,
    /// Why that thread has not yet succeeded.
    pub(super) unreachable: Option<ClientError>,
    /// `None` before the first hello.
    pub(super) session: Option<Arc<Session>>,
    /// Counts up over sessions too, so that a number means one request.
    pub(super) next_seq: u64,
    pending: BTreeMap<u64, Pending>,
    /// Taken by the thread that reads.
    pub(super) inbox: Option<Inbox>,
    /// Ended sessions that the server may hold pages in quarantine for.
    pub(super) lost: Vec<Arc<Session>>,
    /// The client is gone: nothing connects again.
    pub(super) closed: bool,
    /// Answers that came after their caller had stopped waiting: what they grant is given back.
    pub(super) orphans: Vec<Orphan>,
}

/// An answer that nobody waits for any more.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) session: Arc<Session>,
    pub(crate) answer: Answer,
    /// So many pins it took on each chunk.
    pub(crate) pins: u32,
}

/// A request without an answer, or with one that its thread has not taken yet.
#[derive(Debug)]
struct Pending {
    frame: Vec<u8>,
    sent: Instant,
    /// So many pins it asks for on each chunk.
    pins: u32,
    /// The caller's patience has run out. The request stays: the server may have applied it, and
    /// what it then grants must be given back.
    abandoned: bool,
    outcome: Option<Result<Answer, ClientError>>,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            stream: None,
            connecting: false,
            unreachable: None,
            session: None,
            next_seq: 1,
            pending: BTreeMap::new(),
            inbox: Some(Inbox::default()),
            lost: Vec::new(),
            closed: false,
            orphans: Vec::new(),
        }
    }

    /// The lowest number that has no answer yet; if all have, the next.
    fn first_unanswered(&self) -> u64 {
        let first = self.pending.iter().find(|(_, pending)| pending.outcome.is_none());
        first.map_or(self.next_seq, |(first, _)| *first)
    }

    /// How many requests there were since everything was answered that came before.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.next_seq - self.first_unanswered()
    }

    /// Requests that have no answer.
    pub(super) fn in_flight(&self) -> usize {
        self.pending.values().filter(|pending| pending.outcome.is_none()).count()
    }

    /// Sends a request and returns its number. If the connection breaks on the way, the request is
    /// sent again later.
    pub(super) fn send(&mut self, body: Body<'_>) -> Result<u64, ClientError> {
        let seq = self.next_seq;
        let acked = self.first_unanswered() - 1;
        let pins = match body {
            Body::Acquire { pins, .. } | Body::Commit { pins, .. } => pins,
            _ => 0,
        };
        let mut frame = Vec::new();
        let request = Request { seq, acked, body };
        maru_protocol::encode(FrameKind::Request, &request, &mut frame)
            .map_err(ClientError::Unsendable)?;
        self.next_seq += 1;
        let sent = Instant::now();
        if let Some(stream) = &self.stream
            && let Err(error) = stream.write_all(&frame)
        {
            tracing::debug!(%error, "the connection is lost");
            self.disconnect();
        }
        let pending = Pending { frame, sent, pins, abandoned: false, outcome: None };
        self.pending.insert(seq, pending);
        Ok(seq)
    }

    /// Sends everything unanswered again, in its order, over a new connection of the same session.
    pub(super) fn resend(&mut self, stream: &Stream) -> io::Result<()> {
        for pending in self.pending.values_mut().filter(|pending| pending.outcome.is_none()) {
            pending.sent = Instant::now();
            stream.write_all(&pending.frame)?;
        }
        Ok(())
    }

    /// A new session takes the place of the old one.
    pub(super) fn begin(&mut self, session: Session) {
        self.end_session();
        self.session = Some(Arc::new(session));
    }

    /// The session is over: what was on its way is lost. It stays in its place until another takes it.
    pub(super) fn end_session(&mut self) {
        if let Some(old) = self.session.as_ref().filter(|old| !old.is_lost()) {
            tracing::warn!(session = %old.id, "a session was lost; a new one begins");
            old.lose();
            self.lost.push(Arc::clone(old));
        }
        self.pending.retain(|_, pending| !pending.abandoned);
        for pending in self.pending.values_mut() {
            pending.outcome.get_or_insert(Err(ClientError::SessionLost));
        }
    }

    /// Breaks the connection if a request was sent over it about `timeout` ago and has no answer.
    /// Sent again over another, it may have one after all; without, everything would pile up behind.
    pub(super) fn give_up_on_a_hang(&mut self, timeout: Duration) {
        let oldest = self.pending.values().find(|pending| pending.outcome.is_none());
        if oldest.is_some_and(|oldest| oldest.sent.elapsed() >= timeout * 9 / 10) {
            self.disconnect();
        }
    }

    pub(super) fn disconnect(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.shut_down();
        }
    }

    pub(super) fn take_outcome(&mut self, seq: u64) -> Option<Result<Answer, ClientError>> {
        let outcome = self.pending.get_mut(&seq)?.outcome.take()?;
        self.pending.remove(&seq);
        Some(outcome)
    }

    pub(super) fn abandon(&mut self, seq: u64) {
        if let Some(pending) = self.pending.get_mut(&seq) {
            pending.abandoned = true;
        }
    }

    /// Hands the frames that have come to those who wait for them.
    pub(super) fn deliver(&mut self, inbox: &mut Inbox) -> io::Result<()> {
        let unreadable = |error: maru_protocol::FrameError| io::Error::other(error);
        while let Some(frame) = inbox.frame().map_err(unreadable)? {
            match frame.kind {
                FrameKind::Reply => {
                    let reply = maru_protocol::decode::<Reply>(frame.body).map_err(unreadable)?;
                    self.answered(reply);
                }
                FrameKind::Refused => {
                    let refusal = maru_protocol::decode::<Refusal>(frame.body);
                    return Err(io::Error::other(refusal.map_err(unreadable)?));
                }
                kind => {
                    return Err(io::Error::other(format!("{kind:?} where Reply is expected")));
                }
            }
            let len = frame.len_bytes();
            inbox.consume(len);
        }
        Ok(())
    }

    fn answered(&mut self, reply: Reply) {
        let Some(pending) = self.pending.get_mut(&reply.seq) else {
            return;
        };
        let session = self.session.clone();
        // Only a session that still is one answers; a refusal may be that it is none.
        if reply.result.is_ok()
            && let Some(session) = &session
        {
            session.confirm(pending.sent);
        }
        let ended = matches!(reply.result, Err(Refusal::SessionEnded));
        if pending.abandoned {
            let pins = pending.pins;
            self.pending.remove(&reply.seq);
            if let (Ok(answer), Some(session)) = (reply.result, session) {
                self.orphans.push(Orphan { session, answer, pins });
            }
        } else {
            pending.outcome = Some(match reply.result {
                Err(Refusal::SessionEnded) => Err(ClientError::SessionLost),
                result => result.map_err(ClientError::Refused),
            });
        }
        if ended {
            // The next hello begins a new session.
            self.disconnect();
        }
    }
}
