//! Which cache lines are worked on: seen by memory that is taken away, since work on a line that is
//! not there fails.

use std::sync::Arc;

use maru_memory::{DATA_START, Device, MappingError, PageMut, PageView, PoolMapping, Visibility};
use tempfile::TempDir;

use crate::media::{cut, expect_media, mend};
use crate::{CACHE_LINE, MIB, create, map_with, shm_dir};

/// The last byte is alone in what can be taken away.
const PAGE: u64 = 3 * 4096 + 1;
const LAST: u64 = DATA_START + PAGE - 1;

/// A pool with one page, whose last byte comes and goes.
struct Pool {
    device: Device,
    mapping: Arc<PoolMapping>,
    _dir: TempDir,
}

impl Pool {
    fn new(visibility: Visibility) -> Self {
        let dir = shm_dir();
        let device = create(&dir, "pool", 4 * MIB);
        let mapping = map_with(&device, visibility);
        Self { device, mapping, _dir: dir }
    }

    fn write(&self) -> PageMut {
        self.mapping.write(DATA_START, PAGE).unwrap()
    }

    fn read(&self) -> PageView {
        self.mapping.read(DATA_START, PAGE).unwrap()
    }

    /// What `work` says when the last byte is not there.
    fn without_last<T>(&self, work: impl FnOnce() -> T) -> T {
        cut(&self.device, LAST);
        let result = work();
        mend(&self.device);
        result
    }

    /// Checks that `work` reaches the last line.
    #[track_caller]
    fn reaches_last(&self, work: impl FnOnce() -> Result<(), MappingError>) {
        let error = self.without_last(work).unwrap_err();
        expect_media(error, &self.device, LAST);
    }
}

#[test]
fn in_a_coherent_pool_none() {
    let pool = Pool::new(Visibility::Coherent);
    let mut page = pool.write();
    page.bytes_mut().fill(1);
    pool.without_last(|| page.publish(PAGE, 1)).unwrap();
    pool.without_last(|| page.write_back(1)).unwrap();
    pool.without_last(|| pool.read().acquire(1)).unwrap();
}

#[test]
fn a_reader_drops_all() {
    let pool = Pool::new(CACHE_LINE);
    pool.reaches_last(|| pool.read().acquire(1));
}

#[test]
fn dirty_ones_behind_what_is_published_too() {
    let pool = Pool::new(CACHE_LINE);
    let mut page = pool.write();
    page.bytes_mut().fill(1);
    pool.reaches_last(|| page.publish(1, 1));
    pool.reaches_last(|| page.write_back(1));
}

#[test]
fn those_that_a_device_may_have_stored() {
    let pool = Pool::new(CACHE_LINE);
    pool.reaches_last(|| pool.write().publish(1, 1));
    pool.reaches_last(|| pool.write().write_back(1));
}

#[test]
fn none_twice() {
    let pool = Pool::new(CACHE_LINE);
    let mut page = pool.write();
    page.bytes_mut().fill(1);
    page.publish(1, 1).unwrap();
    pool.without_last(|| page.publish(1, 1)).unwrap();
    pool.without_last(|| page.write_back(1)).unwrap();
    page.bytes_mut().fill(2);
    page.write_back(1).unwrap();
    pool.without_last(|| page.publish(1, 1)).unwrap();
}

#[test]
fn none_after_a_copy_but_what_is_stored_besides() {
    let pool = Pool::new(CACHE_LINE);
    let bytes = vec![3; pool.write().bytes_mut().len()];
    let mut page = pool.write();
    page.copy_from(&bytes).unwrap();
    pool.without_last(|| page.publish(PAGE, 1)).unwrap();
    pool.without_last(|| page.write_back(1)).unwrap();
    page.bytes_mut()[0] = 4;
    pool.reaches_last(|| page.publish(PAGE, 1));
    page.copy_from(&bytes).unwrap();
    pool.reaches_last(|| page.publish(PAGE, 1));
}

#[test]
fn old_ones_before_the_first_store() {
    let pool = Pool::new(CACHE_LINE);
    let mut page = pool.write();
    pool.without_last(|| page.as_mut_ptr());
    page.bytes_mut().fill(1);
    for _ in 0..2 {
        expect_media(page.publish(PAGE, 1).unwrap_err(), &pool.device, LAST);
    }
    page.write_back(1).expect("the page can be given back");
    drop(page);
    let mut page = pool.write();
    page.as_mut_ptr();
    pool.without_last(|| page.as_mut_ptr());
    page.publish(PAGE, 1).expect("not before a second one");
}
