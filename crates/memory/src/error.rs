//! What can go wrong with devices, mappings, plug-ins and arenas.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::format_bytes;
use crate::header::HeaderError;

/// Why a device could not be made, opened or inspected. Whatever was refused was left as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Nothing is at the path.
    #[error(
        "{} does not exist: make it with `maru pool init`, or correct the path", .path.display()
    )]
    NotFound {
        /// The path asked for.
        path: PathBuf,
    },
    /// What is at the path cannot be a device of a pool.
    #[error(
        "{} is {found}: a pool lives in a regular file or a DAX character device", .path.display()
    )]
    NotADevice {
        /// The path asked for.
        path: PathBuf,
        /// What is there instead.
        found: &'static str,
    },
    /// Another server owns the device now.
    #[error(
        "{} is in use by another server (it holds the lock): stop that server first, or take \
         another device", .path.display()
    )]
    InUse {
        /// The device.
        path: PathBuf,
    },
    /// Somebody removed or replaced the file between opening and locking it.
    #[error("{} was replaced while it was being opened: try again", .path.display())]
    Replaced {
        /// The path asked for.
        path: PathBuf,
    },
    /// A pool is there already, and overwriting was not asked for.
    #[error(
        "{} already holds the pool device {uuid}: serve that one, or replace it with \
         `maru pool init --overwrite`", .path.display()
    )]
    AlreadyAPool {
        /// The device.
        path: PathBuf,
        /// Its identity.
        uuid: Uuid,
    },
    /// Other data is there, and overwriting was not asked for.
    #[error(
        "{} holds data that is not a pool: if nobody needs it, replace it with \
         `maru pool init --overwrite`", .path.display()
    )]
    NotEmpty {
        /// The file or device.
        path: PathBuf,
    },
    /// A new file needs a size.
    #[error(
        "{path} has no size yet: say how large the device shall be, such as {path}:512MiB",
        path = .path.display()
    )]
    SizeMissing {
        /// The file.
        path: PathBuf,
    },
    /// Smaller than a device can be.
    #[error(
        "{asked} bytes are too few for {}: the least is {}",
        .path.display(), format_bytes(*.least)
    )]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// Size in bytes that was asked for.
        asked: u64,
        /// Least size in bytes.
        least: u64,
    },
    /// Not a whole number of the pages that the memory is made of.
    #[error(
        "{asked} bytes cannot be mapped from {}: the size must be a multiple of {}, such as {}",
        .path.display(), format_bytes(*.alignment),
        format_bytes((asked / alignment).max(1) * alignment)
    )]
    Misaligned {
        /// The device.
        path: PathBuf,
        /// Size in bytes that was asked for.
        asked: u64,
        /// Alignment in bytes that the memory needs.
        alignment: u64,
    },
    /// More than there is.
    #[error(
        "{} for {} is more than the {} available in {of}: ask for less, or make room",
        format_bytes(*.asked), .path.display(), format_bytes(*.available)
    )]
    TooLarge {
        /// The device.
        path: PathBuf,
        /// Size in bytes that was asked for.
        asked: u64,
        /// Largest size in bytes that would have been granted.
        available: u64,
        /// What is short.
        of: &'static str,
    },
    /// The first bytes are not a usable pool header.
    #[error("{} cannot be used: {reason}", .path.display())]
    Header {
        /// The device.
        path: PathBuf,
        /// What is wrong with its header.
        reason: HeaderError,
    },
    /// A pool, but not the one that the server told of.
    #[error(
        "{} is pool device {found}, but the server's is {expected}: this is other memory under the \
         same name (a replaced file, another host's device, another mount); mount the server's",
        .path.display()
    )]
    WrongIdentity {
        /// The device.
        path: PathBuf,
        /// The identity asked for.
        expected: Uuid,
        /// The identity found.
        found: Uuid,
    },
    /// Sysfs or procfs does not say what is needed.
    #[error(
        "{} does not hold a number ({found:?}): is this a kernel with device DAX, and is sysfs \
         mounted?", .path.display()
    )]
    NotANumber {
        /// The file under /sys or /proc.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl DeviceError {
    /// What it is about: a device, or what the kernel says of one.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::NotFound { path }
            | Self::NotADevice { path, .. }
            | Self::InUse { path }
            | Self::Replaced { path }
            | Self::AlreadyAPool { path, .. }
            | Self::NotEmpty { path }
            | Self::SizeMissing { path }
            | Self::TooSmall { path, .. }
            | Self::Misaligned { path, .. }
            | Self::TooLarge { path, .. }
            | Self::Header { path, .. }
            | Self::WrongIdentity { path, .. }
            | Self::NotANumber { path, .. }
            | Self::Io { path, .. } => path,
        }
    }

    /// For `map_err`: adds what was being done, and to what.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source: source.into() }
    }
}

