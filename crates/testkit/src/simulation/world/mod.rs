//! The world: servers, instances, what is between them, and who sees all of it.

mod checks;
mod servers;
mod wires;

use std::collections::{BTreeMap, BTreeSet};

use maru_directory::{Millis, ProcessId};
use maru_protocol::{Refusal, SessionId};

use self::servers::Server;
use self::wires::Wire;
use super::instance::{Instance, Surroundings};
use super::memory::{LINE_BYTES, Memory};
use super::plan::{Act, HOSTS, INSTANCES, Setup, Step};
use super::{Plant, Seen};
use crate::MemoryDisk;

const LEASE_MS: u64 = 1000;
const RESUME_MS: u64 = 100;
const QUARANTINE_MS: u64 = 1500;
const TICK_MS: u64 = 50;

/// The pool: two regions, of four pages each or two.
const POOL_BYTES: u64 = 4 << 20;

const NAMES: [&str; INSTANCES] = ["a", "b", "c"];
const HOST_NAMES: [&str; HOSTS] = ["moon", "mars"];

/// What is wrong, in words.
type Checked<T = ()> = Result<T, String>;

#[derive(Debug)]
pub(super) struct World {
    setup: Setup,
    plant: Option<Plant>,
    now: u64,
    next_tick: u64,
    memory: Memory,
    disk: MemoryDisk,
    disk_full: bool,
    server: Option<Server>,
    /// The last epoch that the pool's devices were served in.
    pool_epoch: u64,
    /// How often the host of the server came down.
    boots: u64,
    instances: Vec<Instance>,
    wires: BTreeMap<u64, Wire>,
    last_wire: u64,
    processes: u64,
    secrets: u8,
    /// Processes that died where the server would see it, and has not.
    dead_unseen: Vec<ProcessId>,
    damaged_lines: BTreeSet<u64>,
    seen: Seen,
}

impl World {
    pub(super) fn new(setup: Setup, plant: Option<Plant>) -> Self {
        let mut memory = Memory::new(setup.visibility, HOSTS);
        memory.chunks_unpublished = plant == Some(Plant::MissingFlush);
        memory.chunks_unacquired = plant == Some(Plant::MissingInvalidate);
        let mut world = Self {
            setup,
            plant,
            now: 0,
            next_tick: 0,
            memory,
            disk: MemoryDisk::default(),
            disk_full: false,
            server: None,
            pool_epoch: 0,
            boots: 0,
            instances: Vec::new(),
            wires: BTreeMap::new(),
            last_wire: 0,
            processes: 0,
            secrets: 0,
            dead_unseen: Vec::new(),
            damaged_lines: BTreeSet::new(),
            seen: Seen::default(),
        };
        for (name, host) in NAMES.into_iter().zip(setup.hosts) {
            let process = world.next_process();
            world.instances.push(Instance::new(name, host, process));
        }
        world.start_server().expect("the setup is legal");
        world
    }

    fn next_process(&mut self) -> ProcessId {
        self.processes += 1;
        let pid = u32::try_from(self.processes).expect("few processes");
        ProcessId { pid, started: self.processes }
    }

    /// One step, and all checks.
    pub(super) fn step(&mut self, step: Step) -> Checked {
        let of = |instance: u8| usize::from(instance) % INSTANCES;
        match step {
            Step::Pass(ms) => self.pass(u64::from(ms))?,
            Step::Act { instance, act, choice } => self.act(of(instance), act, choice)?,
            Step::ToServer(instance) => drop(self.arrive_at_server(of(instance))?),
            Step::ToClient(instance) => drop(self.arrive_at_client(of(instance))?),
            Step::Converse(instance) => self.converse(of(instance))?,
            Step::Cut { instance, lossy } => self.cut(of(instance), lossy),
            Step::Partition(instance) => self.instances[of(instance)].partitioned = true,
            Step::Heal(instance) => self.instances[of(instance)].partitioned = false,
            Step::Kill(instance) => self.kill(of(instance)),
            Step::SeeDeaths => self.see_deaths()?,
            Step::Stop(instance) => {
                self.instances[of(instance)].stopped.get_or_insert(self.now);
            }
            Step::Continue(instance) => self.instances[of(instance)].stopped = None,
            Step::KillServer => self.kill_server(),
            Step::StartServer => self.start_server()?,
            Step::CrashHost => self.crash_host(),
            Step::LoseStore => self.lose_store(),
            Step::DiskFull(full) => self.fill_disk(full),
            Step::Disturb { host, how, choice } => {
                let line = u64::from(choice) % (POOL_BYTES / LINE_BYTES);
                self.memory.disturb(usize::from(host) % HOSTS, how, choice.into(), line);
            }
            Step::Damage(choice) => self.damage(choice),
            Step::Scrub => self.scrub()?,
            Step::Inspect => self.inspect()?,
        }
        self.check_all_sides()
    }

    fn pass(&mut self, ms: u64) -> Checked {
        let end = self.now + ms;
        while self.next_tick <= end {
            self.now = self.now.max(self.next_tick);
            self.next_tick += TICK_MS;
            self.tick()?;
        }
        self.now = end;
        Ok(())
    }

