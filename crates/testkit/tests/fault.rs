//! Each fault once: what a client makes of it, and that nothing is left of it.
#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use maru_client::{Acquire, Client, ClientConfig, ClientError, Committed, Reserve, Reserved};
use maru_protocol::{Key, Presence, Refusal};
use maru_testkit::{ANY, Fault, FaultProxy, SHORT, TestPool, next_epoch};

const POOL: u64 = 8 << 20;
const PAGE: u64 = 64 << 10;

fn pool() -> (TestPool, FaultProxy) {
    let pool = TestPool::start(POOL);
    let proxy = FaultProxy::start(pool.socket());
    (pool, proxy)
}

fn client(pool: &TestPool, proxy: &FaultProxy) -> Client {
    let endpoint = proxy.endpoint();
    Client::connect(ClientConfig { endpoint, ..pool.config("a") }).unwrap()
}

/// A client that soon gives up.
fn impatient(pool: &TestPool, proxy: &FaultProxy) -> Client {
    let config = ClientConfig { endpoint: proxy.endpoint(), timeout: SHORT, ..pool.config("a") };
    Client::connect(config).unwrap()
}

fn names(range: Range<u32>) -> Vec<String> {
    range.map(|n| format!("model@00000000@{n:064x}@0")).collect()
}

fn keys(names: &[String]) -> Vec<Key<'_>> {
    names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect()
}

