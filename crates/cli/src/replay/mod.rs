//! `maru replay`: what sharing buys, on a real or a generated trace, with every byte verified.

mod block;
pub(crate) mod instance;
mod order;
mod plan;
mod pool;
mod process;
mod report;
mod result;
mod run;
mod summary;
mod tally;
mod watcher;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use maru_l1::{L1Args, MaruL1Config};
use maru_memory::parse_bytes;
use maru_protocol::PAGE_ALIGN;

use self::plan::Plan;
use self::pool::OwnPool;
use self::report::ReportFile;
use self::result::{Comparison, ReplayOptions, Run, TraceInfo};
use self::run::Dispatch;
use crate::trace::{BadLines, GeneratorSettings, Trace, generate, read};
use crate::{Defect, output, signals};

const L1_SIZE_HELP: &str = "\
The size of each instance's private L1, in GB of 2^30 bytes; a shared one is as large as all of them \
together. Without this flag, their sizes follow from --capacity-blocks";

const SERVER_HELP: &str = "\
Use this running server for the shared L1: maru://HOST:PORT, tcp://HOST:PORT, unix:///PATH or /PATH. Its \
pool should be empty and hold --capacity-blocks. Default: a server of the replay's own [env: \
MARU_SERVER_URL]";

const INSTANCE_HELP: &str = "\
Begins the instances' names: NAME-0, NAME-1 and so on. Default: the replay's process and `shared` [env: \
MARU_INSTANCE_ID]";

/// Replay a request trace over private L1 caches and over a shared one, and compare.
///
/// Starts instances as processes and gives them the requests in turn. Each takes what is cached of
/// its request's prefix out of its L1 and verifies every byte, then stores the rest.
#[derive(Debug, Args)]
#[command(mut_arg("l1_size_gb", |arg| arg.help(L1_SIZE_HELP)))]
#[command(mut_arg("maru_server_url", |arg| arg.help(SERVER_HELP)))]
#[command(mut_arg("maru_instance_id", |arg| arg.help(INSTANCE_HELP)))]
#[command(mut_arg("eviction_trigger_watermark", |arg| arg.hide(true)))]
#[command(mut_arg("eviction_ratio", |arg| arg.hide(true)))]
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
    /// How many blocks the L1s of all instances hold together; a private one holds its share. Give
    /// this, or --l1-size-gb.
    #[arg(long, value_name = "N", default_value_t = 16_000, conflicts_with = "l1_size_gb")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
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
    /// Which L1 to try.
    #[arg(long, value_enum, default_value_t)]
    l1: L1Kind,
    /// How the instances reach the replay's own server, without --maru-server-url [default: unix].
    #[arg(long, value_enum)]
    transport: Option<Transport>,
    /// Also write a page with plots.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Have each instance write down what is acknowledged to it, in a file of this folder: a line a
    /// block, with the checksum of its bytes and its key. For those who kill the server meanwhile.
    #[arg(long, value_name = "FOLDER", hide = true)]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    l1_args: L1Args,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum L1Kind {
    /// Private ones, then a shared one of the same total size.
    #[default]
    Both,
    /// A private one an instance, in its own memory.
    Local,
    /// One for all, in the pool of a server.
    Maru,
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
        let plan = Plan::new(&self)?;
        // Before the minutes of work, not after them.
        let report = self.report.as_deref().map(ReportFile::open).transpose()?;
        let comparison = self.compare(&plan)?;
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

    fn compare(&self, plan: &Plan) -> anyhow::Result<Comparison> {
        let (trace, info) = self.load()?;
        if let Some(maru) = &plan.named {
            self.check_server(maru, plan.capacity_blocks)?;
        }
        // Ctrl-C ends the replay in good order: else its pool would stay behind in /dev/shm.
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
            ledger: self.ledger.as_deref(),
        };
        let private = match self.l1 {
            L1Kind::Maru => None,
            _ => Some(dispatch.run("private L1s", &plan.private()?)?),
        };
        let shared = match self.l1 {
            L1Kind::Local => None,
            _ => Some(self.run_shared(plan, &dispatch)?),
        };
        let options = ReplayOptions {
            instances: self.instances,
            capacity_blocks: plan.capacity_blocks,
            page_bytes: self.page_size,
            eviction_policy: plan.private.eviction.policy,
            speed_up: self.speed_up,
            seed: self.seed,
        };
        Ok(Comparison { trace: info, options, private, shared })
    }

    fn run_shared(&self, plan: &Plan, dispatch: &Dispatch<'_>) -> anyhow::Result<Run> {
        const TITLE: &str = "shared L1";
        if plan.named.is_some() {
            return dispatch.run(TITLE, &plan.shared(|_| None)?);
        }
        let folder = tempfile::tempdir().context("cannot make a folder for a socket")?;
        let transport = self.transport.unwrap_or_default();
        let tcp = transport != Transport::Unix;
        let pool = OwnPool::start(folder.path(), plan.capacity_blocks, self.page_size, tcp)?;
        dispatch.run(TITLE, &plan.shared(|index| pool.endpoint(transport.is_tcp(index)))?)
    }

    /// Whether the server that was named can take part. Says so if the comparison is not fair.
    fn check_server(&self, maru: &MaruL1Config, capacity_blocks: u64) -> anyhow::Result<()> {
        let server = &maru.server;
        if self.l1_args.maru_server_url.is_none() {
            tracing::info!(%server, "the shared L1 is on the server of MARU_SERVER_URL or --l1-config");
        }
        let regions = watcher::connect(maru)?.regions()?;
        let largest = regions.iter().map(|region| region.bytes).max().unwrap_or(0);
        ensure!(
            self.page_size <= largest,
            "no region of {server} holds a page of {}, the largest has {}: lower --page-size, or \
             give that server a larger --region-size",
            output::bytes(self.page_size),
            output::bytes(largest),
        );
        let page = self.page_size.next_multiple_of(PAGE_ALIGN);
        let blocks: u64 = regions.iter().map(|region| region.bytes / page).sum();
        if blocks != capacity_blocks {
            tracing::warn!(
                "{server} has room for {} blocks, not for the {} of --capacity-blocks: the shared \
                 L1 is not as large as the private ones",
                output::count(blocks),
                output::count(capacity_blocks),
            );
        }
        Ok(())
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
