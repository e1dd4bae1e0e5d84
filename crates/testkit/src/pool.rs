//! A server with a small pool, on a thread of this process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use maru_client::{Client, ClientConfig};
use maru_directory::Config;
use maru_protocol::{Endpoint, Stats};
use maru_server::{Embedded, PoolConfig, ServerConfig};

use crate::WATCHDOG;

/// A client's timeout for the tests that run into it.
pub const SHORT: Duration = Duration::from_millis(500);

/// How often something is looked at that is waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(2);

/// A server with a pool in /dev/shm, and a folder for both. Everything is gone with it.
#[derive(Debug)]
pub struct TestPool {
    // Dropped in this order: the server's files lie in the folder.
    server: Option<Embedded>,
    config: ServerConfig,
    folder: tempfile::TempDir,
}

impl TestPool {
    /// A server with a pool of `bytes`, a multiple of 2 MiB.
    #[must_use]
    pub fn start(bytes: u64) -> Self {
        Self::start_with(bytes, |_| {})
    }

    /// The same, with other settings.
    #[must_use]
    pub fn start_with(bytes: u64, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").expect("/dev/shm can be written to");
        let spec = format!("{}:{bytes}", folder.path().join("pool").display());
        let spec = spec.parse().expect("it has a path and a size");
        let mut config = ServerConfig {
            socket: Some(folder.path().join("socket")),
            listen: Some(([127, 0, 0, 1], 0).into()),
            // Longer than any stall of a slow machine, but not than a test's patience.
            directory: Config { quarantine_ms: 5000, ..Config::default() },
            ..ServerConfig::new(PoolConfig::Temporary(spec))
        };
        change(&mut config);
        let mut pool = Self { server: None, config, folder };
        pool.serve();
        pool
    }

    fn serve(&mut self) {
        let server = Embedded::start(&self.config);
        self.server = Some(server.unwrap_or_else(|error| panic!("no server: {error}")));
    }

    /// Stops the server; its pool and its sockets are gone.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Stops the server if it runs, and starts it in a new epoch: with an empty pool, on the same
    /// socket and a new TCP port.
    pub fn restart(&mut self) {
        self.stop();
        next_epoch();
        self.serve();
    }

    /// A path in the pool's folder, for what else a test needs.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The server's Unix socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.config.socket.as_deref().expect("a test pool has a socket")
    }

    /// Where clients connect to.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket().to_owned())
    }

    /// Where clients connect to over TCP.
    #[must_use]
    pub fn tcp_endpoint(&self) -> Endpoint {
        let address = self.server.as_ref().and_then(Embedded::tcp_address);
        Endpoint::Tcp(address.expect("the server runs and listens").to_string())
    }

    /// What a client of this name is told: with more patience than a slow machine needs. See
    /// [`SHORT`].
    #[must_use]
    pub fn config(&self, instance: &str) -> ClientConfig {
        ClientConfig {
            endpoint: self.endpoint(),
            instance: instance.to_owned(),
            timeout: WATCHDOG / 2,
            ..ClientConfig::default()
        }
    }

    /// A client of this name.
    #[must_use]
    pub fn client(&self, instance: &str) -> Client {
        let client = Client::connect(self.config(instance));
        client.unwrap_or_else(|error| panic!("{instance} is not let in: {error}"))
    }

    /// The pool's numbers, as a client of its own is told them.
    #[must_use]
    pub fn stats(&self) -> Stats {
        stats(&self.client("watcher"))
    }

    /// How many pins and reservations all sessions hold.
    #[must_use]
    pub fn holdings(&self) -> (u64, u64) {
        let stats = self.stats();
        (stats.pins, stats.pages_reserved)
    }

    /// Waits until nothing is left. See [`assert_nothing_left`].
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_nothing_left(&self.client("watcher"));
    }
}

/// Waits until nobody holds anything and every byte is free or resident; panics with what is left if
/// that does not come, or if a rule was broken.
#[track_caller]
pub fn assert_nothing_left(watcher: &Client) {
    let start = Instant::now();
    loop {
        let stats = stats(watcher);
        let violations = stats.counters.rule_violations;
        assert_eq!(violations, 0, "a rule is broken: {stats:#?}");
        let held = stats.pins + stats.pages_reserved + stats.pages_quarantined;
        if held == 0 && stats.lost_bytes() == 0 {
            return;
        }
        if start.elapsed() > WATCHDOG {
            let holders = watcher.holders(0, 16).map(|page| page.holders);
            panic!(
                "{} pins, {} reserved and {} quarantined pages, {} lost bytes are left; held by \
                 {holders:#?}",
                stats.pins,
                stats.pages_reserved,
                stats.pages_quarantined,
                stats.lost_bytes()
            );
        }
        std::thread::sleep(LOOK);
    }
}

fn stats(watcher: &Client) -> Stats {
    watcher.stats().unwrap_or_else(|error| panic!("the server does not answer: {error}"))
}

/// Waits until a server that starts has another epoch than any that runs: epochs are seconds.
pub fn next_epoch() {
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let now = second();
    while second() == now {
        std::thread::sleep(LOOK);
    }
}