/// Why memory could not be mapped, or a page not be handed out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MappingError {
    /// No addresses for the pool.
    #[error(
        "cannot reserve two ranges of {} of addresses for the pool: {source}; a limit on address \
         space (`ulimit -v`) must be lifted, or the range be smaller", format_bytes(*.bytes)
    )]
    Reserve {
        /// Size in bytes of one range.
        bytes: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// The operating system does not map the device.
    #[error(
        "cannot map {} at pool offset {offset:#x}: {source}; if memory is short, huge pages or \
         `ulimit -v` are", .path.display()
    )]
    Map {
        /// The device.
        path: PathBuf,
        /// Where in the pool it should have come, in bytes.
        offset: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// The offset does not suit the device.
    #[error(
        "{} cannot be mapped at pool offset {offset:#x}: offsets of this device are multiples \
         of {}, up to 1GiB", .path.display(), format_bytes(*.alignment)
    )]
    Misaligned {
        /// The device.
        path: PathBuf,
        /// Where in the pool it should have come, in bytes.
        offset: u64,
        /// The alignment in bytes that it needs.
        alignment: u64,
    },
    /// Another device is there.
    #[error(
        "{} ({len:#x} bytes) at pool offset {offset:#x} would overlap the device mapped at \
         {other:#x}: server and instance do not agree on the pool's layout; reconnect",
        .path.display()
    )]
    Overlap {
        /// The device.
        path: PathBuf,
        /// Where in the pool it should have come, in bytes.
        offset: u64,
        /// Its size in bytes.
        len: u64,
        /// The pool offset of the device that is there.
        other: u64,
    },
    /// The pool's range of addresses is too small for the device.
    #[error(
        "{} would end at pool offset {end:#x}, beyond the {} reserved for the pool: reserve a \
         larger address space", .path.display(), format_bytes(*.address_space_bytes)
    )]
    OutsideAddressSpace {
        /// The device.
        path: PathBuf,
        /// The pool offset at which it would end, in bytes.
        end: u64,
        /// How large the pool's range is, in bytes.
        address_space_bytes: u64,
    },
    /// No page can lie there.
    #[error(
        "pool offset {offset:#x} with {len:#x} bytes is not in the page area of one mapped device: \
         map the device first, or ask the server for the location again"
    )]
    OutOfBounds {
        /// Pool offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// This process writes there already.
    #[error(
        "pool offset {offset:#x} with {len:#x} bytes is being written already, at {other:#x}: let \
         go of that page first"
    )]
    AlreadyWritable {
        /// Pool offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The pool offset of the writable page that is out.
        other: u64,
    },
    /// A buffer does not fit the page.
    #[error("the page has {page} bytes, the buffer {buffer}: they must be equal")]
    LengthMismatch {
        /// Length of the page in bytes.
        page: u64,
        /// Length of the buffer in bytes.
        buffer: u64,
    },
    /// More is to be published than there is.
    #[error(
        "the page has {page} bytes, {len} cannot be published: a chunk is no longer than its page"
    )]
    BeyondPage {
        /// Length of the page in bytes.
        page: u64,
        /// How many were to be published.
        len: u64,
    },
    /// The pool's memory failed under a load or a store.
    #[error(
        "the memory of {} failed at pool offset {offset:#x}: {}", .path.display(), failed(*.damaged)
    )]
    Media {
        /// The device.
        path: PathBuf,
        /// Pool offset in bytes of what failed, or of the first byte of the page in what failed.
        offset: u64,
        /// Whether the memory is damaged. Otherwise there is none.
        damaged: bool,
    },
    /// The memory of a buffer failed while it was copied from or to.
    #[error(
        "the memory of the buffer failed (it belongs to a file that was cut off, or is damaged), not \
         the pool's: give it up, and take another one"
    )]
    Buffer,
    /// A plug-in did not do what it was asked for.
    #[error(
        "the visibility library {} could not {operation} the page at pool offset {offset:#x}: {}; \
         the page must not be used", .path.display(), plugin_status(*.status)
    )]
    Plugin {
        /// The library.
        path: PathBuf,
        /// `"publish"` or `"acquire"`.
        operation: &'static str,
        /// Pool offset in bytes of the page.
        offset: u64,
        /// What it returned.
        status: i32,
    },
}

