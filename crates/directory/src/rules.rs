//! The rules that always hold, each written once as a predicate with a name.
//!
//! Rules about a state are checked on one page, entry or session: [`check`] looks at all of them,
//! [`check_sample`] at a few, which is what a running server does on every tick. Rules about a
//! step compare a [`Snapshot`] before it with one after it. The property tests and the fuzzer use
//! the very same functions.

use std::collections::{BTreeMap, BTreeSet};

use maru_protocol::{Generation, Handle, SessionId};

use crate::ids::{EntryId, PageAt};
use crate::pages::{PageState, Reasons, Tally, Why};
use crate::sessions::Phase;
use crate::{Directory, Millis};

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

/// Checks every rule about a state on everything there is.
pub fn check(directory: &Directory, now: Millis) -> Checked {
    for (region, state) in (0_u32..).zip(&directory.pages.regions) {
        for (index, _) in (0_u32..).zip(&state.pages) {
            one_state_a_page(directory, PageAt { region, index })?;
            generations_are_in_the_past(directory, PageAt { region, index })?;
        }
        states_are_counted(directory, region)?;
    }
    states_sum_to_the_capacity(directory)?;
    generations_differ(directory)?;
    for (id, _) in directory.entries.iter() {
        visible_is_committed(directory, id)?;
        pins_have_owners(directory, id)?;
    }
    every_key_is_found(directory)?;
    for id in directory.sessions.live.keys() {
        replies_are_bounded(directory, *id)?;
        the_dead_hold_nothing(directory, now, *id)?;
    }
    for id in directory.sessions.vanished.keys() {
        quarantined_pages_are_kept(directory, *id)?;
    }
    reasons_are_counted(directory)?;
    charges_are_what_pages_cost(directory)
}

/// Checks the rules about a state on about `count` pages, entries and sessions; successive calls
/// come around to all of them.
pub fn check_sample(directory: &mut Directory, now: Millis, count: usize) -> Checked {
    let looks = next_looks(directory, count);
    let turn = directory.sampled.turn;
    let directory = &*directory;
    states_sum_to_the_capacity(directory)?;
    for at in looks {
        one_state_a_page(directory, at)?;
        generations_are_in_the_past(directory, at)?;
        if let PageState::Resident(entry) = directory.pages.get(at).state {
            visible_is_committed(directory, entry)?;
            pins_have_owners(directory, entry)?;
        }
    }
    let sessions = directory.sessions.live.len().max(1);
    let session = directory.sessions.live.keys().nth(turn % sessions);
    session.map_or(Ok(()), |id| {
        replies_are_bounded(directory, *id)?;
        the_dead_hold_nothing(directory, now, *id)
    })
}

/// How far the sampled checks have come.
#[derive(Debug, Default)]
pub(crate) struct Sampled {
    at: PageAt,
    turn: usize,
}

/// The pages to look at now: `count` steps on from the last, one for each page and one for each
/// region's end.
fn next_looks(directory: &mut Directory, count: usize) -> Vec<PageAt> {
    let Directory { pages, sampled, .. } = directory;
    sampled.turn = sampled.turn.wrapping_add(1);
    (0..count).filter_map(|_| pages.step(&mut sampled.at)).collect()
}

/// Rule 1: whoever a page says it belongs to says so too.
fn one_state_a_page(directory: &Directory, at: PageAt) -> Checked {
    let state = directory.pages.get(at).state;
    let agreed = match state {
        PageState::Free | PageState::Quarantined(_) => true,
        PageState::Reserved(id) => {
            let reservation = directory.sessions.reservations.get(id.index());
            reservation.is_some_and(|reservation| {
                let session = directory.sessions.live.get(&reservation.session);
                reservation.page == at
                    && session.is_some_and(|session| session.reservations.contains(&id))
            })
        }
        PageState::Resident(id) => {
            let entry = directory.entries.at(id.index());
            entry.and_then(|entry| entry.resident).is_some_and(|resident| resident.page == at)
        }
    };
    holds(Rule::OneStateAPage, agreed, || format!("page {at:?} is {state:?}, its owner disagrees"))
}

