//! What happens in a run, step by step, chosen by a seed before it begins: so any of it can be left
//! out, and the rest be run again.

use std::fmt;

use fastrand::Rng;
use maru_protocol::Visibility;
use maru_server::store::Durability;

/// The settings of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) visibility: Visibility,
    pub(super) durability: Durability,
    pub(super) checksums: bool,
    /// The host of each instance; the server is on host 0.
    pub(super) hosts: [usize; INSTANCES],
    /// Two sizes of pages, so that regions are cut anew.
    pub(super) two_sizes: bool,
}

pub(super) const INSTANCES: usize = 3;
pub(super) const HOSTS: usize = 2;

/// One thing that happens. Numbers are taken modulo what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Time passes, in milliseconds; the server ticks as it should.
    Pass(u16),
    /// The instance does something.
    Act {
        instance: u8,
        act: Act,
        choice: u8,
    },
    /// The oldest frame on the instance's connection arrives.
    ToServer(u8),
    ToClient(u8),
    /// Frames go back and forth until none is left.
    Converse(u8),
    /// The instance's connection breaks; what was on its way may be lost.
    Cut {
        instance: u8,
        lossy: bool,
    },
    /// Nothing reaches the instance, or the server from it.
    Partition(u8),
    Heal(u8),
    /// The instance's process is killed; another takes its place.
    Kill(u8),
    /// The server sees who died.
    SeeDeaths,
    /// The instance's process is stopped, and goes on.
    Stop(u8),
    Continue(u8),
    KillServer,
    StartServer,
    /// The host of the server comes down, with all processes on it and its caches.
    CrashHost,
    /// The server's store is gone, with the server.
    LoseStore,
    /// The disk under the store has no room any more, or has it again.
    DiskFull(bool),
    /// A cache does something by itself.
    Disturb {
        host: u8,
        how: u8,
        choice: u8,
    },
    /// Memory forgets what it held.
    Damage(u8),
    /// The server looks at bytes.
    Scrub,
    /// Another server of the same pool is made of what is stored, and looked at.
    Inspect,
}

/// What an instance can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Whatever ends what it has begun, or else begins something.
    GoOn,
    Connect,
    Reserve,
    Write,
    Commit,
    DropWritable,
    Acquire,
    Read,
    DropReadable,
    Delete,
    Look,
    Touch,
    Beat,
    Flush,
    GiveUpWaiting,
    Leave,
}

impl Setup {
    pub(super) fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x5e71_0b5e);
        Self {
            visibility: *pick(&mut rng, &[Visibility::Coherent, Visibility::CacheLine]),
            durability: *pick(
                &mut rng,
                &[Durability::Process, Durability::Process, Durability::Fsync],
            ),
            checksums: rng.bool(),
            hosts: [0, rng.usize(..HOSTS), 1],
            two_sizes: rng.u8(..3) == 0,
        }
    }
}

fn pick<'a, T>(rng: &mut Rng, among: &'a [T]) -> &'a T {
    &among[rng.usize(..among.len())]
}

/// The steps of a run.
pub(super) fn steps(seed: u64, count: usize) -> Vec<Step> {
    let mut rng = Rng::with_seed(seed);
    // Some runs are calm, some are not: in a storm nothing ever gets far.
    let calm = *pick(&mut rng, &[12_u32, 40, 160]);
    (0..count).map(|_| step(&mut rng, calm)).collect()
}

fn step(rng: &mut Rng, calm: u32) -> Step {
    let instance = rng.u8(..);
    if rng.u32(..calm) == 0 {
        return trouble(rng, instance);
    }
    match rng.u8(..100) {
        0..48 => Step::Act { instance, act: act(rng), choice: rng.u8(..) },
        48..54 => Step::ToServer(instance),
        54..60 => Step::ToClient(instance),
        60..80 => Step::Converse(instance),
        80..84 => Step::Pass(*pick(rng, &[1, 20, 60, 200])),
        84..88 => Step::Disturb { host: rng.u8(..), how: rng.u8(..), choice: rng.u8(..) },
        88..89 => Step::Scrub,
        89..90 => Step::Inspect,
        90..93 => Step::StartServer,
        93..94 => Step::DiskFull(false),
        94..97 => Step::Heal(instance),
        _ => Step::Continue(instance),
    }
}

