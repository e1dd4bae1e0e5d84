//! `reserve_write`, `finish_write`, `finish_write_and_delete`.

use maru_l1::{L1Error, MemoryLayoutDesc, Write};

use super::list_cases;
use super::subject::{PAGE, Subject, key, keys, layout, ok, outline};

list_cases![
    a_new_chunk_is_staged,
    staged_space_is_the_layouts,
    what_is_staged_is_used_memory,
    one_tag_stages_a_chunk_once,
    other_tags_stage_the_same_chunk,
    a_resident_chunk_is_not_writable,
    a_locked_or_temporary_chunk_is_not_writable,
    a_chunk_twice_in_a_batch_is_staged_once,
    each_write_of_a_batch_has_its_own_answer,
    a_batch_that_does_not_fit_takes_nothing,
    a_batch_that_does_not_fit_still_tells_its_conflicts,
    the_last_page_can_be_had,
    finished_chunks_hold_what_was_written,
    finishing_an_unknown_write_is_no_such_chunk,
    only_the_tag_that_stages_can_finish,
    a_write_is_finished_once,
    the_first_to_finish_wins,
    a_late_copy_is_discarded_and_its_memory_free,
    a_resident_chunk_keeps_its_locks_when_a_late_copy_comes,
    a_finished_write_can_be_written_to_no_more,
    a_write_that_goes_on_cannot_be_finished,
    part_of_a_batch_can_be_finished,
    discarding_frees_the_memory,
    discarding_is_for_ones_own_tag,
    discarding_keeps_what_is_resident,
    discarding_the_unknown_is_no_such_chunk,
    a_discarded_write_can_be_written_to_no_more,
    a_chunk_can_be_stored_again_after_it_is_gone,
];

const MISSING: L1Error = L1Error::KeyNotExist;
const NOT_WRITABLE: L1Error = L1Error::KeyNotWritable;
const WRONG_STATE: L1Error = L1Error::KeyInWrongState;

fn writes(numbers: std::ops::Range<u8>) -> Vec<Write> {
    numbers.map(|number| Write::retained(key(number))).collect()
}

fn a_new_chunk_is_staged(subject: &Subject) {
    let objects = subject.stage(&keys(2), "a", 7);
    assert_ne!(objects[0].offset(), objects[1].offset());
    assert_eq!(subject.manager.staging_memory_usage(), 2 * PAGE);
}

fn staged_space_is_the_layouts(subject: &Subject) {
    for bytes in [1, 4096, PAGE - 1, 4 * PAGE] {
        let layout = MemoryLayoutDesc::opaque(bytes).expect("a good layout");
        let write = [Write::retained(key(1))];
        let object = subject.manager.reserve_write(&write, &layout, "a").remove(0);
        let object = object.expect("there is room");
        assert_eq!(object.bytes(), bytes);
        let written = object.write(|space| {
            space.fill(9);
            space.len() as u64
        });
        assert_eq!(written, Ok(bytes));
        assert_eq!(subject.manager.finish_write(&[key(1)], "a"), ok(1));
        let read = subject.manager.reserve_read(&[key(1)], 1).remove(0).expect("it is resident");
        assert_eq!(read.bytes(), bytes);
        assert_eq!(read.read(|space| space == vec![9; space.len()]), Ok(true));
        assert_eq!(read.read(|space| space.len() as u64), Ok(bytes));
        assert_eq!(subject.manager.finish_read(&[key(1)], 1), ok(1));
        drop(read);
        assert_eq!(subject.manager.delete(&[key(1)], false), ok(1));
    }
}

fn what_is_staged_is_used_memory(subject: &Subject) {
    subject.stage(&keys(3), "a", 7);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (3 * PAGE, 3 * PAGE));
    assert_eq!(subject.manager.finish_write(&keys(2), "a"), ok(2));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (3 * PAGE, PAGE));
}

fn one_tag_stages_a_chunk_once(subject: &Subject) {
    let object = subject.stage(&keys(1), "a", 7).remove(0);
    let again = subject.manager.reserve_write(&writes(0..1), &layout(), "a");
    assert_eq!(outline(&again), [Err(NOT_WRITABLE)]);
    assert_eq!(subject.used(), PAGE);
    // The first writer's space is untouched.
    assert_eq!(object.write(|bytes| bytes[0]), Ok(7));
}

fn other_tags_stage_the_same_chunk(subject: &Subject) {
    let first = subject.stage(&keys(1), "a", 7).remove(0);
    let second = subject.stage(&keys(1), "b", 8).remove(0);
    let third = subject.stage(&keys(1), "", 9).remove(0);
    assert_ne!(first.offset(), second.offset());
    assert_ne!(second.offset(), third.offset());
    assert_eq!(subject.manager.staging_memory_usage(), 3 * PAGE);
}

