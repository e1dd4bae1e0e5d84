//! The directory that the records make.

use std::collections::BTreeSet;

use indexmap::{IndexMap, IndexSet};
use maru_protocol::{Generation, Key, SessionId};

use super::{Chunk, Opened, Recovery, RecoveryError, Region, Slot, Stage};
use crate::claims::Claims;
use crate::entries::Resident;
use crate::ids::{EntryId, HostId, InstanceId, PageAt};
use crate::pages::{Page, PageState, Why};
use crate::sessions::{Instance, Phase, Session, Vanished, Writer};
use crate::stains::Hosts;
use crate::{Config, Directory, Millis};

impl Recovery {
    /// The directory, in a new epoch. Its sessions of before may come back, and say what they hold.
    pub fn finish(mut self, config: Config, now: Millis) -> Result<Directory, RecoveryError> {
        let (epoch, found) = (config.epoch, self.next_generation.saturating_sub(1) >> 32);
        let sessions = self.sessions.keys().map(|session| session.0 >> 24).max();
        let found = found.max(sessions.unwrap_or(0));
        if found >= epoch {
            return Err(RecoveryError::Epoch { found, epoch });
        }
        let mut directory = Directory::new(config, &self.geometry, now)?;
        // All of this is recorded already.
        let recorded = !std::mem::replace(&mut directory.pages.journal.off, true);
        let (instances, hosts) = self.name_all(&mut directory);
        let awaited = self.restore_sessions(&mut directory, now, &instances, &hosts);
        let unclaimed: Hosts = self.unclaimed.iter().map(|host| hosts[*host as usize]).collect();
        let settled = unclaimed.is_empty();
        directory.claims = Claims::new(awaited, now, unclaimed);
        let unknown = !settled || directory.unclaimed_matter();
        let mut chunks = Vec::new();
        let mut regions = Vec::new();
        for (region, state) in (0..).zip(std::mem::take(&mut self.regions)) {
            let page_bytes = state.page_bytes;
            let pages = vacant_pages(&mut directory, region, state, unknown, &hosts, &mut chunks);
            regions.push((page_bytes, pages));
        }
        // The latest are the least likely to be evicted: nothing better is known.
        chunks.sort_unstable_by_key(|(_, chunk)| chunk.generation);
        for (page, chunk) in &mut chunks {
            let entry = new_entry(&mut directory, chunk)?;
            // The next entry finds its memory free.
            chunk.key = Box::default();
            let (_, pages) = &mut regions[page.region as usize];
            pages[page.index as usize].state = PageState::Resident(entry);
        }
        for (region, (page_bytes, pages)) in (0..).zip(regions) {
            if pages.iter().any(|page| page.state != PageState::Free) {
                directory.pages.restore(region, page_bytes, pages);
            }
        }
        for (page, chunk) in chunks {
            let (writer, host) = (instances[chunk.instance as usize], hosts[chunk.host as usize]);
            restore_chunk(&mut directory, now, page, &chunk, writer, host);
        }
        for vanished in directory.sessions.vanished.values() {
            let bytes = vanished.pages.iter().map(|at| directory.pages.page_bytes(*at));
            directory.sessions.instances[vanished.instance.index()].charged_bytes +=
                bytes.sum::<u64>();
        }
        directory.pages.journal.off = !recorded;
        if self.withheld {
            directory.withhold(now);
        }
        Ok(directory)
    }

    /// Gives the instances and hosts that something belongs to their numbers.
    fn name_all(&self, directory: &mut Directory) -> (Vec<InstanceId>, Vec<HostId>) {
        let chunks = self.chunks().map(|(_, chunk)| (chunk.instance, chunk.host));
        let sessions = self.sessions.values();
        let sessions = sessions.map(|known| (known.record.instance, known.record.host));
        let mut used: (BTreeSet<u32>, BTreeSet<u32>) = chunks.chain(sessions).unzip();
        used.1.extend(&self.unclaimed);
        for slot in self.regions.iter().flat_map(|region| &region.slots) {
            if let Slot::Stained(_, hosts) = slot {
                used.1.extend(hosts);
            }
        }
        // Those without a use get the number of another, which nobody asks for.
        let mut instances = vec![InstanceId::new(0); self.instances.names.len()];
        for index in used.0 {
            let name = self.instances.names[index as usize].clone();
            let budget_bytes = self.budgets.get(&index).copied().unwrap_or(0);
            let instance = Instance { name, budget_bytes, charged_bytes: 0, sessions: 0 };
            let number = directory.sessions.instances.insert(instance);
            instances[index as usize] = InstanceId::new(number);
        }
        let mut hosts = vec![HostId::new(0); self.hosts.names.len()];
        for index in used.1 {
            let name = self.hosts.names[index as usize].clone();
            let (number, _) = directory.sessions.hosts.insert_full(name);
            hosts[index as usize] = HostId::new(number);
        }
        (instances, hosts)
    }

