//! Servers and instances killed together, and servers killed while an instance is stopped.

use std::thread::sleep;
use std::time::Instant;

use rustix::process::Signal;

use super::audit::Auditor;
use super::stops::{HASTY, POOL, Stopped};
use super::{Dice, Series, signal};
use crate::{Replaying, assert_nothing_left, text};

/// How long an instance stays stopped after the restart: less than its lease, less than lease and
/// quarantine, or more.
const STOPPED_MS: [u64; 3] = [250, 1200, 3000];

impl Series {
    /// Kills servers, half of `kills` together with an instance, the others while one is stopped.
    pub fn kill_servers_and_instances(&mut self, kills: u64) {
        for _ in 0..kills / 2 {
            self.kill_server_and_instance();
        }
        self.kill_servers_beside_the_stopped(kills - kills / 2);
    }

    fn kill_server_and_instance(&mut self) {
        let mut serving = self.serve("96MiB", &[]);
        let mut auditor = Auditor::new(&serving, true);
        let number = self.figures.servers_killed;
        let mut dice = Dice::new(self.seed, number);
        let (url, seed) = (text(&serving.socket()).to_owned(), dice.below(1 << 32).to_string());
        let flags = ["--requests", "400", "--page-size", "4KiB", "--seed", &seed];
        let folder = serving.folder.path().join("replay");
        let replay = Replaying::start(&self.program, &folder, &url, &flags, &auditor.client);
        sleep(dice.time(&[150]));
        let victim = usize::try_from(dice.below(4)).expect("it is below 4");
        let victim = replay.instances.get(victim);
        let kill = || victim.is_some_and(|victim| signal(victim.pid, Signal::KILL));
        let is_first = dice.below(2) == 0 && kill();
        serving.kill();
        let _ = is_first || kill();
        auditor.read_ledgers(&replay.ledgers());
        let started = Instant::now();
        serving.restart();
        auditor.check(started, dice.below(2) == 0, &mut self.figures);
        let replayed = self.end(replay);
        assert!(replayed.requests >= 399, "the others take over: {replayed:?}");
        auditor.read_ledgers(&folder.join("ledgers"));
        auditor.check_all(&mut self.figures);
        auditor.forget();
        assert_nothing_left(&auditor.client);
        serving.assert_no_alarm();
        self.count(|figures| {
            figures.servers_killed += 1;
            figures.instances_killed += replayed.instances_lost;
        });
    }

    fn kill_servers_beside_the_stopped(&mut self, kills: u64) {
        let mut serving = self.serve(POOL, &HASTY);
        let watcher = serving.client();
        let goal = self.figures.servers_killed + kills;
        while self.figures.servers_killed < goal {
            let mut replay = self.replay_large_pages(text(&serving.socket()), &watcher);
            while self.figures.servers_killed < goal {
                let mut dice = Dice::new(self.seed, self.figures.servers_killed);
                sleep(dice.time(&[300]));
                let Some(stopped) = Stopped::one_of(&mut replay, &mut dice, &watcher) else {
                    break;
                };
                // Before its lease is over, or in the middle of its quarantine.
                if dice.below(2) == 0 {
                    stopped.wait_for_end(&watcher);
                }
                serving.kill();
                serving.restart();
                let until = Instant::now() + dice.time(&STOPPED_MS);
                let pages_kept = stopped.press(&watcher, until);
                stopped.go_on(&mut replay, &watcher);
                self.count(|figures| {
                    figures.servers_killed += 1;
                    figures.instances_stopped += 1;
                    figures.pages_kept += pages_kept;
                });
            }
            self.end_all_alive(replay, &watcher);
        }
        serving.assert_no_alarm();
    }
}
