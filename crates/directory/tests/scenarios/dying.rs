//! Sessions that are dropped, expire, die, come back, or say goodbye (rules 6 and 7).

use maru_directory::{Config, Millis};
use maru_protocol::{Answer, Body, DeleteOutcome, Refusal, ReleaseOutcome, Secret, SessionId};

use crate::pool::{MIB, Pool, config, keys, memory};

/// A session with one reservation, and another that is there to ask; the pool has no other page.
fn with_a_writer() -> (Pool, SessionId, SessionId) {
    let mut pool = Pool::with(config(), &memory(2));
    let (dead, other) = (pool.hello("dead"), pool.hello("other"));
    pool.grant(dead, "k", 2 * MIB);
    (pool, dead, other)
}

fn free(pool: &mut Pool, id: SessionId) -> bool {
    let stats = pool.stats(id);
    stats.pages_reserved + stats.pages_quarantined == 0
}

/// Time passes while `id` is heard often enough.
fn renew_for(pool: &mut Pool, id: SessionId, ms: u64) {
    for _ in 0..ms / 5000 {
        pool.tick(5000);
        pool.ask(id, Body::Renew).unwrap();
    }
}

#[test]
fn an_expired_writers_page_is_quarantined_and_then_freed() {
    let (mut pool, dead, other) = with_a_writer();
    pool.pass(9_999);
    pool.ask(other, Body::Renew).unwrap();
    assert_eq!(pool.tick(0).expired, []);
    assert_eq!(pool.tick(1).expired, [dead]);
    assert_eq!(pool.stats(other).pages_quarantined, 1);
    assert_eq!(pool.ask(dead, Body::Renew), Err(Refusal::SessionEnded));
    renew_for(&mut pool, other, 29_999);
    pool.tick(4_999);
    assert_eq!(pool.stats(other).pages_quarantined, 1, "rule 7: not a moment sooner");
    pool.tick(1);
    assert!(free(&mut pool, other));
}

#[test]
fn any_request_renews_the_lease() {
    let mut pool = Pool::new(2);
    let a = pool.hello("a");
    for body in [Body::Renew, Body::Stats, Body::Regions] {
        pool.pass(9_999);
        pool.ask(a, body).unwrap();
        assert_eq!(pool.tick(9_999).expired, []);
    }
    assert_eq!(pool.tick(1).expired, [a]);
}

#[test]
fn letting_go_with_the_secret_ends_the_quarantine() {
    let (mut pool, dead, other) = with_a_writer();
    let let_go = |pool: &mut Pool, secret| {
        let body = Body::LetGo { session: dead, secret };
        assert_eq!(pool.ask(other, body), Ok(Answer::Done));
        pool.tick(0);
        free(pool, other)
    };
    assert!(!let_go(&mut pool, Pool::secret(1)), "it has a connection of its own");
    pool.directory.disconnected(pool.now, dead);
    pool.tick(800);
    assert!(!let_go(&mut pool, Pool::secret(2)), "it is another's secret");
    assert!(let_go(&mut pool, Pool::secret(1)));
}

#[test]
fn letting_go_of_a_session_without_a_connection_ends_it_at_once() {
    let (mut pool, dropped, other) = with_a_writer();
    pool.directory.disconnected(pool.now, dropped);
    let body = Body::LetGo { session: dropped, secret: Pool::secret(1) };
    assert_eq!(pool.ask(other, body), Ok(Answer::Done));
    pool.tick(0);
    assert!(free(&mut pool, other));
}

#[test]
fn a_writer_known_dead_needs_no_quarantine() {
    let (mut pool, dead, other) = with_a_writer();
    pool.directory.writer_dead(pool.now, dead);
    pool.tick(0);
    assert!(free(&mut pool, other));
    assert_eq!(pool.stats(other).counters.quarantined, 0);
}

#[test]
fn a_writer_found_dead_later_ends_the_quarantine() {
    let (mut pool, dead, other) = with_a_writer();
    pool.directory.disconnected(pool.now, dead);
    pool.tick(800);
    assert!(!free(&mut pool, other));
    pool.directory.writer_dead(pool.now, dead);
    pool.tick(0);
    assert!(free(&mut pool, other));
}

/// A stopped process goes on in the middle of its copy, however much later.
#[test]
fn the_quarantine_of_a_stopped_writer_does_not_run() {
    let (mut pool, dead, other) = with_a_writer();
    pool.directory.disconnected(pool.now, dead);
    pool.tick(800);
    for _ in 0..9 {
        pool.ask(other, Body::Renew).unwrap();
        pool.tick(7_000);
        pool.directory.writer_stopped(pool.now, dead);
    }
    assert!(!free(&mut pool, other));
    for _ in 0..5 {
        pool.ask(other, Body::Renew).unwrap();
        pool.tick(6_000);
    }
    assert!(free(&mut pool, other));
}

