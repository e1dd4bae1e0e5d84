//! Checksums, copies in and out of pages, and what it costs to make pages visible to other hosts.
//!
//! `cargo bench -p maru-memory --bench memory`; the figures are in `docs/performance.md`.
// A measurement that fails may stop, and is not exact to 2^-53.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use crc_fast::CrcAlgorithm::{Crc32Iscsi, Crc64Nvme};
use maru_memory::{DATA_START, Device, IfExists, PoolMapping, Visibility, checksum};
use xxhash_rust::xxh3::Xxh3;

/// Rounds; in each, all ways to do a thing take turns.
const ROUNDS: usize = 49;

/// What each way works on in a round, in bytes: a few milliseconds, so that other processes are in
/// the way of few rounds.
const ROUND_BYTES: usize = 16 << 20;

/// What caches hold, and more.
const CACHE_BYTES: usize = 48 << 20;

/// Much more than caches hold.
const POOL_BYTES: usize = 256 << 20;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A way to do a thing to so many bytes from an offset.
type Way<'a> = (&'a str, &'a mut dyn FnMut(usize, usize));

/// Runs the ways on pieces of `len` bytes: over and over the same, or one after the other.
fn compare(title: &str, len: usize, is_hot: bool, ways: &mut [Way<'_>]) {
    let others = vec![1; CACHE_BYTES];
    let mut rates = vec![Vec::new(); ways.len()];
    let mut offset = 0;
    for _ in 0..ROUNDS {
        for ((_, work), rates) in ways.iter_mut().zip(&mut rates) {
            // What the one before left dirty in the caches is not this one's to write back.
            black_box(checksum(black_box(&others)));
            if is_hot {
                work(offset, len);
            }
            let start = Instant::now();
            for _ in 0..ROUND_BYTES / len {
                work(offset, len);
                if !is_hot {
                    offset = (offset + len) % POOL_BYTES;
                }
            }
            rates.push(ROUND_BYTES as f64 / start.elapsed().as_secs_f64() / 1e9);
        }
    }
    println!("\n{title}, {} KiB, {}", len / KIB, if is_hot { "hot" } else { "cold" });
    let first = rates[0].clone();
    for ((name, _), rates) in ways.iter().zip(&mut rates) {
        // Of the same round, since the machine is not equally fast all the time.
        let mut ratios: Vec<f64> = rates.iter().zip(&first).map(|(rate, one)| rate / one).collect();
        ratios.sort_by(f64::total_cmp);
        rates.sort_by(f64::total_cmp);
        let (low, high) = (ratios[ROUNDS / 4], ratios[ROUNDS * 3 / 4]);
        println!(
            "  {name:40} {:6.1} GB/s {:6.1} us/MiB   {:5.2} ({low:.2} to {high:.2})",
            rates[ROUNDS / 2],
            MIB as f64 / rates[ROUNDS / 2] / 1e3,
            ratios[ROUNDS / 2],
        );
    }
}

/// Two mappings of one device, coherent and not, with all its memory brought in.
struct Pools {
    coherent: Arc<PoolMapping>,
    cache_line: Arc<PoolMapping>,
    _folder: tempfile::TempDir,
}

impl Pools {
    fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("pool");
        let spec = format!("{}:{}", path.display(), POOL_BYTES as u64 + DATA_START);
        let device = Device::create(&spec.parse().unwrap(), IfExists::Refuse).unwrap();
        let map = |visibility| {
            let mapping = Arc::new(PoolMapping::new(1 << 30, visibility).unwrap());
            mapping.add_device(&device, 0).unwrap();
            let mut all = mapping.write(DATA_START, POOL_BYTES as u64).unwrap();
            fill(all.bytes_mut());
            let read = mapping.read(DATA_START, POOL_BYTES as u64).unwrap();
            black_box(checksum(read.bytes()));
            mapping
        };
        let coherent = map(Visibility::Coherent);
        let cache_line = map(Visibility::CacheLine { plugin: None });
        Self { coherent, cache_line, _folder: folder }
    }
}

