//! The event loop.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use maru_directory::{Config, Directory, Millis};
use maru_protocol::{
    Body, Event, FRAME_BYTES_MAX, FrameError, FrameKind, Hello, Limits, Refusal, Request, Secret,
    SessionId, VERSION, Watch, Welcome,
};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

use crate::connection::{Connection, Input, Peer, Progress};
use crate::events::Watchers;
use crate::listener::{Listener, Stream};
use crate::pool::Pool;
use crate::process::Process;
use crate::{ServerConfig, StartError};

/// How often time passes for the directory: well under the second in which the dead are cleaned up
/// after.
const TICK: Duration = Duration::from_millis(50);

/// Events taken at a time: all that there can be, so that nobody is heard too late for a tick.
const EVENTS: usize = 4096;

/// Requests of one connection that are answered before the others get their turn.
const REQUESTS_PER_TURN: u32 = 32;

/// How long a connection may stay without saying whose it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections without a session, beyond which new ones wait outside.
const STRANGERS_MAX: usize = 256;

const WAKER: Token = Token(0);
const FIRST_LISTENER: usize = 1;
const FIRST_CONNECTION: usize = 16;

/// A connection has an even token, a process an odd one.
const fn connection_token(index: usize) -> Token {
    Token(FIRST_CONNECTION + 2 * index)
}

const fn process_token(index: usize) -> Token {
    Token(FIRST_CONNECTION + 2 * index + 1)
}

/// One server: a pool, a directory, and those who are connected.
#[derive(Debug)]
pub struct Server {
    poll: Poll,
    stopper: Stopper,
    listeners: Vec<Listener>,
    /// Listeners where somebody waits who could not be let in. No event tells when there is room
    /// again, so each tick tries.
    crowded: BTreeSet<usize>,
    connections: Slab<Connection>,
    /// Connections with work to do.
    queue: VecDeque<usize>,
    by_session: HashMap<SessionId, usize>,
    watchers: Watchers,
    processes: Slab<Process>,
    directory: Directory,
    pool: Pool,
    started: Instant,
    next_tick: Instant,
}

/// Stops a server from another thread.
#[derive(Debug, Clone)]
pub struct Stopper {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Stopper {
    /// Asks the server to stop; it does within a moment.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Err(error) = self.waker.wake() {
            tracing::warn!(%error, "cannot wake the server; it stops at its next tick");
        }
    }
}

