//! The event loop.

mod door;
mod open;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use maru_directory::Millis;
use maru_protocol::{Body, FrameError, FrameKind, Key, Refusal, Request, SessionId, VERSION};
use mio::{Events, Poll, Token, Waker};
use slab::Slab;

use crate::connection::{Connection, Input, Peer};
use crate::events::Watchers;
use crate::listener::Listener;
use crate::pool::Pool;
use crate::process::{self, Fate, Process};
use crate::scrub::{Scrubber, Verdict};
use crate::service::{Found, Service};
use crate::store::{FileDisk, Progress, StoreError};
use crate::{ServerConfig, StartError};

/// How often time passes for the directory: well under the second in which the dead are cleaned up
/// after.
const TICK: Duration = Duration::from_millis(50);

/// Events taken at a time: all that there can be, so that nobody is heard too late for a tick.
const EVENTS: usize = 4096;

/// Requests of one connection that are answered before the others get their turn.
const REQUESTS_PER_TURN: u32 = 32;

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
    service: Service<FileDisk>,
    found: Found,
    scrubber: Scrubber,
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
        Self::start_and_tell(config, &mut |_| {})
    }

    /// The same; `progress` is told how far reading the store has come.
    pub fn start_and_tell(
        config: &ServerConfig,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, StartError> {
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
        config.directory.check()?;
        let started = Instant::now();
        let (service, mut memory, found) = open::open(config, progress)?;
        memory.begin_epoch(service.epoch())?;
        if config.populate {
            memory.populate()?;
        }
        let poll = Poll::new().map_err(StartError::io("wait for events"))?;
        for (index, listener) in listeners.iter_mut().enumerate() {
            let token = Token(FIRST_LISTENER + index);
            let registered = listener.register(poll.registry(), token);
            registered.map_err(StartError::io("wait for connections"))?;
        }
        let waker = Waker::new(poll.registry(), WAKER).map_err(StartError::io("make a waker"))?;
        let stopper = Stopper { stop: Arc::new(AtomicBool::new(false)), waker: Arc::new(waker) };
        let mut server = Self {
            poll,
            stopper,
            listeners,
            crowded: BTreeSet::new(),
            connections: Slab::new(),
            queue: VecDeque::new(),
            by_session: HashMap::new(),
            watchers: Watchers::default(),
            processes: Slab::new(),
            service,
            found,
            scrubber: Scrubber::new(config.scrub_bytes_per_second, started),
            pool: memory,
            started,
            next_tick: started,
        };
        server.look_after_processes();
        Ok(server)
    }

    /// Waits for the death of the processes that the server before this one knew.
    fn look_after_processes(&mut self) {
        for (session, id) in self.service.directory().processes_before() {
            let token = process_token(self.processes.vacant_key());
            let watched = match process::fate(id) {
                Fate::Dead => {
                    self.service.writer_dead(self.now(), session);
                    continue;
                }
                Fate::Alive(found) => found.wait(session, self.poll.registry(), token).ok(),
                Fate::Unknown => None,
            };
            match watched {
                Some(process) => drop(self.processes.insert(process)),
                None => self.service.process_lost(session),
            }
        }
    }

    /// What this server found in its store.
    #[must_use]
    pub const fn found(&self) -> Found {
        self.found
    }

    /// Whether it grants no page for the time of a quarantine, since somebody may still write to the
    /// pool and it is not known where.
    #[must_use]
    pub fn withholds(&self) -> bool {
        self.service.directory().is_withheld()
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

    /// Serves until it is stopped, or until nothing can be stored for another reason than a lack of
    /// space: then a server that is started anew goes on from what is.
    pub fn run(mut self) -> io::Result<()> {
        let served = self.serve_all().and_then(|()| self.service.close().map_err(broken));
        // After an error the next server goes on with what is.
        if served.is_ok() {
            self.pool.close(self.service.directory().nobody_holds());
        }
        served
    }

    fn serve_all(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut turn = Vec::new();
        while !self.stopper.stop.load(Ordering::Relaxed) {
            // A tick is of a moment before the poll: after this process was stopped for longer than a
            // lease, those who spoke meanwhile are heard first.
            let (now, due_in) = (self.now(), self.next_tick.checked_duration_since(Instant::now()));
            let idle_until =
                self.scrubber.due().map_or(self.next_tick, |due| due.min(self.next_tick));
            let wait = idle_until.saturating_duration_since(Instant::now());
            let wait = if self.queue.is_empty() { wait } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                self.dispatch(event);
            }
            // One turn for everybody who is queued now; who has more to do queues again. Nothing of it
            // is let out before it is stored.
            turn.extend(self.queue.drain(..));
            for index in &turn {
                self.hear(*index)?;
            }
            self.scrub();
            self.service.settle().map_err(broken)?;
            for index in turn.drain(..) {
                self.speak(index);
            }
            if due_in.is_none() {
                self.tick(now)?;
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
            // Its work is done: the loop looks whether it is to stop, and what was read.
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

    /// Reads from one connection, and answers some of what came.
    fn hear(&mut self, index: usize) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(index) else {
            return Ok(());
        };
        connection.queued = false;
        if connection.input > Input::Nothing && connection.accepts_work() {
            match connection.fill() {
                Ok(open) => connection.ended |= !open,
                Err(error) => {
                    tracing::debug!(%error, "a connection is lost");
                    connection.ended = true;
                }
            }
        }
        let mut answered = 0;
        while answered < REQUESTS_PER_TURN
            && self.connections.get(index).is_some_and(Connection::accepts_work)
            && self.answer_one(index)?
        {
            answered += 1;
        }
        Ok(())
    }

    /// Lets out what one connection was answered.
    fn speak(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let mut flushed = connection.flush();
        if flushed.is_ok() && self.watchers.catch_up(connection) {
            flushed = connection.flush();
        }
        match flushed {
            Ok(true) => {
                // A frame is left if its turn was over, or if there was no room for the answer.
                let more = connection.has_frame() || connection.input > Input::Nothing;
                if more && connection.accepts_work() {
                    self.enqueue(index);
                }
            }
            Ok(false) => self.close(index),
            Err(error) => {
                tracing::debug!(%error, "a connection is lost");
                self.close(index);
            }
        }
    }

    /// Answers the next frame of a connection; `false` if there is none.
    fn answer_one(&mut self, index: usize) -> io::Result<bool> {
        let now = self.now();
        let connection = &mut self.connections[index];
        let (len, result) = match connection.frame() {
            Ok(None) => return Ok(false),
            Ok(Some(frame)) => {
                let result = match (frame.kind, connection.peer) {
                    (FrameKind::Request, Peer::Session(session)) => {
                        match maru_protocol::decode::<Request<'_>>(frame.body) {
                            Ok(request) => {
                                let reply = self.service.apply(now, session, &request);
                                let reply = reply.map_err(broken)?;
                                let over = matches!(
                                    (&request.body, &reply.result),
                                    (Body::Goodbye, Ok(_))
                                        | (_, Err(Refusal::SessionEnded | Refusal::Claim { .. }))
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
                        return Ok(true);
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
        Ok(true)
    }

    /// Tells the peer why its connection is closed.
    fn refuse(&mut self, index: usize, refusal: &Refusal) {
        let connection = &mut self.connections[index];
        tracing::info!(peer = ?connection.peer, %refusal, "closing a connection");
        connection.send(FrameKind::Refused, refusal);
        connection.close_after_sending();
    }

    /// Tells those who watch what has left the directory.
    fn tell(&mut self) {
        let gone = self.service.take_gone();
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
                self.service.disconnected(self.now(), session);
            }
            Peer::Watcher(session) => {
                self.watchers.end(session);
                self.service.unwatch(session);
            }
        }
    }

    fn process_died(&mut self, process: usize) {
        if let Some(process) = self.processes.try_remove(process) {
            process.deregister(self.poll.registry());
            if self.service.writer_dead(self.now(), process.session) {
                tracing::info!(session = %process.session, "an instance has died; cleaning up");
            }
            // A child that it forked may hold the other end open.
            if let Some(index) = self.by_session.get(&process.session).copied() {
                self.close(index);
            }
            self.next_tick = Instant::now();
        }
    }

    /// Condemns what was found bad, and has the next chunk looked at.
    fn scrub(&mut self) {
        if let Some(Verdict { look, flaw: Some(flaw) }) = self.scrubber.take_verdict()
            && let Some(key) = self.service.condemn(look.handle)
        {
            let key = Key::new(&key).map_or_else(|error| error.to_string(), |key| key.to_string());
            let (offset, bytes) = (look.handle.offset, look.length);
            tracing::error!(
                key,
                offset,
                bytes,
                flaw,
                "a chunk is damaged; its page is used no more"
            );
            self.tell();
        }
        if let Some(look) = self.scrubber.next(Instant::now(), &mut self.service) {
            self.scrubber.read(look, &self.stopper.waker, || self.pool.mapping());
        }
    }

    fn tick(&mut self, now: Millis) -> io::Result<()> {
        for listener in self.crowded.clone() {
            self.accept(listener);
        }
        self.service.look_at_vanished(now, process::is_stopped);
        let tick = self.service.tick(now).map_err(broken)?;
        self.next_tick = if tick.more { Instant::now() } else { Instant::now() + TICK };
        if let Some(violation) = tick.violation {
            tracing::error!(%violation, "a rule is broken: please report this");
        }
        self.tell();
        let mut over = self.watchers.ended(self.service.directory());
        for session in tick.expired {
            tracing::info!(%session, "the lease of a session ran out");
            over.extend(self.by_session.get(&session));
        }
        for index in over {
            self.refuse(index, &Refusal::SessionEnded);
            self.enqueue(index);
        }
        if tick.more {
            // Whoever was just answered may wait for this core.
            std::thread::yield_now();
            return Ok(());
        }
        self.close_strangers();
        let Self { processes, service, poll, .. } = self;
        processes.retain(|_, process| {
            let known = service.directory().is_known(process.session);
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
        Ok(())
    }
}

/// Why a server cannot go on.
fn broken(error: StoreError) -> io::Error {
    io::Error::other(error)
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
