use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::trace::{BadLines, read};

/// An LRU cache of blocks; answers how many of a request's blocks are a present prefix.
struct Lru {
    capacity: usize,
    clock: u64,
    used_at: BTreeMap<u64, u64>,
    by_age: BTreeMap<u64, u64>,
}

impl Lru {
    fn new(capacity: usize) -> Self {
        Self { capacity, clock: 0, used_at: BTreeMap::new(), by_age: BTreeMap::new() }
    }

    fn serve(&mut self, blocks: &[u64]) -> usize {
        let hits = blocks.iter().take_while(|block| self.used_at.contains_key(block)).count();
        for block in blocks {
            self.clock += 1;
            if let Some(before) = self.used_at.insert(*block, self.clock) {
                self.by_age.remove(&before);
            }
            self.by_age.insert(self.clock, *block);
            if self.used_at.len() > self.capacity {
                let (_, oldest) = self.by_age.pop_first().unwrap();
                self.used_at.remove(&oldest);
            }
        }
        hits
    }
}

/// The prefix hit rate of requests that go round robin to caches of one total size.
#[expect(clippy::cast_precision_loss)]
fn hit_rate(requests: &[TraceRequest], caches: usize, capacity: usize) -> f64 {
    let mut caches: Vec<Lru> = (0..caches).map(|_| Lru::new(capacity / caches)).collect();
    let count = caches.len();
    let mut hits = 0;
    let mut blocks = 0;
    for (index, request) in requests.iter().enumerate() {
        hits += caches[index % count].serve(&request.hash_ids);
        blocks += request.hash_ids.len();
    }
    hits as f64 / blocks as f64
}

#[test]
fn resembles_a_chat_service() {
    for seed in 0..3 {
        let settings = GeneratorSettings { seed, ..GeneratorSettings::default() };
        let requests = generate(&settings).unwrap();
        assert_eq!(requests.len(), 10_000);
        let blocks: usize = requests.iter().map(|request| request.hash_ids.len()).sum();
        let span_s = requests.last().unwrap().timestamp_ms / 1_000;
        let endless = hit_rate(&requests, 1, usize::MAX);
        let shared = hit_rate(&requests, 1, 16_000);
        let private = hit_rate(&requests, 4, 16_000);
        println!(
            "seed {seed}: {blocks} blocks in {span_s} s, {endless:.3} {shared:.3} {private:.3}"
        );
        assert!((100_000..500_000).contains(&blocks), "{blocks} blocks");
        assert!((1_500..7_200).contains(&span_s), "{span_s} s");
        assert!((0.3..0.6).contains(&endless), "endless cache: {endless}");
        assert!(shared < endless && shared > 0.15, "shared: {shared}");
        assert!(shared > 1.5 * private, "shared {shared}, private {private}");
    }
}

#[test]
fn lengths_have_heavy_tails() {
    let requests = generate(&GeneratorSettings::default()).unwrap();
    for (length, name) in [
        (|request: &TraceRequest| request.input_length) as fn(&TraceRequest) -> u64,
        |request: &TraceRequest| request.output_length,
    ]
    .into_iter()
    .zip(["input", "output"])
    {
        let mut sorted: Vec<u64> = requests.iter().map(length).collect();
        sorted.sort_unstable();
        let (median, p99) = (sorted[5_000], sorted[9_900]);
        println!("{name}: median {median}, p99 {p99}, largest {}", sorted[9_999]);
        assert!(p99 > 5 * median, "{name}: median {median}, p99 {p99}");
    }
}

/// The trace of a seed is fixed: figures quoted from it stay comparable. If this fails because the
/// generator was meant to change, say so in the CHANGELOG.
#[test]
fn a_seed_gives_the_same_trace_for_ever() {
    let settings = GeneratorSettings { requests: 1_000, seed: 42, ..GeneratorSettings::default() };
    let mut bytes = Vec::new();
    write(Generator::new(&settings).unwrap(), &mut bytes).unwrap();
    // FNV-1a.
    let digest = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(digest, 0x6bd7_cebb_4955_b343, "{digest:#x}");
    assert_eq!(generate(&settings), generate(&settings));
    let other = GeneratorSettings { seed: 43, ..settings.clone() };
    assert_ne!(generate(&settings), generate(&other));
}

#[test]
fn a_longer_trace_begins_like_a_shorter_one() {
    let shorter = GeneratorSettings { requests: 100, ..GeneratorSettings::default() };
    let longer = Generator::new(&GeneratorSettings::default()).unwrap();
    assert_eq!(generate(&shorter).unwrap(), longer.take(100).collect::<Vec<_>>());
}

#[test]
fn is_read_back_as_written() {
    let requests: Vec<TraceRequest> =
        generate(&GeneratorSettings { requests: 300, ..GeneratorSettings::default() }).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    write(requests.clone(), &mut file.as_file()).unwrap();
    let trace = read(Path::new(file.path()), BadLines::Stop).unwrap();
    assert_eq!(trace.requests, requests);
    assert_eq!(trace.skipped_lines, 0);
}

#[test]
fn impossible_settings_are_refused() {
    for turns_mean in [0.0, 0.99, f64::NAN, f64::INFINITY] {
        let settings = GeneratorSettings { turns_mean, ..GeneratorSettings::default() };
        assert!(generate(&settings).is_err(), "{turns_mean}");
    }
    let none = GeneratorSettings { requests: 0, ..GeneratorSettings::default() };
    let message = generate(&none).unwrap_err().to_string();
    assert_eq!(message, "a trace cannot have 0 requests: give 1 to 1000000000000");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_trace_is_well_formed(
        requests in 1_u64..400,
        seed: u64,
        conversations_per_minute in 1_u32..=1_000_000,
        system_prompts in 1_u32..50,
        turns_mean in 1.0..50.0,
        think_time_median_s in 1_u32..=3_600,
        first_message_tokens_median in 1_u32..=128 << 10,
    ) {
        let settings = GeneratorSettings {
            requests,
            seed,
            conversations_per_minute,
            system_prompts,
            turns_mean,
            think_time_median_s,
            first_message_tokens_median,
        };
        let made = generate(&settings).unwrap();
        prop_assert_eq!(made.len() as u64, requests);
        let mut next_new = 0;
        let mut last_ms = 0;
        for request in &made {
            prop_assert!(request.timestamp_ms >= last_ms);
            last_ms = request.timestamp_ms;
            prop_assert!(request.input_length <= CONTEXT_TOKENS_MAX);
            prop_assert!((1..=OUTPUT_TOKENS_MAX).contains(&request.output_length));
            let blocks = request.input_length.div_ceil(BLOCK_TOKENS);
            prop_assert_eq!(request.hash_ids.len() as u64, blocks);
            let distinct: BTreeSet<_> = request.hash_ids.iter().collect();
            prop_assert_eq!(distinct.len(), request.hash_ids.len());
            // Dense, in the order of first appearance, and new blocks only behind known ones.
            let known = request.hash_ids.iter().take_while(|id| **id < next_new).count();
            for id in &request.hash_ids[known..] {
                prop_assert_eq!(*id, next_new);
                next_new += 1;
            }
        }
    }
}