    fn tick(&mut self) -> Checked {
        let now = Millis(self.now);
        loop {
            let Some(server) = &mut self.server else {
                return Ok(());
            };
            let stopped: BTreeSet<u32> = self
                .instances
                .iter()
                .filter(|instance| instance.stopped.is_some())
                .map(|instance| instance.process.pid)
                .collect();
            let seen = std::cell::RefCell::new(Vec::new());
            server.service.look_at_vanished(now, |process| {
                let is_stopped = stopped.contains(&process.pid);
                seen.borrow_mut().extend(is_stopped.then_some(process.pid));
                is_stopped
            });
            let seen = seen.into_inner();
            for instance in self.instances.iter_mut().filter(|one| seen.contains(&one.process.pid))
            {
                instance.seen_stopped(self.now, QUARANTINE_MS);
            }
            let tick = server.service.tick(now).map_err(|error| error.to_string())?;
            if let Some(violation) = tick.violation {
                return Err(violation.to_string());
            }
            if self.plant == Some(Plant::QuarantineSkipped) {
                let vanished: Vec<SessionId> =
                    server.service.directory().vanished_sessions().collect();
                for session in vanished {
                    // The checks are told so, too: what finds it is that the writer goes on.
                    server.gone.insert(session);
                    server.service.writer_dead(now, session);
                }
            }
            for session in tick.expired {
                self.hang_up(session, Some(Refusal::SessionEnded));
            }
            self.check_server(None)?;
            if !tick.more {
                break;
            }
        }
        for index in 0..INSTANCES {
            let instance = &mut self.instances[index];
            if instance.stopped.is_none()
                && instance.wire.is_some()
                && instance.beat_is_due(self.now)
            {
                let frames = instance.beat(self.now);
                self.send_all(index, frames);
            }
        }
        Ok(())
    }

    fn act(&mut self, index: usize, act: Act, choice: u8) -> Checked {
        if self.instances[index].stopped.is_some() {
            return Ok(());
        }
        if self.instances[index].wire.is_none() {
            self.connect(index);
        }
        let now = self.now;
        let (instance, mut around) = self.around(index);
        let mut verdict = None;
        let mut written = None;
        let act = if act == Act::GoOn { instance.next_act(choice) } else { act };
        let frames = match act {
            Act::GoOn | Act::Connect => Vec::new(),
            Act::Reserve => Vec::from_iter(instance.reserve(&around, choice)),
            Act::Write => {
                written = instance.write(&mut around, choice);
                Vec::new()
            }
            Act::Commit => Vec::from_iter(instance.commit(&mut around, choice)),
            Act::DropWritable => {
                instance.drop_writable(around.memory, choice);
                Vec::new()
            }
            Act::Acquire => Vec::from_iter(instance.acquire(now, choice)),
            Act::Read => {
                let (read, frame) = instance.read(&mut around, choice);
                verdict = read;
                Vec::from_iter(frame)
            }
            Act::Flush => instance.flush(now),
            Act::DropReadable => {
                instance.drop_readable(choice);
                Vec::new()
            }
            Act::Delete => Vec::from_iter(instance.delete(now, choice)),
            Act::Look => Vec::from_iter(instance.look(now, choice)),
            Act::Touch => Vec::from_iter(instance.touch(now, choice)),
            Act::Beat => instance.beat(now),
            Act::GiveUpWaiting => {
                instance.give_up_waiting(choice);
                Vec::new()
            }
            Act::Leave => {
                let frame = instance.leave(now, around.memory);
                self.leave(index, frame);
                return Ok(());
            }
        };
        self.send_all(index, frames);
        if let Some(handle) = written {
            self.check_writer(index, handle)?;
        }
        verdict.map_or(Ok(()), |verdict| self.judge(index, verdict))
    }

    fn around(&mut self, index: usize) -> (&mut Instance, Surroundings<'_>) {
        let instance = &mut self.instances[index];
        let around = Surroundings {
            now: self.now,
            setup: self.setup,
            memory: &mut self.memory,
            quarantine_ms: QUARANTINE_MS,
        };
        (instance, around)
    }

    /// The instance's process ends in good order; another takes its place.
    fn leave(&mut self, index: usize, goodbye: Option<Vec<u8>>) {
        self.send_all(index, goodbye);
        self.end_process(index);
    }

    fn kill(&mut self, index: usize) {
        self.seen.killed += 1;
        self.end_process(index);
    }

    fn end_process(&mut self, index: usize) {
        let process = self.next_process();
        let instance = &mut self.instances[index];
        if let Some(wire) = instance.wire.and_then(|wire| self.wires.get_mut(&wire)) {
            wire.to_server.push_back(None);
            wire.to_client.clear();
        }
        if instance.host == 0 {
            self.dead_unseen.push(instance.process);
        }
        *instance = Instance::new(instance.name, instance.host, process);
    }

    fn damage(&mut self, choice: u8) {
        if !self.setup.checksums {
            return;
        }
        let line = u64::from(choice) % (POOL_BYTES / LINE_BYTES);
        self.memory.damage(line);
        self.damaged_lines.insert(line);
    }

    /// Everything is mended, everybody leaves, and time passes: nothing may be left.
    pub(super) fn end(mut self) -> Checked<Seen> {
        self.fill_disk(false);
        self.start_server()?;
        for index in 0..INSTANCES {
            let instance = &mut self.instances[index];
            (instance.partitioned, instance.stopped) = (false, None);
            // Twice: the first may only see that a connection is gone.
            for _ in 0..3 {
                self.act(index, Act::Beat, 0)?;
                self.converse(index)?;
            }
        }
        for index in 0..INSTANCES {
            while !self.instances[index].writable.is_empty() {
                self.act(index, Act::DropWritable, 0)?;
            }
            self.act(index, Act::Leave, 0)?;
            self.converse(index)?;
            self.see_deaths()?;
        }
        for _ in 0..2 {
            let long = LEASE_MS + QUARANTINE_MS;
            self.pass(long + TICK_MS)?;
        }
        // A bounded part a tick.
        for _ in 0..64 {
            self.pass(TICK_MS)?;
        }
        self.check_all_sides()?;
        self.inspect()?;
        self.check_nothing_left()?;
        if let Some(server) = self.server.take() {
            self.book(&server);
        }
        Ok(self.seen)
    }
}
