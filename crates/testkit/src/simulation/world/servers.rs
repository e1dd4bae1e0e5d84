//! Servers: they are started, killed, look at bytes, see who died.

use std::collections::{BTreeMap, BTreeSet};

use maru_directory::rules::Snapshot;
use maru_directory::{Config, DeviceSpan, Geometry, Look, Millis, ProcessId};
use maru_protocol::{Device, SessionId, Topology, Visibility};
use maru_server::service::{Service, ServiceConfig};
use maru_server::store::{Durability, System};
use uuid::Uuid;

use super::super::Plant;
use super::super::instance::{Instance, checksum};
use super::super::memory::lines;
use super::super::plan::INSTANCES;
use super::{Checked, LEASE_MS, POOL_BYTES, QUARANTINE_MS, RESUME_MS, World};
use crate::MemoryDisk;

/// A server that runs.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) service: Service<MemoryDisk>,
    /// The wire of each session that has one.
    pub(super) wires: BTreeMap<SessionId, u64>,
    /// The process behind each session, if the server would see it die.
    pub(super) processes: BTreeMap<SessionId, ProcessId>,
    /// Sessions that said, or are known, to write no more.
    pub(super) gone: BTreeSet<SessionId>,
    /// What it was after the last step.
    pub(super) snapshot: Snapshot,
    /// Requests that came, to tell those that come again.
    pub(super) heard: BTreeSet<(SessionId, u64)>,
}

impl Server {
    /// Whether nothing is granted, since what sessions of before hold is not known.
    pub(super) fn is_withholding(&self, now: u64) -> bool {
        self.service.directory().withheld_ms(Millis(now)) > 0
    }
}

impl World {
    pub(super) fn kill_server(&mut self) {
        let Some(server) = self.server.take() else { return };
        self.book(&server);
        self.disk = self.disk.image();
        self.fill_disk(self.disk_full);
        for wire in self.wires.values_mut() {
            // What was sent is still there to be read.
            wire.session = None;
            wire.to_server.clear();
            wire.to_client.push_back(None);
        }
        let live: BTreeSet<u64> = self.instances.iter().filter_map(|one| one.wire).collect();
        self.wires.retain(|wire, _| live.contains(wire));
    }

    pub(super) fn fill_disk(&mut self, full: bool) {
        self.disk_full = full;
        self.disk.set_capacity(full.then_some(0));
    }

    pub(super) fn crash_host(&mut self) {
        self.kill_server();
        self.disk = self.disk.durable_image();
        self.fill_disk(self.disk_full);
        self.boots += 1;
        for index in 0..INSTANCES {
            if self.instances[index].host == 0 {
                self.kill(index);
            }
        }
        // Nobody is left to see these.
        self.dead_unseen.clear();
        self.memory.lose_caches(0);
        self.seen.hosts_down += 1;
        if self.setup.durability != Durability::Fsync {
            self.instances.iter_mut().for_each(Instance::be_forgotten);
        }
    }

    pub(super) fn lose_store(&mut self) {
        // Between incoherent hosts, nobody knows any more which caches may hold what.
        if self.setup.visibility == Visibility::Coherent {
            self.kill_server();
            self.disk.erase();
            self.instances.iter_mut().for_each(Instance::be_forgotten);
        }
    }

    /// Counts what a server has done.
    pub(super) fn book(&mut self, server: &Server) {
        let counters = server.service.directory().counters();
        self.seen.committed += counters.committed;
        self.seen.evicted += counters.evicted();
        self.seen.replayed += counters.replays;
        self.seen.restored += counters.sessions_restored;
        self.seen.quarantined += counters.quarantined;
        self.seen.damaged += counters.damaged;
    }

