//! How soon 100,000 pins are free after `kill -9` of the instance that holds them, and what another instance
//! feels of it.
//!
//! `cargo bench -p maru-client --bench reclaim`; the figures are in `docs/performance.md`.
// A measurement that fails may stop, and is not exact to 2^-53.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

mod process;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use maru_client::{Acquire, Client};
use maru_protocol::Key;

use process::{ENTRIES, Serving, connect, is, keys, names, serve, store, tell};

const PINS: usize = 100_000;
/// Keys that the other instance asks for at once: a prompt of a few thousand tokens.
const ASKED: usize = 32;
const ROUNDS: usize = 20;

fn main() {
    if let Some(folder) = is("serve") {
        return serve(&folder);
    }
    if let Some(folder) = is("hold") {
        return hold(&folder);
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let folder = folder.path();
    let names = names(ENTRIES);
    let keys = keys(&names);
    let _serving = Serving::start(folder);
    let other = connect(folder, "other");
    store(&other, &keys);
    let watch = connect(folder, "watch");
    let mut figures: [Vec<f64>; 3] = Default::default();
    let mut all: [Vec<f64>; 2] = Default::default();
    for _ in 0..ROUNDS {
        let mut holder = holder(folder);
        assert_eq!(watch.stats().unwrap().pins, PINS as u64);
        let mut before = ask(&other, &keys, |asked| asked >= 20_000);
        let p99_before = p99(&mut before);
        let free = AtomicBool::new(false);
        let (seconds, mut meanwhile) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&other, &keys, |_| free.load(Ordering::Relaxed)));
            let start = Instant::now();
            holder.kill().unwrap();
            // What the other instance pins for a moment is counted too.
            while watch.stats().unwrap().pins > ASKED as u64 {
                std::thread::sleep(Duration::from_millis(2));
            }
            let seconds = start.elapsed().as_secs_f64();
            free.store(true, Ordering::Relaxed);
            holder.wait().unwrap();
            (seconds, asking.join().unwrap())
        });
        figures[0].push(seconds * 1e3);
        figures[1].push(p99_before * 1e6);
        figures[2].push(p99(&mut meanwhile) / p99_before);
        all[0].append(&mut before);
        all[1].append(&mut meanwhile);
    }
    println!("{PINS} pins of an instance that is killed, {} entries", keys.len());
    let names = [
        "from the kill until all are released, ms",
        "p99 of another's acquire and release before, us",
        "p99 meanwhile, in p99 before",
    ];
    for (name, figures) in names.iter().zip(figures) {
        tell(name, figures);
    }
    let [before, meanwhile] = all.map(|mut all| (all.len(), p99(&mut all)));
    println!(
        "of all rounds together, {} times before and {} meanwhile: {:.2}",
        before.0,
        meanwhile.0,
        meanwhile.1 / before.1
    );
}

/// Pins, says so, and waits to be killed.
fn hold(folder: &Path) {
    let client = connect(folder, "holder");
    let names = names(PINS);
    let keys = keys(&names);
    let pinned: Vec<_> = keys
        .chunks(4096)
        .flat_map(|keys| client.acquire(keys, Acquire::default()).unwrap())
        .collect();
    assert!(pinned.iter().all(Option::is_some));
    println!("pinned");
    std::io::stdout().flush().unwrap();
    std::thread::sleep(Duration::from_mins(1));
}

fn holder(folder: &Path) -> Child {
    let mut holder = process::start("hold", folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "pinned\n");
    holder
}

/// Acquires and releases, from all over the pool, until it is `enough`; how long each took, in seconds.
fn ask(client: &Client, keys: &[Key<'_>], enough: impl Fn(usize) -> bool) -> Vec<f64> {
    let mut took = Vec::new();
    while !enough(took.len()) {
        let from = (took.len() * 7919 * ASKED) % (keys.len() - ASKED);
        let start = Instant::now();
        let found = client.acquire(&keys[from..from + ASKED], Acquire::default()).unwrap();
        drop(found);
        took.push(start.elapsed().as_secs_f64());
    }
    took
}

fn p99(took: &mut [f64]) -> f64 {
    took.sort_by(f64::total_cmp);
    took[took.len() * 99 / 100]
}
