//! Arenas: blocks that are apart, memory that comes when it is needed, and what is said if not.

use std::env;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use maru_memory::{Arena, ArenaConfig, ArenaError, Block, BlockMut};
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{MIB, smaps};

const SMALL: ArenaConfig =
    ArenaConfig { bytes: 16 * MIB, initial_bytes: 0, align_bytes: 4096, huge_pages: false };

fn arena(bytes: u64, initial_bytes: u64) -> Arc<Arena> {
    Arena::new(&ArenaConfig { bytes, initial_bytes, ..SMALL }).unwrap()
}

/// One block, filled with `value`.
fn filled(arena: &Arc<Arena>, len: u64, value: u8) -> Option<Block> {
    let mut block: BlockMut = arena.allocate(len, 1)?.pop()?;
    block.bytes_mut().fill(value);
    Some(block.freeze())
}

fn holds(block: &Block, value: u8) -> bool {
    block.bytes().len() as u64 == block.len() && block.bytes().iter().all(|byte| *byte == value)
}

/// All of it is one free extent again.
fn is_whole(arena: &Arc<Arena>) -> bool {
    let whole = arena.allocate(arena.bytes(), 1);
    whole.is_some_and(|blocks| blocks[0].offset() == 0) && arena.used_bytes() == 0
}

