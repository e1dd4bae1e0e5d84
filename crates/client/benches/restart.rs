//! How soon a server with a million entries serves again after `kill -9`, what its store takes on the
//! disk, and what it has in memory.
//!
//! `cargo bench -p maru-client --bench restart`; the figures are in `docs/performance.md`.
// A measurement that fails may stop, and is not exact to 2^-53.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

mod process;

use std::path::Path;
use std::time::{Duration, Instant};

use maru_client::{Acquire, Reserve, Reserved};
use maru_protocol::Key;

use process::{ENTRIES, PAGE, Serving, connect, is, keys, names, serve, store, tell};

const ROUNDS: usize = 9;

fn main() {
    if let Some(folder) = is("serve") {
        return serve(&folder);
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let folder = folder.path();
    let names = names(ENTRIES);
    let keys = keys(&names);
    let mut serving = Serving::start(folder);
    // It lives through all restarts.
    let instance = connect(folder, "instance");
    store(&instance, &keys);
    let grown = anonymous_bytes(serving.0.id());
    let mut figures: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS {
        drop(serving);
        let start = Instant::now();
        serving = Serving::start(folder);
        let client = connect(folder, "new");
        let found = client.acquire(&keys[round..=round], Acquire::default()).unwrap();
        assert!(found[0].is_some());
        figures[0].push(seconds(start));
        let name = format!("new@00000000@{round:064x}@0");
        let new = [Key::new(name.as_bytes()).unwrap()];
        let granted = || {
            let reserved = client.reserve(&new, PAGE, Reserve::default()).unwrap();
            matches!(reserved[0], Reserved::Page(_))
        };
        let answered = granted();
        figures[1].push(seconds(start));
        while !answered && !granted() {
            std::thread::sleep(Duration::from_millis(1));
        }
        figures[2].push(seconds(start));
        while client.stats().unwrap().sessions_awaited > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        figures[3].push(seconds(start));
        assert_eq!(client.stats().unwrap().counters.recovered, ENTRIES as u64);
    }
    println!("{ENTRIES} entries with keys of {} bytes", names[0].len());
    let names = [
        "from the start to the first acquire answered, s",
        "to the first reserve answered, s",
        "to the first page granted, s",
        "to the return of the instance of before, s",
    ];
    for (name, figures) in names.iter().zip(figures) {
        tell(name, figures);
    }
    let store = store_bytes(&folder.join("pool.store"));
    println!("bytes of the store, an entry: {}", store / ENTRIES as u64);
    println!("bytes of memory, an entry, as it was filled: {}", grown / ENTRIES as u64);
    let again = anonymous_bytes(serving.0.id());
    println!("bytes of memory, an entry, after a restart: {}", again / ENTRIES as u64);
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// What a process has in memory of its own.
fn anonymous_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn store_bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}
