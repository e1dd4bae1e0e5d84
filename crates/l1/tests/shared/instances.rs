//! Several instances on one pool.

use std::time::Duration;

use maru_l1::{
    L1Error, L1Manager, L1ManagerConfig, LayoutError, LocalL1Manager, MaruL1Config, MaruL1Error,
    MaruL1Manager, MemoryLayoutDesc, ObjectKey, Write,
};
use maru_testkit::{FaultProxy, TestPool};

use crate::{Instance, PAGE, Teller, WATCHDOG, filled_with, key, keys, layout};

fn two() -> (TestPool, Instance, Instance) {
    let pool = TestPool::start(8 << 20);
    let (a, b) = (Instance::new(pool.endpoint(), "a"), Instance::new(pool.endpoint(), "b"));
    (pool, a, b)
}

#[test]
fn what_one_stores_the_other_reads_and_need_not_store() {
    let (pool, a, b) = two();
    a.store(&keys(3), 7);
    let writes: Vec<Write> = keys(4).into_iter().map(Write::retained).collect();
    let reserved = b.manager.reserve_write(&writes, &layout(), "");
    let errors: Vec<_> = reserved.iter().map(|one| one.as_ref().err().copied()).collect();
    let stored = Some(L1Error::KeyNotWritable);
    assert_eq!(errors, [stored, stored, stored, None]);
    assert_eq!(b.read(&keys(3)), [Ok(7); 3]);
    // Each has its own locks.
    assert_eq!(a.manager.finish_read(&keys(1), 1), [Err(L1Error::KeyInWrongState)]);
    assert_eq!(b.manager.finish_read(&keys(3), 1), [Ok(()); 3]);
    b.manager.close();
    pool.assert_nothing_left();
}

#[test]
fn the_first_to_finish_wins_and_both_succeed() {
    let (pool, a, b) = two();
    a.stage(&keys(2), "", 7);
    b.stage(&keys(2), "", 8);
    assert_eq!(b.manager.finish_write(&[key(0)], ""), [Ok(())]);
    assert_eq!(a.manager.finish_write(&[key(0)], ""), [Ok(())]);
    let told = Teller::listen(&b.manager);
    assert_eq!(a.manager.finish_write(&[key(1)], ""), [Ok(())]);
    // A promotion gets the chunk that is there.
    let promoted = b.manager.finish_write_and_reserve_read(&[key(1)], 1, "");
    assert_eq!(filled_with(promoted), [Ok(7)]);
    assert!(told.try_recv().is_err());
    assert_eq!(a.read(&keys(2)), [Ok(8), Ok(7)]);
    a.manager.close();
    b.manager.close();
    pool.assert_nothing_left();
    assert_eq!(pool.stats().pages_resident, 2);
}

#[test]
fn what_another_reads_is_not_deleted_by_any_means() {
    let (pool, a, b) = two();
    a.store(&keys(2), 7);
    let read = b.manager.reserve_read(&[key(0)], 1);
    let locked = Err(L1Error::KeyIsLocked);
    assert_eq!(a.manager.delete(&keys(2), false), [locked, Ok(())]);
    assert_eq!(a.manager.delete(&[key(0)], true), [locked]);
    a.manager.clear(true);
    assert_eq!(filled_with(read), [Ok(7)]);
    assert_eq!(b.manager.finish_read(&[key(0)], 1), [Ok(())]);
    a.manager.clear(false);
    assert_eq!(b.read(&keys(2)), [Err(L1Error::KeyNotExist); 2]);
    pool.assert_nothing_left();
    assert_eq!(pool.stats().pages_resident, 0);
}

#[test]
fn what_another_writes_is_locked_and_stays_its_own() {
    let (pool, a, b) = two();
    b.stage(&[key(0)], "", 8);
    assert_eq!(a.manager.delete(&[key(0)], true), [Err(L1Error::KeyIsLocked)]);
    a.manager.clear(true);
    assert_eq!(a.read(&[key(0)]), [Err(L1Error::KeyNotExist)]);
    assert_eq!(b.manager.finish_write(&[key(0)], ""), [Ok(())]);
    assert_eq!(a.read(&[key(0)]), [Ok(8)]);
    drop(a);
    pool.assert_nothing_left();
}

#[test]
fn a_temporary_chunk_is_its_writers_alone() {
    let (pool, a, b) = two();
    a.stage_all(&[Write::temporary(key(0))], "", 7);
    let promoted = a.manager.finish_write_and_reserve_read(&[key(0)], 2, "");
    assert_eq!(filled_with(promoted), [Ok(7)]);
    assert_eq!(b.read(&[key(0)]), [Err(L1Error::KeyNotExist)]);
    assert_eq!(pool.stats().pages_resident, 0);
    // So another can store it meanwhile.
    b.store(&[key(0)], 8);
    assert_eq!(filled_with(a.manager.unsafe_read(&[key(0)])), [Ok(7)]);
    assert_eq!(a.manager.finish_read(&[key(0)], 2), [Ok(())]);
    assert_eq!(a.read(&[key(0)]), [Ok(8)]);
    a.manager.close();
    pool.assert_nothing_left();
}

