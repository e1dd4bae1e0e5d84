//! Letting time pass: leases run out, the dead are cleaned up after, quarantines end.

use maru_protocol::{Secret, SessionId};

use crate::config::RESUME_MS_MAX;
use crate::ids::InstanceId;
use crate::pages::{PageState, Why};
use crate::record::Record;
use crate::sessions::{Phase, Sessions, Vanished, Writer};
use crate::{Directory, Millis, ProcessId, rules};

/// States looked at by the sampled check of the rules, each tick.
const RULE_SAMPLE: usize = 16;

/// What a tick did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tick {
    /// Sessions whose lease ran out: their connections are to be closed.
    pub expired: Vec<SessionId>,
    /// There is more to do at once: tick again soon.
    pub more: bool,
    /// A rule was found broken; for the log.
    pub violation: Option<rules::Violation>,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Closed,
    Dropped,
    Expired,
}

impl Directory {
    /// Lets time pass. What there is to clean up is cleaned up a bounded part at a time
    /// ([`crate::Config::work_per_tick`]), however much a session held, so nobody waits long.
    pub fn tick(&mut self, now: Millis) -> Tick {
        let mut tick = Tick { expired: self.end_overdue(now), ..Tick::default() };
        let budget = self.config.work_per_tick;
        let mut work = budget;
        work -= self.drain_ended(now, work);
        // All that follows leaves records.
        if !self.store_full {
            self.end_withholding(now);
            work -= self.end_vanished(now, work);
            work -= self.clean_after_hosts(work);
            work -= self.sweep_unclaimed(work);
            work -= self.evict_to_watermark(work);
        }
        tick.more = work == 0;
        tick.violation = rules::check_sample(self, now, RULE_SAMPLE).err();
        self.counters.rule_checks += 1;
        self.counters.rule_violations += u64::from(tick.violation.is_some());
        tick
    }

    /// Ends the sessions that were not heard within their lease, or whose connection was gone too
    /// long. Their number is bounded by [`crate::Config::sessions_max`].
    fn end_overdue(&mut self, now: Millis) -> Vec<SessionId> {
        let (lease, resume) = (self.config.lease_ms, self.config.resume_ms);
        // The server before may have had longer times, which sessions rely on until they hear of ours.
        let late = self.claims.are_late(now, lease.max(RESUME_MS_MAX));
        let overdue: Vec<(SessionId, Ending)> = self
            .sessions
            .live
            .iter()
            .filter_map(|(id, session)| match session.phase {
                Phase::Connected if now - session.heard >= lease || (session.claiming && late) => {
                    Some((*id, Ending::Expired))
                }
                Phase::Dropped(since) if now - since >= resume => Some((*id, Ending::Dropped)),
                Phase::Restored if late => Some((*id, Ending::Dropped)),
                _ => None,
            })
            .collect();
        for (id, ending) in &overdue {
            self.end(now, *id, *ending);
        }
        let expired = overdue.iter().filter(|(_, ending)| *ending == Ending::Expired);
        expired.map(|(id, _)| *id).collect()
    }

    /// Ends a session; `false` if it had ended before.
    fn end(&mut self, now: Millis, id: SessionId, ending: Ending) -> bool {
        let Some(session) = self.sessions.live.get_mut(&id) else {
            return false;
        };
        if matches!(session.phase, Phase::Ended(_)) {
            return false;
        }
        session.phase = Phase::Ended(now);
        self.sessions.ended.push_back(id);
        self.pages.journal.write(&if session.leaves_nothing() {
            Record::Forgotten { session: id }
        } else {
            Record::Ended { session: id }
        });
        self.unwatch(id);
        self.end_claims(now, id);
        let counter = match ending {
            Ending::Closed => &mut self.counters.sessions_closed,
            Ending::Dropped => &mut self.counters.sessions_dropped,
            Ending::Expired => &mut self.counters.sessions_expired,
        };
        *counter += 1;
        true
    }

    /// The session says that it is over and that it writes no more.
    pub(crate) fn goodbye(&mut self, now: Millis, id: SessionId) {
        self.writer_gone(id, Writer::Done);
        self.end(now, id, Ending::Closed);
    }

    /// The session made no sense: it ends, and its writer may still write.
    pub(crate) fn drop_session(&mut self, now: Millis, id: SessionId) {
        self.end(now, id, Ending::Dropped);
    }

