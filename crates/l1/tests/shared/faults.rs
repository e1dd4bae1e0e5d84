//! What the manager does about each way in which the server can fail it.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use maru_l1::{L1Error, L1Manager, Write};
use maru_protocol::Refusal;
use maru_testkit::{Fault, FaultProxy, SHORT, TestPool};

use crate::{Instance, Teller, WATCHDOG, filled_with, key, keys, layout};

/// Taken apart in this order, so that the instance goes while its server is still there.
struct Setup {
    pool: TestPool,
    proxy: FaultProxy,
    instance: Instance,
}

/// An instance behind a proxy.
fn setup(timeout: Duration) -> Setup {
    let pool = TestPool::start(8 << 20);
    let proxy = FaultProxy::start(pool.socket());
    let instance = Instance::patient(proxy.endpoint(), "behind", timeout);
    Setup { pool, proxy, instance }
}

fn refused() -> Fault {
    Fault::Refuse(Refusal::WindowFull { window: 1 })
}

#[test]
fn a_lost_request_or_reply_changes_nothing() {
    for fault in [Fault::LoseRequest, Fault::LoseReply] {
        let Setup { pool, proxy, instance } = setup(WATCHDOG / 2);
        let manager = &*instance.manager;
        for name in ["reserve", "commit", "acquire", "release", "delete", "abort"] {
            proxy.inject(name, fault.clone(), 1);
        }
        instance.store(&keys(3), 7);
        assert_eq!(instance.read(&keys(3)), [Ok(7), Ok(7), Ok(7)]);
        // One pin a chunk, whatever was sent twice.
        assert_eq!(pool.holdings(), (3, 0));
        assert_eq!(manager.finish_read(&keys(3), 1), [Ok(()), Ok(()), Ok(())]);
        instance.stage(&[key(9)], "", 1);
        assert_eq!(manager.finish_write_and_delete(&[key(9)], ""), [Ok(())]);
        assert_eq!(manager.delete(&keys(3), false), [Ok(()), Ok(()), Ok(())]);
        assert_eq!(proxy.met(), 6);
        pool.assert_nothing_left();
        assert_eq!(pool.stats().pages_resident, 0);
    }
}

#[test]
fn only_what_was_pinned_is_a_hit() {
    let Setup { pool, proxy, instance } = setup(WATCHDOG / 2);
    instance.store(&keys(4), 7);
    proxy.inject("acquire", Fault::PartialPin, 1);
    let missing = Err(L1Error::KeyNotExist);
    assert_eq!(instance.read(&keys(4)), [Ok(7), missing, Ok(7), missing]);
    assert_eq!(pool.holdings(), (2, 0));
    let wrong = Err(L1Error::KeyInWrongState);
    assert_eq!(instance.manager.finish_read(&keys(4), 1), [Ok(()), wrong, Ok(()), wrong]);
    pool.assert_nothing_left();
}

#[test]
fn an_acquire_with_an_unknown_outcome_is_a_miss_and_leaves_no_pin() {
    let Setup { pool, proxy, instance } = setup(SHORT);
    instance.store(&keys(2), 7);
    proxy.inject("acquire", Fault::SwallowReply, 1);
    assert_eq!(instance.read(&keys(2)), [Err(L1Error::KeyNotExist); 2]);
    // The connection is found to be broken, and the answer comes after all.
    proxy.cut_all();
    pool.assert_nothing_left();
}

#[test]
fn a_reserve_with_an_unknown_outcome_can_be_tried_again() {
    let Setup { pool, proxy, instance } = setup(SHORT);
    proxy.inject("reserve", Fault::SwallowReply, 1);
    let writes = [Write::retained(key(0))];
    let reserved = instance.manager.reserve_write(&writes, &layout(), "");
    assert_eq!(
        reserved.into_iter().map(Result::err).collect::<Vec<_>>(),
        [Some(L1Error::OutOfMemory)]
    );
    proxy.cut_all();
    pool.assert_nothing_left();
    instance.store(&[key(0)], 7);
    assert_eq!(instance.read(&[key(0)]), [Ok(7)]);
}

