//! What a server is told at its start, and why it may not start.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use maru_directory::{Config, ConfigError};
use maru_memory::{
    DeviceError, DeviceSpec, MappingError, PluginError, PopulateError, VisibilityPlugin,
};
use maru_protocol::Visibility;

use crate::service::OpenError;
use crate::store::{Durability, StoreError};

/// The pool's memory.
#[derive(Debug, Clone)]
pub enum PoolConfig {
    /// Devices that stay when the server stops. A file that does not exist is made.
    Devices(Vec<DeviceSpec>),
    /// A file of the server's own, removed with its store when the server stops. What a killed server
    /// left there is taken over, if it is of this size.
    Temporary(DeviceSpec),
}

/// What a server is told at its start.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The pool's memory.
    pub pool: PoolConfig,
    /// The Unix socket to listen on.
    pub socket: Option<PathBuf>,
    /// The TCP address to listen on; port 0 for any.
    pub listen: Option<SocketAddr>,
    /// The size of a region in bytes, a power of two; `None` for one that suits the pool's size.
    pub region_bytes: Option<u64>,
    /// Bring the memory in, in the background, so that nobody waits for it later.
    pub populate: bool,
    /// How much a crash may take.
    pub durability: Durability,
    /// Where what outlives the server is kept; `None` for beside the pool's first device, or where
    /// that is a DAX device, in the state folder of the user.
    pub store: Option<PathBuf>,
    /// Writers say checksums of what they commit, and readers check them.
    pub checksums: bool,
    /// How many bytes a second of the pool are read in the background and held against their
    /// checksums; 0 for none.
    pub scrub_bytes_per_second: u64,
    /// How what one host writes reaches another.
    pub visibility: Visibility,
    /// The library that makes visible here what other hosts wrote, if the processor's own instructions
    /// are not enough: an absolute path. The instances are told theirs by themselves.
    pub visibility_plugin: Option<PathBuf>,
    /// Times, limits and thresholds. Epoch, seed and visibility are set by the server.
    pub directory: Config,
}

impl ServerConfig {
    /// A server of this pool with nothing to listen on yet.
    #[must_use]
    pub fn new(pool: PoolConfig) -> Self {
        Self {
            pool,
            socket: None,
            listen: None,
            region_bytes: None,
            populate: false,
            durability: Durability::Process,
            store: None,
            checksums: false,
            scrub_bytes_per_second: 0,
            visibility: Visibility::Coherent,
            visibility_plugin: None,
            directory: Config::default(),
        }
    }

    /// How its own mapping makes visible what other hosts wrote.
    pub(crate) fn memory_visibility(&self) -> Result<maru_memory::Visibility, PluginError> {
        let plugin = self.visibility_plugin.as_ref();
        Ok(match self.visibility {
            Visibility::Coherent => maru_memory::Visibility::Coherent,
            Visibility::CacheLine => maru_memory::Visibility::CacheLine {
                plugin: plugin.map(VisibilityPlugin::load).transpose()?,
            },
        })
    }
}

/// Why a server does not start. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device has another size than was asked for.
    #[error(
        "{} is {found} bytes, not the {asked} asked for; leave the size out to take it as it is, or \
         make it anew with `maru pool init --overwrite`", path.display()
    )]
    DeviceSize {
        /// The device.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// What was asked for.
        asked: u64,
    },
    /// No device was named.
    #[error("a pool needs at least one device; name one with --pool PATH[:SIZE]")]
    NoDevice,
    /// The memory cannot be mapped.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// The library for visibility cannot be used.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The threads that bring the memory in cannot start.
    #[error(transparent)]
    Populate(#[from] PopulateError),
    /// A setting is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store cannot be read or written.
    #[error("{source} (the store is {})", store.display())]
    Store {
        /// Where it lies.
        store: PathBuf,
        /// Why not.
        source: StoreError,
    },
    /// The regions of a pool that has a store cannot get another size.
    #[error(
        "the pool has regions of {stored} bytes, not the {asked} asked for: leave --region-size out"
    )]
    RegionSize {
        /// Their size in bytes.
        stored: u64,
        /// What was asked for.
        asked: u64,
    },
    /// Chunks that were written in one way cannot be read in the other.
    #[error(
        "the pool was served with --visibility {stored}: serve it so, or with an empty store (move \
         {} away) once no instance has it", store.display()
    )]
    OtherVisibility {
        /// How it was served, as the flag has it.
        stored: &'static str,
        /// Its store.
        store: PathBuf,
    },
    /// The store is of a pool that is not there any more.
    #[error(
        "{pool} is new, and the store {} is of another pool: move it away, or name another with --store",
        store.display()
    )]
    StoreOfAnother {
        /// The pool's devices.
        pool: String,
        /// The store.
        store: PathBuf,
    },
    /// The store does not match the pool, or is corrupt.
    #[error("{reason}; to see what can be kept: {look}; to have it done, the same with --repair")]
    Unfit {
        /// What does not fit.
        reason: OpenError,
        /// A command that looks into it.
        look: String,
    },
    /// There would be no way in.
    #[error("a server needs a socket or an address to listen on; see --socket and --listen")]
    NoListener,
    /// Another server listens there.
    #[error(
        "another server is listening on {address}; stop it, or choose another --socket/--listen"
    )]
    AddressInUse {
        /// The socket or address.
        address: String,
    },
    /// Something that is not a socket lies where the socket should.
    #[error("{} exists and is not a socket; it is left alone: choose another --socket", path.display())]
    NotASocket {
        /// What lies there.
        path: PathBuf,
    },
    /// Others could put another socket in the place of ours.
    #[error(
        "{} belongs to another user, or others may write to it, so they could take the place of the \
         server: choose another --socket, or correct its owner and mode", path.display()
    )]
    UnsafeFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The operating system said no.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl StartError {
    /// What a store's error means for the start of a server of these devices.
    pub(crate) fn open(store: &Path, devices: &[String]) -> impl FnOnce(OpenError) -> Self + use<> {
        let devices = devices.join(" ");
        let look = format!("maru pool fsck {devices} --store {}", store.display());
        let store = store.to_owned();
        move |error| match error {
            OpenError::Config(error) => Self::Config(error),
            OpenError::Store(source @ StoreError::Io { .. }) => Self::Store { store, source },
            reason => Self::Unfit { reason, look },
        }
    }

    /// An [`io::Error`] with what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