fn fill(bytes: &mut [u8]) {
    for (number, chunk) in (0_u64..).zip(bytes.chunks_mut(8)) {
        let value = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        chunk.copy_from_slice(&value[..chunk.len()]);
    }
}

/// Filled bytes from a page boundary on. Elsewhere, the memcpy of glibc may be several times slower
/// (`rep movsb` on AMD), which would flatter the others.
fn aligned(bytes: &mut Vec<u8>, len: usize) -> &mut [u8] {
    bytes.resize(len + 4096, 0);
    let start = bytes.as_ptr().align_offset(4096);
    fill(&mut bytes[start..start + len]);
    &mut bytes[start..start + len]
}

fn at(offset: usize) -> u64 {
    DATA_START + offset as u64
}

fn checksums(pools: &Pools, private: &[u8]) {
    for is_hot in [true, false] {
        for len in [64 * KIB, 256 * KIB, MIB, 8 * MIB] {
            let part = |offset: usize, len: usize| black_box(&private[offset..offset + len]);
            compare(
                "checksums",
                len,
                is_hot,
                &mut [
                    ("xxh3", &mut |offset, len| {
                        black_box(checksum(part(offset, len)));
                    }),
                    ("crc32c, crate crc32c", &mut |offset, len| {
                        black_box(crc32c::crc32c(part(offset, len)));
                    }),
                    ("crc32c, crate crc-fast", &mut |offset, len| {
                        black_box(crc_fast::checksum(Crc32Iscsi, part(offset, len)));
                    }),
                    ("crc64 of NVMe, crate crc-fast", &mut |offset, len| {
                        black_box(crc_fast::checksum(Crc64Nvme, part(offset, len)));
                    }),
                    ("PageView::checksum, guarded", &mut |offset, len| {
                        let view = pools.coherent.read(at(offset), len as u64).unwrap();
                        black_box(view.checksum().unwrap());
                    }),
                ],
            );
        }
    }
}

/// Whether a checksum is cheaper while its bytes are copied out.
fn checksum_with_copy(pools: &Pools, [out, other]: [&mut [u8]; 2]) {
    let whole = pools.coherent.read(DATA_START, POOL_BYTES as u64).unwrap();
    let bytes = whole.bytes();
    for len in [64 * KIB, MIB, 8 * MIB] {
        compare(
            "a checksum of the copy",
            len,
            false,
            &mut [
                ("after the copy", &mut |offset, len| {
                    out[..len].copy_from_slice(&bytes[offset..offset + len]);
                    black_box(checksum(&out[..len]));
                }),
                ("in the same pass, by 4 KiB", &mut |offset, len| {
                    let mut state = Xxh3::new();
                    let pieces = bytes[offset..offset + len].chunks(4 * KIB);
                    for (piece, out) in pieces.zip(other.chunks_mut(4 * KIB)) {
                        out.copy_from_slice(piece);
                        state.update(out);
                    }
                    black_box(state.digest());
                }),
            ],
        );
    }
}

