//! What only a shared L1 does: several instances on one pool, and what happens when the way to the
//! server fails.

#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

mod faults;
mod instances;
mod integrity;
mod upkeep;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use maru_l1::{
    Clock, KvRank, L1Error, L1Listener, L1Manager, L1ManagerConfig, ManualClock, MaruL1Config,
    MaruL1Manager, MemoryLayoutDesc, ObjectKey, ReadObject, Write,
};
use maru_protocol::Endpoint;
use maru_testkit::conformance::Told;

const PAGE: u64 = 64 << 10;
const TTL: Duration = Duration::from_mins(1);

/// Only a hang takes this long.
const WATCHDOG: Duration = Duration::from_mins(1);

fn key(number: u8) -> ObjectKey {
    ObjectKey::new("model", KvRank(0), &[number; 8], 0, "").unwrap()
}

fn keys(count: u8) -> Vec<ObjectKey> {
    (0..count).map(key).collect()
}

fn layout() -> MemoryLayoutDesc {
    MemoryLayoutDesc::opaque(PAGE).unwrap()
}

/// A manager whose time the test lets pass.
struct Instance {
    manager: Arc<MaruL1Manager>,
    clock: Arc<ManualClock>,
}

impl Instance {
    fn new(server: Endpoint, name: &str) -> Self {
        Self::patient(server, name, WATCHDOG / 2)
    }

    /// One whose requests time out after `timeout`.
    fn patient(server: Endpoint, name: &str, timeout: Duration) -> Self {
        let clock = Arc::new(ManualClock::default());
        let instance = Some(name.to_owned());
        let maru = MaruL1Config { instance, timeout, ..MaruL1Config::new(server) };
        let config = L1ManagerConfig {
            maru: Some(maru),
            write_ttl: TTL,
            read_ttl: TTL,
            ..L1ManagerConfig::default()
        };
        let time = Arc::clone(&clock) as Arc<dyn Clock>;
        Self { manager: Arc::new(MaruL1Manager::with_clock(config, time).unwrap()), clock }
    }

    /// Stages chunks filled with `byte`; panics if that is refused.
    fn stage(&self, keys: &[ObjectKey], tag: &str, byte: u8) {
        let writes: Vec<Write> = keys.iter().cloned().map(Write::retained).collect();
        self.stage_all(&writes, tag, byte);
    }

    fn stage_all(&self, writes: &[Write], tag: &str, byte: u8) {
        for object in self.manager.reserve_write(writes, &layout(), tag) {
            object.unwrap().write(|bytes| bytes.fill(byte)).unwrap();
        }
    }

    fn store(&self, keys: &[ObjectKey], byte: u8) {
        self.stage(keys, "", byte);
        assert_eq!(self.manager.finish_write(keys, ""), vec![Ok(()); keys.len()]);
    }

    /// Takes a read lock on each and says what each is filled with.
    fn read(&self, keys: &[ObjectKey]) -> Vec<Result<u8, L1Error>> {
        filled_with(self.manager.reserve_read(keys, 1))
    }
}

/// What each chunk is filled with, all over.
fn filled_with(objects: Vec<Result<ReadObject, L1Error>>) -> Vec<Result<u8, L1Error>> {
    let byte = |object: ReadObject| {
        object.read(|bytes| {
            assert_eq!(bytes.len() as u64, PAGE);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mixture of bytes");
            bytes[0]
        })
    };
    objects.into_iter().map(|object| object.and_then(byte)).collect()
}

/// Sends on what it is told.
#[derive(Debug)]
struct Teller {
    sender: Sender<Told>,
    /// Also that deletions were missed: said once when the listening begins, whenever that is.
    missed: bool,
}

impl Teller {
    fn listen(manager: &MaruL1Manager) -> Receiver<Told> {
        let (sender, receiver) = channel();
        manager.register_listener(Arc::new(Self { sender, missed: false }));
        receiver
    }

    /// The same, and what was missed. Returns once the listening has begun.
    fn listen_to_all(manager: &MaruL1Manager) -> Receiver<Told> {
        let (sender, receiver) = channel();
        manager.register_listener(Arc::new(Self { sender, missed: true }));
        assert_eq!(receiver.recv_timeout(WATCHDOG), Ok(("deletions_missed", vec![])));
        receiver
    }

    fn tell(&self, event: &'static str, keys: &[ObjectKey]) {
        // The test may be over.
        let _ = self.sender.send((event, keys.to_vec()));
    }
}

impl L1Listener for Teller {
    fn write_finished(&self, keys: &[ObjectKey]) {
        self.tell("write_finished", keys);
    }
    fn finish_write_and_reserve_read(&self, keys: &[ObjectKey]) {
        self.tell("finish_write_and_reserve_read", keys);
    }
    fn deleted_by_manager(&self, keys: &[ObjectKey]) {
        self.tell("deleted_by_manager", keys);
    }
    fn deletions_missed(&self) {
        if self.missed {
            self.tell("deletions_missed", &[]);
        }
    }
}
