//! Hosts whose caches are not coherent with each other.

use maru_directory::Config;
use maru_protocol::{
    Answer, Body, CommitOutcome, DeleteOutcome, Handle, Refusal, ReserveOutcome, SessionId,
    Visibility,
};

use crate::pool::{MIB, Pool, config, keys, memory};

/// A pool of two pages between incoherent hosts, a session on each, and how one on the first died in
/// the middle of writing a page.
fn after_a_death(mib: u64) -> (Pool, SessionId, SessionId, Handle) {
    let config = Config { visibility: Visibility::CacheLine, ..config() };
    let mut pool = Pool::with(config, &memory(mib));
    let (here, there) = (pool.hello_from("here", "h1"), pool.hello_from("there", "h2"));
    let dead = pool.hello_from("dead", "h1");
    let handle = pool.grant(dead, "w", MIB);
    pool.directory.writer_dead(pool.now, dead);
    pool.tick(0);
    (pool, here, there, handle)
}

fn stained(pool: &mut Pool, id: SessionId) -> Vec<Handle> {
    match pool.ask(id, Body::Renew) {
        Ok(Answer::Renewed(stained)) => stained.iter().map(|location| location.handle).collect(),
        other => panic!("a renew is answered {other:?}"),
    }
}

/// The server is started again, and both sessions come back.
fn restarted(pool: &mut Pool, here: SessionId, there: SessionId, held: &[(Handle, &str)]) {
    pool.restart();
    pool.claim(here, 1, &[], held).unwrap();
    pool.claim(there, 2, &[], &[]).unwrap();
    pool.tick(0);
}

#[test]
fn a_reader_is_told_whether_it_has_to_invalidate() {
    let (mut pool, here, there, _) = after_a_death(4);
    pool.store(here, "k");
    let mut foreign = |id| {
        let body = Body::Acquire { keys: keys(&["k"]), pins: 1, stop_at_miss: false };
        match pool.ask(id, body) {
            Ok(Answer::Acquired(found)) => found[0].unwrap().foreign,
            other => panic!("an acquire is answered {other:?}"),
        }
    };
    assert!(!foreign(here) && foreign(there));
}

#[test]
fn a_page_with_dirty_lines_goes_to_the_same_host_alone() {
    let (mut pool, here, there, handle) = after_a_death(2);
    assert_eq!(pool.stats(here).pages_stained, 1);
    pool.store(there, "k");
    pool.acquire(there, "k");
    assert_eq!(pool.reserve(there, &["x"], MIB), [ReserveOutcome::OutOfMemory]);
    let granted = pool.grant(here, "x", MIB);
    assert_eq!(granted.offset, handle.offset);
    assert_ne!(granted.generation, handle.generation);
    assert_eq!(pool.stats(here).pages_stained, 0);
}

#[test]
fn a_host_that_has_written_back_frees_its_pages() {
    let (mut pool, here, there, handle) = after_a_death(2);
    assert_eq!(stained(&mut pool, there), [], "nothing is asked of the other host");
    assert_eq!(stained(&mut pool, here), [handle]);
    pool.ask(there, Body::Cleaned { handles: vec![handle] }).unwrap();
    assert_eq!(pool.stats(here).pages_stained, 1, "it cannot clean for another");
    pool.ask(here, Body::Cleaned { handles: vec![handle] }).unwrap();
    assert_eq!(pool.stats(here).pages_stained, 0);
    let granted = pool.grant(there, "x", MIB);
    pool.ask(here, Body::Cleaned { handles: vec![handle, granted] }).unwrap();
    assert_eq!(pool.stats(here).pages_reserved, 1, "a stale handle cleans nothing");
}

#[test]
fn who_aborts_or_says_goodbye_has_written_back() {
    let (mut pool, here, there, handle) = after_a_death(4);
    pool.ask(here, Body::Cleaned { handles: vec![handle] }).unwrap();
    let aborted = pool.grant(here, "1", MIB);
    pool.abort(here, aborted);
    pool.grant(here, "2", MIB);
    pool.ask(here, Body::Goodbye).unwrap();
    pool.tick(0);
    let stats = pool.stats(there);
    assert_eq!((stats.pages_stained, stats.pages_reserved), (0, 0));
}

#[test]
fn a_quarantine_that_ends_by_the_clock_leaves_stains() {
    let (mut pool, here, there, handle) = after_a_death(4);
    pool.ask(here, Body::Cleaned { handles: vec![handle] }).unwrap();
    let lost = pool.grant(here, "1", MIB);
    pool.directory.disconnected(pool.now, here);
    pool.tick(800);
    for _ in 0..4 {
        pool.ask(there, Body::Renew).unwrap();
        pool.tick(7_500);
    }
    assert_eq!(pool.stats(there).pages_stained, 1);
    let back = pool.hello_from("back", "h1");
    assert_eq!(stained(&mut pool, back), [lost]);
}

#[test]
fn a_host_that_is_gone_holds_no_lines() {
    let (mut pool, here, there, _) = after_a_death(4);
    assert_eq!(pool.ask(there, Body::HostGone { host: "h1" }), Err(Refusal::HostInUse));
    pool.ask(here, Body::Goodbye).unwrap();
    pool.tick(0);
    pool.ask(there, Body::HostGone { host: "nobody" }).unwrap();
    pool.tick(0);
    assert_eq!(pool.stats(there).pages_stained, 1);
    pool.ask(there, Body::HostGone { host: "h1" }).unwrap();
    pool.tick(0);
    assert_eq!(pool.stats(there).pages_stained, 0);
}

