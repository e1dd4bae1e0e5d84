//! Where connections come in.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::fs::{FlockOperation, OFlags, flock};

use crate::StartError;

/// One connection's byte stream.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(crate) fn source(&mut self) -> &mut dyn mio::event::Source {
        match self {
            Self::Unix(stream) => stream,
            Self::Tcp(stream) => stream,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl io::Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl io::Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A Unix socket or a TCP port.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix {
        listener: UnixListener,
        path: PathBuf,
        /// Locked while the server lives: who holds it may remove a socket that is left over.
        _lock: File,
    },
    Tcp(TcpListener),
}

impl Listener {
    /// Listens on a Unix socket that only this user may connect to.
    pub(crate) fn unix(path: &Path) -> Result<Self, StartError> {
        let cannot = |what: &str| StartError::io(format!("{what} {}", path.display()));
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
            && !folder.exists()
        {
            std::fs::create_dir_all(folder).map_err(cannot("make the folder of"))?;
            let private = std::fs::set_permissions(folder, Permissions::from_mode(0o700));
            private.map_err(cannot("protect the folder of"))?;
        }
        check_folder(path)?;
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&lock_path)
            .map_err(cannot("open the lock of"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(StartError::AddressInUse { address: path.display().to_string() });
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                std::fs::remove_file(path).map_err(cannot("remove the old socket"))?;
            }
            Ok(_) => {
                return Err(StartError::NotASocket { path: path.to_owned() });
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(cannot("listen on"))?;
        let private = std::fs::set_permissions(path, Permissions::from_mode(0o600));
        private.map_err(cannot("protect"))?;
        Ok(Self::Unix { listener, path: path.to_owned(), _lock: lock })
    }

    pub(crate) fn tcp(address: std::net::SocketAddr) -> Result<Self, StartError> {
        TcpListener::bind(address).map(Self::Tcp).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => StartError::AddressInUse { address: address.to_string() },
            _ => StartError::io(format!("listen on {address}"))(error),
        })
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Unix { listener, .. } => registry.register(listener, token, Interest::READABLE),
            Self::Tcp(listener) => registry.register(listener, token, Interest::READABLE),
        }
    }

    /// The next waiting connection; `WouldBlock` if there is none.
    pub(crate) fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix { listener, .. } => Ok(Stream::Unix(listener.accept()?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// The address that TCP clients can connect to.
    pub(crate) fn tcp_address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Unix { .. } => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self {
            // The lock file stays: removing it would let two servers lock two files of one name.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Refuses a folder in which somebody else could put another socket in the place of ours.
fn check_folder(path: &Path) -> Result<(), StartError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let look = StartError::io(format!("look at {}", folder.display()));
    let found = std::fs::metadata(folder).map_err(look)?;
    let user = rustix::process::geteuid().as_raw();
    let owned = found.uid() == user || found.uid() == 0;
    // In a sticky folder, such as /tmp, only the owner of a file can replace it.
    let (writable_by_others, sticky) = (found.mode() & 0o022 != 0, found.mode() & 0o1000 != 0);
    if owned && (!writable_by_others || sticky) {
        return Ok(());
    }
    Err(StartError::UnsafeFolder { path: folder.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let set = |mode| {
            std::fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            Listener::unix(&folder.path().join("socket")).map(drop)
        };
        assert!(matches!(set(0o777), Err(StartError::UnsafeFolder { .. })));
        assert!(matches!(set(0o770), Err(StartError::UnsafeFolder { .. })));
        assert!(set(0o1777).is_ok());
        assert!(set(0o755).is_ok());
    }
}
