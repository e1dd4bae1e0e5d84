//! Servers and instances that are killed and stopped at random moments, and what must hold
//! afterwards: nothing that was acknowledged is lost, no byte is wrong, nothing is left behind, no
//! rule is broken. What does not hold is a panic that says so.
//!
//! For `cargo xtask kill`, and in small numbers for tests.

mod audit;
mod instances;
mod mixed;
mod servers;
mod stops;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::{Program, Replayed, Replaying, Serving};

/// One series of kills or stops.
pub struct Series {
    program: Program,
    root: PathBuf,
    seed: u64,
    figures: Figures,
    tell: Box<dyn FnMut(&Figures)>,
}

/// What a series has come to so far.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// Instances killed while they had requests.
    pub instances_killed: u64,
    /// Servers killed under a running replay.
    pub servers_killed: u64,
    /// Instances stopped while they held something, and sent on.
    pub instances_stopped: u64,
    /// Replays that ran to their end.
    pub replays: u64,
    /// Chunks that a reader beside the instances looked for and found with the right bytes.
    pub entries_checked: u64,
    /// Bytes that were read and compared, by instances and beside them.
    pub bytes_verified: u64,
    /// Bytes among them that were not right. Anything but 0 ends the series.
    pub wrong_bytes: u64,
    /// Pins, reservations and pages that nobody gave back. Anything but 0 ends the series.
    pub left_behind: u64,
    /// Pages that a stopped writer could still write to, and nobody else was granted.
    pub pages_kept: u64,
    /// The longest that a killed instance was seen to hold anything.
    pub slowest_cleanup_ms: u64,
    /// The longest from the start of a server to its first answer.
    pub slowest_answer_ms: u64,
    /// The longest from the start of a server until all who live were back.
    pub slowest_return_ms: u64,
}

impl std::fmt::Debug for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { program, root, seed, figures, tell: _ } = self;
        let mut series = f.debug_struct("Series");
        series.field("program", program).field("root", root).field("seed", seed);
        series.field("figures", figures).finish_non_exhaustive()
    }
}

impl Series {
    /// Nothing killed yet. Pools, stores and logs lie in `root`, and stay there. `tell` is told of
    /// each kill.
    pub fn new(
        program: Program,
        root: impl Into<PathBuf>,
        seed: u64,
        tell: impl FnMut(&Figures) + 'static,
    ) -> Self {
        let (root, figures, tell) = (root.into(), Figures::default(), Box::new(tell));
        Self { program, root, seed, figures, tell }
    }

    /// What it has come to so far.
    #[must_use]
    pub const fn figures(&self) -> &Figures {
        &self.figures
    }

    /// A server on a pool of its own.
    fn serve(&self, size: &str, flags: &[&str]) -> Serving {
        let mut folder = tempfile::Builder::new();
        let folder = folder.prefix("server-").disable_cleanup(true).tempdir_in(&self.root);
        Serving::start(&self.program, folder.expect("it can be written to"), size, flags)
    }

    /// Waits for the end of a replay, which must be good.
    #[track_caller]
    fn end(&mut self, replay: Replaying) -> Replayed {
        let replayed = replay.end();
        self.count(|figures| {
            figures.replays += 1;
            figures.bytes_verified += replayed.bytes_verified;
            figures.wrong_bytes += replayed.wrong_bytes;
            figures.left_behind += replayed.left_behind();
        });
        replayed
    }

    /// Counts, and lets it be known.
    fn count(&mut self, count: impl FnOnce(&mut Figures)) {
        count(&mut self.figures);
        (self.tell)(&self.figures);
    }
}

/// Choices that follow from a seed and the number of what is chosen for.
#[derive(Debug)]
struct Dice {
    state: u64,
}

impl Dice {
    fn new(seed: u64, number: u64) -> Self {
        Self { state: seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(number << 32) }
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// One of these.
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        let index = usize::try_from(self.below(of.len() as u64));
        of[index.expect("it is below a length")]
    }

    /// A time below one of these, in milliseconds: so some are short, whatever the longest is.
    fn time(&mut self, below_ms: &[u64]) -> Duration {
        let below_ms = self.pick(below_ms);
        Duration::from_micros(self.below(below_ms * 1000))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Sends a signal; whether there is such a process.
fn signal(pid: Pid, signal: Signal) -> bool {
    kill_process(pid, signal).is_ok()
}

/// A port that nobody listens on at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    listener.local_addr().expect("it is bound").port()
}