#[test]
fn stains_outlive_the_server() {
    let (mut pool, here, there, handle) = after_a_death(2);
    restarted(&mut pool, here, there, &[]);
    assert_eq!(stained(&mut pool, here), [handle]);
    pool.compact();
    restarted(&mut pool, here, there, &[]);
    assert_eq!(stained(&mut pool, here), [handle]);
}

/// That a host was granted a page does not say that it wrote to it: what its caches held of it before
/// they may hold yet.
#[test]
fn a_stained_page_that_is_given_up_is_stained_as_before() {
    let (mut pool, here, there, _) = after_a_death(2);
    let given_up = pool.grant(here, "x", MIB);
    assert_eq!(pool.stats(here).pages_stained, 0);
    pool.abort(here, given_up);
    assert_eq!(stained(&mut pool, here), [given_up]);
    for compacted in [false, true] {
        let claimed = pool.grant(here, "y", MIB);
        if compacted {
            pool.compact();
        }
        restarted(&mut pool, here, there, &[(claimed, "y")]);
        pool.abort(here, claimed);
        assert_eq!(stained(&mut pool, here), [claimed]);
    }
    let committed = pool.grant(here, "z", MIB);
    pool.commit(here, committed, 9);
    assert_eq!(pool.delete(here, "z"), DeleteOutcome::Deleted);
    assert_eq!(pool.stats(here).pages_stained, 0, "a commit says that its lines are written back");
}

#[test]
fn a_stained_page_cannot_be_claimed_from_another_host() {
    let (mut pool, here, there, _) = after_a_death(2);
    let granted = pool.grant(here, "x", MIB);
    pool.restart();
    let lie = pool.claim(there, 2, &[], &[(granted, "x")]);
    assert!(matches!(lie, Err(Refusal::Claim { .. })), "{lie:?}");
}

#[test]
fn a_reservation_that_another_won_leaves_no_stain() {
    let (mut pool, here, there, _) = after_a_death(4);
    let loser = pool.grant(here, "k", MIB);
    pool.store(there, "k");
    assert!(matches!(pool.commit(here, loser, 9), CommitOutcome::Superseded(_)));
    restarted(&mut pool, here, there, &[]);
    assert_eq!(pool.stats(here).pages_stained, 0);
}

/// The second restart knew of the session no more that the first had waited for.
#[test]
fn what_a_lost_session_may_have_written_is_not_forgotten_by_another_restart() {
    let (mut pool, here, there, handle) = after_a_death(2);
    pool.ask(here, Body::Cleaned { handles: vec![handle] }).unwrap();
    pool.grant(here, "w", MIB);
    pool.restart();
    pool.claim(there, 2, &[], &[]).unwrap();
    pool.pass(5_000);
    pool.ask(there, Body::Renew).unwrap();
    pool.tick(5_000);
    assert_eq!(pool.stats(there).sessions_awaited, 0);
    pool.restart();
    pool.claim(there, 2, &[], &[]).unwrap();
    assert_eq!(pool.stats(there).pages_unclaimed, 2, "its writer may live");
    for _ in 0..4 {
        pool.tick(7_500);
        pool.ask(there, Body::Renew).unwrap();
    }
    let stats = pool.stats(there);
    assert_eq!((stats.pages_unclaimed, stats.pages_stained), (0, 2));
}

/// The server that makes unclaimed pages vacant is killed before it comes to the last.
#[test]
fn hosts_of_unclaimed_pages_are_known_until_all_are_vacant() {
    let config = Config { visibility: Visibility::CacheLine, work_per_tick: 1, ..config() };
    let mut pool = Pool::with(config, &memory(2));
    let (here, there) = (pool.hello_from("here", "h1"), pool.hello_from("there", "h2"));
    pool.grant(here, "w", MIB);
    pool.restart();
    pool.claim(there, 2, &[], &[]).unwrap();
    pool.directory.writer_dead(pool.now, here);
    while pool.stats(there).pages_unclaimed == 2 {
        pool.directory.tick(pool.now);
    }
    pool.compact();
    pool.restart();
    pool.claim(there, 2, &[], &[]).unwrap();
    let pages = |pool: &mut Pool| {
        for _ in 0..4 {
            pool.tick(0);
        }
        let stats = pool.stats(there);
        (stats.pages_unclaimed, stats.pages_stained)
    };
    assert_eq!(pages(&mut pool), (0, 2));
    pool.restart();
    pool.claim(there, 2, &[], &[]).unwrap();
    assert_eq!(pages(&mut pool), (0, 2));
}

#[test]
fn what_a_lost_session_may_have_written_is_stained_by_its_host() {
    let (mut pool, here, there, handle) = after_a_death(2);
    pool.ask(here, Body::Cleaned { handles: vec![handle] }).unwrap();
    pool.grant(here, "w", MIB);
    pool.restart();
    pool.claim(there, 2, &[], &[]).unwrap();
    pool.directory.writer_dead(pool.now, here);
    pool.tick(0);
    let stats = pool.stats(there);
    assert_eq!((stats.pages_unclaimed, stats.pages_stained), (0, 2), "whichever of the two it was");
}
