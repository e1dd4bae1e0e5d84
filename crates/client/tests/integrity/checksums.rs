//! Memory that goes bad.

use std::fs::File;
use std::os::unix::fs::FileExt;

use maru_client::{
    Client, ClientConfig, ClientError, Committed, PinnedPage, Reserve, Reserved, ReservedPage,
    Verify,
};
use maru_protocol::{Key, Location, Visibility};
use maru_testkit::TestPool;

use crate::{PAGE, acquire, content, is_missing, key, reserve, store, wait_until};

fn pool_with(scrub_bytes_per_second: u64, visibility: Visibility) -> TestPool {
    TestPool::start_with(8 << 20, |config| {
        config.checksums = true;
        config.scrub_bytes_per_second = scrub_bytes_per_second;
        config.visibility = visibility;
    })
}

/// A pool that looks only at what is suspected.
fn pool() -> TestPool {
    pool_with(0, Visibility::Coherent)
}

fn client(pool: &TestPool, name: &str, verify: Verify) -> Client {
    Client::connect(ClientConfig { verify, ..pool.config(name) }).unwrap()
}

fn file(pool: &TestPool) -> File {
    File::options().read(true).write(true).open(pool.path("pool")).unwrap()
}

/// Flips one bit of a chunk, behind everybody's back.
fn flip(pool: &TestPool, location: Location) {
    let (file, at) = (file(pool), location.offset() + location.length / 3);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

fn read(page: &PinnedPage) -> Result<Vec<u8>, ClientError> {
    let mut buffer = vec![0; usize::try_from(PAGE).unwrap()];
    page.copy_to(&mut buffer).map(|()| buffer)
}

#[track_caller]
fn expect_damaged<T: std::fmt::Debug>(read: Result<T, ClientError>, location: Location) {
    match read {
        Err(ClientError::Damaged { offset, .. }) => assert_eq!(offset, location.offset()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_way_to_write_a_chunk_has_its_checksum() {
    for visibility in [Visibility::Coherent, Visibility::CacheLine] {
        let pool = pool_with(0, visibility);
        let client = client(&pool, "a", Verify::Always);
        let mut pages = reserve(&client, &["copied", "stored", "both", "short", "device"]);
        pages[0].copy_from(&content("copied")).unwrap();
        pages[1].bytes_mut().copy_from_slice(&content("stored"));
        pages[2].copy_from(&content("both")).unwrap();
        pages[2].bytes_mut()[5] ^= 1;
        pages[3].copy_from(&content("short")).unwrap();
        pages[3].set_length(1000).unwrap();
        // What lies there was not stored through the page.
        let at = pages[4].location().offset();
        file(&pool).write_all_at(&content("device"), at).unwrap();
        client.commit(pages).unwrap();
        let listed = client.list(b"", 0, 10).unwrap().entries;
        assert!(listed.len() == 5 && listed.iter().all(|entry| entry.checksum.is_some()));
        for name in ["copied", "stored", "both", "device"] {
            let mut expected = content(name);
            expected[5] ^= u8::from(name == "both");
            let page = acquire(&client, name).unwrap();
            assert_eq!(read(&page).unwrap(), expected, "{name}");
            page.verify().unwrap();
        }
        let short = acquire(&client, "short").unwrap();
        let mut buffer = vec![0; 1000];
        short.copy_to(&mut buffer).unwrap();
        assert_eq!(buffer, content("short")[..1000]);
    }
}

#[test]
fn where_nobody_asks_for_checksums_none_is_made() {
    let pool = TestPool::start(8 << 20);
    let client = client(&pool, "a", Verify::Always);
    let location = store(&client, "k");
    assert_eq!(client.list(b"", 0, 1).unwrap().entries[0].checksum, None);
    flip(&pool, location);
    let page = acquire(&client, "k").unwrap();
    page.verify().unwrap();
    assert_ne!(read(&page).unwrap(), content("k"));
}

#[test]
fn a_flipped_bit_is_found_by_who_reads_and_nobody_reads_it_again() {
    let pool = pool();
    let [reader, other] = ["reader", "other"].map(|name| client(&pool, name, Verify::Always));
    let (bad, good) = (store(&other, "bad"), store(&other, "good"));
    for in_place in [false, true] {
        let (page, before) = (acquire(&reader, "bad").unwrap(), acquire(&other, "good").unwrap());
        flip(&pool, page.location());
        let found = if in_place { page.verify() } else { read(&page).map(drop) };
        expect_damaged(found, page.location());
        // To the reader at once, and soon to all.
        assert!(acquire(&reader, "bad").is_none());
        wait_until(|| is_missing(&other, "bad"));
        assert_eq!(read(&before).unwrap(), content("good"), "others go on");
        drop((page, before));
        store(&reader, "bad");
    }
    reader.flush().unwrap();
    let stats = other.stats().unwrap();
    assert_eq!((stats.pages_damaged, stats.counters.damaged), (2, 2));
    assert_ne!(acquire(&other, "bad").unwrap().location().offset(), bad.offset());
    assert_eq!(read(&acquire(&other, "good").unwrap()).unwrap(), content("good"));
    assert_eq!(acquire(&other, "good").unwrap().location(), good);
}

#[test]
fn who_looks_at_a_sample_looks_at_some() {
    let pool = pool();
    let reader = client(&pool, "reader", Verify::Sample);
    let location = store(&reader, "k");
    let page = acquire(&reader, "k").unwrap();
    read(&page).unwrap();
    flip(&pool, location);
    let found = (0..64).filter(|_| read(&page).is_err()).count();
    assert!((3..=5).contains(&found), "{found} of 64");
}

#[test]
fn the_scrubber_finds_what_nobody_reads() {
    for visibility in [Visibility::Coherent, Visibility::CacheLine] {
        let pool = pool_with(64 << 20, visibility);
        let client = client(&pool, "a", Verify::Off);
        let names = ["1", "2", "3", "4"];
        let places = names.map(|name| store(&client, name));
        let page = acquire(&client, "2").unwrap();
        flip(&pool, places[1]);
        assert_ne!(read(&page).unwrap(), content("2"), "its reader does not look");
        wait_until(|| is_missing(&client, "2"));
        client.release([page]).unwrap();
        let stats = client.stats().unwrap();
        assert_eq!((stats.pages_damaged, stats.pages_resident), (1, 3));
    }
}

/// An instance saw what was not there, as with old lines in its caches: here, in a copy of the pool.
#[test]
fn what_is_suspected_and_good_stays() {
    let pool = pool();
    let copy = pool.path("copy");
    std::fs::copy(pool.path("pool"), &copy).unwrap();
    let misled = ClientConfig { device_paths: vec![copy], ..pool.config("misled") };
    let misled = Client::connect(ClientConfig { verify: Verify::Always, ..misled }).unwrap();
    let other = client(&pool, "other", Verify::Always);
    for name in ["1", "2"] {
        let location = store(&other, name);
        expect_damaged(read(&acquire(&misled, name).unwrap()), location);
        assert!(acquire(&misled, name).is_none(), "it does not try again");
        misled.flush().unwrap();
    }
    let bad = store(&other, "bad");
    flip(&pool, bad);
    expect_damaged(read(&acquire(&other, "bad").unwrap()), bad);
    wait_until(|| is_missing(&other, "bad"));
    // So the server has looked at all three.
    for name in ["1", "2"] {
        assert_eq!(read(&acquire(&other, name).unwrap()).unwrap(), content(name));
    }
}

/// Takes the memory of a pool away from an offset on, and what is to be there again.
fn without<T>(pool: &TestPool, offset: u64, work: impl FnOnce() -> T) -> T {
    let file = file(pool);
    let len = file.metadata().unwrap().len();
    file.set_len(offset).unwrap();
    let result = work();
    file.set_len(len).unwrap();
    result
}

#[test]
fn memory_that_is_not_there_is_damage_to_who_reads_and_to_the_server() {
    // With and without checksums: whether it can be read can be told in any case.
    for checksums in [false, true] {
        for visibility in [Visibility::Coherent, Visibility::CacheLine] {
            let pool = TestPool::start_with(8 << 20, |config| {
                (config.checksums, config.visibility) = (checksums, visibility);
            });
            let client = client(&pool, "a", Verify::Off);
            let (first, last) = (store(&client, "first"), store(&client, "last"));
            assert!(first.offset() < last.offset());
            let page = acquire(&client, "last").unwrap();
            without(&pool, last.offset(), || {
                expect_damaged(read(&page), last);
                wait_until(|| is_missing(&client, "last"));
            });
            drop(page);
            assert_eq!(read(&acquire(&client, "first").unwrap()).unwrap(), content("first"));
            client.flush().unwrap();
            assert_eq!(client.stats().unwrap().pages_damaged, 1);
        }
    }
}

#[test]
fn what_another_host_wrote_where_no_memory_is_any_more_is_a_miss() {
    let pool = pool_with(0, Visibility::CacheLine);
    let on = |host: &str| {
        let host = Some(host.to_owned());
        Client::connect(ClientConfig { host, ..pool.config("a") }).unwrap()
    };
    let (writer, reader) = (on("h1"), on("h2"));
    let location = store(&writer, "k");
    without(&pool, location.offset(), || {
        assert!(acquire(&reader, "k").is_none());
        wait_until(|| is_missing(&writer, "k"));
    });
}

#[test]
fn a_page_without_memory_cannot_be_written_and_is_nobodys() {
    let pool = pool();
    let client = client(&pool, "a", Verify::Off);
    let mut pages = reserve(&client, &["1", "2", "3"]);
    pages.sort_by_key(|page| page.location().offset());
    let places: Vec<Location> = pages.iter().map(ReservedPage::location).collect();
    let offset = places[1].offset();
    without(&pool, offset, || {
        for page in &mut pages[1..] {
            let error = page.copy_from(&content("x")).unwrap_err();
            assert!(matches!(error, ClientError::Mapping(_)), "{error}");
        }
    });
    pages[0].copy_from(&content("x")).unwrap();
    pages[1].copy_from(&content("x")).expect("there is memory again");
    drop(pages.pop());
    let committed = client.commit(pages).unwrap();
    assert_eq!(committed, [Committed::Stored(places[0]), Committed::Unwritable]);
    client.flush().unwrap();
    let stats = client.stats().unwrap();
    assert_eq!((stats.pages_damaged, stats.pages_reserved), (2, 0));
    // Whoever writes gets others.
    let names: Vec<String> = (0..90).map(|n| format!("more {n}")).collect();
    let keys: Vec<Key<'_>> = names.iter().map(|name| key(name)).collect();
    let reserved = client.reserve(&keys, PAGE, Reserve::default()).unwrap();
    for reserved in reserved {
        if let Reserved::Page(page) = reserved {
            assert!(places[1..].iter().all(|bad| bad.offset() != page.location().offset()));
        }
    }
}
