//! What stands between a client and a server, and misbehaves on command.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use maru_protocol::{Endpoint, FrameKind, Refusal, Reply, Request, SessionId, Welcome};

use crate::WATCHDOG;
use crate::rewrite::{
    frame_len, framed, leave_out, move_back, move_outside, put_misses, read, shorten,
};

/// Stands for the name of every request.
pub const ANY: &str = "*";

/// What happens to a request or to its reply.
///
/// A connection that a fault cuts is cut at the client's end only. The server sees the client again
/// when it resumes its session, so that no lease runs while a slow machine connects again;
/// [`FaultProxy::cut_all`] is what both ends see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The request never reaches the server; the connection is cut. Lost before it was applied.
    LoseRequest,
    /// The server applies the request; its reply is swallowed, and the connection is cut. Lost after
    /// it was applied.
    LoseReply,
    /// The server applies the request; its reply is swallowed, and the connection stays. The caller
    /// runs into its timeout and cannot know what came of it.
    SwallowReply,
    /// The list in the answer lacks its last element, though the server has done what that told of.
    /// An answer without a list goes as it is.
    ShortReply,
    /// Of the keys of an acquire every second is a miss, from the second on.
    ///
    /// The server is not asked for them, and the misses are put into its answer: what it counts as
    /// pinned is what the client was told. There is no such thing for a commit, for which the server
    /// would go on holding what the client was told is not reserved.
    PartialPin,
    /// The pages that are granted, committed or found lie outside of the pool. The proxy knows them
    /// when they are given back, and the server takes them.
    Unresolvable,
    /// The server never sees the request; this is the answer.
    Refuse(Refusal),
    /// The reply is held until [`FaultProxy::release_held`]; replies behind it overtake it. If the
    /// server hangs up meanwhile, the client sees that only behind the reply.
    Hold,
}

/// A proxy on a Unix socket of its own that understands frames. Without faults all bytes pass as
/// they are, and so does always what is neither a request nor a reply, or unknown.
///
/// A request meets one fault at most: when it is sent again, it passes. All threads and connections
/// end with the proxy.
pub struct FaultProxy {
    shared: Arc<Shared>,
    listener: UnixListener,
    accepting: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// `None` while there is no server.
    upstream: Option<PathBuf>,
    /// Counts up when connections are cut: one that is just being made is cut too.
    cuts: u64,
    /// Nobody is let in.
    shut: bool,
    closed: bool,
    armed: Vec<Armed>,
    /// Which requests met which fault, so that none does twice.
    met: HashMap<(Option<SessionId>, u64), Fault>,
    seen: BTreeMap<&'static str, u64>,
    held: Vec<(Arc<Connection>, Vec<u8>)>,
    connections: Vec<Arc<Connection>>,
    pumps: Vec<JoinHandle<()>>,
}

struct Armed {
    on: &'static str,
    fault: Fault,
    times: u32,
}

/// A client's connection, and the server's that belongs to it.
struct Connection {
    client: UnixStream,
    server: UnixStream,
    /// Held while a frame is written to the client: several threads do.
    writing: Mutex<()>,
    session: OnceLock<SessionId>,
    /// What becomes of the replies to these requests, and how many keys a partial one had.
    awaited: Mutex<HashMap<u64, (Fault, usize)>>,
    /// The client's end was cut.
    cut: AtomicBool,
    /// The server hung up, which the client will see behind the replies that are held.
    over: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that panics elsewhere still needs its proxy to end.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.shared.state);
        f.debug_struct("FaultProxy")
            .field("socket", &self.socket())
            .field("upstream", &state.upstream)
            .field("seen", &state.seen)
            .field("held", &state.held.len())
            .finish_non_exhaustive()
    }
}