/// Rule 1: a region's tally is what its pages say.
fn states_are_counted(directory: &Directory, index: u32) -> Checked {
    let region = &directory.pages.regions[index as usize];
    let mut tally = Tally::default();
    let mut free = 0;
    let mut pinned = 0;
    for page in &region.pages {
        match page.state {
            PageState::Free => free += 1,
            PageState::Reserved(_) => tally.reserved += 1,
            PageState::Resident(entry) => {
                tally.resident += 1;
                pinned += u64::from(directory.entries.get(entry).pins > 0);
            }
            PageState::Quarantined(_) => tally.quarantined += 1,
        }
    }
    let distinct: BTreeSet<&u32> = region.free.iter().collect();
    // A region without a used page belongs to no size: any may have it.
    let empty = region.tally.used() == 0;
    let agreed = tally == region.tally
        && empty == (region.page_bytes == 0)
        && pinned == region.pinned
        && free == region.free.len()
        && free == distinct.len();
    holds(Rule::OneStateAPage, agreed, || {
        format!("region {index} counts {:?}, its pages are {tally:?} and {free} free", region.tally)
    })
}

/// Rule 1: the states sum to the capacity.
fn states_sum_to_the_capacity(directory: &Directory) -> Checked {
    let mut tally = Tally::default();
    for region in &directory.pages.regions {
        tally.reserved += region.tally.reserved;
        tally.resident += region.tally.resident;
        tally.quarantined += region.tally.quarantined;
    }
    let lost = directory.page_stats().lost_bytes();
    let agreed = tally == directory.pages.tally && lost == 0;
    holds(Rule::OneStateAPage, agreed, || {
        format!("regions hold {tally:?}, the pool {:?}; {lost} bytes lost", directory.pages.tally)
    })
}

/// Rules 2 and 3: a resident entry has the committed page, and only a resident entry has pins.
fn visible_is_committed(directory: &Directory, id: EntryId) -> Checked {
    let entry = directory.entries.get(id);
    let Some(resident) = entry.resident else {
        let writers = directory.writers(entry.writers).count();
        holds(Rule::PinnedStays, entry.pins == 0, || format!("{id:?} has pins and no page"))?;
        return holds(Rule::OneStateAPage, writers > 0, || format!("{id:?} has neither"));
    };
    let state = directory.pages.get(resident.page).state;
    holds(Rule::NothingUnfinishedIsVisible, state == PageState::Resident(id), || {
        format!("{id:?} resolves to page {:?}, which is {state:?}", resident.page)
    })?;
    let length = u64::from(resident.length);
    let fits = (1..=directory.pages.page_bytes(resident.page)).contains(&length);
    holds(Rule::NothingUnfinishedIsVisible, fits, || format!("{id:?} has length {length}"))
}

/// Rule 2: the table finds each entry by its key, and nothing else.
fn every_key_is_found(directory: &Directory) -> Checked {
    let entries = &directory.entries;
    let ghosts = &directory.ghosts;
    let found = |(id, entry): (EntryId, &crate::entries::Entry)| {
        let key = maru_protocol::Key::new(&entry.key);
        key.is_ok_and(|key| (entries.find(key) == Some(id)) != ghosts.contains(&id))
    };
    let all = entries.iter().all(found) && entries.len() == entries.table_len() + ghosts.len();
    holds(Rule::NothingUnfinishedIsVisible, all, || "the table does not match the entries".into())
}

/// Rule 4: an entry's pin count is the sum of the sessions' own counts.
fn pins_have_owners(directory: &Directory, id: EntryId) -> Checked {
    let sessions = directory.sessions.live.values();
    let held = sessions.filter_map(|session| session.pins.get(&id));
    let sum: u64 = held.map(|held| u64::from(held.count)).sum();
    let pins = directory.entries.get(id).pins;
    holds(Rule::PinsHaveOwners, sum == u64::from(pins), || {
        format!("{id:?} has {pins} pins, the sessions hold {sum}")
    })
}

/// Rule 5: no more replies are kept than the window allows, and none that was acknowledged.
fn replies_are_bounded(directory: &Directory, id: SessionId) -> Checked {
    let Some(session) = directory.sessions.live.get(&id) else {
        return Ok(());
    };
    let replies = &session.replies;
    let bounded = replies.kept.len() <= directory.config.window as usize
        && replies.kept.keys().next().is_none_or(|first| *first > replies.floor);
    holds(Rule::Once, bounded, || format!("session {id} is owed {} replies", replies.kept.len()))
}

/// Rule 6: a session that ended holds nothing a second after its connection was gone.
fn the_dead_hold_nothing(directory: &Directory, now: Millis, id: SessionId) -> Checked {
    let Some(session) = directory.sessions.live.get(&id) else {
        return Ok(());
    };
    let Phase::Ended(since) = session.phase else {
        return Ok(());
    };
    // What leaves records waits while none can be stored.
    let held = if directory.store_full { session.pins.len() } else { session.holdings() };
    let in_time = now - since <= 1000 - directory.config.resume_ms || held == 0;
    holds(Rule::TheDeadAreCleanedUpAfter, in_time, || {
        format!("session {id} ended {} ms ago and holds {}", now - since, session.holdings())
    })
}

