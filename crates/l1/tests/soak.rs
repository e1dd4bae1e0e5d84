//! Two shared managers in two processes, at random, against locks that run out: whatever is left
//! lying, the pool is whole afterwards. `MARU_SOAK_SECONDS` says for how long.

#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use maru_l1::{
    KvRank, L1Error, L1Manager, L1ManagerConfig, MaruL1Config, MaruL1Manager, MemoryLayoutDesc,
    ObjectKey, Write, WriteObject,
};
use maru_protocol::Endpoint;
use maru_testkit::TestPool;

/// Tells a process that it is one of the two: where the server is, its seed, and its seconds.
const ROLE: &str = "MARU_SOAK_ROLE";
const SECONDS: &str = "MARU_SOAK_SECONDS";

const KEYS: u64 = 96;
const PAGE: u64 = 16 << 10;
const THREADS: u64 = 3;

/// Locks run out while others still work.
const TTL: Duration = Duration::from_millis(150);

/// Numbers that look random and follow from a seed (`SplitMix64`).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % end
    }

    fn keys(&mut self) -> Vec<ObjectKey> {
        let count = 1 + self.below(6);
        (0..count).map(|_| key(self.below(KEYS))).collect()
    }
}

fn key(number: u64) -> ObjectKey {
    ObjectKey::new("soak", KvRank(0), &number.to_be_bytes(), 0, "").unwrap()
}

/// What every byte of a chunk is.
fn content(key: &ObjectKey) -> u8 {
    key.chunk_hash()[7].wrapping_mul(37) ^ 0x5a
}

/// One thread of one process. Returns how many chunks it read, all of them right.
fn work(manager: &MaruL1Manager, thread: u64, mut random: Random, end: Instant) -> u64 {
    let layout = MemoryLayoutDesc::opaque(PAGE).unwrap();
    let mut late: Vec<WriteObject> = Vec::new();
    let mut read = 0;
    while Instant::now() < end {
        // A tag is one writer: of two threads with one, either could finish what the other is at.
        let (keys, tag) = (random.keys(), format!("{thread}-{}", random.below(3)));
        match random.below(10) {
            0..=3 => {
                let temporary = random.below(4) == 0;
                let writes: Vec<Write> =
                    keys.iter().map(|key| Write { key: key.clone(), temporary }).collect();
                let reserved = manager.reserve_write(&writes, &layout, &tag);
                for (key, object) in keys.iter().zip(reserved) {
                    if let Ok(object) = object {
                        let filled = object.write(|bytes| bytes.fill(content(key)));
                        assert!(matches!(filled, Ok(()) | Err(L1Error::KeyInWrongState)));
                        late.push(object);
                    }
                }
                match random.below(5) {
                    0 => {
                        manager.finish_write_and_delete(&keys, &tag);
                    }
                    1 => {
                        let promoted = manager.finish_write_and_reserve_read(&keys, 2, &tag);
                        read += verify(&keys, &promoted);
                        manager.finish_read(&keys, 1 + u32::try_from(random.below(2)).unwrap());
                    }
                    // Left lying: its time runs out.
                    2 => {}
                    _ => {
                        manager.finish_write(&keys, &tag);
                    }
                }
            }
            4..=6 => {
                let objects = manager.reserve_read(&keys, 1);
                read += verify(&keys, &objects);
                verify(&keys, &manager.unsafe_read(&keys));
                if random.below(8) > 0 {
                    manager.finish_read(&keys, 1);
                }
            }
            7 => {
                manager.delete(&keys, random.below(6) == 0);
            }
            8 => manager.touch_keys(&keys),
            // A writer that comes too late changes nothing that anybody reads.
            _ => {
                for object in late.drain(..) {
                    let _ = object.write(|bytes| bytes.len());
                }
            }
        }
        late.truncate(64);
    }
    read
}

/// Every chunk that is read, and was so all the time, is its key's. Panics otherwise.
fn verify(keys: &[ObjectKey], objects: &[Result<maru_l1::ReadObject, L1Error>]) -> u64 {
    let mut read = 0;
    for (key, object) in keys.iter().zip(objects) {
        let Ok(object) = object else {
            continue;
        };
        let right = content(key);
        let wrong = object.read(|bytes| bytes.iter().filter(|byte| **byte != right).count());
        match wrong {
            Ok(wrong) => assert_eq!(wrong, 0, "wrong bytes in {key}"),
            Err(error) => assert_eq!(error, L1Error::KeyNotReadable),
        }
        read += u64::from(wrong.is_ok());
    }
    read
}

/// One of the two processes: works, says so, and waits with its manager open.
fn run(role: &str) {
    let mut words = role.split_whitespace();
    let mut word = || words.next().unwrap();
    let server: Endpoint = word().parse().unwrap();
    let (seed, seconds): (u64, u64) = (word().parse().unwrap(), word().parse().unwrap());
    let instance = Some(format!("soak-{seed}"));
    let maru = MaruL1Config { instance, ..MaruL1Config::new(server) };
    let config = L1ManagerConfig {
        maru: Some(maru),
        write_ttl: TTL,
        read_ttl: TTL,
        ..L1ManagerConfig::default()
    };
    let manager = MaruL1Manager::new(config).unwrap();
    let end = Instant::now() + Duration::from_secs(seconds);
    let read: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (manager, random) = (&manager, Random(seed << 32 | thread));
                scope.spawn(move || work(manager, thread, random, end))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    // The test harness has a line open.
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "\nread {read}").unwrap();
    stdout.flush().unwrap();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    manager.close();
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "two_processes_leave_nothing_behind", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, stdin, stdout: BufReader::new(stdout) }
    }

    /// Waits until it has done its work; says how many chunks it read.
    fn done(&mut self) -> u64 {
        let mut lines = self.stdout.by_ref().lines().map_while(Result::ok);
        let read = lines.find_map(|line| line.strip_prefix("read ")?.parse().ok());
        read.expect("the process has failed: see above")
    }

    fn end(mut self) {
        drop(self.stdin);
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn two_processes_leave_nothing_behind() {
    if let Ok(role) = std::env::var(ROLE) {
        return run(&role);
    }
    let seconds = std::env::var(SECONDS).map_or(4, |seconds| seconds.parse().unwrap());
    // Less room than there are keys: the server evicts all the time.
    let pool = TestPool::start((2 << 20) + (KEYS - KEYS / 4) * PAGE);
    let mut processes: Vec<Process> = (1..=2)
        .map(|seed| Process::start(&format!("{} {seed} {seconds}", pool.endpoint())))
        .collect();
    let read: u64 = processes.iter_mut().map(Process::done).sum();
    // Both are still there: what they left lying was given back because its time was over.
    pool.assert_nothing_left();
    let stats = pool.stats();
    assert_eq!(stats.counters.sessions_dropped + stats.counters.sessions_expired, 0);
    processes.into_iter().for_each(Process::end);
    pool.assert_nothing_left();
    let counters = stats.counters;
    println!(
        "{seconds} s: {read} chunks read and right, {} committed, {} superseded, {} aborted, {} \
         evicted, {} deleted; nothing left",
        counters.committed,
        counters.superseded,
        counters.aborted,
        counters.evicted(),
        counters.deleted,
    );
    assert!(read > 0 && counters.committed > 0 && counters.deleted > 0);
}
