//! Where pages come from: free ones, eviction, regions of other sizes, budgets, watermarks.

use maru_directory::rules::{self, Rule, Snapshot};
use maru_directory::{Config, DeviceSpan, Geometry};
use maru_protocol::{Body, ReserveOutcome};

use crate::pool::{MIB, Pool, config, keys, memory};

#[test]
fn the_least_recently_used_goes_first() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3", "4"]);
    pool.ask(a, Body::Touch { keys: keys(&["1"]) }).unwrap();
    let handle = pool.acquire(a, "2").unwrap().handle;
    pool.release(a, handle);
    pool.store_all(a, &["5", "6"]);
    assert_eq!(pool.resident(a, &["1", "2", "3", "4", "5", "6"]), ["1", "2", "5", "6"]);
    assert_eq!(pool.stats(a).counters.evicted_for_room, 2);
}

#[test]
fn what_is_pinned_is_passed_over() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3", "4"]);
    pool.acquire(a, "1");
    pool.acquire(a, "2");
    pool.pass(1);
    pool.ask(a, Body::Touch { keys: keys(&["3", "4"]) }).unwrap();
    pool.store_all(a, &["5", "6"]);
    assert_eq!(pool.resident(a, &["1", "2", "3", "4", "5", "6"]), ["1", "2", "5", "6"]);
}

#[test]
fn looking_is_not_touching() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3", "4"]);
    pool.pass(1);
    let before = Snapshot::of(&pool.directory);
    assert_eq!(pool.resident(a, &["1"]), ["1"]);
    rules::nothing_changed(Rule::ALookIsNotATouch, &before, &Snapshot::of(&pool.directory))
        .unwrap();
    pool.store(a, "5");
    assert_eq!(pool.resident(a, &["1", "2"]), ["2"]);
}

#[test]
fn out_of_memory_grants_nothing_and_evicts_nothing() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3"]);
    pool.acquire(a, "1");
    let before = Snapshot::of(&pool.directory);
    let outcomes = pool.reserve(a, &["4", "2", "5", "6", "7"], MIB);
    let oom = ReserveOutcome::OutOfMemory;
    assert_eq!(outcomes, [oom, ReserveOutcome::Resident, oom, oom, oom]);
    assert_eq!(Snapshot::of(&pool.directory), before);
    let granted = pool.reserve(a, &["4", "5", "6"], MIB);
    assert!(granted.iter().all(|outcome| matches!(outcome, ReserveOutcome::Granted(_))));
}

#[test]
fn a_pool_of_pinned_pages_refuses_and_goes_on() {
    let mut pool = Pool::new(2);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2"]);
    let handle = pool.acquire(a, "1").unwrap().handle;
    pool.acquire(a, "2");
    for page_bytes in [4096, MIB, 2 * MIB] {
        assert_eq!(pool.reserve(a, &["3"], page_bytes), [ReserveOutcome::OutOfMemory]);
    }
    assert_eq!(pool.resident(a, &["1", "2"]), ["1", "2"]);
    pool.release(a, handle);
    pool.store(a, "3");
    assert_eq!(pool.resident(a, &["1", "2", "3"]), ["2", "3"]);
}

#[test]
fn an_empty_region_serves_any_size() {
    let mut pool = Pool::new(2);
    let a = pool.hello("a");
    pool.store(a, "k");
    assert_eq!(pool.regions(a)[0].page_bytes, MIB);
    pool.delete(a, "k");
    assert_eq!(pool.stats(a).uncut_bytes, 2 * MIB);
    pool.store_sized(a, "k", 300_000);
    assert_eq!(pool.regions(a)[0].page_bytes, 300_000_u64.next_multiple_of(4096));
}

#[test]
fn a_size_that_starves_gets_the_coldest_region() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3", "4"]);
    pool.pass(1);
    pool.ask(a, Body::Touch { keys: keys(&["1"]) }).unwrap();
    pool.store_sized(a, "s", MIB / 2);
    assert_eq!(pool.resident(a, &["1", "2", "3", "4", "s"]), ["1", "2", "s"]);
    assert_eq!(pool.stats(a).counters.evicted_for_region, 2);
}

/// A region's last use left out the return of its pins: one that was just read went first.
#[test]
fn the_return_of_a_pin_is_a_use_of_the_region() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store(a, "1");
    pool.store(a, "2");
    let handle = pool.acquire(a, "1").unwrap().handle;
    pool.store_all(a, &["3", "4"]);
    pool.pass(1);
    pool.release(a, handle);
    pool.pass(1);
    pool.store_sized(a, "s", MIB / 2);
    assert_eq!(pool.resident(a, &["1", "2", "3", "4"]), ["1", "2"]);
}

#[test]
fn sizes_of_equal_use_do_not_take_regions_from_each_other() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2"]);
    for name in ["s1", "s2", "s3", "s4"] {
        pool.store_sized(a, name, MIB / 2);
    }
    pool.pass(1000);
    pool.store_sized(a, "s5", MIB / 2);
    assert_eq!(pool.stats(a).counters.evicted_for_region, 0);
    assert_eq!(pool.stats(a).counters.evicted_for_room, 1);
}

