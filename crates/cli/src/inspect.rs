//! `maru stat`, `maru ls`, `maru pins`: looking into a running server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use maru_client::{Client, ClientConfig};
use maru_protocol::{Endpoint, EntryInfo, HolderInfo, HoldingKind, Key, Stats};
use serde::Serialize;

use crate::output::{self, bytes, count, duration};

/// Rows asked for in one request.
const ROWS: u32 = 1024;

/// Where the server is.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server: a socket's path, unix://PATH or tcp://HOST:PORT. Default: this user's socket.
    #[arg(long, env = "MARU_SERVER", value_name = "URL")]
    server: Option<Endpoint>,
    /// The library that makes chunks visible to other hosts, if the pool's instances use one: who
    /// connects may be asked to write back what others of this host have left.
    #[arg(long, env = "MARU_VISIBILITY_PLUGIN", value_name = "FILE")]
    visibility_plugin: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl ServerArgs {
    pub(crate) fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.config())?)
    }

    /// Whether somebody said where it is.
    pub(crate) fn is_named(&self) -> bool {
        self.server.is_some()
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let default = ClientConfig::default();
        let endpoint = self.server.clone().unwrap_or_else(|| default.endpoint.clone());
        let instance = format!("maru-cli-{}", std::process::id());
        let visibility_plugin = self.visibility_plugin.clone();
        ClientConfig { endpoint, instance, visibility_plugin, ..default }
    }
}

/// Numbers of a running server.
#[derive(Debug, Args)]
pub(crate) struct Stat {
    #[command(flatten)]
    server: ServerArgs,
    /// Also show every region.
    #[arg(long)]
    regions: bool,
}

/// List the keys in the pool.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    server: ServerArgs,
    /// Only keys that begin so.
    #[arg(default_value = "")]
    prefix: String,
    /// At most so many keys.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u64,
}

/// Who holds what.
#[derive(Debug, Args)]
pub(crate) struct Pins {
    #[command(flatten)]
    server: ServerArgs,
    /// One row an instance instead of one a holding.
    #[arg(long)]
    by_instance: bool,
}

impl Stat {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let client = self.server.connect()?;
        let stats = client.stats()?;
        let regions = if self.regions { Some(client.regions()?) } else { None };
        if self.server.json {
            return match regions {
                Some(regions) => {
                    output::print_json(&serde_json::json!({ "stats": stats, "regions": regions }))
                }
                None => output::print_json(&stats),
            };
        }
        print_stats(&stats)?;
        let Some(regions) = regions else {
            return Ok(());
        };
        output::print("\n")?;
        let heads = [
            "REGION",
            ">OFFSET",
            ">SIZE",
            ">PAGE",
            ">PAGES",
            ">FREE",
            ">RESERVED",
            ">RESIDENT",
            ">QUARANTINED",
        ];
        let mut table = output::table(&heads);
        for region in regions {
            table.add_row([
                region.region.to_string(),
                bytes(region.offset),
                bytes(region.bytes),
                if region.page_bytes == 0 { "-".to_owned() } else { bytes(region.page_bytes) },
                count(region.pages),
                count(region.free),
                count(region.reserved),
                count(region.resident),
                count(region.quarantined),
            ]);
        }
        output::print_table(&table)
    }
}

