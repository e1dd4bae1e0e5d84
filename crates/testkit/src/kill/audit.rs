//! Whether what was acknowledged is there, and right.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Instant;

use maru_client::{Acquire, Client, Committed, PinnedPage, Reserve, Reserved};
use maru_memory::checksum;
use maru_protocol::{Key, SessionInfo, Stats};

use super::{Figures, millis};
use crate::{Serving, wait_until};

/// Chunks looked for in one request.
const BATCH: usize = 1024;

/// Instances of a replay.
const INSTANCES: usize = 4;

/// A region has more pages.
const STEP: usize = 256;

/// Chunks that stay pinned from one look to the next.
const HELD: usize = 16;

/// A reader beside the instances, which outlives the servers as they do.
#[derive(Debug)]
pub(super) struct Auditor {
    pub(super) client: Client,
    /// Nothing is ever evicted, so whatever was acknowledged must be there.
    all_there: bool,
    /// How far each ledger was read.
    ledgers: BTreeMap<PathBuf, u64>,
    /// The checksums of what was acknowledged, by key.
    acknowledged: BTreeMap<String, u64>,
    held: Vec<(PinnedPage, u64)>,
}

impl Auditor {
    pub(super) fn new(serving: &Serving, all_there: bool) -> Self {
        let (ledgers, acknowledged) = Default::default();
        let client = serving.client();
        Self { client, all_there, ledgers, acknowledged, held: Vec::new() }
    }

    /// Stores a chunk in each region, so that all are cut for this page size: what is vacant after a
    /// restart could then be somebody's, and is granted only once all have come back.
    pub(super) fn cut_all(&mut self, page_bytes: u64) {
        let mut spare = Vec::new();
        for batch in 0.. {
            let name = |n| format!("cut@00000000@{:016x}@0", batch * BATCH + n);
            let names: Vec<String> = (0..BATCH).map(name).collect();
            let keys = names.iter().map(|name| Key::new(name.as_bytes()).expect("it is short"));
            let keys: Vec<Key<'_>> = keys.collect();
            let reserved = self.client.reserve(&keys, page_bytes, Reserve::default());
            for (index, reserved) in reserved.expect("the server answers").into_iter().enumerate() {
                let Reserved::Page(mut page) = reserved else { return };
                if index % STEP > 0 {
                    spare.push(page);
                    continue;
                }
                page.bytes_mut().fill(7);
                self.acknowledged.insert(names[index].clone(), checksum(page.bytes_mut()));
                let committed = self.client.commit([page]).expect("the server answers");
                assert!(matches!(committed[..], [Committed::Stored(_)]), "{committed:?}");
            }
        }
    }

    /// Forgets the acknowledged chunks, and what it holds.
    pub(super) fn forget(&mut self) {
        self.acknowledged.clear();
        self.held.clear();
    }

    /// Reads what the instances have written down since.
    pub(super) fn read_ledgers(&mut self, folder: &Path) {
        for ledger in fs::read_dir(folder).expect("the ledgers are there") {
            let path = ledger.expect("the ledgers are there").path();
            let read = self.ledgers.entry(path.clone()).or_default();
            let mut text = String::new();
            let mut file = File::open(path).expect("a ledger can be read");
            file.seek(SeekFrom::Start(*read)).expect("a ledger can be read");
            file.read_to_string(&mut text).expect("a ledger is text");
            // Whoever was killed while it wrote does not know of the last line.
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            *read += whole as u64;
            for line in text[..whole].lines() {
                let (checksum, key) = line.split_once(' ').expect("a line has two words");
                let checksum = u64::from_str_radix(checksum, 16).expect("the first is a number");
                self.acknowledged.insert(key.to_owned(), checksum);
            }
        }
    }

    /// After a server was started at `started`, and not yet asked anything: what was acknowledged is
    /// there, and who lives comes back.
    #[track_caller]
    pub(super) fn check(&mut self, started: Instant, return_first: bool, figures: &mut Figures) {
        self.stats();
        figures.slowest_answer_ms = figures.slowest_answer_ms.max(millis(started.elapsed()));
        if return_first {
            self.wait_for_return(started, figures);
        }
        self.check_all(figures);
        self.wait_for_return(started, figures);
    }

    /// Waits until all sessions of before the restart have said what they hold, or are over.
    fn wait_for_return(&self, started: Instant, figures: &mut Figures) {
        let mut stats = self.stats();
        wait_until("all who live come back", || {
            stats = self.stats();
            stats.sessions_awaited == 0
        });
        let is_instance = |one: &&SessionInfo| one.connected && one.instance.contains("-shared-");
        // At the end of a replay, some have gone for good.
        if stats.sessions.iter().filter(is_instance).count() == INSTANCES {
            figures.slowest_return_ms = figures.slowest_return_ms.max(millis(started.elapsed()));
        }
    }

    /// What was pinned all the time is still protected, what was acknowledged is there, and no rule
    /// is broken.
    #[track_caller]
    pub(super) fn check_all(&mut self, figures: &mut Figures) {
        for (page, checksum) in std::mem::take(&mut self.held) {
            check_page(&page, "a pinned chunk", checksum, figures);
        }
        self.read_back(figures);
        let stats = self.stats();
        let evicted = stats.counters.evicted();
        assert_eq!(stats.counters.rule_violations, 0, "a rule is broken: {stats:#?}");
        assert_eq!(stats.lost_bytes(), 0, "{stats:#?}");
        assert!(!self.all_there || evicted == 0, "there is room for all, yet {evicted} left");
    }

    #[track_caller]
    fn stats(&self) -> Stats {
        self.client.stats().expect("the server answers")
    }

    /// Reads all that was acknowledged, and holds on to some of it.
    #[track_caller]
    fn read_back(&mut self, figures: &mut Figures) {
        let all: Vec<(&String, &u64)> = self.acknowledged.iter().collect();
        for part in all.chunks(BATCH) {
            let keys = part.iter().map(|(key, _)| Key::new(key.as_bytes()).expect("it was one"));
            let found = self.client.acquire(&keys.collect::<Vec<_>>(), Acquire::default());
            let found = found.expect("the server answers");
            for ((key, checksum), page) in part.iter().zip(found) {
                let Some(page) = page else {
                    assert!(!self.all_there, "{key} was acknowledged, and is lost");
                    continue;
                };
                check_page(&page, key, **checksum, figures);
                if self.held.len() < HELD {
                    self.held.push((page, **checksum));
                }
            }
        }
    }
}

#[track_caller]
fn check_page(page: &PinnedPage, key: &str, expected: u64, figures: &mut Figures) {
    let mut bytes = vec![0; page.bytes().len()];
    page.copy_to(&mut bytes).expect("it is pinned");
    assert_eq!(checksum(&bytes), expected, "{key}: wrong bytes at {:?}", page.location());
    figures.entries_checked += 1;
    figures.bytes_verified += bytes.len() as u64;
}