impl Server {
    /// Opens the pool and starts to listen. Nothing is answered before [`Server::run`].
    pub fn start(config: &ServerConfig) -> Result<Self, StartError> {
        if config.socket.is_none() && config.listen.is_none() {
            return Err(StartError::NoListener);
        }
        let mut listeners = Vec::new();
        if let Some(path) = &config.socket {
            listeners.push(Listener::unix(path)?);
        }
        if let Some(address) = config.listen {
            listeners.push(Listener::tcp(address)?);
        }
        let memory = Pool::open(&config.pool, config.region_bytes, config.populate)?;
        let poll = Poll::new().map_err(StartError::io("wait for events"))?;
        for (index, listener) in listeners.iter_mut().enumerate() {
            let token = Token(FIRST_LISTENER + index);
            let registered = listener.register(poll.registry(), token);
            registered.map_err(StartError::io("wait for connections"))?;
        }
        let waker = Waker::new(poll.registry(), WAKER).map_err(StartError::io("make a waker"))?;
        let stopper = Stopper { stop: Arc::new(AtomicBool::new(false)), waker: Arc::new(waker) };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |age| age.as_secs());
        let hash_seed = u64::from_le_bytes(random()?);
        // Unix time grows from one life to the next; after 2106 it has to be something else.
        let directory =
            Config { epoch: seconds & 0xffff_ffff, hash_seed, ..config.directory.clone() };
        let directory = Directory::new(directory, &memory.geometry, Millis(0))?;
        let started = Instant::now();
        Ok(Self {
            poll,
            stopper,
            listeners,
            crowded: BTreeSet::new(),
            connections: Slab::new(),
            queue: VecDeque::new(),
            by_session: HashMap::new(),
            watchers: Watchers::default(),
            processes: Slab::new(),
            directory,
            pool: memory,
            started,
            next_tick: started + TICK,
        })
    }

    /// What stops this server.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Where TCP clients can connect to, with the port that was chosen.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.listeners.iter().find_map(Listener::tcp_address)
    }

    /// What the pool lies on.
    #[must_use]
    pub fn pool_paths(&self) -> Vec<String> {
        self.pool.paths()
    }

    /// The size of the pool's devices together, in bytes.
    #[must_use]
    pub fn pool_bytes(&self) -> u64 {
        self.pool.topology.devices.iter().map(|device| device.bytes).sum()
    }

    /// Serves until it is stopped.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        while !self.stopper.stop.load(Ordering::Relaxed) {
            // A tick is of a moment before the poll: after this process was stopped for longer than a
            // lease, those who spoke meanwhile are heard first.
            let (now, due_in) = (self.now(), self.next_tick.checked_duration_since(Instant::now()));
            let wait = due_in.filter(|_| self.queue.is_empty()).unwrap_or_default();
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                self.dispatch(event);
            }
            // One turn for everybody who is queued now; who has more to do queues again.
            for _ in 0..self.queue.len() {
                if let Some(index) = self.queue.pop_front() {
                    self.serve(index);
                }
            }
            if due_in.is_none() {
                self.tick(now);
            }
        }
        Ok(())
    }

    fn now(&self) -> Millis {
        let elapsed = self.started.elapsed().as_millis();
        Millis(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    fn dispatch(&mut self, event: &mio::event::Event) {
        let token = event.token().0;
        if event.token() == WAKER {
            // Its work is done: `run` looks at the flag.
        } else if token < FIRST_CONNECTION {
            self.accept(token - FIRST_LISTENER);
        } else if (token - FIRST_CONNECTION).is_multiple_of(2) {
            let index = (token - FIRST_CONNECTION) / 2;
            if let Some(connection) = self.connections.get_mut(index) {
                connection.input = connection.input.max(match event {
                    event if event.is_read_closed() => Input::TheEnd,
                    event if event.is_readable() => Input::Bytes,
                    _ => Input::Nothing,
                });
                self.enqueue(index);
            }
        } else {
            self.process_died((token - FIRST_CONNECTION) / 2);
        }
    }

    fn enqueue(&mut self, index: usize) {
        if let Some(connection) = self.connections.get_mut(index)
            && !connection.queued
        {
            connection.queued = true;
            self.queue.push_back(index);
        }
    }

    fn accept(&mut self, listener: usize) {
        while self.connections.len() < self.by_session.len() + self.watchers.len() + STRANGERS_MAX {
            match self.listeners[listener].accept() {
                Ok(stream) => self.add_connection(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.crowded.remove(&listener);
                    return;
                }
                Err(error) => {
                    // Out of descriptors, most likely. Those who wait stay in the backlog.
                    if self.crowded.insert(listener) {
                        tracing::warn!(%error, "cannot accept a connection");
                    }
                    return;
                }
            }
        }
        if self.crowded.insert(listener) {
            tracing::warn!("new connections have to wait: too many have not said whose they are");
        }
    }

    fn add_connection(&mut self, stream: Stream) {
        let slot = self.connections.vacant_entry();
        let index = slot.key();
        let connection = slot.insert(Connection::new(stream));
        // Edge-triggered: both at once, and no call again for the life of the connection.
        let interest = Interest::READABLE | Interest::WRITABLE;
        let source = connection.stream.source();
        let registered = self.poll.registry().register(source, connection_token(index), interest);
        if let Err(error) = registered {
            tracing::warn!(%error, "cannot wait for a connection");
            self.connections.remove(index);
        }
    }

    /// Gives one connection its turn.
    fn serve(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        connection.queued = false;
        let progress = self.answer_some(index).unwrap_or_else(|error| {
            tracing::debug!(%error, "a connection is lost");
            Progress::Closed
        });
        match progress {
            Progress::Waiting => {}
            Progress::More => self.enqueue(index),
            Progress::Closed => self.close(index),
        }
    }

    fn answer_some(&mut self, index: usize) -> io::Result<Progress> {
        let mut open = true;
        let connection = &mut self.connections[index];
        if connection.input > Input::Nothing && connection.accepts_work() {
            open = connection.fill()?;
        }
        let mut answered = 0;
        while answered < REQUESTS_PER_TURN && self.connections[index].accepts_work() {
            if !self.answer_one(index) {
                break;
            }
            answered += 1;
        }
        let connection = &mut self.connections[index];
        let mut flushed = connection.flush()?;
        if self.watchers.catch_up(connection) {
            flushed = connection.flush()?;
        }
        if flushed == Progress::Closed || !open {
            return Ok(Progress::Closed);
        }
        // A frame is left if its turn was over, or if there was no room for the answer before the flush.
        let more = connection.has_frame() || connection.input > Input::Nothing;
        Ok(if more && connection.accepts_work() { Progress::More } else { Progress::Waiting })
    }

    /// Answers the next frame of a connection; `false` if there is none.
    fn answer_one(&mut self, index: usize) -> bool {
        let now = self.now();
        let connection = &mut self.connections[index];
        let (len, result) = match connection.frame() {
            Ok(None) => return false,
            Ok(Some(frame)) => {
                let result = match (frame.kind, connection.peer) {
                    (FrameKind::Request, Peer::Session(session)) => {
                        match maru_protocol::decode::<Request<'_>>(frame.body) {
                            Ok(request) => {
                                let reply = self.directory.apply(now, session, &request);
                                let over = matches!(
                                    (&request.body, &reply.result),
                                    (Body::Goodbye, Ok(_)) | (_, Err(Refusal::SessionEnded))
                                );
                                Ok((reply, over))
                            }
                            Err(error) => Err(refusal(&error)),
                        }
                    }
                    (kind @ (FrameKind::Hello | FrameKind::Watch), Peer::Stranger) => {
                        let body = frame.body.to_vec();
                        connection.consume(frame.len_bytes());
                        match kind {
                            FrameKind::Hello => self.hello(index, now, &body),
                            _ => self.watch(index, &body),
                        }
                        return true;
                    }
                    (kind, peer) => Err(Refusal::Unexpected {
                        reason: format!("{kind:?} where {} is expected", peer.may_send()),
                    }),
                };
                (frame.len_bytes(), result)
            }
            Err(error) => (0, Err(refusal(&error))),
        };
        let connection = &mut self.connections[index];
        connection.consume(len);
        match result {
            Ok((reply, over)) => {
                connection.send(FrameKind::Reply, &reply);
                // A connection lasts as long as its session, or nothing would limit their number.
                if over {
                    connection.close_after_sending();
                }
                self.tell();
            }
            Err(refusal) => self.refuse(index, &refusal),
        }
        true
    }

    /// Tells the peer why its connection is closed.
    fn refuse(&mut self, index: usize, refusal: &Refusal) {
        let connection = &mut self.connections[index];
        tracing::info!(peer = ?connection.peer, %refusal, "closing a connection");
        connection.send(FrameKind::Refused, refusal);
        connection.close_after_sending();
    }

    fn hello(&mut self, index: usize, now: Millis, body: &[u8]) {
        let welcome = maru_protocol::decode::<Hello<'_>>(body)
            .map_err(|error| refusal(&error))
            .and_then(|hello| self.open_session(index, now, &hello));
        match welcome {
            Ok(welcome) => self.connections[index].send(FrameKind::Welcome, &welcome),
            Err(refusal) => self.refuse(index, &refusal),
        }
    }

    fn open_session(
        &mut self,
        index: usize,
        now: Millis,
        hello: &Hello<'_>,
    ) -> Result<Welcome, Refusal> {
        let fresh = random().map_err(|error| Refusal::Unexpected { reason: error.to_string() })?;
        let opened = self.directory.hello(now, hello, Secret(fresh))?;
        tracing::debug!(
            session = %opened.session, instance = hello.instance, resumed = opened.resumed, "hello"
        );
        // The instance may be back before its old connection was seen to drop.
        if let Some(old) = self.by_session.insert(opened.session, index) {
            self.connections[old].peer = Peer::Stranger;
            self.close(old);
        }
        let connection = &mut self.connections[index];
        connection.peer = Peer::Session(opened.session);
        if !opened.resumed {
            let slot = self.processes.vacant_entry();
            let token = process_token(slot.key());
            let (registry, session) = (self.poll.registry(), opened.session);
            if let Some(process) = Process::peer(&connection.stream, session, registry, token) {
                slot.insert(process);
            }
        }
        let config = self.directory.config();
        Ok(Welcome {
            session: opened.session,
            secret: opened.secret,
            resumed: opened.resumed,
            epoch: config.epoch,
            limits: Limits {
                lease_ms: config.lease_ms,
                resume_ms: config.resume_ms,
                frame_bytes_max: FRAME_BYTES_MAX,
                batch_max: config.batch_max,
                window: config.window,
            },
            topology: self.pool.topology.clone(),
        })
    }

    /// Makes a connection its session's watcher.
    fn watch(&mut self, index: usize, body: &[u8]) {
        let watched = maru_protocol::decode::<Watch<'_>>(body).map_err(|error| refusal(&error));
        let watched = watched.and_then(|watch| {
            self.directory.watch(watch.session, watch.secret)?;
            tracing::debug!(session = %watch.session, instance = ?watch.instance, "watch");
            Ok(watch.session)
        });
        match watched {
            Ok(session) => {
                if let Some(old) = self.watchers.begin(session, index) {
                    self.connections[old].peer = Peer::Stranger;
                    self.close(old);
                }
                let epoch = self.directory.config().epoch;
                let connection = &mut self.connections[index];
                connection.peer = Peer::Watcher(session);
                connection.send(FrameKind::Event, &Event::Watching { epoch });
            }
            Err(refusal) => self.refuse(index, &refusal),
        }
    }

    /// Tells those who watch what has left the directory.
    fn tell(&mut self) {
        let gone = self.directory.take_gone();
        for index in self.watchers.tell(&gone, &mut self.connections) {
            self.enqueue(index);
        }
    }

    fn close(&mut self, index: usize) {
        let Some(mut connection) = self.connections.try_remove(index) else {
            return;
        };
        let _ = self.poll.registry().deregister(connection.stream.source());
        match connection.peer {
            Peer::Stranger => {}
            Peer::Session(session) => {
                self.by_session.remove(&session);
                self.directory.disconnected(self.now(), session);
            }
            Peer::Watcher(session) => {
                self.watchers.end(session);
                self.directory.unwatch(session);
            }
        }
    }

    fn process_died(&mut self, process: usize) {
        if let Some(process) = self.processes.try_remove(process) {
            process.deregister(self.poll.registry());
            if self.directory.writer_dead(self.now(), process.session) {
                tracing::info!(session = %process.session, "an instance has died; cleaning up");
            }
            // A child that it forked may hold the other end open.
            if let Some(index) = self.by_session.get(&process.session).copied() {
                self.close(index);
            }
            self.next_tick = Instant::now();
        }
    }

    fn tick(&mut self, now: Millis) {
        for listener in self.crowded.clone() {
            self.accept(listener);
        }
        let tick = self.directory.tick(now);
        self.next_tick = if tick.more { Instant::now() } else { Instant::now() + TICK };
        if let Some(violation) = tick.violation {
            tracing::error!(%violation, "a rule is broken: please report this");
        }
        self.tell();
        let mut over = self.watchers.ended(&self.directory);
        for session in tick.expired {
            tracing::info!(%session, "the lease of a session ran out");
            over.extend(self.by_session.get(&session));
        }
        for index in over {
            self.refuse(index, &Refusal::SessionEnded);
            self.enqueue(index);
        }
        if tick.more {
            return;
        }
        self.close_strangers();
        let Self { processes, directory, poll, .. } = self;
        processes.retain(|_, process| {
            let known = directory.is_known(process.session);
            if !known {
                process.deregister(poll.registry());
            }
            known
        });
        if let Some(problem) = self.pool.reap_populates() {
            tracing::warn!(
                problem,
                "bringing the pool's memory in failed; first writes are slower"
            );
        }
    }

    /// Closes connections that did not say in time whose they are.
    fn close_strangers(&mut self) {
        let late = |connection: &Connection| {
            connection.peer == Peer::Stranger && connection.opened.elapsed() > HELLO_TIMEOUT
        };
        let late: Vec<usize> = self
            .connections
            .iter()
            .filter_map(|(index, connection)| late(connection).then_some(index))
            .collect();
        for index in late {
            let reason = "neither Hello nor Watch came in time".to_owned();
            self.refuse(index, &Refusal::Unexpected { reason });
            self.enqueue(index);
        }
    }
}

/// What a peer is told whose frame cannot be read.
fn refusal(error: &FrameError) -> Refusal {
    match error {
        FrameError::Version { found } => Refusal::Version { server: VERSION, client: *found },
        other => Refusal::Malformed { reason: other.to_string() },
    }
}

fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    let io = |error: getrandom::Error| io::Error::other(error.to_string());
    getrandom::fill(&mut bytes).map_err(io).map_err(StartError::io("draw random bytes"))?;
    Ok(bytes)
}