#[test]
fn a_commit_with_an_unknown_outcome_is_in_the_wrong_state_and_whole() {
    let Setup { pool, proxy, instance } = setup(SHORT);
    let (manager, told) = (&*instance.manager, Teller::listen(&instance.manager));
    instance.stage(&keys(2), "", 7);
    proxy.inject("commit", Fault::SwallowReply, 1);
    assert_eq!(manager.finish_write(&keys(2), ""), [Err(L1Error::KeyInWrongState); 2]);
    assert!(told.try_recv().is_err(), "nobody knows whether it was written");
    proxy.cut_all();
    pool.assert_nothing_left();
    // It was applied; and the writer has no way to the page any more.
    assert_eq!(instance.read(&keys(2)), [Ok(7), Ok(7)]);
    assert_eq!(manager.finish_write(&keys(2), ""), [Err(L1Error::KeyNotExist); 2]);
}

#[test]
fn a_promotion_with_an_unknown_outcome_leaves_no_pin() {
    let Setup { pool, proxy, instance } = setup(SHORT);
    instance.stage(&keys(2), "", 7);
    proxy.inject("commit", Fault::SwallowReply, 1);
    let promoted = instance.manager.finish_write_and_reserve_read(&keys(2), 1, "");
    assert_eq!(filled_with(promoted), [Err(L1Error::KeyInWrongState); 2]);
    proxy.cut_all();
    pool.assert_nothing_left();
}

#[test]
fn a_short_reply_is_not_used_and_leaves_nothing() {
    let Setup { pool, proxy, instance } = setup(WATCHDOG / 2);
    let manager = &*instance.manager;
    instance.store(&keys(3), 7);
    proxy.inject("acquire", Fault::ShortReply, 1);
    assert_eq!(instance.read(&keys(3)), [Err(L1Error::KeyNotExist); 3]);
    pool.assert_nothing_left();
    proxy.inject("reserve", Fault::ShortReply, 1);
    let writes: Vec<Write> = (10..13).map(key).map(Write::retained).collect();
    let reserved = manager.reserve_write(&writes, &layout(), "");
    assert!(reserved.iter().all(|one| one.as_ref().is_err_and(|e| *e == L1Error::OutOfMemory)));
    pool.assert_nothing_left();
    instance.stage(&[key(20), key(21)], "", 7);
    proxy.inject("commit", Fault::ShortReply, 1);
    let promoted = manager.finish_write_and_reserve_read(&[key(20), key(21)], 1, "");
    assert_eq!(filled_with(promoted), [Err(L1Error::KeyInWrongState); 2]);
    pool.assert_nothing_left();
    proxy.inject("delete", Fault::ShortReply, 1);
    assert_eq!(manager.delete(&keys(2), false), [Err(L1Error::KeyIsLocked); 2]);
    assert_eq!(instance.read(&keys(1)), [Err(L1Error::KeyNotExist)]);
}

#[test]
fn a_page_that_cannot_be_resolved_is_not_used_and_given_back() {
    let Setup { pool, proxy, instance } = setup(WATCHDOG / 2);
    let manager = &*instance.manager;
    instance.store(&keys(2), 7);
    proxy.inject("acquire", Fault::Unresolvable, 1);
    assert_eq!(instance.read(&keys(2)), [Err(L1Error::KeyNotExist); 2]);
    pool.assert_nothing_left();
    proxy.inject("reserve", Fault::Unresolvable, 1);
    let writes = [Write::retained(key(9))];
    assert!(manager.reserve_write(&writes, &layout(), "")[0].is_err());
    pool.assert_nothing_left();
    instance.stage(&[key(9)], "", 7);
    proxy.inject("commit", Fault::Unresolvable, 1);
    let promoted = manager.finish_write_and_reserve_read(&[key(9)], 1, "");
    assert_eq!(filled_with(promoted), [Err(L1Error::KeyInWrongState)]);
    pool.assert_nothing_left();
    assert_eq!(instance.read(&[key(9)]), [Ok(7)]);
}

#[test]
fn what_is_refused_gives_its_pages_back() {
    let Setup { pool, proxy, instance } = setup(WATCHDOG / 2);
    let manager = &*instance.manager;
    instance.stage(&keys(2), "", 7);
    proxy.inject("commit", refused(), 1);
    assert_eq!(manager.finish_write(&keys(2), ""), [Err(L1Error::KeyInWrongState); 2]);
    pool.assert_nothing_left();
    proxy.inject("acquire", refused(), 1);
    assert_eq!(instance.read(&keys(2)), [Err(L1Error::KeyNotExist); 2]);
    proxy.inject("reserve", refused(), 1);
    let writes = [Write::retained(key(0))];
    let reserved = manager.reserve_write(&writes, &layout(), "");
    assert!(reserved[0].as_ref().is_err_and(|error| *error == L1Error::OutOfMemory));
    instance.store(&keys(2), 7);
    proxy.inject("delete", refused(), 1);
    assert_eq!(manager.delete(&keys(2), false), [Err(L1Error::KeyIsLocked); 2]);
    assert_eq!(instance.read(&keys(2)), [Ok(7); 2]);
    proxy.inject("release", refused(), 1);
    assert_eq!(manager.finish_read(&keys(2), 1), [Ok(()); 2]);
    pool.assert_nothing_left();
}

