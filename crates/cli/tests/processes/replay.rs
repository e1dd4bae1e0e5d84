//! The main job, end to end, on traces small enough for a test.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};

use super::common::{json, maru, run, serve, stderr};
use maru_testkit::{text, wait_until};
use serde_json::Value;

const SMALL: [&str; 9] = [
    "replay",
    "--requests",
    "300",
    "--capacity-blocks",
    "3000",
    "--page-size",
    "4KiB",
    "--seed",
    "7",
];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SMALL[..], more].concat()
}

/// What must hold after every replay, whatever happened on the way.
fn nothing_wrong(run: &Value) {
    for name in ["wrong_bytes", "pins_left", "reservations_left", "pages_lost"] {
        assert_eq!(run[name], 0, "{name}: {run}");
    }
}

#[test]
fn sharing_beats_private_l1s_and_every_byte_is_right() {
    let result = json(&with(&["--json"]));
    let (private, shared) = (&result["private"], &result["shared"]);
    for run in [private, shared] {
        nothing_wrong(run);
        let hit = run["blocks_hit"].as_u64().unwrap();
        assert_eq!(run["bytes_verified"], hit * 4096);
        assert_eq!(run["blocks_requested"], result["trace"]["blocks"]);
        assert_eq!(run["requests"], 300);
        assert_eq!(run["instances_lost"], 0);
        for call in ["reserve_read", "finish_read", "reserve_write", "finish_write"] {
            let latency = &run["latency_us"][call];
            assert!(latency["p99"].as_f64() >= latency["p50"].as_f64(), "{latency}");
        }
        assert!(run["evictions"].as_u64() > Some(0), "an L1 this small must evict");
    }
    assert!(shared["prefix_hit_rate"].as_f64() > private["prefix_hit_rate"].as_f64());
}

#[test]
fn every_policy_evicts_and_none_stops_storing() {
    for policy in ["LRU", "S3-FIFO", "ARC", "IsolatedLRU", "noop"] {
        let result = json(&with(&["--json", "--l1", "local", "--eviction-policy", policy]));
        assert_eq!(result["shared"], Value::Null);
        let run = &result["private"];
        nothing_wrong(run);
        assert!(run["blocks_hit"].as_u64() > Some(0), "{policy}: {run}");
        let number = |name: &str| run[name].as_u64().unwrap();
        let (stored, evicted) = (number("blocks_stored"), number("evictions"));
        // What came is there, at most 750 blocks an instance, or has left.
        assert!((evicted..=evicted + 3000).contains(&stored), "{policy}: {run}");
        let evicts = policy != "noop";
        assert_eq!(evicted > 0, evicts, "{policy}");
        assert_eq!(number("blocks_without_memory") > 0, !evicts, "{policy}");
        let last = run["course"].as_array().unwrap().last().unwrap();
        assert_eq!(last["capacity_bytes"], 3000 * 4096);
        assert_eq!(last["used_bytes"], (stored - evicted) * 4096);
    }
}

#[test]
fn the_settings_of_an_l1_reach_the_instances() {
    // 750 blocks each, of 4 KiB, as by default in these tests.
    let size = (750.0 * 4096.0 / f64::from(1 << 30)).to_string();
    let sized = json(&[
        "replay",
        "--requests",
        "300",
        "--l1-size-gb",
        &size,
        "--page-size",
        "4KiB",
        "--seed",
        "7",
        "--json",
    ]);
    let by_blocks = json(&with(&["--json"]));
    assert_eq!(sized["options"], by_blocks["options"]);
    for figure in ["blocks_hit", "blocks_stored", "evictions"] {
        assert_eq!(sized["private"][figure], by_blocks["private"][figure], "{figure}");
    }
    // A quarter of a MiB each, and no more.
    let budget = ["--maru-pool-size-gb", "0.000244140625", "--no-maru-auto-expand"];
    let narrow = json(&[&with(&["--json", "--l1", "maru"])[..], &budget].concat());
    let used = narrow["shared"]["course"].as_array().unwrap().iter();
    assert!(used.map(|sample| sample["used_bytes"].as_u64().unwrap()).max() <= Some(4 << 18));
}

#[test]
fn the_environment_may_name_the_server_and_the_prefix() {
    let serving = serve("16MiB", &[]);
    let run = |args: &[&str]| {
        let mut command = maru(&with(args));
        command.env("MARU_SERVER_URL", serving.socket()).env("MARU_INSTANCE_ID", "blue");
        command.output().unwrap()
    };
    let shared = run(&["--l1", "maru"]);
    assert!(shared.status.success(), "{}", stderr(&shared));
    assert!(stderr(&shared).contains("MARU_SERVER_URL"), "{}", stderr(&shared));
    let stats = serving.connect().unwrap().stats().unwrap();
    assert!(stats.counters.committed > 0, "{:?}", stats.counters);
    // It is meant for others: no reason to refuse.
    assert!(run(&["--l1", "local"]).status.success());
    let own = run(&["--transport", "tcp"]);
    assert_eq!(own.status.code(), Some(2));
    assert!(stderr(&own).contains("MARU_SERVER_URL"), "{}", stderr(&own));
}

