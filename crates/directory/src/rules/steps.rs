//! The rules about a step.

use std::collections::{BTreeMap, BTreeSet};

use maru_protocol::{Generation, Handle, SessionId};

use super::{Checked, Rule, holds};
use crate::ids::{EntryId, PageAt};
use crate::pages::{PageState, Why};
use crate::sessions::Phase;
use crate::{Directory, Millis};

/// Who has a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A writer.
    Reserved(SessionId),
    /// A key.
    Resident(Vec<u8>),
    /// Those who have so many pins on it; no key leads to it any more.
    Ghost(u32),
    /// A vanished writer, until then.
    Quarantined(SessionId, Millis),
    /// Whoever may claim it.
    Unclaimed,
    /// The caches of hosts.
    Stained(BTreeSet<String>),
    /// Nobody, ever.
    Damaged,
}

/// A resident key, as the rules about a step compare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where it lies.
    pub handle: Handle,
    /// Its length in bytes.
    pub length: u32,
    /// The pins on it.
    pub pins: u32,
    /// When it was last used.
    pub touched: Millis,
}

/// All that the rules about a step compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Pages that are not free, by region and place.
    pub pages: BTreeMap<PageAt, (Generation, Owner)>,
    /// Resident keys.
    pub entries: BTreeMap<Vec<u8>, Seen>,
    /// Pins of sessions that are not over.
    pub pins: BTreeMap<(SessionId, Handle), u32>,
    /// The hosts of the sessions.
    pub hosts: BTreeMap<SessionId, String>,
    /// Sessions of before a restart may come back, or their writers may still write.
    pub unclaimed_matter: bool,
    next_generation: u64,
    /// The coldest entry of each queue: what would be evicted next.
    coldest: Vec<Option<EntryId>>,
}

impl Snapshot {
    /// What the directory looks like now.
    #[must_use]
    pub fn of(directory: &Directory) -> Self {
        let (pages, sessions) = (&directory.pages, &directory.sessions);
        let key = |id: EntryId| directory.entries.get(id).key.to_vec();
        let residents = directory.entries.iter().filter_map(|(id, entry)| {
            let resident = entry.resident.filter(|_| !directory.ghosts.contains(&id))?;
            let (length, touched) = (resident.length, resident.touched);
            let handle = pages.handle(resident.page);
            Some((key(id), Seen { handle, length, pins: entry.pins, touched }))
        });
        let live = || sessions.live.iter().filter(|(_, s)| !matches!(s.phase, Phase::Ended(_)));
        let pins = live().flat_map(|(id, session)| {
            session.pins.iter().filter_map(|(entry, held)| {
                let page = directory.entries.get(*entry).resident?.page;
                Some(((*id, pages.handle(page)), held.count))
            })
        });
        let hosts = live().map(|(id, session)| (*id, sessions.host(session.host).to_owned()));
        let queues = pages.classes.values().flat_map(|class| &class.queues);
        Self {
            pages: owners(directory),
            entries: residents.collect(),
            pins: pins.collect(),
            hosts: hosts.collect(),
            unclaimed_matter: directory.unclaimed_matter(),
            next_generation: pages.next_generation(),
            coldest: queues.map(|queue| directory.policy.coldest(queue.id)).collect(),
        }
    }
}

fn owners(directory: &Directory) -> BTreeMap<PageAt, (Generation, Owner)> {
    let sessions = &directory.sessions;
    let mut quarantined = BTreeMap::new();
    for (id, vanished) in &sessions.vanished {
        let owner = || Owner::Quarantined(*id, vanished.until);
        quarantined.extend(vanished.pages.iter().map(|at| (*at, owner())));
    }
    let stained = directory.stains.iter().map(|(at, hosts)| {
        let hosts = hosts.iter().map(|host| sessions.host(*host).to_owned());
        (at, Owner::Stained(hosts.collect()))
    });
    quarantined.extend(stained);
    let mut owners = BTreeMap::new();
    for (region, state) in (0_u32..).zip(&directory.pages.regions) {
        for (index, page) in (0_u32..).zip(&state.pages) {
            let at = PageAt { region, index };
            let owner = match page.state {
                PageState::Free => continue,
                PageState::Reserved(id) => Owner::Reserved(sessions.reservation(id).session),
                PageState::Resident(id) if directory.ghosts.contains(&id) => {
                    Owner::Ghost(directory.entries.get(id).pins)
                }
                PageState::Resident(id) => Owner::Resident(directory.entries.get(id).key.to_vec()),
                PageState::Quarantined(Why::Unclaimed) => Owner::Unclaimed,
                PageState::Quarantined(Why::Damaged) => Owner::Damaged,
                PageState::Quarantined(Why::Writer | Why::Stained) => quarantined[&at].clone(),
            };
            owners.insert(at, (page.generation, owner));
        }
    }
    owners
}

/// One step of a directory, as the rules about steps see it.
#[derive(Debug)]
pub struct Step<'a> {
    /// Before it.
    pub before: &'a Snapshot,
    /// After it.
    pub after: &'a Snapshot,
    /// The session whose request it was, if it was one.
    pub actor: Option<SessionId>,
    /// Sessions that said, or are known, to write no more.
    pub gone: &'a BTreeSet<SessionId>,
    /// Hosts that are said to be gone.
    pub hosts_gone: &'a BTreeSet<String>,
    /// When it was.
    pub now: Millis,
}

