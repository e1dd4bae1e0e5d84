//! One replay: instances as processes, requests in turn.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use maru_client::{Client, ClientConfig};
use maru_protocol::{Endpoint, Stats};
use signal_hook::consts::SIGBUS;

use super::instance::{LatencyBuckets, Outcome, histogram};
use super::result::{Latency, Run, Sample, Throughput};
use crate::trace::TraceRequest;

/// How many samples the course of a replay has.
const SAMPLES: usize = 100;

/// How long the servers may take to clean up after the instances, with much time to spare.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// How long an instance may take to end in good order once nobody wants it any more.
const END_MAX: Duration = Duration::from_millis(500);

/// The longest wait for a request's time: nobody waits longer.
const WAIT_MAX: Duration = Duration::from_hours(24 * 365);

/// How soon an interruption is noticed between two requests.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What to replay, and how.
#[derive(Debug)]
pub(crate) struct Dispatch<'a> {
    pub(crate) requests: &'a [TraceRequest],
    pub(crate) page_bytes: u64,
    pub(crate) speed_up: Option<f64>,
    pub(crate) seed: u64,
    /// Set when the user wants it to end.
    pub(crate) interrupted: &'a AtomicBool,
}

/// One instance's process. It has at most one request at a time.
#[derive(Debug)]
struct Process {
    child: Child,
    /// `None` once it shall end.
    requests: Option<ChildStdin>,
    outcomes: BufReader<ChildStdout>,
    busy: bool,
}

impl Dispatch<'_> {
    /// Replays over one instance for each of `endpoints`; `servers` are the different servers among
    /// them.
    pub(crate) fn run(
        &self,
        title: &str,
        endpoints: &[Endpoint],
        servers: &[Endpoint],
    ) -> anyhow::Result<Run> {
        let run = format!("{}-{}", std::process::id(), title.split(' ').next().unwrap_or("run"));
        let watchers: Vec<Client> =
            servers.iter().map(|server| watch(server, &run)).collect::<anyhow::Result<_>>()?;
        let before = stats_of(&watchers)?;
        let mut processes: Vec<Option<Process>> = endpoints
            .iter()
            .enumerate()
            .map(|(index, endpoint)| self.start(&run, index, endpoint).map(Some))
            .collect::<anyhow::Result<_>>()?;
        let mut tally = Tally { start: Instant::now(), ..Tally::new() };
        if let Err(error) = self.dispatch(title, &mut processes, &watchers, &mut tally) {
            // All at once, before the first of them is waited for.
            processes.iter_mut().flatten().for_each(|process| process.requests = None);
            return Err(error);
        }
        tally.run.seconds = tally.start.elapsed().as_secs_f64();
        let mut latencies = BTreeMap::new();
        for process in processes.iter_mut().filter_map(Option::take) {
            match process.finish() {
                Ok(buckets) => merge(&mut latencies, buckets),
                Err(error) => {
                    tracing::warn!(%error, "an instance did not end well");
                    tally.run.instances_lost += 1;
                }
            }
        }
        let after = settle(&watchers, &run)?;
        Ok(self.sum_up(tally, latencies, &before, &after, &run))
    }

    fn start(&self, run: &str, index: usize, endpoint: &Endpoint) -> anyhow::Result<Process> {
        let program = std::env::current_exe().context("cannot find the program itself")?;
        let mut child = Command::new(program)
            .args(["--log", "warn", "replay-instance"])
            .args(["--server", &endpoint.to_string(), "--instance", &format!("{run}-{index}")])
            .args(["--run", run, "--seed", &self.seed.to_string()])
            .args(["--page-bytes", &self.page_bytes.to_string()])
            // Ctrl-C is for the replay: it ends the instances.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start an instance")?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (requests, outcomes) = pipes.context("an instance has no pipes")?;
        let outcomes = BufReader::new(outcomes);
        // It says once that it is ready, as if that were the outcome of a request.
        let mut process = Process { child, requests: Some(requests), outcomes, busy: true };
        let ready = process.outcome().context("an instance did not start; its message is above");
        // A signal to the whole group may hit it before it has a group of its own.
        self.check_interrupted()?;
        ready.map(|_| process)
    }

    /// Gives every request to the next instance, in order: it waits for that instance, so none runs
    /// ahead of another by more than a round.
    fn dispatch(
        &self,
        title: &str,
        processes: &mut [Option<Process>],
        watchers: &[Client],
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        let bar = progress_bar(title, self.requests.len());
        let every = (self.requests.len() / SAMPLES).max(1);
        let begin = self.requests.first().map_or(0, |request| request.timestamp_ms);
        let mut turn = 0;
        for (number, request) in self.requests.iter().enumerate() {
            self.check_interrupted()?;
            if let Some(factor) = self.speed_up {
                let offset = Duration::from_millis(request.timestamp_ms.saturating_sub(begin));
                let offset = Duration::try_from_secs_f64(offset.as_secs_f64() / factor);
                let offset = offset.unwrap_or(WAIT_MAX).min(WAIT_MAX);
                self.pause(offset.saturating_sub(tally.start.elapsed()));
            }
            while !give(processes, turn, request, tally) {
                turn += 1;
                self.check_interrupted()?;
                if processes.iter().all(Option::is_none) {
                    return Err(anyhow!(
                        "all instances are gone; messages and warnings above say why"
                    ));
                }
            }
            turn += 1;
            bar.inc(1);
            if (number + 1) % every == 0 {
                tally.sample(number + 1, &stats_of(watchers)?);
            }
        }
        for index in 0..processes.len() {
            collect(processes, index, tally);
        }
        tally.sample(self.requests.len(), &stats_of(watchers)?);
        Ok(())
    }

    /// Sleeps, but not through an interruption.
    fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.interrupted.load(Ordering::Relaxed) && Instant::now() < end {
            sleep(end.saturating_duration_since(Instant::now()).min(PAUSE_MAX));
        }
    }

    fn check_interrupted(&self) -> anyhow::Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(anyhow!("interrupted; the pools of this replay are removed"));
        }
        Ok(())
    }

    fn sum_up(
        &self,
        tally: Tally,
        latencies: BTreeMap<String, Histogram<u64>>,
        before: &[Stats],
        after: &[Stats],
        run: &str,
    ) -> Run {
        let evictions = |stats: &[Stats]| -> u64 {
            let counters = stats.iter().map(|stats| &stats.counters);
            counters
                .map(|c| {
                    c.evicted_for_room
                        + c.evicted_for_region
                        + c.evicted_by_watermark
                        + c.evicted_for_budget
                })
                .sum()
        };
        let ours = || {
            let sessions = after.iter().flat_map(|stats| &stats.sessions);
            sessions.filter(|session| session.instance.starts_with(run))
        };
        let lost: i128 = after.iter().map(Stats::lost_bytes).sum();
        let mut done = tally.run;
        done.prefix_hit_rate = ratio(done.blocks_hit, done.blocks_requested);
        done.bytes_not_recomputed = done.blocks_hit * self.page_bytes;
        // A server that was restarted on the way counts from 0 again.
        done.evictions = evictions(after).saturating_sub(evictions(before));
        done.gb_per_s = Throughput {
            write: ratio(done.blocks_stored * self.page_bytes, tally.write_ns),
            read: ratio(done.bytes_verified, tally.read_ns),
        };
        done.latency_us =
            latencies.into_iter().map(|(name, histogram)| (name, latency(&histogram))).collect();
        done.pins_left = ours().map(|session| session.pins).sum();
        done.reservations_left = ours().map(|session| session.reservations).sum();
        let page_bytes = i128::from(self.page_bytes.max(1));
        done.pages_lost = i64::try_from(lost / page_bytes).unwrap_or(i64::MAX);
        done
    }
}

