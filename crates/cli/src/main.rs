//! The `maru` program: serve a pool, replay traces against it, look into it.

// Doc comments here are help texts on a terminal, where backticks would show.
#![allow(clippy::doc_markdown)]

mod doctor;
mod fsck;
mod hosts;
mod inspect;
mod output;
mod pool;
mod reading;
mod replay;
mod serve;
mod signals;
mod trace;
mod usage;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use maru_client::ClientError;
use maru_l1::L1ConfigError;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use usage::WrongUsage;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, or a problem was found; what is printed says why and what to do
  2  wrong usage
  3  the server cannot be reached or does not answer
  4  a replay found wrong bytes, or something left behind";

/// One pool of CXL memory, many LLM serving instances, one copy of every KV chunk.
#[derive(Debug, Parser)]
#[command(name = "maru", version, after_help = EXIT_CODES)]
struct Maru {
    /// How much to log, to stderr: off, error, warn, info, debug, trace, or by module, such as
    /// warn,maru_server=debug.
    #[arg(long, global = true, env = "MARU_LOG", default_value = "info", value_name = "LEVEL")]
    #[arg(help_heading = "Logging")]
    log: String,
    /// How to log.
    #[arg(long, global = true, env = "MARU_LOG_FORMAT", value_enum, default_value_t)]
    #[arg(help_heading = "Logging", value_name = "FORMAT")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a pool. Without flags: 1 GiB in /dev/shm, for this user, on this host.
    Serve(serve::Serve),
    /// Replay a request trace over private L1 caches and over a shared one, and compare.
    Replay(Box<replay::Replay>),
    /// One instance of a replay; started by `maru replay`.
    #[command(hide = true)]
    ReplayInstance,
    /// Numbers of a running server: pages by state, hits, evictions, sessions.
    Stat(inspect::Stat),
    /// List the keys in the pool.
    Ls(inspect::Ls),
    /// Who holds what, and for how long: pins and reservations.
    Pins(inspect::Pins),
    /// The hosts that share the pool, and what is left of those that are gone.
    Hosts(hosts::Hosts),
    /// Whether this machine has what Maru and LMCache need, and what to do where it has not.
    Doctor(doctor::Doctor),
    /// Make and look at the devices of a pool.
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Request traces.
    #[command(subcommand)]
    Trace(trace::TraceCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// A replay that ran, and found what must not be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Defect(String);

fn main() -> ExitCode {
    let maru = Maru::parse();
    if let Err(error) = start_logging(&maru) {
        output::complain(&format!(
            "error: --log {:?} is not a level or a filter: {error}",
            maru.log
        ));
        return ExitCode::from(2);
    }
    let result = match maru.command {
        Command::Serve(serve) => serve.run(),
        Command::Replay(replay) => replay.run(),
        Command::ReplayInstance => replay::instance::run(),
        Command::Stat(stat) => stat.run(),
        Command::Ls(ls) => ls.run(),
        Command::Pins(pins) => pins.run(),
        Command::Hosts(hosts) => hosts.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Pool(pool) => pool.run(),
        Command::Trace(trace) => trace.run(),
        Command::Completions { shell } => output::print(&completions(shell)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("error: {}", output::in_words(&error)));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Unreachable { .. } | ClientError::Timeout { .. }) => 3,
        _ if error.is::<Defect>() => 4,
        _ if error.is::<WrongUsage>() || error.is::<trace::SettingsError>() => 2,
        _ if error.is::<L1ConfigError>() => 2,
        _ => 1,
    }
}

/// The script for a shell, without the commands that are not for people.
fn completions(shell: clap_complete::Shell) -> String {
    let whole = Maru::command();
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set());
    let mut command = clap::Command::new("maru")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments())
        .subcommands(shown);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "maru", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

fn start_logging(maru: &Maru) -> anyhow::Result<()> {
    let filter = log_filter(&maru.log)?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(output::has_colours(&std::io::stderr()))
        .with_target(false);
    match maru.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

/// A filter of log lines. A bare word must be a level: taken for a module, a misspelt one would
/// silence everything else.
fn log_filter(text: &str) -> anyhow::Result<EnvFilter> {
    let mut words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let bad = words.find(|word| !word.contains(['=', '[']) && word.parse::<LevelFilter>().is_err());
    if let Some(word) = bad {
        anyhow::bail!("{word:?} is none of off, error, warn, info, debug, trace, MODULE=LEVEL");
    }
    Ok(EnvFilter::builder().parse(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_no_filter() {
        for good in ["info", "WARN", "off", "", "warn,maru_server=debug", "[session]=trace"] {
            assert!(log_filter(good).is_ok(), "{good}");
        }
        for bad in ["warning", "info,verbose", "maru_server", "l=o=u=d"] {
            assert!(log_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Maru::command().debug_assert();
    }
}
