//! The link to the server: one connection, requests of many threads on it, and what happens when
//! it breaks.
//!
//! There is no reader thread: it would cost a wake-up on every round trip. Of the threads that wait
//! for a reply, one reads and hands the others theirs; when it has its own, another takes over. A
//! thread that is alone writes, reads and goes on.

mod state;
mod watched;

use std::io::{self, ErrorKind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use maru_protocol::{Answer, Body, FrameKind, Hello, Refusal, Resume, Welcome};
use rustix::process::{Pid, getpid};

pub(crate) use self::state::Orphan;
use self::state::State;
use self::watched::Watched;
use crate::session::{Memory, Session};
use crate::stream::{Inbox, Stream};
use crate::{ClientConfig, ClientError};

/// The first wait before connecting again; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(200);

/// The longest that one attempt to connect may keep the others waiting.
const ATTEMPT_MAX: Duration = Duration::from_secs(1);

/// The link, shared by all threads of a client.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) config: ClientConfig,
    /// The process that speaks over it.
    owner: Pid,
    host: String,
    state: Mutex<State>,
    /// Something was delivered, or the reading is nobody's.
    changed: Condvar,
    pub(crate) watched: Watched,
}

/// A connection that a server has welcomed.
struct Greeted {
    stream: Stream,
    welcome: Welcome,
    /// When hello was sent.
    sent: Instant,
}

/// Why a request has no answer, and whether it may have one yet.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: ClientError,
    /// The server may have applied it, or may apply it when the connection is back.
    pub(crate) in_flight: bool,
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        Self { error, in_flight: false }
    }
}

impl From<Failed> for ClientError {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

impl Link {
    pub(crate) fn new(config: ClientConfig) -> Self {
        // One kernel, one coherent memory: containers of a host share its boot id.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let host = match boot.trim() {
            "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            id => id.to_owned(),
        };
        let (state, changed, watched) =
            (Mutex::new(State::new()), Condvar::new(), Watched::default());
        Self { config, owner: getpid(), host, state, changed, watched }
    }

