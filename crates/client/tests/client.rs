//! A client against a real server on a thread of this process.
#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Barrier;
use std::time::Duration;

use maru_client::{
    Acquire, Client, ClientConfig, ClientError, Committed, Reserve, Reserved, ReservedPage,
};
use maru_protocol::{DeleteOutcome, Endpoint, Key, Presence, Refusal};
use maru_testkit::{ANY, Fault, FaultProxy, TestPool};

const PAGE: u64 = 64 << 10;

fn pool() -> TestPool {
    TestPool::start(8 << 20)
}

fn keys(names: &[String]) -> Vec<Key<'_>> {
    names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect()
}

fn names(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("model@00000000@{n:064x}@0")).collect()
}

fn granted(reserved: Vec<Reserved>) -> Vec<ReservedPage> {
    let page = |reserved| match reserved {
        Reserved::Page(page) => page,
        other => panic!("not granted: {other:?}"),
    };
    reserved.into_iter().map(page).collect()
}

fn store(client: &Client, keys: &[Key<'_>], byte: u8) {
    let mut pages = granted(client.reserve(keys, PAGE, Reserve::default()).unwrap());
    for page in &mut pages {
        page.bytes_mut().fill(byte);
    }
    let committed = client.commit(pages).unwrap();
    assert!(committed.iter().all(|committed| matches!(committed, Committed::Stored(_))));
}

#[test]
fn one_instance_reads_what_another_wrote_over_either_kind_of_socket() {
    let pool = pool();
    let writer = pool.client("writer");
    let tcp = ClientConfig { endpoint: pool.tcp_endpoint(), ..pool.config("reader") };
    let reader = Client::connect(tcp).unwrap();
    let names = names(0..4);
    let keys = keys(&names);
    assert_eq!(reader.contains(&keys).unwrap(), [Presence::Missing; 4]);
    store(&writer, &keys[..3], 7);
    let pages = reader.acquire(&keys, Acquire { stop_at_miss: true }).unwrap();
    assert_eq!(pages.len(), 3);
    let mut chunk = vec![0; 64 << 10];
    for page in pages.iter().flatten() {
        page.copy_to(&mut chunk).unwrap();
        assert!(chunk.iter().all(|byte| *byte == 7));
    }
    assert_eq!(writer.delete(&keys[..1]).unwrap(), [DeleteOutcome::Pinned]);
    reader.release(pages.into_iter().flatten()).unwrap();
    assert_eq!(writer.delete(&keys[..1]).unwrap(), [DeleteOutcome::Deleted]);
}

#[test]
fn a_page_gets_its_name_when_it_is_committed() {
    let pool = pool();
    let (writer, reader) = (pool.client("writer"), pool.client("reader"));
    let names = names(0..3);
    let keys = keys(&names);
    store(&reader, &keys[..1], 9);
    let mut pages = granted(writer.reserve_unnamed(3, PAGE).unwrap());
    for page in &mut pages {
        page.bytes_mut().fill(7);
    }
    assert_eq!(reader.contains(&keys).unwrap()[1..], [Presence::Missing; 2]);
    let committed = writer.commit_as(keys.iter().copied().zip(pages)).unwrap();
    assert!(matches!(
        committed[..],
        [Committed::Superseded(_), Committed::Stored(_), Committed::Stored(_)]
    ));
    let read = reader.acquire(&keys, Acquire::default()).unwrap();
    let firsts: Vec<u8> = read.iter().flatten().map(|page| page.bytes()[0]).collect();
    assert_eq!(firsts, [9, 7, 7]);
    // Nothing is left of the names that they had before.
    assert_eq!(reader.list(b"", 0, 10).unwrap().entries.len(), 3);
    let stats = reader.stats().unwrap();
    assert_eq!((stats.pages_resident, stats.pages_reserved), (3, 0));
}

#[test]
fn what_is_dropped_is_given_back() {
    let pool = pool();
    let client = pool.client("a");
    let names = names(0..2);
    let keys = keys(&names);
    store(&client, &keys[..1], 1);
    drop(client.acquire(&keys, Acquire::default()).unwrap());
    drop(client.reserve(&keys[1..], PAGE, Reserve::default()).unwrap());
    client.flush().unwrap();
    let stats = client.stats().unwrap();
    assert_eq!((stats.pins, stats.pages_reserved, stats.lost_bytes()), (0, 0, 0));
    assert_eq!(stats.counters.aborted, 1);
}

#[test]
fn a_chunk_is_stored_once() {
    let pool = pool();
    let (a, b) = (pool.client("a"), pool.client("b"));
    let names = names(0..1);
    let keys = keys(&names);
    let first = granted(a.reserve(&keys, PAGE, Reserve::default()).unwrap());
    let polite = Reserve { unless_being_written: true, ..Reserve::default() };
    assert!(matches!(b.reserve(&keys, PAGE, polite).unwrap()[..], [Reserved::BeingWritten]));
    let second = granted(b.reserve(&keys, PAGE, Reserve::default()).unwrap());
    let winner = match a.commit(first).unwrap()[..] {
        [Committed::Stored(location)] => location,
        ref other => panic!("{other:?}"),
    };
    assert_eq!(b.commit(second).unwrap(), [Committed::Superseded(winner)]);
    let third = b.reserve(&keys, PAGE, Reserve::default()).unwrap();
    assert!(matches!(third[..], [Reserved::Resident]));
}

#[test]
fn a_shorter_chunk_keeps_its_length() {
    let pool = pool();
    let client = pool.client("a");
    let names = names(0..1);
    let keys = keys(&names);
    let mut pages = granted(client.reserve(&keys, PAGE, Reserve::default()).unwrap());
    assert!(pages[0].set_length(0).is_err());
    assert!(pages[0].set_length(PAGE + 1).is_err());
    pages[0].set_length(100).unwrap();
    client.commit(pages).unwrap();
    let found = client.acquire(&keys, Acquire::default()).unwrap();
    assert_eq!(found[0].as_ref().unwrap().bytes().len(), 100);
}

#[test]
fn many_threads_share_one_session() {
    let pool = pool();
    let client = pool.client("a");
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let client = &client;
            scope.spawn(move || {
                for turn in 0..50 {
                    let names =
                        names(u32::from(thread) * 100..u32::from(thread) * 100 + 1 + turn % 2);
                    let keys = keys(&names);
                    for reserved in client.reserve(&keys, PAGE, Reserve::default()).unwrap() {
                        if let Reserved::Page(mut page) = reserved {
                            page.bytes_mut().fill(thread);
                            client.commit([page]).unwrap();
                        }
                    }
                    let pages = client.acquire(&keys, Acquire::default()).unwrap();
                    for page in pages.iter().flatten() {
                        assert!(page.bytes().iter().all(|byte| *byte == thread));
                    }
                    client.release(pages.into_iter().flatten()).unwrap();
                }
            });
        }
    });
    let stats = client.stats().unwrap();
    assert_eq!((stats.pins, stats.pages_reserved, stats.lost_bytes()), (0, 0, 0));
    assert_eq!(stats.sessions.len(), 1);
}

