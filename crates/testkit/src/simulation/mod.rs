//! Deterministic simulation: the real service with its real log, the real conversations of instances,
//! and simulated time, network, disk, crashes and memory.
//!
//! A run is a seed. The seed chooses the settings and a list of steps (`plan`); the `world` does
//! them one by one, and after each checks the rules of the directory and what only somebody who sees
//! all sides can check: that what an instance believes to hold is held, that nobody writes where
//! another reads or writes, that every resident chunk is in memory, right, and in no cache dirty, that
//! what was stored outlives the server, and that nothing is left in the end. Steps can be left out: so
//! a run that fails is made as short as it gets.

mod instance;
mod memory;
mod plan;
mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use self::plan::{Setup, Step, steps};
use self::world::World;

/// A fault that is planted, to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// A writer does not write its lines back.
    MissingFlush,
    /// A reader does not invalidate its lines.
    MissingInvalidate,
    /// A release that is sent twice releases twice.
    PinReleasedTwice,
    /// Any other request that is sent twice is applied twice.
    ReplyReplayedWithNewEffect,
    /// Pages of a writer that vanished are granted at once.
    QuarantineSkipped,
    /// A commit is answered before it is stored.
    AcknowledgedBeforeStored,
    /// A page is granted again with the generation that it had.
    GenerationNotBumped,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::MissingFlush,
        Self::MissingInvalidate,
        Self::PinReleasedTwice,
        Self::ReplyReplayedWithNewEffect,
        Self::QuarantineSkipped,
        Self::AcknowledgedBeforeStored,
        Self::GenerationNotBumped,
    ];

    /// Its name, as on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MissingFlush => "missing-flush",
            Self::MissingInvalidate => "missing-invalidate",
            Self::PinReleasedTwice => "pin-released-twice",
            Self::ReplyReplayedWithNewEffect => "reply-replayed-with-new-effect",
            Self::QuarantineSkipped => "quarantine-skipped",
            Self::AcknowledgedBeforeStored => "acknowledged-before-stored",
            Self::GenerationNotBumped => "generation-not-bumped",
        }
    }
}

/// What a run that found nothing has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Chunks that became resident.
    pub committed: u64,
    /// Chunks that were read to their end, and right.
    pub read: u64,
    /// Entries evicted.
    pub evicted: u64,
    /// Requests that were answered again.
    pub replayed: u64,
    /// Servers that were started again.
    pub restarts: u64,
    /// Sessions that came back to a restarted server.
    pub restored: u64,
    /// Hosts of the server that came down.
    pub hosts_down: u64,
    /// Instances killed.
    pub killed: u64,
    /// Pages that went into quarantine.
    pub quarantined: u64,
    /// Pages stained when their writer was over.
    pub stained: u64,
    /// Chunks found damaged.
    pub damaged: u64,
    /// Servers that did not start, since the disk was full.
    pub disk_full: u64,
}

impl Seen {
    /// Adds what another run has seen.
    pub fn add(&mut self, other: Self) {
        for ((_, sum), (_, count)) in self.each_mut().into_iter().zip(other.each()) {
            *sum += count;
        }
    }

    /// All counts, by name.
    #[must_use]
    pub fn each(mut self) -> [(&'static str, u64); 12] {
        self.each_mut().map(|(name, count)| (name, *count))
    }

    fn each_mut(&mut self) -> [(&'static str, &mut u64); 12] {
        [
            ("committed", &mut self.committed),
            ("read", &mut self.read),
            ("evicted", &mut self.evicted),
            ("replayed", &mut self.replayed),
            ("restarts", &mut self.restarts),
            ("restored", &mut self.restored),
            ("hosts down", &mut self.hosts_down),
            ("killed", &mut self.killed),
            ("quarantined", &mut self.quarantined),
            ("stained", &mut self.stained),
            ("damaged", &mut self.damaged),
            ("disk full", &mut self.disk_full),
        ]
    }
}

/// A run that found something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// How many steps it was begun with.
    pub steps: usize,
    /// What is wrong.
    pub what: String,
    /// The steps that lead to it, in words: as few as were found.
    pub schedule: Vec<String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} finds: {}", self.seed, self.what)?;
        writeln!(f, "in {} steps:", self.schedule.len())?;
        for (number, step) in self.schedule.iter().enumerate() {
            writeln!(f, "{:5}  {step}", number + 1)?;
        }
        Ok(())
    }
}

/// Runs a seed for so many steps. `shrink`: a run that finds something is made short.
pub fn run(
    seed: u64,
    count: usize,
    plant: Option<Plant>,
    shrink: bool,
) -> Result<Seen, Box<Found>> {
    let (setup, mut todo) = (Setup::of(seed), steps(seed, count));
    let (at, mut what) = match play(setup, &todo, plant) {
        Ok(all) => return Ok(all),
        Err(failed) => failed,
    };
    todo.truncate(at + 1);
    if shrink {
        (todo, what) = shorten(setup, todo, what, plant);
    }
    let schedule = std::iter::once(format!("{setup:?}"));
    let schedule = schedule.chain(todo.iter().map(Step::to_string)).collect();
    Err(Box::new(Found { seed, steps: count, what, schedule }))
}

/// Plays steps to their end, and to the end of everything. If something is wrong: after which step,
/// and what.
fn play(setup: Setup, steps: &[Step], plant: Option<Plant>) -> Result<Seen, (usize, String)> {
    let mut at = 0;
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(setup, plant);
        for step in steps {
            world.step(*step)?;
            at += 1;
        }
        world.end()
    }));
    match played {
        Ok(seen) => seen.map_err(|what| (at, what)),
        // The hook has printed it.
        Err(_) => Err((at, "a panic".to_owned())),
    }
}

/// Leaves out whatever can be left out, larger parts first.
fn shorten(
    setup: Setup,
    mut steps: Vec<Step>,
    mut what: String,
    plant: Option<Plant>,
) -> (Vec<Step>, String) {
    let mut part = steps.len().div_ceil(2);
    loop {
        let mut from = 0;
        let before = steps.len();
        while from < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(from..(from + part).min(steps.len()));
            match play(setup, &fewer, plant) {
                Err((at, found)) => {
                    fewer.truncate(at + 1);
                    (steps, what) = (fewer, found);
                }
                Ok(_) => from += part,
            }
        }
        if part == 1 && steps.len() == before {
            return (steps, what);
        }
        part = (part / 2).max(1);
    }
}
