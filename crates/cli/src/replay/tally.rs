//! Sums over the requests of a replay.

use std::collections::BTreeMap;
use std::time::Instant;

use hdrhistogram::Histogram;
use maru_l1::MemoryUsage;

use super::instance::{Books, LatencyBuckets, Outcome, histogram};
use super::result::{Latency, Run, Sample, Throughput};

/// Sums over requests, and over what the instances' books say at the end.
#[derive(Debug)]
pub(super) struct Tally {
    run: Run,
    read_ns: u64,
    write_ns: u64,
    latencies: BTreeMap<String, Histogram<u64>>,
    pub(super) start: Instant,
    /// Blocks and hits at the last sample.
    sampled: (u64, u64),
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            run: Run::default(),
            read_ns: 0,
            write_ns: 0,
            latencies: BTreeMap::new(),
            start: Instant::now(),
            sampled: (0, 0),
        }
    }

    pub(super) fn add(&mut self, outcome: &Outcome) {
        let run = &mut self.run;
        run.requests += 1;
        run.blocks_requested += outcome.blocks;
        run.blocks_hit += outcome.hit;
        run.blocks_stored += outcome.stored;
        run.blocks_not_stored_again += outcome.not_stored_again;
        run.blocks_without_memory += outcome.without_memory;
        run.bytes_verified += outcome.bytes_verified;
        run.wrong_bytes += outcome.wrong_bytes;
        self.read_ns += outcome.read_ns;
        self.write_ns += outcome.write_ns;
    }

    /// An instance is gone, or did not end well.
    pub(super) fn lose(&mut self) {
        self.run.instances_lost += 1;
    }

    pub(super) fn sample(&mut self, requests: usize, usage: MemoryUsage) {
        let (blocks, hit) = (self.run.blocks_requested, self.run.blocks_hit);
        self.run.course.push(Sample {
            requests: requests as u64,
            seconds: self.start.elapsed().as_secs_f64(),
            hit_rate: ratio(hit - self.sampled.1, blocks - self.sampled.0),
            used_bytes: usage.used_bytes,
            capacity_bytes: usage.total_bytes,
        });
        self.sampled = (blocks, hit);
    }

    /// All requests are done.
    pub(super) fn stop(&mut self) {
        self.run.seconds = self.start.elapsed().as_secs_f64();
    }

    pub(super) fn add_books(&mut self, books: Books) {
        let run = &mut self.run;
        run.evictions += books.evicted;
        run.pins_left += books.pins_left;
        run.reservations_left += books.reservations_left;
        run.pages_lost = run.pages_lost.saturating_add_unsigned(books.pages_lost);
        self.merge(books.latencies);
    }

    fn merge(&mut self, latencies: LatencyBuckets) {
        for (name, buckets) in latencies {
            let histogram = self.latencies.entry(name).or_insert_with(histogram);
            for (ns, count) in buckets {
                histogram.saturating_record_n(ns, count);
            }
        }
    }

    /// The numbers, for blocks of this size.
    pub(super) fn sum_up(self, page_bytes: u64) -> Run {
        let mut run = self.run;
        run.prefix_hit_rate = ratio(run.blocks_hit, run.blocks_requested);
        run.bytes_not_recomputed = run.blocks_hit * page_bytes;
        run.gb_per_s = Throughput {
            write: ratio(run.blocks_stored * page_bytes, self.write_ns),
            read: ratio(run.bytes_verified, self.read_ns),
        };
        let latencies = self.latencies.into_iter();
        run.latency_us = latencies.map(|(name, all)| (name, latency(&all))).collect();
        run
    }
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    // A minute in nanoseconds is far below 2^53.
    #[expect(clippy::cast_precision_loss)]
    let us = |ns: u64| ns as f64 / 1000.0;
    let at = |percentile: f64| us(histogram.value_at_percentile(percentile));
    let steps = histogram
        .iter_quantiles(2)
        .map(|step| (step.quantile_iterated_to() * 100.0, us(step.value_iterated_to())));
    Latency {
        count: histogram.len(),
        p50: at(50.0),
        p90: at(90.0),
        p99: at(99.0),
        max: us(histogram.max()),
        percentiles: steps.collect(),
    }
}

/// A ratio of counts, for people; 0 of nothing.
#[expect(clippy::cast_precision_loss)]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