#[test]
fn what_could_not_be_told_is_said_not_to_be() {
    let pool = TestPool::start(8 << 20);
    let proxy = FaultProxy::start(pool.socket());
    let (a, b) = (Instance::new(proxy.endpoint(), "a"), Instance::new(pool.endpoint(), "b"));
    let told = Teller::listen_to_all(&a.manager);
    proxy.cut_all();
    assert_eq!(told.recv_timeout(WATCHDOG).unwrap(), ("deletions_missed", vec![]));
    a.store(&[key(250)], 7);
    assert_eq!(told.recv_timeout(WATCHDOG).unwrap().0, "write_finished");
    assert_eq!(b.manager.delete(&[key(250)], false), [Ok(())]);
    assert_eq!(told.recv_timeout(WATCHDOG).unwrap(), ("deleted_by_manager", vec![key(250)]));
}

#[test]
fn what_another_deletes_and_what_the_server_evicts_is_told() {
    let pool = TestPool::start((2 << 20) + 8 * PAGE);
    let (a, b) = (Instance::new(pool.endpoint(), "a"), Instance::new(pool.endpoint(), "b"));
    let told = Teller::listen_to_all(&a.manager);
    let next = |expected: &str| {
        let (event, keys) = told.recv_timeout(WATCHDOG).unwrap();
        assert_eq!(event, expected);
        keys
    };
    a.store(&[key(200)], 7);
    next("write_finished");
    assert_eq!(b.manager.delete(&[key(200)], false), [Ok(())]);
    assert_eq!(next("deleted_by_manager"), [key(200)]);
    // Its own deletion it hears of once.
    a.store(&[key(201)], 7);
    next("write_finished");
    assert_eq!(a.manager.delete(&[key(201)], false), [Ok(())]);
    assert_eq!(next("deleted_by_manager"), [key(201)]);
    // More than there is room for: the oldest goes.
    let many: Vec<ObjectKey> = (210..219).map(key).collect();
    for one in &many {
        a.store(std::slice::from_ref(one), 7);
        loop {
            let (event, keys) = told.recv_timeout(WATCHDOG).unwrap();
            if event == "deleted_by_manager" {
                assert_eq!(keys, [many[0].clone()]);
                return;
            }
            if keys == [one.clone()] && *one != many[8] {
                break;
            }
        }
    }
    panic!("nothing was evicted");
}

#[test]
fn keys_of_other_users_are_cleared_too_and_not_told() {
    let (pool, a, _b) = two();
    let stranger = pool.client("stranger");
    let name = maru_protocol::Key::new(b"no key of LMCache's").unwrap();
    let reserved = stranger.reserve(&[name], PAGE, maru_client::Reserve::default()).unwrap();
    let pages = reserved.into_iter().filter_map(|one| match one {
        maru_client::Reserved::Page(page) => Some(page),
        _ => None,
    });
    stranger.commit(pages).unwrap();
    a.store(&keys(1), 7);
    let told = Teller::listen(&a.manager);
    a.manager.clear(false);
    assert_eq!(told.recv().unwrap(), ("deleted_by_manager", keys(1)));
    assert_eq!(pool.stats().pages_resident, 0);
}

#[test]
fn a_layout_that_can_never_be_stored_is_known_at_the_start() {
    let (_pool, a, _b) = two();
    let opaque = |bytes| MemoryLayoutDesc::opaque(bytes).unwrap();
    assert_eq!(a.manager.register_kv_layout(&opaque(PAGE), 256).unwrap(), PAGE / 256);
    let uneven = a.manager.register_kv_layout(&opaque(PAGE + 1), 256).unwrap_err();
    assert!(matches!(uneven, MaruL1Error::Layout(LayoutError::Tokens { tokens: 256, .. })));
    let huge = a.manager.register_kv_layout(&opaque(1 << 30), 256).unwrap_err();
    assert!(huge.to_string().contains("--region-size"), "{huge}");
    let write = [Write::retained(key(0))];
    let refused = a.manager.reserve_write(&write, &opaque(1 << 30), "").remove(0);
    assert!(refused.is_err_and(|error| error == L1Error::OutOfMemory));
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let pool = TestPool::start(4 << 20);
    let maru = MaruL1Config { in_flight_max: 0, ..MaruL1Config::new(pool.endpoint()) };
    let config = L1ManagerConfig { maru: Some(maru), ..L1ManagerConfig::default() };
    let refused = MaruL1Manager::new(config).unwrap_err().to_string();
    assert!(refused.contains("--maru-max-inflight is 0"), "{refused}");
    let config = L1ManagerConfig { read_ttl: Duration::ZERO, ..Default::default() };
    let refused = LocalL1Manager::new(config).unwrap_err().to_string();
    assert!(refused.contains("--l1-read-ttl-seconds is 0"), "{refused}");
    assert!(matches!(MaruL1Manager::new(L1ManagerConfig::default()), Err(MaruL1Error::NoServer)));
}

#[test]
fn a_batch_larger_than_a_request_is_served_or_refused_whole() {
    let pool = TestPool::start_with(8 << 20, |config| config.directory.batch_max = 4);
    let a = Instance::new(pool.endpoint(), "a");
    let many = keys(11);
    a.store(&many, 7);
    assert_eq!(a.read(&many), [Ok(7); 11]);
    assert_eq!(a.manager.finish_read(&many, 1), [Ok(()); 11]);
    assert_eq!(a.manager.delete(&many, false), [Ok(()); 11]);
    // 96 pages of 64 KiB are in the pool.
    let writes: Vec<Write> = (0..97).map(key).map(Write::retained).collect();
    let reserved = a.manager.reserve_write(&writes, &layout(), "");
    assert!(reserved.iter().all(|one| one.as_ref().is_err_and(|e| *e == L1Error::OutOfMemory)));
    pool.assert_nothing_left();
}