    /// What a forked child has of this link, but for the connection.
    #[cfg(test)]
    pub(crate) fn of_another_process(&self) -> Self {
        Self { owner: Pid::INIT, ..Self::new(self.config.clone()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present session, connecting if there is none.
    pub(crate) fn session(&self) -> Result<Arc<Session>, ClientError> {
        self.check_owner()?;
        let (state, connected) = self.connect(self.lock(), Instant::now());
        connected?;
        state.session.clone().ok_or(ClientError::SessionLost)
    }

    /// Whether this is the process that connected. A forked child has a copy of all this, and the
    /// connection in common with its parent: it must not speak for it.
    fn check_owner(&self) -> Result<(), ClientError> {
        if getpid() == self.owner { Ok(()) } else { Err(ClientError::SessionLost) }
    }

    /// The session that was begun last; `None` once the client is gone.
    pub(crate) fn present(&self) -> Option<Arc<Session>> {
        let state = self.lock();
        state.session.clone().filter(|_| !state.closed)
    }

    /// The connection's socket, if there is a connection.
    pub(crate) fn stream(&self) -> Option<Arc<Stream>> {
        self.lock().stream.clone()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Ends the session for good. It says goodbye only if no writable page is out: a goodbye
    /// promises that nothing more is written.
    pub(crate) fn farewell(&self) {
        if self.check_owner().is_err() {
            return;
        }
        let mut state = self.lock();
        // From here on a broken connection stays broken, so the goodbye waits for nobody.
        state.closed = true;
        self.watched.interrupt();
        let Some(session) = state.session.clone() else {
            return;
        };
        let connected = state.stream.is_some();
        drop(state);
        // Before the goodbye: once the server has it, nothing protects what is still being read.
        session.lose();
        if connected
            && session.writable.load(Ordering::SeqCst) == 0
            && let Err(failed) = self.call(Body::Goodbye, Some(&session))
        {
            tracing::debug!(error = %failed.error, "no goodbye was said");
        }
        self.lock().disconnect();
        self.changed.notify_all();
    }

    /// Goes on with another session: this one's server does not make sense.
    pub(crate) fn give_up(&self, session: &Arc<Session>) {
        let mut state = self.lock();
        if state.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            state.end_session();
            state.disconnect();
            self.changed.notify_all();
        }
    }

    /// An ended session of which no writable page is out any more; the caller tells the server, or
    /// keeps it with [`Link::keep_lost`].
    pub(crate) fn take_let_go(&self) -> Option<Arc<Session>> {
        let mut state = self.lock();
        let gone = |session: &Arc<Session>| session.writable.load(Ordering::SeqCst) == 0;
        let index = state.lost.iter().position(gone)?;
        Some(state.lost.swap_remove(index))
    }

    /// Has the server told another time that nothing of this session is written to any more.
    pub(crate) fn keep_lost(&self, session: Arc<Session>) {
        self.lock().lost.push(session);
    }

    pub(crate) fn has_orphans(&self) -> bool {
        !self.lock().orphans.is_empty()
    }

    pub(crate) fn take_orphans(&self) -> Vec<Orphan> {
        std::mem::take(&mut self.lock().orphans)
    }

    /// Asks the server and waits for the answer. Returns it with the session that it is of.
    ///
    /// If the connection breaks, the request is sent again over the next one, and is applied once.
    /// `session`: fail rather than ask in any other session than this.
    pub(crate) fn call(
        &self,
        body: Body<'_>,
        session: Option<&Arc<Session>>,
    ) -> Result<(Arc<Session>, Answer), Failed> {
        self.check_owner()?;
        let started = Instant::now();
        let (mut state, current) = self.admit(started)?;
        if session.is_some_and(|session| !Arc::ptr_eq(session, &current)) {
            return Err(ClientError::SessionLost.into());
        }
        let seq = state.send(body)?;
        loop {
            if let Some(outcome) = state.take_outcome(seq) {
                drop(state);
                // Whoever still waits needs a reader.
                self.changed.notify_all();
                return Ok((current, outcome?));
            }
            let patience = self.patience(started);
            if patience.is_zero() {
                state.abandon(seq);
                state.give_up_on_a_hang(self.config.timeout);
                self.changed.notify_all();
                return Err(Failed { error: self.timeout(), in_flight: true });
            }
            state = match self.wait(state, started, patience) {
                (state, Ok(())) => state,
                (mut state, Err(error)) => {
                    state.abandon(seq);
                    return Err(Failed { error, in_flight: true });
                }
            };
        }
    }

    /// Fails unless the session was alive at a moment after this call began: then whatever it held
    /// before the call, it held all the time. Costs a round trip only if nothing was heard lately.
    pub(crate) fn confirm(&self, session: &Arc<Session>) -> Result<(), ClientError> {
        self.check_owner()?;
        if session.is_lost() {
            return Err(ClientError::SessionLost);
        }
        if session.is_certainly_alive() {
            return Ok(());
        }
        self.call(Body::Renew, Some(session))?;
        Ok(())
    }

    /// Waits for a connection, and until the server can remember the answer to one more request.
    fn admit(
        &self,
        started: Instant,
    ) -> Result<(MutexGuard<'_, State>, Arc<Session>), ClientError> {
        let mut state = self.lock();
        loop {
            let (connected, result) = self.connect(state, started);
            result?;
            let session = connected.session.clone().ok_or(ClientError::SessionLost)?;
            let in_flight_max = self.config.in_flight_max.max(1) as usize;
            if connected.unacknowledged() < u64::from(session.limits.window)
                && connected.in_flight() < in_flight_max
            {
                return Ok((connected, session));
            }
            let patience = self.patience(started);
            if patience.is_zero() {
                let mut state = connected;
                state.give_up_on_a_hang(self.config.timeout);
                self.changed.notify_all();
                return Err(self.timeout());
            }
            let (waited, result) = self.wait(connected, started, patience);
            result?;
            state = waited;
        }
    }

    /// How long a call that began at `started` may still take.
    fn patience(&self, started: Instant) -> Duration {
        self.config.timeout.saturating_sub(started.elapsed())
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let endpoint = self.config.endpoint.clone();
        let source = match source.kind() {
            // What the socket says when its patience is over tells a person nothing.
            ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, "it does not answer"),
            _ => source,
        };
        ClientError::Unreachable { endpoint, source: Arc::new(source) }
    }

    fn timeout(&self) -> ClientError {
        ClientError::Timeout {
            endpoint: self.config.endpoint.clone(),
            timeout_ms: self.config.timeout.as_millis(),
        }
    }

    /// Waits for something to change: by reading, or, while another thread reads, for that thread.
    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        started: Instant,
        patience: Duration,
    ) -> (MutexGuard<'a, State>, Result<(), ClientError>) {
        let Some(stream) = state.stream.clone() else {
            return self.connect(state, started);
        };
        let Some(mut inbox) = state.inbox.take() else {
            let waited = self.changed.wait_timeout(state, patience);
            return (waited.unwrap_or_else(PoisonError::into_inner).0, Ok(()));
        };
        drop(state);
        let read = inbox.fill(&stream);
        let mut state = self.lock();
        let same = state.stream.as_ref().is_some_and(|now| Arc::ptr_eq(now, &stream));
        let read = read.and_then(|()| if same { state.deliver(&mut inbox) } else { Ok(()) });
        state.inbox = Some(if same { inbox } else { Inbox::default() });
        match read {
            // Nothing came; how long one waits is for each caller to say.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if same => {
                tracing::debug!(%error, "the connection is lost");
                state.disconnect();
            }
            _ => {}
        }
        self.changed.notify_all();
        (state, Ok(()))
    }