impl FaultProxy {
    /// A proxy for the server at the socket `upstream`.
    #[must_use]
    pub fn start(upstream: &Path) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").expect("/dev/shm can be written to");
        let listener = UnixListener::bind(folder.path().join("proxy")).expect("the folder is new");
        let shared = Arc::new(Shared::default());
        lock(&shared.state).upstream = Some(upstream.to_owned());
        let accepting = {
            let shared = Arc::clone(&shared);
            let listener = listener.try_clone().expect("there are descriptors left");
            std::thread::spawn(move || accept(&shared, &listener))
        };
        Self { shared, listener, accepting: Some(accepting), folder }
    }

    /// Where the proxy listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("proxy")
    }

    /// Where a client connects to.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket())
    }

    /// Has the next `times` requests of the kind `on` meet `fault`: a name of
    /// [`maru_protocol::Body::name`], or [`ANY`]. What was injected first is met first.
    pub fn inject(&self, on: &'static str, fault: Fault, times: u32) {
        assert!(fault != Fault::PartialPin || on == "acquire", "{on} cannot be pinned in part");
        lock(&self.shared.state).armed.push(Armed { on, fault, times });
    }

    /// Takes back what was injected and not met. What is held stays held.
    pub fn disarm(&self) {
        lock(&self.shared.state).armed.clear();
    }

    /// How many requests of this kind came, or of all with [`ANY`]; one sent again counts again.
    #[must_use]
    pub fn seen(&self, name: &str) -> u64 {
        lock(&self.shared.state).seen(name)
    }

    /// Waits until `count` requests of this kind have come.
    pub fn wait_seen(&self, name: &str, count: u64) {
        self.wait(&format!("{count} of {name}"), |state| state.seen(name) >= count);
    }

    /// How many requests have met a fault.
    #[must_use]
    pub fn met(&self) -> usize {
        lock(&self.shared.state).met.len()
    }

    /// Waits until `count` replies are held.
    pub fn wait_held(&self, count: usize) {
        self.wait(&format!("{count} held replies"), |state| state.held.len() >= count);
    }

    /// Sends the replies that are held.
    pub fn release_held(&self) {
        // Under the lock, so that no connection ends between two replies.
        let mut state = lock(&self.shared.state);
        let held = std::mem::take(&mut state.held);
        for (connection, frame) in &held {
            connection.to_client(frame);
        }
        for (connection, _) in &held {
            if connection.over.load(Ordering::SeqCst) {
                state.end(connection);
            }
        }
    }

    /// All connections drop, at both ends; what is held is lost.
    pub fn cut_all(&self) {
        lock(&self.shared.state).cut_all();
    }

    /// Lets nobody in: who connects waits, as at a server that hangs. Connections stay.
    pub fn stop_accepting(&self) {
        lock(&self.shared.state).shut = true;
    }

    /// Lets in who waits.
    pub fn resume_accepting(&self) {
        lock(&self.shared.state).shut = false;
        self.shared.changed.notify_all();
    }

    /// Cuts all connections; the next ones go to the server at this socket, or with `None` are closed
    /// at once: the server is gone. See [`crate::next_epoch`].
    pub fn set_upstream(&self, upstream: Option<&Path>) {
        let mut state = lock(&self.shared.state);
        state.upstream = upstream.map(Path::to_owned);
        state.cut_all();
    }

    fn wait(&self, what: &str, enough: impl Fn(&State) -> bool) {
        let state = lock(&self.shared.state);
        let waited =
            self.shared.changed.wait_timeout_while(state, WATCHDOG, |state| !enough(state));
        let (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
        let seen = state.seen.clone();
        drop(state);
        assert!(!result.timed_out(), "{what} do not come; seen: {seen:?}");
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let mut threads = Vec::from_iter(self.accepting.take());
        let mut state = lock(&self.shared.state);
        state.cut_all();
        threads.append(&mut state.pumps);
        drop(state);
        for thread in threads {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a thread of the proxy panicked");
        }
    }
}

impl State {
    fn seen(&self, name: &str) -> u64 {
        match name {
            ANY => self.seen.values().sum(),
            name => self.seen.get(name).copied().unwrap_or(0),
        }
    }

    /// Counts a request, and says what becomes of it.
    fn meet(&mut self, session: Option<SessionId>, request: &Request<'_>) -> Option<Fault> {
        let name = request.body.name();
        *self.seen.entry(name).or_insert(0) += 1;
        let id = (session, request.seq);
        if let Some(met) = self.met.get(&id) {
            // The server answers for the keys that it was asked for the first time.
            return (*met == Fault::PartialPin).then_some(Fault::PartialPin);
        }
        let fits = |armed: &&mut Armed| armed.times > 0 && [name, ANY].contains(&armed.on);
        let armed = self.armed.iter_mut().find(fits)?;
        armed.times -= 1;
        self.met.insert(id, armed.fault.clone());
        Some(armed.fault.clone())
    }

    fn cut_all(&mut self) {
        self.cuts += 1;
        self.held.clear();
        for connection in self.connections.drain(..) {
            connection.close();
        }
    }

    /// The server hung up on this connection.
    fn end(&mut self, connection: &Arc<Connection>) {
        connection.over.store(true, Ordering::SeqCst);
        if !self.held.iter().any(|(held, _)| Arc::ptr_eq(held, connection)) {
            connection.close();
            self.connections.retain(|other| !Arc::ptr_eq(other, connection));
        }
    }
}

impl Connection {
    fn to_client(&self, bytes: &[u8]) {
        let _writing = lock(&self.writing);
        // A client that is gone is seen by whoever reads from it.
        let _ = (&self.client).write_all(bytes);
    }

    fn to_server(&self, bytes: &[u8]) {
        // Likewise.
        let _ = (&self.server).write_all(bytes);
    }

    /// Hangs up on the client; the server does not see it.
    fn hang_up(&self) {
        self.cut.store(true, Ordering::SeqCst);
        let _ = self.client.shutdown(Shutdown::Both);
    }

