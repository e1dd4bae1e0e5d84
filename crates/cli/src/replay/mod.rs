//! `maru replay`: what sharing buys, on a real or a generated trace, with every byte verified.

mod block;
pub(crate) mod instance;
mod pools;
mod report;
mod result;
mod run;
mod summary;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use maru_memory::parse_bytes;
use maru_protocol::Endpoint;

use self::pools::{OwnPool, PAGE_ALIGN};
use self::report::ReportFile;
use self::result::{Comparison, ReplayOptions, TraceInfo};
use self::run::Dispatch;
use crate::trace::{BadLines, GeneratorSettings, Trace, generate, read};
use crate::{Defect, WrongUsage, output, signals};

/// The largest pool that one directory takes, in bytes.
const POOL_BYTES_MAX: u128 = 16 << 40;

/// Replay a request trace over private pools and over a shared one, and compare.
///
/// Starts instances as processes and gives them the requests in turn. Each takes what is cached of
/// its request's prefix out of the pool and verifies every byte, then stores the rest.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The trace: a JSON object a line. Default: one made up by `maru trace generate`.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Pass over lines of the trace that are not requests, and count them.
    #[arg(long)]
    skip_bad_lines: bool,
    /// How many requests to make up, without --trace.
    #[arg(long, value_name = "N", default_value_t = 3000, conflicts_with = "trace")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    requests: u64,
    /// How many serving instances.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    instances: u32,
    /// The pools' capacity in blocks, of all instances together.
    #[arg(long, value_name = "N", default_value_t = 16_000, value_parser = clap::value_parser!(u64).range(1..))]
    capacity_blocks: u64,
    /// The size of a block's KV in bytes.
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = page_size)]
    page_size: u64,
    /// Keep the trace's own times, so many times faster. Default: as fast as it goes.
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    speed_up: Option<f64>,
    /// Seeds the blocks' contents, and the trace if it is made up.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Which pools to try.
    #[arg(long, value_enum, default_value_t)]
    pools: Pools,
    /// How the instances reach the shared pool's server.
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// Use this running server for the shared pool; repeat to have the instances take turns on its
    /// addresses. Its pool should be empty and hold --capacity-blocks.
    #[arg(long, value_name = "URL", conflicts_with = "transport")]
    server: Vec<Endpoint>,
    /// Also write a page with plots.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Pools {
    /// Private ones, then a shared one of the same total size.
    #[default]
    Both,
    /// One pool an instance.
    Private,
    /// One pool for all.
    Shared,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// Over a Unix socket.
    #[default]
    Unix,
    /// Over TCP.
    Tcp,
    /// One over a Unix socket, the next over TCP, and so on.
    Mixed,
}

impl Transport {
    fn is_tcp(self, instance: u32) -> bool {
        match self {
            Self::Unix => false,
            Self::Tcp => true,
            Self::Mixed => instance % 2 == 1,
        }
    }
}