/// Stores chunks past the proxy.
fn store(pool: &TestPool, keys: &[Key<'_>]) {
    let writer = pool.client("writer");
    let reserved = writer.reserve(keys, PAGE, Reserve::default()).unwrap();
    let pages = reserved.into_iter().map(|reserved| match reserved {
        Reserved::Page(mut page) => {
            page.bytes_mut().fill(7);
            page
        }
        other => panic!("not granted: {other:?}"),
    });
    let committed = writer.commit(pages).unwrap();
    assert!(committed.iter().all(|committed| matches!(committed, Committed::Stored(_))));
}

#[test]
fn a_request_lost_on_its_way_is_sent_again() {
    let (pool, proxy) = pool();
    let client = client(&pool, &proxy);
    let names = names(0..2);
    let keys = keys(&names);
    store(&pool, &keys);
    proxy.inject("acquire", Fault::LoseRequest, 1);
    let pages = client.acquire(&keys, Acquire::default()).unwrap();
    assert!(pages.iter().flatten().all(|page| page.bytes()[0] == 7));
    assert_eq!((proxy.seen("acquire"), proxy.met()), (2, 1));
    let counters = pool.stats().counters;
    assert_eq!((counters.hits, counters.replays), (2, 0), "the server saw one of the two");
    assert_eq!(pool.holdings(), (2, 0));
    client.release(pages.into_iter().flatten()).unwrap();
    pool.assert_nothing_left();
}

#[test]
fn a_reply_lost_on_its_way_comes_again() {
    let (pool, proxy) = pool();
    let client = client(&pool, &proxy);
    let names = names(0..2);
    let keys = keys(&names);
    store(&pool, &keys);
    proxy.inject("acquire", Fault::LoseReply, 1);
    let pages = client.acquire(&keys, Acquire::default()).unwrap();
    assert_eq!(pages.iter().flatten().count(), 2);
    assert_eq!((proxy.seen("acquire"), proxy.met()), (2, 1));
    let counters = pool.stats().counters;
    assert_eq!((counters.hits, counters.replays), (2, 1), "it was applied once");
    assert_eq!(pool.holdings(), (2, 0));
    client.release(pages.into_iter().flatten()).unwrap();
    pool.assert_nothing_left();
}

/// What a swallowed reply granted comes back once the connection breaks: then it is sent again.
#[test]
fn a_swallowed_reply_is_a_timeout() {
    let (pool, proxy) = pool();
    let client = impatient(&pool, &proxy);
    let names = names(0..2);
    let keys = keys(&names);
    store(&pool, &keys);
    proxy.inject("acquire", Fault::SwallowReply, 1);
    let error = client.acquire(&keys, Acquire::default()).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    assert_eq!(pool.stats().counters.hits, 2, "the server has applied it");
    proxy.cut_all();
    // The heartbeat connects again and gives them back; on a slow machine it may have done so before.
    pool.assert_nothing_left();
}

/// What the answer did not tell of can only go with the session.
#[test]
fn a_short_answer_is_not_believed() {
    let (pool, proxy) = pool();
    let client = client(&pool, &proxy);
    let names = names(0..4);
    let keys = keys(&names);
    store(&pool, &keys[..2]);
    proxy.inject("acquire", Fault::ShortReply, 1);
    let error = client.acquire(&keys[..2], Acquire::default()).unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    proxy.inject("reserve", Fault::ShortReply, 1);
    let error = client.reserve(&keys[2..], PAGE, Reserve::default()).unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    assert_eq!(proxy.met(), 2);
    drop(client);
    pool.assert_nothing_left();
}

#[test]
fn a_part_is_pinned_and_nothing_else() {
    let (pool, proxy) = pool();
    let client = client(&pool, &proxy);
    let names = names(0..5);
    let keys = keys(&names);
    store(&pool, &keys);
    proxy.inject("acquire", Fault::PartialPin, 3);
    let pages = client.acquire(&keys, Acquire::default()).unwrap();
    let hits: Vec<bool> = pages.iter().map(Option::is_some).collect();
    assert_eq!(hits, [true, false, true, false, true]);
    assert_eq!(pool.holdings(), (3, 0), "the server knows of no other");
    client.release(pages.into_iter().flatten()).unwrap();
    let prefix = client.acquire(&keys, Acquire { stop_at_miss: true }).unwrap();
    assert_eq!(prefix.len(), 1);
    assert_eq!(pool.holdings(), (1, 0));
    drop(prefix);
    let one = client.acquire(&keys[..1], Acquire::default()).unwrap();
    assert!(one[0].is_some(), "there is no second");
    drop(one);
    pool.assert_nothing_left();
}

#[test]
fn pages_outside_of_the_pool_are_given_back() {
    let (pool, proxy) = pool();
    let client = client(&pool, &proxy);
    let names = names(0..4);
    let keys = keys(&names);
    store(&pool, &keys[..2]);
    proxy.inject("acquire", Fault::Unresolvable, 1);
    let pages = client.acquire(&keys[..2], Acquire::default()).unwrap();
    assert!(pages.iter().all(Option::is_none), "what is not mapped is a miss");
    proxy.inject("reserve", Fault::Unresolvable, 1);
    let error = client.reserve(&keys[2..], PAGE, Reserve::default()).unwrap_err();
    assert!(matches!(error, ClientError::Mapping(_)), "{error}");
    assert_eq!(proxy.met(), 2);
    pool.assert_nothing_left();
    assert!(client.contains(&keys).is_ok(), "the client goes on");
}

#[test]
fn a_refusal_comes_from_the_proxy_alone() {
    let (pool, proxy) = pool();
    let client = client(&pool, &proxy);
    let names = names(0..1);
    let keys = keys(&names);
    store(&pool, &keys);
    let refusal = Refusal::BatchTooLarge { len: 1, max: 0 };
    proxy.inject("acquire", Fault::Refuse(refusal.clone()), 1);
    let error = client.acquire(&keys, Acquire::default()).unwrap_err();
    assert!(matches!(error, ClientError::Refused(found) if found == refusal));
    let counters = pool.stats().counters;
    assert_eq!((counters.hits, counters.misses, counters.refusals), (0, 0, 0));
    assert!(client.acquire(&keys, Acquire::default()).unwrap()[0].is_some(), "once only");
    pool.assert_nothing_left();
}

/// The client is told that its session is over, and finds it alive when it says hello again.
#[test]
fn a_session_may_be_said_to_have_ended() {
    let (pool, proxy) = pool();
    let client = client(&pool, &proxy);
    proxy.inject("contains", Fault::Refuse(Refusal::SessionEnded), 1);
    let names = names(0..1);
    assert_eq!(client.contains(&keys(&names)).unwrap(), [Presence::Missing]);
    assert_eq!((proxy.seen("contains"), proxy.met()), (2, 1));
    pool.assert_nothing_left();
}

#[test]
fn a_held_reply_is_overtaken_and_comes_when_it_may() {
    let (pool, proxy) = pool();
    let client = client(&pool, &proxy);
    let names = names(0..1);
    let keys = keys(&names);
    store(&pool, &keys);
    proxy.inject("acquire", Fault::Hold, 1);
    std::thread::scope(|scope| {
        let acquired = scope.spawn(|| client.acquire(&keys, Acquire::default()).unwrap());
        proxy.wait_held(1);
        assert_eq!(client.contains(&keys).unwrap(), [Presence::Resident]);
        assert!(!acquired.is_finished());
        assert_eq!(pool.holdings(), (1, 0));
        proxy.release_held();
        assert!(acquired.join().unwrap()[0].is_some());
    });
    pool.assert_nothing_left();
}

#[test]
fn what_a_reply_grants_that_comes_too_late_is_given_back() {
    let (pool, proxy) = pool();
    let client = impatient(&pool, &proxy);
    let names = names(0..2);
    let keys = keys(&names);
    store(&pool, &keys[..1]);
    proxy.inject("acquire", Fault::Hold, 1);
    proxy.inject("reserve", Fault::Hold, 1);
    let error = client.acquire(&keys, Acquire::default()).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    let error = client.reserve(&keys[1..], PAGE, Reserve::default()).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    // Each is sent again over another connection, and answered there when nobody waits any more.
    assert_eq!(proxy.met(), 2);
    pool.assert_nothing_left();
    assert_eq!(client.contains(&keys).unwrap(), [Presence::Resident, Presence::Missing]);
}

#[test]
fn all_connections_may_drop() {
    let (pool, proxy) = pool();
    let clients = [client(&pool, &proxy), client(&pool, &proxy)];
    let names = names(0..1);
    let keys = keys(&names);
    store(&pool, &keys);
    let pages: Vec<_> =
        clients.iter().map(|client| client.acquire(&keys, Acquire::default()).unwrap()).collect();
    proxy.cut_all();
    for (client, pages) in clients.iter().zip(pages) {
        assert_eq!(client.contains(&keys).unwrap(), [Presence::Resident]);
        // A slow machine is back too late for its session.
        let released = client.release(pages.into_iter().flatten());
        assert!(matches!(released, Ok(()) | Err(ClientError::Stale)), "{released:?}");
    }
    pool.assert_nothing_left();
}

#[test]
fn a_server_may_be_gone_and_another_come() {
    let (pool, proxy) = pool();
    let client = client(&pool, &proxy);
    let names = names(0..2);
    let keys = keys(&names);
    store(&pool, &keys);
    let pages = client.acquire(&keys, Acquire::default()).unwrap();
    proxy.set_upstream(None);
    let hasty = ClientConfig { endpoint: proxy.endpoint(), timeout: SHORT, ..pool.config("b") };
    let error = Client::connect(hasty).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    next_epoch();
    let other = TestPool::start(POOL);
    proxy.set_upstream(Some(other.socket()));
    assert_eq!(client.contains(&keys).unwrap(), [Presence::Missing; 2]);
    assert!(other.stats().epoch > pool.stats().epoch);
    let released = client.release(pages.into_iter().flatten());
    assert!(matches!(released, Err(ClientError::Stale)), "{released:?}");
    pool.assert_nothing_left();
    other.assert_nothing_left();
}

#[test]
fn a_restarted_server_is_empty_and_in_a_new_epoch() {
    let (mut pool, proxy) = pool();
    let client = client(&pool, &proxy);
    let names = names(0..1);
    let keys = keys(&names);
    store(&pool, &keys);
    let epoch = pool.stats().epoch;
    pool.restart();
    assert_eq!(client.contains(&keys).unwrap(), [Presence::Missing]);
    assert!(pool.stats().epoch > epoch);
    pool.assert_nothing_left();
}

#[test]
fn a_proxy_may_let_nobody_in_for_a_while() {
    let (pool, proxy) = pool();
    proxy.stop_accepting();
    let hasty = ClientConfig {
        endpoint: proxy.endpoint(),
        timeout: Duration::from_millis(50),
        ..pool.config("a")
    };
    let error = Client::connect(hasty).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| client(&pool, &proxy));
        proxy.resume_accepting();
        let client = connecting.join().unwrap();
        client.stats().unwrap();
    });
    pool.assert_nothing_left();
}