impl Process {
    fn outcome(&mut self) -> anyhow::Result<Outcome> {
        let mut line = String::new();
        if self.outcomes.read_line(&mut line)? == 0 {
            return Err(anyhow!("it ended"));
        }
        self.busy = false;
        Ok(serde_json::from_str(&line)?)
    }

    /// Lets it end, and takes the latencies that it saw.
    fn finish(mut self) -> anyhow::Result<LatencyBuckets> {
        self.requests = None;
        let mut line = String::new();
        self.outcomes.read_line(&mut line)?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(anyhow!("it ended with {status}"));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Process {
    /// Ends it, in good order if that does not take long.
    fn drop(&mut self) {
        self.requests = None;
        let end = Instant::now() + END_MAX;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a process ended, in words.
fn ending(status: ExitStatus) -> String {
    match status.signal() {
        Some(SIGBUS) => format!("{status}: the memory behind the pool ran out"),
        _ => status.to_string(),
    }
}

/// Gives a request to the instance whose turn it is; `false` if that one is gone.
fn give(
    processes: &mut [Option<Process>],
    turn: usize,
    request: &TraceRequest,
    tally: &mut Tally,
) -> bool {
    let index = turn % processes.len();
    collect(processes, index, tally);
    let Some(process) = &mut processes[index] else {
        return false;
    };
    let line = serde_json::to_string(&request.hash_ids).unwrap_or_default();
    let given = process.requests.as_mut().map(|requests| writeln!(requests, "{line}"));
    if let Some(Err(error)) = given {
        lose(processes, index, &error.into(), tally);
        return false;
    }
    process.busy = true;
    true
}

/// Takes the outcome of what an instance is busy with.
fn collect(processes: &mut [Option<Process>], index: usize, tally: &mut Tally) {
    let Some(process) = processes[index].as_mut().filter(|process| process.busy) else {
        return;
    };
    match process.outcome() {
        Ok(outcome) => tally.add(&outcome),
        Err(error) => lose(processes, index, &error, tally),
    }
}

/// Goes on without an instance.
fn lose(processes: &mut [Option<Process>], index: usize, error: &anyhow::Error, tally: &mut Tally) {
    if let Some(mut process) = processes[index].take() {
        let _ = process.child.kill();
        let status = process.child.wait();
        let status = status.map_or_else(|error| error.to_string(), ending);
        tracing::warn!(instance = index, %error, status, "an instance is gone; going on without it");
        tally.run.instances_lost += 1;
    }
}

/// Sums over requests.
#[derive(Debug)]
struct Tally {
    run: Run,
    read_ns: u64,
    write_ns: u64,
    start: Instant,
    /// Blocks and hits at the last sample.
    sampled: (u64, u64),
}

impl Tally {
    fn new() -> Self {
        let start = Instant::now();
        Self { run: Run::default(), read_ns: 0, write_ns: 0, start, sampled: (0, 0) }
    }

    fn add(&mut self, outcome: &Outcome) {
        let run = &mut self.run;
        run.requests += 1;
        run.blocks_requested += outcome.blocks;
        run.blocks_hit += outcome.hit;
        run.blocks_stored += outcome.stored;
        run.blocks_not_stored_again += outcome.not_stored_again;
        run.blocks_without_memory += outcome.without_memory;
        run.bytes_verified += outcome.bytes_verified;
        run.wrong_bytes += outcome.wrong_bytes;
        self.read_ns += outcome.read_ns;
        self.write_ns += outcome.write_ns;
    }

    fn sample(&mut self, requests: usize, stats: &[Stats]) {
        let (blocks, hit) = (self.run.blocks_requested, self.run.blocks_hit);
        let used =
            |stats: &Stats| stats.resident_bytes + stats.reserved_bytes + stats.quarantined_bytes;
        self.run.course.push(Sample {
            requests: requests as u64,
            seconds: self.start.elapsed().as_secs_f64(),
            hit_rate: ratio(hit - self.sampled.1, blocks - self.sampled.0),
            used_bytes: stats.iter().map(used).sum(),
            capacity_bytes: stats.iter().map(|stats| stats.capacity_bytes).sum(),
        });
        self.sampled = (blocks, hit);
    }
}

pub(super) fn watch(server: &Endpoint, run: &str) -> anyhow::Result<Client> {
    let endpoint = server.clone();
    // Its name does not begin like the instances': what they hold is counted by name.
    let instance = format!("watcher-of-{run}");
    Ok(Client::connect(ClientConfig { endpoint, instance, ..ClientConfig::default() })?)
}

fn stats_of(watchers: &[Client]) -> anyhow::Result<Vec<Stats>> {
    watchers.iter().map(|watcher| Ok(watcher.stats()?)).collect()
}

/// The numbers once the servers have cleaned up after all instances, or after some seconds.
fn settle(watchers: &[Client], run: &str) -> anyhow::Result<Vec<Stats>> {
    let start = Instant::now();
    loop {
        let stats = stats_of(watchers)?;
        let mut sessions = stats.iter().flat_map(|stats| &stats.sessions);
        if !sessions.any(|session| session.instance.starts_with(run))
            || start.elapsed() > SETTLE_MAX
        {
            return Ok(stats);
        }
        sleep(Duration::from_millis(20));
    }
}

fn merge(all: &mut BTreeMap<String, Histogram<u64>>, buckets: LatencyBuckets) {
    for (name, buckets) in buckets {
        let histogram = all.entry(name).or_insert_with(histogram);
        for (ns, count) in buckets {
            histogram.saturating_record_n(ns, count);
        }
    }
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    // A minute in nanoseconds is far below 2^53.
    #[expect(clippy::cast_precision_loss)]
    let us = |ns: u64| ns as f64 / 1000.0;
    let at = |percentile: f64| us(histogram.value_at_percentile(percentile));
    let steps = histogram
        .iter_quantiles(2)
        .map(|step| (step.quantile_iterated_to() * 100.0, us(step.value_iterated_to())));
    Latency {
        count: histogram.len(),
        p50: at(50.0),
        p90: at(90.0),
        p99: at(99.0),
        max: us(histogram.max()),
        percentiles: steps.collect(),
    }
}

/// A ratio of counts, for people; 0 of nothing.
#[expect(clippy::cast_precision_loss)]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn progress_bar(title: &str, len: usize) -> ProgressBar {
    let template = "{msg:14} {wide_bar} {pos}/{len} requests, {eta} left";
    let style = ProgressStyle::with_template(template);
    // Hidden by itself where stderr is not a terminal; gone when dropped, whatever happened.
    let bar = ProgressBar::new(len as u64).with_message(title.to_owned());
    let bar = bar.with_finish(ProgressFinish::AndClear);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
