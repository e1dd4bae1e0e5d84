//! Real processes of the `maru` program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use maru_client::{Client, ClientConfig};
use maru_protocol::Endpoint;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;

use crate::WATCHDOG;
use crate::pool::LOOK;

/// What a server says in its log when it finds its own books wrong, and any program when it panics.
const ALARMS: [&str; 2] = ["a rule is broken", "panicked at"];

/// The `maru` program.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
}

impl Program {
    /// The one at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// What runs it so.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(args);
        // Whatever is set for programs on this machine is not meant for tests.
        let names = std::env::vars_os().map(|(name, _)| name);
        for name in names.filter(|name| name.to_string_lossy().starts_with("MARU_")) {
            command.env_remove(name);
        }
        command
    }
}

/// Polls until it is so. Fails after a time that only a hang takes.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WATCHDOG, "{what}: it does not happen");
        std::thread::sleep(LOOK);
    }
}

/// A path as a flag has it.
#[must_use]
#[track_caller]
pub fn text(path: &Path) -> &str {
    path.to_str().expect("the paths of tests are text")
}

/// A `maru serve` with a pool of its own; killed when dropped.
#[derive(Debug)]
pub struct Serving {
    /// Its process.
    pub child: Child,
    /// Where its pool, store, socket and log lie.
    pub folder: TempDir,
    program: Program,
    args: Vec<String>,
}

