use maru_l1::EvictionPolicyKind;

use super::*;
use crate::replay::result::{CALLS, Latency, ReplayOptions, Sample, Throughput, TraceInfo};

fn latency(scale: f64) -> Latency {
    let percentiles = [0.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0]
        .into_iter()
        .zip([0.5, 1.0, 1.2, 1.6, 2.0, 3.5, 5.0, 14.0, 21.0, 60.0, 90.0])
        .map(|(percentile, factor)| (percentile, factor * scale))
        .collect();
    Latency {
        count: 12_031,
        p50: scale,
        p90: 1.6 * scale,
        p99: 3.5 * scale,
        max: 90.0 * scale,
        percentiles,
    }
}

/// A run that looks like one: it warms up, then wavers about its rate.
fn run(hit_rate: f64, scale: f64, seconds: f64) -> Run {
    let course = (1..=120_u32)
        .map(|index| {
            let part = f64::from(index) / 120.0;
            let waver = (part * 47.0).sin() * 0.05 + (part * 171.0).sin() * 0.03;
            let used = (part * 6.0).min(1.0) * (0.94 + 0.03 * (part * 90.0).sin());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let used_bytes = (used * 262_144_000.0) as u64;
            Sample {
                requests: u64::from(index) * 12_031 / 120,
                seconds: part * seconds,
                hit_rate: (hit_rate * (1.0 - (-part * 20.0).exp()) + waver).max(0.0),
                used_bytes,
                capacity_bytes: 262_144_000,
            }
        })
        .collect();
    let latency_us = CALLS
        .into_iter()
        .zip([1.0, 0.6, 1.5, 1.2])
        .map(|(call, factor)| (call.to_owned(), latency(scale * factor)));
    Run {
        prefix_hit_rate: hit_rate,
        requests: 12_031,
        blocks_requested: 288_545,
        blocks_hit: 75_888,
        blocks_stored: 212_001,
        blocks_not_stored_again: 656,
        blocks_without_memory: 17,
        bytes_not_recomputed: 1_243_348_992,
        bytes_verified: 1_243_348_993,
        wrong_bytes: 0,
        evictions: 196_009,
        gb_per_s: Throughput { write: 6.54, read: 7.891 },
        latency_us: latency_us.collect(),
        seconds,
        instances_lost: 1,
        pins_left: 0,
        reservations_left: 0,
        pages_lost: 0,
        course,
    }
}

fn example() -> Comparison {
    Comparison {
        trace: TraceInfo {
            source: "../traces/conversation.jsonl".to_owned(),
            requests: 12_031,
            blocks: 288_545,
            distinct_blocks: 182_790,
            skipped_lines: 3,
            span_ms: 3_536_999,
        },
        options: ReplayOptions {
            instances: 4,
            capacity_blocks: 16_000,
            page_bytes: 16 << 10,
            eviction_policy: EvictionPolicyKind::S3Fifo,
            speed_up: None,
            seed: 987_654,
        },
        private: Some(run(0.110, 38.0, 52.0)),
        shared: Some(run(0.263, 55.0, 47.5)),
    }
}

fn parse(page: &str) -> roxmltree::Document<'_> {
    let options =
        roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    roxmltree::Document::parse_with_options(page, options).expect("the page is well-formed")
}

/// All text a reader sees.
fn words(page: &str) -> String {
    let document = parse(page);
    document
        .descendants()
        .filter(|node| node.is_text() && node.parent().is_none_or(|up| !up.has_tag_name("style")))
        .filter_map(|node| node.text())
        .collect::<Vec<_>>()
        .join("\n")
}

fn charts_of(page: &str) -> usize {
    page.matches("class=\"chart\"").count()
}

#[test]
fn every_figure_is_there() {
    let page = html(&example());
    let seen = words(&page);
    for figure in [
        "26.3 %",
        "11.0 %",
        "2.4 times",
        "12,031",
        "288,545",
        "182,790",
        "75,888",
        "212,001",
        "656",
        "17",
        "196,009",
        "1.16 GiB",
        "2.32 GiB",
        "6.54 GB/s",
        "7.89 GB/s",
        "52.0 s",
        "47.5 s",
        "58 min 57 s",
        "16,000 blocks, 250 MiB",
        "16.0 KiB",
        "as fast as it goes",
        "987654",
        "../traces/conversation.jsonl",
        "38.0 \u{b5}s",
        "133 \u{b5}s",
        "4.95 ms",
    ] {
        assert!(seen.contains(figure), "{figure} is missing");
    }
    assert!(page.contains("title=\"1,243,348,993 bytes\""));
    assert_eq!(charts_of(&page), 6);
    assert!(!seen.contains(figures::NONE));
    assert!(!page.contains("NaN") && !page.contains("inf"));
}

