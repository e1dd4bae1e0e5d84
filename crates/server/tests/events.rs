//! What those who watch are told, and that nobody else notices them.
#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

mod wire;

use maru_directory::Config;
use maru_protocol::{
    Answer, Body, CommitItem, DeleteOutcome, Event, FrameKind, Key, Refusal, ReserveOutcome,
    Secret, SessionId, Standing, Stats, Watch, Welcome,
};
use maru_server::{Embedded, ServerConfig};

use wire::{Pool, Wire, config};

/// The server's limit on what waits for one who watches, in bytes.
const UNSENT_MAX: usize = 1 << 20;

/// An event, without its borrow.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Watching,
    Gone(Vec<String>),
    Resync(u64),
}

fn watch_frame(session: SessionId, secret: Secret) -> Vec<u8> {
    let mut frame = Vec::new();
    let watch = Watch { instance: "watcher", session, secret };
    maru_protocol::encode(FrameKind::Watch, &watch, &mut frame).unwrap();
    frame
}

fn pool_with(directory: Config) -> Pool {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let server = Embedded::start(&ServerConfig { directory, ..config(folder.path()) }).unwrap();
    Pool { folder, server }
}

/// Nothing is evicted but to make room.
fn pool() -> Pool {
    let (watermark_high_permille, watermark_low_permille) = (1000, 1000);
    pool_with(Config { watermark_high_permille, watermark_low_permille, ..Config::default() })
}

/// A connection on which this session watches.
fn watch(pool: &Pool, of: &Welcome) -> Wire {
    let mut wire = pool.wire();
    wire.send(&watch_frame(of.session, of.secret));
    assert_eq!(event(&mut wire), Told::Watching);
    wire
}

fn event(wire: &mut Wire) -> Told {
    let (kind, body) = wire.frame().unwrap();
    assert_eq!(kind, FrameKind::Event, "{body:?}");
    match maru_protocol::decode(&body).unwrap() {
        Event::Watching { epoch } => {
            assert_ne!(epoch, 0);
            Told::Watching
        }
        Event::Gone { keys } => {
            let text = |key: Key<'_>| String::from_utf8(key.bytes().to_vec()).unwrap();
            Told::Gone(keys.into_iter().map(text).collect())
        }
        Event::Resync { lost } => Told::Resync(lost),
    }
}

/// The keys of the next events, until there are so many.
fn gone(wire: &mut Wire, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < count {
        match event(wire) {
            Told::Gone(keys) => all.extend(keys),
            other => panic!("not told of {count} keys: {all:?}, then {other:?}"),
        }
    }
    all
}

fn store(wire: &mut Wire, names: &[String], page_bytes: u64) {
    let keys = names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();
    let body = Body::Reserve { keys, page_bytes, tag: 0, unless_being_written: false };
    let Ok(Answer::Reserved(granted)) = wire.ask(body) else { panic!("reserve") };
    let item = |outcome| match outcome {
        ReserveOutcome::Granted(location) => {
            CommitItem { handle: location.handle, length: 1, checksum: None }
        }
        other => panic!("not granted: {other:?}"),
    };
    let items = granted.into_iter().map(item).collect();
    assert!(wire.ask(Body::Commit { items, pins: 0, names: Vec::new() }).is_ok());
}

fn delete(wire: &mut Wire, name: &str) {
    let keys = vec![Key::new(name.as_bytes()).unwrap()];
    let deleted = Ok(Answer::Deleted(vec![DeleteOutcome::Deleted]));
    assert_eq!(wire.ask(Body::Delete { keys }), deleted);
}

