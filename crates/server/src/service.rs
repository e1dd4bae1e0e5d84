//! A server without its sockets, threads and clocks: the directory and its store.
//!
//! Whoever drives it brings connections and the time. What it answers must not be let out before
//! [`Service::settle`] has come back: only then is it stored what the answer tells of.

use maru_directory::{Config, Directory, Geometry, Gone, Look, Millis, ProcessId, Recovery, Tick};
use maru_protocol::{
    FRAME_BYTES_MAX, Handle, Hello, Limits, Refusal, Reply, Request, Secret, SessionId, Topology,
    Visibility, Welcome,
};

use crate::store::{
    self, Beginning, Disk, Durability, Log, PoolIdentity, Progress, Replayed, StoreError, System,
};

/// Records that may gather before they are stored, in bytes.
const RECORDS_MAX: usize = 1 << 20;

/// What a service is told at its start.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// Times, limits and thresholds. The epoch is at least this one.
    pub directory: Config,
    /// The memory the directory hands out.
    pub geometry: Geometry,
    /// The same, as instances are told of it.
    pub topology: Topology,
    /// Writers say checksums.
    pub checksums: bool,
    /// How much a crash may take.
    pub durability: Durability,
    /// Somebody may still write to the pool who was told so by a server that left no store.
    pub may_be_written: bool,
    /// What this runs under.
    pub system: System,
}

/// Why a service cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is of another pool, or of another state of this one.
    #[error("{0}")]
    Mismatch(Mismatch),
    /// The directory cannot be configured so.
    #[error(transparent)]
    Config(#[from] maru_directory::ConfigError),
}

/// How a store does not match its pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// It is of other devices, or of the same in other places or sizes.
    #[error("the store is of another pool: {0}")]
    Pool(String),
    /// The pool was served since, with another store or none.
    #[error("the pool was served in epoch {pool}, the store only knows of epoch {store}")]
    Epoch {
        /// The last epoch that a device was served in.
        pool: u64,
        /// The last one that the store knows of.
        store: u64,
    },
}

/// What was found at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No store was asked for.
    Nothing,
    /// A pool that no server had before.
    NewPool,
    /// A pool that a server had before, and no store. It starts empty.
    StoreGone,
    /// A store that may be behind its pool: what it was told last was not on the disk when the
    /// operating system came down. The pool starts empty.
    StoreBehind,
    /// Entries, and sessions that may come back.
    Store {
        /// Entries.
        entries: u64,
        /// Sessions.
        sessions: u64,
        /// Bytes that a turn had begun to write when the server was killed.
        torn_bytes: u64,
    },
}

/// A server without its sockets, threads and clocks. See the module's description.
#[derive(Debug)]
pub struct Service<D> {
    directory: Directory,
    log: Option<Log<D>>,
    topology: Topology,
    checksums: bool,
}

impl ServiceConfig {
    /// The pool's memory, for its store to know it again.
    #[must_use]
    pub fn identity(&self) -> PoolIdentity {
        let devices = self.topology.devices.iter();
        let identity = |device: &maru_protocol::Device| store::DeviceIdentity {
            uuid: device.uuid,
            offset: device.offset,
            bytes: device.bytes,
        };
        PoolIdentity {
            devices: devices.map(identity).collect(),
            region_bytes: self.geometry.region_bytes,
        }
    }
}

