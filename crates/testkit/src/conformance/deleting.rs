//! `delete`, `clear`.

use maru_l1::L1Error;

use super::list_cases;
use super::subject::{PAGE, READ_TTL, Subject, WRITE_TTL, key, keys, ok};

list_cases![
    a_resident_chunk_is_deleted,
    a_missing_chunk_is_not_deleted,
    a_temporary_chunk_is_deleted,
    a_locked_chunk_is_not_deleted,
    a_live_reservation_is_not_deleted,
    a_live_reservation_keeps_its_resident_chunk,
    a_deletion_reclaims_what_has_expired_beside_a_live_reservation,
    each_deletion_of_a_batch_has_its_own_answer,
    force_deletes_what_is_locked,
    force_deletes_what_is_staged,
    force_deletes_a_resident_chunk_and_all_that_is_staged,
    force_does_not_delete_what_is_missing,
    clearing_takes_what_is_free,
    clearing_keeps_what_is_locked_or_live,
    clearing_takes_the_resident_chunk_of_a_live_reservation,
    clearing_takes_what_has_expired,
    clearing_by_force_takes_all,
];

const MISSING: L1Error = L1Error::KeyNotExist;
const LOCKED: L1Error = L1Error::KeyIsLocked;

fn a_resident_chunk_is_deleted(subject: &Subject) {
    subject.store(&keys(2), 7);
    assert_eq!(subject.manager.delete(&keys(2), false), ok(2));
    assert_eq!(subject.read(&keys(2)), [Err(MISSING); 2]);
    assert_eq!(subject.used(), 0);
}

fn a_missing_chunk_is_not_deleted(subject: &Subject) {
    assert_eq!(subject.manager.delete(&keys(2), false), [Err(MISSING); 2]);
    subject.store(&keys(1), 7);
    assert_eq!(subject.manager.delete(&[key(0), key(0)], false), [Ok(()), Err(MISSING)]);
}

fn a_temporary_chunk_is_deleted(subject: &Subject) {
    subject.store_temporary(&keys(1), 7);
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    assert_eq!(subject.used(), 0);
}

fn a_locked_chunk_is_not_deleted(subject: &Subject) {
    subject.store(&keys(1), 7);
    subject.store_temporary(&[key(1)], 7);
    assert_eq!(subject.read(&keys(2)), [Ok(7); 2]);
    assert_eq!(subject.manager.delete(&keys(2), false), [Err(LOCKED); 2]);
    assert_eq!(subject.read_again(&keys(2)), [Ok(7); 2]);
    assert_eq!(subject.manager.finish_read(&keys(2), 1), ok(2));
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
}

fn a_live_reservation_is_not_deleted(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    assert_eq!(subject.manager.delete(&keys(1), false), [Err(LOCKED)]);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
}

fn a_live_reservation_keeps_its_resident_chunk(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    assert_eq!(subject.manager.delete(&keys(1), false), [Err(LOCKED)]);
    assert_eq!(subject.manager.finish_write_and_delete(&keys(1), "a"), ok(1));
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
}

fn a_deletion_reclaims_what_has_expired_beside_a_live_reservation(subject: &Subject) {
    subject.stage(&keys(1), "old", 7);
    subject.clock.advance(WRITE_TTL);
    subject.stage(&keys(1), "new", 8);
    assert_eq!(subject.used(), 2 * PAGE);
    assert_eq!(subject.manager.delete(&keys(1), false), [Err(LOCKED)]);
    assert_eq!(subject.used(), PAGE);
    assert_eq!(subject.manager.finish_write(&keys(1), "old"), [Err(MISSING)]);
    assert_eq!(subject.manager.finish_write(&keys(1), "new"), ok(1));
}

fn each_deletion_of_a_batch_has_its_own_answer(subject: &Subject) {
    subject.store(&[key(0), key(2)], 7);
    subject.stage(&[key(1)], "a", 7);
    assert_eq!(subject.read(&[key(2)]), [Ok(7)]);
    let deleted = subject.manager.delete(&keys(4), false);
    assert_eq!(deleted, [Ok(()), Err(LOCKED), Err(LOCKED), Err(MISSING)]);
    assert_eq!(subject.read(&keys(3)), [Err(MISSING), Err(MISSING), Ok(7)]);
}

fn force_deletes_what_is_locked(subject: &Subject) {
    subject.store(&keys(1), 7);
    subject.store_temporary(&[key(1)], 7);
    assert_eq!(subject.read(&keys(2)), [Ok(7); 2]);
    assert_eq!(subject.manager.delete(&keys(2), true), ok(2));
    assert_eq!(subject.read_again(&keys(2)), [Err(MISSING); 2]);
    assert_eq!(subject.manager.finish_read(&keys(2), 1), [Err(MISSING); 2]);
    assert_eq!(subject.used(), 0);
}

fn force_deletes_what_is_staged(subject: &Subject) {
    let objects = subject.stage(&keys(1), "a", 7);
    subject.stage(&keys(1), "b", 8);
    assert_eq!(subject.manager.delete(&keys(1), true), ok(1));
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), [Err(MISSING)]);
    assert_eq!(objects[0].write(|_| ()), Err(L1Error::KeyInWrongState));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (0, 0));
}

fn force_deletes_a_resident_chunk_and_all_that_is_staged(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    assert_eq!(subject.manager.delete(&keys(1), true), ok(1));
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    assert_eq!(subject.used(), 0);
}

fn force_does_not_delete_what_is_missing(subject: &Subject) {
    assert_eq!(subject.manager.delete(&keys(1), true), [Err(MISSING)]);
}

fn clearing_takes_what_is_free(subject: &Subject) {
    subject.store(&keys(3), 7);
    subject.store_temporary(&[key(3)], 7);
    subject.manager.clear(false);
    assert_eq!(subject.read(&keys(4)), [Err(MISSING); 4]);
    assert_eq!(subject.used(), 0);
    subject.manager.clear(false);
}

fn clearing_keeps_what_is_locked_or_live(subject: &Subject) {
    subject.store(&keys(2), 7);
    subject.stage(&[key(2)], "a", 8);
    assert_eq!(subject.read(&[key(1)]), [Ok(7)]);
    subject.manager.clear(false);
    assert_eq!(subject.read(&keys(3)), [Err(MISSING), Ok(7), Err(MISSING)]);
    assert_eq!(subject.manager.finish_write(&[key(2)], "a"), ok(1));
    assert_eq!(subject.used(), 2 * PAGE);
}

fn clearing_takes_the_resident_chunk_of_a_live_reservation(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    subject.manager.clear(false);
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    assert_eq!(subject.used(), PAGE);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
}

fn clearing_takes_what_has_expired(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&[key(1)], 7);
    subject.clock.advance(WRITE_TTL.saturating_sub(READ_TTL));
    assert_eq!(subject.read(&[key(1)]), [Ok(7)]);
    subject.clock.advance(READ_TTL);
    subject.stage(&[key(2)], "a", 7);
    subject.manager.clear(false);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, PAGE));
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), [Err(MISSING)]);
}

fn clearing_by_force_takes_all(subject: &Subject) {
    subject.store(&keys(2), 7);
    subject.stage(&[key(2)], "a", 8);
    assert_eq!(subject.read(&[key(1)]), [Ok(7)]);
    subject.manager.clear(true);
    assert_eq!(subject.read(&keys(3)), [Err(MISSING); 3]);
    assert_eq!(subject.manager.finish_write(&[key(2)], "a"), [Err(MISSING)]);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (0, 0));
    subject.store(&keys(3), 9);
}
