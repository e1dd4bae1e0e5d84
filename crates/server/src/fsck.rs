//! Whether a pool and its store fit each other, and what can be kept if they do not.
//!
//! While this looks, no server has the pool. Looking changes nothing; [`Fsck::repair`] writes a new
//! store, and puts it in the place of the old one, which is kept beside it. Rather than hand out a
//! chunk whose page may be another's by now, it forgets it: it is a cache. Chunks whose bytes were held
//! against their checksums are kept in any case.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use maru_directory::{Config, DeviceSpan, Geometry, Millis, PageAt, Recovery};
use maru_memory::{MappingError, PoolMapping};
use maru_protocol::{Checksum, Visibility};
use rustix::fs::{CWD, RenameFlags};
use serde::Serialize;

use crate::pool::{Devices, Pool};
use crate::service::differences;
use crate::store::{
    self, Beginning, Durability, FileDisk, Head, Log, PoolIdentity, Progress, Replayed, StoreError,
};
use crate::{StartError, process};

/// What is to be looked at.
#[derive(Debug, Clone)]
pub struct FsckConfig {
    /// The pool's devices, in their order.
    pub devices: Vec<PathBuf>,
    /// Its store; `None` for where a server has it if nobody says otherwise.
    pub store: Option<PathBuf>,
    /// All bytes of the pool that are of use are read, and held against their checksums.
    pub verify: bool,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// The store is read.
    ReadingStore,
    /// The pool is read.
    ReadingPool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Examined {
    /// Where the store is, or would be.
    pub store: PathBuf,
    /// The last epoch that the pool was served in; 0 for none.
    pub pool_epoch: u64,
    /// The last epoch that the store knows of, if there is one.
    pub store_epoch: Option<u64>,
    /// Chunks that the store knows of.
    pub entries: u64,
    /// Those of them whose bytes were held against their checksum, and are right.
    pub verified: u64,
    /// Those of them that can be kept.
    pub kept: u64,
    /// What does not fit.
    pub findings: Vec<Finding>,
}

impl Examined {
    /// Whether there is anything to repair.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Something that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// The store is of other devices, or of the same in other places or sizes.
    OtherDevices {
        /// How they differ.
        differences: Vec<String>,
        /// Chunks in memory that is not there.
        lost: u64,
    },
    /// The pool was served without this store.
    ServedSince {
        /// In this epoch.
        pool_epoch: u64,
        /// The last one that the store knows of.
        store_epoch: u64,
    },
    /// The operating system came down while the pool was served, and what the store was told last may
    /// not have been on the disk.
    SystemDown,
    /// Parts of the store cannot be read.
    Corrupt {
        /// Which, and why.
        problems: Vec<String>,
    },
    /// Chunks are recorded twice.
    Doubles {
        /// How many.
        entries: u64,
    },
    /// Chunks are not what was committed.
    WrongBytes {
        /// How many.
        entries: u64,
    },
    /// Chunks cannot be read.
    Unreadable {
        /// How many.
        entries: u64,
    },
}

impl Finding {
    /// Whether only chunks that were found right can be kept.
    #[must_use]
    pub const fn is_of_distrust(&self) -> bool {
        matches!(self, Self::ServedSince { .. } | Self::SystemDown | Self::Corrupt { .. })
    }

    /// What a repair does about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::OtherDevices { .. } => "keep the chunks whose memory is still there",
            Self::ServedSince { .. } | Self::SystemDown | Self::Corrupt { .. } => {
                "keep only chunks that --verify has found right"
            }
            Self::Doubles { .. } => "keep the later of the two",
            Self::WrongBytes { .. } => "forget them",
            Self::Unreadable { .. } => "forget them, and use their pages no more",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherDevices { differences, lost } => {
                let differences = differences.join("; ");
                write!(
                    f,
                    "the store is of another pool: {differences}; chunks that lay there: {lost}"
                )
            }
            Self::ServedSince { pool_epoch, store_epoch } => write!(
                f,
                "the pool was served in epoch {pool_epoch}, the store only knows of epoch \
                 {store_epoch}: its chunks may be overwritten"
            ),
            Self::SystemDown => f.write_str(
                "the operating system came down while the pool was served, and without \
                 --durability=fsync the store may not know all of it",
            ),
            Self::Corrupt { problems } => {
                write!(f, "the store cannot all be read: {}", problems.join("; "))
            }
            Self::Doubles { entries } => write!(f, "chunks that are recorded twice: {entries}"),
            Self::WrongBytes { entries } => {
                write!(f, "chunks whose bytes are not those that were committed: {entries}")
            }
            Self::Unreadable { entries } => write!(f, "chunks that cannot be read: {entries}"),
        }
    }
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Chunks that were kept.
    pub kept: u64,
    /// Where the old store is.
    pub before: PathBuf,
}

/// A pool that no server has, and its store.
#[derive(Debug)]
pub struct Fsck {
    examined: Examined,
    /// What it can be made again of, if there is anything.
    stored: Option<Stored>,
}