#[derive(Clone, Debug)]
enum Step {
    Allocate { len: u64, count: usize },
    Drop { nth: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![0_u64..300, 1_u64..20_000];
    prop_oneof![
        (len, 0_usize..6).prop_map(|(len, count)| Step::Allocate { len, count }),
        any::<usize>().prop_map(|nth| Step::Drop { nth }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn blocks_are_apart_and_all_or_nothing(
        steps in vec(step(), 1..128),
        align_log2 in 0_u32..13,
        bytes in 50_000_u64..100_000,
    ) {
        let align_bytes = 1 << align_log2;
        let arena = Arena::new(&ArenaConfig { bytes, align_bytes, ..SMALL }).unwrap();
        prop_assert_eq!(arena.bytes(), bytes / align_bytes * align_bytes);
        prop_assert_eq!(arena.align_bytes(), align_bytes);
        let whole = |len: u64| len.max(1).next_multiple_of(align_bytes);
        let mut blocks: Vec<(Block, u8)> = Vec::new();
        for (value, step) in (0_u8..).zip(steps) {
            match step {
                Step::Allocate { len, count } => {
                    let used = arena.used_bytes();
                    if let Some(taken) = arena.allocate(len, count) {
                        prop_assert_eq!(taken.len(), count);
                        for mut block in taken {
                            prop_assert_eq!(block.len(), len);
                            block.bytes_mut().fill(value);
                            blocks.push((block.freeze(), value));
                        }
                    } else {
                        prop_assert_eq!(arena.used_bytes(), used);
                    }
                }
                Step::Drop { nth } if !blocks.is_empty() => {
                    blocks.swap_remove(nth % blocks.len());
                }
                Step::Drop { .. } => {}
            }
            prop_assert!(arena.check());
            let used: u64 = blocks.iter().map(|(block, _)| whole(block.len())).sum();
            prop_assert_eq!(arena.used_bytes(), used);
            blocks.sort_by_key(|(block, _)| block.offset());
            let mut end = 0;
            for (block, value) in &blocks {
                prop_assert!(block.offset() >= end && block.offset() % align_bytes == 0);
                end = block.offset() + whole(block.len());
                prop_assert!(holds(block, *value));
            }
            prop_assert!(end <= arena.bytes());
        }
        drop(blocks);
        prop_assert!(arena.check() && is_whole(&arena));
    }
}

#[test]
fn low_addresses_fill_first() {
    let arena = arena(16 * MIB, 16 * MIB);
    let mut blocks = arena.allocate(MIB, 16).unwrap();
    assert!(blocks.iter().zip(0..).all(|(block, nth)| block.offset() == nth * MIB));
    assert!(arena.allocate(1, 1).is_none());
    for nth in [11, 7, 6] {
        blocks.remove(nth);
    }
    assert!(arena.allocate(MIB, 4).is_none());
    assert_eq!(arena.used_bytes(), 13 * MIB);
    let again = arena.allocate(MIB, 3).unwrap();
    assert_eq!(
        again.iter().map(BlockMut::offset).collect::<Vec<_>>(),
        [6 * MIB, 7 * MIB, 11 * MIB]
    );
    assert_eq!(arena.allocate(0, 0).unwrap().len(), 0);
    drop((blocks, again));
    assert!(is_whole(&arena));
}

#[test]
fn a_block_is_base_plus_offset_and_keeps_the_arena() {
    let arena = arena(16 * MIB, 3 * MIB);
    let base = arena.base();
    assert_eq!(base.addr() % (2 << 20), 0);
    let first = filled(&arena, 5000, 1).unwrap();
    let second = filled(&arena, 5000, 2).unwrap();
    assert_eq!((first.offset(), second.offset()), (0, 8192));
    assert_eq!(second.bytes().as_ptr(), base.wrapping_add(8192));
    assert_eq!(format!("{arena:?}"), "Arena(0x4000 of 0x400000 of 0x1000000 used)");
    drop((arena, first));
    assert!(holds(&second, 2));
}

#[test]
fn it_grows_when_it_must() {
    let arena = arena(1000 * MIB + 4097, 5 * MIB);
    assert_eq!((arena.bytes(), arena.grown_bytes()), (1000 * MIB + 4096, 6 * MIB));
    assert_eq!(smaps(arena.base(), "Rss"), format!("{} kB", 6 * MIB / 1024));
    let mut blocks = Vec::new();
    let mut take = |len: u64, count: usize| {
        let taken = arena.allocate(len, count);
        let fits = taken.is_some();
        blocks.extend(taken.into_iter().flatten());
        assert!(arena.check());
        fits.then(|| arena.grown_bytes() / MIB)
    };
    assert_eq!(take(MIB, 6), Some(6), "what there is serves first");
    assert_eq!(take(MIB, 1), Some(70), "the least step");
    assert_eq!(take(MIB, 64), Some(140), "doubled");
    assert_eq!(take(300 * MIB, 1), Some(372), "what is needed, from where the last block ends");
    assert_eq!(take(300 * MIB, 3), None);
    assert_eq!(take(u64::MAX, 1), None);
    assert_eq!(take(u64::MAX / 4096, usize::MAX), None);
    assert_eq!(arena.grown_bytes(), 372 * MIB, "in vain it does not grow");
    assert_eq!(take(2 * MIB, 1), Some(744));
    assert_eq!(take(627 * MIB + 4096, 1), Some(1000), "to the limit");
    assert_eq!(arena.used_bytes(), arena.bytes());
    assert_eq!(arena.grown_bytes(), arena.bytes());
    assert_eq!(take(1, 1), None);
    // The last byte is there: a fault would end the test.
    *blocks.last_mut().unwrap().bytes_mut().last_mut().unwrap() = 7;
    drop(blocks);
    assert!(is_whole(&arena));
}

#[test]
fn the_limit_costs_nothing() {
    let arena = arena(4 << 40, 0);
    assert_eq!((arena.bytes(), arena.grown_bytes()), (4 << 40, 0));
    let flags = smaps(arena.base(), "VmFlags");
    let has = |flag| flags.split_whitespace().any(|other| other == flag);
    assert!(has("dc"), "no child inherits it: {flags}");
    assert!(has("hg") || !fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap(), "{flags}");
    assert_eq!(smaps(arena.base(), "Rss"), "0 kB");
    assert!(holds(&filled(&arena, MIB, 3).unwrap(), 3));
    assert_eq!(arena.grown_bytes(), 64 * MIB);
}

#[test]
fn small_and_odd_sizes_serve() {
    for (bytes, align_bytes, usable) in [(1, 1, 1), (4097, 64, 4096), (10_000, 4, 10_000)] {
        for initial_bytes in [0, u64::MAX] {
            let config = ArenaConfig { bytes, initial_bytes, align_bytes, huge_pages: false };
            let arena = Arena::new(&config).unwrap();
            let initial = if initial_bytes == 0 { 0 } else { usable };
            assert_eq!((arena.bytes(), arena.grown_bytes()), (usable, initial));
            assert!(holds(&filled(&arena, usable, 9).unwrap(), 9));
            assert!(arena.check() && is_whole(&arena));
        }
    }
}

#[test]
fn blocks_go_between_threads() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Arc<Arena>>();
    is_send_and_sync::<BlockMut>();
    is_send_and_sync::<Block>();
    let arena = arena(200 * MIB, 0);
    thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel::<(Block, u8)>();
        for value in 1..5_u8 {
            let (arena, sender) = (&arena, sender.clone());
            scope.spawn(move || {
                for round in 0..500_u64 {
                    let len = 1 + (round * u64::from(value) * 977) % (256 << 10);
                    // The reader may be behind.
                    let Some(block) = filled(arena, len, value) else { continue };
                    sender.send((block, value)).unwrap();
                    assert!(arena.check());
                }
            });
        }
        drop(sender);
        let mut kept = Vec::new();
        for (block, value) in receiver {
            assert!(holds(&block, value));
            kept.push(block);
            if kept.len() > 64 {
                kept.swap_remove(17);
            }
        }
    });
    assert!(arena.check() && is_whole(&arena));
}

