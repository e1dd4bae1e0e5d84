//! Writers and readers of one key, handles, pins, and requests sent twice.

use maru_directory::rules::Snapshot;
use maru_protocol::{
    Answer, Body, CommitItem, CommitOutcome, DeleteOutcome, Generation, Handle, Location, Refusal,
    ReleaseOutcome, Request, ReserveOutcome, SessionId,
};

use crate::pool::{MIB, Pool, keys, local};

#[test]
fn the_first_commit_wins_and_the_loser_gets_the_winners_location() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let (first, second) = (pool.grant(a, "k", MIB), pool.grant(b, "k", MIB));
    assert_ne!(first.offset, second.offset);
    assert_eq!(pool.acquire(b, "k"), None, "rule 2: nothing unfinished is visible");
    let winner = Location::new(second, 77);
    assert_eq!(pool.commit(b, second, 77), CommitOutcome::Committed(local(winner)));
    assert_eq!(pool.commit(a, first, MIB), CommitOutcome::Superseded(local(winner)));
    assert_eq!(pool.acquire(a, "k"), Some(winner));
    assert_eq!(pool.stats(a).pages_reserved, 0, "the loser's page is free again");
}

#[test]
fn a_writer_may_ask_to_be_refused_while_another_writes() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let reserve = |pool: &mut Pool, id: SessionId, tag, unless_being_written| {
        let keys = keys(&["k"]);
        let body = Body::Reserve { keys, page_bytes: MIB, tag, unless_being_written };
        match pool.ask(id, body) {
            Ok(Answer::Reserved(outcomes)) => outcomes[0],
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(reserve(&mut pool, a, 0, true), ReserveOutcome::Granted(_)));
    assert_eq!(reserve(&mut pool, b, 0, true), ReserveOutcome::BeingWritten);
    assert_eq!(reserve(&mut pool, a, 0, false), ReserveOutcome::AlreadyReserved);
    assert_eq!(reserve(&mut pool, a, 1, true), ReserveOutcome::BeingWritten);
    assert!(matches!(reserve(&mut pool, a, 1, false), ReserveOutcome::Granted(_)));
    assert!(matches!(reserve(&mut pool, b, 0, false), ReserveOutcome::Granted(_)));
}

#[test]
fn what_is_resident_is_not_granted_again() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    pool.store(a, "k");
    assert_eq!(pool.reserve(b, &["k"], MIB), [ReserveOutcome::Resident]);
}

/// The reservation of a page that a batch named twice was refused, since it was counted twice.
#[test]
fn a_key_named_twice_needs_one_page() {
    let mut pool = Pool::new(2);
    let a = pool.hello_with_budget("a", MIB);
    let outcomes = pool.reserve(a, &["k", "k"], MIB);
    assert!(matches!(outcomes[..], [ReserveOutcome::Granted(_), ReserveOutcome::AlreadyReserved]));
}

#[test]
fn a_pin_is_given_back_only_by_who_took_it() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let handle = pool.store(a, "k").handle;
    pool.acquire(a, "k");
    assert_eq!(pool.release(b, handle), ReleaseOutcome::NotHeld, "rule 4");
    assert_eq!(pool.delete(b, "k"), DeleteOutcome::Pinned, "rule 3");
    assert_eq!(pool.release(a, handle), ReleaseOutcome::Released);
    assert_eq!(pool.release(a, handle), ReleaseOutcome::NotHeld);
}

#[test]
fn more_pins_than_are_held_are_not_given_back_at_all() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let handle = pool.store(a, "k").handle;
    pool.acquire(a, "k");
    let handles = vec![handle];
    let answer = pool.ask(a, Body::Release { handles, pins: 2 });
    assert_eq!(answer, Ok(Answer::Released(vec![ReleaseOutcome::NotHeld])));
    assert_eq!(pool.stats(a).pins, 1);
}

#[test]
fn a_commit_can_pin_in_the_same_step() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let handle = pool.grant(a, "k", MIB);
    let items = vec![CommitItem { handle, length: 1, checksum: None }];
    pool.ask(a, Body::Commit { items, pins: 2, names: Vec::new() }).unwrap();
    assert_eq!(pool.stats(a).pins, 2);
    assert_eq!(pool.delete(a, "k"), DeleteOutcome::Pinned);
}

#[test]
fn delete_has_four_answers() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    assert_eq!(pool.delete(a, "k"), DeleteOutcome::Missing);
    let handle = pool.grant(a, "k", MIB);
    assert_eq!(pool.delete(a, "k"), DeleteOutcome::Reserved);
    pool.commit(a, handle, MIB);
    pool.acquire(a, "k");
    assert_eq!(pool.delete(a, "k"), DeleteOutcome::Pinned);
    pool.release(a, handle);
    assert_eq!(pool.delete(a, "k"), DeleteOutcome::Deleted);
}

#[test]
fn an_acquire_can_stop_at_the_first_miss() {
    let mut pool = Pool::new(8);
    let a = pool.hello("a");
    let (one, three) = (pool.store(a, "1"), pool.store(a, "3"));
    let mut acquire = |stop_at_miss| {
        let keys = keys(&["1", "2", "3"]);
        pool.ask(a, Body::Acquire { keys, pins: 1, stop_at_miss })
    };
    let prefix = Answer::Acquired(vec![Some(local(one))]);
    assert_eq!(acquire(true), Ok(prefix));
    let all = Answer::Acquired(vec![Some(local(one)), None, Some(local(three))]);
    assert_eq!(acquire(false), Ok(all));
    assert_eq!(pool.stats(a).pins, 3);
}

