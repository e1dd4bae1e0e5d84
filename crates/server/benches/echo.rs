//! Which shape of server answers soonest? A ping-pong of 128 bytes over a Unix socket, against
//! blocking threads with a shared lock, one thread around `mio`, and tokio with one worker, taken
//! in turns in one run, on an idle machine and beside a thread that keeps a core awake.
//!
//! `cargo bench -p maru-server --bench echo`; the figures are in `docs/performance.md`.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A measurement that fails may stop.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MESSAGE: usize = 128;
const PINGS: usize = 3000;
const ROUNDS: usize = 7;

/// Starts a server of one shape on a socket.
type Shape = fn(&Path);

fn threads(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    let state = Arc::new(Mutex::new(0_u64));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, state) = (stream.unwrap(), Arc::clone(&state));
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(len @ 1..) = stream.read(&mut buffer) {
                    *state.lock().unwrap() += 1;
                    stream.write_all(&buffer[..len]).unwrap();
                }
            });
        }
    });
}

fn mio_loop(path: &Path) {
    use mio::{Events, Interest, Poll, Token, net};
    let mut listener = net::UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut poll = Poll::new().unwrap();
        poll.registry().register(&mut listener, Token(0), Interest::READABLE).unwrap();
        let mut events = Events::with_capacity(64);
        let mut streams: Vec<net::UnixStream> = Vec::new();
        let mut state = 0_u64;
        loop {
            poll.poll(&mut events, None).unwrap();
            for event in &events {
                if event.token() == Token(0) {
                    while let Ok((mut stream, _)) = listener.accept() {
                        let token = Token(streams.len() + 1);
                        poll.registry().register(&mut stream, token, Interest::READABLE).unwrap();
                        streams.push(stream);
                    }
                    continue;
                }
                let stream = &mut streams[event.token().0 - 1];
                let mut buffer = [0; 4096];
                loop {
                    match stream.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(len) => {
                            state += 1;
                            stream.write_all(&buffer[..len]).unwrap();
                            // A short read has drained the socket: the next byte is a new event.
                            if len < buffer.len() {
                                break;
                            }
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(_) => break,
                    }
                }
            }
            std::hint::black_box(state);
        }
    });
}

fn tokio_one_worker(path: &Path) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let path = path.to_owned();
    let (ready, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let listener = tokio::net::UnixListener::bind(path).unwrap();
            ready.send(()).unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::task::spawn_local(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                        stream.write_all(&buffer[..len]).await.unwrap();
                    }
                });
            }
        });
    });
    wait.recv().unwrap();
}

/// The median round trip in microseconds.
fn ping(stream: &mut UnixStream) -> f64 {
    let mut buffer = [7; MESSAGE];
    let mut times: Vec<Duration> = (0..PINGS)
        .map(|_| {
            let start = Instant::now();
            stream.write_all(&buffer).unwrap();
            stream.read_exact(&mut buffer).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[PINGS / 2].as_secs_f64() * 1e6
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let shapes: [(&str, Shape); 3] = [
        ("threads + lock", threads),
        ("mio, one thread", mio_loop),
        ("tokio, one worker", tokio_one_worker),
    ];
    let paths: Vec<PathBuf> = (0..3).map(|n| folder.path().join(n.to_string())).collect();
    let mut streams: Vec<UnixStream> = shapes
        .iter()
        .zip(&paths)
        .map(|((_, serve), path)| {
            serve(path);
            UnixStream::connect(path).unwrap()
        })
        .collect();
    for busy in [false, true] {
        let stop = Arc::new(AtomicBool::new(!busy));
        let spinner = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        });
        let mut medians = vec![Vec::new(); shapes.len()];
        for _ in 0..ROUNDS {
            for (stream, medians) in streams.iter_mut().zip(&mut medians) {
                medians.push(ping(stream));
            }
        }
        println!("{}", if busy { "beside a busy thread" } else { "idle" });
        for ((name, _), medians) in shapes.iter().zip(&mut medians) {
            medians.sort_by(f64::total_cmp);
            let (low, high) = (medians[0], medians[ROUNDS - 1]);
            println!("  {name:18} p50 {:6.1} us ({low:.1} to {high:.1})", medians[ROUNDS / 2]);
        }
        stop.store(true, Ordering::Relaxed);
        spinner.join().unwrap();
    }
}
