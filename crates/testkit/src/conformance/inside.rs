//! What happens in the middle of something: of a write, of a reading, of a listener's call.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use maru_l1::{L1Error, L1Listener, L1Manager, ObjectKey, ReadObject, Write};

use super::list_cases;
use super::subject::{
    PAGE, READ_TTL, Recorder, Subject, WRITE_TTL, key, keys, layout, ok, outline,
};

list_cases![
    what_is_written_to_is_not_reclaimed,
    clearing_by_force_leaves_what_is_written_to,
    a_reading_may_be_finished_from_inside,
    a_late_reader_sees_no_other_chunk,
    a_late_reader_of_an_expired_lock_sees_no_other_chunk,
    a_late_reader_of_a_temporary_chunk_sees_no_other,
    memory_of_late_readers_comes_back,
    what_is_told_is_so_already,
    a_listener_may_register_another,
    listeners_are_told_one_thing_at_a_time_and_in_time,
    touching_waits_for_nobody,
];

const LOCKED: L1Error = L1Error::KeyIsLocked;
/// Only a hang takes this long.
const WATCHDOG: Duration = Duration::from_secs(20);

fn what_is_written_to_is_not_reclaimed(subject: &Subject) {
    let object = subject.stage(&keys(1), "a", 7).remove(0);
    let told = subject.listen();
    let inside = object.write(|bytes| {
        subject.clock.advance(WRITE_TTL);
        let plain = subject.manager.delete(&keys(1), false);
        let forced = subject.manager.delete(&keys(1), true);
        subject.manager.clear(false);
        let write = [Write::retained(key(0))];
        let again = outline(&subject.manager.reserve_write(&write, &layout(), "a"));
        bytes.fill(8);
        (plain, forced, again)
    });
    let refused = vec![Err(LOCKED)];
    assert_eq!(inside, Ok((refused.clone(), refused, vec![Err(L1Error::KeyNotWritable)])));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, PAGE));
    assert_eq!(told.take(), []);
    // It is over, and expired.
    assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (0, 0));
}

fn clearing_by_force_leaves_what_is_written_to(subject: &Subject) {
    let object = subject.stage(&keys(2), "a", 7).remove(0);
    let told = subject.listen();
    let inside = object.write(|bytes| {
        subject.manager.clear(true);
        bytes.fill(8);
    });
    assert_eq!(inside, Ok(()));
    assert_eq!(told.take(), [("deleted_by_manager", vec![key(1)])]);
    assert_eq!((subject.used(), subject.manager.staging_memory_usage()), (PAGE, PAGE));
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(subject.read(&keys(1)), [Ok(8)]);
}

fn a_reading_may_be_finished_from_inside(subject: &Subject) {
    subject.store(&keys(1), 7);
    let object = subject.manager.reserve_read(&keys(1), 1).remove(0).expect("it is resident");
    let mut finished = Vec::new();
    let byte = object.read(|bytes| {
        finished = subject.manager.finish_read(&keys(1), 1);
        assert!(bytes.iter().all(|byte| *byte == 7), "the chunk goes while it is looked at");
        7
    });
    assert_eq!(finished, ok(1));
    assert!(matches!(byte, Ok(7) | Err(L1Error::KeyNotReadable)), "{byte:?}");
    assert_eq!(subject.locks(&key(0)), Some(0));
}

/// Takes an object of a chunk of 7s, has `end` end the chunk, uses all memory there is for others,
/// and looks what the object reads then.
#[track_caller]
fn check_late(subject: &Subject, object: &ReadObject, end: impl FnOnce()) {
    end();
    for number in 100.. {
        let write = [Write::retained(key(number))];
        let Ok(object) = subject.manager.reserve_write(&write, &layout(), "b").remove(0) else {
            break;
        };
        assert_eq!(object.write(|bytes| bytes.fill(9)), Ok(()));
    }
    assert!(subject.used() >= subject.pages * PAGE, "there is room left");
    let late = object.read(|bytes| (bytes.first().copied(), bytes.last().copied()));
    let right = matches!(late, Ok((Some(7), Some(7))) | Err(L1Error::KeyNotReadable));
    assert!(right, "a late reader sees {late:?}");
}

fn a_late_reader_sees_no_other_chunk(subject: &Subject) {
    subject.store(&keys(1), 7);
    let object = subject.manager.reserve_read(&keys(1), 1).remove(0).expect("it is resident");
    check_late(subject, &object, || {
        assert_eq!(subject.manager.delete(&keys(1), true), ok(1));
    });
}