#[test]
fn after_goodbye_all_is_free() {
    let (mut pool, dead, other) = with_a_writer();
    assert_eq!(pool.ask(dead, Body::Goodbye), Ok(Answer::Done));
    assert_eq!(pool.ask(dead, Body::Renew), Err(Refusal::SessionEnded));
    pool.tick(0);
    assert!(free(&mut pool, other));
    assert_eq!(pool.stats(other).sessions.len(), 1);
}

#[test]
fn a_session_resumed_in_time_keeps_what_it_holds() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let handle = pool.store(b, "k").handle;
    pool.acquire(a, "k");
    let written = pool.grant(a, "w", MIB);
    pool.directory.disconnected(pool.now, a);
    pool.tick(799);
    assert_eq!(pool.ask(a, Body::Renew), Err(Refusal::SessionEnded), "it has no connection");
    assert!(pool.resume(a, Pool::secret(1)));
    pool.tick(1);
    assert_eq!(pool.delete(b, "k"), DeleteOutcome::Pinned);
    assert_eq!(pool.release(a, handle), ReleaseOutcome::Released);
    assert_eq!(pool.abort(a, written), ReleaseOutcome::Released);
}

#[test]
fn a_session_is_not_resumed_with_another_secret_or_too_late() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    assert!(!pool.resume(a, Secret([99; 16])));
    assert!(!pool.resume(SessionId(0), Pool::secret(1)));
    pool.directory.disconnected(pool.now, a);
    pool.tick(800);
    assert!(!pool.resume(a, Pool::secret(1)));
}

#[test]
fn a_hundred_thousand_pins_are_released_a_bounded_part_at_a_time() {
    const KEYS: usize = 100_000;
    let work_per_tick = 4096;
    let config = Config { work_per_tick, batch_max: 4096, ..config() };
    let mut pool = Pool::with(config, &memory(KEYS as u64 * 4096 / MIB + 2));
    let (dead, other) = (pool.hello("dead"), pool.hello("other"));
    let names: Vec<String> = (0..KEYS).map(|n| n.to_string()).collect();
    for names in names.chunks(4096) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let outcomes = pool.reserve(dead, &names, 4096);
        let granted = outcomes.iter().map(|outcome| match outcome {
            maru_protocol::ReserveOutcome::Granted(location) => location.handle,
            other => panic!("{other:?}"),
        });
        let items =
            granted.map(|handle| maru_protocol::CommitItem { handle, length: 1, checksum: None });
        let items = items.collect();
        pool.directory.apply(
            pool.now,
            dead,
            &maru_protocol::Request { seq: u64::MAX, acked: 0, body: Body::Renew },
        );
        pool.ask(dead, Body::Commit { items, pins: 1, names: Vec::new() }).unwrap();
    }
    assert_eq!(pool.stats(other).pins, KEYS as u64);
    pool.directory.writer_dead(pool.now, dead);
    let mut left = KEYS as u64;
    while left > 0 {
        pool.directory.tick(pool.now);
        // Others are answered in between.
        let answer = pool.directory.apply(
            pool.now,
            other,
            &maru_protocol::Request { seq: 0, acked: 0, body: Body::Stats },
        );
        let Ok(Answer::Stats(stats)) = answer.result else {
            panic!("{answer:?}");
        };
        assert_eq!(stats.pins, left.saturating_sub(work_per_tick.into()));
        left = stats.pins;
    }
    maru_directory::rules::check(&pool.directory, pool.now).unwrap();
}

#[test]
fn the_sessions_are_limited_and_their_places_come_back() {
    let config = Config { sessions_max: 1, ..config() };
    let mut pool = Pool::with(config, &memory(2));
    let a = pool.hello("a");
    let hello = maru_protocol::Hello {
        instance: "b",
        host: "host",
        budget_bytes: 0,
        resume: None,
        outside_writers: false,
    };
    let refused = pool.directory.hello(pool.now, &hello, Pool::secret(9), None);
    assert_eq!(refused, Err(Refusal::TooManySessions { limit: 1 }));
    pool.ask(a, Body::Goodbye).unwrap();
    pool.tick(0);
    assert!(pool.directory.hello(pool.now, &hello, Pool::secret(9), None).is_ok());
}

#[test]
fn a_dead_readers_pins_protect_no_longer() {
    let mut pool = Pool::new(2);
    let (dead, other) = (pool.hello("dead"), pool.hello("other"));
    pool.store(other, "k");
    pool.acquire(dead, "k");
    pool.acquire(other, "k");
    pool.directory.disconnected(Millis(0), dead);
    pool.tick(1000);
    assert_eq!(pool.stats(other).pins, 1, "rule 4: exactly its own are released");
    let keys = keys(&["k"]);
    assert_eq!(
        pool.ask(other, Body::Delete { keys }),
        Ok(Answer::Deleted(vec![DeleteOutcome::Pinned]))
    );
}
