//! Locks whose time is over.

use std::time::Duration;

use maru_l1::{L1Error, MemoryLayoutDesc, Write};

use super::list_cases;
use super::subject::{
    PAGE, READ_TTL, Subject, WRITE_TTL, bytes_of, key, keys, layout, ok, outline,
};

list_cases![
    a_reservation_lives_until_its_time,
    an_expired_reservation_cannot_be_finished,
    an_expired_reservation_stays_staged_until_it_is_reclaimed,
    an_expired_reservation_is_reclaimed_by_a_deletion,
    an_expired_reservation_is_handed_over_to_its_tag,
    a_hand_over_takes_the_new_writers_kind,
    a_hand_over_to_another_layout_has_its_size,
    another_tag_is_not_handed_over_to,
    an_expired_reservation_of_a_stored_chunk_is_not_handed_over,
    a_hand_over_needs_no_memory,
    reservations_expire_one_by_one,
    a_read_lock_lives_until_its_time,
    the_time_of_read_locks_counts_from_the_last,
    an_expired_read_lock_protects_nothing,
    an_expired_read_lock_cannot_be_finished,
    expired_read_locks_do_not_count_again,
    giving_back_does_not_lengthen_the_time,
    an_expired_temporary_chunk_can_be_deleted,
    a_resident_chunk_does_not_expire,
];

const MS: Duration = Duration::from_millis(1);
const MISSING: L1Error = L1Error::KeyNotExist;
const WRONG_STATE: L1Error = L1Error::KeyInWrongState;

/// All of a time but its last millisecond.
fn nearly(ttl: Duration) -> Duration {
    ttl.saturating_sub(MS)
}

fn a_reservation_lives_until_its_time(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.clock.advance(nearly(WRITE_TTL));
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
}

fn an_expired_reservation_cannot_be_finished(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.clock.advance(WRITE_TTL);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), [Err(WRONG_STATE)]);
    let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 1, "a");
    assert_eq!(outline(&promoted), [Err(WRONG_STATE)]);
    assert_eq!(subject.manager.finish_write_and_delete(&keys(1), "a"), [Err(WRONG_STATE)]);
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
}

fn an_expired_reservation_stays_staged_until_it_is_reclaimed(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.clock.advance(2 * WRITE_TTL);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), [Err(WRONG_STATE)]);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, PAGE));
    assert_eq!(subject.manager.finish_write(&keys(1), "b"), [Err(MISSING)]);
}

fn an_expired_reservation_is_reclaimed_by_a_deletion(subject: &Subject) {
    let object = subject.stage(&keys(1), "a", 7).remove(0);
    subject.clock.advance(WRITE_TTL);
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (0, 0));
    assert_eq!(object.write(|_| ()), Err(WRONG_STATE));
    assert_eq!(subject.manager.delete(&keys(1), false), [Err(MISSING)]);
}

fn an_expired_reservation_is_handed_over_to_its_tag(subject: &Subject) {
    let late = subject.stage(&keys(1), "a", 7).remove(0);
    subject.clock.advance(WRITE_TTL);
    let object = subject.stage(&keys(1), "a", 8).remove(0);
    assert_eq!(object.offset(), late.offset());
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, PAGE));
    // The earlier writer is out.
    assert_eq!(late.write(|bytes| bytes.fill(9)), Err(WRONG_STATE));
    // The time counts anew.
    subject.clock.advance(nearly(WRITE_TTL));
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
}

fn a_hand_over_takes_the_new_writers_kind(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.stage_temporary(&[key(1)], "a", 7);
    subject.clock.advance(WRITE_TTL);
    subject.stage_temporary(&keys(1), "a", 8);
    subject.stage(&[key(1)], "a", 8);
    assert_eq!(subject.manager.finish_write(&keys(2), "a"), ok(2));
    assert_eq!(subject.read(&keys(2)), [Ok(8); 2]);
    assert_eq!(subject.manager.finish_read(&keys(2), 1), ok(2));
    assert_eq!(subject.read(&keys(2)), [Err(MISSING), Ok(8)]);
}

