//! That readers find the bytes that were written: between hosts whose caches are not coherent, and in
//! memory that goes bad.
#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

mod checksums;
mod plugin;
mod stains;
mod visibility;

use std::time::{Duration, Instant};

use maru_client::{Acquire, Client, Committed, PinnedPage, Reserve, Reserved, ReservedPage};
use maru_protocol::{Key, Presence};

const PAGE: u64 = 64 << 10;

fn key(name: &str) -> Key<'_> {
    Key::new(name.as_bytes()).unwrap()
}

fn keys<'a>(names: &[&'a str]) -> Vec<Key<'a>> {
    names.iter().map(|name| key(name)).collect()
}

/// What a chunk of this name holds.
fn content(name: &str) -> Vec<u8> {
    (0..PAGE).map(|n| (n * n % 251).to_le_bytes()[0] ^ name.as_bytes()[0]).collect()
}

fn reserve(client: &Client, names: &[&str]) -> Vec<ReservedPage> {
    let reserved = client.reserve(&keys(names), PAGE, Reserve::default()).unwrap();
    let page = |reserved| match reserved {
        Reserved::Page(page) => page,
        other => panic!("not granted: {other:?}"),
    };
    reserved.into_iter().map(page).collect()
}

fn store(client: &Client, name: &str) -> maru_protocol::Location {
    let mut page = reserve(client, &[name]).remove(0);
    page.copy_from(&content(name)).unwrap();
    match client.commit([page]).unwrap()[..] {
        [Committed::Stored(location)] => location,
        ref other => panic!("{name} is not stored: {other:?}"),
    }
}

fn acquire(client: &Client, name: &str) -> Option<PinnedPage> {
    client.acquire(&[key(name)], Acquire::default()).unwrap().remove(0)
}

fn is_missing(client: &Client, name: &str) -> bool {
    client.contains(&[key(name)]).unwrap() == [Presence::Missing]
}

/// Polls; fails after a time that only a hang can take.
#[track_caller]
fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_mins(1), "it does not happen");
        std::thread::yield_now();
    }
}
