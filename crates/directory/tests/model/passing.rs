//! What a tick should do.

use maru_directory::rules::{Owner, Snapshot};
use maru_directory::{Millis, Tick};
use maru_protocol::{Generation, Handle, SessionId, Visibility};

use crate::reference::{Model, Name, Phase, Stain, Vanished, Writer};

impl Model {
    pub(crate) fn tick(&mut self, now: Millis, tick: &Tick, after: &Snapshot) {
        assert_eq!(tick.violation, None);
        self.counters.rule_checks += 1;
        assert_eq!(tick.expired, self.end_overdue(now), "sessions whose lease ran out");
        let work = u64::from(self.config.work_per_tick);
        let mut left = work;
        left -= self.drain_ended(now, left, after);
        left -= self.end_vanished(now, left, after);
        left -= self.clean_after_hosts(left, after);
        left -= self.evict_to_watermark(left, after);
        assert_eq!(tick.more, left == 0, "a tick says whether it used up its work");
    }

    fn end_overdue(&mut self, now: Millis) -> Vec<SessionId> {
        let mut expired = Vec::new();
        let mut dropped = Vec::new();
        for (id, session) in &self.sessions {
            match session.phase {
                Phase::Connected if now - session.heard >= self.config.lease_ms => {
                    expired.push(*id);
                }
                Phase::Dropped(since) if now - since >= self.config.resume_ms => dropped.push(*id),
                _ => {}
            }
        }
        self.counters.sessions_expired += expired.len() as u64;
        self.counters.sessions_dropped += dropped.len() as u64;
        let mut over = [expired.clone(), dropped].concat();
        over.sort_unstable();
        for id in over {
            self.end(id);
        }
        expired
    }

    /// Exactly the holdings of ended sessions are released, oldest session first.
    fn drain_ended(&mut self, now: Millis, work: u64, after: &Snapshot) -> u64 {
        let mut done = 0;
        let order = self.next_use();
        while let Some(id) = self.ended.front().copied() {
            let session = &self.sessions[&id];
            let held = session.pins.len() + session.ghosts.len() + session.reservations.len();
            let held = held as u64;
            let all = held <= work - done;
            let pins: Vec<Name> = session.pins.keys().copied().collect();
            let pins: Vec<Name> =
                pins.into_iter().filter(|key| all || self.is_released(id, key, after)).collect();
            let ghosts: Vec<Generation> = session.ghosts.keys().copied().collect();
            let ghosts: Vec<Generation> =
                ghosts.into_iter().filter(|g| all || self.is_let_go(id, *g, after)).collect();
            let reservations: Vec<Generation> = session.reservations.keys().copied().collect();
            let reserved = |generation: &Generation| {
                let owner = (*generation, Owner::Reserved(id));
                after.pages.values().any(|page| *page == owner)
            };
            let reservations: Vec<Generation> =
                reservations.into_iter().filter(|g| all || !reserved(g)).collect();
            let released = (pins.len() + ghosts.len() + reservations.len()) as u64;
            assert_eq!(released, held.min(work - done), "the work of a tick is bounded");
            done += released;
            for key in pins {
                let session = self.sessions.get_mut(&id).expect("it ends");
                let (count, _) = session.pins.remove(key).expect("it holds it");
                self.counters.pins_reclaimed += u64::from(count);
                self.unpinned(now, key, order);
            }
            for ghost in ghosts {
                let session = self.sessions.get_mut(&id).expect("it ends");
                let (count, _) = session.ghosts.remove(&ghost).expect("it holds it");
                self.counters.pins_reclaimed += u64::from(count);
                self.ghost_unpinned(ghost);
            }
            for generation in reservations {
                self.withdraw(now, id, generation);
            }
            if done == work {
                break;
            }
            self.ended.pop_front();
            self.sessions.remove(&id);
        }
        done
    }

    /// Whether an ended session's pins on a key are gone.
    fn is_released(&self, id: SessionId, key: Name, after: &Snapshot) -> bool {
        let others = self.pins_on(key) - self.sessions[&id].pins[key].0;
        after.entries.get(key).is_none_or(|seen| seen.pins == others)
    }

    /// Whether an ended session's pins on a ghost are gone.
    fn is_let_go(&self, id: SessionId, ghost: Generation, after: &Snapshot) -> bool {
        let others = self.pins_on_ghost(ghost) - self.sessions[&id].ghosts[&ghost].0;
        let mut pages = after.pages.values();
        let page = pages.find(|(generation, _)| *generation == ghost);
        page.is_none_or(|(_, owner)| match owner {
            Owner::Ghost(pins) => *pins == others,
            _ => true,
        })
    }