#[test]
fn any_request_may_be_meant_and_all_are_counted() {
    let (pool, proxy) = pool();
    let client = client(&pool, &proxy);
    let names = names(0..1);
    let keys = keys(&names);
    proxy.inject(ANY, Fault::LoseReply, u32::MAX);
    client.contains(&keys).unwrap();
    client.touch(&keys).unwrap();
    // The heartbeat's connection is theirs: what cuts it off may cut them off once more.
    assert!(proxy.seen("contains") >= 2 && proxy.seen("touch") >= 2, "{proxy:?}");
    assert!(proxy.seen(ANY) >= 4 && proxy.seen("delete") == 0, "{proxy:?}");
    proxy.disarm();
    let met = proxy.met();
    client.delete(&keys).unwrap();
    assert_eq!(proxy.met(), met);
    let touched = proxy.seen("touch");
    std::thread::scope(|scope| {
        scope.spawn(|| proxy.wait_seen("touch", touched + 1));
        client.touch(&keys).unwrap();
    });
    assert_eq!(pool.stats().counters.sessions_opened, 2, "its session was resumed each time");
    pool.assert_nothing_left();
}

#[test]
fn what_is_unknown_passes_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let proxy = FaultProxy::start(&path);
    proxy.inject(ANY, Fault::LoseRequest, u32::MAX);
    let mut client = UnixStream::connect(proxy.socket()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    // A kind and a version there are not, a request that is none, and no frame at all.
    let bytes =
        b"MR\x03\xEE\x02\0\0\0abMR\x07\x04\x01\0\0\0cMR\x03\x03\x02\0\0\0\xFF\xFFGET / HTTP";
    let mut received = vec![0; bytes.len()];
    client.write_all(bytes).unwrap();
    server.read_exact(&mut received).unwrap();
    assert_eq!(received, bytes);
    server.write_all(bytes).unwrap();
    client.read_exact(&mut received).unwrap();
    assert_eq!(received, bytes);
    drop(proxy);
    assert_eq!(client.read(&mut received).unwrap(), 0);
    assert_eq!(server.read(&mut received).unwrap(), 0);
}
