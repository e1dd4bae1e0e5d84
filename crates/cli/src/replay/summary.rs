//! A comparison as text.

use std::fmt::Write;

use super::result::{CALLS, Comparison, Run};
use crate::output::{bytes, count, table};

/// Both runs side by side.
pub(crate) fn text(comparison: &Comparison) -> String {
    let (trace, options) = (&comparison.trace, &comparison.options);
    let mut text = format!(
        "{}\n{} requests, {} blocks, {} of them different; {} instances, {} blocks of {} in all\n\n",
        trace.source.escape_debug(),
        count(trace.requests),
        count(trace.blocks),
        count(trace.distinct_blocks),
        options.instances,
        count(options.capacity_blocks),
        bytes(options.page_bytes),
    );
    if trace.skipped_lines > 0 {
        let _ = writeln!(text, "{} lines were not requests\n", count(trace.skipped_lines));
    }
    let runs: Vec<(&str, &Run)> =
        [("PRIVATE", &comparison.private), ("SHARED", &comparison.shared)]
            .into_iter()
            .filter_map(|(name, run)| Some((name, run.as_ref()?)))
            .collect();
    let heads: Vec<String> = runs.iter().map(|(name, _)| format!(">{name}")).collect();
    let heads: Vec<&str> = std::iter::once("").chain(heads.iter().map(String::as_str)).collect();
    let mut rows = table(&heads);
    for (name, figure) in FIGURES {
        let figures = runs.iter().map(|(_, run)| figure(run));
        rows.add_row(std::iter::once((*name).to_owned()).chain(figures));
    }
    for call in CALLS {
        let figures = runs.iter().map(|(_, run)| {
            let latency = run.latency_us.get(call);
            latency.map_or_else(String::new, |l| format!("{:.0} / {:.0}", l.p50, l.p99))
        });
        rows.add_row(std::iter::once(format!("{call} us, p50 / p99")).chain(figures));
    }
    text.push_str(&rows.trim_fmt());
    text.push('\n');
    if let (Some(private), Some(shared)) = (&comparison.private, &comparison.shared)
        && private.blocks_hit > 0
    {
        let times = shared.prefix_hit_rate / private.prefix_hit_rate;
        let _ = writeln!(text, "\nsharing serves {times:.1} times as many blocks from the cache");
    }
    text
}

type Figure = fn(&Run) -> String;

const FIGURES: &[(&str, Figure)] = &[
    ("prefix hit rate", |run| format!("{:.1} %", run.prefix_hit_rate * 100.0)),
    ("bytes not recomputed", |run| bytes(run.bytes_not_recomputed)),
    ("bytes verified", |run| bytes(run.bytes_verified)),
    ("wrong bytes", |run| count(run.wrong_bytes)),
    ("blocks stored", |run| count(run.blocks_stored)),
    ("blocks not stored again", |run| count(run.blocks_not_stored_again)),
    ("blocks without memory", |run| count(run.blocks_without_memory)),
    ("evictions", |run| count(run.evictions)),
    ("GB/s into L1", |run| format!("{:.2}", run.gb_per_s.write)),
    ("GB/s out of L1", |run| format!("{:.2}", run.gb_per_s.read)),
    ("seconds", |run| format!("{:.1}", run.seconds)),
    ("instances lost", |run| count(run.instances_lost)),
    ("pins left", |run| count(run.pins_left)),
    ("reservations left", |run| count(run.reservations_left)),
    ("pages lost", |run| run.pages_lost.to_string()),
];

/// What must not be, in words.
pub(crate) fn defects(comparison: &Comparison) -> Option<String> {
    let mut found = Vec::new();
    let runs = [("private", &comparison.private), ("shared", &comparison.shared)];
    for (name, run) in runs.into_iter().filter_map(|(name, run)| Some((name, run.as_ref()?))) {
        if run.wrong_bytes > 0 {
            found.push(format!("{} wrong bytes ({name})", run.wrong_bytes));
        }
        if run.pins_left > 0 || run.reservations_left > 0 || run.pages_lost != 0 {
            found.push(format!(
                "{} pins, {} reservations left behind, {} pages lost ({name})",
                run.pins_left, run.reservations_left, run.pages_lost
            ));
        }
    }
    if found.is_empty() {
        return None;
    }
    Some(format!("{}; this is a defect of Maru: please report it", found.join(", ")))
}

#[cfg(test)]
mod tests {
    use maru_l1::EvictionPolicyKind;

    use super::super::result::{ReplayOptions, TraceInfo};
    use super::*;

    fn comparison(wrong_bytes: u64) -> Comparison {
        let run = |blocks_hit: u32, wrong_bytes| Run {
            prefix_hit_rate: 0.01 * f64::from(blocks_hit),
            blocks_hit: blocks_hit.into(),
            wrong_bytes,
            ..Run::default()
        };
        Comparison {
            trace: TraceInfo {
                source: "a\x1b[31mb".to_owned(),
                requests: 3,
                blocks: 100,
                distinct_blocks: 50,
                skipped_lines: 0,
                span_ms: 1,
            },
            options: ReplayOptions {
                instances: 4,
                capacity_blocks: 16_000,
                page_bytes: 16 << 10,
                eviction_policy: EvictionPolicyKind::Lru,
                speed_up: None,
                seed: 1,
            },
            private: Some(run(11, 0)),
            shared: Some(run(26, wrong_bytes)),
        }
    }

    #[test]
    fn both_runs_stand_side_by_side() {
        let text = text(&comparison(0));
        assert!(text.contains("11.0 %") && text.contains("26.0 %"), "{text}");
        assert!(text.contains("2.4 times"), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn wrong_bytes_are_a_defect() {
        assert_eq!(defects(&comparison(0)), None);
        assert!(defects(&comparison(3)).unwrap().contains("3 wrong bytes (shared)"));
    }
}
