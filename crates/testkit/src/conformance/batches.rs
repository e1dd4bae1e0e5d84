//! What the keys of one batch do to each other, and what they do not.

use maru_l1::{KvRank, L1Error, ObjectKey, Write};

use super::list_cases;
use super::subject::{PAGE, Subject, bytes_of, key, keys, layout, ok, outline};
use super::subject::{READ_TTL, WRITE_TTL};

list_cases![
    keys_that_differ_in_any_part_are_different_chunks,
    one_batch_fills_all_memory_and_frees_it,
    a_hand_over_goes_through_where_the_rest_finds_no_room,
    a_locked_chunk_in_a_batch_without_room_is_not_writable,
    locked_chunks_make_no_room,
    what_is_staged_makes_no_room,
    a_reading_finished_twice_in_a_batch_was_taken_once,
    a_temporary_chunk_dies_once_in_a_batch,
    a_discarding_twice_in_a_batch_is_done_and_told_once,
    a_forced_deletion_twice_in_a_batch_is_done_and_told_once,
    a_batch_expires_together_and_others_do_not,
    a_refused_key_does_not_hurt_its_batch,
];

const MISSING: L1Error = L1Error::KeyNotExist;
const NOT_WRITABLE: L1Error = L1Error::KeyNotWritable;
const WRONG_STATE: L1Error = L1Error::KeyInWrongState;
const NO_ROOM: L1Error = L1Error::OutOfMemory;

fn pages(subject: &Subject) -> u8 {
    u8::try_from(subject.pages).expect("a small subject")
}

fn writes(numbers: impl IntoIterator<Item = u8>) -> Vec<Write> {
    numbers.into_iter().map(|number| Write::retained(key(number))).collect()
}

fn keys_that_differ_in_any_part_are_different_chunks(subject: &Subject) {
    let named = |model: &str, rank, hash: &[u8], group, salt: &str| {
        ObjectKey::new(model, KvRank(rank), hash, group, salt).expect("a good key")
    };
    let all = [
        named("model", 1, &[1, 2], 0, ""),
        named("model2", 1, &[1, 2], 0, ""),
        named("model", 2, &[1, 2], 0, ""),
        named("model", 1, &[1, 2, 3], 0, ""),
        named("model", 1, &[1, 2], 1, ""),
        named("model", 1, &[1, 2], 0, "salt"),
        named("model", 1, &[1, 2], 0, "salt2"),
    ];
    for (byte, key) in (1..).zip(&all) {
        subject.store(std::slice::from_ref(key), byte);
    }
    assert_eq!(subject.read(&all), (1..=7).map(Ok).collect::<Vec<_>>());
    assert_eq!(subject.manager.finish_read(&all[..1], 1), ok(1));
    assert_eq!(subject.manager.delete(&all[..1], false), ok(1));
    assert_eq!(subject.read(&all[..1]), [Err(MISSING)]);
    assert_eq!(subject.read_again(&all[1..]), (2..=7).map(Ok).collect::<Vec<_>>());
}

fn one_batch_fills_all_memory_and_frees_it(subject: &Subject) {
    let all = keys(pages(subject));
    for byte in 1..4 {
        let told = subject.listen();
        subject.store(&all, byte);
        assert_eq!(subject.used(), subject.pages * PAGE);
        assert_eq!(subject.read(&all), vec![Ok(byte); all.len()]);
        assert_eq!(subject.manager.finish_read(&all, 1), ok(all.len()));
        assert_eq!(subject.manager.delete(&all, false), ok(all.len()));
        assert_eq!(subject.used(), 0);
        let expected = [
            "reserved_write",
            "write_finished",
            "reserved_read",
            "read_finished",
            "deleted_by_manager",
        ];
        assert_eq!(told.take(), expected.map(|event| (event, all.clone())));
    }
}

fn a_hand_over_goes_through_where_the_rest_finds_no_room(subject: &Subject) {
    let late = subject.stage(&keys(1), "a", 7).remove(0);
    subject.clock.advance(WRITE_TTL);
    let others: Vec<ObjectKey> = (1..pages(subject)).map(key).collect();
    subject.stage(&others, "b", 8);
    let told = subject.listen();
    let reserved = subject.manager.reserve_write(&writes([200, 0, 201]), &layout(), "a");
    assert_eq!(outline(&reserved), [Err(NO_ROOM), Ok(()), Err(NO_ROOM)]);
    assert_eq!(told.take(), [("reserved_write", keys(1))]);
    assert_eq!(reserved[1].as_ref().map(|object| object.write(|_| ())), Ok(Ok(())));
    assert_eq!(late.write(|_| ()), Err(WRONG_STATE));
    let staged = (subject.used(), subject.manager.staging_memory_usage());
    assert_eq!(staged, (subject.pages * PAGE, subject.pages * PAGE));
    assert_eq!(
        subject.manager.finish_write(&[key(200), key(0), key(201)], "a"),
        [Err(MISSING), Ok(()), Err(MISSING)]
    );
}

fn a_locked_chunk_in_a_batch_without_room_is_not_writable(subject: &Subject) {
    let pages = pages(subject);
    subject.store(&[key(1)], 7);
    assert_eq!(subject.read(&[key(1)]), [Ok(7)]);
    let told = subject.listen();
    let refused = subject.manager.reserve_write(&writes(0..=pages), &layout(), "a");
    let mut expected = vec![Err(NO_ROOM); usize::from(pages) + 1];
    expected[1] = Err(NOT_WRITABLE);
    assert_eq!(outline(&refused), expected);
    assert_eq!(told.take(), []);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, 0));
    assert_eq!(subject.read_again(&[key(1)]), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&[key(1)], 1), ok(1));
}

