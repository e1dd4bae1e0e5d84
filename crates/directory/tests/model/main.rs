//! The directory against a plain reference, step by step, over random histories.
//!
//! `PROPTEST_CASES=10000 cargo test -p maru-directory --test model` looks longer.

mod answers;
mod asking;
mod looks;
mod op;
mod passing;
mod reference;
mod room;
mod world;

use maru_protocol::Counters;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{FileFailurePersistence, TestRunner};

use op::{Acked, Ask, Numbering, Op, Resuming, Setup};
use world::World;

/// Things that happen in one case.
const STEPS: usize = 200;

fn setup() -> impl Strategy<Value = Setup> {
    let small = any::<u8>;
    let incoherent = any::<bool>();
    (0_u8..4, 0_u8..7, small(), small(), small(), small(), small(), incoherent).prop_map(
        |(geometry, sizes, window, work, watermark, times, sessions, incoherent)| Setup {
            geometry,
            sizes,
            window,
            work,
            watermark,
            times,
            sessions,
            incoherent,
        },
    )
}

fn few() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![40 => vec(any::<u8>(), 1..5), 1 => vec(any::<u8>(), 0..8)]
}

fn ask() -> impl Strategy<Value = Ask> {
    let n = any::<u8>;
    let b = any::<bool>;
    prop_oneof![
        10 => (vec(n(), 1..4), n(), n(), b()).prop_map(|(keys, size, tag, unless_being_written)| {
            Ask::Reserve { keys, size, tag, unless_being_written }
        }),
        24 => (few(), n(), n(), option::weighted(0.2, n())).prop_map(
            |(handles, length, pins, names)| Ask::Commit { handles, length, pins, names }
        ),
        3 => few().prop_map(|handles| Ask::Abort { handles }),
        2 => few().prop_map(|keys| Ask::Contains { keys }),
        6 => (few(), n(), b())
            .prop_map(|(keys, pins, stop_at_miss)| Ask::Acquire { keys, pins, stop_at_miss }),
        8 => (few(), n()).prop_map(|(handles, pins)| Ask::Release { handles, pins }),
        2 => few().prop_map(|keys| Ask::Delete { keys }),
        2 => few().prop_map(|keys| Ask::Touch { keys }),
        2 => Just(Ask::Stats),
        1 => (n(), n(), n()).prop_map(|(prefix, cursor, limit)| Ask::List { prefix, cursor, limit }),
        1 => (n(), n()).prop_map(|(cursor, limit)| Ask::Holders { cursor, limit }),
        1 => Just(Ask::Regions),
        1 => Just(Ask::Hosts),
        2 => (n(), b()).prop_map(|(session, right)| Ask::LetGo { session, right }),
        1 => Just(Ask::Goodbye),
        1 => few().prop_map(|handles| Ask::Suspect { handles }),
        2 => few().prop_map(|pages| Ask::Cleaned { pages }),
        1 => n().prop_map(|host| Ask::HostGone { host }),
        1 => Just(Ask::Renew),
    ]
}

fn numbering() -> impl Strategy<Value = Numbering> {
    prop_oneof![
        40 => Just(Numbering::Next),
        4 => any::<u8>().prop_map(Numbering::Skipping),
        2 => Just(Numbering::Again),
        1 => Just(Numbering::Zero),
        1 => Just(Numbering::Last),
    ]
}

