//! Keys with several things at once: a resident chunk, and reservations beside it.

use maru_l1::{L1Error, MemoryLayoutDesc, ObjectState, Write};

use super::list_cases;
use super::subject::{
    Evictor, PAGE, READ_TTL, Recorder, Subject, WRITE_TTL, bytes_of, key, keys, ok,
};

list_cases![
    what_has_expired_is_reclaimed_beside_a_locked_chunk,
    a_deletion_takes_the_chunk_and_what_has_expired_at_once,
    a_deletion_takes_all_that_has_expired,
    clearing_takes_what_has_expired_beside_a_locked_chunk,
    clearing_tells_a_chunk_with_an_expired_reservation_once,
    clearing_by_force_takes_all_reservations_of_a_key,
    a_late_copy_may_have_another_size,
    a_late_temporary_copy_leaves_the_chunk_as_it_is,
    a_late_copy_leaves_a_temporary_chunk_temporary,
    a_late_promotion_counts_the_time_anew,
    a_promotion_is_locked_for_a_readers_time,
    a_reservation_does_not_keep_a_chunk_from_readers,
    an_unlocked_chunk_beside_a_reservation_is_evictable_by_its_evictor,
    an_expired_reservation_beside_a_locked_chunk_is_evictable,
    after_a_temporary_chunk_comes_a_retained_one,
];

const MISSING: L1Error = L1Error::KeyNotExist;
const LOCKED: L1Error = L1Error::KeyIsLocked;

fn told_nothing(told: &Recorder) {
    assert_eq!(told.take(), []);
}

fn what_has_expired_is_reclaimed_beside_a_locked_chunk(subject: &Subject) {
    subject.stage(&keys(1), "old", 7);
    subject.clock.advance(WRITE_TTL);
    subject.store(&keys(1), 8);
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
    let told = subject.listen();
    assert_eq!(subject.manager.delete(&keys(1), false), [Err(LOCKED)]);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, 0));
    told_nothing(&told);
    assert_eq!(subject.read_again(&keys(1)), [Ok(8)]);
}

fn a_deletion_takes_the_chunk_and_what_has_expired_at_once(subject: &Subject) {
    subject.stage(&keys(1), "old", 7);
    subject.clock.advance(WRITE_TTL);
    subject.store(&keys(1), 8);
    let told = subject.listen();
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (0, 0));
    assert_eq!(told.take(), [("deleted_by_manager", keys(1))]);
    assert_eq!(subject.manager.finish_write(&keys(1), "old"), [Err(MISSING)]);
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
}

fn a_deletion_takes_all_that_has_expired(subject: &Subject) {
    for tag in ["a", "b", "c"] {
        subject.stage(&keys(1), tag, 7);
    }
    subject.clock.advance(WRITE_TTL);
    let told = subject.listen();
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (0, 0));
    assert_eq!(told.take(), [("deleted_by_manager", keys(1))]);
}

fn clearing_takes_what_has_expired_beside_a_locked_chunk(subject: &Subject) {
    subject.stage(&keys(1), "old", 7);
    subject.clock.advance(WRITE_TTL);
    subject.store(&keys(1), 8);
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
    let told = subject.listen();
    subject.manager.clear(false);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, 0));
    told_nothing(&told);
    assert_eq!(subject.read_again(&keys(1)), [Ok(8)]);
}

fn clearing_tells_a_chunk_with_an_expired_reservation_once(subject: &Subject) {
    subject.stage(&keys(1), "old", 7);
    subject.clock.advance(WRITE_TTL);
    subject.store(&keys(1), 8);
    let told = subject.listen();
    subject.manager.clear(false);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (0, 0));
    assert_eq!(told.take(), [("deleted_by_manager", keys(1))]);
}

fn clearing_by_force_takes_all_reservations_of_a_key(subject: &Subject) {
    let first = subject.stage(&keys(1), "a", 7).remove(0);
    let second = subject.stage(&keys(1), "b", 7).remove(0);
    let told = subject.listen();
    subject.manager.clear(true);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (0, 0));
    assert_eq!(told.take(), [("deleted_by_manager", keys(1))]);
    let late = (first.write(|_| ()), second.write(|_| ()));
    assert_eq!(late, (Err(L1Error::KeyInWrongState), Err(L1Error::KeyInWrongState)));
}

