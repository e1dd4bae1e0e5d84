//! `kill -9` of one instance in the middle of a replay, at random moments: the others finish, no
//! byte is wrong, and nothing of the dead is left.

use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use maru_client::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::common::{Serving, maru, stderr, text, wait_until};

/// The processes that `parent` has started.
fn children(parent: &Child) -> Vec<i32> {
    let pid = parent.id();
    let path = format!("/proc/{pid}/task/{pid}/children");
    let listed = std::fs::read_to_string(path).unwrap_or_default();
    listed.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// A number below `end` that differs from turn to turn.
fn random(turn: u64, end: u64) -> u64 {
    (turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % end
}

/// Replays against the server at `url`, killing one of four instances each time at a random moment,
/// until `kills` of them died while they had requests to serve.
fn kill_instances(client: &Client, url: &str, kills: u64) {
    let (mut lost, mut slowest) = (0, Duration::ZERO);
    for turn in 0.. {
        if lost >= kills {
            break;
        }
        assert!(turn < 10 * kills, "most kills come too late to hit a running replay");
        let mut args = vec!["replay", "--l1", "maru", "--json", "--requests", "150"];
        let seed = turn.to_string();
        args.extend(["--capacity-blocks", "512", "--page-size", "4KiB", "--maru-server-url", url]);
        args.extend(["--seed", &seed]);
        let granted_before = client.stats().unwrap().counters.granted;
        let mut replay = maru(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let run = format!("{}-shared-", replay.id());
        // From then on all are ready: one that is killed before fails the replay, as it should.
        wait_until("the first request is served", || {
            let granted = client.stats().unwrap().counters.granted;
            granted > granted_before || replay.try_wait().unwrap().is_some()
        });
        let victims = children(&replay);
        std::thread::sleep(Duration::from_micros(random(turn, 60_000)));
        let victim = victims.get(usize::try_from(turn % 4).unwrap()).copied();
        let victim = victim.and_then(Pid::from_raw);
        let killed = victim.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
        let name = format!("{run}{}", turn % 4);
        let start = Instant::now();
        wait_until("the dead hold nothing", || {
            let holders = client.holders(0, 4096).unwrap().holders;
            !killed || holders.iter().all(|holder| holder.instance != name)
        });
        slowest = slowest.max(start.elapsed());
        let output = replay.wait_with_output().unwrap();
        assert!(output.status.success(), "turn {turn}: {}", stderr(&output));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let shared = &result["shared"];
        for name in ["wrong_bytes", "pins_left", "reservations_left", "pages_lost"] {
            assert_eq!(shared[name], 0, "turn {turn}, {name}: {shared}");
        }
        assert!(shared["requests"].as_u64() >= Some(149), "the others take over: {shared}");
        lost += shared["instances_lost"].as_u64().unwrap();
    }
    println!("{lost} instances killed in the middle; the slowest held nothing after {slowest:?}");
}

/// Few pages, so that nearly every one of them is somebody's at any moment.
const POOL: &str = "4MiB";

#[test]
fn whoever_is_killed_leaves_nothing_behind() {
    let serving = Serving::start(POOL, &[]);
    let client = serving.connect().unwrap();
    kill_instances(&client, text(&serving.socket()), 100);
    let stats = client.stats().unwrap();
    assert_eq!((stats.pins, stats.pages_reserved, stats.lost_bytes()), (0, 0, 0));
    assert_eq!(stats.pages_quarantined, 0, "processes seen to die need no quarantine");
    assert_eq!(stats.counters.rule_violations, 0);
}

/// Over TCP nobody sees a process die: what it was writing to is kept from others for a while.
#[test]
fn pages_of_the_unseen_dead_come_back_after_their_quarantine() {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let serving = Serving::start(POOL, &["--listen", &listen, "--quarantine-ms", "1000"]);
    let client = serving.connect().unwrap();
    kill_instances(&client, &format!("tcp://{listen}"), 8);
    wait_until("the quarantines end", || client.stats().unwrap().pages_quarantined == 0);
    let stats = client.stats().unwrap();
    assert_eq!((stats.pins, stats.pages_reserved, stats.lost_bytes()), (0, 0, 0));
    assert_eq!(stats.counters.rule_violations, 0);
}

/// A port that nobody listens on at this moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