fn trouble(rng: &mut Rng, instance: u8) -> Step {
    match rng.u8(..32) {
        0..10 => Step::Cut { instance, lossy: rng.bool() },
        10..12 => Step::Partition(instance),
        12..14 => Step::Kill(instance),
        14..16 => Step::SeeDeaths,
        16..18 => Step::Stop(instance),
        18..21 => Step::KillServer,
        21..24 => Step::Pass(*pick(rng, &[100, 500, 1000, 1600, 3000])),
        24..27 => Step::Damage(rng.u8(..)),
        27..28 => Step::DiskFull(true),
        28..30 => Step::DiskFull(false),
        30..31 => Step::CrashHost,
        _ => Step::LoseStore,
    }
}

fn act(rng: &mut Rng) -> Act {
    match rng.u8(..200) {
        0..110 => Act::GoOn,
        110..124 => Act::Reserve,
        124..132 => Act::Write,
        132..140 => Act::Commit,
        140..144 => Act::DropWritable,
        144..156 => Act::Acquire,
        156..164 => Act::Read,
        164..170 => Act::Flush,
        170..174 => Act::DropReadable,
        174..180 => Act::Delete,
        180..184 => Act::Look,
        184..186 => Act::Touch,
        186..190 => Act::Beat,
        190..194 => Act::GiveUpWaiting,
        194..199 => Act::Connect,
        _ => Act::Leave,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |instance: &u8| (b'a' + instance % 3) as char;
        match self {
            Self::Pass(ms) => write!(f, "{ms} ms pass"),
            Self::Act { instance, act: Act::GoOn, choice } => {
                write!(f, "{} goes on with what it does ({choice})", who(instance))
            }
            Self::Act { instance, act, choice } => {
                write!(f, "{} does {act:?} ({choice})", who(instance))
            }
            Self::ToServer(instance) => write!(f, "a frame of {} arrives", who(instance)),
            Self::ToClient(instance) => write!(f, "a frame to {} arrives", who(instance)),
            Self::Converse(instance) => write!(f, "all frames of and to {} arrive", who(instance)),
            Self::Cut { instance, lossy } => {
                let lost = if *lossy { ", and what was on its way is lost" } else { "" };
                write!(f, "the connection of {} breaks{lost}", who(instance))
            }
            Self::Partition(instance) => write!(f, "{} is cut off", who(instance)),
            Self::Heal(instance) => write!(f, "{} is cut off no more", who(instance)),
            Self::Kill(instance) => write!(f, "{} is killed", who(instance)),
            Self::SeeDeaths => f.write_str("the server sees who died"),
            Self::Stop(instance) => write!(f, "{} is stopped", who(instance)),
            Self::Continue(instance) => write!(f, "{} is stopped no more", who(instance)),
            Self::KillServer => f.write_str("the server is killed"),
            Self::StartServer => f.write_str("the server starts"),
            Self::CrashHost => f.write_str("the host of the server comes down"),
            Self::LoseStore => f.write_str("the server is killed and its store is lost"),
            Self::DiskFull(true) => f.write_str("the disk is full"),
            Self::DiskFull(false) => f.write_str("the disk has room again"),
            Self::Disturb { host, how, choice } => {
                let how = ["writes back", "evicts", "prefetches"][usize::from(how % 3)];
                write!(f, "host {} {how} a line ({choice})", usize::from(*host) % HOSTS)
            }
            Self::Damage(choice) => write!(f, "a line is damaged ({choice})"),
            Self::Scrub => f.write_str("the server looks at bytes"),
            Self::Inspect => f.write_str("what is stored is looked at"),
        }
    }
}