fn a_late_reader_of_an_expired_lock_sees_no_other_chunk(subject: &Subject) {
    subject.store(&keys(1), 7);
    let object = subject.manager.reserve_read(&keys(1), 1).remove(0).expect("it is resident");
    check_late(subject, &object, || {
        subject.clock.advance(READ_TTL);
        assert_eq!(subject.manager.delete(&keys(1), false), ok(1));
    });
}

fn a_late_reader_of_a_temporary_chunk_sees_no_other(subject: &Subject) {
    subject.store_temporary(&keys(1), 7);
    let object = subject.manager.reserve_read(&keys(1), 1).remove(0).expect("it is resident");
    check_late(subject, &object, || {
        assert_eq!(subject.manager.finish_read(&keys(1), 1), ok(1));
    });
}

fn memory_of_late_readers_comes_back(subject: &Subject) {
    let all = keys(u8::try_from(subject.pages).expect("a small subject"));
    subject.store(&all, 7);
    let objects = subject.manager.reserve_read(&all, 1);
    assert_eq!(subject.manager.delete(&all, true), ok(all.len()));
    drop(objects);
    assert_eq!(subject.used(), 0);
    subject.store(&all, 8);
    assert_eq!(subject.read(&all), vec![Ok(8); all.len()]);
}

/// Asks the manager about the first key at each event.
#[derive(Debug)]
struct Asker {
    manager: Weak<dyn L1Manager>,
    answers: Mutex<Vec<Answer>>,
}

