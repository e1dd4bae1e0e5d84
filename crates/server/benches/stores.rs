//! What it costs to store what the directory records: our log, beside two stores that are well kept.
//!
//! A full pool of a million entries, keys of 88 bytes: each turn evicts 128 entries and commits 128.
//! All keep what is acknowledged if the process is killed, and do not wait for the disk.
//!
//! `cargo bench -p maru-server --bench stores`; the figures are in `docs/performance.md`.
// A measurement that fails may stop, and is not exact to 2^-53.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use fjall::{Database, KeyspaceCreateOptions};
use maru_directory::{Config, DeviceSpan, Geometry, Millis};
use maru_protocol::{
    Answer, Body, CommitItem, Device, Hello, Key, Request, ReserveOutcome, Secret, SessionId,
    Topology, Visibility,
};
use maru_server::service::{Service, ServiceConfig};
use maru_server::store::{Durability, FileDisk, System};
use redb::{ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

const ENTRIES: u64 = 1_000_000;
const BATCH: u64 = 128;
/// So many are there at any time: a turn takes away before it brings.
const THERE: usize = 999_000;
/// As long as the entries take twice.
const TURNS: u64 = 2 * ENTRIES / BATCH;
const PAGE: u64 = 4096;
/// About what a record of a commit takes.
const VALUE: usize = 130;
const NOW: Millis = Millis(0);

fn main() {
    println!("{:24} {:>9} {:>9} {:>9} {:>9}", "", "us/entry", "CPU us", "worst ms", "reopen s");
    let none = service(None);
    println!("{:24} {:9.2} {:9.2} {:9.1}", "the directory alone", none.wall, none.cpu, none.worst);
    let ours = service(Some(tempfile::tempdir().unwrap().path()));
    println!(
        "{:24} {:9.2} {:9.2} {:9.1} {:9.2}",
        "  and our log",
        ours.wall - none.wall,
        ours.cpu - none.cpu,
        ours.worst,
        ours.reopen
    );
    for (name, figures) in [("fjall", fjall()), ("redb, not synced", redb())] {
        let Figures { wall, cpu, worst, reopen } = figures;
        println!("{name:24} {wall:9.2} {cpu:9.2} {worst:9.1} {reopen:9.2}");
    }
}

struct Figures {
    /// Microseconds an entry that comes and one that goes.
    wall: f64,
    /// The same, of all threads.
    cpu: f64,
    /// The longest turn, in milliseconds.
    worst: f64,
    /// Until all entries are read again, in seconds.
    reopen: f64,
}

/// Fills, then measures as many turns as it says.
fn measure(mut turn: impl FnMut(u64)) -> Figures {
    let fill = ENTRIES.div_ceil(BATCH);
    (0..fill).for_each(&mut turn);
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let mut worst = 0.0;
    for n in fill..fill + TURNS {
        let start = Instant::now();
        turn(n);
        worst = start.elapsed().as_secs_f64().max(worst);
    }
    let entries = (TURNS * BATCH) as f64;
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    Figures {
        wall: wall / entries * 1e6,
        cpu: cpu / entries * 1e6,
        worst: worst * 1e3,
        reopen: 0.0,
    }
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Names as LMCache makes them.
fn name(n: u64) -> String {
    format!("Llama-3.1-8B@00000000@{:064x}@0", u128::from(n) << 70)
}

fn config() -> ServiceConfig {
    let bytes = (ENTRIES * PAGE).next_multiple_of(2 << 20);
    let device = Device { uuid: Uuid::from_u128(1), path: String::new(), offset: 0, bytes };
    let (address_space_bytes, visibility) = (bytes, Visibility::Coherent);
    let directory =
        Config { watermark_high_permille: 1000, watermark_low_permille: 1000, ..Config::default() };
    ServiceConfig {
        directory,
        geometry: Geometry {
            devices: vec![DeviceSpan { offset: 0, bytes, reserved: 0 }],
            region_bytes: 2 << 20,
        },
        topology: Topology { address_space_bytes, visibility, devices: vec![device] },
        checksums: false,
        durability: Durability::Process,
        may_be_written: false,
        system: System::default(),
    }
}

/// The real service, with a store in `folder` or without.
fn service(folder: Option<&Path>) -> Figures {
    let disk = || folder.map(|folder| FileDisk::open(folder, true).unwrap());
    let (mut service, _) = Service::open(config(), disk(), 0, NOW, &mut |_| {}).unwrap();
    let hello =
        Hello { instance: "a", host: "h", budget_bytes: 0, resume: None, outside_writers: false };
    let session = service.hello(NOW, &hello, Secret([1; 16]), None).unwrap().session;
    let mut seq = 0;
    let mut figures = measure(|n| {
        let names: Vec<String> = (n * BATCH..(n + 1) * BATCH).map(name).collect();
        let keys = names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();
        let body = Body::Reserve { keys, page_bytes: PAGE, tag: 0, unless_being_written: false };
        let Answer::Reserved(reserved) = ask(&mut service, session, &mut seq, body) else {
            panic!("another answer");
        };
        let items = reserved.into_iter().map(|outcome| match outcome {
            ReserveOutcome::Granted(at) => {
                CommitItem { handle: at.handle, length: 1, checksum: None }
            }
            other => panic!("{other:?}"),
        });
        ask(
            &mut service,
            session,
            &mut seq,
            Body::Commit { items: items.collect(), pins: 0, names: Vec::new() },
        );
    });
    // As after `kill -9`.
    drop(service);
    let start = Instant::now();
    if let Some(disk) = disk() {
        let (service, _) = Service::open(config(), Some(disk), 0, NOW, &mut |_| {}).unwrap();
        assert!(service.directory().counters().recovered > THERE as u64);
    }
    figures.reopen = start.elapsed().as_secs_f64();
    figures
}

fn ask(
    service: &mut Service<FileDisk>,
    session: SessionId,
    seq: &mut u64,
    body: Body<'_>,
) -> Answer {
    *seq += 1;
    let reply = service.apply(NOW, session, &Request { seq: *seq, acked: *seq - 1, body }).unwrap();
    service.settle().unwrap();
    reply.result.unwrap()
}

/// Where an entry lies: what a store finds it by. Pages are reused in another order than they are filled.
fn place(n: u64) -> [u8; 8] {
    (n % ENTRIES).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
}

/// The entries that a turn takes away, and those that it brings.
fn turn_of(n: u64) -> (std::ops::Range<u64>, std::ops::Range<u64>) {
    let comes = n * BATCH..(n + 1) * BATCH;
    let goes = comes.start.saturating_sub(ENTRIES)..comes.end.saturating_sub(ENTRIES);
    (goes, comes)
}

fn value(n: u64) -> [u8; VALUE] {
    let mut value = [7; VALUE];
    value[..8].copy_from_slice(&n.to_le_bytes());
    value
}

fn fjall() -> Figures {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let database = Database::builder(folder.path()).open().unwrap();
        let entries = database.keyspace("entries", KeyspaceCreateOptions::default).unwrap();
        (database, entries)
    };
    let (database, entries) = open();
    let mut figures = measure(|n| {
        let (goes, comes) = turn_of(n);
        // It goes to the operating system, unsynced.
        let mut batch = database.batch();
        goes.for_each(|n| batch.remove(&entries, place(n)));
        comes.for_each(|n| batch.insert(&entries, place(n), value(n)));
        batch.commit().unwrap();
    });
    drop((database, entries));
    let start = Instant::now();
    let (_database, entries) = open();
    let read = entries.iter().map(|entry| entry.value().unwrap().len()).sum::<usize>();
    assert!(read > THERE * VALUE);
    figures.reopen = start.elapsed().as_secs_f64();
    figures
}

/// A file that is never synced: then a commit outlives the process, and does not wait for the disk.
#[derive(Debug)]
struct Unsynced(File);

impl StorageBackend for Unsynced {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

fn redb() -> Figures {
    const TABLE: TableDefinition<'_, [u8; 8], [u8; VALUE]> = TableDefinition::new("entries");
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let path = folder.path().join("redb");
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
        redb::Builder::new().create_with_backend(Unsynced(file.unwrap())).unwrap()
    };
    let database = open();
    let mut figures = measure(|n| {
        let (goes, comes) = turn_of(n);
        let write = database.begin_write().unwrap();
        {
            let mut entries = write.open_table(TABLE).unwrap();
            goes.for_each(|n| drop(entries.remove(place(n)).unwrap()));
            comes.for_each(|n| drop(entries.insert(place(n), value(n)).unwrap()));
        }
        write.commit().unwrap();
    });
    drop(database);
    let start = Instant::now();
    let database = open();
    let read = database.begin_read().unwrap();
    let entries = read.open_table(TABLE).unwrap();
    assert!(entries.iter().unwrap().count() > THERE);
    figures.reopen = start.elapsed().as_secs_f64();
    figures
}