impl Serving {
    /// Serves a pool of this size, with more flags, and waits until it listens.
    #[must_use]
    pub fn start(program: &Program, folder: TempDir, size: &str, flags: &[&str]) -> Self {
        let path = |name: &str| text(&folder.path().join(name)).to_owned();
        let (pool, socket) = (format!("{}:{size}", path("pool")), path("socket"));
        let args = [&["serve", "--pool", &pool, "--socket", &socket], flags].concat();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let child = spawn_server(program, &args, folder.path());
        let mut serving = Self { child, folder, program: program.clone(), args };
        wait_until("the server listens", || {
            let ended = serving.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "the server ended: {}", serving.log());
            serving.connect().is_some()
        });
        serving
    }

    /// `kill -9`, and waits for its end.
    pub fn kill(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::KILL).expect("it is not waited for yet");
        self.child.wait().expect("it is our child");
    }

    /// Starts it again as it was, once it has ended. Does not wait until it listens.
    pub fn restart(&mut self) {
        self.child = spawn_server(&self.program, &self.args, self.folder.path());
    }

    /// Its Unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Its pool.
    #[must_use]
    pub fn pool(&self) -> PathBuf {
        self.folder.path().join("pool")
    }

    /// A client, if the server is there.
    #[must_use]
    pub fn connect(&self) -> Option<Client> {
        let (endpoint, instance) = (Endpoint::Unix(self.socket()), "test".to_owned());
        let timeout = WATCHDOG / 2;
        Client::connect(ClientConfig { endpoint, instance, timeout, ..Default::default() }).ok()
    }

    /// A client.
    #[must_use]
    #[track_caller]
    pub fn client(&self) -> Client {
        self.connect().expect("the server lets clients in")
    }

    /// What it has said so far, in all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// Fails if one of its lives has found its own books wrong, or has panicked.
    #[track_caller]
    pub fn assert_no_alarm(&self) {
        assert_no_alarm(&self.log());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn_server(program: &Program, args: &[String], folder: &Path) -> Child {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let log = File::options().create(true).append(true).open(folder.join("server.log"));
    let log = log.expect("its folder can be written to");
    program.command(&args).stderr(log).spawn().expect("the program can be started")
}

#[track_caller]
fn assert_no_alarm(log: &str) {
    let alarm = log.lines().find(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
    assert_eq!(alarm, None);
}

/// A `maru replay` over a running server, and its four instances; killed when dropped.
#[derive(Debug)]
pub struct Replaying {
    /// Its instances, as they were at the beginning; none if it was over too soon.
    pub instances: Vec<Instance>,
    child: Child,
    folder: PathBuf,
}

/// One instance of a replay.
#[derive(Debug, Clone)]
pub struct Instance {
    /// What the server knows it by.
    pub name: String,
    /// Its process.
    pub pid: Pid,
}

/// What a replay came to, of what `maru replay --json` says.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "they are the program's own")]
pub struct Replayed {
    pub requests: u64,
    pub bytes_verified: u64,
    pub wrong_bytes: u64,
    pub instances_lost: u64,
    pub pins_left: u64,
    pub reservations_left: u64,
    pub pages_lost: i64,
}

#[derive(Deserialize)]
struct Output {
    shared: Replayed,
}

impl Replayed {
    /// How many things are left of its instances.
    #[must_use]
    pub const fn left_behind(&self) -> u64 {
        self.pins_left + self.reservations_left + self.pages_lost.unsigned_abs()
    }
}

impl Replaying {
    /// Starts one over the server at `url`, with more flags, and waits until all instances are there
    /// and one was granted a page. Its output, and what is acknowledged to its instances, is kept in
    /// `folder`, which must be new.
    #[must_use]
    pub fn start(
        program: &Program,
        folder: &Path,
        url: &str,
        flags: &[&str],
        watcher: &Client,
    ) -> Self {
        let ledgers = folder.join("ledgers");
        fs::create_dir_all(&ledgers).expect("the folder can be made");
        let file = |name| File::create(folder.join(name)).expect("the folder can be written to");
        let args = ["replay", "--l1", "maru", "--json", "--maru-server-url", url];
        let args = [&args[..], &["--ledger", text(&ledgers)], flags].concat();
        let granted = || watcher.stats().expect("the server answers").counters.granted;
        let before = granted();
        let mut command = program.command(&args);
        let child = command.stdout(file("replay.json")).stderr(file("replay.log")).spawn();
        let child = child.expect("the program can be started");
        let mut replaying = Self { instances: Vec::new(), child, folder: folder.to_owned() };
        // A server or an instance that is killed before fails the replay, as it should.
        wait_until("the replay begins", || granted() > before || replaying.is_over());
        let name = |index| format!("{}-shared-{index}", replaying.child.id());
        let pids = (0..).zip(replaying.children());
        replaying.instances =
            pids.map(|(index, pid)| Instance { name: name(index), pid }).collect();
        replaying
    }

    /// Where its instances write down what is acknowledged to them.
    #[must_use]
    pub fn ledgers(&self) -> PathBuf {
        self.folder.join("ledgers")
    }

    fn children(&self) -> Vec<Pid> {
        let replay = self.child.id();
        let path = format!("/proc/{replay}/task/{replay}/children");
        let listed = fs::read_to_string(path).unwrap_or_default();
        let pid = |word: &str| Pid::from_raw(word.parse().ok()?);
        listed.split_whitespace().filter_map(pid).collect()
    }

    /// Whether it has ended.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Waits for its end, and fails if that is not good, or if a byte was wrong or anything is left
    /// of the instances.
    #[must_use]
    #[track_caller]
    pub fn end(mut self) -> Replayed {
        let status = self.child.wait().expect("it is our child");
        let log = self.log();
        assert!(status.success(), "the replay ended with {status}: {log}");
        assert_no_alarm(&log);
        let output = File::open(self.folder.join("replay.json")).expect("it was made");
        let Output { shared: replayed } = serde_json::from_reader(output).expect("it prints JSON");
        assert_eq!((replayed.wrong_bytes, replayed.left_behind()), (0, 0), "{replayed:?}");
        replayed
    }

    /// What it and its instances have complained about.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("replay.log")).unwrap_or_default()
    }
}

impl Drop for Replaying {
    fn drop(&mut self) {
        // One that is stopped would not see that its parent is gone. As long as that lives, these
        // numbers are its children's.
        for pid in self.children() {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