#[derive(Debug)]
struct Stored {
    path: PathBuf,
    recovery: Recovery,
    head: Head,
    pool: Pool,
    may_be_written: bool,
}

impl Fsck {
    /// Looks at a pool and its store; changes nothing.
    pub fn look(
        config: &FsckConfig,
        progress: &mut dyn FnMut(Doing, Progress),
    ) -> Result<Self, StartError> {
        let devices = Devices::open_all(&config.devices)?;
        let path = config.store.clone().unwrap_or_else(|| devices.default_store());
        let mut examined = Examined {
            store: path.clone(),
            pool_epoch: devices.epoch(),
            store_epoch: None,
            entries: 0,
            verified: 0,
            kept: 0,
            findings: Vec::new(),
        };
        if !path.is_dir() {
            return Ok(Self { examined, stored: None });
        }
        let failed = |source| StartError::Store { store: path.clone(), source };
        let io = |source| failed(StoreError::Io { what: "open", source });
        let mut disk = FileDisk::open(&path, false).map_err(io)?;
        let head = match store::head(&mut disk) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(Self { examined, stored: None }),
            Err(error @ StoreError::Io { .. }) => return Err(failed(error)),
            // Not even whose it is can be read.
            Err(error) => {
                examined.findings.push(Finding::Corrupt { problems: vec![error.to_string()] });
                return Ok(Self { examined, stored: None });
            }
        };
        examined.store_epoch = Some(head.epoch);
        let may_be_written = devices.may_be_written();
        let pool = devices.into_pool(Some(head.pool.region_bytes), visibility(&head));
        let mut recovery = Recovery::new(&geometry_of(&head.pool, &pool))?;
        let tell = &mut |at| progress(Doing::ReadingStore, at);
        let replayed = store::replay(&mut disk, &mut recovery, true, tell).map_err(failed)?;
        examined.entries = recovery.found().count() as u64;
        let mut stored = Stored { path, recovery, head, pool, may_be_written };
        stored.examine(&mut examined, &replayed, config.verify, &mut |at| {
            progress(Doing::ReadingPool, at);
        })?;
        examined.kept = stored.recovery.found().count() as u64;
        Ok(Self { examined, stored: Some(stored) })
    }

    /// What was found.
    #[must_use]
    pub const fn examined(&self) -> &Examined {
        &self.examined
    }

    /// Has all be done that the findings say. `None` if there is nothing to do.
    pub fn repair(self) -> Result<Option<Repaired>, StartError> {
        if self.examined.is_sound() {
            return Ok(None);
        }
        let Examined { store, kept, pool_epoch, .. } = self.examined;
        let (made, before) = (beside(&store, "repaired"), beside(&store, "before-repair"));
        if let Some(stored) = self.stored {
            let epoch = stored.head.epoch.max(pool_epoch) + 1;
            remove(&made)?;
            stored.write(epoch, &made)?;
            // At no moment is there no store.
            rename(&made, &store, RenameFlags::EXCHANGE)?;
            remove(&before)?;
            rename(&made, &before, RenameFlags::empty())?;
        } else {
            remove(&before)?;
            rename(&store, &before, RenameFlags::empty())?;
        }
        Ok(Some(Repaired { kept, before }))
    }
}

impl Stored {
    fn examine(
        &mut self,
        examined: &mut Examined,
        replayed: &Replayed,
        verify: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), StartError> {
        let findings = &mut examined.findings;
        let system = process::system();
        if !replayed.problems.is_empty() {
            let problems = replayed.problems.iter().map(ToString::to_string).collect();
            findings.push(Finding::Corrupt { problems });
        }
        let (pool_epoch, store_epoch) = (examined.pool_epoch, self.head.epoch);
        if pool_epoch > store_epoch {
            findings.push(Finding::ServedSince { pool_epoch, store_epoch });
        }
        if self.head.is_behind(&system, self.may_be_written) {
            findings.push(Finding::SystemDown);
        }
        let trusted = findings.is_empty();
        let doubles = self.recovery.forget_doubles();
        if doubles > 0 {
            findings.push(Finding::Doubles { entries: doubles });
        }
        let present = self.pool.identity();
        if present != self.head.pool {
            let before = self.recovery.found().count();
            self.move_to(&present)?;
            let lost = (before - self.recovery.found().count()) as u64;
            let differences = differences(&self.head.pool, &present);
            findings.push(Finding::OtherDevices { differences, lost });
        }
        let verified = if verify { self.verify(findings, progress)? } else { BTreeSet::new() };
        examined.verified = verified.len() as u64;
        if !trusted {
            let keep = |page: PageAt| verified.contains(&page);
            self.recovery.distrust(self.head.visibility, self.may_be_written, keep);
        } else if self.head.system != system {
            self.recovery.forget_processes();
        }
        Ok(())
    }

