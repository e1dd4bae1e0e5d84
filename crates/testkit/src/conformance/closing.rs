//! `close`.

use maru_l1::{L1Error, Write};

use super::list_cases;
use super::subject::{PAGE, Subject, bytes_of, key, keys, layout, outline};

list_cases![
    a_close_tells_nothing,
    after_the_close_there_is_nothing,
    what_is_held_at_the_close_is_given_back,
    after_the_close_every_key_is_missing,
    after_the_close_there_is_no_room,
    after_the_close_nothing_is_counted,
    after_the_close_all_can_still_be_called,
    after_the_close_deleting_finds_no_key,
    after_the_close_no_memory_is_used,
    what_is_written_to_at_the_close_goes_when_it_is_done,
    a_close_from_many_threads_is_one,
];

const MISSING: L1Error = L1Error::KeyNotExist;

/// One of each kind: free, locked, temporary, staged.
fn fill(subject: &Subject) {
    subject.store(&keys(2), 7);
    subject.store_temporary(&[key(2)], 7);
    subject.stage(&[key(3)], "a", 7);
    assert_eq!(subject.read(&[key(1), key(2)]), [Ok(7); 2]);
}

fn a_close_tells_nothing(subject: &Subject) {
    fill(subject);
    let told = subject.listen();
    subject.manager.close();
    subject.manager.close();
    assert_eq!(told.take(), []);
}

fn after_the_close_every_key_is_missing(subject: &Subject) {
    fill(subject);
    let told = subject.listen();
    subject.manager.close();
    let (manager, all, missing) = (&subject.manager, keys(5), vec![Err(MISSING); 5]);
    assert_eq!(outline(&manager.reserve_read(&all, 1)), missing, "reserve_read");
    assert_eq!(outline(&manager.unsafe_read(&all)), missing, "unsafe_read");
    assert_eq!(manager.finish_read(&all, 1), missing, "finish_read");
    assert_eq!(manager.finish_write(&all, "a"), missing, "finish_write");
    let promoted = manager.finish_write_and_reserve_read(&all, 1, "a");
    assert_eq!(outline(&promoted), missing, "finish_write_and_reserve_read");
    assert_eq!(manager.finish_write_and_delete(&all, "a"), missing, "finish_write_and_delete");
    assert!(all.iter().all(|key| manager.object_state(key).is_none()), "object_state");
    assert!(!all.iter().any(|key| manager.is_key_evictable(key)), "is_key_evictable");
    assert_eq!(told.take(), []);
}

fn after_the_close_there_is_no_room(subject: &Subject) {
    fill(subject);
    let told = subject.listen();
    subject.manager.close();
    // Whatever they were before.
    let writes: Vec<Write> = keys(5).into_iter().map(Write::retained).collect();
    for tag in ["a", "b"] {
        let refused = subject.manager.reserve_write(&writes, &layout(), tag);
        assert_eq!(outline(&refused), [Err(L1Error::OutOfMemory); 5]);
    }
    assert_eq!(told.take(), []);
}

fn after_the_close_nothing_is_counted(subject: &Subject) {
    fill(subject);
    assert_eq!(subject.manager.staging_memory_usage(), PAGE);
    subject.manager.close();
    assert_eq!(subject.manager.staging_memory_usage(), 0);
    let status = subject.manager.report_status();
    assert_eq!((status.total_object_count, status.temporary_count), (0, 0));
    assert_eq!((status.write_locked_count, status.read_locked_count), (0, 0));
    assert_eq!((status.staging_object_count, status.staging_bytes), (0, 0));
}

fn after_the_close_all_can_still_be_called(subject: &Subject) {
    subject.manager.close();
    let told = subject.listen();
    subject.manager.clear(false);
    subject.manager.clear(true);
    subject.manager.touch_keys(&keys(1));
    assert_eq!(told.take(), [("accessed", keys(1))]);
    let _ = subject.manager.memcheck();
    let _ = subject.manager.capacity_bytes_by_backend();
    assert_eq!(subject.manager.memory_desc(), None);
}

fn what_is_written_to_at_the_close_goes_when_it_is_done(subject: &Subject) {
    let object = subject.stage(&keys(1), "a", 7).remove(0);
    let inside = object.write(|bytes| {
        subject.manager.close();
        bytes.fill(8);
    });
    assert_eq!(inside, Ok(()));
    assert_eq!(subject.manager.staging_memory_usage(), 0);
    assert_eq!(object.write(|_| ()), Err(L1Error::KeyInWrongState));
}

fn a_close_from_many_threads_is_one(subject: &Subject) {
    fill(subject);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| subject.manager.close());
        }
    });
    assert_eq!(subject.manager.memory_desc(), None);
    assert_eq!(outline(&subject.manager.reserve_read(&keys(4), 1)), [Err(MISSING); 4]);
}

fn after_the_close_deleting_finds_no_key(subject: &Subject) {
    fill(subject);
    subject.manager.close();
    for force in [false, true] {
        assert_eq!(subject.manager.delete(&keys(5), force), [Err(MISSING); 5]);
    }
}

fn after_the_close_no_memory_is_used(subject: &Subject) {
    fill(subject);
    assert_eq!(subject.used(), 4 * PAGE);
    subject.manager.close();
    let status = subject.manager.report_status();
    assert_eq!((subject.used(), status.memory_used_bytes), (0, 0));
}

fn after_the_close_there_is_nothing(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert!(subject.manager.memory_desc().is_some());
    subject.manager.close();
    subject.manager.close();
    assert_eq!(subject.read(&keys(1)), [Err(MISSING)]);
    assert_eq!(subject.read_again(&keys(1)), [Err(MISSING)]);
    let write = [Write::retained(key(1))];
    let reserved = subject.manager.reserve_write(&write, &layout(), "a");
    assert_eq!(outline(&reserved), [Err(L1Error::OutOfMemory)]);
    assert_eq!(subject.manager.object_state(&key(0)), None);
    assert_eq!(subject.manager.memory_desc(), None);
}

fn what_is_held_at_the_close_is_given_back(subject: &Subject) {
    subject.store(&keys(1), 7);
    let staged = subject.stage(&[key(1)], "a", 7);
    let read = subject.manager.reserve_read(&keys(1), 1);
    subject.manager.close();
    assert_eq!(staged[0].write(|_| ()), Err(L1Error::KeyInWrongState));
    assert_eq!(subject.manager.staging_memory_usage(), 0);
    assert_eq!(subject.manager.finish_write(&[key(1)], "a"), [Err(MISSING)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), [Err(MISSING)]);
    // Late, and right or refused.
    let late = bytes_of(read);
    assert!(matches!(late[..], [Ok(7) | Err(L1Error::KeyNotReadable)]));
}