    /// Makes sure that there is a connection with a session, trying for the configured time from
    /// `started`. One thread does so for all; each of the others waits as long as it may.
    fn connect<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        started: Instant,
    ) -> (MutexGuard<'a, State>, Result<(), ClientError>) {
        while state.stream.is_none() && state.connecting {
            let patience = self.patience(started);
            if patience.is_zero() {
                let error = state.unreachable.clone().unwrap_or_else(|| self.timeout());
                return (state, Err(error));
            }
            let waited = self.changed.wait_timeout(state, patience);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.stream.is_some() {
            return (state, Ok(()));
        }
        (state.connecting, state.unreachable) = (true, None);
        let (mut state, result) = self.keep_connecting(state, started);
        state.connecting = false;
        self.changed.notify_all();
        (state, result)
    }

    /// Tries to connect. The lock is free most of the time: a client can be closed meanwhile.
    fn keep_connecting<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        started: Instant,
    ) -> (MutexGuard<'a, State>, Result<(), ClientError>) {
        let mut pause = RETRY_MIN;
        loop {
            if state.closed {
                return (state, Err(ClientError::SessionLost));
            }
            let left = self.patience(started);
            let going_on = state.session.as_ref().filter(|session| !session.is_lost());
            let resume = going_on.map(|session| session.resume());
            drop(state);
            let greeted = self.greet(resume, left.clamp(RETRY_MIN, ATTEMPT_MAX));
            state = self.lock();
            let error = match greeted.and_then(|greeted| self.welcomed(&mut state, greeted)) {
                Ok(()) => return (state, Ok(())),
                Err(error) => error,
            };
            state.unreachable = Some(error.clone());
            // Before the first session there is nothing to save by waiting.
            let again = matches!(error, ClientError::Unreachable { .. }) && state.session.is_some();
            if !again || pause > left {
                return (state, Err(error));
            }
            let waited = self.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// One attempt to connect and say hello.
    fn greet(&self, resume: Option<Resume>, timeout: Duration) -> Result<Greeted, ClientError> {
        let unreachable = |source| self.unreachable(source);
        let unreadable = |reason: String| ClientError::Protocol {
            endpoint: self.config.endpoint.clone(),
            reason,
        };
        let stream = Stream::connect(&self.config.endpoint, timeout, self.config.timeout / 4)
            .map_err(unreachable)?;
        let hello = Hello {
            instance: &self.config.instance,
            host: &self.host,
            budget_bytes: self.config.budget_bytes,
            resume,
        };
        let mut frame = Vec::new();
        maru_protocol::encode(FrameKind::Hello, &hello, &mut frame)
            .map_err(ClientError::Unsendable)?;
        let sent = Instant::now();
        stream.write_all(&frame).map_err(unreachable)?;
        let mut inbox = Inbox::default();
        let welcome = loop {
            let frame = inbox.frame().map_err(|error| unreadable(error.to_string()))?;
            let Some(frame) = frame else {
                inbox.fill(&stream).map_err(unreachable)?;
                continue;
            };
            break match frame.kind {
                FrameKind::Welcome => maru_protocol::decode::<Welcome>(frame.body),
                FrameKind::Refused => match maru_protocol::decode::<Refusal>(frame.body) {
                    Ok(refusal) => return Err(refusal.into()),
                    Err(error) => Err(error),
                },
                kind => return Err(unreadable(format!("{kind:?} in answer to a hello"))),
            }
            .map_err(|error| unreadable(error.to_string()))?;
        };
        Ok(Greeted { stream, welcome, sent })
    }

    fn welcomed(&self, state: &mut State, greeted: Greeted) -> Result<(), ClientError> {
        let Greeted { stream, welcome, sent } = greeted;
        if state.closed {
            return Err(ClientError::SessionLost);
        }
        if welcome.resumed {
            state.resend(&stream).map_err(|source| self.unreachable(source))?;
        } else {
            let known = state.session.as_ref().map(|session| Arc::clone(&session.memory));
            let memory = match known.filter(|memory| memory.is_of(&welcome.topology)) {
                Some(memory) => memory,
                None => Arc::new(Memory::map(&welcome.topology, &self.config)?),
            };
            state.begin(Session::new(&welcome, memory, sent));
            self.watched.interrupt();
        }
        state.stream = Some(Arc::new(stream));
        // A thread may be reading the old connection; what it left half read is of no use.
        if state.inbox.is_some() {
            state.inbox = Some(Inbox::default());
        }
        Ok(())
    }
}
