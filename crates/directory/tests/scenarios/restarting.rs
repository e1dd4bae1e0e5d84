//! The server is killed and started again.

use maru_directory::Config;
use maru_protocol::{
    Answer, Body, CommitItem, CommitOutcome, DeleteOutcome, Handle, Location, Presence, Refusal,
    ReleaseOutcome, Request, ReserveOutcome, SessionId, Standing,
};

use crate::pool::{MIB, Pool, config, keys, local, memory};

#[test]
fn what_was_committed_is_found_again_and_what_left_is_not() {
    let mut pool = Pool::new(8);
    let a = pool.hello("a");
    let kept = pool.store(a, "kept");
    pool.store(a, "deleted");
    pool.delete(a, "deleted");
    pool.store_sized(a, "small", 4096);
    pool.grant(a, "unfinished", MIB);
    pool.restart();
    let b = pool.hello("b");
    let names = ["kept", "deleted", "small", "unfinished"];
    assert_eq!(pool.resident(b, &names), ["kept", "small"]);
    assert_eq!(pool.acquire(b, "kept"), Some(kept));
    assert_eq!(pool.stats(b).counters.recovered, 2);
}

#[test]
fn what_was_evicted_is_not_found_again() {
    let mut pool = Pool::new(2);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3"]);
    pool.restart();
    let b = pool.hello("b");
    assert_eq!(pool.resident(b, &["1", "2", "3"]), ["2", "3"]);
}

#[test]
fn a_log_can_begin_with_a_checkpoint() {
    let mut pool = Pool::new(8);
    let a = pool.hello_with_budget("a", 4 * MIB);
    let location = pool.store(a, "k");
    let handle = pool.grant(a, "w", MIB);
    pool.compact();
    pool.restart();
    let claim = pool.claim(a, 1, &[(location.handle, 1)], &[(handle, "w")]);
    assert_eq!(claim, Ok(Answer::Done));
    let stats = pool.stats(a);
    assert_eq!((stats.pins, stats.pages_reserved, stats.pages_resident), (1, 1, 1));
    assert_eq!(
        (stats.sessions[0].instance_bytes, stats.sessions[0].budget_bytes),
        (2 << 20, 4 << 20)
    );
}

/// Until everybody has said what it holds, whatever is there may be pinned.
#[test]
fn nothing_leaves_before_all_have_claimed() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    for name in ["1", "2", "3", "4"] {
        pool.store(b, name);
    }
    let pinned = pool.acquire(a, "1").unwrap().handle;
    pool.restart();
    assert_eq!(pool.claim(b, 2, &[], &[]), Ok(Answer::Done));
    assert_eq!(pool.delete(b, "1"), DeleteOutcome::Pinned);
    assert_eq!(pool.delete(b, "2"), DeleteOutcome::Pinned, "a may hold it");
    assert_eq!(pool.reserve(b, &["w"], MIB), [ReserveOutcome::OutOfMemory]);
    assert_eq!(pool.claim(a, 1, &[(pinned, 1)], &[]), Ok(Answer::Done));
    assert_eq!(pool.delete(b, "1"), DeleteOutcome::Pinned);
    assert_eq!(pool.delete(b, "2"), DeleteOutcome::Deleted);
    pool.grant(b, "w", MIB);
    assert_eq!(pool.release(a, pinned), ReleaseOutcome::Released);
    assert_eq!(pool.delete(b, "1"), DeleteOutcome::Deleted);
}

#[test]
fn a_claimed_reservation_goes_on() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let (kept, aborted) = (pool.grant(a, "k", MIB), pool.grant(a, "x", MIB));
    pool.restart();
    assert_eq!(pool.claim(a, 1, &[], &[(kept, "k"), (aborted, "x")]), Ok(Answer::Done));
    let stored = CommitOutcome::Committed(local(Location::new(kept, 9)));
    assert_eq!(pool.commit(a, kept, 9), stored);
    assert_eq!(pool.abort(a, aborted), ReleaseOutcome::Released);
    pool.restart();
    assert_eq!(pool.claim(a, 1, &[(kept, 2)], &[]), Ok(Answer::Done));
    assert_eq!(pool.stats(a).pins, 2);
}

