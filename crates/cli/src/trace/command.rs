//! `maru trace`.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{Generator, GeneratorSettings, write};

#[derive(Debug, Subcommand)]
pub(crate) enum TraceCommand {
    /// Make up a trace of multi-turn conversations.
    Generate(Generate),
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// How many requests.
    #[arg(long, value_name = "N", default_value_t = GeneratorSettings::default().requests)]
    requests: u64,
    /// The same seed gives the same trace.
    #[arg(long, value_name = "N", default_value_t = GeneratorSettings::default().seed)]
    seed: u64,
    /// New conversations a minute, on average.
    #[arg(long, value_name = "N", default_value_t = GeneratorSettings::default().conversations_per_minute)]
    conversations_per_minute: u32,
    /// System prompts that conversations share.
    #[arg(long, value_name = "N", default_value_t = GeneratorSettings::default().system_prompts)]
    system_prompts: u32,
    /// Turns of a conversation, on average.
    #[arg(long, value_name = "N", default_value_t = GeneratorSettings::default().turns_mean)]
    turns: f64,
    /// Where to write. Default: stdout.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl TraceCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Self::Generate(generate) = self;
        let settings = GeneratorSettings {
            requests: generate.requests,
            seed: generate.seed,
            conversations_per_minute: generate.conversations_per_minute,
            system_prompts: generate.system_prompts,
            turns_mean: generate.turns,
            ..GeneratorSettings::default()
        };
        let generator = Generator::new(&settings)?;
        match generate.output {
            Some(path) => File::create(&path)
                .and_then(|file| write(generator, &mut BufWriter::new(file)))
                .with_context(|| format!("cannot write {}", path.display())),
            None => write(generator, &mut BufWriter::new(io::stdout().lock()))
                .context("cannot write to stdout"),
        }
    }
}