fn a_resident_chunk_is_not_writable(subject: &Subject) {
    subject.store(&keys(1), 7);
    for tag in ["store", "other"] {
        let refused = subject.manager.reserve_write(&writes(0..1), &layout(), tag);
        assert_eq!(outline(&refused), [Err(NOT_WRITABLE)]);
    }
    assert_eq!(subject.used(), PAGE);
}

fn a_locked_or_temporary_chunk_is_not_writable(subject: &Subject) {
    subject.store(&keys(1), 7);
    subject.store_temporary(&[key(1)], 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    let refused = subject.manager.reserve_write(&writes(0..2), &layout(), "a");
    assert_eq!(outline(&refused), [Err(NOT_WRITABLE); 2]);
    assert_eq!(subject.manager.staging_memory_usage(), 0);
}

fn a_chunk_twice_in_a_batch_is_staged_once(subject: &Subject) {
    let twice = [Write::retained(key(0)), Write::retained(key(0))];
    let reserved = subject.manager.reserve_write(&twice, &layout(), "a");
    assert_eq!(outline(&reserved), [Ok(()), Err(NOT_WRITABLE)]);
    assert_eq!(subject.used(), PAGE);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
}

fn each_write_of_a_batch_has_its_own_answer(subject: &Subject) {
    subject.store(&[key(1)], 7);
    subject.stage(&[key(2)], "a", 7);
    let reserved = subject.manager.reserve_write(&writes(0..4), &layout(), "a");
    assert_eq!(outline(&reserved), [Ok(()), Err(NOT_WRITABLE), Err(NOT_WRITABLE), Ok(())]);
    assert_eq!(subject.used(), 4 * PAGE);
}

fn a_batch_that_does_not_fit_takes_nothing(subject: &Subject) {
    let pages = u8::try_from(subject.pages).expect("a small subject");
    subject.stage(&[key(200)], "a", 7);
    let refused = subject.manager.reserve_write(&writes(0..pages), &layout(), "a");
    assert_eq!(outline(&refused), vec![Err(L1Error::OutOfMemory); refused.len()]);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, PAGE));
    // None of them is taken for being staged.
    assert_eq!(subject.manager.finish_write(&[key(0)], "a"), [Err(MISSING)]);
    assert_eq!(subject.manager.delete(&[key(1)], false), [Err(MISSING)]);
    subject.stage(&keys(pages - 1), "a", 7);
}

fn a_batch_that_does_not_fit_still_tells_its_conflicts(subject: &Subject) {
    let pages = u8::try_from(subject.pages).expect("a small subject");
    subject.stage(&[key(1)], "a", 7);
    let writes = writes(0..pages + 1);
    let refused = outline(&subject.manager.reserve_write(&writes, &layout(), "a"));
    assert_eq!(refused[1], Err(NOT_WRITABLE));
    let others = refused.iter().enumerate().filter(|(index, _)| *index != 1);
    assert!(others.clone().all(|(_, outcome)| *outcome == Err(L1Error::OutOfMemory)));
    assert_eq!(others.count(), usize::from(pages));
    assert_eq!(subject.manager.finish_write(&[key(1)], "a"), ok(1));
}

fn the_last_page_can_be_had(subject: &Subject) {
    let pages = u8::try_from(subject.pages).expect("a small subject");
    subject.stage(&keys(pages), "a", 7);
    assert_eq!(subject.used(), subject.pages * PAGE);
    let one_more = [Write::retained(key(pages))];
    let refused = subject.manager.reserve_write(&one_more, &layout(), "a");
    assert_eq!(outline(&refused), [Err(L1Error::OutOfMemory)]);
    assert_eq!(subject.manager.finish_write_and_delete(&[key(3)], "a"), ok(1));
    subject.stage(&[key(pages)], "a", 7);
}

fn finished_chunks_hold_what_was_written(subject: &Subject) {
    for number in 0..5 {
        subject.stage(&[key(number)], "a", number + 10);
    }
    assert_eq!(subject.manager.finish_write(&keys(5), "a"), ok(5));
    assert_eq!(subject.read(&keys(5)), (10..15).map(Ok).collect::<Vec<_>>());
}

fn finishing_an_unknown_write_is_no_such_chunk(subject: &Subject) {
    assert_eq!(subject.manager.finish_write(&keys(2), "a"), [Err(MISSING); 2]);
    subject.store(&keys(1), 7);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), [Err(MISSING)]);
}

fn only_the_tag_that_stages_can_finish(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    assert_eq!(subject.manager.finish_write(&keys(1), "b"), [Err(MISSING)]);
    assert_eq!(subject.manager.finish_write(&keys(1), ""), [Err(MISSING)]);
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
}

