//! The simulation finds nothing, sees everything it is made for, and finds what is planted. It is run
//! for longer by `cargo xtask simulate`.

use maru_testkit::simulation::{Plant, Seen, run};

const STEPS: usize = 500;

#[test]
fn nothing_is_found_and_everything_happens() {
    let mut seen = Seen::default();
    for seed in 0..300 {
        match run(seed, STEPS, None, true) {
            Ok(this) => seen.add(this),
            Err(found) => panic!("{found}"),
        }
    }
    let never = seen.each().into_iter().filter(|(_, count)| *count == 0);
    let never: Vec<&str> = never.map(|(name, _)| name).collect();
    assert!(never.is_empty(), "{never:?} never happened: {seen:?}");
}

#[test]
fn whatever_is_planted_is_found() {
    for plant in Plant::ALL {
        let found = (0..1000).find_map(|seed| run(seed, STEPS, Some(plant), false).err());
        assert!(found.is_some(), "{} is not found", plant.name());
    }
}

#[test]
fn a_seed_is_found_again_and_made_short() {
    let plant = Some(Plant::MissingFlush);
    let found = (0..1000).find_map(|seed| run(seed, STEPS, plant, false).err()).unwrap();
    let again = run(found.seed, STEPS, plant, false).unwrap_err();
    assert_eq!(again, found);
    let shorter = run(found.seed, STEPS, plant, true).unwrap_err();
    assert_eq!(run(found.seed, STEPS, plant, true).unwrap_err(), shorter);
    assert!(shorter.schedule.len() < found.schedule.len() / 2, "{shorter}");
}
