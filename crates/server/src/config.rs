//! What a server is told at its start, and why it may not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use maru_directory::{Config, ConfigError};
use maru_memory::{DeviceError, DeviceSpec, MappingError, PopulateError};

/// The pool's memory.
#[derive(Debug, Clone)]
pub enum PoolConfig {
    /// Devices that stay when the server stops. A file that does not exist is made.
    Devices(Vec<DeviceSpec>),
    /// A file of the server's own, made at the start and removed at the stop.
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
    /// Times, limits and thresholds. Epoch and seed are drawn by the server.
    pub directory: Config,
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
    /// The threads that bring the memory in cannot start.
    #[error(transparent)]
    Populate(#[from] PopulateError),
    /// A setting is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
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
    /// An [`io::Error`] with what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