fn stats(wire: &mut Wire) -> Stats {
    match wire.ask(Body::Stats) {
        Ok(Answer::Stats(stats)) => *stats,
        other => panic!("stats are answered {other:?}"),
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn evicted_chunks_are_told_to_all_who_watch() {
    let pool = pool();
    let ((mut a, first), (_b, second)) = (pool.session("a"), pool.session("b"));
    let mut watchers = [watch(&pool, &first), watch(&pool, &second)];
    let mut stored = Vec::new();
    while stats(&mut a).counters.evicted_for_room < 3 {
        stored.push(format!("{:04}", stored.len()));
        store(&mut a, &stored[stored.len() - 1..], 1 << 20);
    }
    for watcher in &mut watchers {
        assert_eq!(gone(watcher, 3), stored[..3]);
    }
    // A server that stops hangs up.
    drop(pool.server);
    assert!(watchers.into_iter().all(|mut watcher| watcher.frame().is_none()));
}

#[test]
fn a_delete_is_told_to_all_but_who_asked_for_it() {
    let pool = pool();
    let ((mut a, first), (mut b, second)) = (pool.session("a"), pool.session("b"));
    let (mut of_a, mut of_b) = (watch(&pool, &first), watch(&pool, &second));
    store(&mut a, &names(&["1", "2", "3"]), 4096);
    delete(&mut a, "1");
    delete(&mut b, "2");
    delete(&mut a, "3");
    assert_eq!(gone(&mut of_a, 1), ["2"]);
    assert_eq!(gone(&mut of_b, 2), ["1", "3"]);
}

#[test]
fn to_watch_needs_a_living_session_and_its_secret() {
    let pool = pool();
    let (mut a, welcome) = pool.session("a");
    let refused = |session, secret| {
        let mut wire = pool.wire();
        wire.send(&watch_frame(session, secret));
        wire.refused()
    };
    assert_eq!(refused(welcome.session, Secret([0; 16])), Refusal::SessionEnded);
    assert_eq!(refused(SessionId(1), welcome.secret), Refusal::SessionEnded);
    assert_eq!(a.ask(Body::Goodbye), Ok(Answer::Done));
    assert_eq!(refused(welcome.session, welcome.secret), Refusal::SessionEnded);
}

#[test]
fn a_connection_either_asks_or_watches() {
    let pool = pool();
    let (mut a, welcome) = pool.session("a");
    let mut malformed = pool.wire();
    malformed.send(b"MR\x03\x06\x01\x00\x00\x00\xff");
    assert!(matches!(malformed.refused(), Refusal::Malformed { .. }));
    let mut watcher = watch(&pool, &welcome);
    let ask = watcher.encode(Body::Renew);
    watcher.send(&ask);
    assert!(matches!(watcher.refused(), Refusal::Unexpected { .. }));
    a.send(&watch_frame(welcome.session, welcome.secret));
    assert!(matches!(a.refused(), Refusal::Unexpected { .. }));
    let mut again = pool.wire();
    let resume = maru_protocol::Resume { session: welcome.session, secret: welcome.secret };
    assert!(again.hello("a", Some(resume)).standing == Standing::Resumed);
    again.seq = 1;
    assert_eq!(again.ask(Body::Renew), Ok(Answer::Renewed(vec![])));
}

#[test]
fn one_who_reads_too_slowly_is_told_how_much_it_lost() {
    const BATCH: usize = 500;
    let pool = pool();
    let (mut a, welcome) = pool.session("a");
    let mut watcher = watch(&pool, &welcome);
    let mut batches = 0;
    let mut store_batch = |a: &mut Wire| {
        let names: Vec<String> = (0..BATCH).map(|n| format!("{batches:04}-{n:01000}")).collect();
        batches += 1;
        store(a, &names, 4096);
        stats(a).counters.evicted_for_room
    };
    // More than the server keeps and the kernel buffers together.
    let mut evicted = 0;
    while evicted < 8 << 10 {
        evicted = store_batch(&mut a);
    }
    let (mut told, mut lost) = (0, 0);
    while told + lost < evicted {
        match event(&mut watcher) {
            Told::Gone(keys) => told += keys.len() as u64,
            Told::Resync(more) => lost += more,
            Told::Watching => panic!("told twice that it watches"),
        }
    }
    assert!(lost > 0 && told > 0);
    assert!(told < 4 * UNSENT_MAX as u64 / 1000, "the server buffers {told} keys");
    // From here on it is told again.
    let more = store_batch(&mut a) - evicted;
    assert_eq!(gone(&mut watcher, usize::try_from(more).unwrap()).len() as u64, more);
}

#[test]
fn a_watch_ends_with_its_session() {
    let pool = pool();
    let (mut a, welcome) = pool.session("a");
    let mut watcher = watch(&pool, &welcome);
    assert_eq!(a.ask(Body::Goodbye), Ok(Answer::Done));
    assert_eq!(watcher.refused(), Refusal::SessionEnded);
}

#[test]
fn a_watch_does_not_keep_its_session() {
    let pool = pool_with(Config { lease_ms: 300, resume_ms: 300, ..Config::default() });
    let (mut silent, welcome) = pool.session("silent");
    let mut watcher = watch(&pool, &welcome);
    assert_eq!(silent.refused(), Refusal::SessionEnded);
    assert_eq!(watcher.refused(), Refusal::SessionEnded);
    let (lost, welcome) = pool.session("lost");
    let mut watcher = watch(&pool, &welcome);
    drop(lost);
    assert_eq!(watcher.refused(), Refusal::SessionEnded);
}

#[test]
fn a_newer_watch_of_a_session_ends_the_older() {
    let pool = pool();
    let (mut a, welcome) = pool.session("a");
    let (mut b, _) = pool.session("b");
    let mut older = watch(&pool, &welcome);
    let mut newer = watch(&pool, &welcome);
    assert_eq!(older.frame(), None);
    store(&mut a, &names(&["1", "2"]), 4096);
    delete(&mut b, "1");
    assert_eq!(gone(&mut newer, 1), ["1"]);
    // Who hung up may come again.
    drop(newer);
    let mut again = watch(&pool, &welcome);
    delete(&mut b, "2");
    assert_eq!(gone(&mut again, 1), ["2"]);
}
