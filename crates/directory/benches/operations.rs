//! Key operations a second of the directory alone, on one core: batches of 128 keys as LMCache
//! makes them, over a million entries.
//!
//! `cargo bench -p maru-directory --bench operations`; the figures are in `docs/performance.md`.
// A measurement that fails may stop, and is not exact to 2^-53.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

use std::time::Instant;

use maru_directory::{Config, DeviceSpan, Directory, Geometry, Millis};
use maru_protocol::{
    Answer, Body, CommitItem, Handle, Hello, Key, Request, ReserveOutcome, Secret, SessionId,
};

const ENTRIES: usize = 1_000_000;
const BATCH: usize = 128;
const PAGE: u64 = 4096;

struct Driver {
    directory: Directory,
    session: SessionId,
    seq: u64,
}

impl Driver {
    fn ask(&mut self, body: Body<'_>) -> Answer {
        self.seq += 1;
        let request = Request { seq: self.seq, acked: self.seq - 1, body };
        self.directory.apply(Millis(0), self.session, &request).result.unwrap()
    }

    fn store(&mut self, keys: &[Key<'_>]) {
        let (keys, page_bytes) = (keys.to_vec(), PAGE);
        let body = Body::Reserve { keys, page_bytes, tag: 0, unless_being_written: true };
        let Answer::Reserved(outcomes) = self.ask(body) else { panic!("reserve") };
        let item = |outcome| match outcome {
            ReserveOutcome::Granted(location) => {
                CommitItem { handle: location.handle, length: location.length, checksum: None }
            }
            other => panic!("{other:?}"),
        };
        let items = outcomes.into_iter().map(item).collect();
        self.ask(Body::Commit { items, pins: 0, names: Vec::new() });
    }

    fn acquire(&mut self, keys: &[Key<'_>]) -> Vec<Handle> {
        let body = Body::Acquire { keys: keys.to_vec(), pins: 1, stop_at_miss: false };
        let Answer::Acquired(found) = self.ask(body) else { panic!("acquire") };
        found.into_iter().flatten().map(|chunk| chunk.location.handle).collect()
    }
}

fn main() {
    let bytes = (ENTRIES as u64 + 1024) * PAGE + (2 << 20);
    let device = DeviceSpan { offset: 0, bytes, reserved: 2 << 20 };
    let geometry = Geometry { devices: vec![device], region_bytes: 64 << 20 };
    let config =
        Config { watermark_high_permille: 1000, watermark_low_permille: 1000, ..Config::default() };
    let mut directory = Directory::new(config, &geometry, Millis(0)).unwrap();
    let hello =
        Hello { instance: "a", host: "h", budget_bytes: 0, resume: None, outside_writers: false };
    let session = directory.hello(Millis(0), &hello, Secret([0; 16]), None).unwrap().session;
    let mut driver = Driver { directory, session, seq: 0 };
    let name = |n: usize| format!("meta-llama/Llama-3.1-8B@00000000@{:064x}@0", (n as u128) << 70);
    let names: Vec<String> = (0..ENTRIES).map(name).collect();
    let keys: Vec<Key<'_>> = names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();

    let before = resident_bytes();
    let start = Instant::now();
    keys.chunks(BATCH).for_each(|keys| driver.store(keys));
    let stored = start.elapsed();
    let grown = resident_bytes() - before;
    // In an order that no cache foresees.
    let mut shuffled = keys.clone();
    let mut state = 1_usize;
    for index in (1..shuffled.len()).rev() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        shuffled.swap(index, (state >> 33) % (index + 1));
    }
    let start = Instant::now();
    for keys in shuffled.chunks(BATCH) {
        let handles = driver.acquire(keys);
        driver.ask(Body::Release { handles, pins: 1 });
    }
    let read = start.elapsed();
    let start = Instant::now();
    for keys in shuffled.chunks(BATCH) {
        driver.ask(Body::Contains { keys: keys.to_vec() });
    }
    let looked = start.elapsed();
    let rate = |time: std::time::Duration| ENTRIES as f64 / 1e6 / time.as_secs_f64();
    println!("million keys a second, one core, {ENTRIES} entries, batches of {BATCH}");
    println!("  reserve + commit   {:6.2}", rate(stored));
    println!("  acquire + release  {:6.2}", rate(read));
    println!("  contains           {:6.2}", rate(looked));
    println!(
        "bytes an entry, its page and a key of 101 bytes included: {}",
        grown / ENTRIES as u64
    );
}

/// What this process has in memory.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
