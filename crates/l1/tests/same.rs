//! The shared manager against the private one: the same random schedule on both, compared after
//! every step. Nobody else uses the pool, and there is room for all.

#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

use std::sync::Arc;
use std::time::Duration;

use maru_l1::{
    Clock, KvRank, L1Listener, L1Manager, L1ManagerConfig, L1MemoryConfig, LocalL1Manager,
    ManualClock, MaruL1Config, MaruL1Manager, MemoryLayoutDesc, ObjectKey, Outcomes, ReadObject,
    Write, WriteObject,
};
use maru_testkit::TestPool;
use maru_testkit::conformance::{Recorder, Told};
use proptest::prelude::*;

const KEYS: u8 = 4;
const TAGS: [&str; 2] = ["a", "b"];
const WRITE_TTL: Duration = Duration::from_mins(1);
const READ_TTL: Duration = Duration::from_secs(30);

/// One step; keys by number.
#[derive(Debug, Clone)]
enum Op {
    ReserveWrite {
        writes: Vec<(u8, bool)>,
        tag: u8,
        large: bool,
    },
    /// Writes to everything that a reservation gave and that still takes it.
    Fill {
        byte: u8,
    },
    FinishWrite {
        keys: Vec<u8>,
        tag: u8,
    },
    Promote {
        keys: Vec<u8>,
        locks: u32,
        tag: u8,
    },
    FinishAndDelete {
        keys: Vec<u8>,
        tag: u8,
    },
    ReserveRead {
        keys: Vec<u8>,
        locks: u32,
    },
    UnsafeRead {
        keys: Vec<u8>,
    },
    FinishRead {
        keys: Vec<u8>,
        locks: u32,
    },
    Delete {
        keys: Vec<u8>,
        force: bool,
    },
    Clear {
        force: bool,
    },
    Touch {
        keys: Vec<u8>,
    },
    Advance {
        seconds: u64,
    },
}

fn keys() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(0..KEYS, 1..4)
}

fn tag() -> impl Strategy<Value = u8> {
    0..2_u8
}

fn op() -> impl Strategy<Value = Op> {
    let writes = proptest::collection::vec((0..KEYS, proptest::bool::weighted(0.25)), 1..4);
    prop_oneof![
        8 => (writes, tag(), proptest::bool::weighted(0.1))
            .prop_map(|(writes, tag, large)| Op::ReserveWrite { writes, tag, large }),
        4 => any::<u8>().prop_map(|byte| Op::Fill { byte }),
        6 => (keys(), tag()).prop_map(|(keys, tag)| Op::FinishWrite { keys, tag }),
        4 => (keys(), 0..4_u32, tag())
            .prop_map(|(keys, locks, tag)| Op::Promote { keys, locks, tag }),
        2 => (keys(), tag()).prop_map(|(keys, tag)| Op::FinishAndDelete { keys, tag }),
        5 => (keys(), 0..4_u32).prop_map(|(keys, locks)| Op::ReserveRead { keys, locks }),
        4 => keys().prop_map(|keys| Op::UnsafeRead { keys }),
        5 => (keys(), 0..4_u32).prop_map(|(keys, locks)| Op::FinishRead { keys, locks }),
        3 => (keys(), proptest::bool::weighted(0.2))
            .prop_map(|(keys, force)| Op::Delete { keys, force }),
        1 => proptest::bool::weighted(0.3).prop_map(|force| Op::Clear { force }),
        1 => keys().prop_map(|keys| Op::Touch { keys }),
        2 => (1..25_u64).prop_map(|seconds| Op::Advance { seconds }),
    ]
}

fn key(number: u8) -> ObjectKey {
    ObjectKey::new("model", KvRank::pack(1, 0, 1, 0), &[number; 32], 0, "").unwrap()
}

fn all(numbers: &[u8]) -> Vec<ObjectKey> {
    numbers.iter().map(|number| key(*number)).collect()
}

/// One of the two, and what a schedule has got from it.
struct Side {
    manager: Arc<dyn L1Manager>,
    recorder: Arc<Recorder>,
    written: Vec<WriteObject>,
}

impl Side {
    fn new(manager: Arc<dyn L1Manager>) -> Self {
        let recorder = Arc::new(Recorder::default());
        manager.register_listener(Arc::clone(&recorder) as Arc<dyn L1Listener>);
        Self { manager, recorder, written: Vec::new() }
    }

