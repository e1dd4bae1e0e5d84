//! `kill -9` and SIGSTOP at random moments, a few of each; `cargo xtask kill` does hundreds.

use maru_testkit::kill::Series;
use tempfile::TempDir;

use super::common::program;

/// The same choices in every run.
const SEED: u64 = 1;

fn series() -> (TempDir, Series) {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let series = Series::new(program(), root.path(), SEED, |_| {});
    (root, series)
}

#[test]
fn a_killed_server_loses_nothing() {
    let (_root, mut series) = series();
    series.kill_servers(12);
    assert!(series.figures().entries_checked > 10_000, "{series:?}");
}

#[test]
fn whoever_is_killed_leaves_nothing_behind() {
    let (_root, mut series) = series();
    series.kill_instances(20);
}

#[test]
fn pages_of_the_unseen_dead_come_back_after_their_quarantine() {
    let (_root, mut series) = series();
    series.kill_instances_over_tcp(2);
}

#[test]
fn pages_of_a_stopped_writer_are_kept_until_it_lets_go() {
    let (_root, mut series) = series();
    series.stop_instances(4);
    assert!(series.figures().pages_kept > 0, "{series:?}");
}

#[test]
fn servers_and_instances_may_be_killed_together() {
    let (_root, mut series) = series();
    series.kill_servers_and_instances(4);
}