/// Rule 7: a page in quarantine is in no other state, and its writer is over.
fn quarantined_pages_are_kept(directory: &Directory, id: SessionId) -> Checked {
    let over = directory.sessions.live.get(&id).is_none_or(|s| matches!(s.phase, Phase::Ended(_)));
    let pages = &directory.sessions.vanished[&id].pages;
    let quarantined = PageState::Quarantined(Why::Writer);
    let kept = pages.iter().all(|at| directory.pages.get(*at).state == quarantined);
    holds(Rule::NoLateWriter, over && kept, || {
        format!("the quarantine of session {id} is broken: over {over}, kept {kept}")
    })
}

/// Rule 7: every quarantined page has a reason, and whoever keeps it for that reason knows of it.
fn reasons_are_counted(directory: &Directory) -> Checked {
    let mut found = Reasons::default();
    let mut of_writers = 0;
    for page in directory.pages.regions.iter().flat_map(|region| &region.pages) {
        match found.count(page.state) {
            Some(count) => *count += 1,
            None => of_writers += u64::from(page.state == PageState::Quarantined(Why::Writer)),
        }
    }
    let vanished = directory.sessions.vanished.values();
    let kept: usize = vanished.map(|vanished| vanished.pages.len()).sum();
    let stains = directory.stains.iter();
    let stained = stains.filter(|(at, hosts)| {
        directory.pages.get(*at).state == PageState::Quarantined(Why::Stained) && !hosts.is_empty()
    });
    let kept_stains = directory.stains.kept().all(|(at, hosts)| {
        let state = directory.pages.get(at).state;
        let held = matches!(
            state,
            PageState::Reserved(_) | PageState::Quarantined(Why::Writer | Why::Unclaimed)
        );
        held && !hosts.is_empty()
    });
    let agreed = found == directory.pages.reasons
        && kept_stains
        && of_writers == kept as u64
        && found.stained == stained.count() as u64;
    holds(Rule::NoLateWriter, agreed, || {
        format!("{found:?} and {of_writers} of writers are not {:?}", directory.pages.reasons)
    })
}

/// Rule 8: no page has a generation that is yet to be drawn.
fn generations_are_in_the_past(directory: &Directory, at: PageAt) -> Checked {
    let generation = directory.pages.get(at).generation;
    let past = generation.0 < directory.pages.next_generation();
    holds(Rule::StaleHandlesAreRefused, past, || format!("page {at:?} is of {generation:?}"))
}

/// Rule 8: no two pages have the same generation.
fn generations_differ(directory: &Directory) -> Checked {
    let mut seen = BTreeSet::new();
    let pages = directory.pages.regions.iter().flat_map(|region| &region.pages);
    // Of a page that was vacant at a restart, 0 says that its generation is not known.
    let mut known = pages.map(|page| page.generation).filter(|generation| generation.0 > 0);
    let twice = known.find(|generation| !seen.insert(*generation));
    holds(Rule::StaleHandlesAreRefused, twice.is_none(), || format!("{twice:?} is on two pages"))
}

/// What instances are charged with is what their pages cost, so budgets hold and come back.
fn charges_are_what_pages_cost(directory: &Directory) -> Checked {
    let sessions = &directory.sessions;
    let mut cost: BTreeMap<usize, u64> = BTreeMap::new();
    for (_, reservation) in &sessions.reservations {
        let Some(instance) = sessions.instance_of(reservation.session) else {
            continue;
        };
        *cost.entry(instance.index()).or_default() += directory.pages.page_bytes(reservation.page);
    }
    for resident in directory.entries.iter().filter_map(|(_, entry)| entry.resident) {
        *cost.entry(resident.writer.index()).or_default() +=
            directory.pages.page_bytes(resident.page);
    }
    for vanished in sessions.vanished.values() {
        *cost.entry(vanished.instance.index()).or_default() +=
            vanished.pages.iter().map(|at| directory.pages.page_bytes(*at)).sum::<u64>();
    }
    let charged = |(index, instance): (usize, &crate::sessions::Instance)| {
        instance.charged_bytes == cost.get(&index).copied().unwrap_or(0)
    };
    let known = cost.keys().all(|index| sessions.instances.contains(*index));
    holds(Rule::OneStateAPage, known && sessions.instances.iter().all(charged), || {
        format!("pages cost {cost:?}, which is not what the instances are charged with")
    })
}

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