#[test]
fn a_kernel_that_gives_no_more_is_an_answer() {
    const CHILD: &str = "MARU_TEST_ARENA_LIMIT";
    if env::var(CHILD).is_ok() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let data = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
        let data: u64 = data.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        let limit = Some(data * 1024 + 200 * MIB);
        setrlimit(Resource::Data, Rlimit { current: limit, maximum: limit }).unwrap();
        let config = ArenaConfig { bytes: 1 << 30, initial_bytes: 1 << 30, ..SMALL };
        let error = Arena::new(&config).unwrap_err();
        assert!(matches!(error, ArenaError::Memory { bytes: 0x4000_0000, .. }), "{error}");

        let arena = arena(1 << 30, 0);
        let _first = arena.allocate(128 * MIB, 1).unwrap();
        assert_eq!(arena.grown_bytes(), 128 * MIB);
        let _second = arena.allocate(1, 1).unwrap();
        assert_eq!(arena.grown_bytes(), 130 * MIB, "what is needed, as twice was refused");
        assert!(arena.allocate(500 * MIB, 1).is_none());
        assert_eq!((arena.grown_bytes(), arena.check()), (130 * MIB, true));
        return;
    }
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "arena::a_kernel_that_gives_no_more_is_an_answer"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"), "{child:?}");
}

#[test]
fn what_cannot_be_is_said() {
    let error = |config: &ArenaConfig| Arena::new(config).unwrap_err();
    for align_bytes in [0, 3, 4 * MIB] {
        let error = error(&ArenaConfig { align_bytes, ..SMALL });
        assert!(matches!(error, ArenaError::Alignment { .. }), "{error}");
    }
    for bytes in [0, 4095] {
        let error = error(&ArenaConfig { bytes, ..SMALL });
        assert!(matches!(error, ArenaError::TooSmall { .. }), "{error}");
        assert!(error.to_string().contains("4KiB"), "{error}");
    }
    for bytes in [1 << 50, u64::MAX - 4096, u64::MAX] {
        let error = error(&ArenaConfig { bytes, ..SMALL });
        assert!(matches!(error, ArenaError::Reserve { .. }), "{error}");
    }
}

#[test]
fn huge_pages_are_taken_at_once_or_found_missing() {
    let is_no_kernel_for_it = |error: &ArenaError| {
        let known = fs::exists("/sys/kernel/mm/hugepages/hugepages-2048kB").unwrap();
        matches!(error, ArenaError::HugePages { .. }) && !known
    };
    // No host has so many.
    let config = ArenaConfig { bytes: (16 << 40) - 1, huge_pages: true, ..SMALL };
    let error = Arena::new(&config).unwrap_err();
    match &error {
        ArenaError::TooFewHugePages { needed: 0x80_0000, free, total } => {
            assert!(error.to_string().contains("sysctl vm.nr_hugepages="), "{error}");
            assert!(free < total, "{error}");
        }
        error => assert!(is_no_kernel_for_it(error), "{error}"),
    }

    match Arena::new(&ArenaConfig { bytes: 4 * MIB - 1, huge_pages: true, ..SMALL }) {
        Ok(arena) => {
            assert_eq!((arena.bytes(), arena.grown_bytes()), (4 * MIB, 4 * MIB));
            assert_eq!(smaps(arena.base(), "KernelPageSize"), "2048 kB");
            assert_eq!(smaps(arena.base(), "Private_Hugetlb"), "4096 kB");
            let blocks = [filled(&arena, 3 * MIB, 1).unwrap(), filled(&arena, MIB, 2).unwrap()];
            assert!(holds(&blocks[0], 1) && holds(&blocks[1], 2));
            assert!(filled(&arena, 1, 1).is_none());
            drop(blocks);
            assert!(arena.check() && is_whole(&arena));
        }
        // Most hosts have none.
        Err(ArenaError::TooFewHugePages { needed: 2, free: 0 | 1, .. }) => {}
        Err(error) => assert!(is_no_kernel_for_it(&error), "{error}"),
    }
}
