//! `reserve_read`, `unsafe_read`, `finish_read`.

use maru_l1::{L1Error, READ_LOCKS_MAX};

use super::list_cases;
use super::subject::{Subject, bytes_of, key, keys, ok};

list_cases![
    a_missing_chunk_is_not_reserved,
    a_staged_chunk_does_not_exist_for_readers,
    a_resident_chunk_is_reserved_and_read,
    each_key_of_a_batch_has_its_own_answer,
    locks_are_counted,
    a_call_takes_as_many_locks_as_it_says,
    no_locks_are_taken_as_one,
    too_many_locks_are_taken_as_the_most,
    a_key_twice_in_a_batch_is_locked_twice,
    an_unlocked_chunk_is_not_readable,
    a_missing_or_staged_chunk_is_not_read_again,
    reading_again_takes_no_lock,
    reading_again_gives_the_same_memory,
    finishing_a_missing_or_staged_chunk_is_no_such_chunk,
    finishing_without_a_lock_is_the_wrong_state,
    finishing_gives_back_as_many_as_it_says,
    finishing_gives_back_no_more_than_there_are,
    one_readers_end_does_not_end_anothers_reading,
    a_temporary_chunk_dies_with_its_last_lock,
    a_temporary_chunk_dies_of_too_many_given_back,
    a_retained_chunk_outlives_its_readers,
    empty_batches_are_empty,
];

const MISSING: L1Error = L1Error::KeyNotExist;

fn a_missing_chunk_is_not_reserved(subject: &Subject) {
    assert_eq!(subject.read(&keys(2)), [Err(MISSING); 2]);
    assert_eq!(subject.locks(&key(0)), None);
}

fn a_staged_chunk_does_not_exist_for_readers(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    subject.stage_temporary(&[key(1)], "a", 7);
    assert_eq!(subject.read(&[key(1)]), [Err(MISSING)]);
}

fn a_resident_chunk_is_reserved_and_read(subject: &Subject) {
    subject.store(&keys(2), 7);
    assert_eq!(subject.read(&keys(2)), [Ok(7), Ok(7)]);
    assert_eq!(subject.locks(&key(1)), Some(1));
}

fn each_key_of_a_batch_has_its_own_answer(subject: &Subject) {
    subject.store(&[key(1)], 7);
    subject.store(&[key(3)], 8);
    subject.stage(&[key(2)], "a", 9);
    let all = keys(5);
    assert_eq!(subject.read(&all), [Err(MISSING), Ok(7), Err(MISSING), Ok(8), Err(MISSING)]);
    let readable = [Err(MISSING), Ok(7), Err(MISSING), Ok(8), Err(MISSING)];
    assert_eq!(subject.read_again(&all), readable);
    let finished = subject.manager.finish_read(&all, 1);
    assert_eq!(finished, [Err(MISSING), Ok(()), Err(MISSING), Ok(()), Err(MISSING)]);
}

fn locks_are_counted(subject: &Subject) {
    subject.store(&keys(1), 7);
    for count in 1..=3 {
        assert_eq!(subject.read(&keys(1)), [Ok(7)]);
        assert_eq!(subject.locks(&key(0)), Some(count));
    }
    for count in (0..3).rev() {
        assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
        assert_eq!(subject.locks(&key(0)), Some(count));
    }
    assert_eq!(subject.manager.finish_read(&keys(1), 1), [Err(L1Error::KeyInWrongState)]);
}

fn a_call_takes_as_many_locks_as_it_says(subject: &Subject) {
    subject.store(&keys(2), 7);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(2), 4)), [Ok(7); 2]);
    assert_eq!((subject.locks(&key(0)), subject.locks(&key(1))), (Some(4), Some(4)));
}

fn no_locks_are_taken_as_one(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), 0)), [Ok(7)]);
    assert_eq!(subject.locks(&key(0)), Some(1));
    assert_eq!(subject.manager.finish_read(&keys(1), 0), ok(1));
    assert_eq!(subject.locks(&key(0)), Some(0));
}

fn too_many_locks_are_taken_as_the_most(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), u32::MAX)), [Ok(7)]);
    assert_eq!(subject.locks(&key(0)), Some(READ_LOCKS_MAX));
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), 2)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1000), ok(1));
    assert_eq!(subject.locks(&key(0)), Some(2));
}

fn a_key_twice_in_a_batch_is_locked_twice(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(subject.read(&[key(0), key(0)]), [Ok(7), Ok(7)]);
    assert_eq!(subject.locks(&key(0)), Some(2));
    assert_eq!(subject.manager.finish_read(&[key(0), key(0)], 1), ok(2));
    assert_eq!(subject.locks(&key(0)), Some(0));
}

