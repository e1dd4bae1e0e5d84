//! Memory brought in behind a mapping.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use maru_memory::{DATA_START, MappingError, Populate, PopulateError, View};

use crate::{MIB, create, map, shm_dir, smaps};

/// More than two chunks, and no whole number of them.
const BYTES: u64 = 130 * MIB;

#[test]
fn all_memory_comes_in_and_nothing_changes() {
    for view in [View::Write, View::Read] {
        let dir = shm_dir();
        let device = create(&dir, "pool", BYTES);
        let mapping = map(&device);
        let offset = DATA_START + 65 * MIB;
        mapping.write(offset, 4).unwrap().copy_from(b"here").unwrap();
        let populate = Populate::start(Arc::clone(&mapping), 0, BYTES, 3, view).unwrap();
        while !populate.is_finished() {
            let (done, total) = populate.progress();
            assert!(done <= total && total == BYTES);
            std::thread::yield_now();
        }
        assert_eq!(populate.progress(), (BYTES, BYTES));
        populate.wait().unwrap();
        assert_eq!(fs::metadata(device.path()).unwrap().blocks() * 512, BYTES);
        let base = match view {
            View::Read => mapping.read_base(),
            View::Write => mapping.write_base().cast_const(),
        };
        assert_eq!(smaps(base, "Rss"), format!("{} kB", BYTES / 1024));
        assert_eq!(mapping.read(offset, 4).unwrap().bytes(), b"here");
    }
}

#[test]
fn dropped_it_stops() {
    let dir = shm_dir();
    let device = create(&dir, "pool", BYTES);
    let mapping = map(&device);
    drop(Populate::start(Arc::clone(&mapping), 0, BYTES, 0, View::Write).unwrap());
    assert_eq!(Arc::strong_count(&mapping), 1, "no thread is left that holds it");
}

#[test]
fn only_what_is_mapped() {
    let dir = shm_dir();
    let mapping = map(&create(&dir, "pool", 4 * MIB));
    for (offset, len) in [(4 * MIB, 4096), (0, 4 * MIB + 1), (u64::MAX, 2)] {
        let error = Populate::start(Arc::clone(&mapping), offset, len, 1, View::Read).unwrap_err();
        let outside = matches!(&error, PopulateError::Mapping(MappingError::OutOfBounds { .. }));
        assert!(outside, "{error}");
    }
}