fn copies_in(pools: &Pools, private: &[u8], [out, other]: [&mut [u8]; 2]) {
    let write = |mapping: &Arc<PoolMapping>, offset: usize, len: usize| {
        mapping.write(at(offset), len as u64).unwrap()
    };
    for is_hot in [true, false] {
        for len in [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 8 * MIB] {
            let part = |offset: usize, len: usize| black_box(&private[offset..offset + len]);
            compare(
                "copies into pages",
                len,
                is_hot,
                &mut [
                    ("memcpy", &mut |offset, len| {
                        let mut page = write(&pools.coherent, offset, len);
                        page.bytes_mut().copy_from_slice(part(offset, len));
                    }),
                    ("copy_from, coherent", &mut |offset, len| {
                        write(&pools.coherent, offset, len).copy_from(part(offset, len)).unwrap();
                    }),
                    ("copy_from, cache-line", &mut |offset, len| {
                        let mut page = write(&pools.cache_line, offset, len);
                        page.copy_from(part(offset, len)).unwrap();
                        page.publish(len as u64, 1).unwrap();
                    }),
                    ("memcpy and publish, cache-line", &mut |offset, len| {
                        let mut page = write(&pools.cache_line, offset, len);
                        page.bytes_mut().copy_from_slice(part(offset, len));
                        page.publish(len as u64, 1).unwrap();
                    }),
                ],
            );
        }
    }
    for len in [16 * KIB, 64 * KIB, 256 * KIB, MIB, 8 * MIB] {
        compare(
            "copies into pages, read back at once",
            len,
            false,
            &mut [
                ("memcpy", &mut |offset, len| {
                    let mut page = write(&pools.coherent, offset, len);
                    page.bytes_mut().copy_from_slice(&private[offset..offset + len]);
                    let view = pools.coherent.read(at(offset), len as u64).unwrap();
                    view.copy_to(black_box(&mut out[..len])).unwrap();
                }),
                ("copy_from around the caches", &mut |offset, len| {
                    let mut page = write(&pools.cache_line, offset, len);
                    page.copy_from(&private[offset..offset + len]).unwrap();
                    let view = pools.coherent.read(at(offset), len as u64).unwrap();
                    view.copy_to(black_box(&mut other[..len])).unwrap();
                }),
            ],
        );
    }
}

fn copies_out(pools: &Pools, [out, other]: [&mut [u8]; 2]) {
    let read = |offset: usize, len: usize| pools.coherent.read(at(offset), len as u64).unwrap();
    for is_hot in [true, false] {
        for len in [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 8 * MIB] {
            compare(
                "copies out of pages",
                len,
                is_hot,
                &mut [
                    ("memcpy", &mut |offset, len| {
                        black_box(&mut out[..len]).copy_from_slice(read(offset, len).bytes());
                    }),
                    ("copy_to", &mut |offset, len| {
                        read(offset, len).copy_to(black_box(&mut other[..len])).unwrap();
                    }),
                ],
            );
        }
    }
}

/// The first way of each is what the others come on top of.
fn lines(pools: &Pools, [out, other]: [&mut [u8]; 2]) {
    let write = |offset: usize, len: usize| pools.cache_line.write(at(offset), len as u64).unwrap();
    let read = |offset: usize, len: usize| pools.cache_line.read(at(offset), len as u64).unwrap();
    for len in [64 * KIB, MIB, 8 * MIB] {
        compare(
            "a writer",
            len,
            false,
            &mut [
                ("drops old lines, stores", &mut |offset, len| {
                    write(offset, len).bytes_mut().fill(1);
                }),
                ("... and publishes", &mut |offset, len| {
                    let mut page = write(offset, len);
                    page.bytes_mut().fill(1);
                    page.publish(len as u64, 1).unwrap();
                }),
                ("publishes what no cache has", &mut |offset, len| {
                    write(offset, len).publish(len as u64, 1).unwrap();
                }),
            ],
        );
        for is_hot in [false, true] {
            compare(
                "a reader",
                len,
                is_hot,
                &mut [
                    ("copies", &mut |offset, len| {
                        read(offset, len).copy_to(black_box(&mut out[..len])).unwrap();
                    }),
                    ("acquires and copies", &mut |offset, len| {
                        let view = read(offset, len);
                        view.acquire(1).unwrap();
                        view.copy_to(black_box(&mut other[..len])).unwrap();
                    }),
                    ("acquires what no cache has", &mut |offset, len| {
                        read(offset, len).acquire(1).unwrap();
                    }),
                ],
            );
        }
    }
}

fn main() {
    let pools = Pools::new();
    let mut buffers = [const { Vec::new() }; 3];
    let [private, out, other] = &mut buffers;
    let private = aligned(private, POOL_BYTES);
    let (out, other) = (aligned(out, 8 * MIB), aligned(other, 8 * MIB));
    checksums(&pools, private);
    checksum_with_copy(&pools, [out, other]);
    copies_in(&pools, private, [out, other]);
    copies_out(&pools, [out, other]);
    lines(&pools, [out, other]);
}
