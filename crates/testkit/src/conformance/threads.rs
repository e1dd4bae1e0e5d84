//! Many threads at once.

use std::sync::Barrier;

use maru_l1::{L1Error, Write};

use super::list_cases;
use super::subject::{PAGE, Subject, key, keys, layout, ok};

list_cases![
    of_many_writers_one_wins_and_all_succeed,
    one_tag_is_given_to_one_writer,
    many_readers_locks_are_all_counted,
    what_is_told_last_is_so,
    nothing_is_lost_in_a_crowd,
];

const THREADS: u8 = 6;

/// Runs `work` on many threads, all at once.
fn together<T: Send>(work: impl Fn(u8) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(usize::from(THREADS));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    barrier.wait();
                    work(thread)
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, T>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect()
    })
}

fn of_many_writers_one_wins_and_all_succeed(subject: &Subject) {
    let tags: Vec<String> = (0..THREADS).map(|thread| format!("writer {thread}")).collect();
    let shared = keys(4);
    for (thread, tag) in (0..THREADS).zip(&tags) {
        subject.stage(&shared, tag, thread + 1);
    }
    let listener = subject.listen();
    let finished =
        together(|thread| subject.manager.finish_write(&shared, &tags[usize::from(thread)]));
    assert!(finished.iter().all(|outcomes| *outcomes == ok(4)));
    let mut told: Vec<_> = listener.take().into_iter().flat_map(|(_, keys)| keys).collect();
    told.sort();
    assert_eq!(told, shared, "each became resident once");
    assert!(subject.read(&shared).iter().all(Result::is_ok));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (4 * PAGE, 0));
}

fn one_tag_is_given_to_one_writer(subject: &Subject) {
    let write = [Write::retained(key(0))];
    let reserved = together(|_| subject.manager.reserve_write(&write, &layout(), "a").remove(0));
    let given = reserved.iter().filter(|one| one.is_ok()).count();
    assert_eq!(given, 1);
    let refused = |one: &Result<_, L1Error>| one.as_ref().err() == Some(&L1Error::KeyNotWritable);
    assert_eq!(reserved.iter().filter(|one| refused(one)).count(), usize::from(THREADS) - 1);
    assert_eq!(subject.used(), PAGE);
}

fn many_readers_locks_are_all_counted(subject: &Subject) {
    subject.store(&keys(2), 7);
    together(|thread| {
        for _ in 0..=thread {
            assert_eq!(subject.read(&keys(2)), [Ok(7); 2]);
        }
    });
    let locks: u32 = (1..=u32::from(THREADS)).sum();
    assert_eq!((subject.locks(&key(0)), subject.locks(&key(1))), (Some(locks), Some(locks)));
    together(|thread| {
        assert_eq!(subject.manager.finish_read(&keys(2), u32::from(thread) + 1), ok(2));
    });
    assert_eq!((subject.locks(&key(0)), subject.locks(&key(1))), (Some(0), Some(0)));
    assert_eq!(subject.manager.delete(&keys(2), false), ok(2));
}

/// Whoever follows the events ends with the truth, whichever threads they came from.
fn what_is_told_last_is_so(subject: &Subject) {
    let listener = subject.listen();
    together(|thread| {
        let tag = format!("writer {thread}");
        for round in 0..20 {
            let one = [key((round + thread) % 3)];
            let write = [Write::retained(one[0].clone())];
            drop(subject.manager.reserve_write(&write, &layout(), &tag));
            drop(subject.manager.finish_write(&one, &tag));
            if (round + thread) % 2 == 0 {
                drop(subject.manager.delete(&one, false));
            }
        }
    });
    let mut resident = std::collections::BTreeSet::new();
    for (event, keys) in listener.take() {
        for key in keys {
            match event {
                "write_finished" => assert!(resident.insert(key), "it was resident already"),
                "deleted_by_manager" => drop(resident.remove(&key)),
                _ => {}
            }
        }
    }
    for key in keys(3) {
        let is = subject.manager.object_state(&key).is_some();
        assert_eq!(resident.contains(&key), is, "{key}");
    }
}

fn nothing_is_lost_in_a_crowd(subject: &Subject) {
    together(|thread| {
        let tag = format!("writer {thread}");
        for round in 0_u8..15 {
            let some = [key(round % 5), key(round % 7), key(round % 11)];
            let temporary = round % 4 == 0;
            let writes: Vec<Write> =
                some.iter().map(|key| Write { key: key.clone(), temporary }).collect();
            for (key, object) in
                some.iter().zip(subject.manager.reserve_write(&writes, &layout(), &tag))
            {
                if let Ok(object) = object {
                    assert_eq!(object.write(|bytes| bytes.fill(key.chunk_hash()[0])), Ok(()));
                }
            }
            match round % 3 {
                0 => drop(subject.manager.finish_write_and_reserve_read(&some, 1, &tag)),
                1 => drop(subject.manager.finish_write(&some, &tag)),
                _ => drop(subject.manager.finish_write_and_delete(&some, &tag)),
            }
            for (key, byte) in some.iter().zip(subject.read(&some)) {
                assert!(byte.is_err() || byte == Ok(key.chunk_hash()[0]), "wrong bytes");
            }
            drop(subject.manager.finish_read(&some, 2));
            drop(subject.manager.delete(&some, false));
        }
    });
    subject.manager.clear(true);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (0, 0));
    assert!(subject.manager.memcheck());
    assert_eq!(subject.manager.report_status().total_object_count, 0);
}
