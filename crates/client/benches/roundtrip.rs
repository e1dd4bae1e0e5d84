//! Round trips of a client against a bare echo of as many bytes over the same kind of socket, and
//! copies through the pool against plain copies, taken in turns in one run.
//!
//! `cargo bench -p maru-client --bench roundtrip`; the figures are in `docs/performance.md`.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A measurement that fails may stop.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use maru_client::{Acquire, Client, ClientConfig, Reserve, Reserved};
use maru_protocol::{Endpoint, Key};
use maru_server::{Embedded, PoolConfig, ServerConfig};

const ROUNDS: usize = 9;
const TURNS: usize = 400;
const PAGE: u64 = 1 << 20;

/// The median time of `TURNS` calls.
fn median(mut call: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..TURNS)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[TURNS / 2]
}

/// A socket that answers every 128 bytes with as many.
fn echo(path: &std::path::Path) -> UnixStream {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut buffer = [0; 128];
        while stream.read_exact(&mut buffer).is_ok() {
            stream.write_all(&buffer).unwrap();
        }
    });
    UnixStream::connect(path).unwrap()
}

fn main() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let spec = format!("{}:258MiB", folder.path().join("pool").display());
    let server = Embedded::start(&ServerConfig {
        socket: Some(folder.path().join("socket")),
        region_bytes: Some(8 << 20),
        populate: true,
        ..ServerConfig::new(PoolConfig::Temporary(spec.parse().unwrap()))
    })
    .unwrap();
    let endpoint = Endpoint::Unix(server.socket().unwrap().clone());
    let client = Client::connect(ClientConfig { endpoint, ..ClientConfig::default() }).unwrap();
    let names: Vec<String> =
        (0..128).map(|n| format!("meta-llama/Llama-3.1-8B@00000000@{n:064x}@0")).collect();
    let keys: Vec<Key<'_>> = names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();
    let content = vec![7; 1 << 20];
    for reserved in client.reserve(&keys, PAGE, Reserve::default()).unwrap() {
        let Reserved::Page(mut page) = reserved else { panic!("{reserved:?}") };
        page.copy_from(&content).unwrap();
        client.commit([page]).unwrap();
    }
    let mut echo = echo(&folder.path().join("echo"));
    let mut buffer = [0; 128];
    let mut ratios: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let bare = median(|| {
            echo.write_all(&buffer).unwrap();
            echo.read_exact(&mut buffer).unwrap();
        });
        // Held, so that the release is not in the measure of the acquire.
        let mut held = Vec::with_capacity(TURNS);
        let acquire = median(|| held.push(client.acquire(&keys[..1], Acquire::default()).unwrap()));
        for pages in held.drain(..) {
            client.release(pages.into_iter().flatten()).unwrap();
        }
        let batch = median(|| {
            let pages = client.acquire(&keys, Acquire::default()).unwrap();
            client.release(pages.into_iter().flatten()).unwrap();
        });
        let bare_us = bare.as_secs_f64() * 1e6;
        ratios[0].push(bare_us);
        ratios[1].push(acquire.as_secs_f64() / bare.as_secs_f64());
        ratios[2].push(batch.as_secs_f64() * 1e6 - 2.0 * bare_us);
        ratios[3].push(copies(&client, &keys));
    }
    let names = [
        "bare echo of 128 bytes, p50, us",
        "acquire of one key, in bare echoes",
        "acquire + release of 128 keys, us above 2 bare echoes",
        "reading 1 MiB pages, share of the speed of memcpy",
    ];
    for (name, ratios) in names.iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        let (low, high) = (ratios[0], ratios[ROUNDS - 1]);
        println!("{name:55} {:6.2} ({low:.2} to {high:.2})", ratios[ROUNDS / 2]);
    }
}

/// How fast pages are copied out of the pool, against the same copies between private buffers.
fn copies(client: &Client, keys: &[Key<'_>]) -> f64 {
    let private: Vec<Vec<u8>> = (0..keys.len()).map(|_| vec![7; 1 << 20]).collect();
    let mut out = vec![0; 1 << 20];
    let pages = client.acquire(keys, Acquire::default()).unwrap();
    let mut times = [Duration::ZERO; 2];
    for _ in 0..2 {
        for (page, private) in pages.iter().flatten().zip(&private) {
            let start = Instant::now();
            out.copy_from_slice(std::hint::black_box(private));
            times[0] += start.elapsed();
            let start = Instant::now();
            page.copy_to(std::hint::black_box(&mut out)).unwrap();
            times[1] += start.elapsed();
        }
    }
    client.release(pages.into_iter().flatten()).unwrap();
    times[0].as_secs_f64() / times[1].as_secs_f64()
}
