//! What listeners are told, and in which order.

use std::sync::{Arc, Mutex, PoisonError};

use maru_l1::{L1Listener, L1Manager, ObjectKey, Write};

use super::list_cases;
use super::subject::{READ_TTL, Subject, Told, WRITE_TTL, bytes_of, key, keys, layout, ok};

list_cases![
    reserving_to_read_is_told,
    finishing_to_read_is_told,
    finishing_in_part_is_told,
    the_end_of_a_temporary_chunk_is_told_after_the_reading,
    the_end_of_a_temporary_chunk_is_not_told_while_it_is_staged_again,
    reserving_to_write_is_told,
    a_hand_over_is_told,
    what_is_refused_is_not_told_as_reserved,
    finishing_to_write_is_told,
    temporary_chunks_are_not_told_as_written,
    a_late_copy_is_not_told,
    a_promotion_is_told_and_never_as_written,
    a_late_promotion_is_told_as_a_reading,
    a_mixed_promotion_tells_the_readings_first,
    discarding_is_told_where_nothing_is_left,
    discarding_is_not_told_where_something_is_left,
    a_deletion_is_told,
    a_refused_deletion_is_not_told,
    reclaiming_is_told_as_a_deletion,
    clearing_is_told,
    clearing_by_force_tells_each_key_once,
    touching_is_told_and_nothing_else_is_an_access,
    looking_is_not_told,
    all_listeners_are_told,
    a_late_listener_hears_what_comes_after,
    a_listener_may_change_the_manager,
];

fn told(event: &'static str, keys: &[ObjectKey]) -> Told {
    (event, keys.to_vec())
}

fn reserving_to_read_is_told(subject: &Subject) {
    subject.store(&[key(1), key(2)], 7);
    let listener = subject.listen();
    drop(subject.read(&keys(4)));
    assert_eq!(listener.take(), [told("reserved_read", &[key(1), key(2)])]);
    drop(subject.read(&[key(9)]));
    assert_eq!(listener.take(), []);
}

fn finishing_to_read_is_told(subject: &Subject) {
    subject.store(&keys(3), 7);
    assert_eq!(subject.read(&[key(0), key(2)]), [Ok(7); 2]);
    let listener = subject.listen();
    drop(subject.manager.finish_read(&keys(4), 1));
    assert_eq!(listener.take(), [told("read_finished", &[key(0), key(2)])]);
    drop(subject.manager.finish_read(&keys(4), 1));
    assert_eq!(listener.take(), []);
}

fn finishing_in_part_is_told(subject: &Subject) {
    subject.store_temporary(&keys(1), 7);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), 2)), [Ok(7)]);
    let listener = subject.listen();
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(listener.take(), [told("read_finished", &keys(1))]);
}

fn the_end_of_a_temporary_chunk_is_told_after_the_reading(subject: &Subject) {
    subject.store_temporary(&[key(0), key(2)], 7);
    subject.store(&[key(1)], 7);
    assert_eq!(subject.read(&keys(3)), [Ok(7); 3]);
    let listener = subject.listen();
    assert_eq!(subject.manager.finish_read(&keys(3), 1), ok(3));
    let expected = [told("read_finished", &keys(3)), told("deleted_by_manager", &[key(0), key(2)])];
    assert_eq!(listener.take(), expected);
}