#[test]
fn a_full_pool_says_so_and_leaks_nothing() {
    let pool = pool();
    let client = pool.client("a");
    let all = names(0..96);
    let keys = keys(&all);
    store(&client, &keys, 3);
    let pinned = client.acquire(&keys, Acquire::default()).unwrap();
    let other = names(1000..1002);
    let refused = client.reserve(&self::keys(&other), PAGE, Reserve::default()).unwrap();
    assert!(refused.iter().all(|reserved| matches!(reserved, Reserved::OutOfMemory)));
    client.release(pinned.into_iter().flatten()).unwrap();
    store(&client, &self::keys(&other), 4);
    let stats = client.stats().unwrap();
    assert_eq!((stats.pins, stats.pages_reserved, stats.lost_bytes()), (0, 0, 0));
}

#[test]
fn a_client_that_goes_takes_its_session_with_it() {
    let pool = pool();
    let watcher = pool.client("watcher");
    let names = names(0..2);
    let keys = keys(&names);
    let client = pool.client("a");
    store(&client, &keys[..1], 1);
    let pinned = client.acquire(&keys[..1], Acquire::default()).unwrap();
    drop(client);
    assert!(matches!(pinned[0].as_ref().unwrap().confirm(), Err(ClientError::Stale)));
    // The goodbye ends the session; what it held goes at the next tick.
    wait_until(|| watcher.stats().unwrap().sessions.len() == 1);
    assert_eq!(watcher.stats().unwrap().pins, 0);
}

