//! The memory of Maru: shared devices, their identity headers and mappings, page views, visibility
//! between hosts; private arenas.
//!
//! A [`Device`] is one piece of memory that every instance on the host can map: a DAX character
//! device, or a file. Its first 2 MiB belong to its identity header, so that nobody ever maps the
//! wrong memory and takes it for the pool. A [`PoolMapping`] lays all devices of a pool into one
//! address range, twice: read-only and writable. Pages come out of it as [`PageView`] and
//! [`PageMut`]. [`Populate`] brings the memory in behind a server that already answers.
//!
//! Where instances on several hosts share the memory, [`Visibility`] says whether hardware or
//! software keeps their caches from hiding it; [`PageMut::publish`], [`PageMut::write_back`] and
//! [`PageView::acquire`] are the calls. Copies and checksums survive memory that fails: they return
//! [`MappingError::Media`] where a plain load or store would end the process.
//!
//! An [`Arena`] is memory of this process alone, for a cache that is not shared: [`BlockMut`]s and
//! [`Block`]s come out of it.
//!
//! The crate knows nothing of keys, pins or sessions: who may read or write which page is for the
//! directory to say. It is the only crate of the workspace with `unsafe` code, which is confined to
//! `range` (system calls on address ranges), `mapping` (that nothing refers to what it maps), `page`
//! (slices over pages), `guarded` (copies and cache lines in assembly, and the SIGBUS handler),
//! `plugin` (a foreign library), `populate`'s fallback and `arena` (slices over blocks).
//!
//! ```no_run
//! use std::sync::Arc;
//! use maru_memory::{Device, IfExists, PoolMapping, Visibility};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The server makes the device and keeps it locked ...
//! let device = Device::create(&"/dev/shm/maru:512MiB".parse()?, IfExists::Refuse)?;
//! // ... an instance opens it by its identity and maps it at the offset that the server tells.
//! let same = Device::open(device.path(), device.uuid())?;
//! let mapping = Arc::new(PoolMapping::new(1 << 40, Visibility::Coherent)?);
//! mapping.add_device(&same, 0)?;
//! let mut page = mapping.write(maru_memory::DATA_START, 4096)?;
//! page.bytes_mut().fill(7);
//! # Ok(())
//! # }
//! ```

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("maru-memory needs 64-bit Linux: it maps whole pools and reads sysfs");

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("maru-memory needs x86-64 or arm64: its copies are written in assembly");

mod arena;
mod checksum;
mod create;
mod device;
mod error;
mod extents;
mod free_list;
mod guarded;
mod header;
mod host;
mod mapping;
mod page;
mod plugin;
mod populate;
mod range;
mod spec;
mod visibility;

pub use arena::{Arena, ArenaConfig, Block, BlockMut};
pub use checksum::checksum;
pub use create::{IfExists, MIN_DEVICE_BYTES, Room, room};
pub use device::{Device, Examined, Identity, check_backing, examine, inspect};
pub use error::{ArenaError, DeviceError, MappingError, PluginError};
pub use header::{DATA_START, FORMAT_VERSION, HeaderError};
pub use host::DeviceKind;
pub use mapping::PoolMapping;
pub use page::{PageMut, PageView};
pub use plugin::VisibilityPlugin;
pub use populate::{Populate, PopulateError};
pub use range::View;
pub use spec::{DeviceSpec, DeviceSpecError, ParseBytesError, format_bytes, parse_bytes};
pub use visibility::{LineInstructions, Visibility, line_instructions};
