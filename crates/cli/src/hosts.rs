//! `maru hosts`: who shares the pool, and what is left of those who have gone.

use anyhow::Context;
use clap::Args;

use crate::inspect::ServerArgs;
use crate::output::{self, count};

/// The hosts that share the pool.
#[derive(Debug, Args)]
pub(crate) struct Hosts {
    #[command(flatten)]
    server: ServerArgs,
    /// Say that this host is powered off or was started anew, so that its caches hold nothing any
    /// more: pages that it left unwritten lines of can then be granted to others. Said of a host that
    /// runs, it lets that one overwrite what others store.
    #[arg(long, value_name = "HOST")]
    gone: Option<String>,
}

impl Hosts {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let client = self.server.connect()?;
        let hosts = client.hosts()?;
        if let Some(name) = self.gone {
            let known = hosts.into_iter().find(|known| known.host == name);
            let known = known.with_context(|| {
                format!("the server knows no host {name:?}: `maru hosts` lists those it knows")
            })?;
            client.host_gone(&name)?;
            if self.server.json {
                return output::print_json(&known);
            }
            let (name, pages) = (name.escape_debug(), count(known.pages_stained));
            return output::print(&format!("{name} is gone; it had left lines of {pages} pages\n"));
        }
        if self.server.json {
            return output::print_json(&hosts);
        }
        let mut table = output::table(&["HOST", ">SESSIONS", ">STAINED PAGES"]);
        for host in hosts {
            table.add_row([
                host.host.escape_debug().to_string(),
                count(host.sessions),
                count(host.pages_stained),
            ]);
        }
        output::print_table(&table)
    }
}
