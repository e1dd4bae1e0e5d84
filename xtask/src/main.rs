//! `cargo xtask`: what cargo alone does not know of this workspace.

mod kill;
mod lmcache;
mod progress;
mod python;
mod simulate;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};

/// Tasks of this workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Everything that must pass: formatting, lints, documentation, tests, the simulation, the address
    /// sanitizer, a short run of each fuzz target, and the Python packages without LMCache.
    Test {
        /// How long each fuzz target runs, in seconds; 0 for not at all.
        #[arg(long, default_value_t = 60)]
        fuzz_seconds: u32,
    },
    /// Run the fuzz targets. Needs a nightly toolchain; installs cargo-fuzz if it is missing.
    Fuzz {
        /// How long each runs, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Run the conformance suite: what every L1 manager must do, for each that there is.
    Conformance,
    /// Have two processes with a shared L1 manager each work at random, against locks that run out.
    Soak {
        /// For how long, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Simulate servers, instances, and what is between them, and check the rules after every step.
    Simulate(simulate::Simulate),
    /// Kill and stop servers and instances of the release build at random moments, and check that
    /// nothing is lost, wrong or left behind.
    Kill(kill::Kill),
    /// Build the Python packages, and check and test them, as far as that needs no LMCache.
    Python,
    #[command(name = "lmcache")]
    LmCache(lmcache::LmCache),
    /// Take the L1 managers' rules out one by one, and see whether their tests notice. Takes an hour;
    /// installs cargo-mutants if it is missing.
    Mutants,
    /// Run the tests of the memory crate, which has all unsafe code, under the address sanitizer.
    /// Needs a nightly toolchain.
    Asan,
}

fn main() -> anyhow::Result<()> {
    match Xtask::parse().task {
        Task::Test { fuzz_seconds } => test(fuzz_seconds),
        Task::Fuzz { seconds } => fuzz(seconds),
        Task::Conformance => conformance(),
        Task::Soak { seconds } => soak(seconds),
        Task::Simulate(simulate) => simulate.run(),
        Task::Kill(kill) => kill.run(),
        Task::Python => python::test(),
        Task::LmCache(lmcache) => lmcache.run(),
        Task::Mutants => mutants(),
        Task::Asan => asan(),
    }
}

fn test(fuzz_seconds: u32) -> anyhow::Result<()> {
    step("formatting", cargo(&["fmt", "--all", "--check"]))?;
    tidy::check(&root())?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step("lints", cargo(&clippy))?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    step("documentation", doc)?;
    say("=== simulation");
    simulate::Simulate::with_tests()?;
    asan()?;
    if fuzz_seconds > 0 {
        fuzz(fuzz_seconds)?;
    }
    python::test()?;
    step("tests", cargo(&["test", "--workspace"]))
}

fn asan() -> anyhow::Result<()> {
    let target = "x86_64-unknown-linux-gnu";
    if cfg!(not(target_arch = "x86_64")) {
        bail!("the address sanitizer is set up for {target} only");
    }
    let mut tests = cargo(&["+nightly", "test", "-p", "maru-memory", "--lib", "--tests"]);
    tests.args(["--target", target]).env("RUSTFLAGS", "-Zsanitizer=address");
    tests.env("CARGO_TARGET_DIR", root().join("target/asan"));
    step("memory under the address sanitizer", tests)
}

fn conformance() -> anyhow::Result<()> {
    // Nothing is said behind its last lines: they are the result.
    let mut suite = cargo(&["test", "-p", "maru-l1", "--test", "conformance"]);
    let passed = suite.status().context("cannot run cargo")?.success();
    ensure!(passed, "the conformance suite failed: see above");
    Ok(())
}

fn soak(seconds: u32) -> anyhow::Result<()> {
    let mut run = cargo(&["test", "-p", "maru-l1", "--test", "soak", "--", "--nocapture"]);
    run.env("MARU_SOAK_SECONDS", seconds.to_string());
    step(&format!("two processes for {seconds} s"), run)
}

fn mutants() -> anyhow::Result<()> {
    install("cargo-mutants", "mutants")?;
    let mut run = cargo(&["mutants", "--package", "maru-l1", "--timeout", "40"]);
    for file in ["staging", "local", "clock", "listener", "object", "contract", "maru/*"] {
        run.args(["--file", &format!("crates/l1/src/{file}.rs")]);
    }
    run.args(["--exclude-re", "impl (fmt::)?(Debug|Display)", "--output", "target"]);
    run.args(["--", "--test", "conformance", "--test", "same", "--test", "shared"]);
    run.env("PROPTEST_CASES", "48");
    step("mutants", run)
}

/// Installs a cargo subcommand if it is missing.
fn install(package: &str, subcommand: &str) -> anyhow::Result<()> {
    let installed = cargo(&[subcommand, "--version"]).output();
    if !installed.is_ok_and(|out| out.status.success()) {
        step(&format!("installing {package}"), cargo(&["install", package, "--locked"]))?;
    }
    Ok(())
}

fn fuzz(seconds: u32) -> anyhow::Result<()> {
    install("cargo-fuzz", "fuzz")?;
    for target in ["frame", "directory"] {
        let mut run = cargo(&["+nightly", "fuzz", "run", target, "--"]);
        run.arg(format!("-max_total_time={seconds}")).arg("-verbosity=0");
        step(&format!("fuzzing {target} for {seconds} s"), run)?;
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// The cargo on the path, not the one that runs this: only that one understands `+nightly`.
fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    // What cargo set for this program would bind the next cargo to this toolchain.
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
        command.env_remove(name);
    }
    command.args(args).current_dir(root());
    command
}

fn step(what: &str, mut command: Command) -> anyhow::Result<()> {
    say(&format!("=== {what}"));
    let start = Instant::now();
    let status = command.status().with_context(|| format!("{what}: cannot run {command:?}"))?;
    if !status.success() {
        bail!("{what} failed ({status}); run again with: {command:?}");
    }
    say(&format!("=== {what}: ok, {:.0} s", start.elapsed().as_secs_f64()));
    Ok(())
}

#[expect(clippy::print_stderr)] // A task tells where it is.
fn say(line: &str) {
    eprintln!("{line}");
}

#[expect(clippy::print_stdout)] // It is what was asked for.
fn print(text: &str) {
    println!("{text}");
}
