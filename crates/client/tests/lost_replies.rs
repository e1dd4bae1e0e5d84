//! A long random session twice: once as it is, once with the reply to every request lost, so that each
//! is sent again. Whoever looks afterwards cannot tell which was which.
#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

use std::collections::BTreeMap;

use fastrand::Rng;
use maru_client::{
    Acquire, Client, ClientConfig, Committed, PinnedPage, Promoted, Reserve, Reserved, ReservedPage,
};
use maru_protocol::{Counters, Key};
use maru_testkit::{ANY, Fault, FaultProxy, TestPool};

const POOL: u64 = 6 << 20;
/// Two sizes, so that regions change theirs.
const PAGES: [u64; 2] = [64 << 10, 256 << 10];
const KEYS: u64 = 48;
const STEPS: usize = 600;

/// What everybody was answered, and what is there at the end.
#[derive(Debug, PartialEq, Eq)]
struct Course {
    answers: Vec<String>,
    left: Vec<String>,
    counters: Counters,
}

#[test]
fn every_reply_of_a_long_session_is_lost_and_nothing_differs() {
    for seed in 0..3 {
        let (quiet, _) = course(seed, false);
        let (lossy, replays) = course(seed, true);
        let steps = quiet.answers.iter().zip(&lossy.answers).enumerate();
        for (step, (quiet, lossy)) in steps {
            assert_eq!(quiet, lossy, "seed {seed}, step {step}");
        }
        assert_eq!(quiet, lossy, "seed {seed}");
        let counters = quiet.counters;
        let happened = [
            counters.superseded,
            counters.aborted,
            counters.deleted,
            counters.evicted_for_room,
            counters.refused_out_of_memory,
        ];
        assert!(happened.iter().all(|times| *times > 0), "seed {seed}: {counters:?}");
        assert!(replays > STEPS as u64 / 2, "seed {seed}: {replays} replays");
    }
}

/// Two instances, one after the other at random. Also returns how many requests came again.
fn course(seed: u64, lose: bool) -> (Course, u64) {
    let pool = TestPool::start_with(POOL, |config| {
        // Evicts when there is no room, and not when there is time.
        config.directory.watermark_high_permille = 1000;
        config.directory.watermark_low_permille = 1000;
    });
    let proxy = FaultProxy::start(pool.socket());
    if lose {
        proxy.inject(ANY, Fault::LoseReply, u32::MAX);
    }
    let connect = |name| {
        let endpoint = proxy.endpoint();
        Client::connect(ClientConfig { endpoint, ..pool.config(name) }).unwrap()
    };
    let names: Vec<String> = (0..KEYS).map(|n| format!("model@00000000@{n:064x}@0")).collect();
    let mut instances = ["a", "b"].map(|name| Holder {
        client: connect(name),
        names: &names,
        writing: Vec::new(),
        reading: Vec::new(),
    });
    let mut rng = Rng::with_seed(seed);
    let answers = (0..STEPS).map(|_| instances[rng.usize(0..2)].step(&mut rng)).collect();
    let watcher = pool.client("watcher");
    let left = what_is_there(&watcher);
    let stats = watcher.stats().unwrap();
    let replays = stats.counters.replays;
    // How often somebody asked, and how much time passed, is not what came of it.
    let counters = Counters { requests: 0, replays: 0, rule_checks: 0, ..stats.counters };
    (Course { answers, left, counters }, replays)
}

/// Entries, holdings and regions, each in words without times and names that differ from run to run.
fn what_is_there(watcher: &Client) -> Vec<String> {
    let entries = watcher.list(b"", 0, 1000).unwrap().entries.into_iter();
    let mut there: Vec<String> = entries
        .map(|entry| {
            let (key, at) = (String::from_utf8_lossy(&entry.key).into_owned(), entry.location);
            let (offset, length) = (at.handle.offset, at.length);
            format!("{key} {offset} {length} by {} pinned {}", entry.writer, entry.pins)
        })
        .collect();
    let holders = watcher.holders(0, 1000).unwrap().holders.into_iter();
    there.extend(holders.map(|held| {
        let (key, offset) = (String::from_utf8_lossy(&held.key), held.location.handle.offset);
        format!("{} holds {:?} of {key} at {offset}", held.instance, held.kind)
    }));
    there.sort();
    there.extend(watcher.regions().unwrap().iter().map(|region| format!("{region:?}")));
    there
}