#[test]
fn instances_may_come_over_unix_sockets_and_tcp() {
    for transport in ["mixed", "tcp"] {
        let result = json(&with(&["--json", "--l1", "maru", "--transport", transport]));
        assert_eq!(result["private"], Value::Null);
        nothing_wrong(&result["shared"]);
        assert!(result["shared"]["blocks_hit"].as_u64() > Some(0));
    }
}

#[test]
fn a_running_server_can_be_used_again_and_again() {
    let serving = serve("8MiB", &[]);
    let socket = serving.socket();
    let args = with(&["--json", "--l1", "maru", "--maru-server-url", text(&socket)]);
    let (first, second) = (json(&args), json(&args));
    nothing_wrong(&first["shared"]);
    nothing_wrong(&second["shared"]);
}

#[test]
fn an_l1_smaller_than_a_request_is_no_error() {
    let result = json(&[
        "replay",
        "--requests",
        "50",
        "--capacity-blocks",
        "4",
        "--page-size",
        "4KiB",
        "--json",
    ]);
    nothing_wrong(&result["shared"]);
    nothing_wrong(&result["private"]);
}

#[test]
fn odd_page_sizes_work() {
    let result = json(&[
        "replay",
        "--requests",
        "50",
        "--capacity-blocks",
        "300",
        "--page-size",
        "10007",
        "--json",
    ]);
    nothing_wrong(&result["shared"]);
    assert!(result["shared"]["bytes_verified"].as_u64() > Some(0));
}

#[test]
fn a_bad_trace_line_is_named_or_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good"), folder.path().join("bad"));
    let made =
        run(&["trace", "generate", "--requests", "20", "--seed", "3", "--output", text(&good)]);
    assert!(made.status.success(), "{}", stderr(&made));
    let mut lines: Vec<String> =
        std::fs::read_to_string(&good).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 20);
    lines.insert(10, r#"{"timestamp": "soon", "hash_ids": []}"#.to_owned());
    std::fs::write(&bad, lines.join("\n")).unwrap();
    let base =
        ["replay", "--json", "--l1", "maru", "--capacity-blocks", "100", "--trace", text(&bad)];
    let refused = run(&base);
    assert_eq!(refused.status.code(), Some(1));
    let complaint = stderr(&refused);
    assert!(complaint.contains("11") && complaint.contains("--skip-bad-lines"), "{complaint}");
    let skipped = json(&[&base[..], &["--skip-bad-lines"]].concat());
    assert_eq!(
        (&skipped["trace"]["skipped_lines"], &skipped["shared"]["requests"]),
        (&1.into(), &20.into())
    );
}

#[test]
fn the_report_is_one_page_with_the_same_figures() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.html");
    let output = run(&with(&["--report", text(&report)]));
    assert!(output.status.success(), "{}", stderr(&output));
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("<svg") && page.contains("</html>"));
    assert!(!page.contains("src=") && !page.contains("<script"), "it needs nothing from outside");
}

#[test]
fn a_replay_that_fails_leaves_the_last_report_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    std::fs::write(&old, "the last report").unwrap();
    for report in [&old, &new] {
        let failed = run(&with(&["--maru-server-url", "/nobody/here", "--report", text(report)]));
        assert_eq!(failed.status.code(), Some(3), "{}", stderr(&failed));
    }
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "the last report");
    assert!(!new.exists());
}

#[test]
fn a_server_that_cannot_take_part_is_named_before_the_work() {
    let (one, two) = (serve("8MiB", &[]), serve("16MiB", &[]));
    let (one, two) = (one.socket(), two.socket());
    let page = ["--page-size", "4MiB", "--maru-server-url", text(&one)];
    let too_large = run(&[&["replay", "--l1", "maru", "--requests", "9"][..], &page].concat());
    let complaint = stderr(&too_large);
    assert_eq!(too_large.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("--region-size") && complaint.lines().count() == 1, "{complaint}");
    let unlike = run(&with(&["--l1", "maru", "--maru-server-url", text(&two)]));
    assert!(unlike.status.success());
    assert!(stderr(&unlike).contains("not as large"), "{}", stderr(&unlike));
}

#[test]
fn an_interrupted_replay_leaves_no_pool_behind() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        // Ctrl-C goes to all processes of the terminal's group, which a test must not share. The
        // second request would come after the end of the world.
        let args = with(&["--l1", "maru", "--speed-up", "1e-300"]);
        let mut command = maru(&args);
        command.process_group(0).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut replay = command.spawn().unwrap();
        let pool = format!("/dev/shm/maru-replay-{}-shared.pool", replay.id());
        let path = format!("/proc/{0}/task/{0}/children", replay.id());
        let children = || std::fs::read_to_string(&path).unwrap_or_default();
        wait_until("the instances start", || {
            children().split_whitespace().count() == 4
                || replay.try_wait().unwrap().is_some_and(|s| panic!("{s}"))
        });
        assert!(Path::new(&pool).exists());
        kill_process_group(Pid::from_child(&replay), signal).unwrap();
        let output = replay.wait_with_output().unwrap();
        let complaint = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{signal:?}: {complaint}");
        assert!(complaint.starts_with("error: interrupted"), "{signal:?}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "the instances are not lost: {complaint}");
        assert!(!Path::new(&pool).exists());
    }
}