fn locked_chunks_make_no_room(subject: &Subject) {
    let all = keys(pages(subject));
    subject.store(&all, 7);
    assert_eq!(subject.read(&all), vec![Ok(7); all.len()]);
    let told = subject.listen();
    let refused = subject.manager.reserve_write(&writes([200, 201]), &layout(), "a");
    assert_eq!(outline(&refused), [Err(NO_ROOM); 2]);
    assert_eq!(told.take(), []);
    assert_eq!(subject.read_again(&all), vec![Ok(7); all.len()]);
    assert_eq!(subject.manager.finish_read(&all, 1), ok(all.len()));
    assert_eq!(subject.used(), subject.pages * PAGE);
    assert_eq!(subject.manager.delete(&all[..1], false), ok(1));
    subject.stage(&[key(200)], "a", 8);
}

/// Nor what has expired: it is its tag's, or to be reclaimed, but nobody else's.
fn what_is_staged_makes_no_room(subject: &Subject) {
    let all = keys(pages(subject));
    subject.stage(&all, "a", 7);
    subject.clock.advance(WRITE_TTL);
    let refused = subject.manager.reserve_write(&writes([200]), &layout(), "a");
    assert_eq!(outline(&refused), [Err(NO_ROOM)]);
    let refused = subject.manager.reserve_write(&writes([0]), &layout(), "b");
    assert_eq!(outline(&refused), [Err(NO_ROOM)]);
    assert_eq!(subject.manager.staging_memory_usage(), subject.pages * PAGE);
    assert_eq!(subject.manager.delete(&all[..1], false), ok(1));
    subject.stage(&[key(200)], "a", 8);
}

fn a_reading_finished_twice_in_a_batch_was_taken_once(subject: &Subject) {
    subject.store(&keys(2), 7);
    assert_eq!(subject.read(&keys(2)), [Ok(7); 2]);
    assert_eq!(subject.read(&[key(1)]), [Ok(7)]);
    let told = subject.listen();
    let finished = subject.manager.finish_read(&[key(0), key(1), key(0), key(1)], 1);
    assert_eq!(finished, [Ok(()), Ok(()), Err(WRONG_STATE), Ok(())]);
    assert_eq!(told.take(), [("read_finished", vec![key(0), key(1), key(1)])]);
    assert_eq!((subject.locks(&key(0)), subject.locks(&key(1))), (Some(0), Some(0)));
}

fn a_temporary_chunk_dies_once_in_a_batch(subject: &Subject) {
    subject.store_temporary(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    let told = subject.listen();
    let finished = subject.manager.finish_read(&[key(0), key(0)], 1);
    assert_eq!(finished, [Ok(()), Err(MISSING)]);
    let expected = [("read_finished", keys(1)), ("deleted_by_manager", keys(1))];
    assert_eq!(told.take(), expected);
    assert_eq!(subject.used(), 0);
}

fn a_discarding_twice_in_a_batch_is_done_and_told_once(subject: &Subject) {
    subject.stage(&keys(2), "a", 7);
    let told = subject.listen();
    let discarded = subject.manager.finish_write_and_delete(&[key(0), key(1), key(0)], "a");
    assert_eq!(discarded, [Ok(()), Ok(()), Err(MISSING)]);
    assert_eq!(told.take(), [("deleted_by_manager", keys(2))]);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (0, 0));
}

fn a_forced_deletion_twice_in_a_batch_is_done_and_told_once(subject: &Subject) {
    subject.store(&keys(1), 7);
    subject.store_temporary(&[key(1)], 7);
    subject.stage(&[key(2)], "a", 7);
    assert_eq!(subject.read(&keys(2)), [Ok(7); 2]);
    let told = subject.listen();
    let twice = [keys(3), keys(3)].concat();
    let deleted = subject.manager.delete(&twice, true);
    let gone = [Ok(()), Ok(()), Ok(()), Err(MISSING), Err(MISSING), Err(MISSING)];
    assert_eq!(deleted, gone);
    assert_eq!(told.take(), [("deleted_by_manager", keys(3))]);
    assert_eq!(subject.used(), 0);
}

fn a_batch_expires_together_and_others_do_not(subject: &Subject) {
    subject.store(&keys(4), 7);
    assert_eq!(subject.read(&keys(2)), [Ok(7); 2]);
    subject.clock.advance(READ_TTL / 2);
    assert_eq!(subject.read(&[key(2), key(3)]), [Ok(7); 2]);
    subject.clock.advance(READ_TTL / 2);
    let told = subject.listen();
    let finished = subject.manager.finish_read(&keys(4), 1);
    assert_eq!(finished, [Err(WRONG_STATE), Err(WRONG_STATE), Ok(()), Ok(())]);
    assert_eq!(told.take(), [("read_finished", vec![key(2), key(3)])]);
}

fn a_refused_key_does_not_hurt_its_batch(subject: &Subject) {
    subject.stage(&keys(3), "a", 7);
    let object = subject.manager.reserve_write(&writes([3]), &layout(), "a").remove(0);
    let object = object.expect("there is room");
    let told = subject.listen();
    // The last key of the batch cannot be finished at this moment; the others can.
    let inside = object.write(|_| bytes_of_promotion(subject, &keys(5)));
    let expected = vec![Ok(7), Ok(7), Ok(7), Err(WRONG_STATE), Err(MISSING)];
    assert_eq!(inside, Ok(expected));
    assert_eq!(told.take(), [("finish_write_and_reserve_read", keys(3))]);
    assert_eq!(subject.manager.staging_memory_usage(), PAGE);
}

fn bytes_of_promotion(subject: &Subject, keys: &[ObjectKey]) -> Vec<Result<u8, L1Error>> {
    bytes_of(subject.manager.finish_write_and_reserve_read(keys, 1, "a"))
}