impl Replay {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        self.check_capacity()?;
        // Before the minutes of work, not after them.
        let report = self.report.as_deref().map(ReportFile::open).transpose()?;
        let comparison = self.compare()?;
        if self.json {
            output::print_json(&comparison)?;
        } else {
            output::print(&summary::text(&comparison))?;
        }
        if let Some(report) = report {
            report.write(&comparison)?;
        }
        match summary::defects(&comparison) {
            Some(defects) => Err(Defect(defects).into()),
            None => Ok(()),
        }
    }

    fn check_capacity(&self) -> Result<(), WrongUsage> {
        if self.capacity_blocks < u64::from(self.instances) {
            let problem = "--capacity-blocks is less than one block an instance: raise it";
            return Err(WrongUsage(problem.to_owned()));
        }
        let page = u128::from(self.page_size.next_multiple_of(PAGE_ALIGN));
        if u128::from(self.capacity_blocks) * page > POOL_BYTES_MAX {
            let size = output::bytes(self.page_size);
            return Err(WrongUsage(format!(
                "--capacity-blocks {} of {size} are more than a pool can have, 16 TiB: lower it",
                self.capacity_blocks,
            )));
        }
        Ok(())
    }

    /// Whether the servers that were named can take part. Says so if the comparison is not fair.
    fn check_servers(&self) -> anyhow::Result<()> {
        let mut epoch = None;
        for server in &self.server {
            let client = run::watch(server, &format!("{}-check", std::process::id()))?;
            let here = client.stats()?.epoch;
            ensure!(
                epoch.is_none_or(|first| first == here),
                "{server} is another server than {}: give addresses of one server",
                self.server[0]
            );
            if epoch.replace(here).is_some() {
                continue;
            }
            let regions = client.regions()?;
            let largest = regions.iter().map(|region| region.bytes).max().unwrap_or(0);
            ensure!(
                self.page_size <= largest,
                "no region of {server} holds a page of {}, the largest has {}: lower --page-size, \
                 or give that server a larger --region-size",
                output::bytes(self.page_size),
                output::bytes(largest),
            );
            let page = self.page_size.next_multiple_of(PAGE_ALIGN);
            let blocks: u64 = regions.iter().map(|region| region.bytes / page).sum();
            if blocks != self.capacity_blocks {
                tracing::warn!(
                    "{server} has room for {} blocks, not for the {} of --capacity-blocks: the \
                     shared pool is not as large as the private ones",
                    output::count(blocks),
                    output::count(self.capacity_blocks),
                );
            }
        }
        Ok(())
    }

    fn compare(&self) -> anyhow::Result<Comparison> {
        let (trace, info) = self.load()?;
        if self.pools != Pools::Private {
            self.check_servers()?;
        }
        // Ctrl-C ends the replay in good order: else its pools would stay behind in /dev/shm.
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in signals::ending() {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .context("cannot wait for signals")?;
        }
        let dispatch = Dispatch {
            interrupted: &interrupted,
            requests: &trace.requests,
            page_bytes: self.page_size,
            speed_up: self.speed_up,
            seed: self.seed,
        };
        let folder = tempfile::tempdir().context("cannot make a folder for sockets")?;
        let private = if self.pools == Pools::Shared {
            None
        } else {
            let pools = (0..self.instances)
                .map(|index| {
                    let pages = share(self.capacity_blocks, self.instances, index);
                    let name = format!("private-{index}");
                    OwnPool::start(folder.path(), &name, pages, self.page_size, false)
                })
                .collect::<anyhow::Result<Vec<_>>>()?;
            let endpoints: Vec<Endpoint> =
                pools.iter().filter_map(|pool| pool.endpoint(false)).collect();
            Some(dispatch.run("private pools", &endpoints, &endpoints)?)
        };
        let shared = match self.pools {
            Pools::Private => None,
            _ if self.server.is_empty() => {
                let (pages, tcp) = (self.capacity_blocks, self.transport != Transport::Unix);
                let pool = OwnPool::start(folder.path(), "shared", pages, self.page_size, tcp)?;
                let endpoints: Vec<Endpoint> = (0..self.instances)
                    .filter_map(|index| pool.endpoint(self.transport.is_tcp(index)))
                    .collect();
                Some(dispatch.run("shared pool", &endpoints, &endpoints[..1])?)
            }
            _ => {
                let turns = self.server.iter().cycle().take(self.instances as usize);
                let endpoints: Vec<Endpoint> = turns.cloned().collect();
                Some(dispatch.run("shared pool", &endpoints, &endpoints[..1])?)
            }
        };
        let options = ReplayOptions {
            instances: self.instances,
            capacity_blocks: self.capacity_blocks,
            page_bytes: self.page_size,
            speed_up: self.speed_up,
            seed: self.seed,
        };
        Ok(Comparison { trace: info, options, private, shared })
    }

    fn load(&self) -> anyhow::Result<(Trace, TraceInfo)> {
        let (trace, source) = if let Some(path) = &self.trace {
            let bad_lines = if self.skip_bad_lines { BadLines::Skip } else { BadLines::Stop };
            (read(path, bad_lines)?, path.display().to_string())
        } else {
            let settings = GeneratorSettings {
                requests: self.requests,
                seed: self.seed,
                ..GeneratorSettings::default()
            };
            let trace = Trace { requests: generate(&settings)?, skipped_lines: 0 };
            (trace, format!("generated, {} requests, seed {}", self.requests, self.seed))
        };
        let blocks = trace.requests.iter().flat_map(|request| &request.hash_ids);
        let times = || trace.requests.iter().map(|request| request.timestamp_ms);
        let info = TraceInfo {
            source,
            requests: trace.requests.len() as u64,
            blocks: blocks.clone().count() as u64,
            distinct_blocks: blocks.collect::<HashSet<_>>().len() as u64,
            skipped_lines: trace.skipped_lines,
            span_ms: times().max().unwrap_or(0) - times().min().unwrap_or(0),
        };
        Ok((trace, info))
    }
}

fn page_size(text: &str) -> Result<u64, String> {
    match parse_bytes(text) {
        Ok(bytes @ 1..=0x4000_0000) => Ok(bytes),
        Ok(_) => Err("a page has 1 byte to 1GiB".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn factor(text: &str) -> Result<f64, &'static str> {
    let factor = text.parse().ok().filter(|factor: &f64| factor.is_finite() && *factor > 0.0);
    factor.ok_or("give a number above 0, or leave it out to go as fast as it goes")
}

/// How much of `total` the instance `index` of `instances` gets, so that nothing is left over.
fn share(total: u64, instances: u32, index: u32) -> u64 {
    let (instances, index) = (u64::from(instances), u64::from(index));
    total / instances + u64::from(index < total % instances)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_the_total() {
        for (total, instances) in [(16_000, 4), (16_003, 4), (5, 5), (100, 7)] {
            let sum: u64 = (0..instances).map(|index| share(total, instances, index)).sum();
            assert_eq!(sum, total);
        }
    }
}
