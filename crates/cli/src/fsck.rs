//! `maru pool fsck`: whether a pool and its store fit each other, and what can be kept if not.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use maru_server::fsck::{Doing, Examined, Finding, Fsck, FsckConfig, Repaired};
use serde::Serialize;

use crate::output;
use crate::reading::Reading;
use crate::usage::check_distinct;

#[derive(Debug, Args)]
pub(crate) struct FsckArgs {
    /// The pool's devices, in the order in which they are served.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The pool's store; if nothing is said, where maru serve has it.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Read all chunks, and hold them against their checksums.
    #[arg(long)]
    verify: bool,
    /// Do what the findings say. The old store is kept beside the new one.
    #[arg(long)]
    repair: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What came of it, as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    examined: &'a Examined,
    repaired: Option<Repaired>,
}

impl FsckArgs {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        check_distinct(&self.paths)?;
        if let Some(store) = self.store.as_ref().filter(|store| !store.is_dir()) {
            bail!(
                "there is no store at {}: name the folder that --store of maru serve named",
                store.display()
            );
        }
        let config = FsckConfig {
            devices: self.paths.clone(),
            store: self.store.clone(),
            verify: self.verify,
        };
        let (mut store, mut pool) = (Reading::new("the store"), Reading::new("the pool"));
        let fsck = Fsck::look(&config, &mut |doing, progress| match doing {
            Doing::ReadingStore => store.tell(progress),
            Doing::ReadingPool => pool.tell(progress),
        })?;
        drop((store, pool));
        let examined = fsck.examined().clone();
        if !self.json {
            output::print(&text(&examined, self.verify))?;
        }
        let repaired = if self.repair { fsck.repair()? } else { None };
        if self.json {
            output::print_json(&Report { examined: &examined, repaired: repaired.clone() })?;
        } else if let Some(Repaired { kept, before }) = &repaired {
            let kept = output::count(*kept);
            output::print(&format!(
                "\nrepaired: the store has {kept} chunks; the old one is {}\n",
                before.display()
            ))?;
        }
        if repaired.is_none() && !examined.is_sound() {
            bail!("the pool and its store do not fit: repair that with --repair");
        }
        Ok(())
    }
}

fn text(examined: &Examined, verify: bool) -> String {
    let Examined { store, pool_epoch, store_epoch, entries, verified, kept, findings } = examined;
    let epoch = |epoch: u64| if epoch == 0 { "none".to_owned() } else { epoch.to_string() };
    let store_epoch = store_epoch.map_or_else(|| "none".to_owned(), epoch);
    let mut text = format!(
        "store    {}\nepoch    {} of the pool, {store_epoch} of the store\n\
         chunks   {} in the store, {} of them verified, {} can be kept\n",
        store.display(),
        epoch(*pool_epoch),
        output::count(*entries),
        output::count(*verified),
        output::count(*kept),
    );
    for finding in findings {
        text.extend([format!("\nfound    {finding}\nrepair   {}\n", finding.remedy())]);
    }
    text += match findings.len() {
        0 if examined.store_epoch.is_none() => {
            "\nthere is no store: served, the pool begins empty\n"
        }
        0 => "\nnothing to repair\n",
        _ if !verify && findings.iter().any(Finding::is_of_distrust) => {
            "\nwith --verify, chunks that have a checksum and are right can be kept\n"
        }
        _ => "",
    };
    text
}
