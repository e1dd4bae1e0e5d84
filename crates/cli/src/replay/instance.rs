//! One instance of a replay, in a process of its own. On stdin it gets its [`Order`], then a request's
//! blocks a line; it answers a line on stdout, and at the end tells what its books say.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use maru_l1::{
    EvictionController, L1Error, L1Manager, LocalL1Manager, MaruL1Manager, MemoryLayoutDesc,
    ObjectKey, Outcomes, ReadObject, Write, WriteObject,
};
use maru_memory::checksum;
use serde::{Deserialize, Serialize};

use super::block::Blocks;
use super::order::Order;

/// Blocks reserved and finished together. A larger batch would save little, and in a small L1 find no
/// room, since memory is granted to a batch or not at all.
const STORE_BATCH: usize = 64;

/// Tells writers of one manager apart; here there is one.
const TAG: &str = "replay";

/// What one request came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) blocks: u64,
    pub(crate) hit: u64,
    pub(crate) stored: u64,
    /// Blocks that were there already.
    pub(crate) not_stored_again: u64,
    pub(crate) without_memory: u64,
    pub(crate) bytes_verified: u64,
    pub(crate) wrong_bytes: u64,
    /// Time of copying out of and into L1, alone.
    pub(crate) read_ns: u64,
    pub(crate) write_ns: u64,
    /// Bytes in use afterwards, of a private L1; a shared one's server knows.
    pub(crate) used_bytes: u64,
}

/// What the instance's own books say at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Books {
    pub(crate) latencies: LatencyBuckets,
    /// Chunks that this instance evicted.
    pub(crate) evicted: u64,
    pub(crate) pins_left: u64,
    pub(crate) reservations_left: u64,
    pub(crate) pages_lost: u64,
}

/// Calls in nanoseconds: how many took how long.
pub(crate) type LatencyBuckets = BTreeMap<String, Vec<(u64, u64)>>;

/// A latency of up to a minute, to two significant figures.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 60_000_000_000, 2).expect("the bounds are constants, and good")
}

/// Serves requests until stdin ends.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut lines = std::io::stdin().lock().lines();
    let order = lines.next().context("no order on stdin: `maru replay` starts its instances")??;
    let mut instance = Instance::start(serde_json::from_str(&order)?)?;
    let mut stdout = std::io::stdout().lock();
    // Tells the parent that this instance is ready.
    writeln!(stdout, "{}", serde_json::to_string(&Outcome::default())?)?;
    for line in lines {
        let blocks: Vec<u64> = serde_json::from_str(&line?)?;
        let outcome = instance.request(&blocks)?;
        writeln!(stdout, "{}", serde_json::to_string(&outcome)?)?;
    }
    writeln!(stdout, "{}", serde_json::to_string(&instance.end())?)?;
    Ok(())
}

struct Instance {
    l1: Arc<dyn L1Manager>,
    eviction: EvictionController,
    /// Nobody else has anything in this L1.
    is_private: bool,
    capacity_bytes: u64,
    layout: MemoryLayoutDesc,
    /// What a block takes up, in bytes.
    page_bytes: u64,
    blocks: Blocks,
    buffer: Vec<u8>,
    latencies: BTreeMap<&'static str, Histogram<u64>>,
    /// What is acknowledged is written down here.
    ledger: Option<File>,
}

impl Instance {
    fn start(order: Order) -> anyhow::Result<Self> {
        let (is_private, eviction) = (order.l1.maru.is_none(), order.l1.eviction);
        let l1: Arc<dyn L1Manager> = if is_private {
            Arc::new(LocalL1Manager::new(order.l1)?)
        } else {
            Arc::new(MaruL1Manager::new(order.l1)?)
        };
        let memory = l1.memory_desc().context("the L1 has no memory")?;
        Ok(Self {
            eviction: EvictionController::new(Arc::clone(&l1), eviction),
            is_private,
            capacity_bytes: l1.capacity_bytes_by_backend().values().sum(),
            l1,
            layout: MemoryLayoutDesc::opaque(order.page_bytes)?,
            page_bytes: order.page_bytes.next_multiple_of(memory.align_bytes),
            blocks: Blocks::new(&order.run, order.seed),
            buffer: vec![0; usize::try_from(order.page_bytes).context("the page is too large")?],
            latencies: BTreeMap::new(),
            ledger: order
                .ledger
                .map(File::create_new)
                .transpose()
                .context("cannot make a ledger")?,
        })
    }