    fn close(&self) {
        let _ = (self.client.shutdown(Shutdown::Both), self.server.shutdown(Shutdown::Both));
    }
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    while let Ok((client, _)) = listener.accept() {
        let waited = shared.changed.wait_while(lock(&shared.state), |it| it.shut && !it.closed);
        let state = waited.unwrap_or_else(PoisonError::into_inner);
        let (upstream, cuts) = (state.upstream.clone(), state.cuts);
        // Connecting may take its time.
        drop(state);
        let Some(Ok(server)) = upstream.map(UnixStream::connect) else {
            continue;
        };
        // A client that reads nothing must not keep the proxy from ending.
        let _ = client.set_write_timeout(Some(WATCHDOG));
        let mut state = lock(&shared.state);
        if state.closed || state.cuts != cuts {
            continue;
        }
        let connection = Arc::new(Connection {
            client,
            server,
            writing: Mutex::default(),
            session: OnceLock::new(),
            awaited: Mutex::default(),
            cut: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        state.connections.push(Arc::clone(&connection));
        state.pumps.retain(|pump| !pump.is_finished());
        for pump in [Shared::pump_requests, Shared::pump_replies] {
            let (shared, connection) = (Arc::clone(shared), Arc::clone(&connection));
            state.pumps.push(std::thread::spawn(move || pump(&shared, &connection)));
        }
    }
}

impl Shared {
    fn pump_requests(&self, connection: &Arc<Connection>) {
        pump(&connection.client, |frame| self.request(connection, frame));
        if !connection.cut.load(Ordering::SeqCst) {
            let _ = connection.server.shutdown(Shutdown::Both);
        }
    }

    fn pump_replies(&self, connection: &Arc<Connection>) {
        pump(&connection.server, |frame| {
            self.reply(connection, frame);
            ControlFlow::Continue(())
        });
        lock(&self.state).end(connection);
    }

    fn request(&self, connection: &Connection, frame: &[u8]) -> ControlFlow<()> {
        let Some(mut request) = read::<Request<'_>>(FrameKind::Request, frame) else {
            connection.to_server(frame);
            return ControlFlow::Continue(());
        };
        let fault = lock(&self.state).meet(connection.session.get().copied(), &request);
        self.changed.notify_all();
        let (seq, mut changed) = (request.seq, false);
        match fault {
            Some(Fault::LoseRequest) => {
                connection.hang_up();
                return ControlFlow::Break(());
            }
            Some(Fault::Refuse(refusal)) => {
                let reply = Reply { seq, result: Err(refusal) };
                connection.to_client(&framed(FrameKind::Reply, &reply));
                return ControlFlow::Continue(());
            }
            Some(fault) => {
                changed = fault == Fault::PartialPin;
                let asked = if changed { leave_out(&mut request.body) } else { 0 };
                lock(&connection.awaited).insert(seq, (fault, asked));
            }
            None => {}
        }
        if move_back(&mut request.body) || changed {
            connection.to_server(&framed(FrameKind::Request, &request));
        } else {
            connection.to_server(frame);
        }
        ControlFlow::Continue(())
    }

    fn reply(&self, connection: &Arc<Connection>, frame: &[u8]) {
        if let Some(welcome) = read::<Welcome>(FrameKind::Welcome, frame) {
            let _ = connection.session.set(welcome.session);
        }
        let reply = read::<Reply>(FrameKind::Reply, frame);
        let awaited = |reply: Reply| {
            let (fault, asked) = lock(&connection.awaited).remove(&reply.seq)?;
            Some((reply, fault, asked))
        };
        let Some((mut reply, fault, asked)) = reply.and_then(awaited) else {
            connection.to_client(frame);
            return;
        };
        match (fault, &mut reply.result) {
            (Fault::LoseReply, _) => return connection.hang_up(),
            (Fault::SwallowReply, _) => return,
            (Fault::Hold, _) => {
                lock(&self.state).held.push((Arc::clone(connection), frame.to_vec()));
                self.changed.notify_all();
                return;
            }
            (Fault::ShortReply, Ok(answer)) => shorten(answer),
            (Fault::PartialPin, Ok(answer)) => put_misses(answer, asked),
            (Fault::Unresolvable, Ok(answer)) => move_outside(answer),
            _ => {}
        }
        connection.to_client(&framed(FrameKind::Reply, &reply));
    }
}

/// Hands the frames that come on, until there are no more.
fn pump(mut from: &UnixStream, mut each: impl FnMut(&[u8]) -> ControlFlow<()>) {
    let (mut received, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        received.extend_from_slice(&buffer[..len]);
        let mut done = 0;
        while let Some(len) = frame_len(&received[done..]) {
            if each(&received[done..done + len]).is_break() {
                return;
            }
            done += len;
        }
        received.drain(..done);
    }
}