fn print_stats(stats: &Stats) -> anyhow::Result<()> {
    let mut table = output::table(&["POOL", ">PAGES", ">BYTES"]);
    for (name, pages, size) in [
        ("resident", Some(stats.pages_resident), stats.resident_bytes),
        ("reserved", Some(stats.pages_reserved), stats.reserved_bytes),
        ("quarantined", Some(stats.pages_quarantined), stats.quarantined_bytes),
        ("free", Some(stats.pages_free), stats.free_bytes),
        ("in no page size", None, stats.uncut_bytes + stats.tail_bytes),
        ("in all", None, stats.capacity_bytes),
    ] {
        table.add_row([name.to_owned(), pages.map_or_else(String::new, count), bytes(size)]);
    }
    output::print_table(&table)?;
    let c = &stats.counters;
    let asked = c.hits + c.misses;
    // Shown to a tenth of a percent.
    #[expect(clippy::cast_precision_loss)]
    let hit_rate = if asked == 0 { 0.0 } else { c.hits as f64 * 100.0 / asked as f64 };
    let evicted = c.evicted();
    let refused = c.refused_resident + c.refused_being_written;
    output::print(&format!(
        "\nserving for {}, epoch {}; {} requests, {} replayed, {} refused\n\
         keys: {} hits, {} misses ({hit_rate:.1} % of those looked up); \
         {} stored, {} not stored again, {} evicted, {} deleted\n\
         pins: {} on {} entries; {} taken back from sessions that ended\n\
         refused for lack of memory: {}, of budget: {}\n\
         rules: {} checks, {} violations\n",
        duration(stats.uptime_ms),
        stats.epoch,
        count(c.requests),
        count(c.replays),
        count(c.refusals),
        count(c.hits),
        count(c.misses),
        count(c.committed),
        count(refused),
        count(evicted),
        count(c.deleted),
        count(stats.pins),
        count(stats.entries_pinned),
        count(c.pins_reclaimed),
        count(c.refused_out_of_memory),
        count(c.refused_over_budget),
        count(c.rule_checks),
        count(c.rule_violations),
    ))?;
    for warning in warnings(stats) {
        output::print(&format!("! {warning}\n"))?;
    }
    output::print("\n")?;
    let heads =
        ["INSTANCE", "SESSION", "CONNECTED", ">HEARD", ">PINS", ">RESERVED", ">BYTES", ">BUDGET"];
    let mut table = output::table(&heads);
    for session in &stats.sessions {
        table.add_row([
            session.instance.escape_debug().to_string(),
            session.session.to_string(),
            if session.connected { "yes" } else { "no" }.to_owned(),
            format!("{} ago", duration(session.heard_ms_ago)),
            count(session.pins),
            count(session.reservations),
            bytes(session.instance_bytes),
            if session.budget_bytes == 0 { "-".to_owned() } else { bytes(session.budget_bytes) },
        ]);
    }
    output::print_table(&table)
}

/// What somebody should know of, each as a sentence.
pub(crate) fn warnings(stats: &Stats) -> Vec<String> {
    let some = |number: u64, what: &str| {
        format!("{} {what}{}", count(number), if number == 1 { "" } else { "s" })
    };
    let mut warnings = Vec::new();
    if stats.store_full {
        warnings.push("the store is full, so writes are refused: make room where it lies".into());
    }
    if stats.withheld_ms > 0 {
        warnings.push(format!(
            "no page is granted for another {}: whoever wrote to the pool before its store was lost may \
             still do so",
            duration(stats.withheld_ms)
        ));
    }
    if stats.sessions_awaited > 0 {
        warnings.push(format!(
            "{} of before the server's restart not back yet: until then, or the end of their leases, \
             nothing is evicted or deleted",
            some(stats.sessions_awaited, "session")
        ));
    }
    if stats.pages_unclaimed > 0 {
        warnings.push(format!(
            "{} kept back, since sessions of before the server's restart may hold them",
            some(stats.pages_unclaimed, "page")
        ));
    }
    if stats.pages_stained > 0 {
        warnings.push(format!(
            "{} stained, since the caches of a host whose instance has died may hold lines of them: any \
             instance there writes those back; if the host is off, say `maru hosts --gone HOST`",
            some(stats.pages_stained, "page")
        ));
    }
    let damaged = stats.counters.damaged;
    if stats.pages_damaged + damaged > 0 {
        warnings.push(format!(
            "{} damaged and not used any more; {} since the server started: its log, or that of the \
             instance that could not write, says where",
            some(stats.pages_damaged, "page"),
            count(damaged)
        ));
    }
    warnings
}

/// A key as programs want it: text where it is text.
fn key_text(key: &[u8]) -> String {
    Key::new(key).map(|key| key.to_string()).unwrap_or_default()
}

#[derive(Debug, Serialize)]
struct EntryRow<'a> {
    key: String,
    page_bytes: u64,
    length: u64,
    region: u32,
    offset: u64,
    generation: u64,
    writer: &'a str,
    pins: u32,
    used_ms_ago: u64,
}

impl<'a> EntryRow<'a> {
    fn new(entry: &'a EntryInfo) -> Self {
        Self {
            key: key_text(&entry.key),
            page_bytes: entry.page_bytes,
            length: entry.location.length,
            region: entry.location.handle.region.0,
            offset: entry.location.offset(),
            generation: entry.location.generation().0,
            writer: &entry.writer,
            pins: entry.pins,
            used_ms_ago: entry.used_ms_ago,
        }
    }
}

