//! `kill -9` of a server under a running replay, and its restart.

use std::thread::sleep;
use std::time::Instant;

use super::audit::Auditor;
use super::{Dice, Series, free_port};
use crate::{Replaying, Serving, assert_nothing_left, text};

/// Requests of one replay: some 14,000 blocks.
const REQUESTS: &str = "900";

const PAGE_BYTES: u64 = 4096;

impl Series {
    /// Kills the server at `kills` random moments, some of them soon after its start, while
    /// instances are coming back.
    pub fn kill_servers(&mut self, kills: u64) {
        // Every other replay finds so little memory that the server evicts all the time, and two page
        // sizes take the regions from each other; that pool stays, so that its store grows old. The
        // others find room for all that is stored, which then must be there.
        let narrow = self.serve("12MiB", &[]);
        let mut narrow = (Auditor::new(&narrow, false), narrow);
        for replay in 0.. {
            if self.figures.servers_killed >= kills {
                break;
            }
            assert!(replay < 10 + kills, "most kills come too late to hit a running replay");
            if replay % 2 == 1 {
                let (auditor, serving) = &mut narrow;
                let page_bytes = if replay % 4 == 1 { PAGE_BYTES } else { 3 * PAGE_BYTES };
                let url = text(&serving.socket()).to_owned();
                self.replay_and_kill(serving, auditor, &url, page_bytes, kills);
                auditor.forget();
                continue;
            }
            let listen = format!("127.0.0.1:{}", free_port());
            // Nobody sees over TCP that an instance is gone, once it cannot say goodbye.
            let flags = ["--listen", &listen, "--lease-ms", "2000", "--quarantine-ms", "1000"];
            let is_tcp = replay % 4 == 2;
            let mut serving = self.serve("96MiB", if is_tcp { &flags } else { &[] });
            let mut auditor = Auditor::new(&serving, true);
            auditor.cut_all(PAGE_BYTES);
            let url = text(&serving.socket()).to_owned();
            let url = if is_tcp { format!("tcp://{listen}") } else { url };
            self.replay_and_kill(&mut serving, &mut auditor, &url, PAGE_BYTES, kills);
        }
    }

    /// Runs one replay to its end, and kills the server meanwhile.
    fn replay_and_kill(
        &mut self,
        serving: &mut Serving,
        auditor: &mut Auditor,
        url: &str,
        page_bytes: u64,
        kills: u64,
    ) {
        let number = self.figures.replays;
        let folder = serving.folder.path().join(format!("replay-{number}"));
        let seed = Dice::new(self.seed, number).below(1 << 32).to_string();
        let page = page_bytes.to_string();
        let flags = ["--requests", REQUESTS, "--page-size", &page, "--seed", &seed];
        let client = &auditor.client;
        let mut replay = Replaying::start(&self.program, &folder, url, &flags, client);
        while self.figures.servers_killed < kills {
            let mut dice = Dice::new(self.seed, self.figures.servers_killed);
            sleep(dice.time(&[5, 50, 200, 500]));
            if replay.is_over() {
                break;
            }
            let mut started = self.kill_one(serving, auditor, &replay);
            // While it starts, or while the first of them come back.
            while dice.below(3) == 0 {
                sleep(dice.time(&[5, 30, 120]));
                started = self.kill_one(serving, auditor, &replay);
            }
            auditor.check(started, dice.below(2) == 0, &mut self.figures);
        }
        let log = replay.log();
        let replayed = self.end(replay);
        let (lost, served) = (replayed.instances_lost, replayed.requests.to_string());
        assert_eq!((lost, &*served), (0, REQUESTS), "instances go on: {log}");
        // Over TCP the lease is short enough to run out on a busy machine.
        let all_returned = !log.contains("a session was lost");
        assert!(all_returned || url.starts_with("tcp:"), "{log}");
        auditor.read_ledgers(&folder.join("ledgers"));
        auditor.check_all(&mut self.figures);
        auditor.forget();
        assert_nothing_left(&auditor.client);
        serving.assert_no_alarm();
    }

    /// Kills a server and starts it again; when that was.
    fn kill_one(
        &mut self,
        serving: &mut Serving,
        auditor: &mut Auditor,
        replay: &Replaying,
    ) -> Instant {
        serving.kill();
        auditor.read_ledgers(&replay.ledgers());
        let started = Instant::now();
        serving.restart();
        self.count(|figures| figures.servers_killed += 1);
        started
    }
}