#[test]
fn is_accessible_and_needs_nothing_else() {
    let page = html(&example());
    let document = parse(&page);
    let ids: Vec<&str> = document.descendants().filter_map(|node| node.attribute("id")).collect();
    for chart in document.descendants().filter(|node| node.attribute("role") == Some("img")) {
        let named = chart.attribute("aria-labelledby").unwrap();
        for id in named.split(' ') {
            assert_eq!(ids.iter().filter(|found| **found == id).count(), 1, "{id}");
        }
    }
    for name in ["src", "href", "xlink:href", "srcset", "action"] {
        assert!(!document.descendants().any(|node| node.has_attribute(name)), "{name}");
    }
    for tag in ["script", "link", "img", "iframe", "image", "use"] {
        assert!(!document.descendants().any(|node| node.has_tag_name(tag)), "{tag}");
    }
    assert!(!page.contains("url(") && !page.contains("@import") && !page.contains("http"));
}

#[test]
fn what_comes_from_outside_is_escaped() {
    let evil = "</dd></style><script>alert('1')</script>&\"\u{0}\u{1b}[2J";
    let mut comparison = example();
    comparison.trace.source = evil.to_owned();
    let shared = comparison.shared.as_mut().unwrap();
    shared.latency_us.insert(evil.to_owned(), latency(1.0));
    let page = html(&comparison);
    assert!(!page.contains("<script") && !page.contains('\u{1b}') && !page.contains('\0'));
    assert!(
        words(&page).contains("</dd></style><script>alert('1')</script>&\"\u{fffd}\u{fffd}[2J")
    );
    assert_eq!(charts_of(&page), 7);
}

#[test]
fn runs_not_made_are_left_out() {
    let mut comparison = example();
    comparison.private = None;
    let page = html(&comparison);
    let seen = words(&page);
    assert!(seen.contains("26.3 %") && !seen.contains("private"));
    assert_eq!(charts_of(&page), 6);

    let mut comparison = example();
    comparison.shared = None;
    let seen = words(&html(&comparison));
    assert!(seen.contains("11.0 %") && !seen.contains("shared L1"));

    comparison.private = None;
    let page = html(&comparison);
    assert!(words(&page).contains("Neither private L1s nor a shared one"));
    assert_eq!(charts_of(&page), 0);
}

#[test]
fn empty_runs_have_no_charts() {
    let mut comparison = example();
    comparison.private = Some(Run::default());
    comparison.shared = Some(Run::default());
    let page = html(&comparison);
    assert_eq!(charts_of(&page), 0);
    assert!(words(&page).contains(figures::NONE), "no factor of nothing");

    // One empty run beside a full one: its lines are missing, its figures are not.
    comparison.shared = Some(run(0.263, 55.0, 47.5));
    let page = html(&comparison);
    assert_eq!(charts_of(&page), 6);
    assert!(words(&page).contains("0.0 %"));
}

#[test]
fn odd_numbers_do_no_harm() {
    let mut comparison = example();
    let shared = comparison.shared.as_mut().unwrap();
    shared.prefix_hit_rate = f64::NAN;
    shared.seconds = f64::INFINITY;
    shared.gb_per_s.read = f64::NAN;
    shared.wrong_bytes = u64::MAX;
    shared.bytes_verified = u64::MAX;
    shared.pages_lost = i64::MIN;
    let odd = Sample {
        requests: u64::MAX,
        seconds: f64::NAN,
        hit_rate: f64::INFINITY,
        used_bytes: u64::MAX,
        capacity_bytes: 0,
    };
    shared.course.push(odd);
    let odd = Latency {
        count: 0,
        p50: f64::NAN,
        percentiles: vec![(f64::NAN, 0.0), (100.0, f64::INFINITY), (-5.0, -1.0), (200.0, 1e300)],
        ..Latency::default()
    };
    shared.latency_us.insert(CALLS[0].to_owned(), odd);
    let page = html(&comparison);
    parse(&page);
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn defects_are_shouted() {
    assert!(!html(&example()).contains("role=\"alert\""));
    let mut comparison = example();
    let shared = comparison.shared.as_mut().unwrap();
    shared.wrong_bytes = 1_234;
    shared.pages_lost = -2;
    let page = html(&comparison);
    assert!(page.contains("role=\"alert\""));
    let seen = words(&page);
    assert!(seen.contains("1,234 wrong bytes (shared L1)"));
    assert!(seen.contains("-2 pages lost (shared L1)"));
    assert_eq!(page.matches("class=\"defect\"").count(), 2);
}

/// Leaves example pages where somebody can look at them.
#[test]
fn examples_to_look_at() {
    let Ok(folder) = std::env::var("MARU_REPORT_EXAMPLES") else {
        return;
    };
    let folder = std::path::Path::new(&folder);
    let mut comparison = example();
    std::fs::write(folder.join("full.html"), html(&comparison)).unwrap();
    comparison.private = None;
    let shared = comparison.shared.as_mut().unwrap();
    shared.wrong_bytes = 1_234;
    shared.pages_lost = -2;
    std::fs::write(folder.join("defects.html"), html(&comparison)).unwrap();
}
