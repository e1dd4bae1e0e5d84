//! Histories of a small directory beside the reference of its property test: the fuzzer's bytes
//! choose the settings and what happens, and the very same checks are made after each step.

#![no_main]

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/directory/tests/model/answers.rs"]
mod answers;
#[path = "../../crates/directory/tests/model/asking.rs"]
mod asking;
#[path = "../../crates/directory/tests/model/looks.rs"]
mod looks;
#[path = "../../crates/directory/tests/model/op.rs"]
mod op;
#[path = "../../crates/directory/tests/model/passing.rs"]
mod passing;
#[path = "../../crates/directory/tests/model/reference.rs"]
mod reference;
#[path = "../../crates/directory/tests/model/room.rs"]
mod room;
#[path = "../../crates/directory/tests/model/world.rs"]
mod world;

use op::{Acked, Ask, Numbering, Op, Resuming, Setup};

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let Ok(setup) = setup(&mut bytes) else {
        return;
    };
    let mut world = world::World::new(setup);
    while !bytes.is_empty()
        && let Ok(op) = op(&mut bytes)
    {
        world.step(&op);
    }
    world.end();
});

fn setup(bytes: &mut Unstructured<'_>) -> Result<Setup> {
    let [geometry, sizes, window, work, watermark, times, sessions, host] = bytes.arbitrary()?;
    Ok(Setup {
        geometry,
        sizes,
        window,
        work,
        watermark,
        times,
        sessions,
        incoherent: host % 2 == 1,
    })
}

fn op(bytes: &mut Unstructured<'_>) -> Result<Op> {
    let peer = bytes.arbitrary()?;
    Ok(match bytes.arbitrary::<u8>()? % 16 {
        0 => Op::Hello {
            peer,
            budget: bytes.arbitrary()?,
            resuming: resuming(bytes)?,
            watched: bytes.arbitrary()?,
        },
        1 => Op::Disconnect { peer },
        2 => Op::WriterDead { session: peer },
        3 => Op::Pass { time: peer },
        4 => Op::Tick,
        5 => Op::Replay { back: peer },
        6 => Op::Condemn { handle: peer },
        7 => Op::Recover {
            checkpoint: peer < 128,
            compact: peer % 4 == 0,
        },
        8 => Op::WriterStopped { session: peer },
        _ => Op::Ask {
            peer,
            revive: peer < 250,
            numbering: numbering(bytes)?,
            acked: acked(bytes)?,
            ask: ask(bytes)?,
        },
    })
}

fn resuming(bytes: &mut Unstructured<'_>) -> Result<Resuming> {
    Ok(match bytes.arbitrary::<u8>()? {
        0..64 => Resuming::Not,
        64..128 => Resuming::Own,
        128..192 => Resuming::WrongSecret,
        choice => Resuming::Any(choice),
    })
}

fn numbering(bytes: &mut Unstructured<'_>) -> Result<Numbering> {
    Ok(match bytes.arbitrary::<u8>()? {
        0..230 => Numbering::Next,
        230..235 => Numbering::Again,
        235 => Numbering::Zero,
        236 => Numbering::Last,
        by => Numbering::Skipping(by),
    })
}

fn acked(bytes: &mut Unstructured<'_>) -> Result<Acked> {
    Ok(match bytes.arbitrary::<u8>()? {
        0..200 => Acked::All,
        200..250 => Acked::Nothing,
        250 => Acked::Everything,
        by => Acked::Ahead(by),
    })
}

fn ask(bytes: &mut Unstructured<'_>) -> Result<Ask> {
    let choice: u8 = bytes.arbitrary()?;
    let some = some(bytes)?;
    Ok(match choice % 21 {
        0 => Ask::Renew,
        1..4 => Ask::Reserve {
            keys: some,
            size: bytes.arbitrary()?,
            tag: bytes.arbitrary()?,
            unless_being_written: bytes.arbitrary()?,
        },
        4..7 => Ask::Commit {
            handles: some,
            length: bytes.arbitrary()?,
            pins: bytes.arbitrary()?,
            names: bytes.arbitrary()?,
        },
        7 => Ask::Abort { handles: some },
        8 => Ask::Contains { keys: some },
        9 => Ask::Acquire {
            keys: some,
            pins: bytes.arbitrary()?,
            stop_at_miss: bytes.arbitrary()?,
        },
        10 => Ask::Release {
            handles: some,
            pins: bytes.arbitrary()?,
        },
        11 => Ask::Delete { keys: some },
        12 => Ask::Touch { keys: some },
        13 => Ask::Stats,
        14 => Ask::List {
            prefix: bytes.arbitrary()?,
            cursor: bytes.arbitrary()?,
            limit: bytes.arbitrary()?,
        },
        15 => Ask::Holders {
            cursor: bytes.arbitrary()?,
            limit: bytes.arbitrary()?,
        },
        16 => Ask::LetGo {
            session: bytes.arbitrary()?,
            right: bytes.arbitrary()?,
        },
        17 => Ask::Suspect { handles: some },
        18 => Ask::Cleaned { pages: some },
        19 => Ask::HostGone { host: choice },
        _ if choice < 84 => Ask::Regions,
        _ if choice < 168 => Ask::Hosts,
        _ => Ask::Goodbye,
    })
}

/// Up to seven choices.
fn some(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let count = bytes.arbitrary::<u8>()? % 8;
    (0..count).map(|_| bytes.arbitrary()).collect()
}
