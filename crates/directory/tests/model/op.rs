//! What can happen to a directory, as plain numbers: small, so that a failing run shrinks well, and
//! free of any generator, so that the fuzzer drives the same world with its bytes.

use maru_directory::{Config, DeviceSpan, Geometry};
use maru_protocol::Visibility;

/// The keys that are ever used: few, so that sessions meet.
pub(crate) const KEYS: [&[u8]; 20] = [
    b"m@0", b"m@1", b"m@2", b"m@3", b"m@4", b"m@5", b"m@6", b"m@7", b"m@8", b"m@9", b"n@0", b"n@1",
    b"n@2", b"n@3", b"n@4", b"n@5", b"n@6", b"n@7", b"n@8", b"n@9",
];

/// Page sizes, in bytes; the last two are impossible in any pool of [`Setup::geometry`].
const SIZES: [u64; 9] =
    [64 << 10, 300_000, 1 << 20, 128 << 10, 700_000, 512 << 10, (2 << 20) - 4096, 0, (2 << 20) + 1];

/// The instances; the last two sessions belong to one of them.
pub(crate) const INSTANCES: [&str; 4] = ["ada", "bob", "eve", "eve"];

/// The hosts that they are on.
pub(crate) const HOSTS: [&str; 4] = ["moon", "moon", "mars", "mars"];

/// What `hello` may give as a budget, in bytes.
const BUDGETS: [u64; 7] = [0, 0, 0, 0, 2 << 20, 1_300_000, 700_000];

/// The directory's settings and memory, chosen by small numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) geometry: u8,
    pub(crate) sizes: u8,
    pub(crate) window: u8,
    pub(crate) work: u8,
    pub(crate) watermark: u8,
    pub(crate) times: u8,
    pub(crate) sessions: u8,
    pub(crate) incoherent: bool,
}

impl Setup {
    pub(crate) fn config(self) -> Config {
        let (high, low) = [(1000, 1000), (990, 980), (800, 500), (1, 0)][pick(self.watermark)];
        let (lease, resume, quarantine) =
            [(10_000, 800, 30_000), (500, 100, 1500), (100, 0, 1000), (900, 900, 5000)]
                [pick(self.times)];
        Config {
            epoch: 7,
            lease_ms: lease,
            resume_ms: resume,
            quarantine_ms: quarantine,
            window: [64, 1, 3, 8][pick(self.window)],
            batch_max: 6,
            sessions_max: [8, 3, 5, 1024][pick(self.sessions)],
            watermark_high_permille: high,
            watermark_low_permille: low,
            work_per_tick: [4096, 1, 2, 5][pick(self.work)],
            hash_seed: 11,
            visibility: if self.incoherent { Visibility::CacheLine } else { Visibility::Coherent },
            recorded: true,
        }
    }

    /// Pools of two to four regions; in most of them one is short, at a device's start or end.
    pub(crate) fn geometry(self) -> Geometry {
        let device =
            |offset: u64, bytes, reserved| DeviceSpan { offset: offset << 20, bytes, reserved };
        let devices = match self.geometry % 4 {
            0 => vec![device(0, 4 << 20, 0)],
            1 => vec![device(0, 8 << 20, 1 << 20)],
            2 => vec![device(2, (3 << 20) + 12_345, 4096), device(8, 2 << 20, 300_000)],
            _ => vec![device(0, (5 << 20) + 5, 100), device(64, 1 << 20, 0)],
        };
        Geometry { devices, region_bytes: 2 << 20 }
    }

    /// A page size: of two or three that this run uses, rarely of all.
    pub(crate) fn size(self, choice: u8) -> u64 {
        let choice = usize::from(choice);
        if choice >= 240 {
            SIZES[choice % SIZES.len()]
        } else {
            let first = usize::from(self.sizes);
            SIZES[(first + choice % (2 + first % 2)) % 7]
        }
    }
}

fn pick(choice: u8) -> usize {
    usize::from(choice % 4)
}

pub(crate) fn budget(choice: u8) -> u64 {
    BUDGETS[usize::from(choice) % BUDGETS.len()]
}

/// How a `hello` resumes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Resuming {
    Not,
    Own,
    /// The session is right, the secret is not.
    WrongSecret,
    /// Any session there ever was, with its secret.
    Any(u8),
}

/// How a request is numbered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Numbering {
    Next,
    Skipping(u8),
    /// The number of the request before, with what may be another body.
    Again,
    Zero,
    Last,
}

/// What a request acknowledges.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Acked {
    All,
    Nothing,
    /// Numbers that were never sent.
    Ahead(u8),
    Everything,
}

/// What is asked; keys, handles, sessions and sizes by number.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Renew,
    Reserve { keys: Vec<u8>, size: u8, tag: u8, unless_being_written: bool },
    Commit { handles: Vec<u8>, length: u8, pins: u8, names: Option<u8> },
    Abort { handles: Vec<u8> },
    Contains { keys: Vec<u8> },
    Acquire { keys: Vec<u8>, pins: u8, stop_at_miss: bool },
    Release { handles: Vec<u8>, pins: u8 },
    Delete { keys: Vec<u8> },
    Touch { keys: Vec<u8> },
    Stats,
    List { prefix: u8, cursor: u8, limit: u8 },
    Holders { cursor: u8, limit: u8 },
    Regions,
    Hosts,
    LetGo { session: u8, right: bool },
    Goodbye,
    Suspect { handles: Vec<u8> },
    Cleaned { pages: Vec<u8> },
    HostGone { host: u8 },
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Hello {
        peer: u8,
        budget: u8,
        resuming: Resuming,
        /// Whether its process lives is seen.
        watched: bool,
    },
    Disconnect {
        peer: u8,
    },
    WriterDead {
        session: u8,
    },
    WriterStopped {
        session: u8,
    },
    Pass {
        time: u8,
    },
    Tick,
    /// A resident page was looked at, and found bad.
    Condemn {
        handle: u8,
    },
    /// The server could be killed here: another directory is made of the records.
    Recover {
        /// Before that a checkpoint comes into the log.
        checkpoint: bool,
        /// And what was before it is removed.
        compact: bool,
    },
    /// A request of the past comes again, as it was.
    Replay {
        back: u8,
    },
    Ask {
        peer: u8,
        /// Say hello first if the session is over.
        revive: bool,
        numbering: Numbering,
        acked: Acked,
        ask: Ask,
    },
}