fn an_unlocked_chunk_is_not_readable(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(subject.read_again(&keys(1)), [Err(L1Error::KeyNotReadable)]);
    subject.store_temporary(&[key(1)], 7);
    assert_eq!(subject.read_again(&[key(1)]), [Err(L1Error::KeyNotReadable)]);
}

fn a_missing_or_staged_chunk_is_not_read_again(subject: &Subject) {
    subject.stage(&[key(1)], "a", 7);
    assert_eq!(subject.read_again(&keys(2)), [Err(MISSING); 2]);
}

fn reading_again_takes_no_lock(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    for _ in 0..3 {
        assert_eq!(subject.read_again(&keys(1)), [Ok(7)]);
    }
    assert_eq!(subject.locks(&key(0)), Some(1));
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(subject.read_again(&keys(1)), [Err(L1Error::KeyNotReadable)]);
}

fn reading_again_gives_the_same_memory(subject: &Subject) {
    subject.store(&keys(2), 7);
    let first = subject.manager.reserve_read(&keys(2), 1);
    let again = subject.manager.unsafe_read(&keys(2));
    let places = |objects: &[Result<maru_l1::ReadObject, L1Error>]| -> Vec<_> {
        objects
            .iter()
            .map(|object| object.as_ref().map(maru_l1::ReadObject::offset))
            .map(Result::ok)
            .collect()
    };
    assert_eq!(places(&first), places(&again));
    assert_ne!(places(&first)[0], places(&first)[1]);
}

fn finishing_a_missing_or_staged_chunk_is_no_such_chunk(subject: &Subject) {
    subject.stage(&[key(1)], "a", 7);
    assert_eq!(subject.manager.finish_read(&keys(2), 1), [Err(MISSING); 2]);
    assert_eq!(subject.manager.finish_write(&[key(1)], "a"), ok(1));
}

fn finishing_without_a_lock_is_the_wrong_state(subject: &Subject) {
    subject.store(&keys(1), 7);
    subject.store_temporary(&[key(1)], 7);
    assert_eq!(subject.manager.finish_read(&keys(2), 1), [Err(L1Error::KeyInWrongState); 2]);
    // It did not hurt them.
    assert_eq!(subject.read(&keys(2)), [Ok(7); 2]);
}

fn finishing_gives_back_as_many_as_it_says(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), 5)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 3), ok(1));
    assert_eq!(subject.locks(&key(0)), Some(2));
    assert_eq!(subject.read_again(&keys(1)), [Ok(7)]);
}

fn finishing_gives_back_no_more_than_there_are(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), 2)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 5), ok(1));
    assert_eq!(subject.locks(&key(0)), Some(0));
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    assert_eq!(subject.locks(&key(0)), Some(1));
}

fn one_readers_end_does_not_end_anothers_reading(subject: &Subject) {
    subject.store(&keys(1), 7);
    let first = subject.manager.reserve_read(&keys(1), 1);
    let second = subject.manager.reserve_read(&keys(1), 1);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!((bytes_of(first), bytes_of(second)), (vec![Ok(7)], vec![Ok(7)]));
    assert_eq!(subject.manager.delete(&keys(1), false), [Err(L1Error::KeyIsLocked)]);
}

fn a_temporary_chunk_dies_with_its_last_lock(subject: &Subject) {
    subject.store_temporary(&keys(1), 7);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), 2)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(subject.read_again(&keys(1)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    assert_eq!(subject.used(), 0);
}

fn a_temporary_chunk_dies_of_too_many_given_back(subject: &Subject) {
    subject.store_temporary(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 9), ok(1));
    assert_eq!(subject.manager.finish_read(&keys(1), 1), [Err(MISSING)]);
    assert_eq!(subject.used(), 0);
}

fn a_retained_chunk_outlives_its_readers(subject: &Subject) {
    subject.store(&keys(1), 7);
    for _ in 0..3 {
        assert_eq!(subject.read(&keys(1)), [Ok(7)]);
        assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    }
    assert_eq!(subject.locks(&key(0)), Some(0));
}

fn empty_batches_are_empty(subject: &Subject) {
    let (manager, told) = (&subject.manager, subject.listen());
    assert!(manager.reserve_read(&[], 1).is_empty());
    assert!(manager.unsafe_read(&[]).is_empty());
    assert!(manager.finish_read(&[], 1).is_empty());
    assert!(manager.reserve_write(&[], &super::subject::layout(), "a").is_empty());
    assert!(manager.finish_write(&[], "a").is_empty());
    assert!(manager.finish_write_and_reserve_read(&[], 1, "a").is_empty());
    assert!(manager.finish_write_and_delete(&[], "a").is_empty());
    assert!(manager.delete(&[], true).is_empty());
    manager.touch_keys(&[]);
    assert_eq!(told.take(), []);
}