impl<D: Disk> Service<D> {
    /// Opens the store on `disk`, makes the directory again of what is in it, and begins a new epoch.
    /// Without a disk, what there was is forgotten. `pool_epoch` is the last epoch that the pool's
    /// devices were served in.
    pub fn open(
        config: ServiceConfig,
        disk: Option<D>,
        pool_epoch: u64,
        now: Millis,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Self, Found), OpenError> {
        let identity = config.identity();
        let ServiceConfig { topology, checksums, durability, system, geometry, .. } = config;
        let mut directory = config.directory;
        directory.recorded = disk.is_some();
        directory.visibility = topology.visibility;
        directory.epoch = directory.epoch.max(pool_epoch + 1);
        let Some(mut disk) = disk else {
            let mut directory = Directory::new(directory, &geometry, now)?;
            if config.may_be_written {
                directory.withhold(now);
            }
            return Ok((Self { directory, log: None, topology, checksums }, Found::Nothing));
        };
        let (directory, replayed, found) = match store::head(&mut disk)? {
            None => {
                let mut directory = Directory::new(directory, &geometry, now)?;
                if config.may_be_written {
                    directory.withhold(now);
                }
                let found = if pool_epoch > 0 { Found::StoreGone } else { Found::NewPool };
                (directory, Replayed::nothing(&mut disk)?, found)
            }
            Some(head) => {
                check(&head, &identity, pool_epoch).map_err(OpenError::Mismatch)?;
                directory.epoch = directory.epoch.max(head.epoch + 1);
                let mut recovery = Recovery::new(&geometry)?;
                let is_behind =
                    config.may_be_written && !head.fsync && head.system.boot != system.boot;
                let mut replayed = store::replay(&mut disk, &mut recovery, is_behind, progress)?;
                if is_behind {
                    recovery.distrust(topology.visibility);
                    replayed.discard();
                } else if head.system != system {
                    recovery.forget_processes();
                }
                let directory = recovery.finish(directory, now).map_err(StoreError::Records)?;
                let found = Found::Store {
                    entries: directory.counters().recovered,
                    sessions: directory.sessions_awaited(),
                    torn_bytes: replayed.torn_bytes,
                };
                (directory, replayed, if is_behind { Found::StoreBehind } else { found })
            }
        };
        let epoch = directory.config().epoch;
        let hosts = directory.config().visibility == Visibility::CacheLine;
        let beginning = Beginning { pool: identity, epoch, system, durability, hosts };
        let log = Some(Log::begin(disk, &replayed, beginning, &directory)?);
        Ok((Self { directory, log, topology, checksums }, found))
    }

    /// The directory, to look at.
    #[must_use]
    pub const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The directory, to plant faults in.
    #[cfg(feature = "plant")]
    pub fn directory_mut(&mut self) -> &mut Directory {
        &mut self.directory
    }

    /// The store's log.
    pub fn log(&mut self) -> Option<&mut Log<D>> {
        self.log.as_mut()
    }

