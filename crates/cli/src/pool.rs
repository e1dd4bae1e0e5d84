//! `maru pool`: the devices of a pool.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use maru_memory::{Device, DeviceError, DeviceSpec, Identity, IfExists, inspect};
use serde::Serialize;

use crate::fsck::FsckArgs;
use crate::output;
use crate::usage::check_distinct;

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Make devices: write an identity header, and for files their size.
    Init(Init),
    /// Show the identity of devices, and whether a server has them.
    Inspect(Inspect),
    /// Look whether a pool and its store fit each other, and repair what does not. Nothing is changed
    /// without --repair, and no server may have the pool.
    Fsck(FsckArgs),
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// A DAX device, or a file and its size.
    #[arg(required = true, value_name = "PATH[:SIZE]")]
    devices: Vec<DeviceSpec>,
    /// Replace what is there, a pool or not; what it holds is lost.
    #[arg(long)]
    overwrite: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The devices.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One device, as JSON.
#[derive(Debug, Serialize)]
struct Row {
    path: PathBuf,
    uuid: String,
    kind: String,
    bytes: u64,
    alignment: u64,
    format_version: u32,
    created_unix_ms: u64,
    in_use: bool,
}

impl Row {
    fn new(path: PathBuf, identity: &Identity) -> Self {
        Self {
            path,
            uuid: identity.uuid.to_string(),
            kind: identity.kind.to_string(),
            bytes: identity.bytes,
            alignment: identity.alignment,
            format_version: identity.format_version,
            created_unix_ms: identity.created_unix_ms,
            in_use: identity.in_use,
        }
    }
}

impl PoolCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let (paths, json) = match self {
            Self::Init(init) => (make(&init)?, init.json),
            Self::Inspect(look) => (look.paths, look.json),
            Self::Fsck(fsck) => return fsck.run(),
        };
        let rows: Vec<Row> = paths
            .into_iter()
            .map(|path| Ok(Row::new(path.clone(), &inspect(path)?)))
            .collect::<anyhow::Result<_>>()?;
        if json {
            return output::print_json(&rows);
        }
        let mut table = output::table(&["DEVICE", "UUID", "KIND", ">SIZE", ">ALIGN", "IN USE"]);
        for row in rows {
            table.add_row([
                row.path.display().to_string(),
                row.uuid,
                row.kind,
                output::bytes(row.bytes),
                output::bytes(row.alignment),
                if row.in_use { "yes" } else { "no" }.to_owned(),
            ]);
        }
        output::print_table(&table)
    }
}

fn make(init: &Init) -> anyhow::Result<Vec<PathBuf>> {
    let if_exists = if init.overwrite { IfExists::Overwrite } else { IfExists::Refuse };
    check_distinct(init.devices.iter().map(|spec| &spec.path))?;
    let mut paths = Vec::new();
    for spec in &init.devices {
        let made = Device::create(spec, if_exists).map_err(|error| stopped_at(error, &paths))?;
        paths.push(made.path().to_owned());
    }
    Ok(paths)
}

/// Says with the error which devices were made before it.
fn stopped_at(error: DeviceError, made: &[PathBuf]) -> anyhow::Error {
    if made.is_empty() {
        return error.into();
    }
    let made: Vec<String> = made.iter().map(|path| path.display().to_string()).collect();
    anyhow!("{error}; made before that, and kept: {}", made.join(", "))
}
