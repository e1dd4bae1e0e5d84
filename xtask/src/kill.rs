//! `cargo xtask kill`: the release build of `maru`, killed and stopped at random moments.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use maru_testkit::Program;
use maru_testkit::kill::{Figures, Series};
use serde::Serialize;
use tempfile::TempDir;

use crate::progress::Progress;
use crate::{cargo, print, step};

/// Kill and stop servers and instances of the release build at random moments, and check everything.
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// How often a server is killed under a running replay.
    #[arg(long, value_name = "N", default_value_t = 200)]
    server: u64,
    /// How often an instance is killed in the middle of a replay; a tenth as often again over TCP.
    #[arg(long, value_name = "N", default_value_t = 200)]
    instances: u64,
    /// How often an instance is stopped for longer than its lease.
    #[arg(long, value_name = "N", default_value_t = 50)]
    stops: u64,
    /// How often a server is killed together with an instance, or while one is stopped.
    #[arg(long, value_name = "N", default_value_t = 40)]
    mixed: u64,
    /// Makes the same choices again; processes will take their turns otherwise.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    seconds: u64,
    series: BTreeMap<&'static str, Figures>,
}

type Figure = fn(&Figures) -> u64;

/// One series of kills or stops.
struct Part {
    name: &'static str,
    /// How many are wanted.
    goal: u64,
    /// How many there are.
    done: Figure,
    act: fn(&mut Series, u64),
}

impl Kill {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let program = release_build()?;
        let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = self.seed.unwrap_or(unix_time.as_secs());
        let folder = tempfile::Builder::new().prefix("maru-kill-").tempdir_in("/dev/shm");
        let folder = folder.context("cannot make a folder for pools")?;
        let (start, mut series) = (Instant::now(), BTreeMap::new());
        for part in self.parts().into_iter().filter(|part| part.goal > 0) {
            let name = part.name;
            match part.run(&program, folder.path(), seed) {
                Ok(figures) => drop(series.insert(name, figures)),
                Err(failure) => return Err(self.explain(&failure, seed, folder)),
            }
        }
        let report = Report { seed, seconds: start.elapsed().as_secs(), series };
        print(&if self.json { serde_json::to_string_pretty(&report)? } else { table(&report) });
        Ok(())
    }

    fn parts(&self) -> [Part; 5] {
        [
            Part {
                name: "servers",
                goal: self.server,
                done: |figures| figures.servers_killed,
                act: Series::kill_servers,
            },
            Part {
                name: "instances",
                goal: self.instances,
                done: |figures| figures.instances_killed,
                act: Series::kill_instances,
            },
            Part {
                name: "over TCP",
                goal: self.instances.div_ceil(10),
                done: |figures| figures.instances_killed,
                act: Series::kill_instances_over_tcp,
            },
            Part {
                name: "stops",
                goal: self.stops,
                done: |figures| figures.instances_stopped,
                act: Series::stop_instances,
            },
            Part {
                name: "mixed",
                goal: self.mixed,
                done: |figures| figures.servers_killed,
                act: Series::kill_servers_and_instances,
            },
        ]
    }

    fn explain(&self, failure: &str, seed: u64, folder: TempDir) -> anyhow::Error {
        let Self { server, instances, stops, mixed, .. } = self;
        anyhow!(
            "{failure}\nseed {seed}; pools, stores and logs are kept in {}; the same choices again: \
             cargo xtask kill --seed {seed} --server {server} --instances {instances} --stops {stops} \
             --mixed {mixed}",
            folder.keep().display()
        )
    }
}

/// Builds the program, and says where it is.
fn release_build() -> anyhow::Result<Program> {
    step("the release build", cargo(&["build", "--release", "-p", "maru"]))?;
    // This program lies in the same target folder, one profile beside.
    let this = std::env::current_exe().context("cannot find this program itself")?;
    let target = this.ancestors().nth(2).context("this program is in no target folder")?;
    Ok(Program::new(target.join("release/maru")))
}

impl Part {
    /// Runs to its end, or says what was found that must not be.
    fn run(self, program: &Program, folder: &Path, seed: u64) -> Result<Figures, String> {
        let Self { name, goal, done, act } = self;
        let root = folder.join(name.replace(' ', "-"));
        std::fs::create_dir(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        let progress = Progress::new(name, goal);
        let tell = move |figures: &Figures| progress.set(done(figures));
        let mut series = Series::new(program.clone(), root, seed, tell);
        // What it finds is a panic; nothing of it is used behind that but its figures.
        let end = catch_unwind(AssertUnwindSafe(|| act(&mut series, goal)));
        let figures = series.figures().clone();
        end.map_err(|panic| {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("{name}, after {}: {}", done(&figures), words.unwrap_or("a panic"))
        })?;
        Ok(figures)
    }
}

/// A row a figure, a column a series.
fn table(report: &Report) -> String {
    const ROWS: [(&str, Figure); 12] = [
        ("servers killed", |f| f.servers_killed),
        ("instances killed", |f| f.instances_killed),
        ("instances stopped", |f| f.instances_stopped),
        ("replays", |f| f.replays),
        ("entries read back", |f| f.entries_checked),
        ("bytes verified", |f| f.bytes_verified),
        ("wrong bytes", |f| f.wrong_bytes),
        ("left behind", |f| f.left_behind),
        ("pages kept for stopped writers", |f| f.pages_kept),
        ("slowest to hold nothing, ms", |f| f.slowest_cleanup_ms),
        ("slowest first answer, ms", |f| f.slowest_answer_ms),
        ("slowest return of all, ms", |f| f.slowest_return_ms),
    ];
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let names = report.series.keys().map(|name| name.to_uppercase());
    table.set_header(std::iter::once(String::new()).chain(names));
    for (name, figure) in ROWS {
        let figures = report.series.values().map(|figures| figure(figures).to_string());
        table.add_row(std::iter::once(name.to_owned()).chain(figures));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n\nseed {}, {} s", table.trim_fmt(), report.seed, report.seconds)
}