fn a_hand_over_to_another_layout_has_its_size(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.clock.advance(WRITE_TTL);
    let large = MemoryLayoutDesc::opaque(3 * PAGE).expect("a good layout");
    let write = [Write::retained(key(0))];
    let object = subject.manager.reserve_write(&write, &large, "a").remove(0);
    assert_eq!(object.map(|object| object.bytes()), Ok(3 * PAGE));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (3 * PAGE, 3 * PAGE));
}

fn another_tag_is_not_handed_over_to(subject: &Subject) {
    let first = subject.stage(&keys(1), "a", 7).remove(0);
    subject.clock.advance(WRITE_TTL);
    let second = subject.stage(&keys(1), "b", 8).remove(0);
    assert_ne!(first.offset(), second.offset());
    assert_eq!(subject.manager.staging_memory_usage(), 2 * PAGE);
    assert_eq!(subject.manager.finish_write(&keys(1), "b"), ok(1));
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), [Err(WRONG_STATE)]);
}

fn an_expired_reservation_of_a_stored_chunk_is_not_handed_over(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.clock.advance(WRITE_TTL);
    subject.store(&keys(1), 8);
    let write = [Write::retained(key(0))];
    let refused = subject.manager.reserve_write(&write, &layout(), "a");
    assert_eq!(outline(&refused), [Err(L1Error::KeyNotWritable)]);
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    assert_eq!(subject.used(), 0);
}

fn a_hand_over_needs_no_memory(subject: &Subject) {
    let pages = u8::try_from(subject.pages).expect("a small subject");
    subject.stage(&keys(pages), "a", 7);
    subject.clock.advance(WRITE_TTL);
    let told = subject.listen();
    subject.stage(&keys(pages), "a", 8);
    assert_eq!(told.take(), [("reserved_write", keys(pages))]);
    assert_eq!(subject.used(), subject.pages * PAGE);
}

fn reservations_expire_one_by_one(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.clock.advance(WRITE_TTL / 2);
    subject.stage(&[key(1)], "a", 7);
    subject.clock.advance(WRITE_TTL / 2);
    assert_eq!(subject.manager.finish_write(&keys(2), "a"), [Err(WRONG_STATE), Ok(())]);
}

fn a_read_lock_lives_until_its_time(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    subject.clock.advance(nearly(READ_TTL));
    assert_eq!(subject.read_again(&keys(1)), [Ok(7)]);
    assert_eq!(subject.locks(&key(0)), Some(1));
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
}

fn the_time_of_read_locks_counts_from_the_last(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    subject.clock.advance(nearly(READ_TTL));
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    subject.clock.advance(nearly(READ_TTL));
    assert_eq!(subject.locks(&key(0)), Some(2));
    assert_eq!(subject.manager.finish_read(&keys(1), 2), ok(1));
}

fn an_expired_read_lock_protects_nothing(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    subject.clock.advance(READ_TTL);
    assert_eq!(subject.locks(&key(0)), Some(0));
    assert_eq!(subject.read_again(&keys(1)), [Err(L1Error::KeyNotReadable)]);
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    assert_eq!(subject.used(), 0);
}

fn an_expired_read_lock_cannot_be_finished(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    subject.clock.advance(READ_TTL);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), [Err(WRONG_STATE)]);
    // It is still there, and can be locked again.
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
}

fn expired_read_locks_do_not_count_again(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), 5)), [Ok(7)]);
    subject.clock.advance(READ_TTL);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), 2)), [Ok(7)]);
    assert_eq!(subject.locks(&key(0)), Some(2));
}

fn giving_back_does_not_lengthen_the_time(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), 3)), [Ok(7)]);
    subject.clock.advance(nearly(READ_TTL));
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    subject.clock.advance(MS);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), [Err(WRONG_STATE)]);
}

fn an_expired_temporary_chunk_can_be_deleted(subject: &Subject) {
    subject.store_temporary(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    subject.clock.advance(READ_TTL);
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    assert_eq!(subject.used(), 0);
}

fn a_resident_chunk_does_not_expire(subject: &Subject) {
    subject.store(&keys(1), 7);
    subject.clock.advance(100 * (READ_TTL + WRITE_TTL));
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
}
