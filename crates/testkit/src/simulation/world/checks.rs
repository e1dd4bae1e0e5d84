//! What must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use maru_directory::Millis;
use maru_directory::rules::{self, Owner, Snapshot};
use maru_protocol::{Handle, SessionId};
use maru_server::service::Service;
use maru_server::store::Durability;

use super::super::instance::{KEYS, Verdict, checksum, content};
use super::super::memory::{LINE_BYTES, lines};
use super::super::plan::INSTANCES;
use super::servers::Server;
use super::{Checked, NAMES, World};

impl World {
    /// What an instance read and takes for right.
    pub(super) fn judge(&mut self, index: usize, verdict: Verdict) -> Checked {
        let Verdict { key, handle, length, seen, checksum: expected } = verdict;
        let right: Vec<u64> = (0..length / LINE_BYTES).map(|line| content(key, line)).collect();
        if seen == right {
            self.seen.read += 1;
            return Ok(());
        }
        let damaged = lines(handle.offset, length).any(|line| self.damaged_lines.contains(&line));
        if damaged && expected.is_some_and(|expected| expected != checksum(&seen)) {
            let now = self.now;
            let frame = self.instances[index].suspect(now, handle);
            self.send_all(index, frame);
            return Ok(());
        }
        let name = NAMES[index];
        Err(format!("{name} read {seen:x?} of key {key} in {handle:?}, where {right:x?} is right"))
    }

    /// What a crash at this moment would leave has all that was answered.
    pub(super) fn inspect(&mut self) -> Checked {
        let Some(server) = &self.server else {
            return Ok(());
        };
        let image = match self.setup.durability {
            Durability::Fsync => self.disk.durable_image(),
            _ => self.disk.image(),
        };
        image.set_capacity(None);
        let (config, now) = (self.config(), Millis(self.now));
        let open = Service::open(config, Some(image), self.pool_epoch, now, &mut |_| {});
        let (other, _) = open.map_err(|error| format!("another server does not start: {error}"))?;
        let other = other.directory();
        rules::acknowledged_is_recoverable(&server.snapshot, &Snapshot::of(other))
            .and_then(|()| rules::check(other, now))
            .map_err(|violation| violation.to_string())
    }

    /// The directory's own rules.
    pub(super) fn check_server(&mut self, actor: Option<SessionId>) -> Checked {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let directory = server.service.directory();
        let after = Snapshot::of(directory);
        let step = rules::Step {
            before: &server.snapshot,
            after: &after,
            actor,
            gone: &server.gone,
            hosts_gone: &BTreeSet::new(),
            now: Millis(self.now),
        };
        let checked = rules::check(directory, Millis(self.now));
        checked.and_then(|()| rules::check_step(&step)).map_err(|error| error.to_string())?;
        let stains = |snapshot: &Snapshot| {
            let owners = snapshot.pages.values();
            owners.filter(|(_, owner)| matches!(owner, Owner::Stained(_))).count() as u64
        };
        self.seen.stained += stains(&after).saturating_sub(stains(&server.snapshot));
        server.snapshot = after;
        Ok(())
    }

    /// What only somebody can check who sees all sides.
    pub(super) fn check_all_sides(&self) -> Checked {
        let Some(server) = &self.server else {
            return Ok(());
        };
        for (key, seen) in &server.snapshot.entries {
            self.check_chunk(key, seen.handle, seen.length.into())?;
        }
        let now = Duration::from_millis(self.now);
        let held: BTreeMap<_, _> = server
            .snapshot
            .pages
            .values()
            .map(|(generation, owner)| (*generation, owner))
            .collect();
        for instance in &self.instances {
            for page in instance.readable.iter().filter(|one| one.session.is_certainly_alive(now)) {
                let owner = held.get(&page.handle.generation);
                let kept = matches!(owner, Some(Owner::Resident(_) | Owner::Ghost(_)))
                    || self.is_damaged(page.handle)
                    || (owner.is_none() && server.is_withholding(self.now));
                if !kept {
                    let (name, handle) = (instance.name, page.handle);
                    return Err(format!("{name} reads {handle:?}, which belongs to {owner:?}"));
                }
            }
        }
        (0..INSTANCES).try_for_each(|index| self.check_books(server, index))
    }

    pub(super) fn is_damaged(&self, handle: Handle) -> bool {
        let page = lines(handle.offset, 8 * LINE_BYTES);
        page.into_iter().any(|line| self.damaged_lines.contains(&line))
    }

