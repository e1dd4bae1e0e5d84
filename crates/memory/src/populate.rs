//! Memory brought in ahead of its first use, in parallel, behind a server that answers already.
//!
//! Page faults, one by one as pages are first touched, are most of what a large pool costs at
//! start.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use rustix::process::{Pid, getpid};

use crate::Visibility;
use crate::error::MappingError;
use crate::mapping::PoolMapping;
use crate::range::{AddressRange, View, to_usize};

/// How much one thread asks the kernel for at a time: small enough that stopping takes a moment
/// only and progress moves, large enough that the call costs nothing, and a multiple of huge pages.
const CHUNK_BYTES: u64 = 64 << 20;

/// Why memory could not be brought in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PopulateError {
    /// The range is not mapped.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// No memory is left for the device.
    #[error(
        "memory ran out while bringing in the pool at offset {offset:#x}: the pool is larger than \
         the memory that is free for it (/dev/shm, huge pages, or the container's limit); make \
         room, or make the pool smaller"
    )]
    OutOfMemory {
        /// Pool offset in bytes of the chunk that failed.
        offset: u64,
    },
    /// The memory itself is damaged.
    #[error(
        "the memory of the pool is damaged near offset {offset:#x} (the kernel has marked it as \
         poisoned): take this device out of use"
    )]
    Poisoned {
        /// Pool offset in bytes of the chunk that failed.
        offset: u64,
    },
    /// The operating system refused for another reason.
    #[error("cannot bring in the pool's memory at offset {offset:#x}: {source}")]
    Io {
        /// Pool offset in bytes of the chunk that failed, or of the whole.
        offset: u64,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Threads that bring in a part of a mapping. Dropped, they stop after the chunk that they are at.
#[derive(Debug)]
pub struct Populate {
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
    /// The process whose threads they are.
    owner: Pid,
}

#[derive(Debug)]
struct Work {
    mapping: Arc<PoolMapping>,
    view: View,
    offset: u64,
    len: u64,
    /// Where the next chunk starts, from `offset`.
    next: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
    error: Mutex<Option<PopulateError>>,
}

impl Populate {
    /// Starts to bring in `len` bytes of `mapping` from `pool_offset`, a multiple of the page size;
    /// all in one device, its header area allowed. It never changes contents.
    ///
    /// [`View::Write`] gives files their memory; [`View::Read`] is enough for who only reads what
    /// others have written. Each view has page tables of its own. 0 `threads` count as 1.
    pub fn start(
        mapping: Arc<PoolMapping>,
        pool_offset: u64,
        len: u64,
        threads: usize,
        view: View,
    ) -> Result<Self, PopulateError> {
        mapping.check_mapped(pool_offset, len)?;
        let work = Work {
            mapping,
            view,
            offset: pool_offset,
            len,
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            error: Mutex::new(None),
        };
        let mut populate = Self { work: Arc::new(work), threads: Vec::new(), owner: getpid() };
        for _ in 0..threads.max(1) {
            let work = Arc::clone(&populate.work);
            let thread = thread::Builder::new()
                .name("maru-populate".to_owned())
                .spawn(move || work.run())
                .map_err(|source| PopulateError::Io { offset: pool_offset, source })?;
            populate.threads.push(thread);
        }
        Ok(populate)
    }

    /// Bytes brought in so far, and bytes in all.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.work.done.load(Ordering::Relaxed), self.work.len)
    }

    /// Whether nothing more will happen: all is done, or something failed. Then [`Self::wait`]
    /// returns at once.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits until all is done; the first error, if any.
    pub fn wait(mut self) -> Result<(), PopulateError> {
        self.join();
        let error = self.work.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.map_or(Ok(()), Err)
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            thread.join().expect("populate threads only make system calls");
        }
    }
}

impl Drop for Populate {
    fn drop(&mut self) {
        if getpid() != self.owner {
            // A forked child has none of its parent's threads to wait for.
            std::mem::forget(std::mem::take(&mut self.threads));
            return;
        }
        self.work.stop.store(true, Ordering::Relaxed);
        self.join();
    }
}

impl Work {
    /// One thread: takes chunks until there are none, something fails, or it is told to stop.
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let start = self.next.fetch_add(CHUNK_BYTES, Ordering::Relaxed);
            if start >= self.len {
                return;
            }
            let (offset, len) = (self.offset + start, CHUNK_BYTES.min(self.len - start));
            let coherent = matches!(self.mapping.visibility(), Visibility::Coherent);
            match populate(self.mapping.view(self.view), offset, len, self.view, coherent) {
                Ok(()) => {
                    self.done.fetch_add(len, Ordering::Relaxed);
                }
                Err(errno) => {
                    self.stop.store(true, Ordering::Relaxed);
                    let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert(match errno {
                        Errno::NOMEM => PopulateError::OutOfMemory { offset },
                        Errno::HWPOISON => PopulateError::Poisoned { offset },
                        errno => PopulateError::Io { offset, source: errno.into() },
                    });
                }
            }
        }
    }
}

