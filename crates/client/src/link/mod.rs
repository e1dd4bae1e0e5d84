//! The link to the server: one connection, requests of many threads on it, and what happens when
//! it breaks.
//!
//! There is no reader thread: it would cost a wake-up on every round trip. Of the threads that wait
//! for a reply, one reads and hands the others theirs; when it has its own, another takes over. A
//! thread that is alone writes, reads and goes on.

mod state;
mod watched;

use std::io::{self, ErrorKind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use maru_protocol::{Answer, Body, FrameKind, Hello, Refusal, Resume, Standing, Welcome};
use rustix::process::{Pid, getpid};

pub(crate) use self::state::MappedSession;
use self::state::State;
use self::watched::Watched;
use crate::memory::Memory;
use crate::stream::{Inbox, Stream};
use crate::verify::Sampler;
use crate::{ClientConfig, ClientError, Return, Session};

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
    /// All times are since then.
    start: Instant,
    state: Mutex<State>,
    /// Something was delivered, or the reading is nobody's.
    changed: Condvar,
    pub(crate) watched: Watched,
    pub(crate) sampler: Sampler,
}

/// A connection that a server has welcomed.
struct Greeted {
    stream: Stream,
    welcome: Welcome,
    /// When hello was sent.
    sent: Duration,
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

/// One kernel, one coherent memory: containers of a host share its boot id.
fn this_host() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match boot.trim() {
        "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        id => id.to_owned(),
    }
}

impl Link {
    pub(crate) fn new(config: ClientConfig) -> Self {
        Self {
            owner: getpid(),
            host: config.host.clone().unwrap_or_else(this_host),
            start: Instant::now(),
            sampler: Sampler::new(config.verify),
            state: Mutex::new(State::new(config.in_flight_max)),
            changed: Condvar::new(),
            watched: Watched::default(),
            config,
        }
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

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The present session, connecting if there is none.
    pub(crate) fn session(&self) -> Result<Arc<MappedSession>, ClientError> {
        self.check_owner()?;
        let (state, connected) = self.connect(self.lock(), self.now());
        connected?;
        state.mapped.clone().ok_or(ClientError::SessionLost)
    }

    /// Whether this is the process that connected. A forked child has a copy of all this, and the
    /// connection in common with its parent: it must not speak for it.
    pub(crate) fn check_owner(&self) -> Result<(), ClientError> {
        if getpid() == self.owner { Ok(()) } else { Err(ClientError::SessionLost) }
    }

    /// The session that was begun last; `None` once the client is gone.
    pub(crate) fn present(&self) -> Option<Arc<Session>> {
        self.lock().conversation.session().cloned()
    }

    /// The same with its memory.
    pub(crate) fn mapped(&self) -> Option<Arc<MappedSession>> {
        self.lock().mapped.clone()
    }

    /// The connection's socket, if there is a connection.
    pub(crate) fn stream(&self) -> Option<Arc<Stream>> {
        self.lock().stream.clone()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().conversation.is_closed()
    }

    /// Ends the session for good, and says goodbye if it may.
    pub(crate) fn farewell(&self) {
        if self.check_owner().is_err() {
            return;
        }
        let mut state = self.lock();
        // From here on a broken connection stays broken, so the goodbye waits for nobody.
        let goodbye = state.conversation.close();
        self.watched.interrupt();
        let connected = state.stream.is_some();
        drop(state);
        if connected
            && let Some(session) = goodbye
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
        if state.conversation.give_up(session) {
            state.disconnect();
            self.changed.notify_all();
        }
    }

    /// An ended session of which no writable page is out any more; the caller tells the server, or
    /// keeps it with [`Link::keep_lost`].
    pub(crate) fn take_let_go(&self) -> Option<Arc<Session>> {
        self.lock().conversation.take_let_go()
    }

    /// Has the server told another time that nothing of this session is written to any more.
    pub(crate) fn keep_lost(&self, session: Arc<Session>) {
        self.lock().conversation.keep_lost(session);
    }

    pub(crate) fn has_orphans(&self) -> bool {
        self.lock().conversation.has_orphans()
    }

    pub(crate) fn take_orphans(&self) -> Vec<Return> {
        self.lock().conversation.take_orphans()
    }

    /// Asks the server and waits for the answer. Returns it with the session that it is of.
    ///
    /// If the connection breaks, the request is sent again over the next one, and is applied once.
    /// `session`: fail rather than ask in any other session than this.
    pub(crate) fn call(
        &self,
        body: Body<'_>,
        session: Option<&Arc<Session>>,
    ) -> Result<(Arc<MappedSession>, Answer), Failed> {
        self.check_owner()?;
        let started = self.now();
        let mut state = self.admit(started)?;
        let (mapped, seq) = state.ask(self.now(), session, body)?;
        let mut waited = Ok(());
        loop {
            // It may have come and the connection be lost again.
            if let Some(outcome) = state.conversation.take_outcome(seq) {
                drop(state);
                // Whoever still waits needs a reader.
                self.changed.notify_all();
                return Ok((mapped, outcome?));
            }
            let patience = self.patience(started);
            if waited.is_ok() && patience.is_zero() {
                self.give_up_on_a_hang(&mut state);
                waited = Err(self.timeout());
            }
            if let Err(error) = waited {
                state.conversation.abandon(seq);
                return Err(Failed { error, in_flight: true });
            }
            (state, waited) = self.wait(state, started, patience);
        }
    }

    /// Fails unless the session was alive at a moment after this call began: then whatever it held
    /// before the call, it held all the time. Costs a round trip only if nothing was heard lately.
    pub(crate) fn confirm(&self, session: &Arc<Session>) -> Result<(), ClientError> {
        self.check_owner()?;
        if session.is_lost() {
            return Err(ClientError::SessionLost);
        }
        if session.is_certainly_alive(self.now()) {
            return Ok(());
        }
        self.call(Body::Renew, Some(session))?;
        Ok(())
    }

    /// Waits for a connection, and until the server can remember the answer to one more request.
    fn admit(&self, started: Duration) -> Result<MutexGuard<'_, State>, ClientError> {
        let mut state = self.lock();
        loop {
            let (mut connected, result) = self.connect(state, started);
            result?;
            if connected.conversation.may_ask() {
                return Ok(connected);
            }
            let patience = self.patience(started);
            if patience.is_zero() {
                self.give_up_on_a_hang(&mut connected);
                return Err(self.timeout());
            }
            let (waited, result) = self.wait(connected, started, patience);
            result?;
            state = waited;
        }
    }