/// Checks every rule about a step.
pub fn check_step(step: &Step<'_>) -> Checked {
    pinned_stays(step)?;
    only_owners_release(step)?;
    no_late_writer(step)?;
    generations_grow(step)
}

/// Rules 5 and 10: a replayed request, and one that only looks, change nothing at all.
pub fn nothing_changed(rule: Rule, before: &Snapshot, after: &Snapshot) -> Checked {
    holds(rule, before == after, || format!("{before:?} became {after:?}"))
}

/// Rule 9: a directory that was made again has every entry that the one before had, at its place, and
/// no other.
pub fn acknowledged_is_recoverable(before: &Snapshot, after: &Snapshot) -> Checked {
    let place = |(key, seen): (&Vec<u8>, &Seen)| (key.clone(), seen.handle, seen.length);
    let before: Vec<_> = before.entries.iter().map(place).collect();
    let after: Vec<_> = after.entries.iter().map(place).collect();
    holds(Rule::AcknowledgedIsRecoverable, before == after, || {
        format!("{before:?} were there, {after:?} are")
    })
}

/// Rule 3: what a session pins before and after a step lies where it lay.
fn pinned_stays(step: &Step<'_>) -> Checked {
    let resident = step.after.pages.values().filter_map(|(generation, owner)| {
        matches!(owner, Owner::Resident(_) | Owner::Ghost(_)).then_some(*generation)
    });
    let resident: BTreeSet<Generation> = resident.collect();
    for pin @ (session, handle) in step.before.pins.keys() {
        let stays = !step.after.pins.contains_key(pin) || resident.contains(&handle.generation);
        holds(Rule::PinnedStays, stays, || format!("{handle:?}, pinned by {session}, is gone"))?;
    }
    Ok(())
}

/// Rule 4: the pins of a session get fewer only by its own request, or by its end: as time passes, or
/// because its instance let go of it.
fn only_owners_release(step: &Step<'_>) -> Checked {
    for (pin @ (session, handle), count) in &step.before.pins {
        let after = step.after.pins.get(pin).copied().unwrap_or(0);
        let over = !step.after.hosts.contains_key(session);
        let ended = over && (step.actor.is_none() || step.gone.contains(session));
        let own = step.actor == Some(*session) || ended;
        holds(Rule::PinsHaveOwners, after >= *count || own, || {
            format!("{session} lost pins on {handle:?} to {:?}", step.actor)
        })?;
    }
    Ok(())
}

/// Rule 7: a page leaves a writer by its own request, or through quarantine; it leaves quarantine when
/// what kept it there is over.
fn no_late_writer(step: &Step<'_>) -> Checked {
    for (at, held) in &step.before.pages {
        let after = step.after.pages.get(at);
        let allowed = after == Some(held) || may_change(step, held, after);
        holds(Rule::NoLateWriter, allowed, || {
            format!("page {at:?} went from {held:?} to {after:?} in a step of {:?}", step.actor)
        })?;
    }
    Ok(())
}

fn may_change(
    step: &Step<'_>,
    (generation, owner): &(Generation, Owner),
    after: Option<&(Generation, Owner)>,
) -> bool {
    let (same, owner_after) = match after {
        Some((now, owner)) => (now == generation, Some(owner)),
        None => (false, None),
    };
    let gone = |session: &SessionId| step.gone.contains(session);
    match owner {
        Owner::Resident(_) => true,
        Owner::Ghost(_) => matches!(owner_after, Some(Owner::Ghost(_) | Owner::Damaged)),
        Owner::Damaged => false,
        Owner::Reserved(session) => {
            let kept = match owner_after {
                Some(Owner::Quarantined(id, _)) => same && id == session,
                Some(Owner::Unclaimed) => true,
                _ => false,
            };
            kept || step.actor == Some(*session) || gone(session)
        }
        Owner::Quarantined(session, until) => {
            let kept = matches!(owner_after, Some(Owner::Quarantined(id, _)) if id == session);
            kept || *until <= step.now || gone(session)
        }
        Owner::Unclaimed => match owner_after {
            Some(Owner::Reserved(session)) => step.actor == Some(*session),
            _ => !step.after.unclaimed_matter,
        },
        Owner::Stained(hosts) => match owner_after {
            Some(Owner::Reserved(session)) => {
                step.after.hosts.get(session).is_some_and(|own| hosts.iter().eq([own]))
            }
            other => {
                let left = match other {
                    Some(Owner::Stained(left)) => left.clone(),
                    _ => BTreeSet::new(),
                };
                let actor = step.actor.and_then(|actor| step.before.hosts.get(&actor));
                let cleaned = |host: &String| Some(host) == actor || step.hosts_gone.contains(host);
                hosts.difference(&left).all(cleaned)
            }
        },
    }
}

/// Rule 8: a page that is granted gets a generation no page ever had. One that is claimed after a
/// restart keeps its own.
fn generations_grow(step: &Step<'_>) -> Checked {
    for (at, (generation, _)) in &step.after.pages {
        let before = step.before.pages.get(at);
        let claimed = matches!(before, Some((_, Owner::Unclaimed)));
        let before = before.map(|(generation, _)| *generation);
        let fresh =
            before == Some(*generation) || generation.0 >= step.before.next_generation || claimed;
        holds(Rule::StaleHandlesAreRefused, fresh, || {
            format!("page {at:?} went from {before:?} to {generation:?}")
        })?;
    }
    Ok(())
}