impl Ls {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let client = self.server.connect()?;
        let mut entries: Vec<EntryInfo> = Vec::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor
            && (entries.len() as u64) < self.limit
        {
            let page = client.list(self.prefix.as_bytes(), from, ROWS)?;
            entries.extend(page.entries);
            cursor = page.next;
        }
        let more = cursor.is_some() || entries.len() as u64 > self.limit;
        entries.truncate(usize::try_from(self.limit).unwrap_or(usize::MAX));
        let rows = entries.iter().map(EntryRow::new);
        if self.server.json {
            return output::print_json(&rows.collect::<Vec<_>>());
        }
        let mut table = output::table(&["KEY", ">SIZE", ">PAGE", "WRITER", ">PINS", ">USED"]);
        for row in rows {
            table.add_row([
                row.key,
                bytes(row.length),
                bytes(row.page_bytes),
                row.writer.escape_debug().to_string(),
                count(row.pins),
                format!("{} ago", duration(row.used_ms_ago)),
            ]);
        }
        output::print_table(&table)?;
        if more {
            output::complain("there are more keys; raise --limit");
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct HolderRow<'a> {
    instance: &'a str,
    session: u64,
    kind: &'static str,
    /// Pins; 1 for a reservation.
    count: u32,
    key: String,
    length: u64,
    held_ms: u64,
}

impl<'a> HolderRow<'a> {
    fn new(holder: &'a HolderInfo) -> Self {
        let (kind, count) = match holder.kind {
            HoldingKind::Pin { count } => ("pin", count),
            HoldingKind::Reservation => ("reservation", 1),
        };
        Self {
            instance: &holder.instance,
            session: holder.session.0,
            kind,
            count,
            key: key_text(&holder.key),
            length: holder.location.length,
            held_ms: holder.held_ms,
        }
    }
}

/// What one instance holds.
#[derive(Debug, Default, Serialize)]
struct InstanceRow {
    instance: String,
    pins: u64,
    reservations: u64,
    longest_held_ms: u64,
}

impl Pins {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let client = self.server.connect()?;
        let mut holders: Vec<HolderInfo> = Vec::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let page = client.holders(from, ROWS)?;
            holders.extend(page.holders);
            cursor = page.next;
        }
        let rows: Vec<HolderRow<'_>> = holders.iter().map(HolderRow::new).collect();
        match (self.by_instance, self.server.json) {
            (true, json) => print_by_instance(&rows, json),
            (false, true) => output::print_json(&rows),
            (false, false) => {
                let heads = ["INSTANCE", "SESSION", "HOLDS", ">COUNT", ">SIZE", ">FOR", "KEY"];
                let mut table = output::table(&heads);
                for row in rows {
                    table.add_row([
                        row.instance.escape_debug().to_string(),
                        row.session.to_string(),
                        row.kind.to_owned(),
                        count(row.count),
                        bytes(row.length),
                        duration(row.held_ms),
                        row.key,
                    ]);
                }
                output::print_table(&table)
            }
        }
    }
}

fn print_by_instance(rows: &[HolderRow<'_>], json: bool) -> anyhow::Result<()> {
    let mut instances: BTreeMap<&str, InstanceRow> = BTreeMap::new();
    for row in rows {
        let sum = instances.entry(row.instance).or_default();
        row.instance.clone_into(&mut sum.instance);
        sum.longest_held_ms = sum.longest_held_ms.max(row.held_ms);
        match row.kind {
            "pin" => sum.pins += u64::from(row.count),
            _ => sum.reservations += 1,
        }
    }
    if json {
        return output::print_json(&instances.into_values().collect::<Vec<_>>());
    }
    let mut table = output::table(&["INSTANCE", ">PINS", ">RESERVATIONS", ">LONGEST HELD"]);
    for row in instances.into_values() {
        table.add_row([
            row.instance.escape_debug().to_string(),
            count(row.pins),
            count(row.reservations),
            duration(row.longest_held_ms),
        ]);
    }
    output::print_table(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_should_know_is_said_in_words() {
        assert_eq!(warnings(&Stats::default()), Vec::<String>::new());
        let stats = Stats {
            store_full: true,
            withheld_ms: 12_300,
            sessions_awaited: 1,
            pages_unclaimed: 1234,
            pages_stained: 1,
            pages_damaged: 2,
            ..Stats::default()
        };
        let warnings = warnings(&stats);
        let expected = [
            "the store is full",
            "no page is granted for another 12.3 s",
            "1 session of before",
            "1 234 pages kept back",
            "1 page stained",
            "2 pages damaged",
        ];
        assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
        for (warning, begins) in warnings.iter().zip(expected) {
            assert!(warning.starts_with(begins), "{warning}");
        }
    }
}