/// An instance, and what it holds.
struct Holder<'a> {
    client: Client,
    names: &'a [String],
    writing: Vec<ReservedPage>,
    reading: Vec<PinnedPage>,
}

impl Holder<'_> {
    /// Does one thing; what was answered.
    fn step(&mut self, rng: &mut Rng) -> String {
        let mut keys: Vec<Key<'_>> = Vec::new();
        for _ in 0..rng.usize(1..6) {
            let key = Key::new(self.names[rng.usize(0..self.names.len())].as_bytes()).unwrap();
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let answer = match rng.u8(0..20) {
            0..5 => {
                let how = Reserve { tag: rng.u64(0..2), unless_being_written: rng.bool() };
                let answered = self.client.reserve(&keys, *rng.choice(&PAGES).unwrap(), how);
                let answered = answered.unwrap().into_iter().map(|one| self.granted(one, rng));
                answered.collect::<Vec<_>>().join(" ")
            }
            5..8 => {
                let pages = some(&mut self.writing, rng);
                let committed = self.client.commit(pages).unwrap();
                format!("{:?}", committed.into_iter().map(whereabouts).collect::<Vec<_>>())
            }
            8..10 => {
                let pages = some(&mut self.writing, rng);
                let promoted = self.client.commit_and_acquire(pages).unwrap();
                let promoted = promoted.into_iter().map(|one| one.map(|one| self.promoted(one)));
                format!("{:?}", promoted.collect::<Vec<_>>())
            }
            10 => format!("aborts {}", some(&mut self.writing, rng).len()),
            11..14 => {
                let how = Acquire { stop_at_miss: rng.bool() };
                let found = self.client.acquire(&keys, how).unwrap();
                let found = found.into_iter().map(|page| page.map(|page| self.pinned(page)));
                format!("{:?}", found.collect::<Vec<_>>())
            }
            14..17 => {
                let pages = some(&mut self.reading, rng);
                let offsets =
                    pages.iter().map(|page| page.location().handle.offset).collect::<Vec<_>>();
                self.client.release(pages).unwrap();
                format!("releases {offsets:?}")
            }
            17 => format!("drops {}", some(&mut self.reading, rng).len()),
            18 => format!("{:?}", self.client.touch(&keys).unwrap()),
            _ => format!("{:?}", self.client.delete(&keys).unwrap()),
        };
        // What was dropped is given back now, not some time.
        self.client.flush().unwrap();
        answer
    }

    fn granted(&mut self, reserved: Reserved, rng: &mut Rng) -> String {
        let Reserved::Page(mut page) = reserved else {
            return format!("{reserved:?}");
        };
        page.bytes_mut().fill(rng.u8(..));
        let offset = page.location().handle.offset;
        self.writing.push(page);
        format!("granted {offset}")
    }

    fn promoted(&mut self, promoted: Promoted) -> String {
        format!("superseded {} {}", promoted.superseded, self.pinned(promoted.page))
    }

    /// Where the chunk lies and what its bytes are.
    fn pinned(&mut self, page: PinnedPage) -> String {
        let mut bytes = BTreeMap::<u8, usize>::new();
        page.bytes().iter().for_each(|byte| *bytes.entry(*byte).or_default() += 1);
        let pinned = format!("{} holds {bytes:?}", page.location().handle.offset);
        self.reading.push(page);
        pinned
    }
}

/// Takes some of them away.
fn some<T>(of: &mut Vec<T>, rng: &mut Rng) -> Vec<T> {
    rng.shuffle(of);
    of.split_off(rng.usize(0..=of.len()))
}

fn whereabouts(committed: Committed) -> String {
    match committed {
        Committed::Stored(at) => format!("stored {} {}", at.handle.offset, at.length),
        Committed::Superseded(at) => format!("superseded {} {}", at.handle.offset, at.length),
        Committed::NotReserved | Committed::Unwritable => format!("{committed:?}"),
    }
}