/// Polls; fails after a time that only a hang can take.
fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_mins(1), "it does not happen");
        std::thread::yield_now();
    }
}

#[test]
fn a_restarted_server_is_found_again_and_old_pages_are_stale() {
    let mut pool = pool();
    let client = pool.client("a");
    let names = names(0..2);
    let keys = keys(&names);
    store(&client, &keys[..1], 1);
    let pinned = client.acquire(&keys[..1], Acquire::default()).unwrap();
    let reserved = granted(client.reserve(&keys[1..], PAGE, Reserve::default()).unwrap());
    pool.restart();
    assert_eq!(client.contains(&keys).unwrap(), [Presence::Missing; 2]);
    // The old memory stays mapped under the old pages; their bytes just do not count any more.
    assert_eq!(pinned[0].as_ref().unwrap().bytes()[0], 1);
    assert!(matches!(pinned[0].as_ref().unwrap().confirm(), Err(ClientError::Stale)));
    assert!(matches!(client.release(pinned.into_iter().flatten()), Err(ClientError::Stale)));
    assert!(matches!(client.commit(reserved), Err(ClientError::SessionLost)));
    store(&client, &keys, 2);
}

#[test]
fn a_server_that_does_not_answer_is_said_not_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let _silent = UnixListener::bind(&path).unwrap();
    let timeout = Duration::from_millis(100);
    let endpoint = Endpoint::Unix(path);
    let config = ClientConfig { endpoint, timeout, ..ClientConfig::default() };
    let error = Client::connect(config).unwrap_err();
    assert!(error.to_string().contains("it does not answer"), "{error}");
}

#[test]
fn errors_say_what_to_do() {
    let pool = pool();
    let missing = Endpoint::Unix(pool.path("nobody"));
    let error =
        Client::connect(ClientConfig { endpoint: missing, ..pool.config("a") }).unwrap_err();
    assert!(error.to_string().contains("maru serve"), "{error}");
    let error = Client::connect(pool.config("a\n")).unwrap_err();
    assert!(matches!(error, ClientError::Refused(Refusal::Name { .. })), "{error}");
    let client = pool.client("a");
    let names = names(0..1);
    let error = client.reserve(&keys(&names), 1 << 40, Reserve::default()).unwrap_err();
    assert!(matches!(error, ClientError::Refused(Refusal::PageSize { .. })), "{error}");
    let many = self::names(0..5000);
    let error = client.contains(&keys(&many)).unwrap_err();
    assert!(matches!(error, ClientError::Refused(Refusal::BatchTooLarge { .. })), "{error}");
}