fn acked() -> impl Strategy<Value = Acked> {
    prop_oneof![
        600 => Just(Acked::All),
        100 => Just(Acked::Nothing),
        10 => any::<u8>().prop_map(Acked::Ahead),
        1 => Just(Acked::Everything),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u8>;
    let resuming = prop_oneof![
        Just(Resuming::Not),
        Just(Resuming::Own),
        Just(Resuming::WrongSecret),
        any::<u8>().prop_map(Resuming::Any),
    ];
    let revive = prop::bool::weighted(0.98);
    prop_oneof![
        3 => (n(), n(), resuming, any::<bool>()).prop_map(|(peer, budget, resuming, watched)| {
            Op::Hello { peer, budget, resuming, watched }
        }),
        2 => n().prop_map(|peer| Op::Disconnect { peer }),
        1 => n().prop_map(|session| Op::WriterDead { session }),
        1 => n().prop_map(|session| Op::WriterStopped { session }),
        12 => n().prop_map(|time| Op::Pass { time }),
        8 => Just(Op::Tick),
        1 => n().prop_map(|handle| Op::Condemn { handle }),
        1 => (any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(checkpoint, compact)| Op::Recover { checkpoint, compact }),
        6 => n().prop_map(|back| Op::Replay { back }),
        70 => (n(), revive, numbering(), acked(), ask()).prop_map(
            |(peer, revive, numbering, acked, ask)| Op::Ask { peer, revive, numbering, acked, ask },
        ),
    ]
}

fn run(setup: Setup, ops: &[Op]) -> Counters {
    let mut world = World::new(setup);
    for op in ops {
        world.step(op);
    }
    world.end()
}

/// `PROPTEST_CASES`, or as many as take a few seconds.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases = cases.and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(4000),
        // Beside this file, to be committed with the mend.
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_directory_does_what_the_reference_does(setup in setup(), ops in vec(op(), 1..STEPS)) {
        run(setup, &ops);
    }
}

/// What only a directory counts that was made again; no history here goes on with one.
const OF_A_RESTART: [&str; 2] = ["recovered", "sessions_restored"];

/// A generator that never gets somewhere proves nothing about it.
#[test]
fn the_histories_reach_every_counter() {
    let mut runner = TestRunner::deterministic();
    let mut sums: Vec<(&str, u64)> = Vec::new();
    for _ in 0..400 {
        let case = (setup(), vec(op(), STEPS)).new_tree(&mut runner).unwrap().current();
        let counters = by_name(&run(case.0, &case.1));
        sums.resize(counters.len(), ("", 0));
        for (sum, (name, count)) in sums.iter_mut().zip(counters) {
            *sum = (name, sum.1 + count);
        }
    }
    println!("{sums:?}");
    assert_eq!(sums.pop(), Some(("rule_violations", 0)));
    for (name, sum) in sums.into_iter().filter(|(name, _)| !OF_A_RESTART.contains(name)) {
        assert!(sum >= 10, "only {sum} {name}");
    }
}

fn by_name(counters: &Counters) -> Vec<(&'static str, u64)> {
    let c = counters;
    vec![
        ("requests", c.requests),
        ("replays", c.replays),
        ("refusals", c.refusals),
        ("hits", c.hits),
        ("misses", c.misses),
        ("granted", c.granted),
        ("committed", c.committed),
        ("superseded", c.superseded),
        ("aborted", c.aborted),
        ("refused_resident", c.refused_resident),
        ("refused_being_written", c.refused_being_written),
        ("refused_out_of_memory", c.refused_out_of_memory),
        ("refused_over_budget", c.refused_over_budget),
        ("evicted_for_room", c.evicted_for_room),
        ("evicted_for_region", c.evicted_for_region),
        ("evicted_by_watermark", c.evicted_by_watermark),
        ("evicted_for_budget", c.evicted_for_budget),
        ("deleted", c.deleted),
        ("recovered", c.recovered),
        ("damaged", c.damaged),
        ("sessions_opened", c.sessions_opened),
        ("sessions_restored", c.sessions_restored),
        ("sessions_closed", c.sessions_closed),
        ("sessions_dropped", c.sessions_dropped),
        ("sessions_expired", c.sessions_expired),
        ("pins_reclaimed", c.pins_reclaimed),
        ("quarantined", c.quarantined),
        ("rule_checks", c.rule_checks),
        ("rule_violations", c.rule_violations),
    ]
}
