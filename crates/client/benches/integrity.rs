//! What checksums and cache lines cost a writer and a reader, through the client: whole batches, from
//! the first copy to the commit, and from the acquire to the release. Pools and readers take turns in
//! one run. Writing is a share of the speed into a plain pool in the same round, reading one of the
//! speed of a reader of the same pool who is on the writer's host and looks at no checksum.
//!
//! `cargo bench -p maru-client --bench integrity`; the figures are in `docs/performance.md`.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A measurement that fails may stop.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use maru_client::{Acquire, Client, ClientConfig, Reserve, Reserved, Verify};
use maru_protocol::{Endpoint, Key, Visibility};
use maru_server::{Embedded, PoolConfig, ServerConfig};

const ROUNDS: usize = 40;

/// The pool without anything.
const PLAIN: &str = "plain";

/// Bytes of a batch: more than caches hold.
const BATCH: u64 = 64 << 20;

/// One pool, and who reads it.
struct Pool {
    writer: Client,
    readers: Vec<(&'static str, Client)>,
    name: &'static str,
    _server: Embedded,
    _folder: tempfile::TempDir,
}

/// A reader: what it is called, on which host it is, and what it verifies.
type Reader = (&'static str, &'static str, Verify);

impl Pool {
    fn new(
        name: &'static str,
        visibility: Visibility,
        checksums: bool,
        readers: &[Reader],
    ) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let spec = format!("{}:{}MiB", folder.path().join("pool").display(), (BATCH >> 20) + 18);
        let server = Embedded::start(&ServerConfig {
            socket: Some(folder.path().join("socket")),
            region_bytes: Some(8 << 20),
            populate: true,
            visibility,
            checksums,
            ..ServerConfig::new(PoolConfig::Temporary(spec.parse().unwrap()))
        })
        .unwrap();
        let endpoint = Endpoint::Unix(server.socket().unwrap().clone());
        let client = |host: &str, verify| {
            let (endpoint, host) = (endpoint.clone(), Some(host.to_owned()));
            let config = ClientConfig { endpoint, host, verify, ..ClientConfig::default() };
            Client::connect(config).unwrap()
        };
        let readers = readers.iter().map(|(name, host, verify)| (*name, client(host, *verify)));
        Self {
            writer: client("here", Verify::Off),
            readers: readers.collect(),
            name,
            _server: server,
            _folder: folder,
        }
    }

    fn write(&self, keys: &[Key<'_>], page_bytes: u64, content: &[u8]) -> Duration {
        let reserved = self.writer.reserve(keys, page_bytes, Reserve::default()).unwrap();
        let start = Instant::now();
        let pages = reserved.into_iter().map(|reserved| {
            let Reserved::Page(mut page) = reserved else { panic!("{reserved:?}") };
            page.copy_from(std::hint::black_box(content)).unwrap();
            page
        });
        self.writer.commit(pages.collect::<Vec<_>>()).unwrap();
        start.elapsed()
    }
}

fn read(reader: &Client, keys: &[Key<'_>], buffer: &mut [u8]) -> Duration {
    let start = Instant::now();
    let pages = reader.acquire(keys, Acquire::default()).unwrap();
    for page in pages.iter().flatten() {
        page.copy_to(std::hint::black_box(buffer)).unwrap();
    }
    reader.release(pages.into_iter().flatten()).unwrap();
    start.elapsed()
}

fn measure(pools: &[Pool], page_bytes: u64) {
    let names: Vec<String> = (0..BATCH / page_bytes).map(|n| n.to_string()).collect();
    let keys: Vec<Key<'_>> = names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();
    let len = usize::try_from(page_bytes).unwrap();
    let (content, mut buffer) = (vec![7; len], vec![0; len]);
    let mut shares: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        // Nobody is always the first.
        let in_turn = || pools.iter().cycle().skip(round).take(pools.len());
        let written: Vec<(&Pool, Duration)> =
            in_turn().map(|pool| (pool, pool.write(&keys, page_bytes, &content))).collect();
        let plain = written.iter().filter(|(pool, _)| pool.name == PLAIN);
        let plain = plain.map(|(_, time)| *time).sum::<Duration>().as_secs_f64() / 2.0;
        for (pool, time) in written.iter().filter(|(pool, _)| pool.name != PLAIN) {
            let share = plain / time.as_secs_f64();
            shares.entry(format!("written, {}", pool.name)).or_default().push(share);
        }
        for pool in in_turn() {
            let times: Vec<Duration> =
                pool.readers.iter().map(|(_, reader)| read(reader, &keys, &mut buffer)).collect();
            for ((name, _), time) in pool.readers.iter().zip(&times).skip(1) {
                let share = times[0].as_secs_f64() / time.as_secs_f64();
                shares.entry(format!("read, {}, {name}", pool.name)).or_default().push(share);
            }
            pool.writer.delete(&keys).unwrap();
        }
    }
    for (name, shares) in &mut shares {
        // The first round brings everything in.
        shares.remove(0);
        shares.sort_by(f64::total_cmp);
        let [low, median, high] = [1, 2, 3].map(|quarter| shares[ROUNDS * quarter / 4]);
        println!("{:4} KiB {name:60} {median:5.2} ({low:.2} to {high:.2})", page_bytes >> 10);
    }
}

fn main() {
    let (coherent, lines) = (Visibility::Coherent, Visibility::CacheLine);
    let near: Reader = ("not looked at", "here", Verify::Off);
    let far: Reader = ("by another host", "there", Verify::Off);
    let plain = || Pool::new(PLAIN, coherent, false, &[near]);
    // One before and one after the others: the memory that comes first is not as fast as what is left.
    let pools = [
        plain(),
        Pool::new(
            "checksums",
            coherent,
            true,
            &[
                near,
                ("a sample looked at", "here", Verify::Sample),
                ("all", "here", Verify::Always),
            ],
        ),
        Pool::new("cache lines", lines, false, &[near, far]),
        Pool::new(
            "cache lines and checksums",
            lines,
            true,
            &[near, far, ("all by another host", "there", Verify::Always)],
        ),
        plain(),
    ];
    for page_bytes in [64 << 10, 1 << 20] {
        measure(&pools, page_bytes);
    }
}