/// What is read is the resident chunk, in its own length.
fn a_late_copy_may_have_another_size(subject: &Subject) {
    let shorter = MemoryLayoutDesc::opaque(PAGE - 1).expect("a good layout");
    for tag in ["a", "b"] {
        let write = [Write::retained(key(0))];
        let object = subject.manager.reserve_write(&write, &shorter, tag).remove(0);
        assert_eq!(object.map(|object| object.bytes()), Ok(PAGE - 1));
    }
    subject.store(&keys(1), 8);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 1, "a");
    assert_eq!(bytes_of(promoted), [Ok(8)]);
    assert_eq!(subject.manager.finish_write(&keys(1), "b"), ok(1));
    assert_eq!(subject.read_again(&keys(1)), [Ok(8)]);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, 0));
}

fn a_late_temporary_copy_leaves_the_chunk_as_it_is(subject: &Subject) {
    subject.stage_temporary(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    let state = ObjectState { read_locks: 0, temporary: false };
    assert_eq!(subject.manager.object_state(&key(0)), Some(state));
    for _ in 0..2 {
        assert_eq!(subject.read(&keys(1)), [Ok(8)]);
        assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    }
    assert_eq!(subject.used(), PAGE);
}

fn a_late_copy_leaves_a_temporary_chunk_temporary(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.stage_temporary(&keys(1), "b", 9);
    subject.store_temporary(&keys(1), 8);
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(subject.manager.finish_write(&keys(1), "b"), ok(1));
    let state = ObjectState { read_locks: 1, temporary: true };
    assert_eq!(subject.manager.object_state(&key(0)), Some(state));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, 0));
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(subject.used(), 0);
}

fn a_late_promotion_counts_the_time_anew(subject: &Subject) {
    subject.store(&[key(1)], 8);
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(2), 3)), [Ok(8); 2]);
    subject.clock.advance(READ_TTL);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 2, "a");
    assert_eq!(bytes_of(promoted), [Ok(8)]);
    assert_eq!((subject.locks(&key(0)), subject.locks(&key(1))), (Some(2), Some(0)));
}

fn a_promotion_is_locked_for_a_readers_time(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.stage_temporary(&[key(1)], "a", 7);
    subject.clock.advance(WRITE_TTL / 2);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(2), 1, "a");
    assert_eq!(bytes_of(promoted), [Ok(7); 2]);
    let nearly = READ_TTL.saturating_sub(std::time::Duration::from_millis(1));
    subject.clock.advance(nearly);
    assert_eq!(subject.read_again(&keys(2)), [Ok(7); 2]);
    subject.clock.advance(std::time::Duration::from_millis(1));
    let finished = subject.manager.finish_read(&keys(2), 1);
    assert_eq!(finished, [Err(L1Error::KeyInWrongState); 2]);
}

fn a_reservation_does_not_keep_a_chunk_from_readers(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
    assert_eq!(subject.read_again(&keys(1)), [Ok(8)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(subject.manager.staging_memory_usage(), PAGE);
}

fn an_unlocked_chunk_beside_a_reservation_is_evictable_by_its_evictor(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    let own = subject.evictor == Evictor::Own;
    assert_eq!(subject.manager.is_key_evictable(&key(0)), own);
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
    assert!(!subject.manager.is_key_evictable(&key(0)));
}

fn an_expired_reservation_beside_a_locked_chunk_is_evictable(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.clock.advance(WRITE_TTL);
    subject.store(&keys(1), 8);
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
    assert!(subject.manager.is_key_evictable(&key(0)));
}

fn after_a_temporary_chunk_comes_a_retained_one(subject: &Subject) {
    subject.store_temporary(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    subject.store(&keys(1), 8);
    for _ in 0..2 {
        assert_eq!(subject.read(&keys(1)), [Ok(8)]);
        assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    }
    assert_eq!(subject.used(), PAGE);
}
