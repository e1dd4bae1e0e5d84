//! End to end, over private memory.

use std::time::Instant;

use super::*;
use crate::eviction::tests::{key, keys, salted};
use crate::{
    Clock, L1Error, L1ManagerConfig, L1MemoryConfig, LocalL1Manager, ManualClock, MaruL1Config,
    MemoryLayoutDesc, Write,
};

const CHUNK_BYTES: u64 = 64 << 10;
const HOUR: Duration = Duration::from_hours(1);
const WRITE_TTL: Duration = Duration::from_mins(10);

struct Setup {
    manager: Arc<LocalL1Manager>,
    clock: Arc<ManualClock>,
    controller: EvictionController,
}

fn config() -> L1ManagerConfig {
    let bytes = 10 * CHUNK_BYTES;
    let memory = L1MemoryConfig { bytes, initial_bytes: bytes, ..L1MemoryConfig::default() };
    L1ManagerConfig { memory, ..L1ManagerConfig::default() }
}

/// A manager with room for ten chunks, which are too many from the eighth on.
fn setup(config: L1ManagerConfig) -> Setup {
    let clock = Arc::new(ManualClock::default());
    let eviction = config.eviction;
    let own = Arc::clone(&clock) as Arc<dyn Clock>;
    let manager = Arc::new(LocalL1Manager::with_clock(config, own).unwrap());
    let controller = EvictionController::new(Arc::clone(&manager) as _, eviction);
    Setup { manager, clock, controller }
}

fn with_policy(policy: EvictionPolicyKind) -> Setup {
    let config = config();
    let eviction = EvictionConfig { policy, ..config.eviction };
    setup(L1ManagerConfig { eviction, ..config })
}

impl Setup {
    fn reserve(&self, keys: &[ObjectKey]) {
        let writes: Vec<Write> = keys.iter().cloned().map(Write::retained).collect();
        let layout = MemoryLayoutDesc::opaque(CHUNK_BYTES).unwrap();
        let outcomes = self.manager.reserve_write(&writes, &layout, "tag");
        assert!(outcomes.iter().all(Result::is_ok));
    }

    fn write(&self, keys: &[ObjectKey]) {
        self.reserve(keys);
        assert!(self.manager.finish_write(keys, "tag").iter().all(Result::is_ok));
    }

    fn is_resident(&self, key: &ObjectKey) -> bool {
        self.manager.object_state(key).is_some()
    }

    fn resident(&self, keys: Vec<ObjectKey>) -> Vec<ObjectKey> {
        keys.into_iter().filter(|key| self.is_resident(key)).collect()
    }

