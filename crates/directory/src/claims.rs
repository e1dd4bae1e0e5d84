//! After a restart: sessions come back and say what they hold.
//!
//! Entries, sessions, and which pages are quarantined are recorded; pins and reservations are not.
//! Until every session of before has come back and claimed what is its own, or is over:
//!
//! - any entry may be pinned, so none is evicted or deleted (rule 3);
//! - any page that is not resident may be reserved, so none of them is granted (rules 1 and 7), but
//!   those of regions that were cut for no size.
//!
//! What nobody has claimed by then is vacant. If one of the sessions never came back, its writer could
//! still write to any of it: the clock of its quarantine runs first.

use std::collections::BTreeSet;

use maru_protocol::{
    Answer, Body, CommitOutcome, Handle, PinClaim, Refusal, ReservationClaim, SessionId, Visibility,
};

use crate::ids::{HostId, PageAt};
use crate::pages::{PageState, Why};
use crate::record::Record;
use crate::sessions::Writer;
use crate::stains::{Hosts, numbers};
use crate::{Directory, Millis, ProcessId};

/// What a restarted directory still waits for.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Sessions that have not said what they hold.
    awaited: BTreeSet<SessionId>,
    /// When they began to be awaited.
    since: Millis,
    /// Hosts whose caches may hold lines of any unclaimed page: their writers are over, and nobody
    /// has written back.
    hosts: Hosts,
    /// Where the unclaimed pages that are left are looked for.
    sweep: PageAt,
    /// Nothing is granted before then.
    withheld_until: Option<Millis>,
}

impl Claims {
    pub(crate) fn new(awaited: BTreeSet<SessionId>, since: Millis, hosts: Hosts) -> Self {
        Self { awaited, since, hosts, ..Self::default() }
    }

    /// What is recorded of pages that nobody has claimed.
    pub(crate) fn record(&self) -> Record<'static> {
        Record::Unclaimed { hosts: numbers(&self.hosts) }
    }

    /// Whether somebody may hold pins that are not known.
    pub(crate) fn are_open(&self) -> bool {
        !self.awaited.is_empty()
    }

    pub(crate) fn awaited_len(&self) -> u64 {
        self.awaited.len() as u64
    }

    /// Whether the time is over in which they can be made.
    pub(crate) fn are_late(&self, now: Millis, lease_ms: u64) -> bool {
        now - self.since >= lease_ms
    }
}

impl Directory {
    /// What sessions of before hold is not known, and cannot be: no page is granted as long as any
    /// of them may live, and then its writer, by the clock of a quarantine.
    pub fn withhold(&mut self, now: Millis) {
        self.claims.withheld_until = Some(now + self.config.lease_ms + self.config.quarantine_ms);
        self.pages.journal.write(&Record::Withheld { withheld: true });
    }

    /// For how long yet nothing is granted, in milliseconds.
    #[must_use]
    pub fn withheld_ms(&self, now: Millis) -> u64 {
        self.claims.withheld_until.map_or(0, |until| until - now)
    }

