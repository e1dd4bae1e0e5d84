//! SIGSTOP of an instance in the middle of a replay, for longer than its lease, and SIGCONT.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

use maru_client::{Client, Reserve, Reserved, ReservedPage};
use maru_protocol::{HolderInfo, HoldingKind, Key, Location, SessionId};
use rustix::process::{Pid, Signal};

use super::{Dice, Series, signal};
use crate::{Instance, Replaying, assert_nothing_left, text, wait_until};

/// Most of an instance's time goes into copying, so most stops come while it holds something.
const PAGE_BYTES: u64 = 256 << 10;

/// A server that soon gives an instance up, and soon after that its pages, if the instance is not
/// stopped.
pub(super) const HASTY: [&str; 4] = ["--lease-ms", "300", "--quarantine-ms", "1000"];

/// One that gets pages back only from those who let go of them, as long as anybody here waits.
const PATIENT: [&str; 4] = ["--lease-ms", "300", "--quarantine-ms", "3600000"];

/// A pool that evicts all the time.
pub(super) const POOL: &str = "64MiB";

/// How long an instance is stopped beyond its lease: mostly within its quarantine, or beyond that.
const BEYOND_LEASE_MS: [u64; 3] = [300, 800, 2500];

/// Pages reserved in one request.
const BATCH: u64 = 8;

impl Series {
    /// Stops instances at `stops` random moments while they write or read, for longer than their
    /// lease, sometimes for longer than a quarantine, too.
    pub fn stop_instances(&mut self, stops: u64) {
        self.stop_instances_of(&HASTY, stops - stops / 2);
        self.stop_instances_of(&PATIENT, stops / 2);
    }

    fn stop_instances_of(&mut self, server: &[&str], stops: u64) {
        let serving = self.serve(POOL, server);
        let watcher = serving.client();
        let goal = self.figures.instances_stopped + stops;
        let mut attempts = 0;
        while self.figures.instances_stopped < goal {
            let mut replay = self.replay_large_pages(text(&serving.socket()), &watcher);
            while self.figures.instances_stopped < goal {
                attempts += 1;
                assert!(attempts < 10 + 2 * stops, "few who are stopped let go by themselves");
                let mut dice = Dice::new(self.seed, self.figures.replays << 16 | attempts);
                sleep(dice.time(&[300]));
                let Some(stopped) = Stopped::one_of(&mut replay, &mut dice, &watcher) else {
                    break;
                };
                stopped.wait_for_end(&watcher);
                let until = Instant::now() + dice.time(&BEYOND_LEASE_MS);
                let pages_kept = stopped.press(&watcher, until);
                // One that came to its end instead tells of nothing.
                if stopped.go_on(&mut replay, &watcher) {
                    self.count(|figures| {
                        figures.instances_stopped += 1;
                        figures.pages_kept += pages_kept;
                    });
                }
            }
            self.end_all_alive(replay, &watcher);
        }
        serving.assert_no_alarm();
    }

    /// A replay that moves much.
    pub(super) fn replay_large_pages(&self, url: &str, watcher: &Client) -> Replaying {
        let number = self.figures.replays;
        let seed = Dice::new(self.seed, number).below(1 << 32).to_string();
        let page = PAGE_BYTES.to_string();
        let flags = ["--requests", "300", "--page-size", &page, "--seed", &seed];
        let folder = self.root.join(format!("stops-{number}"));
        Replaying::start(&self.program, &folder, url, &flags, watcher)
    }

    pub(super) fn end_all_alive(&mut self, replay: Replaying, watcher: &Client) {
        let replayed = self.end(replay);
        assert_eq!((replayed.requests, replayed.instances_lost), (300, 0), "{replayed:?}");
        assert_nothing_left(watcher);
    }
}

/// An instance that is stopped, and what it could write to.
#[derive(Debug)]
pub(super) struct Stopped {
    instance: Instance,
    sessions: BTreeSet<SessionId>,
    /// Where in the pool, in bytes.
    reserved: Vec<Range<u64>>,
}