    pub(super) fn config(&self) -> ServiceConfig {
        let device =
            Device { uuid: Uuid::from_u128(1), path: String::new(), offset: 0, bytes: POOL_BYTES };
        let span = DeviceSpan { offset: 0, bytes: POOL_BYTES, reserved: 0 };
        ServiceConfig {
            directory: Config {
                lease_ms: LEASE_MS,
                resume_ms: RESUME_MS,
                quarantine_ms: QUARANTINE_MS,
                window: if self.plant.is_some() { 1 << 20 } else { 16 },
                batch_max: 4,
                watermark_high_permille: 1000,
                watermark_low_permille: 1000,
                work_per_tick: 2,
                ..Config::default()
            },
            geometry: Geometry { devices: vec![span], region_bytes: 2 << 20 },
            topology: Topology {
                address_space_bytes: POOL_BYTES,
                visibility: self.setup.visibility,
                devices: vec![device],
            },
            checksums: self.setup.checksums,
            durability: self.setup.durability,
            may_be_written: self.pool_epoch > 0,
            system: System { boot: self.boots.to_string(), processes: String::new() },
        }
    }

    pub(super) fn start_server(&mut self) -> Checked {
        if self.server.is_some() {
            return Ok(());
        }
        let open = Service::open(
            self.config(),
            Some(self.disk.clone()),
            self.pool_epoch,
            Millis(self.now),
            &mut |_| {},
        );
        let (service, _) = match open {
            Ok(opened) => opened,
            Err(_) if self.disk_full => {
                self.seen.disk_full += 1;
                return Ok(());
            }
            Err(error) => return Err(format!("a server does not start: {error}")),
        };
        self.seen.restarts += u64::from(self.pool_epoch > 0);
        self.pool_epoch = service.epoch();
        if self.plant == Some(Plant::AcknowledgedBeforeStored) {
            self.disk.hold_writes();
        }
        let snapshot = Snapshot::of(service.directory());
        let processes: BTreeMap<SessionId, ProcessId> =
            service.directory().processes_before().into_iter().collect();
        let living: BTreeSet<u32> = self.instances.iter().map(|one| one.process.pid).collect();
        let dead = processes.iter().filter(|(_, process)| !living.contains(&process.pid));
        let dead: Vec<SessionId> = dead.map(|(session, _)| *session).collect();
        self.server = Some(Server {
            service,
            wires: BTreeMap::new(),
            processes,
            gone: BTreeSet::new(),
            snapshot,
            heard: BTreeSet::new(),
        });
        self.next_tick = self.now;
        for session in dead {
            self.writer_dead(session)?;
        }
        Ok(())
    }

    pub(super) fn see_deaths(&mut self) -> Checked {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let dead = std::mem::take(&mut self.dead_unseen);
        let sessions = server.processes.iter();
        let sessions = sessions.filter(|(_, process)| dead.contains(process));
        let sessions: Vec<SessionId> = sessions.map(|(session, _)| *session).collect();
        for session in sessions {
            self.writer_dead(session)?;
        }
        Ok(())
    }

    pub(super) fn writer_dead(&mut self, session: SessionId) -> Checked {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        server.processes.remove(&session);
        server.gone.insert(session);
        server.service.writer_dead(Millis(self.now), session);
        self.hang_up(session, None);
        self.settle_and_check(None)
    }

    pub(super) fn scrub(&mut self) -> Checked {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let Some(Look { handle, length, checksum: expected }) = server.service.next_look(true)
        else {
            return Ok(());
        };
        let all = lines(handle.offset, length);
        self.memory.acquire(0, all.clone());
        let found: Vec<u64> = all.clone().map(|line| self.memory.load(0, line)).collect();
        if expected.is_some_and(|expected| expected != checksum(&found)) {
            if !all.clone().any(|line| self.damaged_lines.contains(&line)) {
                return Err(format!("the scrubber condemns {handle:?}, which is as it was"));
            }
            server.service.condemn(handle);
            return self.settle_and_check(None);
        }
        Ok(())
    }

    /// Stores what changed, then checks.
    pub(super) fn settle_and_check(&mut self, actor: Option<SessionId>) -> Checked {
        if let Some(server) = &mut self.server {
            server.service.settle().map_err(|error| error.to_string())?;
        }
        self.check_server(actor)
    }
}