    fn timed<T>(&mut self, name: &'static str, ask: impl FnOnce(&dyn L1Manager) -> T) -> T {
        let start = Instant::now();
        let result = ask(&*self.l1);
        let ns = nanos(start.elapsed());
        self.latencies.entry(name).or_insert_with(histogram).saturating_record(ns);
        result
    }

    /// Serves one request as an inference engine would: takes what is cached of its prefix, computes
    /// the rest, and stores that.
    fn request(&mut self, blocks: &[u64]) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome { blocks: blocks.len() as u64, ..Outcome::default() };
        let keys = blocks.iter().map(|block| self.blocks.key(*block));
        let keys: Vec<ObjectKey> = keys.collect::<Result<_, _>>()?;
        let hit = self.read_prefix(blocks, &keys, &mut outcome);
        outcome.hit = hit as u64;
        let rest = blocks[hit..].chunks(STORE_BATCH).zip(keys[hit..].chunks(STORE_BATCH));
        for (blocks, keys) in rest {
            self.store(blocks, keys, &mut outcome)?;
        }
        if self.is_private {
            outcome.used_bytes = self.l1.memory_usage().used_bytes;
        }
        Ok(outcome)
    }

    /// Locks the longest present prefix. As LMCache does, asks for all keys at once, and lets go of
    /// those behind the first miss.
    fn reserve_prefix(&mut self, keys: &[ObjectKey]) -> Vec<ReadObject> {
        if keys.is_empty() {
            return Vec::new();
        }
        let found = self.timed("reserve_read", |l1| l1.reserve_read(keys, 1));
        let hit = found.iter().take_while(|found| found.is_ok()).count();
        let behind = keys[hit..].iter().zip(&found[hit..]).filter(|(_, found)| found.is_ok());
        let behind: Vec<ObjectKey> = behind.map(|(key, _)| key.clone()).collect();
        if !behind.is_empty() {
            self.timed("finish_read", |l1| l1.finish_read(&behind, 1));
        }
        found.into_iter().map_while(Result::ok).collect()
    }

    /// Reads and verifies the longest present prefix; returns its length in blocks.
    fn read_prefix(&mut self, blocks: &[u64], keys: &[ObjectKey], outcome: &mut Outcome) -> usize {
        let chunks = self.reserve_prefix(keys);
        if chunks.is_empty() {
            return 0;
        }
        let keys = &keys[..chunks.len()];
        let mut protected = true;
        for (block, chunk) in blocks.iter().zip(&chunks) {
            let start = Instant::now();
            let buffer = &mut self.buffer;
            let copied = chunk.read(|bytes| {
                let whole = bytes.len() == buffer.len();
                if whole {
                    buffer.copy_from_slice(bytes);
                }
                whole
            });
            outcome.read_ns += nanos(start.elapsed());
            let Ok(whole) = copied else {
                protected = false;
                break;
            };
            let bytes = self.layout.bytes();
            outcome.bytes_verified += bytes;
            outcome.wrong_bytes +=
                if whole { self.blocks.wrong_bytes(*block, &self.buffer) } else { bytes };
        }
        self.l1.touch_keys(keys);
        let finished = self.timed("finish_read", |l1| l1.finish_read(keys, 1));
        // What was not protected all the time does not count.
        if protected && finished.iter().all(Result::is_ok) { keys.len() } else { 0 }
    }

    fn store(
        &mut self,
        blocks: &[u64],
        keys: &[ObjectKey],
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let staged = self.reserve_write(keys);
        let (mut written, mut checksums): (Vec<ObjectKey>, Vec<u64>) = Default::default();
        for ((block, key), staged) in blocks.iter().zip(keys).zip(staged) {
            match staged {
                Ok(chunk) => {
                    self.blocks.fill(*block, &mut self.buffer);
                    let start = Instant::now();
                    // One that is not ours any more cannot be finished, either.
                    let _ = chunk.write(|bytes| bytes.copy_from_slice(&self.buffer));
                    outcome.write_ns += nanos(start.elapsed());
                    written.push(key.clone());
                    if self.ledger.is_some() {
                        checksums.push(checksum(&self.buffer));
                    }
                }
                Err(L1Error::OutOfMemory) => outcome.without_memory += 1,
                Err(_) => outcome.not_stored_again += 1,
            }
        }
        if written.is_empty() {
            return Ok(());
        }
        let finished = self.timed("finish_write", |l1| l1.finish_write(&written, TAG));
        // Of the others nobody knows whether they are stored; nothing wrong can come of it.
        outcome.stored += finished.iter().filter(|finished| finished.is_ok()).count() as u64;
        self.write_down(written.iter().zip(&checksums).zip(&finished))
    }

    /// Notes in the ledger, if there is one, which of these blocks are stored for certain.
    fn write_down<'a>(
        &mut self,
        finished: impl Iterator<Item = ((&'a ObjectKey, &'a u64), &'a Result<(), L1Error>)>,
    ) -> anyhow::Result<()> {
        let Some(ledger) = &mut self.ledger else { return Ok(()) };
        let mut lines = String::new();
        for ((key, checksum), _) in finished.filter(|(_, finished)| finished.is_ok()) {
            let _ = writeln!(lines, "{checksum:016x} {key}");
        }
        ledger.write_all(lines.as_bytes()).context("cannot write into the ledger")
    }

    /// Stages all of these blocks. Where L1 is full, makes room and asks once more.
    fn reserve_write(&mut self, keys: &[ObjectKey]) -> Outcomes<WriteObject> {
        let mut staged = self.stage(keys);
        let is_refused = |staged: &Result<_, _>| matches!(staged, Err(L1Error::OutOfMemory));
        let refused = keys.iter().zip(&staged).filter(|(_, staged)| is_refused(staged));
        let refused: Vec<ObjectKey> = refused.map(|(key, _)| key.clone()).collect();
        if !refused.is_empty() && self.make_room(refused.len() as u64) {
            let mut again = self.stage(&refused).into_iter();
            for staged in staged.iter_mut().filter(|staged| is_refused(staged)) {
                *staged = again.next().unwrap_or(Err(L1Error::OutOfMemory));
            }
        }
        staged
    }

    fn stage(&mut self, keys: &[ObjectKey]) -> Outcomes<WriteObject> {
        let writes: Vec<Write> = keys.iter().cloned().map(Write::retained).collect();
        let layout = self.layout.clone();
        self.timed("reserve_write", |l1| l1.reserve_write(&writes, &layout, TAG))
    }

    /// Evicts what so many pages lack, and no more; of a shared L1 nothing, its server does. LMCache's
    /// own way, to look at a watermark once a second, would come too late at this pace.
    fn make_room(&self, pages: u64) -> bool {
        let free = self.capacity_bytes.saturating_sub(self.l1.memory_usage().used_bytes);
        let lacking = pages.saturating_sub(free / self.page_bytes);
        let fits = pages.saturating_mul(self.page_bytes) <= self.capacity_bytes;
        let Some(count) = usize::try_from(lacking).ok().filter(|count| fits && *count > 0) else {
            return false;
        };
        self.eviction.make_room(count) > 0
    }

    /// Closes the books.
    fn end(self) -> Books {
        let status = self.l1.report_status();
        let mut books = Books {
            evicted: self.eviction.status().evicted,
            pins_left: status.read_locked_count,
            reservations_left: status.staging_object_count,
            ..Books::default()
        };
        if self.is_private {
            self.l1.clear(false);
            let lost = self.l1.memory_usage().used_bytes.div_ceil(self.page_bytes);
            books.pages_lost = lost.max(u64::from(!status.is_healthy));
        }
        // Says goodbye before the parent counts.
        self.l1.close();
        for (name, histogram) in self.latencies {
            let steps = histogram.iter_recorded();
            let buckets = steps.map(|step| (step.value_iterated_to(), step.count_at_value()));
            books.latencies.insert(name.to_owned(), buckets.collect());
        }
        books
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