#[test]
fn what_nobody_claims_is_vacant_once_all_are_back() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    pool.store(a, "k");
    // Its reply was lost, so nobody claims it.
    pool.grant(b, "w", MIB);
    pool.restart();
    assert_eq!(pool.claim(a, 1, &[], &[]), Ok(Answer::Done));
    let outcomes = pool.reserve(a, &["1"], MIB);
    assert!(matches!(outcomes[..], [ReserveOutcome::Granted(_)]), "a region was cut for no size");
    assert_eq!(pool.stats(a).pages_unclaimed, 1);
    pool.tick(0);
    assert_eq!(pool.stats(a).pages_unclaimed, 1, "b may still come");
    assert_eq!(pool.claim(b, 2, &[], &[]), Ok(Answer::Done));
    pool.tick(0);
    let stats = pool.stats(a);
    assert_eq!((stats.pages_unclaimed, stats.pages_quarantined), (0, 0));
}

/// A reserve that came before the tick evicted a chunk.
#[test]
fn what_nobody_claims_is_granted_before_anything_is_evicted() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3"]);
    pool.restart();
    assert_eq!(pool.claim(a, 1, &[], &[]), Ok(Answer::Done));
    pool.grant(a, "w", MIB);
    assert_eq!(pool.resident(a, &["1", "2", "3"]), ["1", "2", "3"]);
    assert_eq!(pool.stats(a).pages_unclaimed, 0);
    pool.grant(a, "x", MIB);
    assert_eq!(pool.resident(a, &["1", "2", "3"]), ["2", "3"]);
}

/// All that was vacant is quarantined until it is known who writes to it: that was taken for a pool
/// that is nearly full.
#[test]
fn what_is_unclaimed_leads_to_no_eviction() {
    let config = Config { watermark_high_permille: 900, watermark_low_permille: 500, ..config() };
    let mut pool = Pool::with(config, &memory(4));
    let (a, _lost) = (pool.hello("a"), pool.hello("b"));
    pool.store_all(a, &["1", "2", "3"]);
    pool.restart();
    assert_eq!(pool.claim(a, 1, &[], &[]), Ok(Answer::Done));
    pool.tick(9_999);
    pool.ask(a, Body::Renew).unwrap();
    pool.tick(1);
    assert_eq!(pool.stats(a).pages_unclaimed, 1);
    pool.tick(1);
    assert_eq!(pool.stats(a).counters.evicted(), 0);
}

#[test]
fn a_session_that_does_not_come_back_is_quarantined_for() {
    let mut pool = Pool::new(2);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    pool.store(a, "k");
    pool.acquire(b, "k");
    pool.grant(b, "w", MIB);
    pool.restart();
    assert_eq!(pool.claim(a, 1, &[], &[]), Ok(Answer::Done));
    let alive = |pool: &mut Pool| pool.ask(a, Body::Renew).unwrap();
    pool.tick(9_999);
    assert_eq!(pool.delete(a, "k"), DeleteOutcome::Pinned);
    pool.tick(1);
    assert_eq!(
        pool.delete(a, "k"),
        DeleteOutcome::Deleted,
        "b's lease is over, and its pin with it"
    );
    assert_eq!(pool.stats(a).pages_unclaimed, 1, "b could still write");
    for _ in 0..5 {
        alive(&mut pool);
        pool.tick(5_999);
    }
    assert_eq!(pool.stats(a).pages_unclaimed, 1);
    pool.tick(5);
    assert_eq!(pool.stats(a).pages_unclaimed, 0);
}

#[test]
fn a_process_found_dead_after_the_restart_needs_no_quarantine() {
    let mut pool = Pool::new(2);
    let (a, b) = (pool.hello("a"), pool.hello_watched("b"));
    pool.grant(b, "w", MIB);
    pool.restart();
    let processes = pool.directory.processes_before();
    assert_eq!(processes.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [b]);
    pool.claim(a, 1, &[], &[]).unwrap();
    pool.directory.writer_dead(pool.now, b);
    pool.tick(0);
    assert_eq!(pool.stats(a).pages_unclaimed, 0);
}

#[test]
fn an_instance_that_comes_too_late_can_let_go() {
    let mut pool = Pool::new(2);
    let (a, b) = (pool.hello("a"), pool.hello_watched("b"));
    pool.grant(b, "w", MIB);
    pool.restart();
    pool.claim(a, 1, &[], &[]).unwrap();
    pool.tick(10_000);
    assert_eq!(pool.standing(b, Pool::secret(2)), Standing::New);
    pool.ask(a, Body::Renew).unwrap_err();
    let a = pool.hello("a");
    pool.tick(0);
    assert_eq!(pool.stats(a).pages_unclaimed, 2, "the whole region");
    let (session, secret) = (b, Pool::secret(2));
    pool.ask(a, Body::LetGo { session, secret }).unwrap();
    pool.tick(0);
    assert_eq!(pool.stats(a).pages_unclaimed, 0);
}

