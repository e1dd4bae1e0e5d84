//! Which reads are held against a checksum.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Which of the chunks that have a checksum are held against it when they are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verify {
    /// None.
    Off,
    /// One in 16. To sum up a chunk takes about two thirds of the time that it takes to copy it, so
    /// this costs a reader 4 % (docs/performance.md), and what is bad and much read is found soon.
    #[default]
    Sample,
    /// All.
    Always,
}

/// Takes its turns.
#[derive(Debug)]
pub(crate) struct Sampler {
    verify: Verify,
    turn: AtomicU64,
}

impl Sampler {
    pub(crate) const fn new(verify: Verify) -> Self {
        Self { verify, turn: AtomicU64::new(0) }
    }

    /// Whether this read is held against its checksum.
    pub(crate) fn takes(&self) -> bool {
        match self.verify {
            Verify::Off => false,
            Verify::Always => true,
            Verify::Sample => {
                // The golden ratio's steps are as even as a count, and in no step with what readers
                // do in turn.
                let turn = self.turn.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
                turn >> 60 == 0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_one_in_sixteen_of_whatever_comes_in_turn() {
        for every in [1, 2, 3, 8, 16, 32] {
            let sampler = Sampler::new(Verify::Sample);
            assert!(sampler.takes(), "the first is");
            let some = (1..16_000 * every).filter(|n| {
                let taken = sampler.takes();
                n % every == 0 && taken
            });
            let count = some.count();
            assert!((900..1100).contains(&count), "{count} of 16000, every {every}th");
        }
        for (verify, expected) in [(Verify::Off, 0), (Verify::Always, 100)] {
            let sampler = Sampler::new(verify);
            assert_eq!((0..100).filter(|_| sampler.takes()).count(), expected);
        }
    }
}
