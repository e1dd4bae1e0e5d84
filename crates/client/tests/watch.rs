//! Watching the pool, against a real server on a thread of this process.
#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use maru_client::{Client, ClientConfig, PoolEvent, Reserve, Reserved, Watch};
use maru_directory::Config;
use maru_protocol::{DeleteOutcome, Endpoint, Key};
use maru_server::{Embedded, PoolConfig, ServerConfig};

/// Only a hang takes this long.
const LONG: Duration = Duration::from_mins(1);

const SHORT: Duration = Duration::from_millis(10);

struct Pool {
    folder: tempfile::TempDir,
    server: Embedded,
}

/// Nothing is evicted but to make room.
fn serve(folder: &Path) -> Embedded {
    let spec = format!("{}:8MiB", folder.join("pool").display());
    let (watermark_high_permille, watermark_low_permille) = (1000, 1000);
    let directory = Config { watermark_high_permille, watermark_low_permille, ..Config::default() };
    Embedded::start(&ServerConfig {
        socket: Some(folder.join("socket")),
        listen: Some("127.0.0.1:0".parse().unwrap()),
        directory,
        ..ServerConfig::new(PoolConfig::Temporary(spec.parse().unwrap()))
    })
    .unwrap()
}

fn pool() -> Pool {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let server = serve(folder.path());
    Pool { folder, server }
}

impl Pool {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn client(&self, instance: &str) -> Client {
        client_at(Endpoint::Unix(self.socket()), instance)
    }
}

fn client_at(endpoint: Endpoint, instance: &str) -> Client {
    let instance = instance.to_owned();
    Client::connect(ClientConfig { endpoint, instance, ..ClientConfig::default() }).unwrap()
}

/// A watch that the server has begun to tell.
fn watch(client: &Client) -> Watch {
    let mut watch = client.watch();
    while !watch.is_watching() {
        assert_eq!(watch.next(SHORT), None, "there is nothing to tell yet");
    }
    watch
}

fn key(name: &str) -> Key<'_> {
    Key::new(name.as_bytes()).unwrap()
}

fn store(client: &Client, names: &[String], page_bytes: u64) {
    let keys: Vec<Key<'_>> = names.iter().map(|name| key(name)).collect();
    let pages = client.reserve(&keys, page_bytes, Reserve::default()).unwrap();
    let granted = pages.into_iter().map(|reserved| match reserved {
        Reserved::Page(page) => page,
        other => panic!("not granted: {other:?}"),
    });
    client.commit(granted).unwrap();
}

fn delete(client: &Client, name: &str) {
    assert_eq!(client.delete(&[key(name)]).unwrap(), [DeleteOutcome::Deleted]);
}

/// The keys of the next events, until there are so many.
fn gone(watch: &mut Watch, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < count {
        match watch.next(LONG) {
            Some(PoolEvent::Gone(keys)) => {
                all.extend(keys.into_iter().map(|key| String::from_utf8(key).unwrap()));
            }
            other => panic!("not told of {count} keys: {all:?}, then {other:?}"),
        }
    }
    all
}

#[test]
fn evictions_arrive_over_either_kind_of_socket() {
    let pool = pool();
    let writer = pool.client("writer");
    let tcp = Endpoint::Tcp(pool.server.tcp_address().unwrap().to_string());
    let readers = [pool.client("near"), client_at(tcp, "far")];
    let mut watches = readers.each_ref().map(watch);
    let mut stored = Vec::new();
    while writer.stats().unwrap().counters.evicted_for_room < 3 {
        stored.push(format!("{:04}", stored.len()));
        store(&writer, &stored[stored.len() - 1..], 1 << 20);
    }
    for watch in &mut watches {
        assert_eq!(gone(watch, 3), stored[..3]);
        assert_eq!(watch.next(Duration::ZERO), None);
    }
}

#[test]
fn ones_own_delete_is_not_told_and_a_peers_is() {
    let pool = pool();
    let (a, b) = (pool.client("a"), pool.client("b"));
    let mut watch = watch(&a);
    store(&a, &["1", "2"].map(str::to_owned), 4096);
    delete(&a, "1");
    delete(&b, "2");
    assert_eq!(gone(&mut watch, 1), ["2"]);
}

#[test]
fn after_a_restart_something_was_missed_and_events_go_on() {
    let mut pool = pool();
    let client = pool.client("a");
    let mut watch = watch(&client);
    let (socket, folder) = (pool.socket(), pool.folder.path().to_owned());
    drop(pool.server);
    // Nobody answers for a while, and then somebody who only listens.
    while watch.is_watching() {
        assert_eq!(watch.next(SHORT), None);
    }
    let mute = UnixListener::bind(&socket).unwrap();
    for _ in 0..5 {
        assert_eq!(watch.next(SHORT), None);
    }
    drop(mute);
    pool.server = serve(&folder);
    assert_eq!(watch.next(LONG), Some(PoolEvent::Missed));
    let b = pool.client("b");
    store(&b, &["k".to_owned()], 4096);
    delete(&b, "k");
    assert_eq!(gone(&mut watch, 1), ["k"]);
}

#[test]
fn a_watch_that_is_read_too_slowly_has_missed_something() {
    let pool = pool();
    let (a, b) = (pool.client("a"), pool.client("b"));
    let mut watch = watch(&a);
    let mut stored = 0;
    // More than the server keeps and the kernel buffers together.
    while b.stats().unwrap().counters.evicted_for_room < 4 << 10 {
        let names: Vec<String> = (stored..stored + 500).map(|n| format!("{n:01000}")).collect();
        stored += 500;
        store(&b, &names, 4096);
    }
    let mut told = std::iter::from_fn(|| watch.next(LONG));
    let other = told.find(|event| !matches!(event, PoolEvent::Gone(_)));
    assert_eq!(other, Some(PoolEvent::Missed));
    delete(&b, &format!("{:01000}", stored - 1));
    assert_eq!(gone(&mut watch, 1).len(), 1);
}

/// What waits for an event, for ever, returns when the client is gone, whether or not the server was
/// told so: a goodbye is not said while a writable page is out.
#[test]
fn the_end_of_the_client_ends_its_watch() {
    for page_is_out in [false, true] {
        let pool = pool();
        let client = pool.client("a");
        let page = page_is_out
            .then(|| client.reserve(&[key("k")], 4096, Reserve::default()).unwrap().remove(0));
        let mut watch = watch(&client);
        let (told, waits) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                told.send(()).unwrap();
                assert_eq!(watch.next(Duration::MAX), None);
                assert!(watch.is_closed());
                assert_eq!(watch.next(Duration::MAX), None);
            });
            waits.recv().unwrap();
            drop(client);
        });
        drop(page);
    }
}

#[test]
fn a_newer_watch_ends_the_older() {
    let pool = pool();
    let (a, b) = (pool.client("a"), pool.client("b"));
    let mut older = watch(&a);
    let mut newer = watch(&a.clone());
    assert_eq!(older.next(Duration::MAX), None);
    assert!(older.is_closed() && !newer.is_closed());
    store(&b, &["k".to_owned()], 4096);
    delete(&b, "k");
    assert_eq!(gone(&mut newer, 1), ["k"]);
}
