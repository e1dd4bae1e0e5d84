//! One replay: instances as processes, requests in turn.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use maru_l1::{L1ManagerConfig, MemoryUsage};

use super::order::Order;
use super::process::Process;
use super::result::Run;
use super::tally::Tally;
use super::watcher::Watcher;
use crate::trace::TraceRequest;

/// How many samples the course of a replay has.
const SAMPLES: usize = 100;

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
    /// A folder where each instance writes down what is acknowledged to it.
    pub(crate) ledger: Option<&'a Path>,
    /// Set when the user wants it to end.
    pub(crate) interrupted: &'a AtomicBool,
}

/// The instances of one replay.
#[derive(Debug)]
struct Instances {
    /// `None` for one that is gone.
    processes: Vec<Option<Process>>,
    /// `None` where they have no server.
    watcher: Option<Watcher>,
    /// Of private L1s, together, in bytes.
    capacity_bytes: u64,
}

impl Dispatch<'_> {
    /// Replays over one instance for each of these L1s, all private or all of one server.
    pub(crate) fn run(&self, title: &str, l1s: &[L1ManagerConfig]) -> anyhow::Result<Run> {
        let run = format!("{}-{}", std::process::id(), title.split(' ').next().unwrap_or("run"));
        let watcher = Watcher::new(l1s, self.page_bytes)?;
        let processes = (0..).zip(l1s).map(|(index, l1)| self.start(&run, index, l1).map(Some));
        let mut instances = Instances {
            processes: processes.collect::<anyhow::Result<_>>()?,
            watcher,
            capacity_bytes: l1s.iter().map(|l1| l1.memory.bytes).sum(),
        };
        let mut tally = Tally::new();
        if let Err(error) = self.dispatch(title, &mut instances, &mut tally) {
            // All at once, before the first of them is waited for.
            instances.processes.iter_mut().flatten().for_each(Process::dismiss);
            return Err(error);
        }
        tally.stop();
        for process in instances.processes.iter_mut().filter_map(Option::take) {
            match process.finish() {
                Ok(books) => tally.add_books(books),
                Err(error) => {
                    tracing::warn!(%error, "an instance did not end well");
                    tally.lose();
                }
            }
        }
        let mut run = tally.sum_up(self.page_bytes);
        if let Some(watcher) = instances.watcher {
            watcher.audit(&mut run)?;
        }
        Ok(run)
    }

    fn start(&self, run: &str, index: u32, l1: &L1ManagerConfig) -> anyhow::Result<Process> {
        let ledger = self.ledger.map(|folder| folder.join(format!("{run}-{index}")));
        let (run, l1) = (run.to_owned(), l1.clone());
        let order = Order { run, seed: self.seed, page_bytes: self.page_bytes, l1, ledger };
        let mut process = Process::spawn(&order)?;
        // It says once that it is ready, as if that were the outcome of a request.
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
        instances: &mut Instances,
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
            while !instances.give(turn, request, tally) {
                turn += 1;
                self.check_interrupted()?;
                if instances.processes.iter().all(Option::is_none) {
                    return Err(anyhow!(
                        "all instances are gone; messages and warnings above say why"
                    ));
                }
            }
            turn += 1;
            bar.inc(1);
            if (number + 1) % every == 0 {
                tally.sample(number + 1, instances.usage()?);
            }
        }
        for index in 0..instances.processes.len() {
            instances.collect(index, tally);
        }
        tally.sample(self.requests.len(), instances.usage()?);
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
            return Err(anyhow!("interrupted; the memory of this replay is given back"));
        }
        Ok(())
    }
}

impl Instances {
    /// Gives a request to the instance whose turn it is; `false` if that one is gone.
    fn give(&mut self, turn: usize, request: &TraceRequest, tally: &mut Tally) -> bool {
        let index = turn % self.processes.len();
        self.collect(index, tally);
        let Some(process) = &mut self.processes[index] else {
            return false;
        };
        let given = process.give(&request.hash_ids);
        given.map_err(|error| self.lose(index, &error, tally)).is_ok()
    }

    /// Takes the outcome of what an instance is busy with.
    fn collect(&mut self, index: usize, tally: &mut Tally) {
        match self.processes[index].as_mut().map(Process::outcome) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(outcome))) => tally.add(&outcome),
            Some(Err(error)) => self.lose(index, &error, tally),
        }
    }

    /// Goes on without an instance.
    fn lose(&mut self, index: usize, error: &anyhow::Error, tally: &mut Tally) {
        if let Some(process) = self.processes[index].take() {
            let status = process.bury();
            tracing::warn!(
                instance = index,
                %error,
                status,
                "an instance is gone; going on without it"
            );
            tally.lose();
        }
    }

    fn usage(&self) -> anyhow::Result<MemoryUsage> {
        if let Some(watcher) = &self.watcher {
            return Ok(watcher.usage()?);
        }
        let used_bytes = self.processes.iter().flatten().map(Process::used_bytes).sum();
        Ok(MemoryUsage { used_bytes, total_bytes: self.capacity_bytes })
    }
}

fn progress_bar(title: &str, len: usize) -> ProgressBar {
    let template = "{msg:14} {wide_bar} {pos}/{len} requests, {eta} left";
    let style = ProgressStyle::with_template(template);
    // Hidden by itself where stderr is not a terminal; gone when dropped, whatever happened.
    let bar = ProgressBar::new(len as u64).with_message(title.to_owned());
    let bar = bar.with_finish(ProgressFinish::AndClear);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
