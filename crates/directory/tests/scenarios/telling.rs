//! Listings, and what is refused.

use std::collections::BTreeSet;

use maru_directory::{Config, PINS_PER_SESSION_MAX};
use maru_protocol::{Answer, Body, Hello, Refusal};

use crate::pool::{Pool, config, keys, memory};

#[test]
fn a_listing_gives_each_entry_once() {
    let mut pool = Pool::new(16);
    let a = pool.hello("a");
    let names = ["m1", "m2", "m3", "n1", "n2", "x"];
    pool.store_all(a, &names);
    pool.grant(a, "m-unfinished", 4096);
    for (prefix, count) in [("", 6), ("m", 3), ("n", 2), ("m2", 1), ("y", 0)] {
        let (mut rows, mut cursor) = (Vec::new(), Some(0));
        while let Some(from) = cursor {
            let body = Body::List { prefix: prefix.as_bytes(), cursor: from, limit: 1 };
            let Ok(Answer::Entries(page)) = pool.ask(a, body) else {
                panic!("a list is answered otherwise");
            };
            assert!(page.entries.len() <= 1);
            rows.extend(page.entries.into_iter().map(|row| row.key));
            cursor = page.next;
        }
        assert_eq!(rows.len(), count);
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), count);
    }
}

#[test]
fn a_listing_of_holdings_gives_each_once() {
    let mut pool = Pool::new(16);
    let (a, b) = (pool.hello("a"), pool.hello("b"));
    pool.store_all(a, &["1", "2", "3"]);
    for name in ["1", "2", "3"] {
        pool.acquire(b, name);
        pool.acquire(a, name);
    }
    pool.grant(a, "w", 4096);
    for limit in 1..9 {
        let (mut rows, mut cursor) = (Vec::new(), Some(0));
        while let Some(from) = cursor {
            let Ok(Answer::Holders(page)) = pool.ask(a, Body::Holders { cursor: from, limit })
            else {
                panic!("holders are answered otherwise");
            };
            assert!(page.holders.len() <= limit as usize);
            rows.extend(page.holders.into_iter().map(|row| (row.session, row.key)));
            cursor = page.next;
        }
        assert_eq!(rows.len(), 7);
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), 7);
    }
}

#[test]
fn a_cursor_from_anywhere_is_answered() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store(a, "k");
    for cursor in [1, 99, u64::MAX] {
        let limit = u32::MAX;
        pool.ask(a, Body::List { prefix: b"", cursor, limit }).unwrap();
        pool.ask(a, Body::Holders { cursor, limit }).unwrap();
    }
}

#[test]
fn names_have_1_to_128_printable_characters() {
    let mut pool = Pool::new(4);
    let long = "x".repeat(129);
    let mut hello = |instance, host| {
        let hello = Hello { instance, host, budget_bytes: 0, resume: None, outside_writers: false };
        pool.directory.hello(pool.now, &hello, Pool::secret(1), None).is_ok()
    };
    for name in ["", "\n", "a\u{7f}", &long] {
        assert!(!hello(name, "host") && !hello("instance", name), "{name:?}");
    }
    assert!(hello(&long[..128], "host"));
}

#[test]
fn too_large_a_batch_is_refused() {
    let mut pool = Pool::with(Config { batch_max: 2, ..config() }, &memory(4));
    let a = pool.hello("a");
    let three = || keys(&["1", "2", "3"]);
    let (pins, stop_at_miss) = (1, false);
    let handle = pool.grant(a, "k", 4096);
    let item = maru_protocol::CommitItem { handle, length: 1, checksum: None };
    let bodies = [
        Body::Contains { keys: three() },
        Body::Touch { keys: three() },
        Body::Delete { keys: three() },
        Body::Acquire { keys: three(), pins, stop_at_miss },
        Body::Reserve { keys: three(), page_bytes: 1, tag: 0, unless_being_written: false },
        Body::Commit { items: vec![item; 3], pins, names: Vec::new() },
        Body::Abort { handles: vec![handle; 3] },
        Body::Release { handles: vec![handle; 3], pins },
    ];
    for body in bodies {
        let refusal = Err(Refusal::BatchTooLarge { len: 3, max: 2 });
        assert_eq!(pool.ask(a, body), refusal);
    }
}

#[test]
fn pins_are_limited() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store(a, "k");
    let max = PINS_PER_SESSION_MAX;
    let mut acquire = |pins| {
        let keys = keys(&["k"]);
        pool.ask(a, Body::Acquire { keys, pins, stop_at_miss: false })
    };
    assert_eq!(acquire(0), Err(Refusal::Pins { pins: 0, held: 0, max }));
    assert_eq!(acquire(u32::MAX), Err(Refusal::Pins { pins: u32::MAX, held: 0, max }));
    let all = u32::try_from(max).unwrap();
    assert!(acquire(all).is_ok());
    assert_eq!(acquire(1), Err(Refusal::Pins { pins: 1, held: max, max }));
}
