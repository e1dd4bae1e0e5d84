//! Checksums of pages.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The checksum of `bytes`: XXH3 of 64 bits, without a seed, as it is published: the same on every
/// machine and in every version.
///
/// It finds what went wrong by accident, such as old lines among new ones or bits that flipped, but
/// no malice.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The checksum of `len` bytes that `read` fetches in pieces: it fills its buffer with the bytes at
/// the offset that it gets.
pub(crate) fn checksum_of_pieces<E>(
    len: usize,
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<u64, E> {
    // Stays in the nearest cache, whatever the size of the whole.
    let mut buffer = [0; 4096];
    let mut state = Xxh3::new();
    for offset in (0..len).step_by(buffer.len()) {
        let piece_len = buffer.len().min(len - offset);
        let piece = &mut buffer[..piece_len];
        read(offset, piece)?;
        state.update(piece);
    }
    Ok(state.digest())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_the_published_algorithm() {
        let bytes: Vec<u8> = (0..100_000_u64).map(|n| (n * n % 251).to_le_bytes()[0]).collect();
        // What the program xxhsum 0.8.1 says of such files.
        for (len, expected) in [
            (0, 0x2d06_8005_38d3_94c2),
            (1, 0xc44b_dff4_074e_ecdb),
            (16, 0xf36d_1380_fc3d_25fd),
            (200, 0x1b95_1b75_36cb_0c43),
            (4096, 0x9663_7d62_7c3b_c740),
            (100_000, 0x4cbc_1bec_ad16_bfbc),
        ] {
            assert_eq!(checksum(&bytes[..len]), expected, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(mut bytes in vec(any::<u8>(), 1..9000), at: usize) {
            let before = checksum(&bytes);
            let bit = at % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(checksum(&bytes), before);
        }

        #[test]
        fn pieces_make_up_the_whole(bytes in vec(any::<u8>(), 0..13_000)) {
            let pieces = checksum_of_pieces(bytes.len(), |offset, piece| {
                piece.copy_from_slice(&bytes[offset..offset + piece.len()]);
                Ok::<_, ()>(())
            });
            prop_assert_eq!(pieces, Ok(checksum(&bytes)));
        }
    }
}
