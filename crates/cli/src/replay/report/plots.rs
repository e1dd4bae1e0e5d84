//! Which charts a report shows, and what is on them.

use super::chart::{Axis, Chart, Series, nines};
use super::{Side, figures};
use crate::replay::result::{CALLS, Latency, Run, Sample};

type Runs<'a> = &'a [(Side, &'a Run)];

/// Share of blocks found, as the replay goes on.
pub(super) fn hit_rate(runs: Runs) -> Chart {
    let points = |run: &Run| -> Vec<(f64, f64)> {
        let point = |sample: &Sample| (figures::float(sample.requests), sample.hit_rate * 100.0);
        run.course.iter().map(point).collect()
    };
    let series = series(runs, points);
    let rates = runs.iter().map(|(side, run)| {
        let rate = figures::percent(run.prefix_hit_rate);
        format!("{}: {rate} over all requests.", side.name())
    });
    Chart {
        id: "hit-rate".to_owned(),
        title: "Hit rate over the requests".to_owned(),
        description: rates.collect::<Vec<_>>().join(" "),
        x: Axis::linear("requests done", largest(&series, |point| point.0), false),
        y: Axis::linear("blocks found in L1 (%)", largest(&series, |point| point.1), true),
        series,
    }
}

/// How full L1 is, as time goes on.
pub(super) fn l1_use(runs: Runs) -> Chart {
    let samples = || runs.iter().flat_map(|(_, run)| &run.course);
    let capacity = samples().map(|sample| sample.capacity_bytes).max();
    let used = samples().map(|sample| sample.used_bytes).max();
    let top = figures::float(capacity.max(used).unwrap_or(0));
    let (unit, size) = figures::byte_unit(top);
    let mut series = series(runs, |run| {
        let point = |sample: &Sample| (sample.seconds, figures::float(sample.used_bytes) / size);
        run.course.iter().map(point).collect()
    });
    let end = largest(&series, |point| point.0);
    if let Some(capacity) = capacity {
        let level = figures::float(capacity) / size;
        series.push(Series {
            name: "capacity",
            class: "capacity",
            points: vec![(0.0, level), (end, level)],
        });
    }
    let full = figures::bytes(capacity.unwrap_or(0));
    Chart {
        id: "l1-use".to_owned(),
        title: "L1 use over time".to_owned(),
        description: format!(
            "At most {} of {full} were resident, reserved or quarantined.",
            figures::bytes(used.unwrap_or(0))
        ),
        x: Axis::linear("seconds since the start", end, false),
        y: Axis::linear(format!("memory in use ({unit})"), top / size, true),
        series,
    }
}

/// The latency distribution of each kind of call, all on the same axes.
pub(super) fn latencies(runs: Runs) -> Vec<Chart> {
    let measured = || {
        runs.iter()
            .flat_map(|(_, run)| run.latency_us.values())
            .flat_map(|latency| &latency.percentiles)
            .map(|(_, us)| *us)
    };
    let smallest = measured().fold(f64::INFINITY, f64::min);
    let largest = measured().fold(0.0, f64::max);
    let nines_max = runs
        .iter()
        .flat_map(|(_, run)| run.latency_us.values())
        .map(nines_measured)
        .fold(1.0, f64::max);
    call_kinds(runs)
        .into_iter()
        .enumerate()
        .map(|(index, kind)| {
            let spoken = runs.iter().filter_map(|(side, run)| {
                let latency = run.latency_us.get(kind)?;
                let p50 = figures::microseconds(latency.p50);
                let p99 = figures::microseconds(latency.p99);
                Some(format!("{}: median {p50}, p99 {p99}.", side.name()))
            });
            Chart {
                id: format!("latency-{index}"),
                title: format!("Latency of {kind}"),
                description: spoken.collect::<Vec<_>>().join(" "),
                x: Axis::percentiles("percentile (%)", nines_max),
                y: Axis::log_microseconds("time of a call", smallest, largest),
                series: series(runs, |run| run.latency_us.get(kind).map_or_else(Vec::new, curve)),
            }
        })
        .collect()
}

/// Every kind of call in any of the runs: those of the usual life of a block first, in its order.
pub(super) fn call_kinds<'a>(runs: &[(Side, &'a Run)]) -> Vec<&'a str> {
    let mut kinds: Vec<&str> =
        runs.iter().flat_map(|(_, run)| run.latency_us.keys()).map(String::as_str).collect();
    let rank = |kind: &str| CALLS.iter().position(|usual| *usual == kind);
    kinds.sort_unstable_by_key(|kind| (rank(kind).unwrap_or(CALLS.len()), *kind));
    kinds.dedup();
    kinds
}

/// How far into the tail so many measurements reach.
fn nines_measured(latency: &Latency) -> f64 {
    figures::float(latency.count.max(1)).log10()
}

fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    let end = nines_measured(latency);
    let point = |(percentile, us): &(f64, f64)| (nines(*percentile).min(end), *us);
    latency.percentiles.iter().map(point).collect()
}

fn series(runs: Runs, points: impl Fn(&Run) -> Vec<(f64, f64)>) -> Vec<Series> {
    runs.iter()
        .map(|(side, run)| Series { name: side.name(), class: side.class(), points: points(run) })
        .collect()
}

fn largest(series: &[Series], coordinate: impl Fn(&(f64, f64)) -> f64) -> f64 {
    series.iter().flat_map(|series| &series.points).map(coordinate).fold(0.0, f64::max)
}