    /// Takes one step and describes all that can be seen of it.
    fn step(&mut self, op: &Op) -> Vec<String> {
        let manager = &*self.manager;
        let tag = |tag: &u8| TAGS[usize::from(*tag)];
        let outcome = match op {
            Op::ReserveWrite { writes, tag: of, large } => {
                let layout = MemoryLayoutDesc::opaque(if *large { 8192 } else { 4096 }).unwrap();
                let write = |(number, temporary): &(u8, bool)| Write {
                    key: key(*number),
                    temporary: *temporary,
                };
                let writes: Vec<Write> = writes.iter().map(write).collect();
                let reserved = manager.reserve_write(&writes, &layout, tag(of));
                let seen = reserved.iter().map(|one| one.as_ref().map(WriteObject::bytes));
                let seen = format!("{:?}", seen.collect::<Vec<_>>());
                self.written.extend(reserved.into_iter().flatten());
                seen
            }
            Op::Fill { byte } => {
                let fill = |object: &WriteObject| object.write(|bytes| bytes.fill(*byte));
                format!("{:?}", self.written.iter().map(fill).collect::<Vec<_>>())
            }
            Op::FinishWrite { keys, tag: of } => {
                format!("{:?}", manager.finish_write(&all(keys), tag(of)))
            }
            Op::Promote { keys, locks, tag: of } => {
                contents(&manager.finish_write_and_reserve_read(&all(keys), *locks, tag(of)))
            }
            Op::FinishAndDelete { keys, tag: of } => {
                format!("{:?}", manager.finish_write_and_delete(&all(keys), tag(of)))
            }
            Op::ReserveRead { keys, locks } => contents(&manager.reserve_read(&all(keys), *locks)),
            Op::UnsafeRead { keys } => contents(&manager.unsafe_read(&all(keys))),
            Op::FinishRead { keys, locks } => {
                format!("{:?}", manager.finish_read(&all(keys), *locks))
            }
            Op::Delete { keys, force } => format!("{:?}", manager.delete(&all(keys), *force)),
            Op::Clear { force } => {
                manager.clear(*force);
                String::new()
            }
            Op::Touch { keys } => {
                manager.touch_keys(&all(keys));
                String::new()
            }
            Op::Advance { .. } => String::new(),
        };
        let mut seen: Vec<String> = self.recorder.take().into_iter().flat_map(lines).collect();
        if matches!(op, Op::Clear { .. }) {
            // In which order things are cleared is nobody's business.
            seen.sort();
        }
        seen.insert(0, outcome);
        for number in 0..KEYS {
            seen.push(format!("{number}: {:?}", manager.object_state(&key(number))));
        }
        let usage = manager.memory_usage().used_bytes;
        seen.push(format!("{usage} bytes, {} staged", manager.staging_memory_usage()));
        seen
    }
}

/// A line a key.
fn lines((event, keys): Told) -> Vec<String> {
    keys.iter().map(|key| format!("{event} {key}")).collect()
}

/// Errors, or the byte that fills each chunk. What nobody has written to is not compared.
fn contents(outcomes: &Outcomes<ReadObject>) -> String {
    let first = |object: &ReadObject| object.read(|bytes| (bytes.len(), bytes[0], bytes[4095]));
    let read = outcomes.iter().map(|one| one.as_ref().map_err(|error| *error).and_then(first));
    format!("{:?}", read.collect::<Vec<_>>())
}

fn config(maru: Option<MaruL1Config>) -> L1ManagerConfig {
    let memory = L1MemoryConfig { bytes: 4 << 20, initial_bytes: 4 << 20, ..Default::default() };
    L1ManagerConfig { memory, maru, write_ttl: WRITE_TTL, read_ttl: READ_TTL, ..Default::default() }
}

/// Takes both through the schedule.
fn compare(pool: &TestPool, ops: &[Op]) -> Result<(), TestCaseError> {
    let clock = Arc::new(ManualClock::default());
    let time = || Arc::clone(&clock) as Arc<dyn Clock>;
    let local = LocalL1Manager::with_clock(config(None), time()).unwrap();
    let maru = MaruL1Config::new(pool.endpoint());
    let maru = MaruL1Manager::with_clock(config(Some(maru)), time()).unwrap();
    // A schedule that failed has left something.
    pool.assert_nothing_left();
    maru.clear(true);
    let mut sides = [Side::new(Arc::new(local)), Side::new(Arc::new(maru))];
    for (index, op) in ops.iter().enumerate() {
        if let Op::Advance { seconds } = op {
            clock.advance(Duration::from_secs(*seconds));
        }
        // A page holds what its last writer left: each reservation is filled before it is seen.
        let [local, maru] = sides.each_mut().map(|side| side.step(op));
        prop_assert_eq!(local, maru, "after step {} of {:#?}", index, ops);
        if matches!(op, Op::ReserveWrite { .. }) {
            let [local, maru] = sides.each_mut().map(|side| side.step(&Op::Fill { byte: 0 }));
            prop_assert_eq!(local, maru, "after step {} of {:#?}", index, ops);
        }
    }
    for side in sides {
        side.manager.clear(true);
        prop_assert_eq!(side.manager.memory_usage().used_bytes, 0);
        side.manager.close();
    }
    pool.assert_nothing_left();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_shared_manager_alone_in_its_pool_is_a_private_one(
        ops in proptest::collection::vec(op(), 1..60)
    ) {
        thread_local!(static POOL: TestPool = TestPool::start(8 << 20));
        POOL.with(|pool| compare(pool, &ops))?;
    }
}
