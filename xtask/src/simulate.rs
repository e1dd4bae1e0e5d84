//! `cargo xtask simulate`: seeds of the deterministic simulation.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use comfy_table::{Table, presets};
use maru_testkit::simulation::{Found, Plant, Seen, run};
use serde::Serialize;

use crate::print;
use crate::progress::Progress;

/// Simulate servers, instances, and what is between them, and check the rules after every step.
#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// How many seeds are run; 10000 if nothing is said, with --plant at most 1000 for each fault.
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    from: u64,
    /// How many steps each is run for.
    #[arg(long, value_name = "M", default_value_t = 500)]
    steps: usize,
    /// Plant a fault, or one after the other all that there are, and say which seed finds it first.
    #[arg(long, value_name = "FAULT")]
    plant: Option<Planted>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is planted.
#[derive(Debug, Clone)]
struct Planted(Vec<Plant>);

impl FromStr for Planted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |plant: &Plant| text == "all" || text == plant.name();
        let planted: Vec<Plant> = Plant::ALL.into_iter().filter(named).collect();
        if planted.is_empty() {
            return Err(format!("is none of all, {}", Plant::ALL.map(Plant::name).join(", ")));
        }
        Ok(Self(planted))
    }
}

/// What came of seeds with nothing planted.
#[derive(Debug, Serialize)]
struct Report {
    from: u64,
    seeds: u64,
    steps: usize,
    seconds: f64,
    seen: BTreeMap<&'static str, u64>,
    found: Option<Finding>,
}

/// A seed that finds something.
#[derive(Debug, Serialize)]
struct Finding {
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'static str>,
    seed: u64,
    what: String,
    schedule: Vec<String>,
}

impl Finding {
    fn new(found: &Found, plant: Option<Plant>) -> Self {
        Self {
            fault: plant.map(Plant::name),
            seed: found.seed,
            what: found.what.clone(),
            schedule: found.schedule.clone(),
        }
    }
}

impl Simulate {
    /// What is run with the tests: nothing is found but what is planted.
    pub(crate) fn with_tests() -> anyhow::Result<()> {
        let plain = Self { seeds: None, from: 0, steps: 500, plant: None, json: false };
        plain.run()?;
        Self { plant: Some(Planted(Plant::ALL.to_vec())), ..plain }.run()
    }

    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match &self.plant {
            None => self.search(),
            Some(Planted(plants)) => self.find_planted(plants),
        }
    }

    fn search(&self) -> anyhow::Result<()> {
        let seeds = self.seeds.unwrap_or(10_000);
        let start = Instant::now();
        let (seen, found) = self.first("seeds", seeds, None);
        let report = Report {
            from: self.from,
            seeds,
            steps: self.steps,
            seconds: start.elapsed().as_secs_f64(),
            seen: seen.each().into(),
            found: found.as_deref().map(|found| Finding::new(found, None)),
        };
        if self.json {
            print(&serde_json::to_string_pretty(&report)?);
        }
        let Some(found) = found else {
            if !self.json {
                print(&text(&report));
            }
            return Ok(());
        };
        if !self.json {
            print(&found.to_string());
        }
        bail!(
            "seed {0} finds something; again: cargo xtask simulate --from {0} --seeds 1 --steps {1}",
            found.seed,
            self.steps
        );
    }

    fn find_planted(&self, plants: &[Plant]) -> anyhow::Result<()> {
        let seeds = self.seeds.unwrap_or(1000);
        let (mut findings, mut missed) = (Vec::new(), Vec::new());
        for plant in plants {
            match self.first(plant.name(), seeds, Some(*plant)).1 {
                Some(found) => findings.push(Finding::new(&found, Some(*plant))),
                None => missed.push(plant.name()),
            }
        }
        print(&match &findings[..] {
            _ if self.json => serde_json::to_string_pretty(&findings)?,
            [one] if plants.len() == 1 => schedule(one),
            all => table(all),
        });
        if !missed.is_empty() {
            bail!("{} not found by {seeds} seeds of {} steps", missed.join(", "), self.steps);
        }
        Ok(())
    }

    /// What all see, up to the first that finds something, made short.
    fn first(&self, name: &str, seeds: u64, plant: Option<Plant>) -> (Seen, Option<Box<Found>>) {
        let progress = Progress::new(name, seeds);
        let (next, end) = (AtomicU64::new(self.from), AtomicU64::new(self.from + seeds));
        let sum = Mutex::new(Seen::default());
        let work = || {
            let mut seen = Seen::default();
            loop {
                let this = next.fetch_add(1, Ordering::Relaxed);
                if this >= end.load(Ordering::Relaxed) {
                    break;
                }
                match run(this, self.steps, plant, false) {
                    Ok(saw) => seen.add(saw),
                    // Only earlier ones matter from here on.
                    Err(_) => drop(end.fetch_min(this, Ordering::Relaxed)),
                }
                progress.add_one();
            }
            sum.lock().unwrap_or_else(PoisonError::into_inner).add(seen);
        };
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(work);
            }
        });
        let first = end.into_inner();
        let found = (first < self.from + seeds).then(|| {
            let again = run(first, self.steps, plant, true).err();
            again.unwrap_or_else(|| panic!("seed {first} finds something, and not again"))
        });
        (sum.into_inner().unwrap_or_else(PoisonError::into_inner), found)
    }
}

fn text(report: &Report) -> String {
    let Report { from, seeds, steps, seconds, seen, .. } = report;
    let seen: Vec<String> = seen.iter().map(|(name, count)| format!("{count} {name}")).collect();
    format!(
        "{seeds} seeds from {from}, {steps} steps each: nothing found, {seconds:.0} s\n{}",
        seen.join(", ")
    )
}

fn schedule(finding: &Finding) -> String {
    let Finding { fault, seed, what, schedule } = finding;
    let lines = schedule.iter().enumerate().map(|(at, step)| format!("{at:5}  {step}\n"));
    let lines: String = lines.collect();
    format!("{} is found by seed {seed}: {what}\n{}", fault.unwrap_or_default(), lines.trim_end())
}

fn table(findings: &[Finding]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["FAULT", "FOUND BY SEED", "STEPS", "AS"]);
    for Finding { fault, seed, what, schedule } in findings {
        // The first line is the setup.
        let steps = (schedule.len() - 1).to_string();
        table.add_row([fault.unwrap_or_default(), &seed.to_string(), &steps, what]);
    }
    table.trim_fmt()
}