    /// The life of the directory.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.directory.config().epoch
    }

    /// Stores all that changed. When this is back, what was answered so far may be let out. After an
    /// error it must never be: the server has to end, and to start from what is stored.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        if self.directory.records_len() == 0 { Ok(()) } else { self.store() }
    }

    fn store(&mut self) -> Result<(), StoreError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        if self.directory.records_len() > 0 {
            let hosts = self.directory.hosts_len();
            log.append(&self.directory.take_records(), hosts)?;
        }
        log.keep_up(&self.directory)?;
        self.directory.set_store_full(log.is_full());
        Ok(())
    }

    /// Stores all, so that it outlives the operating system. Nothing may change any more.
    pub fn close(&mut self) -> Result<(), StoreError> {
        self.settle()?;
        self.log.as_mut().map_or(Ok(()), Log::close)
    }

    /// Opens a session, or goes on with one. See [`Directory::hello`].
    pub fn hello(
        &mut self,
        now: Millis,
        hello: &Hello<'_>,
        fresh: Secret,
        process: Option<ProcessId>,
    ) -> Result<Welcome, Refusal> {
        let opened = self.directory.hello(now, hello, fresh, process)?;
        let config = self.directory.config();
        Ok(Welcome {
            session: opened.session,
            secret: opened.secret,
            standing: opened.standing,
            epoch: config.epoch,
            limits: Limits {
                lease_ms: config.lease_ms,
                resume_ms: config.resume_ms,
                frame_bytes_max: FRAME_BYTES_MAX,
                batch_max: config.batch_max,
                window: config.window,
            },
            checksums: self.checksums,
            topology: self.topology.clone(),
        })
    }

    /// Answers one request of a session.
    pub fn apply(
        &mut self,
        now: Millis,
        session: SessionId,
        request: &Request<'_>,
    ) -> Result<Reply, StoreError> {
        let reply = self.directory.apply(now, session, request);
        if self.directory.records_len() > RECORDS_MAX {
            self.store()?;
        }
        Ok(reply)
    }

    /// The session's connection is gone.
    pub fn disconnected(&mut self, now: Millis, session: SessionId) {
        self.directory.disconnected(now, session);
    }

    /// The process behind a session is dead. Says whether the session had not ended by itself.
    pub fn writer_dead(&mut self, now: Millis, session: SessionId) -> bool {
        self.directory.writer_dead(now, session)
    }

    /// Has the quarantines of writers begin anew whose process `is_stopped`.
    pub fn look_at_vanished(&mut self, now: Millis, is_stopped: impl Fn(ProcessId) -> bool) {
        let vanished = self.directory.vanished_processes();
        let stopped = vanished.filter(|(_, process)| is_stopped(*process));
        let stopped: Vec<SessionId> = stopped.map(|(session, _)| session).collect();
        for session in stopped {
            self.directory.writer_stopped(now, session);
        }
    }

    /// The death of the process behind a session would not be seen after all.
    pub fn process_lost(&mut self, session: SessionId) {
        self.directory.process_lost(session);
    }

    /// Lets time pass, and stores what came of that.
    pub fn tick(&mut self, now: Millis) -> Result<Tick, StoreError> {
        let tick = self.directory.tick(now);
        self.store()?;
        Ok(tick)
    }

    /// From now on the session is told what leaves the directory.
    pub fn watch(&mut self, session: SessionId, secret: Secret) -> Result<(), Refusal> {
        self.directory.watch(session, secret)
    }

    /// The session watches no more.
    pub fn unwatch(&mut self, session: SessionId) {
        self.directory.unwatch(session);
    }

    /// The chunks that left since this was called last.
    pub fn take_gone(&mut self) -> Vec<Gone> {
        self.directory.take_gone()
    }

    /// The next chunk whose bytes are to be looked at. See [`Directory::next_look`].
    pub fn next_look(&mut self, all: bool) -> Option<Look> {
        self.directory.next_look(all)
    }

    /// A chunk was found bad. See [`Directory::condemn`].
    pub fn condemn(&mut self, handle: Handle) -> Option<Box<[u8]>> {
        self.directory.condemn(handle)
    }
}

/// Whether a store is of this pool, as it is now.
fn check(head: &store::Head, pool: &PoolIdentity, pool_epoch: u64) -> Result<(), Mismatch> {
    if head.pool != *pool {
        return Err(Mismatch::Pool(differences(&head.pool, pool).join("; ")));
    }
    if pool_epoch > head.epoch {
        return Err(Mismatch::Epoch { pool: pool_epoch, store: head.epoch });
    }
    Ok(())
}

/// How the pool that a store is of differs from the one that is there, in words.
pub(crate) fn differences(stored: &PoolIdentity, found: &PoolIdentity) -> Vec<String> {
    let mut differences = Vec::new();
    for device in &stored.devices {
        let uuid = device.uuid;
        match found.devices.iter().find(|other| other.uuid == uuid) {
            None => differences.push(format!("device {uuid} is not there")),
            Some(now) if now.bytes != device.bytes => {
                let (was, is) = (device.bytes, now.bytes);
                differences.push(format!("device {uuid} had {was} bytes and has {is}"));
            }
            Some(now) if now.offset != device.offset => {
                differences.push(format!("device {uuid} lies elsewhere among the others"));
            }
            Some(_) => {}
        }
    }
    let new = found.devices.iter().map(|device| device.uuid);
    let new = new.filter(|uuid| !stored.devices.iter().any(|device| device.uuid == *uuid));
    differences.extend(new.map(|uuid| format!("device {uuid} is new")));
    if stored.region_bytes != found.region_bytes {
        let (was, is) = (stored.region_bytes, found.region_bytes);
        differences.push(format!("regions had {was} bytes and have {is}"));
    }
    differences
}
