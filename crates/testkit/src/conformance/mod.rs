//! What every [`maru_l1::L1Manager`] must do: one set of cases, for each manager there is.
//!
//! The cases follow the contract, not an implementation. Each gets a [`Subject`] of its own and
//! panics where the manager does not do as it must.

mod batches;
mod beside;
mod closing;
mod deleting;
mod expiring;
mod holding;
mod inside;
mod listening;
mod promoting;
mod reading;
mod subject;
mod threads;
mod writing;

pub use subject::{Evictor, Factory, PAGE, READ_TTL, Recorder, Subject, Told, WRITE_TTL};

/// One thing that a manager must do.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name: the group, and what must be so.
    pub name: &'static str,
    /// Panics if it is not so.
    pub run: fn(&Subject),
}

/// A list of cases, named by their functions.
macro_rules! list_cases {
    ($($name:ident),+ $(,)?) => {
        pub(super) const CASES: &[$crate::conformance::Case] = &[$(
            $crate::conformance::Case {
                name: concat!(module_path!(), "::", stringify!($name)),
                run: $name,
            }
        ),+];
    };
}
use list_cases;

/// All cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let groups = [
        reading::CASES,
        writing::CASES,
        promoting::CASES,
        deleting::CASES,
        expiring::CASES,
        holding::CASES,
        listening::CASES,
        batches::CASES,
        beside::CASES,
        inside::CASES,
        closing::CASES,
        threads::CASES,
    ];
    let prefix = concat!(module_path!(), "::").len();
    let short = |case: &Case| Case { name: &case.name[prefix..], ..*case };
    groups.iter().flat_map(|group| group.iter().map(short)).collect()
}
