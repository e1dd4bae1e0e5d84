//! The rules about a state.

use std::collections::{BTreeMap, BTreeSet};

use maru_protocol::SessionId;

use super::{Checked, Rule, holds};
use crate::ids::{EntryId, PageAt};
use crate::pages::{PageState, Reasons, Tally, Why};
use crate::sessions::Phase;
use crate::{Directory, Millis};

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
