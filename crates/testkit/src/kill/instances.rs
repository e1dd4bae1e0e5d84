//! `kill -9` of instances in the middle of a replay.

use std::thread::sleep;
use std::time::Instant;

use maru_client::Client;
use rustix::process::Signal;

use super::{Dice, Series, free_port, millis, signal};
use crate::{Instance, Replaying, assert_nothing_left, text, wait_until};

/// Few pages, so that nearly every one of them is somebody's at any moment.
const POOL: &str = "4MiB";

const REQUESTS: u64 = 150;

impl Series {
    /// Kills instances at `kills` random moments, over a Unix socket. Processes seen to die need no
    /// quarantine.
    pub fn kill_instances(&mut self, kills: u64) {
        let serving = self.serve(POOL, &[]);
        let watcher = serving.client();
        self.replay_until_killed(text(&serving.socket()), &watcher, kills);
        assert_eq!(watcher.stats().expect("the server answers").counters.quarantined, 0);
        serving.assert_no_alarm();
    }

    /// The same over TCP, where nobody sees a process die: what it was writing to is kept from others
    /// for a while.
    pub fn kill_instances_over_tcp(&mut self, kills: u64) {
        let listen = format!("127.0.0.1:{}", free_port());
        let serving = self.serve(POOL, &["--listen", &listen, "--quarantine-ms", "1000"]);
        let watcher = serving.client();
        self.replay_until_killed(&format!("tcp://{listen}"), &watcher, kills);
        serving.assert_no_alarm();
    }

    /// Replays, killing one of four instances each time, until `kills` more of them died while they
    /// had requests to serve.
    fn replay_until_killed(&mut self, url: &str, watcher: &Client, kills: u64) {
        let goal = self.figures.instances_killed + kills;
        let first = self.figures.replays;
        while self.figures.instances_killed < goal {
            let replay = self.figures.replays;
            assert!(replay - first < 10 * kills, "most kills come too late to hit a replay");
            self.replay_and_kill_one(url, watcher);
        }
        assert_nothing_left(watcher);
    }

    fn replay_and_kill_one(&mut self, url: &str, watcher: &Client) {
        let number = self.figures.replays;
        let mut dice = Dice::new(self.seed, number);
        let (requests, seed) = (REQUESTS.to_string(), dice.below(1 << 32).to_string());
        let flags = ["--requests", &requests, "--capacity-blocks", "512", "--page-size", "4KiB"];
        let flags = [&flags[..], &["--seed", &seed]].concat();
        let folder = self.root.join(format!("replay-{number}"));
        let replay = Replaying::start(&self.program, &folder, url, &flags, watcher);
        let victim = dice.below(4);
        sleep(dice.time(&[60]));
        let victim = replay.instances.get(usize::try_from(victim).expect("it is below 4"));
        if let Some(Instance { name, pid }) = victim
            && signal(*pid, Signal::KILL)
        {
            let start = Instant::now();
            wait_until("the dead hold nothing", || {
                let page = watcher.holders(0, 4096).expect("the server answers");
                page.holders.iter().all(|holder| holder.instance != *name)
            });
            let slowest = self.figures.slowest_cleanup_ms.max(millis(start.elapsed()));
            self.figures.slowest_cleanup_ms = slowest;
        }
        let replayed = self.end(replay);
        assert!(replayed.requests >= REQUESTS - 1, "the others take over: {replayed:?}");
        self.count(|figures| figures.instances_killed += replayed.instances_lost);
    }
}
