//! What is tested against the real LMCache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use crate::python::{self, Profile};
use crate::{print, root, say, step};

/// Run LMCache, the real one, on Maru. Sets up what that takes, without a GPU: minutes the first time.
#[derive(Debug, Args)]
pub(crate) struct LmCache {
    /// Run only these.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How long two LMCache servers work at random, in seconds.
    #[arg(long, default_value_t = 60, value_name = "N")]
    soak_seconds: u32,
    /// How many requests are timed on each L1.
    #[arg(long, default_value_t = 6, value_name = "N")]
    timed_requests: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// LMCache's own tests of an L1, over Maru's.
    Contract,
    /// Its storage manager, its in-process backend and its servers, with Maru.
    Integration,
    /// Store and retrieve times, beside those of LMCache's own L1.
    Times,
    /// Random load on two servers.
    Soak,
}

/// What came of some cases.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl LmCache {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let folder = environment()?;
        let venv = folder.join("venv");
        let server = python::server(Profile::Release)?;
        python::install(&venv, &python::wheel(Profile::Release)?)?;
        let tests = root().join("python/lmcache_tests");
        let run = |name: &str| {
            let mut command = Command::new(venv.join("bin").join(name));
            command.env("MARU_PROGRAM", &server).env("LMCACHE_TRACK_USAGE", "false");
            command.env("LMCACHE_LOG_LEVEL", "ERROR").current_dir(&tests);
            command
        };
        let mut sum = Tally::default();
        for part in Part::value_variants() {
            if !self.only.is_empty() && !self.only.contains(part) {
                continue;
            }
            let tally = match part {
                Part::Contract => {
                    let mut pytest = run("pytest");
                    // LMCache's tests bring options for plug-ins that are not here.
                    pytest.args(["-q", "-W", "ignore", "-o", "addopts=", "-p", "contract"]);
                    pytest.args(
                        ["test_l1_interface.py", "test_l1_manager.py"]
                            .map(|name| folder.join("tests/v1/distributed").join(name)),
                    );
                    pytest.env("PYTHONPATH", &tests).current_dir(&folder);
                    cases("LMCache's tests of an L1, over Maru's", &folder, pytest)?
                }
                Part::Integration => {
                    let mut pytest = run("pytest");
                    pytest.args(["-q", "-W", "ignore"]).arg(".");
                    cases("LMCache on Maru", &folder, pytest)?
                }
                Part::Times => {
                    let mut times = run("python");
                    times.args(["times.py", "--requests", &self.timed_requests.to_string()]);
                    one("store and retrieve times through LMCache's server", times)
                }
                Part::Soak => {
                    let mut soak = run("python");
                    soak.args(["soak.py", "--seconds", &self.soak_seconds.to_string()]);
                    one(&format!("two LMCache servers for {} s", self.soak_seconds), soak)
                }
            };
            sum.passed += tally.passed;
            sum.failed += tally.failed;
            sum.skipped += tally.skipped;
        }
        if sum.skipped > 0 {
            print(&format!("{} cases cannot hold for a shared pool: see above", sum.skipped));
        }
        print(&format!("{} passed, {} failed", sum.passed, sum.failed));
        ensure!(sum.failed == 0, "LMCache does not run on Maru as it must: see above");
        Ok(())
    }
}

/// Runs a program that is one case.
fn one(what: &str, command: Command) -> Tally {
    match step(what, command) {
        Ok(()) => Tally { passed: 1, ..Tally::default() },
        Err(error) => {
            say(&format!("{error:#}"));
            Tally { failed: 1, ..Tally::default() }
        }
    }
}

/// Runs pytest, and counts.
fn cases(what: &str, folder: &Path, mut pytest: Command) -> anyhow::Result<Tally> {
    let report = folder.join("report.xml");
    let _ = fs::remove_file(&report);
    pytest.arg("--junitxml").arg(&report);
    say(&format!("=== {what}"));
    let start = Instant::now();
    let status = pytest.status().with_context(|| format!("{what}: cannot run {pytest:?}"))?;
    let text = fs::read_to_string(&report)
        .with_context(|| format!("{what}: pytest ended ({status}) without a report"))?;
    let count = |name: &str| attribute(&text, name).with_context(|| format!("no {name}: {text}"));
    let failed = count("failures")? + count("errors")?;
    let skipped = count("skipped")?;
    let passed = count("tests")?.saturating_sub(failed + skipped);
    ensure!(status.success() || failed > 0, "{what}: pytest ended with {status}; see above");
    say(&format!(
        "=== {what}: {passed} passed, {failed} failed, {:.0} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(Tally { passed, failed, skipped })
}

/// A count of the first test suite in pytest's report.
fn attribute(report: &str, name: &str) -> Option<u64> {
    let suite = &report[report.find("<testsuite ")?..];
    let (_, rest) = suite.split_once(&format!(" {name}=\""))?;
    rest.split('"').next()?.parse().ok()
}

/// Makes sure of `target/lmcache`, in which `venv` has LMCache and `tests` its own tests, and says
/// where it is: an absolute path. The first time takes minutes, and later ones no time.
fn environment() -> anyhow::Result<PathBuf> {
    let folder = python::target().join("lmcache");
    let mut setup = Command::new("python3");
    setup.arg("python/lmcache_tests/environment.py").arg(&folder).current_dir(root());
    step("the environment with LMCache", setup)?;
    Ok(folder)
}