    /// A resident chunk is in memory, right, and no cache will write anything else there.
    pub(super) fn check_chunk(&self, key: &[u8], handle: Handle, length: u64) -> Checked {
        let index = KEYS.iter().position(|one| *one == key).ok_or("a key of nobody")?;
        for (place, line) in (0..).zip(lines(handle.offset, length)) {
            if self.damaged_lines.contains(&line) {
                continue;
            }
            let (found, right) = (self.memory.truth(line), content(index, place));
            if found != right {
                return Err(format!(
                    "rule 2: line {place} of {} holds {found:x}, not {right:x}, in {handle:?}",
                    key.escape_ascii()
                ));
            }
            if let Some(host) = self.memory.dirty_host(line) {
                return Err(format!(
                    "rule 7: host {host} may write line {place} of {} back, in {handle:?}",
                    key.escape_ascii()
                ));
            }
        }
        Ok(())
    }

    /// A page that was just written to is nobody else's.
    pub(super) fn check_writer(&self, index: usize, handle: Handle) -> Checked {
        let Some(server) = &self.server else {
            return Ok(());
        };
        let pages = &self.instances[index].writable;
        let bytes = pages.iter().find(|page| page.handle == handle).map_or(0, |page| page.bytes);
        let written: BTreeSet<u64> = lines(handle.offset, bytes).collect();
        for entry in server.snapshot.entries.values() {
            let mut others = lines(entry.handle.offset, entry.length.into());
            if entry.handle != handle && others.any(|line| written.contains(&line)) {
                let name = NAMES[index];
                return Err(format!("rule 7: {name} writes to {handle:?}, where a chunk lies"));
            }
        }
        for other in self.instances.iter().flat_map(|instance| &instance.writable) {
            let later = other.handle.generation > handle.generation;
            if later && lines(other.handle.offset, other.bytes).any(|line| written.contains(&line))
            {
                let (name, other) = (NAMES[index], other.handle);
                return Err(format!("rule 7: {name} writes to {handle:?}, granted as {other:?}"));
            }
        }
        Ok(())
    }

    /// What an instance believes to hold, and what the server holds for it, when nothing is on its way.
    pub(super) fn check_books(&self, server: &Server, index: usize) -> Checked {
        let instance = &self.instances[index];
        let Some((wire, session)) = instance.wire.zip(instance.talk.session()) else {
            return Ok(());
        };
        let quiet = self.wires.get(&wire).is_some_and(|wire| {
            wire.to_server.is_empty()
                && wire.to_client.is_empty()
                && wire.session == Some(session.id())
        });
        if !quiet || instance.greeted.is_some() || !instance.talk.is_answered() {
            return Ok(());
        }
        let id = session.id();
        let believed: BTreeMap<Handle, u32> =
            instance.talk.pins().map(|pin| (pin.handle, pin.count)).collect();
        let pins = server.snapshot.pins.iter().filter(|((owner, _), _)| *owner == id);
        let pins: BTreeMap<Handle, u32> = pins.map(|((_, pin), count)| (*pin, *count)).collect();
        // Pins of what is damaged end with the server: nobody else will have those pages.
        let [believed, pins] = [believed, pins].map(|mut pins| {
            pins.retain(|handle, _| !self.is_damaged(*handle));
            pins
        });
        if believed != pins {
            let name = instance.name;
            return Err(format!("rule 5: {name} believes to pin {believed:?}, and pins {pins:?}"));
        }
        let believed: BTreeSet<_> =
            instance.talk.reservations().map(|handle| handle.generation).collect();
        let pages = server.snapshot.pages.values();
        let reserved = pages.filter(|(_, owner)| *owner == Owner::Reserved(id));
        let reserved: BTreeSet<_> = reserved.map(|(generation, _)| *generation).collect();
        if believed != reserved {
            let name = instance.name;
            return Err(format!(
                "rule 5: {name} believes to have reserved {believed:?}, and has {reserved:?}"
            ));
        }
        Ok(())
    }

    /// Everybody is gone, and only what lasts is there.
    pub(super) fn check_nothing_left(&self) -> Checked {
        let Some(server) = &self.server else {
            return Err("no server is left".to_owned());
        };
        let snapshot = &server.snapshot;
        let left = snapshot.pages.values().filter(|(_, owner)| {
            !matches!(owner, Owner::Resident(_) | Owner::Stained(_) | Owner::Damaged)
        });
        let left: Vec<_> = left.collect();
        if !left.is_empty() || !snapshot.pins.is_empty() {
            return Err(format!("rule 6: {left:?} and {:?} are left", snapshot.pins));
        }
        Ok(())
    }
}