    /// The process behind the session is known to be dead, so nothing of it can write any more: the
    /// session ends, and its pages need no quarantine (rule 7). Says whether the session had not
    /// ended by itself.
    pub fn writer_dead(&mut self, now: Millis, id: SessionId) -> bool {
        self.writer_gone(id, Writer::Dead);
        self.end(now, id, Ending::Dropped)
    }

    /// The instance came back and writes no more to what its earlier session had reserved. Only of
    /// a session without a connection: one that has its own aborts what it does not want.
    pub(crate) fn let_go(&mut self, now: Millis, id: SessionId, secret: Secret) {
        let (known, connected) = match self.sessions.live.get(&id) {
            Some(session) => (Some(session.secret), session.phase == Phase::Connected),
            None => (self.sessions.vanished.get(&id).map(|vanished| vanished.secret), false),
        };
        if known == Some(secret) && !connected {
            self.writer_gone(id, Writer::Done);
            self.end(now, id, Ending::Dropped);
        }
    }

    /// The writers that vanished, and the process behind each, if its death would be seen: for the
    /// driver to look whether it is stopped.
    pub fn vanished_processes(&self) -> impl Iterator<Item = (SessionId, ProcessId)> {
        let vanished = self.sessions.vanished.iter();
        vanished.filter_map(|(id, vanished)| Some((*id, vanished.process?)))
    }

    /// The process of a vanished writer is stopped. It goes on where it was when somebody has it go
    /// on, so its quarantine begins anew.
    pub fn writer_stopped(&mut self, now: Millis, id: SessionId) {
        if let Some(vanished) = self.sessions.vanished.get_mut(&id) {
            vanished.until = now + self.config.quarantine_ms;
        }
    }

    /// Whether anything is left of the session: if so, the death of its process matters.
    #[must_use]
    pub fn is_known(&self, id: SessionId) -> bool {
        self.sessions.live.contains_key(&id) || self.sessions.vanished.contains_key(&id)
    }

    fn writer_gone(&mut self, id: SessionId, how: Writer) {
        let live = self.sessions.live.get_mut(&id).map(|session| &mut session.writer);
        let vanished = self.sessions.vanished.get_mut(&id).map(|vanished| &mut vanished.writer);
        for writer in live.into_iter().chain(vanished) {
            *writer = how.max(*writer);
        }
    }

    /// Releases what ended sessions held, at most `work` of it, oldest session first. Returns how
    /// much.
    fn drain_ended(&mut self, now: Millis, work: u32) -> u32 {
        let (mut done, mut stuck) = (0, 0);
        while let Some(id) = self.sessions.ended.get(stuck).copied() {
            while done < work && self.release_one(now, id) {
                done += 1;
            }
            if done == work {
                break;
            }
            if self.sessions.live.get(&id).is_some_and(|session| session.holdings() > 0) {
                // Until there is space in the store; nobody else waits for that.
                stuck += 1;
                continue;
            }
            self.sessions.ended.remove(stuck);
            let Some(session) = self.sessions.live.remove(&id) else {
                continue;
            };
            self.sessions.instance_mut(session.instance).sessions -= 1;
            match self.sessions.vanished.get(&id) {
                None => self.pages.journal.write(&Record::Forgotten { session: id }),
                // It stays recorded as one whose pages are not all known.
                Some(vanished) if vanished.unclaimed => {}
                Some(_) => self.pages.journal.write(&Record::Drained { session: id }),
            }
            self.forget_if_idle(session.instance);
        }
        done
    }

    /// Takes one holding back from an ended session; `false` if it has none, or none that can be
    /// taken back while nothing can be stored.
    fn release_one(&mut self, now: Millis, id: SessionId) -> bool {
        let Some(session) = self.sessions.live.get(&id) else {
            return false;
        };
        let (writer, instance, host) = (session.writer, session.instance, session.host);
        if let Some((entry, held)) = session.pins.last() {
            let (entry, count) = (*entry, held.count);
            self.unpin(now, id, entry, count);
            self.counters.pins_reclaimed += u64::from(count);
            return true;
        }
        let reservation = session.reservations.last().copied();
        let Some(reservation) = reservation.filter(|_| !self.store_full) else {
            return false;
        };
        let reservation = self.unlink(reservation);
        self.entries.remove_if_empty(reservation.entry);
        let page = reservation.page;
        if writer == Writer::MayWrite {
            self.vanish(now, id, |vanished| vanished.pages.push(page));
            self.pages.set(page, PageState::Quarantined(Why::Writer));
            let generation = self.pages.get(page).generation;
            self.pages.journal.write(&Record::Quarantined { page, generation, session: id });
            self.counters.quarantined += 1;
        } else {
            self.discharge(instance, self.pages.page_bytes(page));
            self.vacate_page(page, &writer.leaves_lines_on(host));
        }
        true
    }

