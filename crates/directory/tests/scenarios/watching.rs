//! Who watches is told what left, and nothing else.

use maru_directory::Config;
use maru_protocol::{Body, CommitOutcome, DeleteOutcome, Refusal, SessionId};

use crate::pool::{MIB, Pool, config, keys, memory};

/// What left since the last call: the key, and the deleter.
fn gone(pool: &mut Pool) -> Vec<(String, Option<SessionId>)> {
    let gone = pool.directory.take_gone().into_iter();
    gone.map(|gone| (String::from_utf8(gone.key.into()).unwrap(), gone.by)).collect()
}

fn evicted(pool: &mut Pool) -> Vec<String> {
    let deleted_by_nobody = |(key, by)| {
        assert_eq!(by, None, "{key}");
        key
    };
    gone(pool).into_iter().map(deleted_by_nobody).collect()
}

/// The first session of a pool opens, and watches.
fn watcher(pool: &mut Pool) -> SessionId {
    let watcher = pool.hello("watcher");
    pool.directory.watch(watcher, Pool::secret(1)).unwrap();
    watcher
}

#[test]
fn an_eviction_for_room_is_told() {
    let mut pool = Pool::new(4);
    watcher(&mut pool);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3", "4", "5", "6"]);
    assert_eq!(evicted(&mut pool), ["1", "2"]);
    assert_eq!(gone(&mut pool), [], "it is told once");
}

#[test]
fn an_eviction_for_a_budget_is_told() {
    let mut pool = Pool::new(8);
    watcher(&mut pool);
    let a = pool.hello_with_budget("a", 2 * MIB);
    pool.store_all(a, &["1", "2", "3"]);
    assert_eq!(evicted(&mut pool), ["1"]);
}

#[test]
fn all_of_a_region_that_is_vacated_is_told() {
    let mut pool = Pool::new(4);
    watcher(&mut pool);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3", "4"]);
    pool.pass(1);
    pool.ask(a, Body::Touch { keys: keys(&["1"]) }).unwrap();
    pool.store_sized(a, "s", MIB / 2);
    let mut evicted = evicted(&mut pool);
    evicted.sort();
    assert_eq!(evicted, ["3", "4"]);
}

#[test]
fn an_eviction_at_the_watermark_is_told() {
    let (watermark_high_permille, watermark_low_permille) = (750, 500);
    let config = Config { watermark_high_permille, watermark_low_permille, ..config() };
    let mut pool = Pool::with(config, &memory(4));
    watcher(&mut pool);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3", "4"]);
    assert_eq!(gone(&mut pool), []);
    pool.tick(0);
    assert_eq!(evicted(&mut pool), ["1", "2"]);
}

#[test]
fn a_delete_is_told_with_the_session_that_asked() {
    let mut pool = Pool::new(4);
    let (watcher, a) = (watcher(&mut pool), pool.hello("a"));
    pool.store_all(a, &["1", "2", "3"]);
    pool.acquire(a, "3");
    assert_eq!(pool.delete(watcher, "1"), DeleteOutcome::Deleted);
    assert_eq!(pool.delete(a, "2"), DeleteOutcome::Deleted);
    assert_eq!(pool.delete(a, "3"), DeleteOutcome::Pinned);
    assert_eq!(pool.delete(a, "4"), DeleteOutcome::Missing);
    assert_eq!(gone(&mut pool), [("1".into(), Some(watcher)), ("2".into(), Some(a))]);
}

/// An entry that leaves while somebody writes it anew keeps its key.
#[test]
fn a_chunk_that_is_being_written_again_is_told() {
    let mut pool = Pool::new(8);
    let (_, a, b) = (watcher(&mut pool), pool.hello("a"), pool.hello("b"));
    let (first, second) = (pool.grant(a, "k", MIB), pool.grant(b, "k", MIB));
    pool.commit(a, first, MIB);
    pool.delete(a, "k");
    assert_eq!(gone(&mut pool), [("k".into(), Some(a))]);
    assert!(matches!(pool.commit(b, second, MIB), CommitOutcome::Committed(_)));
}

#[test]
fn what_was_never_visible_is_not_told() {
    let mut pool = Pool::new(8);
    let (_, a, b) = (watcher(&mut pool), pool.hello("a"), pool.hello("b"));
    let (first, second) = (pool.grant(a, "k", MIB), pool.grant(b, "k", MIB));
    pool.commit(a, first, MIB);
    assert!(matches!(pool.commit(b, second, MIB), CommitOutcome::Superseded(_)));
    let aborted = pool.grant(a, "x", MIB);
    pool.abort(a, aborted);
    pool.grant(a, "y", MIB);
    pool.ask(a, Body::Goodbye).unwrap();
    pool.tick(0);
    assert_eq!(gone(&mut pool), []);
}

#[test]
fn while_nobody_watches_nothing_is_kept() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3", "4", "5"]);
    assert_eq!(gone(&mut pool), []);
    pool.directory.watch(a, Pool::secret(1)).unwrap();
    pool.directory.unwatch(a);
    pool.store(a, "6");
    assert_eq!(gone(&mut pool), []);
}

#[test]
fn only_a_living_session_watches_and_only_with_its_secret() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let refused = Err(Refusal::SessionEnded);
    assert_eq!(pool.directory.watch(a, Pool::secret(2)), refused);
    assert_eq!(pool.directory.watch(SessionId(0), Pool::secret(1)), refused);
    assert_eq!(pool.directory.watch(a, Pool::secret(1)), Ok(()));
    assert!(pool.directory.is_watching(a) && !pool.directory.is_watching(b));
    // A connection that is lost ends nothing yet.
    pool.directory.disconnected(pool.now, a);
    assert!(pool.directory.is_watching(a));
    pool.ask(b, Body::Renew).unwrap();
    pool.tick(800);
    assert!(!pool.directory.is_watching(a));
    assert_eq!(pool.directory.watch(a, Pool::secret(1)), refused);
    assert_eq!(pool.directory.watch(b, Pool::secret(2)), Ok(()));
    pool.ask(b, Body::Goodbye).unwrap();
    assert!(!pool.directory.is_watching(b));
}
