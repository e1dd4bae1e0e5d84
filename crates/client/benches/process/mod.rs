//! A server in a process of its own: the benchmark itself, started as one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use maru_client::{Client, ClientConfig, Reserve, Reserved};
use maru_directory::Config;
use maru_memory::DeviceSpec;
use maru_protocol::{Endpoint, Key};
use maru_server::{PoolConfig, Server, ServerConfig};

pub(crate) const ENTRIES: usize = 1_000_000;
pub(crate) const PAGE: u64 = 4096;

/// Keys in one request.
const BATCH: usize = 4096;

/// Starts this program in another role, with its folder.
pub(crate) fn start(role: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(role).arg(folder);
    command
}

/// The folder, if this process was started in this role.
pub(crate) fn is(role: &str) -> Option<PathBuf> {
    let mut args = std::env::args_os().skip(1);
    (args.next()? == role).then(|| args.next().map(PathBuf::from))?
}

/// Serves a pool with room for all entries, until it is killed.
pub(crate) fn serve(folder: &Path) {
    let bytes = (ENTRIES as u64 + 4096) * PAGE + (64 << 20);
    let spec = DeviceSpec { path: folder.join("pool"), bytes: Some(bytes) };
    let directory =
        Config { watermark_high_permille: 1000, watermark_low_permille: 1000, ..Config::default() };
    let config = ServerConfig {
        socket: Some(folder.join("socket")),
        directory,
        ..ServerConfig::new(PoolConfig::Devices(vec![spec]))
    };
    Server::start(&config).unwrap().run().unwrap();
}

/// A server, killed when dropped.
pub(crate) struct Serving(pub(crate) Child);

impl Serving {
    pub(crate) fn start(folder: &Path) -> Self {
        Self(start("serve", folder).spawn().unwrap())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A client; waits for the server to listen.
pub(crate) fn connect(folder: &Path, instance: &str) -> Client {
    let (endpoint, instance) = (Endpoint::Unix(folder.join("socket")), instance.to_owned());
    let timeout = Duration::from_mins(1);
    let config = ClientConfig { endpoint, instance, timeout, ..ClientConfig::default() };
    loop {
        match Client::connect(config.clone()) {
            Ok(client) => return client,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Names as LMCache makes them: 90 bytes.
pub(crate) fn names(count: usize) -> Vec<String> {
    let name = |n: usize| format!("Llama-3.1-8B@00000000@{:064x}@0", (n as u128) << 70);
    (0..count).map(name).collect()
}

pub(crate) fn keys(names: &[String]) -> Vec<Key<'_>> {
    names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect()
}

/// Stores a chunk under each key. Nothing is written into the pages.
pub(crate) fn store(client: &Client, keys: &[Key<'_>]) {
    for keys in keys.chunks(BATCH) {
        let pages = client.reserve(keys, PAGE, Reserve::default()).unwrap();
        let pages = pages.into_iter().map(|reserved| match reserved {
            Reserved::Page(page) => page,
            other => panic!("{other:?}"),
        });
        client.commit(pages).unwrap();
    }
}

/// Prints a figure: the median of the rounds, the lowest and the highest.
pub(crate) fn tell(name: &str, mut figures: Vec<f64>) {
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures[0], figures[figures.len() - 1]);
    println!("{name:58} {:8.2} ({low:.2} to {high:.2})", figures[figures.len() / 2]);
}