    /// Books what the writer of a session could still write to, now that it is over.
    pub(crate) fn vanish(&mut self, now: Millis, id: SessionId, book: impl FnOnce(&mut Vanished)) {
        let until = now + self.config.quarantine_ms;
        let Sessions { live, vanished, instances, .. } = &mut self.sessions;
        let Some(session) = live.get(&id) else {
            return;
        };
        book(vanished.entry(id).or_insert_with(|| {
            instances[session.instance.index()].sessions += 1;
            Vanished::new(session, until)
        }));
    }

    /// Makes quarantined pages vacant whose writer is over, at most `work` of them. Returns how many.
    fn end_vanished(&mut self, now: Millis, work: u32) -> u32 {
        let vanished = self.sessions.vanished.iter();
        let over = vanished.filter(|(_, vanished)| vanished.is_over(now));
        let over: Vec<SessionId> = over.map(|(id, _)| *id).collect();
        let mut done = 0;
        for id in over {
            while let Some(vanished) = self.sessions.vanished.get_mut(&id) {
                let (instance, host) = (vanished.instance, vanished.host);
                let hosts = vanished.writer.leaves_lines_on(host);
                if vanished.pages.is_empty() {
                    self.end_one_vanished(id);
                } else if done == work {
                    return done;
                } else if let Some(page) = vanished.pages.pop() {
                    self.discharge(instance, self.pages.page_bytes(page));
                    self.vacate_page(page, &hosts);
                    done += 1;
                }
            }
        }
        done
    }

    fn end_one_vanished(&mut self, id: SessionId) {
        let Some(vanished) = self.sessions.vanished.remove(&id) else {
            return;
        };
        if vanished.unclaimed {
            self.claims_settled(vanished.writer, vanished.host);
        }
        if !self.sessions.live.contains_key(&id) {
            self.pages.journal.write(&Record::Forgotten { session: id });
        }
        self.sessions.instance_mut(vanished.instance).sessions -= 1;
        self.forget_if_idle(vanished.instance);
    }

    pub(crate) fn discharge(&mut self, instance: InstanceId, bytes: u64) {
        self.sessions.instance_mut(instance).charged_bytes -= bytes;
    }

    /// Forgets an instance that neither is connected nor has anything in the pool.
    pub(crate) fn forget_if_idle(&mut self, id: InstanceId) {
        let instance = self.sessions.instance(id);
        if instance.sessions == 0 && instance.charged_bytes == 0 {
            self.sessions.instances.remove(id.index());
            self.pages.forget_owner(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use maru_protocol::{Body, Generation, Hello, Key, Request};

    use super::*;
    use crate::{Config, DeviceSpan, Geometry};

    /// The sampled check went around some of the pages for ever and never came to the others.
    #[test]
    fn the_sampled_check_comes_around_to_every_page() {
        let device = DeviceSpan { offset: 0, bytes: 4 << 20, reserved: 0 };
        let memory = Geometry { devices: vec![device], region_bytes: 2 << 20 };
        let mut directory = Directory::new(Config::default(), &memory, Millis(0)).unwrap();
        let hello = Hello {
            instance: "a",
            host: "h",
            budget_bytes: 0,
            resume: None,
            outside_writers: false,
        };
        let opened = directory.hello(Millis(0), &hello, Secret([1; 16]), None).unwrap();
        let names: Vec<String> = (0..64).map(|n| n.to_string()).collect();
        let keys = names.iter().map(|name| Key::new(name.as_bytes()).unwrap());
        let body = Body::Reserve {
            keys: keys.collect(),
            page_bytes: 64 << 10,
            tag: 0,
            unless_being_written: false,
        };
        let (seq, acked) = (1, 0);
        directory.apply(Millis(0), opened.session, &Request { seq, acked, body });
        for region in 0..2 {
            for index in 0..32 {
                let page = |directory: &mut Directory, broken: u64| {
                    let page = &mut directory.pages.regions[region].pages[index];
                    page.generation = Generation(page.generation.0 ^ broken);
                };
                page(&mut directory, 1 << 63);
                let mut ticks = (0..6).map(|_| directory.tick(Millis(0)));
                let found = ticks.any(|tick| tick.violation.is_some());
                assert!(found, "page {index} of region {region} is never looked at");
                page(&mut directory, 1 << 63);
            }
        }
    }
}