fn the_end_of_a_temporary_chunk_is_not_told_while_it_is_staged_again(subject: &Subject) {
    subject.stage(&keys(1), "other", 8);
    subject.store_temporary(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    let listener = subject.listen();
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(listener.take(), [told("read_finished", &keys(1))]);
}

fn reserving_to_write_is_told(subject: &Subject) {
    let listener = subject.listen();
    subject.stage(&keys(2), "a", 7);
    subject.stage_temporary(&[key(2)], "a", 7);
    let expected = [told("reserved_write", &keys(2)), told("reserved_write", &[key(2)])];
    assert_eq!(listener.take(), expected);
}

fn a_hand_over_is_told(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.clock.advance(WRITE_TTL);
    let listener = subject.listen();
    subject.stage(&keys(2), "a", 7);
    assert_eq!(listener.take(), [told("reserved_write", &keys(2))]);
}

fn what_is_refused_is_not_told_as_reserved(subject: &Subject) {
    subject.store(&[key(1)], 7);
    let listener = subject.listen();
    let write = |number| Write::retained(key(number));
    drop(subject.manager.reserve_write(&[write(0), write(1), write(0)], &layout(), "a"));
    assert_eq!(listener.take(), [told("reserved_write", &keys(1))]);
    drop(subject.manager.reserve_write(&[write(0), write(1)], &layout(), "a"));
    assert_eq!(listener.take(), []);
    let pages = u8::try_from(subject.pages).expect("a small subject");
    let many: Vec<Write> = (10..=pages + 10).map(write).collect();
    drop(subject.manager.reserve_write(&many, &layout(), "a"));
    let told = listener.take();
    // A server may have made room before it said no; nothing was reserved.
    assert!(told.iter().all(|(event, _)| *event != "reserved_write"), "{told:?}");
}

fn finishing_to_write_is_told(subject: &Subject) {
    subject.stage(&[key(1), key(2)], "a", 7);
    let listener = subject.listen();
    drop(subject.manager.finish_write(&keys(4), "a"));
    assert_eq!(listener.take(), [told("write_finished", &[key(1), key(2)])]);
}

fn temporary_chunks_are_not_told_as_written(subject: &Subject) {
    subject.stage_temporary(&[key(0)], "a", 7);
    subject.stage(&[key(1)], "a", 7);
    let listener = subject.listen();
    assert_eq!(subject.manager.finish_write(&keys(2), "a"), ok(2));
    assert_eq!(listener.take(), [told("write_finished", &[key(1)])]);
}

fn a_late_copy_is_not_told(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.stage_temporary(&keys(1), "b", 7);
    subject.store(&keys(1), 8);
    let listener = subject.listen();
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(subject.manager.finish_write(&keys(1), "b"), ok(1));
    assert_eq!(listener.take(), []);
}

fn a_promotion_is_told_and_never_as_written(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.stage_temporary(&[key(1)], "a", 7);
    let listener = subject.listen();
    drop(subject.manager.finish_write_and_reserve_read(&keys(3), 1, "a"));
    assert_eq!(listener.take(), [told("finish_write_and_reserve_read", &keys(2))]);
}

fn a_late_promotion_is_told_as_a_reading(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    let listener = subject.listen();
    drop(subject.manager.finish_write_and_reserve_read(&keys(1), 1, "a"));
    assert_eq!(listener.take(), [told("reserved_read", &keys(1))]);
}

fn a_mixed_promotion_tells_the_readings_first(subject: &Subject) {
    subject.stage(&[key(0), key(1), key(3)], "a", 7);
    subject.stage_temporary(&[key(2), key(4)], "a", 7);
    subject.store(&[key(1), key(4)], 8);
    let listener = subject.listen();
    drop(subject.manager.finish_write_and_reserve_read(&keys(5), 1, "a"));
    let expected = [
        told("reserved_read", &[key(1), key(4)]),
        told("finish_write_and_reserve_read", &[key(0), key(2), key(3)]),
    ];
    assert_eq!(listener.take(), expected);
}

fn discarding_is_told_where_nothing_is_left(subject: &Subject) {
    subject.stage(&keys(2), "a", 7);
    let listener = subject.listen();
    drop(subject.manager.finish_write_and_delete(&keys(3), "a"));
    assert_eq!(listener.take(), [told("deleted_by_manager", &keys(2))]);
}

fn discarding_is_not_told_where_something_is_left(subject: &Subject) {
    subject.stage(&keys(3), "a", 7);
    subject.store(&[key(0)], 8);
    subject.stage(&[key(1)], "b", 8);
    subject.store_temporary(&[key(2)], 8);
    let listener = subject.listen();
    assert_eq!(subject.manager.finish_write_and_delete(&keys(3), "a"), ok(3));
    assert_eq!(listener.take(), []);
    assert_eq!(subject.manager.finish_write_and_delete(&[key(1)], "b"), ok(1));
    assert_eq!(listener.take(), [told("deleted_by_manager", &[key(1)])]);
}

fn a_deletion_is_told(subject: &Subject) {
    subject.store(&[key(1)], 7);
    subject.store_temporary(&[key(2)], 7);
    let listener = subject.listen();
    drop(subject.manager.delete(&keys(4), false));
    assert_eq!(listener.take(), [told("deleted_by_manager", &[key(1), key(2)])]);
}

fn a_refused_deletion_is_not_told(subject: &Subject) {
    subject.store(&keys(1), 7);
    subject.stage(&[key(1)], "a", 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    let listener = subject.listen();
    drop(subject.manager.delete(&keys(3), false));
    assert_eq!(listener.take(), []);
}

fn reclaiming_is_told_as_a_deletion(subject: &Subject) {
    subject.stage(&keys(2), "a", 7);
    subject.clock.advance(WRITE_TTL);
    subject.stage(&[key(1)], "b", 7);
    let listener = subject.listen();
    drop(subject.manager.delete(&keys(2), false));
    assert_eq!(listener.take(), [told("deleted_by_manager", &keys(1))]);
}

/// All keys that were told as deleted, in order of their names.
fn deleted(told: Vec<Told>) -> Vec<ObjectKey> {
    let all = told.into_iter().flat_map(|(event, keys)| {
        assert_eq!(event, "deleted_by_manager");
        keys
    });
    let mut all: Vec<ObjectKey> = all.collect();
    all.sort();
    all
}

fn clearing_is_told(subject: &Subject) {
    subject.stage(&[key(2), key(3)], "old", 7);
    subject.clock.advance(WRITE_TTL);
    subject.stage(&[key(3), key(4)], "a", 7);
    subject.store(&[key(0), key(1), key(5)], 7);
    subject.store_temporary(&[key(6)], 7);
    assert_eq!(subject.read(&[key(1)]), [Ok(7)]);
    let listener = subject.listen();
    subject.manager.clear(false);
    assert_eq!(deleted(listener.take()), [key(0), key(2), key(5), key(6)]);
}

fn clearing_by_force_tells_each_key_once(subject: &Subject) {
    subject.stage(&keys(3), "a", 7);
    subject.store(&[key(0)], 7);
    subject.store_temporary(&[key(1)], 7);
    assert_eq!(subject.read(&[key(0)]), [Ok(7)]);
    let listener = subject.listen();
    subject.manager.clear(true);
    assert_eq!(deleted(listener.take()), keys(3));
}

fn touching_is_told_and_nothing_else_is_an_access(subject: &Subject) {
    let listener = subject.listen();
    subject.manager.touch_keys(&keys(2));
    assert_eq!(listener.take(), [told("accessed", &keys(2))]);
    subject.store(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert!(listener.take().iter().all(|(event, _)| *event != "accessed"));
}

fn looking_is_not_told(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    subject.clock.advance(READ_TTL / 2);
    let listener = subject.listen();
    assert_eq!(subject.read_again(&keys(1)), [Ok(7)]);
    assert!(subject.manager.object_state(&key(0)).is_some());
    drop(subject.manager.report_status());
    assert!(!subject.manager.is_key_evictable(&key(0)));
    assert!(subject.manager.memcheck());
    assert_eq!(listener.take(), []);
}

fn all_listeners_are_told(subject: &Subject) {
    let (first, second) = (subject.listen(), subject.listen());
    subject.store(&keys(1), 7);
    subject.manager.touch_keys(&keys(1));
    let expected = [
        told("reserved_write", &keys(1)),
        told("write_finished", &keys(1)),
        told("accessed", &keys(1)),
    ];
    assert_eq!(first.take(), expected);
    assert_eq!(second.take(), expected);
}

fn a_late_listener_hears_what_comes_after(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    let listener = subject.listen();
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(listener.take(), [told("write_finished", &keys(1))]);
}

/// Deletes what was written, from inside the call that tells so.
#[derive(Debug)]
struct Deleter {
    manager: std::sync::Weak<dyn L1Manager>,
    answers: Mutex<Vec<maru_l1::Outcomes<()>>>,
}

impl L1Listener for Deleter {
    fn write_finished(&self, keys: &[ObjectKey]) {
        let manager = self.manager.upgrade().expect("it is calling");
        manager.touch_keys(keys);
        let answer = manager.delete(keys, false);
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    }
}

fn a_listener_may_change_the_manager(subject: &Subject) {
    let manager = Arc::downgrade(&subject.manager);
    let deleter = Arc::new(Deleter { manager, answers: Mutex::default() });
    subject.manager.register_listener(Arc::clone(&deleter) as Arc<dyn L1Listener>);
    let listener = subject.listen();
    subject.store(&keys(2), 7);
    assert_eq!(*deleter.answers.lock().unwrap_or_else(PoisonError::into_inner), [ok(2)]);
    let expected = [
        told("reserved_write", &keys(2)),
        told("accessed", &keys(2)),
        told("write_finished", &keys(2)),
        told("deleted_by_manager", &keys(2)),
    ];
    assert_eq!(listener.take(), expected);
    assert_eq!(subject.used(), 0);
}
