//! Random numbers that are the same for a seed on every machine.
//!
//! Only integer arithmetic and the operations that IEEE 754 rounds exactly (`+ - * /` and the square
//! root) are used: the result of `ln` or `exp` may differ between platforms and compilers, and a
//! trace is only worth quoting when another machine makes the same one.

use std::ops::RangeInclusive;

/// `SplitMix64` (Steele, Lea and Flood, 2014): a counter and a mixer. Plenty for a made-up workload,
/// useless against an adversary.
#[derive(Debug, Clone)]
pub(super) struct Random {
    state: u64,
}

/// How much larger than the median large values are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tail {
    /// One in a hundred is at least 10 times the median.
    Light,
    /// One in a hundred is at least 31 times the median.
    Heavy,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in `[0, 1)`.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact in an f64")]
    pub(super) fn unit(&mut self) -> f64 {
        const STEPS: u64 = 1 << 53;
        (self.next() >> 11) as f64 / STEPS as f64
    }

    /// Uniform in the range.
    pub(super) fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let span = u128::from(range.end() - range.start()) + 1;
        let step = (u128::from(self.next()) * span) >> 64;
        range.start() + u64::try_from(step).expect("the high half of a product of 64-bit numbers")
    }

    /// Exponential with mean 1, the gap between arrivals that know nothing of each other.
    ///
    /// Von Neumann's way: of uniform numbers drawn while they fall, the first is kept if the falls
    /// were even in number (probability `e^-first`); otherwise 1 is added and all begins again.
    pub(super) fn exponential(&mut self) -> f64 {
        let mut whole = 0.0;
        loop {
            let first = self.unit();
            let mut last = first;
            let mut falls = 0_u32;
            loop {
                let next = self.unit();
                if next >= last {
                    break;
                }
                last = next;
                falls += 1;
            }
            if falls.is_multiple_of(2) {
                return whole + first;
            }
            whole += 1.0;
        }
    }

    /// Log-logistic around the median, cut to the range: many small values, a few very large ones.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a random size; what the conversions round away does not matter"
    )]
    pub(super) fn heavy_tailed(
        &mut self,
        median: u64,
        tail: Tail,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let share = self.unit();
        let odds = share / (1.0 - share);
        let factor = match tail {
            Tail::Light => odds.sqrt(),
            // To the power of 3/4.
            Tail::Heavy => odds.sqrt() * odds.sqrt().sqrt(),
        };
        ((median as f64 * factor) as u64).clamp(*range.start(), *range.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs of the published algorithm for seed 0.
    #[test]
    fn is_splitmix64() {
        let mut random = Random::new(0);
        assert_eq!(random.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.next(), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(random.next(), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn distributions_have_their_moments() {
        const DRAWS: u32 = 100_000;
        let mut random = Random::new(3);
        let draws: Vec<f64> = (0..DRAWS).map(|_| random.exponential()).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(DRAWS);
        let long = draws.iter().filter(|draw| **draw > 3.0).count();
        assert!((0.98..1.02).contains(&mean), "{mean}");
        // e^-3 of 100,000 are 4,979.
        assert!((4_700..5_260).contains(&long), "{long}");

        for (tail, p99) in [(Tail::Light, 9_950), (Tail::Heavy, 31_400)] {
            let mut sizes: Vec<u64> =
                (0..DRAWS).map(|_| random.heavy_tailed(1_000, tail, 10..=1_000_000)).collect();
            sizes.sort_unstable();
            assert!((970..1_030).contains(&sizes[50_000]), "{}", sizes[50_000]);
            assert!(sizes[99_000] > p99 * 9 / 10 && sizes[99_000] < p99 * 11 / 10);
            assert!(sizes[0] >= 10 && sizes[99_999] <= 1_000_000);
        }

        let mut seen = [0_u32; 7];
        for _ in 0..7_000 {
            let index = random.within(10..=16) - 10;
            seen[usize::try_from(index).unwrap()] += 1;
        }
        assert!(seen.iter().all(|count| (850..1_150).contains(count)), "{seen:?}");
        // The widest range neither overflows nor is cut.
        assert!((0..64).any(|_| random.within(0..=u64::MAX) > u64::MAX / 2));
    }
}