impl Stopped {
    /// Stops one of a replay's instances while it holds something, mostly pages to write to; `None` if
    /// the replay is over.
    pub(super) fn one_of(
        replay: &mut Replaying,
        dice: &mut Dice,
        watcher: &Client,
    ) -> Option<Self> {
        let writes = dice.below(4) > 0;
        let is_wanted = |held: &HolderInfo| (held.kind == HoldingKind::Reservation) == writes;
        let victim = usize::try_from(dice.below(4)).expect("it is below 4");
        let instance = replay.instances.get(victim)?.clone();
        let held = || {
            let holders = holders(watcher).into_iter();
            holders.filter(|held| held.instance == instance.name).collect::<Vec<_>>()
        };
        loop {
            wait_until("it holds something", || replay.is_over() || held().iter().any(is_wanted));
            if replay.is_over() || !signal(instance.pid, Signal::STOP) {
                return None;
            }
            wait_until("it is stopped", || is_stopped(instance.pid));
            let stats = watcher.stats().expect("the server answers");
            // All that it had asked for is answered by now.
            let held = held();
            if held.iter().any(is_wanted) {
                let its = stats.sessions.iter().filter(|one| one.instance == instance.name);
                let sessions = its.map(|one| one.session).collect();
                let reserved = held.iter().filter(|held| held.kind == HoldingKind::Reservation);
                let reserved = reserved.map(|held| range(&held.location)).collect();
                return Some(Self { instance, sessions, reserved });
            }
            signal(instance.pid, Signal::CONT);
        }
    }

    /// Waits until its session is over, and its pins with it.
    pub(super) fn wait_for_end(&self, watcher: &Client) {
        wait_until("its session ends", || {
            let sessions = watcher.stats().expect("the server answers").sessions;
            sessions.iter().all(|one| !self.sessions.contains(&one.session))
        });
        let holders = holders(watcher);
        assert!(holders.iter().all(|held| !self.sessions.contains(&held.session)), "{holders:?}");
    }

    /// Takes all pages that the server gives, again and again until then: none is one that the stopped
    /// instance could write to. Returns how many those are.
    pub(super) fn press(&self, watcher: &Client, until: Instant) -> u64 {
        let kept = self.reserved.len() as u64;
        loop {
            let stats = watcher.stats().expect("the server answers");
            assert!(stats.pages_quarantined >= kept, "{kept} are kept: {stats:#?}");
            let pages = reserve_all(watcher);
            self.assert_apart(pages.iter().map(ReservedPage::location));
            self.assert_apart(holders(watcher).iter().map(|held| held.location));
            let entries = watcher.list(b"", 0, 4096).expect("the server answers").entries;
            self.assert_apart(entries.iter().map(|entry| entry.location));
            drop(pages);
            watcher.flush().expect("the server answers");
            if Instant::now() > until {
                return kept;
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn assert_apart(&self, locations: impl Iterator<Item = Location>) {
        for granted in locations.map(|location| range(&location)) {
            let overlap = |kept: &&Range<u64>| kept.start < granted.end && granted.start < kept.end;
            let taken = self.reserved.iter().find(overlap);
            assert_eq!(taken, None, "{} may write there: {granted:?}", self.instance.name);
        }
    }

    /// Has it go on: it is let in again, and lets go of what it had. Whether it did so itself, rather
    /// than by coming to its end.
    pub(super) fn go_on(self, replay: &mut Replaying, watcher: &Client) -> bool {
        assert!(signal(self.instance.pid, Signal::CONT), "it is there");
        let mut let_go = false;
        wait_until("it comes back and lets go", || {
            let stats = watcher.stats().expect("the server answers");
            let is_back = stats.sessions.iter().any(|one| one.instance == self.instance.name);
            let_go = is_back && stats.pages_quarantined == 0;
            let_go || replay.is_over()
        });
        let_go
    }
}

fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T")))
}

fn holders(client: &Client) -> Vec<HolderInfo> {
    client.holders(0, 4096).expect("the server answers").holders
}

/// All pages that there are to be had.
fn reserve_all(client: &Client) -> Vec<ReservedPage> {
    let mut pages = Vec::new();
    for batch in 0.. {
        let names = (0..BATCH).map(|n| format!("press@00000000@{:016x}@0", batch * BATCH + n));
        let names: Vec<String> = names.collect();
        let keys = names.iter().map(|name| Key::new(name.as_bytes()).expect("it is short"));
        let reserved = client.reserve(&keys.collect::<Vec<_>>(), PAGE_BYTES, Reserve::default());
        let before = pages.len();
        pages.extend(reserved.expect("the server answers").into_iter().filter_map(
            |one| match one {
                Reserved::Page(page) => Some(page),
                _ => None,
            },
        ));
        if pages.len() == before {
            break;
        }
    }
    pages
}

fn range(location: &Location) -> Range<u64> {
    location.offset()..location.offset() + PAGE_BYTES
}
