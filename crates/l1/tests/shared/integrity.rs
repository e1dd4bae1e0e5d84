//! Chunks that are not what was stored.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use maru_client::Verify;
use maru_l1::{
    Clock, L1Error, L1Manager, L1ManagerConfig, ManualClock, MaruL1Config, MaruL1Manager,
};
use maru_testkit::TestPool;

use crate::{Instance, TTL, WATCHDOG, filled_with, key, keys};

fn pool() -> TestPool {
    TestPool::start_with(8 << 20, |config| config.checksums = true)
}

fn instance(pool: &TestPool, name: &str, verify: Verify) -> Instance {
    let clock = Arc::new(ManualClock::default());
    let (instance, timeout) = (Some(name.to_owned()), WATCHDOG / 2);
    let maru = MaruL1Config::new(pool.endpoint());
    let maru = Some(MaruL1Config { instance, timeout, verify, ..maru });
    let config =
        L1ManagerConfig { maru, write_ttl: TTL, read_ttl: TTL, ..L1ManagerConfig::default() };
    let time = Arc::clone(&clock) as Arc<dyn Clock>;
    Instance { manager: Arc::new(MaruL1Manager::with_clock(config, time).unwrap()), clock }
}

/// Changes a byte of what lies at an offset of the pool.
fn damage(pool: &TestPool, offset: u64) {
    let file = File::options().write(true).open(pool.path("pool")).unwrap();
    file.write_all_at(&[99], offset + 100).unwrap();
}

#[test]
fn what_is_damaged_cannot_be_read_and_is_a_miss_from_then_on() {
    let pool = pool();
    let [a, b] = ["a", "b"].map(|name| instance(&pool, name, Verify::Always));
    a.store(&keys(2), 7);
    let locked = b.manager.reserve_read(&keys(2), 1);
    damage(&pool, locked[0].as_ref().unwrap().offset());
    assert_eq!(filled_with(locked), [Err(L1Error::KeyNotReadable), Ok(7)]);
    assert_eq!(b.read(&keys(2)), [Err(L1Error::KeyNotExist), Ok(7)]);
    // To the others as soon as the server has looked.
    while a.manager.object_state(&key(0)).is_some() {
        std::thread::yield_now();
    }
    assert_eq!(a.read(&keys(2)), [Err(L1Error::KeyNotExist), Ok(7)]);
    assert_eq!(b.manager.unsafe_read(&keys(1))[0].as_ref().err(), Some(&L1Error::KeyNotExist));
    // The pin goes, and the chunk comes anew.
    b.manager.keep_up();
    b.store(&keys(1), 8);
    assert_eq!((a.read(&keys(1)), b.read(&keys(1))), (vec![Ok(8)], vec![Ok(8)]));
    assert_eq!((pool.stats().pages_damaged, pool.holdings()), (1, (4, 0)));
}

#[test]
fn a_chunk_is_looked_at_once_a_pin() {
    let pool = pool();
    let a = instance(&pool, "a", Verify::Always);
    a.store(&keys(1), 7);
    let object = a.manager.reserve_read(&keys(1), 1).remove(0).unwrap();
    let first = || object.read(|bytes| bytes[100]);
    assert_eq!(first(), Ok(7));
    damage(&pool, object.offset());
    assert_eq!(first(), Ok(99));
    assert_eq!(a.manager.finish_read(&keys(1), 1), [Ok(())]);
    assert_eq!(a.read(&keys(1)), [Err(L1Error::KeyNotReadable)]);
}

#[test]
fn who_does_not_look_notices_nothing() {
    let pool = pool();
    let a = instance(&pool, "a", Verify::Off);
    a.store(&keys(1), 7);
    let object = a.manager.reserve_read(&keys(1), 1).remove(0).unwrap();
    damage(&pool, object.offset());
    assert_eq!(object.read(|bytes| bytes[100]), Ok(99));
}

#[test]
fn a_write_whose_memory_is_gone_is_in_the_wrong_state() {
    let pool = pool();
    let a = instance(&pool, "a", Verify::Off);
    a.stage(&keys(2), "", 7);
    let file = File::options().write(true).open(pool.path("pool")).unwrap();
    let len = file.metadata().unwrap().len();
    // All but the header: that is the server's.
    file.set_len(2 << 20).unwrap();
    assert_eq!(a.manager.finish_write(&keys(2), ""), [Err(L1Error::KeyInWrongState); 2]);
    file.set_len(len).unwrap();
    // A moment later nobody gets the pages any more, and others are there.
    while pool.stats().pages_damaged < 2 {
        std::thread::yield_now();
    }
    a.store(&keys(2), 8);
    assert_eq!(a.read(&keys(2)), [Ok(8), Ok(8)]);
}
