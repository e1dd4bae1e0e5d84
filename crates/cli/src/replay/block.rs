//! What a block is called and what is in it: both follow from its number, so any instance can check
//! what another wrote.

use maru_l1::{KeyError, KvRank, ObjectKey};

/// Mixes the bits of a number well (the output function of SplitMix64).
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Names and contents of one replay's blocks.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    model: String,
    seed: u64,
}

impl Blocks {
    /// `run` keeps the keys of one replay apart from those of another on the same server.
    pub(crate) fn new(run: &str, seed: u64) -> Self {
        Self { model: format!("replay-{run}"), seed }
    }

    /// The block's key.
    pub(crate) fn key(&self, block: u64) -> Result<ObjectKey, KeyError> {
        let word = |part: u64| mix(self.first_word(block).wrapping_add(part)).to_be_bytes();
        let hash = [word(1), word(2), word(3), word(4)].concat();
        ObjectKey::new(&self.model, KvRank(0), &hash, 0, "")
    }

    fn first_word(&self, block: u64) -> u64 {
        mix(self.seed ^ mix(block.wrapping_add(STEP)))
    }

    /// Eight bytes after eight of the block's content, for ever.
    fn words(&self, block: u64) -> impl Iterator<Item = [u8; 8]> + use<> {
        let mut state = self.first_word(block);
        std::iter::repeat_with(move || {
            state = state.wrapping_add(STEP);
            mix(state).to_le_bytes()
        })
    }

    /// Writes the block's content over all of `buffer`.
    pub(crate) fn fill(&self, block: u64, buffer: &mut [u8]) {
        for (chunk, word) in buffer.chunks_mut(8).zip(self.words(block)) {
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// How many bytes of `buffer` are not the block's content.
    pub(crate) fn wrong_bytes(&self, block: u64, buffer: &[u8]) -> u64 {
        buffer
            .chunks(8)
            .zip(self.words(block))
            .filter(|(chunk, word)| **chunk != word[..chunk.len()])
            .map(|(chunk, word)| {
                chunk.iter().zip(word).filter(|(found, expected)| **found != *expected).count()
                    as u64
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(seed: u64) -> Blocks {
        Blocks::new("test", seed)
    }

    #[test]
    fn content_follows_from_the_number_and_the_seed() {
        let mut a = vec![0; 1003];
        blocks(1).fill(42, &mut a);
        assert_eq!(blocks(1).wrong_bytes(42, &a), 0);
        assert!(blocks(1).wrong_bytes(43, &a) > 950);
        assert!(blocks(2).wrong_bytes(42, &a) > 950);
    }

    #[test]
    fn every_wrong_byte_is_seen() {
        let mut a = vec![0; 67];
        blocks(1).fill(7, &mut a);
        for index in 0..a.len() {
            a[index] ^= 0x10;
            assert_eq!(blocks(1).wrong_bytes(7, &a), 1, "byte {index}");
            a[index] ^= 0x10;
        }
    }

    #[test]
    fn keys_differ() {
        let keys: std::collections::BTreeSet<ObjectKey> =
            (0..10_000).map(|block| blocks(1).key(block).unwrap()).collect();
        assert_eq!(keys.len(), 10_000);
        let first = blocks(1).key(0).unwrap();
        assert_eq!(first.as_str().len(), "replay-test@00000000@@0".len() + 64);
    }
}