/// Does `work` on a thread; the receiver says when it is done.
fn in_background(work: impl FnOnce() + Send + 'static) -> Receiver<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        work();
        let _ = sender.send(());
    });
    receiver
}

#[test]
fn what_became_of_a_key_and_is_not_known_is_said_to_be_missed() {
    let Setup { pool, proxy, instance } = setup(SHORT);
    let manager = &*instance.manager;
    instance.store(&keys(1), 7);
    instance.stage(&[key(1)], "", 7);
    let told = Teller::listen_to_all(manager);
    let missed = ("deletions_missed", vec![]);
    proxy.inject("delete", Fault::SwallowReply, 1);
    assert_eq!(manager.delete(&keys(1), false), [Err(L1Error::KeyIsLocked)]);
    assert_eq!(told.recv_timeout(WATCHDOG).unwrap(), missed);
    proxy.inject("commit", refused(), 1);
    assert_eq!(manager.finish_write(&[key(1)], ""), [Err(L1Error::KeyInWrongState)]);
    assert_eq!(told.recv_timeout(WATCHDOG).unwrap(), missed);
    drop(instance);
    pool.assert_nothing_left();
}

/// The thread that listens took a session that was given up for the end.
#[test]
fn listening_goes_on_after_an_answer_that_makes_no_sense() {
    let Setup { pool, proxy, instance } = setup(WATCHDOG / 2);
    let told = Teller::listen_to_all(&instance.manager);
    instance.store(&keys(2), 7);
    assert_eq!(told.recv_timeout(WATCHDOG).unwrap().0, "write_finished");
    proxy.inject("acquire", Fault::ShortReply, 1);
    assert_eq!(instance.read(&keys(2)), [Err(L1Error::KeyNotExist); 2]);
    assert_eq!(instance.read(&[key(1)]), [Ok(7)]);
    assert_eq!(told.recv_timeout(WATCHDOG).unwrap().0, "deletions_missed");
    instance.store(&[key(5)], 7);
    assert_eq!(told.recv_timeout(WATCHDOG).unwrap().0, "write_finished");
    let deleted = pool.client("other").delete(&[key(5).wire()]).unwrap();
    assert_eq!(deleted, [maru_protocol::DeleteOutcome::Deleted]);
    assert_eq!(told.recv_timeout(WATCHDOG).unwrap(), ("deleted_by_manager", vec![key(5)]));
}

#[test]
fn a_slow_reply_keeps_nobody_else_waiting() {
    for slow in ["acquire", "reserve", "commit", "delete"] {
        let Setup { pool, proxy, instance } = setup(WATCHDOG);
        instance.store(&keys(4), 7);
        assert_eq!(instance.read(&[key(0)]), [Ok(7)]);
        instance.stage(&[key(8)], "", 7);
        proxy.inject(slow, Fault::Hold, 1);
        let manager = instance.manager.clone();
        let held = in_background(move || match slow {
            "acquire" => assert!(manager.reserve_read(&[key(1)], 1)[0].is_ok()),
            "reserve" => {
                let writes = [Write::retained(key(9))];
                assert!(manager.reserve_write(&writes, &layout(), "")[0].is_ok());
            }
            "commit" => assert_eq!(manager.finish_write(&[key(8)], ""), [Ok(())]),
            _ => assert_eq!(manager.delete(&[key(2)], false), [Ok(())]),
        });
        proxy.wait_held(1);
        let manager = instance.manager.clone();
        let others = in_background(move || {
            assert!(!manager.is_key_evictable(&key(0)));
            manager.touch_keys(&[key(0), key(1)]);
            assert_eq!(filled_with(manager.unsafe_read(&[key(0)])), [Ok(7)]);
            assert!(manager.reserve_read(&[key(0)], 2)[0].is_ok());
            assert!(manager.staging_memory_usage() <= 2 * crate::PAGE);
            assert_eq!(filled_with(manager.reserve_read(&[key(3)], 1)), [Ok(7)]);
            assert_eq!(manager.finish_read(&[key(3)], 1), [Ok(())]);
        });
        assert_eq!(others.recv_timeout(WATCHDOG), Ok(()), "{slow}");
        assert!(held.try_recv().is_err(), "{slow} was not held");
        proxy.release_held();
        assert_eq!(held.recv_timeout(WATCHDOG), Ok(()), "{slow}");
        instance.manager.close();
        pool.assert_nothing_left();
    }
}

