//! What a manager says of itself and of its chunks.

use maru_l1::{L1Backend, ObjectState};

use super::list_cases;
use super::subject::{Evictor, PAGE, READ_TTL, Subject, WRITE_TTL, bytes_of, key, keys, ok};

list_cases![
    a_missing_chunk_is_not_evictable,
    a_free_chunk_is_evictable_by_its_evictor,
    a_locked_chunk_is_not_evictable,
    a_chunk_is_evictable_once_its_last_lock_is_gone,
    a_live_reservation_is_not_evictable,
    an_expired_reservation_is_evictable,
    a_deleted_chunk_is_not_evictable,
    the_state_of_a_missing_or_staged_chunk_is_none,
    the_state_of_a_chunk_says_its_locks_and_its_kind,
    usage_follows_what_is_stored,
    usage_is_within_the_total,
    the_capacity_is_of_one_kind_of_memory,
    the_buffer_holds_every_chunk,
    the_status_counts,
    the_books_are_in_order,
    managers_have_ids_of_their_own,
    a_manager_tells_its_configuration,
];

fn evictable(subject: &Subject, count: u8) -> Vec<bool> {
    keys(count).iter().map(|key| subject.manager.is_key_evictable(key)).collect()
}

fn a_missing_chunk_is_not_evictable(subject: &Subject) {
    assert_eq!(evictable(subject, 1), [false]);
}

fn a_free_chunk_is_evictable_by_its_evictor(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(evictable(subject, 1), [subject.evictor == Evictor::Own]);
}

fn a_locked_chunk_is_not_evictable(subject: &Subject) {
    subject.store(&keys(1), 7);
    subject.store_temporary(&[key(1)], 7);
    assert_eq!(subject.read(&keys(2)), [Ok(7); 2]);
    assert_eq!(evictable(subject, 2), [false; 2]);
}

fn a_chunk_is_evictable_once_its_last_lock_is_gone(subject: &Subject) {
    let own = subject.evictor == Evictor::Own;
    subject.store(&keys(1), 7);
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(1), 2)), [Ok(7)]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(evictable(subject, 1), [false]);
    assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(evictable(subject, 1), [own]);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    subject.clock.advance(READ_TTL);
    assert_eq!(evictable(subject, 1), [own]);
}

fn a_live_reservation_is_not_evictable(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    assert_eq!(evictable(subject, 1), [false]);
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(evictable(subject, 1), [subject.evictor == Evictor::Own]);
}

fn an_expired_reservation_is_evictable(subject: &Subject) {
    subject.stage(&keys(1), "a", 7);
    subject.clock.advance(WRITE_TTL);
    assert_eq!(evictable(subject, 1), [true]);
    subject.stage(&keys(1), "b", 7);
    assert_eq!(evictable(subject, 1), [true]);
    subject.stage(&keys(1), "a", 7);
    assert_eq!(evictable(subject, 1), [false]);
}

fn a_deleted_chunk_is_not_evictable(subject: &Subject) {
    subject.store(&keys(1), 7);
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    subject.stage(&[key(1)], "a", 7);
    assert_eq!(subject.manager.finish_write_and_delete(&[key(1)], "a"), ok(1));
    assert_eq!(evictable(subject, 2), [false; 2]);
}

fn the_state_of_a_missing_or_staged_chunk_is_none(subject: &Subject) {
    subject.stage(&[key(1)], "a", 7);
    assert_eq!(subject.manager.object_state(&key(0)), None);
    assert_eq!(subject.manager.object_state(&key(1)), None);
}

fn the_state_of_a_chunk_says_its_locks_and_its_kind(subject: &Subject) {
    let state = |number| subject.manager.object_state(&key(number));
    subject.store(&keys(1), 7);
    subject.store_temporary(&[key(1)], 7);
    assert_eq!(state(0), Some(ObjectState { read_locks: 0, temporary: false }));
    assert_eq!(state(1), Some(ObjectState { read_locks: 0, temporary: true }));
    assert_eq!(bytes_of(subject.manager.reserve_read(&keys(2), 3)), [Ok(7); 2]);
    assert_eq!(state(0), Some(ObjectState { read_locks: 3, temporary: false }));
    assert_eq!(state(1), Some(ObjectState { read_locks: 3, temporary: true }));
}

fn usage_follows_what_is_stored(subject: &Subject) {
    assert_eq!(subject.used(), 0);
    subject.store(&keys(5), 7);
    assert_eq!(subject.used(), 5 * PAGE);
    assert_eq!(subject.read(&keys(2)), [Ok(7); 2]);
    assert_eq!(subject.used(), 5 * PAGE);
    assert_eq!(subject.manager.finish_read(&keys(2), 1), ok(2));
    assert_eq!(subject.manager.delete(&keys(3), false), ok(3));
    assert_eq!(subject.used(), 2 * PAGE);
}