fn failed(damaged: bool) -> &'static str {
    if damaged {
        "it is damaged (the kernel has marked it as poisoned); what was there is lost, and the \
         device should be taken out of use"
    } else {
        "there is none (the file was cut off, or its file system is full); bring the device back \
         whole, or make room"
    }
}

/// A negative `errno` in words.
fn plugin_status(status: i32) -> String {
    match status.checked_neg() {
        Some(errno @ 1..4096) => io::Error::from_raw_os_error(errno).to_string(),
        _ => format!("status {status}"),
    }
}

/// Why a plug-in was not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The path could lead to any library.
    #[error("{} is no absolute path: give the visibility library with its whole path", .path.display())]
    NotAbsolute {
        /// The path asked for.
        path: PathBuf,
    },
    /// The library does not load.
    #[error("cannot load the visibility library {}: {reason}", .path.display())]
    Load {
        /// The library.
        path: PathBuf,
        /// What the dynamic linker said.
        reason: String,
    },
    /// The library is another one.
    #[error(
        "{} is no visibility library: it does not export `{symbol}`; take one that is made for this \
         interface", .path.display()
    )]
    Symbol {
        /// The library.
        path: PathBuf,
        /// The function that it ought to have.
        symbol: &'static str,
    },
}

/// Why an arena could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArenaError {
    /// Blocks cannot be aligned so.
    #[error(
        "blocks of private memory cannot be aligned to {align_bytes} bytes: take a power of two up \
         to 2MiB, such as 4096"
    )]
    Alignment {
        /// The alignment in bytes that was asked for.
        align_bytes: u64,
    },
    /// Not one block fits.
    #[error(
        "{bytes} bytes of private memory are too few: the least is one block, {}",
        format_bytes(*.align_bytes)
    )]
    TooSmall {
        /// Size in bytes that was asked for.
        bytes: u64,
        /// Alignment of blocks in bytes.
        align_bytes: u64,
    },
    /// No addresses for the arena.
    #[error(
        "cannot reserve {} of addresses for private memory: {source}; a limit on address space \
         (`ulimit -v`) must be lifted, or the size be smaller", format_bytes(*.bytes)
    )]
    Reserve {
        /// Size in bytes of the range.
        bytes: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// The initial memory is not to be had.
    #[error(
        "cannot bring in {} of private memory: {source}; make room (on the host, or in the \
         container's limit), or start with less", format_bytes(*.bytes)
    )]
    Memory {
        /// What was to be brought in, in bytes.
        bytes: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// The host has set too few huge pages aside.
    #[error(
        "private memory needs {needed} huge pages of 2MiB, and {free} are free: set more aside \
         with `sysctl vm.nr_hugepages={total}`, ask for less, or do without huge pages; if enough \
         are free, a limit (`ulimit -v`, or the container's on hugetlb) must be lifted"
    )]
    TooFewHugePages {
        /// Huge pages that the arena needs.
        needed: u64,
        /// Huge pages that are free and promised to nobody.
        free: u64,
        /// How many the host would have to have in all.
        total: u64,
    },
    /// The kernel does not give huge pages.
    #[error("cannot take huge pages of 2MiB: {source}; do without them")]
    HugePages {
        /// What the operating system said.
        source: io::Error,
    },
}