#[test]
fn a_change_waits_for_a_change_of_the_same_key() {
    let Setup { pool, proxy, instance } = setup(WATCHDOG);
    let told = Teller::listen(&instance.manager);
    instance.store(&[key(0)], 7);
    assert_eq!(told.recv().unwrap().0, "write_finished");
    instance.stage(&[key(1)], "", 7);
    proxy.inject("delete", Fault::Hold, 1);
    let manager = instance.manager.clone();
    let deleted = in_background(move || assert_eq!(manager.delete(&[key(0)], false), [Ok(())]));
    proxy.wait_held(1);
    // Deleted at the server; until this manager has told so, nobody stages it anew.
    let manager = instance.manager.clone();
    let stored = in_background(move || {
        assert!(manager.reserve_write(&[Write::retained(key(0))], &layout(), "")[0].is_ok());
        assert_eq!(manager.finish_write(&[key(0)], ""), [Ok(())]);
    });
    assert_eq!(instance.manager.finish_write(&[key(1)], ""), [Ok(())]);
    assert_eq!(told.recv().unwrap(), ("write_finished", vec![key(1)]));
    proxy.release_held();
    deleted.recv_timeout(WATCHDOG).unwrap();
    stored.recv_timeout(WATCHDOG).unwrap();
    assert_eq!(told.recv().unwrap(), ("deleted_by_manager", vec![key(0)]));
    assert_eq!(told.recv().unwrap(), ("write_finished", vec![key(0)]));
    pool.assert_nothing_left();
}

#[test]
fn without_a_server_reads_miss_and_writes_find_no_room() {
    let Setup { pool, proxy, instance } = setup(SHORT);
    let manager = &*instance.manager;
    instance.store(&keys(2), 7);
    assert_eq!(instance.read(&[key(0)]), [Ok(7)]);
    instance.stage(&[key(5)], "", 7);
    let usage = manager.memory_usage();
    proxy.set_upstream(None);
    assert_eq!(instance.read(&[key(1)]), [Err(L1Error::KeyNotExist)]);
    let writes = [Write::retained(key(6))];
    let reserved = manager.reserve_write(&writes, &layout(), "");
    assert!(reserved[0].as_ref().is_err_and(|error| *error == L1Error::OutOfMemory));
    assert_eq!(manager.delete(&[key(1)], false), [Err(L1Error::KeyIsLocked)]);
    assert_eq!(manager.memory_usage(), usage);
    assert!(!manager.memcheck());
    assert!(!manager.is_key_evictable(&key(0)));
    manager.touch_keys(&[key(0)]);
    // It is back, and nothing that it has was lost.
    proxy.set_upstream(Some(pool.socket()));
    assert!(manager.memcheck());
    manager.close();
    pool.assert_nothing_left();
}

#[test]
fn a_new_epoch_ends_what_was_held_and_begins_anew() {
    let Setup { pool, proxy, instance } = setup(WATCHDOG / 2);
    let manager = &*instance.manager;
    instance.store(&keys(2), 7);
    let before = manager.reserve_read(&keys(2), 1);
    instance.stage(&[key(5)], "", 7);
    let other = TestPool::start(8 << 20);
    proxy.set_upstream(Some(other.socket()));
    // The first request finds out.
    assert_eq!(instance.read(&[key(9)]), [Err(L1Error::KeyNotExist)]);
    // Chunks that were lost with their session were counted as locked.
    assert_eq!(manager.report_status().read_locked_count, 0);
    assert_eq!(filled_with(before), [Err(L1Error::KeyNotReadable); 2]);
    assert_eq!(filled_with(manager.unsafe_read(&[key(0)])), [Err(L1Error::KeyNotExist)]);
    assert_eq!(manager.finish_read(&[key(1)], 1), [Err(L1Error::KeyNotExist)]);
    assert_eq!(manager.finish_write(&[key(5)], ""), [Err(L1Error::KeyInWrongState)]);
    instance.store(&keys(2), 8);
    assert_eq!(instance.read(&keys(2)), [Ok(8), Ok(8)]);
    manager.close();
    other.assert_nothing_left();
    pool.assert_nothing_left();
}
