//! What is given back because its time is over.

use std::sync::Arc;
use std::time::Duration;

use maru_l1::{
    L1Error, L1Listener, L1Manager, L1ManagerConfig, MaruL1Config, MaruL1Manager, ObjectKey, Write,
};
use maru_testkit::{FaultProxy, TestPool};

use crate::{Instance, TTL, Teller, WATCHDOG, filled_with, key, keys, layout};

const MS: Duration = Duration::from_millis(1);

/// A moment before a lock expires.
const NEARLY: Duration = Duration::from_millis(59_999);

#[test]
fn an_expired_reservation_is_given_back_and_told() {
    let pool = TestPool::start(8 << 20);
    let a = Instance::new(pool.endpoint(), "a");
    a.store(&[key(1)], 6);
    assert_eq!(a.manager.delete(&[key(1)], false), [Ok(())]);
    let object = a.manager.reserve_write(&[Write::retained(key(0))], &layout(), "").remove(0);
    a.stage(&[key(1)], "early", 7);
    let told = Teller::listen(&a.manager);
    a.clock.advance(NEARLY);
    a.manager.keep_up();
    assert_eq!(pool.holdings(), (0, 2));
    // Somebody else stores the other key: then it is not gone.
    let b = Instance::new(pool.endpoint(), "b");
    b.store(&[key(1)], 8);
    a.clock.advance(MS);
    a.manager.keep_up();
    pool.assert_nothing_left();
    assert_eq!(told.recv().unwrap(), ("deleted_by_manager", vec![key(0)]));
    assert!(told.try_recv().is_err());
    // A late writer has no way to the page.
    assert_eq!(object.unwrap().write(|_| ()), Err(L1Error::KeyInWrongState));
    assert_eq!(a.manager.finish_write(&keys(1), ""), [Err(L1Error::KeyNotExist)]);
    a.store(&keys(1), 7);
}

#[test]
fn a_reservation_that_is_being_written_to_is_not_given_back() {
    let pool = TestPool::start(8 << 20);
    let a = Instance::new(pool.endpoint(), "a");
    let object = a.manager.reserve_write(&[Write::retained(key(0))], &layout(), "").remove(0);
    let object = object.unwrap();
    object
        .write(|_| {
            a.clock.advance(TTL);
            a.manager.keep_up();
            assert_eq!(pool.holdings(), (0, 1));
            assert_eq!(a.manager.delete(&[key(0)], true), [Err(L1Error::KeyIsLocked)]);
        })
        .unwrap();
    a.manager.keep_up();
    pool.assert_nothing_left();
}

#[test]
fn expired_read_locks_are_given_back() {
    let pool = TestPool::start(8 << 20);
    let a = Instance::new(pool.endpoint(), "a");
    a.store(&keys(2), 7);
    let objects = a.manager.reserve_read(&keys(2), 3);
    a.clock.advance(TTL / 2);
    assert_eq!(a.read(&[key(1)]), [Ok(7)]);
    a.clock.advance(TTL / 2);
    a.manager.keep_up();
    // One of the two was locked again meanwhile.
    assert_eq!(pool.holdings(), (1, 0));
    assert_eq!(filled_with(objects), [Err(L1Error::KeyNotReadable), Ok(7)]);
    assert_eq!(a.manager.finish_read(&keys(2), 1), [Err(L1Error::KeyInWrongState), Ok(())]);
    a.clock.advance(TTL / 2);
    a.manager.keep_up();
    pool.assert_nothing_left();
}

#[test]
fn a_temporary_chunk_that_nobody_reads_is_dropped() {
    let pool = TestPool::start(8 << 20);
    let a = Instance::new(pool.endpoint(), "a");
    a.stage_all(&[Write::temporary(key(0)), Write::temporary(key(1))], "", 7);
    assert_eq!(a.manager.finish_write(&keys(2), ""), [Ok(()), Ok(())]);
    let told = Teller::listen(&a.manager);
    a.clock.advance(NEARLY);
    assert_eq!(a.read(&[key(1)]), [Ok(7)]);
    a.manager.keep_up();
    assert_eq!(pool.holdings(), (0, 2));
    a.clock.advance(MS);
    a.manager.keep_up();
    assert_eq!(told.recv().unwrap(), ("deleted_by_manager", vec![key(0)]));
    assert_eq!(pool.holdings(), (0, 1));
    assert_eq!(a.manager.finish_read(&[key(1)], 1), [Ok(())]);
    pool.assert_nothing_left();
}

/// Whoever looked first took it away without a word.
#[test]
fn a_temporary_chunk_that_was_lost_is_told_once() {
    let pool = TestPool::start(8 << 20);
    let proxy = FaultProxy::start(pool.socket());
    let a = Instance::new(proxy.endpoint(), "a");
    a.stage_all(&[Write::temporary(key(0))], "", 7);
    assert_eq!(a.manager.finish_write(&keys(1), ""), [Ok(())]);
    let told = Teller::listen(&a.manager);
    let other = TestPool::start(8 << 20);
    proxy.set_upstream(Some(other.socket()));
    assert_eq!(a.read(&[key(5)]), [Err(L1Error::KeyNotExist)]);
    assert_eq!(a.manager.finish_read(&keys(1), 1), [Err(L1Error::KeyNotExist)]);
    a.manager.keep_up();
    assert_eq!(told.recv().unwrap(), ("deleted_by_manager", keys(1)));
    assert!(told.try_recv().is_err());
}

