//! The figures of a report, as tables.

use super::figures::{bytes, count, digits, float, microseconds, percent, seconds};
use super::markup::Element;
use super::plots::call_kinds;
use super::{Side, times_faster};
use crate::replay::result::{Comparison, Run};

type Runs<'a> = &'a [(Side, &'a Run)];

/// One cell.
struct Figure {
    text: String,
    /// The number to the last digit, where the text rounds it.
    exact: Option<String>,
    /// Something that must not be.
    defect: bool,
}

impl Figure {
    fn plain(text: String) -> Self {
        Self { text, exact: None, defect: false }
    }

    fn count(number: u64) -> Self {
        Self::plain(count(number))
    }

    fn bytes(number: u64) -> Self {
        Self { exact: Some(format!("{} bytes", count(number))), ..Self::plain(bytes(number)) }
    }

    /// What must be 0.
    fn defects(number: impl Into<i128>) -> Self {
        let number: i128 = number.into();
        Self { defect: number != 0, ..Self::plain(count(number)) }
    }

    fn cell(&self) -> Element {
        let cell = Element::new("td").class(if self.defect { "defect" } else { "figure" });
        match &self.exact {
            Some(exact) => cell.set("title", exact.as_str()).text(self.text.as_str()),
            None => cell.text(self.text.as_str()),
        }
    }
}

type Row = (&'static str, fn(&Run) -> Figure);

const ROWS: [(&str, &[Row]); 5] = [
    (
        "Found in L1",
        &[
            ("Prefix hit rate", |run| Figure::plain(percent(run.prefix_hit_rate))),
            ("Requests", |run| Figure::count(run.requests)),
            ("Blocks requested", |run| Figure::count(run.blocks_requested)),
            ("Blocks hit", |run| Figure::count(run.blocks_hit)),
            ("KV not computed again", |run| Figure::bytes(run.bytes_not_recomputed)),
        ],
    ),
    (
        "Put into L1",
        &[
            ("Blocks stored", |run| Figure::count(run.blocks_stored)),
            ("Blocks not stored again", |run| Figure::count(run.blocks_not_stored_again)),
            ("Blocks without memory", |run| Figure::count(run.blocks_without_memory)),
            ("Evictions", |run| Figure::count(run.evictions)),
        ],
    ),
    (
        "Checked",
        &[
            ("Bytes verified", |run| Figure::bytes(run.bytes_verified)),
            ("Wrong bytes", |run| Figure::defects(run.wrong_bytes)),
        ],
    ),
    (
        "Speed",
        &[
            ("Copied in", |run| gb_per_s(run.gb_per_s.write)),
            ("Copied out", |run| gb_per_s(run.gb_per_s.read)),
            ("Wall-clock time", |run| Figure::plain(seconds(run.seconds))),
        ],
    ),
    (
        "At the end",
        &[
            ("Instances lost", |run| Figure::count(run.instances_lost.into())),
            ("Pins left", |run| Figure::defects(run.pins_left)),
            ("Reservations left", |run| Figure::defects(run.reservations_left)),
            ("Pages lost", |run| Figure::defects(run.pages_lost)),
        ],
    ),
];

fn gb_per_s(speed: f64) -> Figure {
    Figure::plain(format!("{} GB/s", digits(speed)))
}

/// All figures of the runs, side by side.
pub(super) fn comparison(runs: Runs) -> Element {
    let head = Element::new("tr").with(heading("col", "Figure")).with_all(
        runs.iter().map(|(side, _)| heading("col", side.name()).set("class", side.class())),
    );
    let groups = ROWS.iter().map(|(title, rows)| {
        let group = heading("colgroup", title).set("colspan", (runs.len() + 1).to_string());
        Element::new("tbody").with(Element::new("tr").class("group").with(group)).with_all(
            rows.iter().map(|(name, figure)| {
                Element::new("tr")
                    .with(heading("row", name))
                    .with_all(runs.iter().map(|(_, run)| figure(run).cell()))
            }),
        )
    });
    scrolling(
        Element::new("table")
            .class("side-by-side")
            .with(Element::new("thead").with(head))
            .with_all(groups),
    )
}

/// Latencies by call; `None` where none were measured.
pub(super) fn latencies(runs: Runs) -> Option<Element> {
    let kinds = call_kinds(runs);
    if kinds.is_empty() {
        return None;
    }
    let titles = ["Call", "L1", "p50", "p90", "p99", "Longest", "Count"];
    let head = Element::new("tr").with_all(titles.map(|title| heading("col", title)));
    let rows = kinds.into_iter().flat_map(|kind| {
        runs.iter().filter_map(move |(side, run)| {
            let latency = run.latency_us.get(kind)?;
            let times = [latency.p50, latency.p90, latency.p99, latency.max];
            let row = Element::new("tr")
                .with(heading("row", kind))
                .with(Element::of("td", side.adjective()).set("class", side.class()))
                .with_all(times.map(|time| Figure::plain(microseconds(time)).cell()))
                .with(Figure::count(latency.count).cell());
            Some(row)
        })
    });
    Some(scrolling(
        Element::new("table")
            .class("latency")
            .with(Element::new("thead").with(head))
            .with(Element::new("tbody").with_all(rows)),
    ))
}

/// What was replayed, and how.
pub(super) fn setting(comparison: &Comparison) -> Element {
    let trace = &comparison.trace;
    let options = &comparison.options;
    let whole = options.capacity_blocks.saturating_mul(options.page_bytes);
    let entries = [
        ("Trace", trace.source.clone()),
        ("Requests", count(trace.requests)),
        (
            "Blocks",
            format!("{}, {} of them distinct", count(trace.blocks), count(trace.distinct_blocks)),
        ),
        ("Bad lines passed over", count(trace.skipped_lines)),
        ("Time span", seconds(float(trace.span_ms) / 1e3)),
        ("Instances", count(options.instances)),
        (
            "Capacity of all together",
            format!("{} blocks, {}", count(options.capacity_blocks), bytes(whole)),
        ),
        ("Page size", bytes(options.page_bytes)),
        ("Private L1 evicts by", options.policy_name().to_owned()),
        ("Replayed", times_faster(options.speed_up)),
        ("Seed", options.seed.to_string()),
    ];
    Element::new("dl").class("setting").with_all(entries.into_iter().map(|(name, value)| {
        Element::new("div").with(Element::of("dt", name)).with(Element::of("dd", value))
    }))
}

fn heading(scope: &'static str, text: &str) -> Element {
    Element::of("th", text).set("scope", scope)
}

/// A wide table scrolls by itself on a narrow screen, and can be reached by the keyboard.
fn scrolling(table: Element) -> Element {
    Element::new("div").class("card scrolling").set("tabindex", "0").with(table)
}