/// A short region was cut for a size, then not needed, and stayed cut with no page used: another
/// size's search for a region to vacate found it, evicted nothing, and went around for ever.
#[test]
fn a_region_cut_and_not_needed_goes_back() {
    let device = |offset, bytes| DeviceSpan { offset, bytes, reserved: 0 };
    let devices = vec![device(0, 2 * MIB), device(2 * MIB, MIB)];
    let memory = Geometry { devices, region_bytes: 2 * MIB };
    let mut pool = Pool::with(config(), &memory);
    let a = pool.hello("a");
    pool.store_sized(a, "old", 2 * MIB);
    pool.pass(1);
    // The short region gives one page, the vacated one two: those are used, the short one is not.
    assert_eq!(pool.reserve(a, &["1", "2"], MIB).len(), 2);
    let sizes: Vec<u64> = pool.regions(a).iter().map(|region| region.page_bytes).collect();
    assert_eq!(sizes, [MIB, 0]);
    pool.grant(a, "s", MIB / 2);
}

/// The header of a device pushed all its pages off their boundary.
#[test]
fn pages_are_aligned_behind_any_header() {
    let devices = vec![DeviceSpan { offset: 0, bytes: 4 * MIB - 1, reserved: 100 }];
    let memory = Geometry { devices, region_bytes: 2 * MIB };
    let mut pool = Pool::with(config(), &memory);
    let a = pool.hello("a");
    assert_eq!(pool.grant(a, "k", 1).offset, 4096);
    assert_eq!(pool.stats(a).capacity_bytes, 4 * MIB - 2 * 4096);
}

#[test]
fn a_budget_evicts_ones_own_coldest_first() {
    let mut pool = Pool::new(8);
    let a = pool.hello_with_budget("a", 2 * MIB);
    let (b, c) = (pool.hello_with_budget("b", 2 * MIB), pool.hello("c"));
    pool.store_all(b, &["b"]);
    pool.store_all(c, &["c"]);
    pool.store_all(a, &["1", "2", "3"]);
    assert_eq!(pool.resident(a, &["b", "c", "1", "2", "3"]), ["b", "c", "2", "3"]);
    assert_eq!(pool.stats(a).counters.evicted_for_budget, 1);
}

#[test]
fn over_budget_is_refused_when_nothing_of_ones_own_can_go() {
    let mut pool = Pool::new(8);
    let (a, b) = (pool.hello_with_budget("a", 2 * MIB), pool.hello("b"));
    pool.store_all(a, &["1"]);
    pool.store_all(b, &["b"]);
    pool.acquire(b, "1");
    pool.grant(a, "2", MIB);
    let before = Snapshot::of(&pool.directory);
    assert_eq!(pool.reserve(a, &["3"], MIB), [ReserveOutcome::OverBudget]);
    assert_eq!(pool.reserve(a, &["x", "y"], 2 * MIB), [ReserveOutcome::OverBudget; 2]);
    assert_eq!(Snapshot::of(&pool.directory), before);
    assert!(matches!(pool.reserve(b, &["3"], MIB)[..], [ReserveOutcome::Granted(_)]));
}

/// Eviction stopped at the high mark, once the bound on a tick's work had put it off.
#[test]
fn above_the_high_watermark_the_coldest_go_down_to_the_low_one() {
    let config = Config {
        watermark_high_permille: 750,
        watermark_low_permille: 500,
        work_per_tick: 2,
        ..config()
    };
    let mut pool = Pool::with(config, &memory(8));
    let a = pool.hello("a");
    pool.store_all(a, &["1", "2", "3", "4", "5", "6"]);
    pool.tick(0);
    assert_eq!(pool.stats(a).counters.evicted_by_watermark, 0, "at the mark is not above it");
    pool.store_all(a, &["7", "8"]);
    assert!(pool.tick(0).more, "the work of a tick is bounded");
    assert_eq!(pool.resident(a, &["1", "2", "3", "4"]), ["3", "4"]);
    assert!(pool.tick(0).more);
    assert_eq!(pool.stats(a).pages_resident, 4);
    assert!(!pool.tick(0).more);
    assert_eq!(pool.stats(a).pages_resident, 4, "below the high mark nothing goes");
}

#[test]
fn a_page_that_fits_no_region_is_refused() {
    let mut pool = Pool::new(4);
    let a = pool.hello("a");
    for page_bytes in [0, 2 * MIB + 1, u64::MAX] {
        let body =
            Body::Reserve { keys: keys(&["k"]), page_bytes, tag: 0, unless_being_written: false };
        let refusal = maru_protocol::Refusal::PageSize { page_bytes, max: 2 * MIB };
        assert_eq!(pool.ask(a, body), Err(refusal));
    }
}