#[test]
fn a_page_that_can_never_be_stored_is_given_back_before_its_time() {
    let pool = TestPool::start(8 << 20);
    let proxy = FaultProxy::start(pool.socket());
    let a = Instance::new(proxy.endpoint(), "a");
    a.stage(&keys(1), "", 7);
    let other = TestPool::start(8 << 20);
    proxy.set_upstream(Some(other.socket()));
    assert_eq!(a.read(&[key(5)]), [Err(L1Error::KeyNotExist)]);
    // The same writer may try again.
    a.stage(&keys(1), "", 8);
    assert_eq!(a.manager.finish_write(&keys(1), ""), [Ok(())]);
    a.stage(&[key(1)], "", 8);
    proxy.set_upstream(Some(pool.socket()));
    assert_eq!(a.read(&[key(5)]), [Err(L1Error::KeyNotExist)]);
    a.manager.keep_up();
    assert_eq!(a.manager.staging_memory_usage(), 0);
}

/// Panics at whatever it is told.
#[derive(Debug)]
struct Panicking;

impl L1Listener for Panicking {
    fn deleted_by_manager(&self, _keys: &[ObjectKey]) {
        panic!("on purpose");
    }
}

#[test]
fn a_listeners_panic_ends_nothing() {
    let pool = TestPool::start(8 << 20);
    let config = L1ManagerConfig {
        maru: Some(MaruL1Config::new(pool.endpoint())),
        write_ttl: Duration::from_millis(50),
        ..L1ManagerConfig::default()
    };
    let manager = MaruL1Manager::new(config).unwrap();
    manager.register_listener(Arc::new(Panicking));
    let told = Teller::listen(&manager);
    for number in 0..2 {
        let write = [Write::retained(key(number))];
        assert!(manager.reserve_write(&write, &layout(), "")[0].is_ok());
        let gone = ("deleted_by_manager", vec![key(number)]);
        assert_eq!(told.recv_timeout(WATCHDOG).unwrap(), gone);
    }
    pool.assert_nothing_left();
}

#[test]
fn the_server_hears_what_was_used() {
    let pool = TestPool::start(8 << 20);
    let proxy = FaultProxy::start(pool.socket());
    let a = Instance::new(proxy.endpoint(), "a");
    a.store(&keys(3), 7);
    a.manager.touch_keys(&[key(0)]);
    assert_eq!(proxy.seen("touch"), 0);
    a.manager.keep_up();
    assert_eq!(proxy.seen("touch"), 1);
    a.manager.keep_up();
    assert_eq!(proxy.seen("touch"), 1);
}

#[test]
fn an_expired_reservation_is_handed_over_without_asking_for_space() {
    let pool = TestPool::start(8 << 20);
    let proxy = FaultProxy::start(pool.socket());
    let a = Instance::new(proxy.endpoint(), "a");
    a.stage(&keys(2), "", 7);
    a.clock.advance(TTL);
    a.stage(&keys(2), "", 8);
    assert_eq!((proxy.seen("reserve"), proxy.seen("abort")), (1, 0));
    assert_eq!(a.manager.finish_write(&keys(2), ""), [Ok(()), Ok(())]);
    assert_eq!(a.read(&keys(2)), [Ok(8), Ok(8)]);
}

#[test]
fn a_chunk_that_is_held_is_read_without_a_round_trip() {
    let pool = TestPool::start(8 << 20);
    let proxy = FaultProxy::start(pool.socket());
    let a = Instance::new(proxy.endpoint(), "a");
    a.store(&keys(3), 7);
    assert_eq!(a.read(&keys(3)), [Ok(7); 3]);
    assert_eq!(a.read(&keys(3)), [Ok(7); 3]);
    assert_eq!(filled_with(a.manager.unsafe_read(&keys(3))), [Ok(7); 3]);
    assert_eq!(a.manager.finish_read(&keys(3), 1), [Ok(()); 3]);
    assert_eq!((proxy.seen("acquire"), proxy.seen("release")), (1, 0));
    assert_eq!(a.manager.finish_read(&keys(3), 1), [Ok(()); 3]);
    assert_eq!((proxy.seen("acquire"), proxy.seen("release")), (1, 1));
    pool.assert_nothing_left();
}

/// The thread behind a manager does the same by itself.
#[test]
fn upkeep_goes_on_behind_a_manager() {
    let pool = TestPool::start(8 << 20);
    let proxy = FaultProxy::start(pool.socket());
    let maru = MaruL1Config::new(proxy.endpoint());
    let config = L1ManagerConfig {
        maru: Some(maru),
        write_ttl: Duration::from_millis(50),
        ..L1ManagerConfig::default()
    };
    let manager = MaruL1Manager::new(config).unwrap();
    let told = Teller::listen(&manager);
    assert!(manager.reserve_write(&[Write::retained(key(0))], &layout(), "")[0].is_ok());
    assert_eq!(told.recv_timeout(WATCHDOG).unwrap(), ("deleted_by_manager", vec![key(0)]));
    manager.touch_keys(&[key(1)]);
    proxy.wait_seen("touch", 1);
    pool.assert_nothing_left();
}
