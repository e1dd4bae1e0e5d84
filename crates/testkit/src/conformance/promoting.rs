//! `finish_write_and_reserve_read`.

use maru_l1::{L1Error, READ_LOCKS_MAX};

use super::list_cases;
use super::subject::{PAGE, Subject, bytes_of, key, keys, ok, outline};

list_cases![
    a_promoted_chunk_is_resident_and_locked,
    a_promotion_takes_as_many_locks_as_it_says,
    a_promotion_brings_locks_into_their_range,
    a_promotion_of_the_unknown_is_no_such_chunk,
    a_promotion_is_for_ones_own_tag,
    each_promotion_of_a_batch_has_its_own_answer,
    a_late_promotion_locks_the_resident_chunk,
    a_late_promotion_adds_to_the_locks,
    a_promoted_chunk_cannot_be_deleted,
    a_promoted_write_can_be_written_to_no_more,
    a_temporary_promotion_dies_with_its_last_lock,
    a_late_temporary_promotion_leaves_the_resident_chunk,
    a_late_promotion_of_a_temporary_chunk_leaves_it_temporary,
    temporary_and_retained_are_promoted_together,
    a_promotion_twice_in_a_batch_is_done_once,
];

const MISSING: L1Error = L1Error::KeyNotExist;

fn a_promoted_chunk_is_resident_and_locked(subject: &Subject) {
    subject.stage(&keys(2), "a", 7);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(2), 1, "a");
    assert_eq!(bytes_of(promoted), [Ok(7); 2]);
    assert_eq!(subject.read_again(&keys(2)), [Ok(7); 2]);
    assert_eq!((subject.locks(&key(0)), subject.locks(&key(1))), (Some(1), Some(1)));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (2 * PAGE, 0));
    assert_eq!(subject.manager.finish_read(&keys(2), 1), ok(2));
    // It stays: another reader finds it.
    assert_eq!(subject.read(&keys(2)), [Ok(7); 2]);
}

fn a_promotion_takes_as_many_locks_as_it_says(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 3, "a");
    assert_eq!(bytes_of(promoted), [Ok(7)]);
    assert_eq!(subject.locks(&key(0)), Some(3));
}

fn a_promotion_brings_locks_into_their_range(subject: &Subject) {
    subject.stage(&keys(2), "a", 7);
    let few = subject.manager.finish_write_and_reserve_read(&[key(0)], 0, "a");
    let many = subject.manager.finish_write_and_reserve_read(&[key(1)], 1000, "a");
    assert_eq!((bytes_of(few), bytes_of(many)), (vec![Ok(7)], vec![Ok(7)]));
    assert_eq!(subject.locks(&key(0)), Some(1));
    assert_eq!(subject.locks(&key(1)), Some(READ_LOCKS_MAX));
}

fn a_promotion_of_the_unknown_is_no_such_chunk(subject: &Subject) {
    subject.store(&keys(1), 7);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(2), 1, "a");
    assert_eq!(outline(&promoted), [Err(MISSING); 2]);
    assert_eq!(subject.locks(&key(0)), Some(0));
}

fn a_promotion_is_for_ones_own_tag(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    let wrong = subject.manager.finish_write_and_reserve_read(&keys(1), 1, "b");
    assert_eq!(outline(&wrong), [Err(MISSING)]);
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    let right = subject.manager.finish_write_and_reserve_read(&keys(1), 1, "a");
    assert_eq!(bytes_of(right), [Ok(7)]);
}

fn each_promotion_of_a_batch_has_its_own_answer(subject: &Subject) {
    subject.stage(&[key(1), key(3)], "a", 7);
    subject.store(&[key(2)], 8);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(4), 1, "a");
    assert_eq!(bytes_of(promoted), [Err(MISSING), Ok(7), Err(MISSING), Ok(7)]);
}

fn a_late_promotion_locks_the_resident_chunk(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 2, "a");
    assert_eq!(bytes_of(promoted), [Ok(8)]);
    assert_eq!(subject.locks(&key(0)), Some(2));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, 0));
}

fn a_late_promotion_adds_to_the_locks(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 2, "a");
    assert_eq!(bytes_of(promoted), [Ok(8)]);
    assert_eq!(subject.locks(&key(0)), Some(3));
}

fn a_promoted_chunk_cannot_be_deleted(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 1, "a");
    assert_eq!(subject.manager.delete(&keys(1), false), [Err(L1Error::KeyIsLocked)]);
    assert_eq!(bytes_of(promoted), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
}

fn a_promoted_write_can_be_written_to_no_more(subject: &Subject) {
    let object = subject.stage(&keys(1), "a", 7).remove(0);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 1, "a");
    assert_eq!(object.write(|bytes| bytes.fill(9)), Err(L1Error::KeyInWrongState));
    assert_eq!(bytes_of(promoted), [Ok(7)]);
}

fn a_temporary_promotion_dies_with_its_last_lock(subject: &Subject) {
    subject.stage_temporary(&keys(1), "a", 7);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 2, "a");
    assert_eq!(bytes_of(promoted), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(subject.read_again(&keys(1)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    assert_eq!(subject.used(), 0);
}

fn a_late_temporary_promotion_leaves_the_resident_chunk(subject: &Subject) {
    subject.stage_temporary(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 1, "a");
    assert_eq!(bytes_of(promoted), [Ok(8)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
    assert_eq!(subject.used(), PAGE);
}

fn a_late_promotion_of_a_temporary_chunk_leaves_it_temporary(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store_temporary(&keys(1), 8);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 1, "a");
    assert_eq!(bytes_of(promoted), [Ok(8)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    assert_eq!(subject.used(), 0);
}

fn temporary_and_retained_are_promoted_together(subject: &Subject) {
    subject.stage_temporary(&[key(0), key(2)], "a", 7);
    subject.stage(&[key(1), key(3)], "a", 8);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(4), 1, "a");
    assert_eq!(bytes_of(promoted), [Ok(7), Ok(8), Ok(7), Ok(8)]);
    assert_eq!(subject.manager.finish_read(&keys(4), 1), ok(4));
    assert_eq!(subject.read(&keys(4)), [Err(MISSING), Ok(8), Err(MISSING), Ok(8)]);
}

fn a_promotion_twice_in_a_batch_is_done_once(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    let twice = [key(0), key(0)];
    let promoted = subject.manager.finish_write_and_reserve_read(&twice, 1, "a");
    assert_eq!(bytes_of(promoted), [Ok(7), Err(MISSING)]);
    assert_eq!(subject.locks(&key(0)), Some(1));
}