/// Brings in the first `len` bytes of private memory on all cores, and waits for it.
pub(crate) fn bring_in(range: &AddressRange, len: u64) -> Result<(), Errno> {
    let next = AtomicU64::new(0);
    let work = || loop {
        let offset = next.fetch_add(CHUNK_BYTES, Ordering::Relaxed);
        if offset >= len {
            return Ok(());
        }
        if let Err(errno) =
            populate(range, offset, CHUNK_BYTES.min(len - offset), View::Write, true)
        {
            // The others need not go on.
            next.store(len, Ordering::Relaxed);
            return Err(errno);
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from) as u64;
    let threads = cores.min(len.div_ceil(CHUNK_BYTES));
    thread::scope(|scope| {
        let spawn = |_| {
            let builder = thread::Builder::new().name("maru-populate".to_owned());
            // Without it, those that there are take longer.
            builder.spawn_scoped(scope, work).ok()
        };
        let helpers: Vec<_> = (1..threads).filter_map(spawn).collect();
        helpers.into_iter().fold(work(), |result, helper| {
            result.and(helper.join().expect("populate threads only make system calls"))
        })
    })
}

/// `coherent`: no host has lines of its own of this memory.
fn populate(
    range: &AddressRange,
    offset: u64,
    len: u64,
    view: View,
    coherent: bool,
) -> Result<(), Errno> {
    loop {
        return match range.populate(offset, len, view) {
            Ok(()) => Ok(()),
            Err(Errno::INTR | Errno::AGAIN) => continue,
            // A byte that is written as it is would come back over what another host writes.
            Err(Errno::INVAL) if view == View::Write && !coherent => Err(Errno::NOTSUP),
            Err(Errno::INVAL) => {
                touch(range, offset, len, view);
                Ok(())
            }
            // A full tmpfs and a lack of huge pages are told as EFAULT, where a load would be
            // SIGBUS.
            Err(Errno::FAULT) => Err(Errno::NOMEM),
            Err(errno) => Err(errno),
        };
    }
}

/// What the kernel does since Linux 5.14, page by page, for the kernels before.
///
/// A store must not lose what another process writes to the same byte at the same time, so it is
/// one atomic exchange of the value for itself: only where memory is coherent. Not `fetch_or(0)`: the
/// compiler may make that a load.
fn touch(range: &AddressRange, offset: u64, len: u64, view: View) {
    let base = range.part(offset, len);
    for at in (0..to_usize(len)).step_by(rustix::param::page_size()) {
        // SAFETY: `part` has checked the range, and the caller that it is mapped with this view.
        // The byte is only read, or atomically replaced by itself, so whoever owns the page sees no
        // change.
        unsafe {
            let byte = base.add(at);
            match view {
                View::Read => {
                    byte.read_volatile();
                }
                View::Write => {
                    let byte = AtomicU8::from_ptr(byte);
                    let mut value = byte.load(Ordering::Relaxed);
                    let order = Ordering::Relaxed;
                    while let Err(now) = byte.compare_exchange_weak(value, value, order, order) {
                        value = now;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::{Device, DeviceSpec, IfExists, Visibility};

    /// A new device of 8 MiB, mapped at 0.
    fn mapped() -> (tempfile::TempDir, Device, Arc<PoolMapping>) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let spec = DeviceSpec { path: dir.path().join("pool"), bytes: Some(8 << 20) };
        let device = Device::create(&spec, IfExists::Refuse).unwrap();
        let mapping = Arc::new(PoolMapping::new(1 << 30, Visibility::Coherent).unwrap());
        mapping.add_device(&device, 0).unwrap();
        (dir, device, mapping)
    }

    fn occupied(device: &Device) -> u64 {
        fs::metadata(device.path()).unwrap().blocks() * 512
    }

    #[test]
    fn the_fallback_brings_in_all_and_changes_nothing() {
        for view in [View::Write, View::Read] {
            let (_dir, device, mapping) = mapped();
            mapping.write(4 << 20, 1).unwrap().bytes_mut()[0] = 7;
            assert!(occupied(&device) < 8 << 20);
            touch(mapping.view(view), 0, 8 << 20, view);
            assert_eq!(occupied(&device), 8 << 20);
            let bytes = fs::read(device.path()).unwrap();
            assert_eq!(bytes[4 << 20], 7);
            assert_eq!(bytes[2 << 20..].iter().filter(|byte| **byte != 0).count(), 1);
        }
    }

    #[test]
    fn each_failure_of_the_kernel_is_told() {
        let (_dir, device, mapping) = mapped();
        // Cut off behind our back: the kernel finds no memory there.
        device.file().set_len(4 << 20).unwrap();
        let populate = Populate::start(mapping, 0, 8 << 20, 2, View::Write).unwrap();
        let error = populate.wait().unwrap_err();
        assert!(matches!(error, PopulateError::OutOfMemory { offset: 0 }), "{error}");
    }
}