    fn wait_until(&self, what: &str, holds: impl Fn(&EvictionStatus) -> bool) {
        let begun = Instant::now();
        while !holds(&self.controller.status()) {
            assert!(begun.elapsed() < Duration::from_mins(1), "{what}: it never came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn from_the_watermark_on_a_part_goes_the_ends_of_prompts_first() {
    for policy in [EvictionPolicyKind::Lru, EvictionPolicyKind::S3Fifo, EvictionPolicyKind::Arc] {
        let setup = with_policy(policy);
        setup.write(&keys(0..7));
        assert_eq!(setup.controller.run_once(), 0);
        setup.write(&keys(7..10));
        assert_eq!(setup.controller.run_once(), 2);
        assert_eq!(setup.resident(keys(0..10)), [keys(0..5), keys(7..10)].concat());
        // Eight are as many as the watermark.
        assert_eq!(setup.controller.run_once(), 1);
        assert_eq!(setup.controller.run_once(), 0);
        let status = setup.controller.status();
        assert_eq!((status.runs, status.evicted, status.tracked), (2, 3, 7));
        assert!(status.is_healthy && !status.thread_alive);
    }
}

#[test]
fn room_is_made_for_just_what_is_asked_however_full_it_is() {
    for policy in [EvictionPolicyKind::Lru, EvictionPolicyKind::S3Fifo, EvictionPolicyKind::Arc] {
        let setup = with_policy(policy);
        setup.write(&keys(0..5));
        assert_eq!(setup.controller.make_room(0), 0);
        assert_eq!(setup.controller.make_room(2), 2);
        assert_eq!(setup.resident(keys(0..5)), keys(0..3));
        assert_eq!(setup.controller.make_room(9), 3);
        let status = setup.controller.status();
        assert_eq!((status.runs, status.evicted, status.tracked), (0, 5, 0));
    }
    assert_eq!(with_policy(EvictionPolicyKind::None).controller.make_room(1), 0);
}

#[test]
fn what_is_touched_stays() {
    let setup = setup(config());
    setup.write(&keys(0..10));
    setup.manager.touch_keys(&keys(5..10));
    assert_eq!(setup.controller.run_once(), 2);
    assert_eq!(setup.resident(keys(0..10)), [keys(0..3), keys(5..10)].concat());
}

#[test]
fn what_is_locked_stays_and_is_tried_again() {
    let setup = setup(config());
    setup.write(&keys(0..10));
    let locked = keys(1..10);
    assert!(setup.manager.reserve_read(&locked, 1).iter().all(Result::is_ok));
    assert_eq!(setup.controller.run_once(), 1);
    assert_eq!(setup.controller.run_once(), 0);
    assert_eq!(setup.resident(keys(0..10)), locked);
    assert!(setup.manager.finish_read(&locked, 1).iter().all(Result::is_ok));
    assert_eq!(setup.controller.run_once(), 1);
    assert!(!setup.is_resident(&key(9)));
}

#[test]
fn an_abandoned_reservation_goes_once_it_has_expired() {
    let setup = setup(config());
    setup.reserve(&keys(0..10));
    assert_eq!(setup.controller.run_once(), 0);
    assert_eq!(setup.manager.memory_usage().used_bytes, 10 * CHUNK_BYTES);
    setup.clock.advance(WRITE_TTL);
    assert_eq!(setup.controller.run_once(), 2);
    assert_eq!(setup.manager.memory_usage().used_bytes, 8 * CHUNK_BYTES);
    assert_eq!(setup.manager.finish_write(&[key(9)], "tag"), [Err(L1Error::KeyNotExist)]);
    assert_eq!(setup.controller.status().tracked, 8);
}

#[test]
fn a_flooding_salt_gives_of_its_own() {
    let config = config();
    let eviction = EvictionConfig { isolate_salts: true, ..config.eviction };
    let setup = setup(L1ManagerConfig { eviction, ..config });
    let quiet: Vec<ObjectKey> = (0..3).map(|n| salted(n, "quiet")).collect();
    setup.write(&quiet);
    for n in 0..100 {
        setup.write(&[salted(n, "flood")]);
        setup.controller.run_once();
    }
    assert_eq!(setup.resident(quiet.clone()), quiet);
}

#[test]
fn no_policy_evicts_nothing() {
    let mut setup = with_policy(EvictionPolicyKind::None);
    setup.write(&keys(0..10));
    setup.controller.start(Duration::ZERO).unwrap();
    assert_eq!(setup.controller.run_once(), 0);
    let status = setup.controller.status();
    assert!(status.is_healthy && !status.thread_alive);
    assert_eq!(setup.resident(keys(0..10)).len(), 10);
}

#[test]
fn over_a_shared_pool_it_is_quiet() {
    // Any manager will do, so long as it says that it is shared.
    let server = maru_protocol::Endpoint::Tcp("127.0.0.1:1".to_owned());
    let config = L1ManagerConfig { maru: Some(MaruL1Config::new(server)), ..config() };
    let mut setup = setup(config);
    setup.write(&keys(0..10));
    setup.controller.start(Duration::ZERO).unwrap();
    assert_eq!(setup.controller.run_once(), 0);
    let status = setup.controller.status();
    assert_eq!((status.thread_alive, status.tracked, status.runs), (false, 0, 0));
}

#[test]
fn the_thread_evicts_in_time() {
    let mut setup = setup(config());
    setup.write(&keys(0..10));
    setup.controller.start(Duration::from_millis(1)).unwrap();
    setup.controller.start(Duration::from_millis(1)).unwrap();
    setup.wait_until("eviction", |status| status.evicted == 3);
    assert!(setup.controller.status().thread_alive);
}

#[test]
fn a_poke_wakes_it_and_a_drop_ends_it() {
    let mut setup = setup(config());
    setup.controller.start(HOUR).unwrap();
    setup.write(&keys(0..10));
    setup.controller.poke();
    setup.wait_until("eviction", |status| status.evicted == 2);
    let weak = Arc::downgrade(&setup.controller.shared);
    drop(setup.controller);
    assert!(weak.upgrade().is_none(), "nothing holds the manager any more");
    assert_eq!(Arc::strong_count(&setup.manager), 1);
}

#[test]
fn memory_that_can_still_grow_is_not_full_unless_somebody_found_no_room() {
    let config = config();
    let memory = L1MemoryConfig { bytes: 8 << 20, initial_bytes: 2 << 20, ..config.memory };
    let mut setup = setup(L1ManagerConfig { memory, ..config });
    setup.write(&keys(0..30));
    assert_eq!(setup.manager.memory_usage().total_bytes, 2 << 20);
    assert_eq!(setup.controller.run_once(), 0);
    setup.controller.start(HOUR).unwrap();
    setup.controller.poke();
    setup.wait_until("eviction", |status| status.evicted == 6);
}

#[test]
fn evicting_while_others_work_loses_no_key_and_nobody_waits_forever() {
    let mut setup = setup(config());
    setup.controller.start(Duration::ZERO).unwrap();
    let layout = MemoryLayoutDesc::opaque(CHUNK_BYTES).unwrap();
    let work = |worker: u64| {
        for n in 0..300 {
            let mine = keys(1000 * worker + 3 * n..1000 * worker + 3 * n + 3);
            let writes: Vec<Write> = mine.iter().cloned().map(Write::retained).collect();
            while setup.manager.reserve_write(&writes, &layout, "tag").iter().any(Result::is_err) {
                setup.controller.poke();
                std::thread::yield_now();
            }
            setup.manager.finish_write(&mine, "tag");
            setup.manager.touch_keys(&mine);
            let read = setup.manager.reserve_read(&mine, 1);
            let read = mine.into_iter().zip(read).filter_map(|(key, read)| read.ok().map(|_| key));
            setup.manager.finish_read(&read.collect::<Vec<_>>(), 1);
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..3 {
            scope.spawn(move || work(worker));
        }
    });
    // The books are even whenever nobody is evicting.
    let _still = lock(&setup.controller.shared.evicting);
    let status = setup.controller.status();
    assert!(status.thread_alive && setup.manager.memcheck());
    assert_eq!(status.evicted + status.tracked, 2700);
    assert_eq!(setup.manager.report_status().total_object_count, status.tracked);
}