#[test]
fn quarantined_pages_stay_so() {
    let mut pool = Pool::new(2);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let handle = pool.grant(b, "w", MIB);
    pool.directory.disconnected(pool.now, b);
    pool.tick(800);
    assert_eq!(pool.stats(a).pages_quarantined, 1);
    for _ in 0..2 {
        pool.restart();
        pool.claim(a, 1, &[], &[]).unwrap();
        pool.tick(0);
        let stats = pool.stats(a);
        assert_eq!((stats.pages_quarantined, stats.pages_unclaimed), (1, 0), "{handle:?}");
        pool.compact();
    }
    for _ in 0..6 {
        pool.ask(a, Body::Renew).unwrap();
        pool.tick(5_000);
    }
    assert_eq!(pool.stats(a).pages_quarantined, 0);
}

#[test]
fn before_it_has_claimed_a_session_is_answered_nothing_else() {
    let mut pool = Pool::new(2);
    let a = pool.hello("a");
    pool.restart();
    assert_eq!(pool.ask(a, Body::Renew), Err(Refusal::SessionEnded), "it is not connected");
    assert_eq!(pool.standing(a, Pool::secret(1)), Standing::Restored);
    for body in [Body::Renew, Body::Goodbye, Body::Contains { keys: keys(&["k"]) }] {
        assert_eq!(pool.ask(a, body), Err(Refusal::ClaimFirst));
    }
    assert_eq!(pool.claim(a, 1, &[], &[]), Ok(Answer::Done));
    assert!(pool.ask(a, Body::Renew).is_ok());
    assert!(pool.resume(a, Pool::secret(1)), "it is a session like any other");
}

#[test]
fn who_does_not_claim_in_time_is_over() {
    let mut pool = Pool::new(2);
    let a = pool.hello("a");
    pool.restart();
    pool.tick(9_000);
    assert_eq!(pool.standing(a, Pool::secret(1)), Standing::Restored);
    assert_eq!(pool.tick(1_000).expired, [a], "though it was heard a second ago");
}

/// Pins and reservations.
type Claim<'a> = (&'a [(Handle, u32)], &'a [(Handle, &'a str)]);

#[test]
fn a_claim_of_what_was_never_granted_ends_the_session() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let (pinned, reserved) = (pool.store(a, "k").handle, pool.grant(a, "w", MIB));
    let later = |handle: Handle| {
        let mut later = handle;
        later.generation.0 += 1 << 32;
        later
    };
    let outside = Handle { offset: 64 * MIB, ..reserved };
    let claims: [Claim<'_>; 6] = [
        (&[(later(pinned), 1)], &[]),
        (&[(reserved, 1)], &[]),
        (&[(pinned, 0)], &[]),
        (&[], &[(later(reserved), "w")]),
        (&[], &[(pinned, "k")]),
        (&[(pinned, 1)], &[(reserved, "w"), (outside, "v")]),
    ];
    for (pins, reservations) in claims {
        let mut pool = Pool::new(4);
        let a = pool.hello("a");
        assert_eq!((pool.store(a, "k").handle, pool.grant(a, "w", MIB)), (pinned, reserved));
        pool.restart();
        let claim = pool.claim(a, 1, pins, reservations);
        assert!(matches!(claim, Err(Refusal::Claim { .. })), "{claim:?}");
        pool.tick(0);
        assert_eq!(pool.standing(a, Pool::secret(1)), Standing::New);
        let b = pool.hello("b");
        let stats = pool.stats(b);
        assert_eq!((stats.pins, stats.pages_reserved), (0, 0), "nothing of it is left");
        let kept = stats.pages_quarantined;
        assert_eq!(kept, 1, "and its writer is not known to be gone");
    }
}

/// One connection broke in the middle: the next begins again.
#[test]
fn claims_can_be_made_in_parts_and_anew() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let (k, w) = (pool.store(a, "k").handle, pool.grant(a, "w", MIB));
    pool.restart();
    let part = |pool: &mut Pool, last| {
        let pins = vec![maru_protocol::PinClaim { handle: k, count: 1 }];
        let key = keys(&["w"])[0];
        let reservation =
            maru_protocol::ReservationClaim { handle: w, key, tag: 0, committing: None };
        let reservations = if last { vec![] } else { vec![reservation] };
        let commits = Vec::new();
        pool.ask(a, Body::Claim { pins, reservations, commits, last }).unwrap();
    };
    for _ in 0..2 {
        assert_eq!(pool.standing(a, Pool::secret(1)), Standing::Restored);
        part(&mut pool, false);
        pool.directory.disconnected(pool.now, a);
    }
    assert_eq!(pool.standing(a, Pool::secret(1)), Standing::Restored);
    part(&mut pool, false);
    part(&mut pool, true);
    let stats = pool.stats(a);
    assert_eq!((stats.pins, stats.pages_reserved), (2, 1));
}