#[test]
fn every_reply_may_be_lost_once_and_nothing_happens_twice() {
    let pool = pool();
    let proxy = FaultProxy::start(pool.socket());
    proxy.inject(ANY, Fault::LoseReply, u32::MAX);
    let endpoint = proxy.endpoint();
    let client = Client::connect(ClientConfig { endpoint, ..pool.config("a") }).unwrap();
    let names = names(0..8);
    let keys = keys(&names);
    for round in 0..8 {
        let byte = u8::try_from(round).unwrap();
        store(&client, &keys[round..=round], byte);
        let pages = client.acquire(&keys, Acquire { stop_at_miss: true }).unwrap();
        assert_eq!(pages.len(), round + 1);
        assert!(pages[round].as_ref().unwrap().bytes().iter().all(|found| *found == byte));
        client.release(pages.into_iter().flatten()).unwrap();
    }
    assert_eq!(client.delete(&keys[..1]).unwrap(), [DeleteOutcome::Deleted]);
    let stats = pool.client("watcher").stats().unwrap();
    let counters = stats.counters;
    assert_eq!((counters.committed, counters.granted, counters.deleted), (8, 8, 1));
    assert_eq!((counters.hits, counters.misses), (36, 7));
    assert_eq!((stats.pins, stats.pages_reserved, stats.pages_resident), (0, 0, 7));
    assert_eq!(counters.sessions_opened, 2, "the session was resumed each time");
    // Stores and reads are two requests each that change state; the delete is one.
    assert!(counters.replays > 8 * 4, "{} replays", counters.replays);
}

/// More threads than the server remembers replies: some were refused for it.
#[test]
fn there_may_be_more_threads_than_the_window_has_room_for() {
    const THREADS: usize = 160;
    let pool = pool();
    let client = pool.client("a");
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (client, start) = (&client, &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..10 {
                    client.touch(&[Key::new(b"key").unwrap()]).unwrap();
                }
            });
        }
    });
}

/// Connecting waited without end, and with it whoever used the client.
#[test]
fn a_server_that_lets_nobody_in_is_not_waited_for_without_end() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first_in_the_backlog = UnixStream::connect(&path).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (endpoint, timeout) = (Endpoint::Unix(path), Duration::from_millis(100));
        sender.send(Client::connect(ClientConfig { endpoint, timeout, ..ClientConfig::default() }))
    });
    // Only a hang takes this long.
    let connected = receiver.recv_timeout(Duration::from_mins(1)).unwrap();
    assert!(matches!(connected, Err(ClientError::Unreachable { .. })));
}

/// Each thread tried for itself, one after the other, and the last had to wait for them all.
#[test]
fn one_thread_connects_for_all() {
    const THREADS: usize = 32;
    let mut pool = pool();
    let timeout = Duration::from_secs(1);
    let client = Client::connect(ClientConfig { timeout, ..pool.config("a") }).unwrap();
    pool.stop();
    let silent = UnixListener::bind(pool.socket()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| client.stats().unwrap_err());
        }
    });
    silent.set_nonblocking(true).unwrap();
    let attempts = std::iter::repeat_with(|| silent.accept()).take_while(Result::is_ok).count();
    assert!(attempts < THREADS, "{attempts} attempts");
}

/// A page counted as protected until the goodbye was answered, though it was not from when the server
/// had it.
#[test]
fn nothing_is_protected_once_goodbye_is_said() {
    let pool = pool();
    let proxy = FaultProxy::start(pool.socket());
    proxy.inject("goodbye", Fault::Hold, 1);
    let endpoint = proxy.endpoint();
    let client = Client::connect(ClientConfig { endpoint, ..pool.config("a") }).unwrap();
    let watcher = pool.client("watcher");
    let names = names(0..1);
    let keys = keys(&names);
    store(&client, &keys, 1);
    let page = client.acquire(&keys, Acquire::default()).unwrap().remove(0).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(client));
        proxy.wait_held(1);
        wait_until(|| watcher.stats().unwrap().sessions.len() == 1);
        let asked = proxy.seen(ANY);
        let confirmed = scope.spawn(|| page.confirm());
        wait_until(|| confirmed.is_finished() || proxy.seen(ANY) > asked);
        proxy.release_held();
        assert!(matches!(confirmed.join().unwrap(), Err(ClientError::Stale)));
    });
}
