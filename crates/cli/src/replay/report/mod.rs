//! The report of a replay: one HTML page that needs nothing but itself.
//!
//! Charts are drawn here, as inline SVG, rather than by a plotting crate: those write fixed colours
//! into the drawing, while these follow the reader's colour scheme and width through the page's own
//! style sheet.

mod chart;
mod figures;
mod file;
mod markup;
mod plots;
mod tables;

pub(crate) use file::ReportFile;
use markup::Element;

use crate::replay::result::{Comparison, Run};

/// Which of the two runs something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Private,
    Shared,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Private => "private L1",
            Self::Shared => "shared L1",
        }
    }

    fn adjective(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Shared => "shared",
        }
    }

    /// Its colour and dash, in the style sheet.
    fn class(self) -> &'static str {
        self.adjective()
    }
}

/// The whole page. Runs that were not made are left out, and so is every chart without a point.
fn html(comparison: &Comparison) -> String {
    let runs: Vec<(Side, &Run)> =
        [(Side::Private, comparison.private.as_ref()), (Side::Shared, comparison.shared.as_ref())]
            .into_iter()
            .filter_map(|(side, run)| Some((side, run?)))
            .collect();
    let head = Element::new("head")
        .with(Element::new("meta").set("charset", "utf-8"))
        .with(
            Element::new("meta")
                .set("name", "viewport")
                .set("content", "width=device-width, initial-scale=1"),
        )
        .with(Element::new("meta").set("name", "color-scheme").set("content", "light dark"))
        .with(Element::of("title", "Maru replay report"))
        .with(Element::new("style").verbatim(include_str!("style.css")));
    let page = Element::new("html")
        .set("lang", "en")
        .with(head)
        .with(Element::new("body").with(body(comparison, &runs)));
    let mut out = "<!DOCTYPE html>\n".to_owned();
    page.render(&mut out);
    out
}

fn body(comparison: &Comparison, runs: &[(Side, &Run)]) -> Element {
    let header = Element::new("header")
        .with(Element::of("p", "maru replay").class("kicker"))
        .with(Element::of("h1", "Private and shared KV cache"))
        .with(Element::of("p", summary(comparison)).class("summary"));
    let mut main = Element::new("main").with(header);
    if runs.is_empty() {
        let nothing = "Neither private L1s nor a shared one were replayed.";
        main = main.with(Element::of("p", nothing).class("card"));
    } else {
        let over_time = charts([plots::hit_rate(runs), plots::l1_use(runs)]);
        main = main
            .with_all(defects(runs))
            .with(headline(comparison, runs))
            .with_all(over_time.map(|charts| section("Over time").with(charts)))
            .with(section("Side by side").with(tables::comparison(runs)))
            .with_all(tables::latencies(runs).map(|table| {
                section("Latency").with_all(charts(plots::latencies(runs))).with(table)
            }));
    }
    main.with(section("What was replayed").with(tables::setting(comparison)))
}

fn section(title: &'static str) -> Element {
    Element::new("section").with(Element::of("h2", title))
}

/// Charts side by side; `None` where none has anything to draw.
fn charts(charts: impl IntoIterator<Item = chart::Chart>) -> Option<Element> {
    let figures: Vec<Element> = charts.into_iter().filter_map(|chart| chart.figure()).collect();
    let drawn = !figures.is_empty();
    drawn.then(|| Element::new("div").class("charts").with_all(figures))
}

/// The result in one sentence.
fn summary(comparison: &Comparison) -> String {
    let instances = match comparison.options.instances {
        1 => "1 instance".to_owned(),
        more => format!("{} instances", figures::count(more)),
    };
    let found = |side: Side, run: &Run| {
        let rate = figures::percent(run.prefix_hit_rate);
        format!(
            "{rate} of the requested KV blocks with {}",
            match side {
                Side::Private => "private L1s",
                Side::Shared => "a shared L1",
            }
        )
    };
    match (&comparison.private, &comparison.shared) {
        (Some(private), Some(shared)) => format!(
            "{instances} found {}, {} with private L1s of the same total size.",
            found(Side::Shared, shared),
            figures::percent(private.prefix_hit_rate)
        ),
        (Some(private), None) => format!("{instances} found {}.", found(Side::Private, private)),
        (None, Some(shared)) => format!("{instances} found {}.", found(Side::Shared, shared)),
        (None, None) => format!("{instances}, nothing replayed."),
    }
}

/// What must not be, in words; `None` where all is well.
fn defects(runs: &[(Side, &Run)]) -> Option<Element> {
    let found: Vec<Element> = runs
        .iter()
        .flat_map(|(side, run)| {
            [
                (i128::from(run.wrong_bytes), "wrong bytes"),
                (i128::from(run.pins_left), "pins that nobody gave back"),
                (i128::from(run.reservations_left), "reservations that nobody gave back"),
                (i128::from(run.pages_lost), "pages lost"),
            ]
            .into_iter()
            .filter(|(number, _)| *number != 0)
            .map(|(number, what)| {
                let number = figures::count(number);
                Element::of("li", format!("{number} {what} ({})", side.name()))
            })
        })
        .collect();
    (!found.is_empty()).then(|| {
        Element::new("div")
            .class("card defects")
            .set("role", "alert")
            .with(Element::of("h2", "This replay found defects"))
            .with(Element::new("ul").with_all(found))
    })
}

/// The few figures that matter most, large.
fn headline(comparison: &Comparison, runs: &[(Side, &Run)]) -> Element {
    let mut tiles = Vec::new();
    for (side, run) in runs.iter().rev() {
        let note = format!(
            "{} of {} blocks",
            figures::count(run.blocks_hit),
            figures::count(run.blocks_requested)
        );
        let rate = figures::percent(run.prefix_hit_rate);
        let title = format!("Prefix hit rate, {}", side.name());
        tiles.push(tile(side.class(), title, rate, note));
    }
    if let (Some(private), Some(shared)) = (&comparison.private, &comparison.shared) {
        let factor = figures::times(shared.prefix_hit_rate, private.prefix_hit_rate);
        let private_bytes = figures::bytes(private.bytes_not_recomputed);
        let shared_bytes = figures::bytes(shared.bytes_not_recomputed);
        tiles.push(tile(
            "plain",
            "Hits, shared against private".to_owned(),
            factor.unwrap_or_else(|| figures::NONE.to_owned()),
            format!("{shared_bytes} of KV not computed again, against {private_bytes}"),
        ));
    }
    let wrong: u128 = runs.iter().map(|(_, run)| u128::from(run.wrong_bytes)).sum();
    let verified = runs.iter().fold(0, |sum: u64, (_, run)| sum.saturating_add(run.bytes_verified));
    tiles.push(tile(
        if wrong == 0 { "good" } else { "bad" },
        "Wrong bytes".to_owned(),
        figures::count(i128::try_from(wrong).unwrap_or(i128::MAX)),
        format!("{} read and compared", figures::bytes(verified)),
    ));
    Element::new("div").class("headline").with_all(tiles)
}

fn tile(class: &'static str, title: String, figure: String, note: String) -> Element {
    Element::new("div")
        .set("class", format!("card tile {class}"))
        .with(Element::of("h2", title))
        .with(Element::of("p", figure).class("large"))
        .with(Element::of("p", note).class("note"))
}

/// The replay's pace in words.
fn times_faster(speed_up: Option<f64>) -> String {
    match speed_up {
        Some(factor) => format!("{} times as fast as it happened", figures::digits(factor)),
        None => "as fast as it goes".to_owned(),
    }
}

#[cfg(test)]
mod tests;
