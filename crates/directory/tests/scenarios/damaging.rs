//! Chunks whose bytes are bad.

use maru_protocol::{
    Answer, Body, Checksum, CommitItem, CommitOutcome, DeleteOutcome, ReleaseOutcome,
};

use crate::pool::{MIB, Pool};

#[test]
fn a_bad_chunk_is_a_miss_and_its_page_is_not_used_again() {
    let mut pool = Pool::new(2);
    let a = pool.hello("a");
    let handle = pool.store(a, "k").handle;
    pool.ask(a, Body::Suspect { handles: vec![handle] }).unwrap();
    let look = pool.directory.next_look(false).unwrap();
    assert_eq!((look.handle, look.length, look.checksum), (handle, MIB, None));
    assert_eq!(pool.directory.next_look(false), None);
    assert_eq!(pool.directory.condemn(handle).unwrap()[..], *b"k");
    assert_eq!(pool.directory.condemn(handle), None, "once");
    assert_eq!(pool.acquire(a, "k"), None);
    let stats = pool.stats(a);
    assert_eq!((stats.pages_damaged, stats.counters.damaged), (1, 1));
    // Of the two pages one is left.
    pool.store_all(a, &["1", "2", "k"]);
    assert_eq!(pool.resident(a, &["1", "2", "k"]), ["k"]);
    pool.restart();
    let b = pool.hello("b");
    assert_eq!(pool.stats(b).pages_damaged, 1);
    pool.compact();
    pool.restart();
    let c = pool.hello("c");
    assert_eq!(pool.stats(c).pages_damaged, 1);
}

#[test]
fn who_pins_a_bad_chunk_keeps_it() {
    let mut pool = Pool::new(4);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    let handle = pool.store(a, "k").handle;
    pool.acquire(a, "k");
    pool.acquire(b, "k");
    pool.acquire(b, "k");
    let writing = pool.grant(b, "other", MIB);
    assert!(pool.directory.condemn(handle).is_some());
    assert_eq!(pool.acquire(b, "k"), None);
    assert_eq!(pool.delete(b, "k"), DeleteOutcome::Missing);
    let again = pool.store(b, "k").handle;
    assert_ne!(again.offset, handle.offset);
    pool.acquire(b, "k");
    assert_eq!(pool.release(b, handle), ReleaseOutcome::Released);
    assert_eq!(pool.release(b, handle), ReleaseOutcome::Released);
    assert_eq!(pool.release(b, handle), ReleaseOutcome::NotHeld);
    assert_eq!(pool.stats(a).pages_damaged, 0);
    assert_eq!(pool.release(a, handle), ReleaseOutcome::Released);
    let stats = pool.stats(a);
    assert_eq!((stats.pages_damaged, stats.pins, stats.pages_resident), (1, 1, 1));
    pool.abort(b, writing);
}

#[test]
fn a_pin_on_a_bad_chunk_can_be_claimed() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let handle = pool.store(a, "k").handle;
    pool.acquire(a, "k");
    pool.directory.condemn(handle);
    pool.restart();
    assert_eq!(pool.claim(a, 1, &[(handle, 1)], &[]), Ok(Answer::Done));
    assert_eq!(pool.stats(a).pages_damaged, 1);
    assert_eq!(pool.release(a, handle), ReleaseOutcome::NotHeld);
}

#[test]
fn a_verdict_on_what_has_left_counts_for_nothing() {
    let mut pool = Pool::new(2);
    let a = pool.hello("a");
    let handle = pool.store(a, "k").handle;
    pool.delete(a, "k");
    assert_eq!(pool.directory.condemn(handle), None);
    let other = pool.store(a, "other").handle;
    assert_eq!(other.offset, handle.offset);
    assert_eq!(pool.directory.condemn(handle), None);
    pool.ask(a, Body::Suspect { handles: vec![handle] }).unwrap();
    assert_eq!(pool.directory.next_look(false), None);
}

#[test]
fn a_page_that_its_writer_cannot_write_is_nobodys() {
    let mut pool = Pool::new(2);
    let (a, b) = (pool.hello_with_budget("a", 2 * MIB), pool.hello("b"));
    let bad = pool.grant(a, "k", MIB);
    pool.ask(b, Body::Suspect { handles: vec![bad] }).unwrap();
    assert_eq!(pool.directory.next_look(false), None, "there is nothing to look at");
    assert_eq!(pool.stats(a).pages_reserved, 1, "it is the writer who knows");
    pool.ask(a, Body::Suspect { handles: vec![bad] }).unwrap();
    let stats = pool.stats(a);
    assert_eq!((stats.pages_reserved, stats.pages_damaged, stats.counters.damaged), (0, 1, 1));
    assert_eq!(stats.sessions[0].instance_bytes, 0, "it is not charged with it");
    assert_eq!(pool.commit(a, bad, MIB), CommitOutcome::NotReserved);
    assert_eq!(pool.abort(a, bad), ReleaseOutcome::NotHeld);
    // Of the two pages one is left, for the same key too.
    let good = pool.store(a, "k").handle;
    assert_ne!(good.offset, bad.offset);
    pool.restart();
    let c = pool.hello("c");
    assert_eq!(pool.stats(c).pages_damaged, 1);
}

#[test]
fn a_page_that_was_given_up_may_be_claimed_by_who_does_not_know_that_it_was_heard() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    let (bad, other) = (pool.grant(a, "k", MIB), pool.grant(a, "other", MIB));
    pool.ask(a, Body::Suspect { handles: vec![bad] }).unwrap();
    pool.restart();
    assert_eq!(pool.claim(a, 1, &[], &[(bad, "k"), (other, "other")]), Ok(Answer::Done));
    pool.ask(a, Body::Suspect { handles: vec![bad, other] }).unwrap();
    let stats = pool.stats(a);
    assert_eq!((stats.pages_reserved, stats.pages_damaged), (0, 2));
}

#[test]
fn the_look_at_everything_comes_around_to_all_checksums() {
    let mut pool = Pool::new(8);
    let a = pool.hello("a");
    pool.store(a, "none");
    let mut expected = Vec::new();
    for n in 1..=5 {
        let handle = pool.grant(a, &n.to_string(), MIB);
        let checksum = Some(Checksum::new(n));
        let items = vec![CommitItem { handle, length: n, checksum }];
        pool.ask(a, Body::Commit { items, pins: 0, names: Vec::new() }).unwrap();
        expected.push((handle, n, checksum));
    }
    assert_eq!(pool.directory.next_look(false), None);
    for _ in 0..2 {
        let looks = (0..5).map(|_| pool.directory.next_look(true).unwrap());
        let mut looks: Vec<_> =
            looks.map(|look| (look.handle, look.length, look.checksum)).collect();
        looks.sort_by_key(|(_, length, _)| *length);
        assert_eq!(looks, expected);
    }
}