/// An event; the read locks, if resident; and the bytes that are staged.
type Answer = (&'static str, Option<u32>, u64);

impl Asker {
    fn ask(&self, event: &'static str) {
        let manager = self.manager.upgrade().expect("it is calling");
        let locks = manager.object_state(&key(0)).map(|state| state.read_locks);
        let answer = (event, locks, manager.staging_memory_usage());
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    }
}

impl L1Listener for Asker {
    fn reserved_read(&self, _: &[ObjectKey]) {
        self.ask("reserved_read");
    }
    fn read_finished(&self, _: &[ObjectKey]) {
        self.ask("read_finished");
    }
    fn reserved_write(&self, _: &[ObjectKey]) {
        self.ask("reserved_write");
    }
    fn write_finished(&self, _: &[ObjectKey]) {
        self.ask("write_finished");
    }
    fn finish_write_and_reserve_read(&self, _: &[ObjectKey]) {
        self.ask("finish_write_and_reserve_read");
    }
    fn deleted_by_manager(&self, _: &[ObjectKey]) {
        self.ask("deleted_by_manager");
    }
}

fn what_is_told_is_so_already(subject: &Subject) {
    let manager = &subject.manager;
    let asker = Asker { manager: Arc::downgrade(manager), answers: Mutex::default() };
    let asker = Arc::new(asker);
    manager.register_listener(Arc::clone(&asker) as Arc<dyn L1Listener>);
    subject.store(&keys(1), 7);
    assert_eq!(subject.read(&keys(1)), [Ok(7)]);
    assert_eq!(manager.finish_read(&keys(1), 1), ok(1));
    assert_eq!(manager.delete(&keys(1), false), ok(1));
    subject.stage_temporary(&keys(1), "a", 7);
    drop(manager.finish_write_and_reserve_read(&keys(1), 2, "a"));
    assert_eq!(manager.finish_read(&keys(1), 2), ok(1));
    subject.stage(&keys(1), "a", 7);
    assert_eq!(manager.finish_write_and_delete(&keys(1), "a"), ok(1));
    let expected = [
        ("reserved_write", None, PAGE),
        ("write_finished", Some(0), 0),
        ("reserved_read", Some(1), 0),
        ("read_finished", Some(0), 0),
        ("deleted_by_manager", None, 0),
        ("reserved_write", None, PAGE),
        ("finish_write_and_reserve_read", Some(2), 0),
        // In one step: the chunk is gone before the first is told.
        ("read_finished", None, 0),
        ("deleted_by_manager", None, 0),
        ("reserved_write", None, PAGE),
        ("deleted_by_manager", None, 0),
    ];
    assert_eq!(*asker.answers.lock().unwrap_or_else(PoisonError::into_inner), expected);
}

/// Registers another listener at the first event.
#[derive(Debug)]
struct Registrar {
    manager: Weak<dyn L1Manager>,
    other: Mutex<Option<Arc<Recorder>>>,
}

impl L1Listener for Registrar {
    fn reserved_write(&self, _: &[ObjectKey]) {
        let mut other = self.other.lock().unwrap_or_else(PoisonError::into_inner);
        if other.is_none() {
            let recorder = Arc::new(Recorder::default());
            let manager = self.manager.upgrade().expect("it is calling");
            manager.register_listener(Arc::clone(&recorder) as Arc<dyn L1Listener>);
            *other = Some(recorder);
        }
    }
}

fn a_listener_may_register_another(subject: &Subject) {
    let manager = Arc::downgrade(&subject.manager);
    let registrar = Arc::new(Registrar { manager, other: Mutex::default() });
    subject.manager.register_listener(Arc::clone(&registrar) as Arc<dyn L1Listener>);
    subject.stage(&keys(1), "a", 7);
    let other = registrar.other.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let other = other.expect("it was registered");
    drop(other.take());
    assert_eq!(subject.manager.finish_write(&keys(1), "a"), ok(1));
    assert_eq!(other.take(), [("write_finished", keys(1))]);
}

/// Notes what became resident, and whether it was told two things at a time.
#[derive(Debug, Default)]
struct Witness {
    busy: AtomicBool,
    overlaps: AtomicUsize,
    written: Mutex<Vec<ObjectKey>>,
}

impl Witness {
    fn during(&self, work: impl FnOnce()) {
        if self.busy.swap(true, Ordering::SeqCst) {
            self.overlaps.fetch_add(1, Ordering::SeqCst);
        }
        std::thread::yield_now();
        work();
        self.busy.store(false, Ordering::SeqCst);
    }
}

impl L1Listener for Witness {
    fn reserved_write(&self, _: &[ObjectKey]) {
        self.during(|| ());
    }
    fn write_finished(&self, keys: &[ObjectKey]) {
        self.during(|| {
            self.written.lock().unwrap_or_else(PoisonError::into_inner).extend(keys.to_vec());
        });
    }
    fn deleted_by_manager(&self, _: &[ObjectKey]) {
        self.during(|| ());
    }
}

fn listeners_are_told_one_thing_at_a_time_and_in_time(subject: &Subject) {
    let witness = Arc::new(Witness::default());
    subject.manager.register_listener(Arc::clone(&witness) as Arc<dyn L1Listener>);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let witness = &witness;
            scope.spawn(move || {
                for round in 0..15 {
                    let one = [key(thread * 15 + round)];
                    subject.store(&one, 7);
                    let written = witness.written.lock().unwrap_or_else(PoisonError::into_inner);
                    assert!(written.contains(&one[0]), "the call returned before it was told");
                    drop(written);
                    assert_eq!(subject.manager.delete(&one, false), ok(1));
                }
            });
        }
    });
    assert_eq!(witness.overlaps.load(Ordering::SeqCst), 0);
}

/// Does not return from one call until it was told of another.
#[derive(Debug)]
struct Waiter {
    waits: Sender<()>,
    touched: Mutex<Receiver<()>>,
    touch: Sender<()>,
    in_time: AtomicBool,
}

impl L1Listener for Waiter {
    fn reserved_write(&self, _: &[ObjectKey]) {
        self.waits.send(()).expect("the case waits for this");
        let touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        self.in_time.store(touched.recv_timeout(WATCHDOG).is_ok(), Ordering::SeqCst);
    }
    fn accessed(&self, _: &[ObjectKey]) {
        self.touch.send(()).expect("it has the other end");
    }
}

/// Not even for a listener that does not return.
fn touching_waits_for_nobody(subject: &Subject) {
    let ((waits, waiting), (touch, touched)) = (channel(), channel());
    let in_time = AtomicBool::new(false);
    let waiter = Arc::new(Waiter { waits, touched: Mutex::new(touched), touch, in_time });
    subject.manager.register_listener(Arc::clone(&waiter) as Arc<dyn L1Listener>);
    std::thread::scope(|scope| {
        scope.spawn(|| subject.stage(&keys(1), "a", 7));
        waiting.recv_timeout(WATCHDOG).expect("the listener is told");
        subject.manager.touch_keys(&keys(1));
        // Nor does this wait.
        assert!(!subject.manager.is_key_evictable(&key(0)));
    });
    assert!(waiter.in_time.load(Ordering::SeqCst), "touching waited");
}