fn a_write_is_finished_once(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    let twice = [key(0), key(0)];
    assert_eq!(subject.manager.finish_write(&twice, "a"), [Ok(()), Err(MISSING)]);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), [Err(MISSING)]);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
}

fn the_first_to_finish_wins(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.stage(&keys(1), "b", 8);
    assert_eq!(subject.manager.finish_write(&keys(1), "b"), ok(1));
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
}

fn a_late_copy_is_discarded_and_its_memory_free(subject: &Subject) {
    for tag in ["a", "b", "c"] {
        subject.stage(&keys(1), tag, 7);
    }
    for (tag, left) in [("a", 3), ("b", 3), ("c", 2)] {
        assert_eq!(subject.used(), left * PAGE);
        assert_eq!(subject.manager.finish_write(&keys(1), tag), ok(1));
    }
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, 0));
    // Temporary or not, the resident chunk stays as it is.
    subject.store_temporary(&[key(1)], 7);
    assert_eq!(subject.used(), 2 * PAGE);
}

fn a_resident_chunk_keeps_its_locks_when_a_late_copy_comes(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    let read = subject.manager.reserve_read(&keys(1), 2);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(subject.locks(&key(0)), Some(2));
    assert_eq!(super::subject::bytes_of(read), [Ok(8)]);
}

fn a_finished_write_can_be_written_to_no_more(subject: &Subject) {
    let object = subject.stage(&keys(1), "a", 7).remove(0);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(object.write(|bytes| bytes.fill(9)), Err(WRONG_STATE));
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
}

fn a_write_that_goes_on_cannot_be_finished(subject: &Subject) {
    let object = subject.stage(&keys(1), "a", 7).remove(0);
    let inside = object.write(|_| {
        let finished = subject.manager.finish_write(&keys(1), "a");
        let promoted = subject.manager.finish_write_and_reserve_read(&keys(1), 1, "a");
        let discarded = subject.manager.finish_write_and_delete(&keys(1), "a");
        (finished, outline(&promoted), discarded)
    });
    let wrong = vec![Err(WRONG_STATE)];
    assert_eq!(inside, Ok((wrong.clone(), wrong.clone(), wrong)));
    assert_eq!(subject.manager.staging_memory_usage(), PAGE);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
}

fn part_of_a_batch_can_be_finished(subject: &Subject) {
    subject.stage(&keys(3), "a", 7);
    let some = [key(2), key(5), key(0)];
    assert_eq!(subject.manager.finish_write(&some, "a"), [Ok(()), Err(MISSING), Ok(())]);
    assert_eq!(subject.read(&keys(3)), [Ok(7), Err(MISSING), Ok(7)]);
    assert_eq!(subject.manager.finish_write(&[key(1)], "a"), ok(1));
}

fn discarding_frees_the_memory(subject: &Subject) {
    subject.stage(&keys(2), "a", 7);
    assert_eq!(subject.manager.finish_write_and_delete(&[key(0)], "a"), ok(1));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, PAGE));
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), [Err(MISSING)]);
    subject.stage(&[key(0)], "a", 7);
}

fn discarding_is_for_ones_own_tag(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.stage(&keys(1), "b", 8);
    assert_eq!(subject.manager.finish_write_and_delete(&keys(1), "a"), ok(1));
    assert_eq!(subject.manager.finish_write_and_delete(&keys(1), "a"), [Err(MISSING)]);
    assert_eq!(subject.manager.finish_write(&keys(1), "b"), ok(1));
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
}

fn discarding_keeps_what_is_resident(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.store(&keys(1), 8);
    assert_eq!(subject.manager.finish_write_and_delete(&keys(1), "a"), ok(1));
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
    assert_eq!(subject.used(), PAGE);
}

fn discarding_the_unknown_is_no_such_chunk(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(subject.manager.finish_write_and_delete(&keys(2), "a"), [Err(MISSING); 2]);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
}

fn a_discarded_write_can_be_written_to_no_more(subject: &Subject) {
    let object = subject.stage(&keys(1), "a", 7).remove(0);
    assert_eq!(subject.manager.finish_write_and_delete(&keys(1), "a"), ok(1));
    assert_eq!(object.write(|bytes| bytes.fill(9)), Err(WRONG_STATE));
}

fn a_chunk_can_be_stored_again_after_it_is_gone(subject: &Subject) {
    for byte in 1..4 {
        subject.store(&keys(1), byte);
        assert_eq!(subject.read(&keys(1)), [Ok(byte)]);
        assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
        assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    }
    assert_eq!(subject.used(), 0);
}