    /// An ended session's reservation: its page is vacant if the writer is gone, else quarantined.
    fn withdraw(&mut self, now: Millis, id: SessionId, generation: Generation) {
        let session = self.sessions.get_mut(&id).expect("it ends");
        let held = session.reservations.remove(&generation).expect("it holds it");
        let page = (held.handle, held.page_bytes);
        if session.writer > Writer::MayWrite {
            let (done, host) = (session.writer == Writer::Done, session.host.clone());
            self.vacate(page, done, host);
            return;
        }
        let new = || Vanished {
            secret: session.secret,
            instance: session.instance.clone(),
            host: session.host.clone(),
            writer: session.writer,
            pages: std::collections::BTreeMap::new(),
            until: now + self.config.quarantine_ms,
        };
        let vanished = self.vanished.entry(id).or_insert_with(new);
        vanished.pages.insert(generation, page);
        self.counters.quarantined += 1;
    }

    /// A page whose writer is over is free, unless lines of it may be in a cache: what the writer said
    /// about what it wrote says nothing of what was there before.
    pub(crate) fn vacate(&mut self, (handle, page_bytes): (Handle, u64), done: bool, host: String) {
        let stained = self.granted_stained.remove(&handle.generation) || !done;
        if stained && self.config.visibility == Visibility::CacheLine {
            let stain = Stain { handle, page_bytes, hosts: [host].into() };
            self.stains.insert(handle.generation, stain);
        }
    }

    fn end_vanished(&mut self, now: Millis, work: u64, after: &Snapshot) -> u64 {
        let mut done = 0;
        let mut vacated = Vec::new();
        for (id, vanished) in &mut self.vanished {
            if vanished.writer == Writer::MayWrite && vanished.until > now {
                continue;
            }
            let held = vanished.pages.len() as u64;
            let all = held <= work - done;
            let until = vanished.until;
            let stays = |generation: &Generation| {
                let owner = (*generation, Owner::Quarantined(*id, until));
                !all && after.pages.values().any(|page| *page == owner)
            };
            let left = vanished.pages.extract_if(.., |generation, _| !stays(generation));
            let left: Vec<(Handle, u64)> = left.map(|(_, page)| page).collect();
            assert_eq!(left.len() as u64, held.min(work - done), "the work of a tick is bounded");
            done += left.len() as u64;
            let writer_done = vanished.writer == Writer::Done;
            vacated.extend(left.into_iter().map(|page| (page, writer_done, vanished.host.clone())));
        }
        self.vanished.retain(|_, vanished| !vanished.pages.is_empty());
        for (page, done, host) in vacated {
            self.vacate(page, done, host);
        }
        done
    }

    /// Pages that only hosts without caches had stained are free; which goes first is open.
    fn clean_after_hosts(&mut self, work: u64, after: &Snapshot) -> u64 {
        let due: Vec<Generation> = self
            .stains
            .iter()
            .filter(|(_, stain)| stain.hosts.iter().any(|host| self.hosts_gone.contains(host)))
            .map(|(generation, _)| *generation)
            .collect();
        let all = due.len() as u64 <= work;
        let cleaned = |generation: &&Generation| {
            all || !after
                .pages
                .values()
                .any(|(now, owner)| now == *generation && matches!(owner, Owner::Stained(_)))
        };
        let cleaned: Vec<Generation> = due.iter().filter(cleaned).copied().collect();
        let (cleaned_len, due_len) = (cleaned.len() as u64, due.len() as u64);
        assert_eq!(cleaned_len, due_len.min(work), "the work of a tick is bounded");
        for generation in &cleaned {
            self.stains.remove(generation);
        }
        if all {
            self.hosts_gone.clear();
        }
        cleaned_len
    }

    /// Above the high watermark, the coldest of all go until the low one is reached.
    fn evict_to_watermark(&mut self, work: u64, after: &Snapshot) -> u64 {
        let capacity: u64 = self.regions.iter().map(|(_, bytes)| bytes).sum();
        let share = |permille: u32| capacity * u64::from(permille) / 1000;
        let high = share(self.config.watermark_high_permille);
        let low = share(self.config.watermark_low_permille);
        let used = |model: &Self| model.used_pages().iter().map(|(_, bytes)| bytes).sum::<u64>();
        let gone = self.vanished(after);
        if used(self) <= high && !self.evicting {
            assert!(gone.is_empty(), "{gone:?} were evicted below the watermark");
            return 0;
        }
        assert!(gone.len() as u64 <= work, "the work of a tick is bounded");
        self.check_globally_coldest(&gone);
        let hottest = gone.iter().map(|key| self.entries[key].touched).max();
        let last = gone.iter().map(|key| &self.entries[key]);
        let last = last.filter(|e| Some(e.touched) == hottest).map(|e| e.page_bytes);
        let last = last.max().unwrap_or(u64::MAX - low);
        let count = gone.len() as u64;
        for key in gone {
            self.evicted(key);
        }
        assert!(used(self).saturating_add(last) > low, "more than needed were evicted");
        let idle = self.entries.keys().all(|key| self.pins_on(key) > 0);
        assert!(used(self) <= low || count == work || idle, "too few were evicted");
        self.evicting = used(self) > low && count == work;
        count
    }
}