    fn move_to(&mut self, present: &PoolIdentity) -> Result<(), StartError> {
        let before = &self.head.pool.devices;
        let moved = |offset: u64| {
            let within = |one: &&store::DeviceIdentity| {
                (one.offset..one.offset + one.bytes).contains(&offset)
            };
            let old = before.iter().find(within)?;
            let same =
                |new: &&store::DeviceIdentity| new.uuid == old.uuid && new.bytes == old.bytes;
            Some(present.devices.iter().find(same)?.offset + (offset - old.offset))
        };
        let (visibility, may_be_written) = (self.head.visibility, self.may_be_written);
        let moved = self.recovery.move_to(&self.pool.geometry, visibility, may_be_written, moved);
        moved.map_err(|error| StartError::Store {
            store: self.path.clone(),
            source: StoreError::Records(error),
        })
    }

    /// Reads what is of use. Returns the pages of the chunks that were held against their checksums.
    fn verify(
        &mut self,
        findings: &mut Vec<Finding>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<BTreeSet<PageAt>, StartError> {
        let mapping = self.pool.mapping()?;
        let chunks: Vec<_> = self
            .recovery
            .found()
            .map(|one| (one.page, one.offset, one.length, one.checksum))
            .collect();
        let total = chunks.iter().map(|(_, _, length, _)| length).sum();
        let mut done = 0;
        let mut read = |offset, bytes| {
            done += bytes;
            let found = read(&mapping, offset, bytes);
            progress(Progress { done, total });
            found
        };
        let (mut verified, mut wrong, mut unreadable) = (BTreeSet::new(), 0, 0);
        for (page, offset, length, expected) in chunks {
            match (read(offset, length)?, expected) {
                (None, _) => {
                    unreadable += 1;
                    self.recovery.condemn(page);
                }
                (Some(found), Some(expected)) if found != expected => {
                    wrong += 1;
                    self.recovery.forget(page);
                }
                (Some(_), Some(_)) => drop(verified.insert(page)),
                (Some(_), None) => {}
            }
        }
        let counted = [
            (wrong, Finding::WrongBytes { entries: wrong }),
            (unreadable, Finding::Unreadable { entries: unreadable }),
        ];
        findings.extend(counted.into_iter().filter(|(count, _)| *count > 0).map(|(_, one)| one));
        Ok(verified)
    }

    /// Writes a new store.
    fn write(self, epoch: u64, path: &Path) -> Result<(), StartError> {
        let Self { recovery, head, pool, .. } = self;
        let failed = |source| StartError::Store { store: path.to_owned(), source };
        let config =
            Config { epoch, recorded: true, visibility: head.visibility, ..Config::default() };
        let mut directory = recovery
            .finish(config, Millis(0))
            .map_err(|error| failed(StoreError::Records(error)))?;
        let disk = FileDisk::open(path, true);
        let disk = disk.map_err(|source| failed(StoreError::Io { what: "make", source }))?;
        let durability = if head.fsync { Durability::Fsync } else { Durability::Process };
        let (pool, system, visibility) = (pool.identity(), process::system(), head.visibility);
        let beginning = Beginning { pool, epoch, system, durability, visibility };
        let log = Log::begin(disk, &Replayed::default(), beginning, &directory);
        let mut log = log.map_err(failed)?;
        // What came of making it again is in what the log began with.
        drop(directory.take_records());
        log.append_all(&directory).map_err(failed)?;
        log.close().map_err(failed)
    }
}

/// What the bytes at an offset give; `None` if they cannot be read.
fn read(
    mapping: &Arc<PoolMapping>,
    offset: u64,
    bytes: u64,
) -> Result<Option<Checksum>, MappingError> {
    let page = mapping.read(offset, bytes)?;
    // Whatever this host has of before.
    page.acquire(0)?;
    match page.checksum() {
        Ok(found) => Ok(Some(Checksum::new(found))),
        Err(MappingError::Media { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How a pool was mapped whose store begins so.
const fn visibility(head: &Head) -> maru_memory::Visibility {
    match head.visibility {
        Visibility::Coherent => maru_memory::Visibility::Coherent,
        Visibility::CacheLine => maru_memory::Visibility::CacheLine { plugin: None },
    }
}

/// The memory that a store is of. A device that is not there has as large a header as others have.
fn geometry_of(stored: &PoolIdentity, present: &Pool) -> Geometry {
    let reserved = present.geometry.devices.first().map_or(0, |span| span.reserved);
    let span = |device: &store::DeviceIdentity| DeviceSpan {
        offset: device.offset,
        bytes: device.bytes,
        reserved,
    };
    let devices = stored.devices.iter().map(span).collect();
    Geometry { devices, region_bytes: stored.region_bytes }
}

fn beside(store: &Path, suffix: &str) -> PathBuf {
    let mut path = store.as_os_str().to_owned();
    path.push(".");
    path.push(suffix);
    path.into()
}

fn remove(folder: &Path) -> Result<(), StartError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(StartError::io(format!("remove {}", folder.display()))(error))
        }
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path, how: RenameFlags) -> Result<(), StartError> {
    let what = format!("rename {} to {}", from.display(), to.display());
    let renamed = rustix::fs::renameat_with(CWD, from, CWD, to, how);
    renamed.map_err(io::Error::from).map_err(StartError::io(what))
}