    /// Whether no page is granted at present, see [`Directory::withhold`].
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        self.claims.withheld_until.is_some()
    }

    pub(crate) fn end_withholding(&mut self, now: Millis) {
        if self.claims.withheld_until.is_some_and(|until| until <= now) {
            self.claims.withheld_until = None;
            self.pages.journal.write(&Record::Withheld { withheld: false });
        }
    }

    /// The sessions of before the restart, and the process behind each whose death would be seen: for
    /// the driver to look whether it is dead, and to wait for that.
    #[must_use]
    pub fn processes_before(&self) -> Vec<(SessionId, ProcessId)> {
        let awaited = self.sessions.live.iter().map(|(id, session)| (*id, session.process));
        let awaited = awaited.filter_map(|(id, process)| Some((id, process?)));
        awaited.chain(self.vanished_processes()).collect()
    }

    /// The death of the process behind a session would not be seen after all.
    pub fn process_lost(&mut self, id: SessionId) {
        let live = self.sessions.live.get_mut(&id).map(|session| &mut session.process);
        let vanished = self.sessions.vanished.get_mut(&id).map(|vanished| &mut vanished.process);
        live.into_iter().chain(vanished).for_each(|process| *process = None);
    }

    /// Takes back what a session has claimed over an earlier connection: it begins again.
    pub(crate) fn restart_claims(&mut self, now: Millis, id: SessionId) {
        while let Some(session) = self.sessions.live.get(&id) {
            if let Some((entry, held)) = session.pins.last() {
                let (entry, count) = (*entry, held.count);
                self.unpin(now, id, entry, count);
            } else if let Some(reservation) = session.reservations.last().copied() {
                let instance = session.instance;
                let gone = self.unlink(reservation);
                self.entries.remove_if_empty(gone.entry);
                self.discharge(instance, self.pages.page_bytes(gone.page));
                self.pages.set(gone.page, PageState::Quarantined(Why::Unclaimed));
            } else {
                return;
            }
        }
    }

    /// Books what a restored session holds.
    pub(crate) fn claim(
        &mut self,
        now: Millis,
        id: SessionId,
        body: &Body<'_>,
    ) -> Result<Answer, Refusal> {
        let Body::Claim { pins, reservations, commits, last } = body else {
            return Err(Refusal::ClaimFirst);
        };
        let claimed = pins
            .iter()
            .try_for_each(|pin| self.claim_pins(now, id, *pin))
            .and_then(|()| {
                reservations.iter().try_for_each(|held| self.claim_reservation(now, id, held))
            })
            .and_then(|()| commits.iter().try_for_each(|seq| self.claim_commit(now, id, *seq)));
        if let Err(reason) = claimed {
            self.drop_session(now, id);
            return Err(Refusal::Claim { reason });
        }
        if *last && let Some(session) = self.sessions.live.get_mut(&id) {
            session.claiming = false;
            self.claims.awaited.remove(&id);
            self.counters.sessions_restored += 1;
        }
        Ok(Answer::Done)
    }

    fn claim_pins(&mut self, now: Millis, id: SessionId, claim: PinClaim) -> Result<(), String> {
        let PinClaim { handle, count } = claim;
        let Some((_, PageState::Resident(entry))) = self.pages.find(handle) else {
            let page = self.pages.place(handle).map(|at| self.pages.get(at).state);
            return match page {
                // Found bad meanwhile: nobody else will have it, so nothing has to protect it.
                Some(PageState::Quarantined(Why::Damaged)) => Ok(()),
                _ => Err(format!("nothing is resident under {handle:?}")),
            };
        };
        self.check_pins(id, 1, count).map_err(|refusal| refusal.to_string())?;
        self.pin(now, id, entry, count);
        Ok(())
    }

    fn claim_reservation(
        &mut self,
        now: Millis,
        id: SessionId,
        claim: &ReservationClaim<'_>,
    ) -> Result<(), String> {
        let ReservationClaim { handle, key, tag, committing } = *claim;
        let Some(session) = self.sessions.live.get(&id) else {
            return Err("the session is over".to_owned());
        };
        if committing.is_some_and(|seq| session.replies.kept.contains_key(&seq)) {
            return Ok(());
        }
        let host = session.host;
        let place = self.pages.place(handle);
        let state = place.map(|at| self.pages.get(at).state);
        if state == Some(PageState::Quarantined(Why::Damaged)) {
            // Its writer has said so, and does not know whether it was heard.
            return Ok(());
        }
        let page = place.filter(|at| {
            self.pages.get(*at).state == PageState::Quarantined(Why::Unclaimed)
                && self.stains.may_be_held(*at, host)
                && handle.generation.0 < self.pages.first_generation()
        });
        let Some(page) = page else {
            return Err(format!("{handle:?} cannot be reserved"));
        };
        self.book(now, id, key, tag, |directory, reservation| {
            directory.pages.set(page, PageState::Reserved(reservation));
            directory.pages.begin(page, handle.generation);
            Some(page)
        });
        Ok(())
    }

    /// Takes the pins again that a commit took whose reply the session does not have.
    fn claim_commit(&mut self, now: Millis, id: SessionId, seq: u64) -> Result<(), String> {
        let kept = self.sessions.live.get(&id).and_then(|session| session.replies.kept.get(&seq));
        let Some(kept) = kept.filter(|kept| kept.pins > 0) else {
            return Ok(());
        };
        let Ok(Answer::Committed(outcomes)) = &kept.result else {
            return Ok(());
        };
        let pinned = outcomes.iter().filter_map(|outcome| match outcome {
            CommitOutcome::Committed(chunk) | CommitOutcome::Superseded(chunk) => {
                Some(chunk.location.handle)
            }
            CommitOutcome::NotReserved | CommitOutcome::BadLength => None,
        });
        let (count, handles): (u32, Vec<Handle>) = (kept.pins, pinned.collect());
        handles
            .into_iter()
            .try_for_each(|handle| self.claim_pins(now, id, PinClaim { handle, count }))
    }

    /// A session ended. If it had not said what it held, its writer could write to any unclaimed page.
    pub(crate) fn end_claims(&mut self, now: Millis, id: SessionId) {
        if !self.claims.awaited.remove(&id) {
            return;
        }
        let Some(session) = self.sessions.live.get(&id) else {
            return;
        };
        match session.writer {
            Writer::MayWrite => self.vanish(now, id, |vanished| vanished.unclaimed = true),
            writer => self.claims_settled(writer, session.host),
        }
    }

    /// A writer is over that could have written to unclaimed pages.
    pub(crate) fn claims_settled(&mut self, writer: Writer, host: HostId) {
        let hosts = writer.leaves_lines_on(host);
        if self.config.visibility == Visibility::CacheLine && !hosts.is_subset(&self.claims.hosts) {
            self.claims.hosts.extend(hosts);
            self.pages.journal.write(&self.claims.record());
        }
    }

    /// Makes unclaimed pages vacant once nobody can claim them, looking at no more than `work` pages.
    /// Returns at how many.
    pub(crate) fn sweep_unclaimed(&mut self, work: u32) -> u32 {
        if self.pages.reasons.unclaimed == 0 && self.claims.hosts.is_empty() {
            return 0;
        }
        if self.unclaimed_matter() {
            return 0;
        }
        let mut done = 0;
        while done < work && self.pages.reasons.unclaimed > 0 {
            done += 1;
            if let Some(at) = self.pages.step(&mut self.claims.sweep)
                && self.pages.get(at).state == PageState::Quarantined(Why::Unclaimed)
            {
                let hosts = self.claims.hosts.clone();
                self.vacate_page(at, &hosts);
            }
        }
        if self.pages.reasons.unclaimed == 0 && !self.claims.hosts.is_empty() {
            self.claims.hosts.clear();
            self.pages.journal.write(&self.claims.record());
        }
        done
    }

    /// Whether sessions of before a restart may come back, or their writers may still write.
    pub(crate) fn unclaimed_matter(&self) -> bool {
        let mut vanished = self.sessions.vanished.values();
        self.claims.are_open() || vanished.any(|vanished| vanished.unclaimed)
    }
}