fn usage_is_within_the_total(subject: &Subject) {
    let pages = u8::try_from(subject.pages).expect("a small subject");
    subject.stage(&keys(pages), "a", 7);
    let usage = subject.manager.memory_usage();
    assert_eq!(usage.used_bytes, subject.pages * PAGE);
    assert!(usage.total_bytes >= usage.used_bytes);
    assert!((0.99..=1.0).contains(&usage.ratio()), "{usage:?}");
}

fn the_capacity_is_of_one_kind_of_memory(subject: &Subject) {
    let capacity = subject.manager.capacity_bytes_by_backend();
    assert_eq!(capacity.keys().collect::<Vec<_>>(), [&L1Backend::Dram]);
    assert!(capacity[&L1Backend::Dram] >= subject.pages * PAGE);
}

fn the_buffer_holds_every_chunk(subject: &Subject) {
    let desc = subject.manager.memory_desc().expect("it is open");
    assert_ne!(desc.address, 0);
    assert!(desc.address.is_multiple_of(4096));
    assert!(desc.stable_bytes.is_some_and(|stable| 0 < stable && stable <= desc.bytes));
    let objects = subject.stage(&keys(4), "a", 7);
    let places: Vec<u64> = objects.iter().map(maru_l1::WriteObject::offset).collect();
    assert_eq!(subject.manager.finish_write(&keys(4), "a"), ok(4));
    let read = subject.manager.reserve_read(&keys(4), 1);
    for (object, place) in read.iter().zip(places) {
        let object = object.as_ref().expect("it is resident");
        // It was not moved.
        assert_eq!(object.offset(), place);
        assert!(place.is_multiple_of(desc.align_bytes) && place + PAGE <= desc.bytes);
    }
    assert_eq!(subject.manager.memory_desc(), Some(desc));
}

fn the_status_counts(subject: &Subject) {
    subject.store(&keys(2), 7);
    subject.stage(&[key(2)], "old", 7);
    subject.clock.advance(WRITE_TTL);
    subject.stage(&[key(3), key(4)], "a", 7);
    subject.stage_temporary(&[key(5)], "a", 7);
    subject.store_temporary(&[key(6)], 7);
    assert_eq!(subject.read(&[key(1), key(6)]), [Ok(7); 2]);
    let status = subject.manager.report_status();
    assert!(status.is_healthy);
    assert_eq!((status.staging_object_count, status.staging_bytes), (4, 4 * PAGE));
    assert_eq!((status.write_locked_count, status.read_locked_count), (3, 2));
    assert_eq!(status.temporary_count, 2);
    assert_eq!(status.total_object_count, 7);
    assert_eq!(status.memory_used_bytes, 7 * PAGE);
    assert_eq!(status.memory_total_bytes, subject.manager.memory_usage().total_bytes);
    assert_eq!(status.capacity_bytes_by_backend, subject.manager.capacity_bytes_by_backend());
    assert_eq!(
        status.memory_configured_bytes,
        status.capacity_bytes_by_backend.values().sum::<u64>()
    );
    let ratio = subject.manager.memory_usage().ratio();
    assert!(ratio > 0.0 && (status.memory_usage_ratio - ratio).abs() < 1e-9);
    assert!((status.write_ttl_seconds - WRITE_TTL.as_secs_f64()).abs() < 1e-9);
    assert!((status.read_ttl_seconds - READ_TTL.as_secs_f64()).abs() < 1e-9);
}

fn the_books_are_in_order(subject: &Subject) {
    assert!(subject.manager.memcheck());
    subject.store(&keys(3), 7);
    assert_eq!(subject.manager.delete(&[key(1)], false), ok(1));
    subject.stage(&[key(4)], "a", 7);
    assert!(subject.manager.memcheck());
}

fn managers_have_ids_of_their_own(subject: &Subject) {
    let other = maru_l1::LocalL1Manager::new(maru_l1::L1ManagerConfig {
        memory: maru_l1::L1MemoryConfig {
            bytes: 4096,
            initial_bytes: 4096,
            ..maru_l1::L1MemoryConfig::default()
        },
        ..maru_l1::L1ManagerConfig::default()
    });
    let other = other.expect("a page of memory");
    assert_ne!(subject.manager.id(), maru_l1::L1Manager::id(&other));
    assert_eq!(subject.manager.id(), subject.manager.id());
}

fn a_manager_tells_its_configuration(subject: &Subject) {
    let config = subject.manager.config();
    assert_eq!((config.write_ttl, config.read_ttl), (WRITE_TTL, READ_TTL));
    assert_eq!(config.maru.is_some(), subject.evictor == Evictor::Server);
}