    /// Breaks the connection if it hangs.
    fn give_up_on_a_hang(&self, state: &mut State) {
        if state.conversation.is_hanging(self.now(), self.config.timeout) {
            state.disconnect();
        }
        self.changed.notify_all();
    }

    /// How long a call that began at `started` may still take.
    fn patience(&self, started: Duration) -> Duration {
        self.config.timeout.saturating_sub(self.now().saturating_sub(started))
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
        started: Duration,
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
        started: Duration,
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
        started: Duration,
    ) -> (MutexGuard<'a, State>, Result<(), ClientError>) {
        let mut pause = RETRY_MIN;
        loop {
            let resume = match state.conversation.hello() {
                Ok(resume) => resume,
                Err(error) => return (state, Err(error)),
            };
            let left = self.patience(started);
            drop(state);
            let greeted = self.greet(resume, left.clamp(RETRY_MIN, ATTEMPT_MAX));
            state = self.lock();
            let error = match greeted.and_then(|greeted| self.welcomed(&mut state, greeted)) {
                Ok(outgrown) => {
                    // To unmap much memory takes a while.
                    drop(state);
                    drop(outgrown);
                    return (self.lock(), Ok(()));
                }
                Err(error) => error,
            };
            state.unreachable = Some(error.clone());
            // Before the first session there is nothing to save by waiting.
            let again = matches!(error, ClientError::Unreachable { .. }) && state.mapped.is_some();
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
            outside_writers: self.config.outside_writers,
        };
        let mut frame = Vec::new();
        maru_protocol::encode(FrameKind::Hello, &hello, &mut frame)
            .map_err(ClientError::Unsendable)?;
        let sent = self.now();
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

    /// Goes on over a new connection. Returns what the new session does not need of the old.
    fn welcomed(
        &self,
        state: &mut State,
        greeted: Greeted,
    ) -> Result<Option<Arc<MappedSession>>, ClientError> {
        let Greeted { stream, welcome, sent } = greeted;
        // A session without its memory is of no use, so none begins.
        let new = welcome.standing == Standing::New;
        let memory = if new { Some(self.map(state, &welcome)) } else { None };
        // The server does not know the old one any more, whether or not there can be another.
        let memory = memory.transpose().inspect_err(|_| state.conversation.end_session())?;
        for frame in state.conversation.welcomed(self.now(), sent, &welcome)? {
            stream.write_all(frame).map_err(|source| self.unreachable(source))?;
        }
        let mut outgrown = None;
        if let (Some(memory), Some(session)) = (memory, state.conversation.session()) {
            let session = Arc::clone(session);
            outgrown = state.mapped.replace(Arc::new(MappedSession { session, memory }));
            self.watched.interrupt();
        }
        state.stream = Some(Arc::new(stream));
        // A thread may be reading the old connection; what it left half read is of no use.
        if state.inbox.is_some() {
            state.inbox = Some(Inbox::default());
        }
        Ok(outgrown)
    }

    /// The memory that a server has its pool in: the present, if it is the same.
    fn map(&self, state: &State, welcome: &Welcome) -> Result<Arc<Memory>, ClientError> {
        let known = state.mapped.as_ref().map(|mapped| &mapped.memory);
        match known.filter(|memory| memory.is_of(&welcome.topology)) {
            Some(memory) => Ok(Arc::clone(memory)),
            None if known.is_some() && self.config.one_pool => {
                Err(ClientError::OtherPool { endpoint: self.config.endpoint.clone() })
            }
            None => Ok(Arc::new(Memory::map(&welcome.topology, &self.config)?)),
        }
    }
}