fn commit_and_pin(pool: &mut Pool, id: SessionId, handle: Handle, seq: u64) -> Answer {
    let items = vec![CommitItem { handle, length: 7, checksum: None }];
    let body = Body::Commit { items, pins: 1, names: Vec::new() };
    pool.send(id, &Request { seq, acked: seq - 1, body }).unwrap()
}

/// The commit was applied, the server killed before its reply was read.
#[test]
fn a_commit_is_answered_alike_by_the_next_server() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let winner = pool.grant(a, "k", MIB);
    let loser = pool.grant(b, "k", MIB);
    let stored = commit_and_pin(&mut pool, a, winner, 2);
    let superseded = commit_and_pin(&mut pool, b, loser, 2);
    pool.restart();
    for (n, id, handle) in [(1, a, winner), (2, b, loser)] {
        assert_eq!(pool.standing(id, Pool::secret(n)), Standing::Restored);
        let key = keys(&["k"])[0];
        let reservation =
            maru_protocol::ReservationClaim { handle, key, tag: 0, committing: Some(2) };
        let (pins, reservations, commits) = (vec![], vec![reservation], vec![2]);
        let body = Body::Claim { pins, reservations, commits, last: true };
        assert_eq!(pool.ask(id, body), Ok(Answer::Done));
    }
    assert_eq!(commit_and_pin(&mut pool, a, winner, 2), stored);
    assert_eq!(commit_and_pin(&mut pool, b, loser, 2), superseded);
    let stats = pool.stats(a);
    assert_eq!((stats.pins, stats.counters.replays), (2, 2), "the pins are taken once");
    assert_eq!(pool.release(b, winner), ReleaseOutcome::Released);
    assert_eq!(pool.release(a, winner), ReleaseOutcome::Released);
    assert_eq!(pool.delete(a, "k"), DeleteOutcome::Deleted);
}

/// The server was killed before the commit came.
#[test]
fn a_commit_that_was_not_applied_is_applied_by_the_next_server() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let handle = pool.grant(a, "k", MIB);
    pool.restart();
    assert_eq!(pool.standing(a, Pool::secret(1)), Standing::Restored);
    let reservation = maru_protocol::ReservationClaim {
        handle,
        key: keys(&["k"])[0],
        tag: 0,
        committing: Some(2),
    };
    let (pins, reservations, commits) = (vec![], vec![reservation], vec![2]);
    let body = Body::Claim { pins, reservations, commits, last: true };
    assert_eq!(pool.ask(a, body), Ok(Answer::Done));
    let chunk = local(Location::new(handle, 7));
    let outcome = Answer::Committed(vec![CommitOutcome::Committed(chunk)]);
    assert_eq!(commit_and_pin(&mut pool, a, handle, 3), outcome);
    assert_eq!(pool.stats(a).pins, 1);
}

/// It came to the first server; by the time it comes again the chunk is there again.
#[test]
fn a_delete_is_not_done_twice_by_two_servers() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store(a, "k");
    let delete = Request { seq: 3, acked: 2, body: Body::Delete { keys: keys(&["k"]) } };
    let deleted = pool.send(a, &delete);
    assert_eq!(deleted, Ok(Answer::Deleted(vec![DeleteOutcome::Deleted])));
    pool.restart();
    let b = pool.hello("b");
    pool.store(b, "k");
    pool.claim(a, 1, &[], &[]).unwrap();
    assert_eq!(pool.send(a, &delete), deleted);
    assert_eq!(pool.resident(b, &["k"]), ["k"]);
}

/// Who had claimed before the second kill claims again.
#[test]
fn a_server_can_be_killed_while_it_waits_for_claims() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let (k, w) = (pool.store(a, "k").handle, pool.grant(b, "w", MIB));
    pool.acquire(a, "k");
    pool.restart();
    pool.claim(a, 1, &[(k, 1)], &[]).unwrap();
    pool.restart();
    pool.claim(b, 2, &[], &[(w, "w")]).unwrap();
    assert_eq!(pool.delete(b, "k"), DeleteOutcome::Pinned);
    pool.claim(a, 1, &[(k, 1)], &[]).unwrap();
    assert_eq!(pool.stats(a).sessions_awaited, 0);
    assert_eq!(pool.stats(a).counters.sessions_restored, 2);
    pool.tick(0);
    let stats = pool.stats(a);
    assert_eq!((stats.pages_unclaimed, stats.pins, stats.pages_reserved), (0, 1, 1));
}

