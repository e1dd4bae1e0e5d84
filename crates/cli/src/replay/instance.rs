//! One instance of a replay, in a process of its own. It gets a request's blocks a line on stdin,
//! answers a line on stdout, and at the end tells the latencies it saw.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use hdrhistogram::Histogram;
use maru_client::{
    Acquire, Client, ClientConfig, ClientError, Committed, Reserve, Reserved, ReservedPage,
};
use maru_protocol::{Endpoint, Key};
use serde::{Deserialize, Serialize};

use super::block::Blocks;

/// Blocks reserved and committed together. A larger batch would save little, and on a small pool
/// find no room, since memory is granted to a batch or not at all.
const STORE_BATCH: usize = 64;

/// One instance of a replay.
#[derive(Debug, Args)]
pub(crate) struct ReplayInstance {
    #[arg(long)]
    server: Endpoint,
    #[arg(long)]
    instance: String,
    #[arg(long)]
    run: String,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    page_bytes: u64,
}

/// What one request came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) blocks: u64,
    pub(crate) hit: u64,
    pub(crate) stored: u64,
    /// Blocks that were there already, or that somebody else was writing.
    pub(crate) not_stored_again: u64,
    pub(crate) without_memory: u64,
    pub(crate) bytes_verified: u64,
    pub(crate) wrong_bytes: u64,
    /// Time of copying out of and into the pool, alone.
    pub(crate) read_ns: u64,
    pub(crate) write_ns: u64,
}

/// Round trips in nanoseconds: how many took how long.
pub(crate) type LatencyBuckets = BTreeMap<String, Vec<(u64, u64)>>;

/// A latency of up to a minute, to two significant figures.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 60_000_000_000, 2).expect("the bounds are constants, and good")
}

impl ReplayInstance {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let config = ClientConfig {
            endpoint: self.server,
            instance: self.instance,
            ..ClientConfig::default()
        };
        let page = usize::try_from(self.page_bytes).context("the page is too large")?;
        let mut instance = Instance {
            client: Client::connect(config)?,
            blocks: Blocks::new(self.run, self.seed),
            page_bytes: self.page_bytes,
            buffer: vec![0; page],
            latencies: BTreeMap::new(),
        };
        let mut stdout = std::io::stdout().lock();
        // Tells the parent that this instance is ready.
        writeln!(stdout, "{}", serde_json::to_string(&Outcome::default())?)?;
        for line in std::io::stdin().lock().lines() {
            let blocks: Vec<u64> = serde_json::from_str(&line?)?;
            let outcome = instance.request(&blocks)?;
            writeln!(stdout, "{}", serde_json::to_string(&outcome)?)?;
        }
        // Flushes what was dropped and says goodbye before the parent counts.
        drop(instance.client);
        let buckets: LatencyBuckets = instance
            .latencies
            .into_iter()
            .map(|(name, histogram)| {
                let buckets = histogram
                    .iter_recorded()
                    .map(|step| (step.value_iterated_to(), step.count_at_value()));
                (name.to_owned(), buckets.collect())
            })
            .collect();
        writeln!(stdout, "{}", serde_json::to_string(&buckets)?)?;
        Ok(())
    }
}

struct Instance {
    client: Client,
    blocks: Blocks,
    page_bytes: u64,
    buffer: Vec<u8>,
    latencies: BTreeMap<&'static str, Histogram<u64>>,
}

impl Instance {
    fn timed<T>(
        &mut self,
        name: &'static str,
        ask: impl FnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let start = Instant::now();
        let result = ask(&self.client)?;
        let ns = nanos(start.elapsed());
        self.latencies.entry(name).or_insert_with(histogram).saturating_record(ns);
        Ok(result)
    }

    /// Serves one request as an inference engine would: takes what is cached of its prefix, computes
    /// the rest, and stores that.
    fn request(&mut self, blocks: &[u64]) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome { blocks: blocks.len() as u64, ..Outcome::default() };
        let names: Vec<String> = blocks.iter().map(|block| self.blocks.key(*block)).collect();
        let keys: Vec<Key<'_>> =
            names.iter().map(|name| Key::new(name.as_bytes())).collect::<Result<_, _>>()?;
        let hit = self.read_prefix(blocks, &keys, &mut outcome)?;
        outcome.hit = hit as u64;
        let rest = blocks[hit..].chunks(STORE_BATCH).zip(keys[hit..].chunks(STORE_BATCH));
        for (blocks, keys) in rest {
            self.store(blocks, keys, &mut outcome)?;
        }
        Ok(outcome)
    }

    /// Reads and verifies the longest present prefix; returns its length in blocks.
    fn read_prefix(
        &mut self,
        blocks: &[u64],
        keys: &[Key<'_>],
        outcome: &mut Outcome,
    ) -> anyhow::Result<usize> {
        let how = Acquire { stop_at_miss: true };
        let pages = self.timed("acquire", |client| client.acquire(keys, how))?;
        if pages.is_empty() {
            return Ok(0);
        }
        let mut protected = true;
        for (block, page) in blocks.iter().zip(pages.iter().flatten()) {
            let start = Instant::now();
            match page.copy_to(&mut self.buffer) {
                Ok(()) => {}
                Err(ClientError::Stale) => protected = false,
                Err(error) => return Err(error.into()),
            }
            outcome.read_ns += nanos(start.elapsed());
            if protected {
                outcome.bytes_verified += self.page_bytes;
                outcome.wrong_bytes += self.blocks.wrong_bytes(*block, &self.buffer);
            }
        }
        let hit = pages.len();
        let pages = pages.into_iter().flatten();
        match self.timed("release", |client| client.release(pages)) {
            Ok(()) if protected => Ok(hit),
            // The session was lost on the way: what was read does not count.
            Ok(()) | Err(ClientError::Stale) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn store(
        &mut self,
        blocks: &[u64],
        keys: &[Key<'_>],
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let how = Reserve { unless_being_written: true, ..Reserve::default() };
        let page_bytes = self.page_bytes;
        let reserved = self.timed("reserve", |client| client.reserve(keys, page_bytes, how))?;
        let mut written: Vec<ReservedPage> = Vec::new();
        for (block, reserved) in blocks.iter().zip(reserved) {
            match reserved {
                Reserved::Page(mut page) => {
                    self.blocks.fill(*block, &mut self.buffer);
                    let start = Instant::now();
                    page.copy_from(&self.buffer)?;
                    outcome.write_ns += nanos(start.elapsed());
                    written.push(page);
                }
                Reserved::Resident | Reserved::BeingWritten | Reserved::AlreadyReserved => {
                    outcome.not_stored_again += 1;
                }
                Reserved::OutOfMemory | Reserved::OverBudget => outcome.without_memory += 1,
            }
        }
        if written.is_empty() {
            return Ok(());
        }
        let committed = match self.timed("commit", |client| client.commit(written)) {
            Ok(committed) => committed,
            // Stored or not, nobody knows; nothing wrong can come of it.
            Err(ClientError::SessionLost) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for committed in committed {
            match committed {
                Committed::Stored(_) => outcome.stored += 1,
                Committed::Superseded(_) | Committed::NotReserved => outcome.not_stored_again += 1,
            }
        }
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