    /// Returns the sessions that may come back.
    fn restore_sessions(
        &mut self,
        directory: &mut Directory,
        now: Millis,
        instances: &[InstanceId],
        hosts: &[HostId],
    ) -> BTreeSet<SessionId> {
        let hasher = directory.entries.hasher();
        let mut awaited = BTreeSet::new();
        for (id, known) in std::mem::take(&mut self.sessions) {
            let Opened { secret, instance, host, process } = known.record;
            let session = Session {
                secret,
                instance: instances[instance as usize],
                host: hosts[host as usize],
                process,
                phase: Phase::Restored,
                heard: now,
                writer: Writer::MayWrite,
                claiming: true,
                pins: IndexMap::with_hasher(hasher.clone()),
                pin_count: 0,
                reservations: IndexSet::with_hasher(hasher.clone()),
                replies: known.replies,
            };
            directory.sessions.instance_mut(session.instance).sessions += 1;
            if known.stage == Stage::Live {
                directory.sessions.live.insert(id, session);
                awaited.insert(id);
            } else {
                let until = now + directory.config.quarantine_ms;
                let mut vanished = Vanished::new(&session, until);
                vanished.unclaimed = known.stage == Stage::Ended;
                directory.sessions.vanished.insert(id, vanished);
            }
        }
        awaited
    }
}

/// The pages of a region, those of chunks free. Its chunks come on top of `chunks`.
fn vacant_pages(
    directory: &mut Directory,
    region: u32,
    mut state: Region,
    unknown: bool,
    hosts: &[HostId],
    chunks: &mut Vec<(PageAt, Chunk)>,
) -> Vec<Page> {
    if unknown && let Some(capacity) = state.bytes.checked_div(state.page_bytes) {
        // Somebody may hold any page that nothing is known of.
        let capacity = usize::try_from(capacity).expect("a region has fewer than 2^32 pages");
        state.slots.resize_with(capacity, Slot::default);
    }
    let unclaimed = if unknown { PageState::Quarantined(Why::Unclaimed) } else { PageState::Free };
    let vacant = Page { generation: Generation(0), state: unclaimed };
    let page = |(index, slot): (u32, Slot)| {
        let at = PageAt { region, index };
        let (generation, why) = match slot {
            Slot::Vacant => return vacant,
            Slot::Stored(chunk) => {
                let generation = chunk.generation;
                chunks.push((at, chunk));
                return Page { generation, state: PageState::Free };
            }
            Slot::Quarantined(generation, session) => {
                let Some(vanished) = directory.sessions.vanished.get_mut(&session) else {
                    return vacant;
                };
                vanished.pages.push(at);
                // It may have been stained when it was granted.
                directory.stains.keep(at, Hosts::from([vanished.host]));
                (generation, Why::Writer)
            }
            Slot::Stained(generation, of) => {
                let of: Hosts = of.iter().map(|host| hosts[*host as usize]).collect();
                if unknown {
                    // It may be granted to its host.
                    directory.stains.keep(at, of);
                    (generation, Why::Unclaimed)
                } else {
                    directory.stains.insert(of, state.page_bytes, at);
                    (generation, Why::Stained)
                }
            }
            Slot::Damaged => (Generation(0), Why::Damaged),
        };
        Page { generation, state: PageState::Quarantined(why) }
    };
    (0..).zip(state.slots).map(page).collect()
}

fn new_entry(directory: &mut Directory, chunk: &Chunk) -> Result<EntryId, RecoveryError> {
    let two = || RecoveryError::TwoPages { key: chunk.key.to_vec() };
    let key = Key::new(&chunk.key).map_err(|_| two())?;
    let before = directory.entries.len();
    let entry = directory.entries.find_or_insert(key);
    if directory.entries.len() > before { Ok(entry) } else { Err(two()) }
}

fn restore_chunk(
    directory: &mut Directory,
    now: Millis,
    page: PageAt,
    chunk: &Chunk,
    writer: InstanceId,
    host: HostId,
) {
    let PageState::Resident(entry) = directory.pages.get(page).state else {
        return;
    };
    let queue = directory.queue_of(page, writer);
    let (length, checksum) = (chunk.length, chunk.checksum);
    let resident = Resident { page, length, writer, host, queue, touched: now, checksum };
    directory.pages.queue_mut(page, queue).evictable += 1;
    directory.pages.region_mut(page).touched = now;
    directory.entries.get_mut(entry).resident = Some(resident);
    directory.policy.insert(entry, queue);
    let bytes = directory.pages.page_bytes(page);
    directory.sessions.instance_mut(writer).charged_bytes += bytes;
    directory.counters.recovered += 1;
}