#[test]
fn a_session_that_ended_is_not_restored() {
    let mut pool = Pool::new(2);
    let a = pool.hello("a");
    pool.ask(a, Body::Goodbye).unwrap();
    pool.restart();
    assert_eq!(pool.standing(a, Pool::secret(1)), Standing::New);
    let b = pool.hello("b");
    assert_eq!(pool.stats(b).sessions_awaited, 0);
}

/// Its page was granted by a server without a store, while a reader still took it for protected.
#[test]
fn a_pool_that_is_read_is_not_left_alone() {
    let mut pool = Pool::new(2);
    let a = pool.hello("a");
    let k = pool.store(a, "k").handle;
    assert!(pool.directory.nobody_holds());
    pool.acquire(a, "k");
    assert!(!pool.directory.nobody_holds());
    pool.release(a, k);
    assert!(pool.directory.nobody_holds());
}

/// A session relies on the times of the server that it knew until it hears of others.
#[test]
fn a_shorter_lease_is_not_held_against_a_session_of_before() {
    let config = Config { lease_ms: 100, resume_ms: 100, ..config() };
    let mut pool = Pool::with(config, &memory(2));
    let a = pool.hello("a");
    pool.store(a, "k");
    pool.acquire(a, "k");
    pool.restart();
    pool.tick(899);
    assert_eq!(pool.directory.sessions_awaited(), 1);
    pool.tick(1);
    assert_eq!(pool.directory.sessions_awaited(), 0);
}

/// It was taken for a writer that had vanished if the server was killed before its next tick: what was
/// vacant was kept from everybody for the time of a quarantine.
#[test]
fn who_said_that_it_writes_no_more_is_believed_after_a_restart() {
    for compacted in [false, true] {
        let mut pool = Pool::new(2);
        let (a, b) = (pool.hello("a"), pool.hello("b"));
        pool.store(a, "k");
        pool.grant(b, "w", MIB);
        pool.ask(b, Body::Goodbye).unwrap();
        if compacted {
            pool.compact();
        }
        pool.restart();
        pool.claim(a, 1, &[], &[]).unwrap();
        pool.tick(0);
        assert_eq!(pool.stats(a).pages_unclaimed, 0);
        pool.grant(a, "w", MIB);
    }
}

#[test]
fn while_nothing_can_be_stored_writes_are_refused_and_reads_go_on() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let k = pool.store(a, "k").handle;
    let w = pool.grant(a, "w", MIB);
    pool.acquire(b, "k");
    pool.grant(b, "v", MIB);
    pool.directory.set_store_full(true);
    let items = vec![CommitItem { handle: w, length: 1, checksum: None }];
    let (page_bytes, tag, unless_being_written) = (MIB, 0, false);
    let reserve = Body::Reserve { keys: keys(&["x"]), page_bytes, tag, unless_being_written };
    for body in [
        reserve,
        Body::Commit { items, pins: 0, names: Vec::new() },
        Body::Delete { keys: keys(&["k"]) },
    ] {
        assert_eq!(pool.ask(a, body), Err(Refusal::StoreFull));
    }
    assert!(pool.acquire(a, "k").is_some());
    assert_eq!(pool.release(a, k), ReleaseOutcome::Released);
    pool.directory.writer_dead(pool.now, b);
    pool.tick(0);
    let stats = pool.stats(a);
    assert!(stats.store_full);
    assert_eq!((stats.pins, stats.pages_reserved), (0, 2), "pages wait, pins do not");
    // Nor do the pins of who dies behind one whose pages wait.
    let reader = pool.hello("c");
    pool.acquire(reader, "k");
    pool.directory.writer_dead(pool.now, reader);
    pool.tick(0);
    assert_eq!(pool.stats(a).pins, 0);
    pool.tick(2_000);
    pool.directory.set_store_full(false);
    pool.tick(0);
    assert_eq!(pool.stats(a).pages_reserved, 1);
    assert!(matches!(pool.commit(a, w, 1), CommitOutcome::Committed(_)));
    assert_eq!(
        pool.ask(a, Body::Contains { keys: keys(&["w"]) }),
        Ok(Answer::Contained(vec![Presence::Resident]))
    );
}