/// Rule 8, for each request that takes a handle.
#[test]
fn stale_foreign_and_made_up_handles_are_refused() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let stale = pool.grant(a, "k", MIB);
    pool.abort(a, stale);
    let fresh = pool.grant(a, "k", MIB);
    assert_eq!((fresh.region, fresh.offset), (stale.region, stale.offset));
    let next = Generation(fresh.generation.0 + 1);
    let made_up = [
        Handle { generation: next, ..fresh },
        Handle { offset: fresh.offset + 1, ..fresh },
        Handle { offset: u64::MAX, ..fresh },
        Handle { region: maru_protocol::RegionId(u32::MAX), ..fresh },
    ];
    for handle in made_up.into_iter().chain([stale]) {
        assert_eq!(pool.commit(a, handle, 1), CommitOutcome::NotReserved);
        assert_eq!(pool.abort(a, handle), ReleaseOutcome::NotHeld);
        assert_eq!(pool.release(a, handle), ReleaseOutcome::NotHeld);
    }
    assert_eq!(pool.commit(b, fresh, 1), CommitOutcome::NotReserved);
    assert_eq!(pool.abort(b, fresh), ReleaseOutcome::NotHeld);
    assert!(matches!(pool.commit(a, fresh, 1), CommitOutcome::Committed(_)));
    assert_eq!(pool.commit(a, fresh, 1), CommitOutcome::NotReserved);
}

#[test]
fn a_commit_of_an_impossible_length_keeps_the_reservation() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let handle = pool.grant(a, "k", MIB);
    for length in [0, MIB + 1, (1 << 32) + 1, u64::MAX] {
        assert_eq!(pool.commit(a, handle, length), CommitOutcome::BadLength);
    }
    assert!(matches!(pool.commit(a, handle, MIB), CommitOutcome::Committed(_)));
}

/// Rule 5: sent twice, applied once, answered twice with the same answer.
#[test]
fn a_request_sent_twice_is_applied_once() {
    let mut pool = Pool::new(8);
    let a = pool.hello("a");
    pool.store(a, "k");
    let keys = || keys(&["k"]);
    let page_bytes = MIB;
    let bodies = [
        Body::Acquire { keys: keys(), pins: 1, stop_at_miss: false },
        Body::Reserve {
            keys: crate::pool::keys(&["n"]),
            page_bytes,
            tag: 0,
            unless_being_written: false,
        },
        Body::Delete { keys: keys() },
        Body::Acquire { keys: keys(), pins: 0, stop_at_miss: false },
    ];
    for (seq, body) in (10..).zip(bodies) {
        let request = Request { seq, acked: seq - 1, body };
        let first = pool.send(a, &request);
        let before = Snapshot::of(&pool.directory);
        pool.pass(1);
        assert_eq!(pool.send(a, &request), first);
        assert_eq!(Snapshot::of(&pool.directory), before);
    }
    assert_eq!(pool.stats(a).counters.replays, 4);
}

#[test]
fn the_window_bounds_what_is_unacknowledged() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let touch = |seq, acked| Request { seq, acked, body: Body::Touch { keys: keys(&["k"]) } };
    for seq in 1..=4 {
        assert!(pool.send(a, &touch(seq, 0)).is_ok());
    }
    assert_eq!(pool.send(a, &touch(5, 0)), Err(Refusal::WindowFull { window: 4 }));
    assert!(pool.send(a, &touch(1, 0)).is_ok(), "a replay needs no room");
    let look = Request { seq: 6, acked: 0, body: Body::Stats };
    assert!(pool.send(a, &look).is_ok(), "a look is not kept");
    assert!(pool.send(a, &touch(5, 1)).is_ok());
}

/// The refusal named the highest forgotten number as the lowest remembered one.
#[test]
fn what_is_acknowledged_is_forgotten() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let touch = |seq, acked| Request { seq, acked, body: Body::Touch { keys: keys(&["k"]) } };
    pool.send(a, &touch(1, 0)).unwrap();
    pool.send(a, &touch(3, 2)).unwrap();
    let refusal = |seq| Err(Refusal::AlreadyAcknowledged { seq, floor: 3 });
    assert_eq!(pool.send(a, &touch(1, 0)), refusal(1));
    assert_eq!(pool.send(a, &touch(0, 0)), refusal(0));
    assert!(pool.send(a, &touch(3, 0)).is_ok(), "an older acknowledgement takes nothing back");
}

/// The reply to the last of all numbers was kept after it was acknowledged: rule 5 was broken.
#[test]
fn the_last_number_can_be_acknowledged() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let touch = |seq, acked| Request { seq, acked, body: Body::Touch { keys: keys(&["k"]) } };
    pool.send(a, &touch(u64::MAX, 0)).unwrap();
    let refusal = Refusal::AlreadyAcknowledged { seq: 1, floor: u64::MAX };
    assert_eq!(pool.send(a, &touch(1, u64::MAX)), Err(refusal));
}
