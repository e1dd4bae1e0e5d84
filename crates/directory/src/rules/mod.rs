//! The rules that always hold, each written once as a predicate with a name.
//!
//! Rules about a state are checked on one page, entry or session: [`check`] looks at all of them,
//! [`check_sample`] at a few, which is what a running server does on every tick. Rules about a
//! step compare a [`Snapshot`] before it with one after it. The property tests and the fuzzer use
//! the very same functions.

mod states;
mod steps;

pub(crate) use states::Sampled;
pub use states::{check, check_sample};
pub use steps::{
    Owner, Seen, Snapshot, Step, acknowledged_is_recoverable, check_step, nothing_changed,
};

/// The rules of `ARCHITECTURE.md` that a directory alone can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// Rule 1: free, reserved by one session, resident under one key, or quarantined.
    OneStateAPage = 1,
    /// Rule 2: a key resolves only to a committed page.
    NothingUnfinishedIsVisible = 2,
    /// Rule 3: a page with a live pin is not freed, evicted or granted again.
    PinnedStays = 3,
    /// Rule 4: an entry's pins are the sum of the sessions' own.
    PinsHaveOwners = 4,
    /// Rule 5: a request is applied once and answered alike.
    Once = 5,
    /// Rule 6: what the dead held is free a second later.
    TheDeadAreCleanedUpAfter = 6,
    /// Rule 7: a page that somebody could still write to is not granted.
    NoLateWriter = 7,
    /// Rule 8: a stale handle fits nothing.
    StaleHandlesAreRefused = 8,
    /// Rule 9: what was acknowledged is found again at its place.
    AcknowledgedIsRecoverable = 9,
    /// Rule 10: a look changes nothing.
    ALookIsNotATouch = 10,
}

/// A rule that does not hold: a defect of Maru.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule {} ({rule:?}) is broken: {detail}", *rule as u8)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// What breaks it.
    pub detail: String,
}

type Checked = Result<(), Violation>;

fn holds(rule: Rule, ok: bool, detail: impl FnOnce() -> String) -> Checked {
    if ok { Ok(()) } else { Err(Violation { rule, detail: detail() }) }
}
