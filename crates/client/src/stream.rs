//! The byte stream to the server.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use maru_protocol::{Endpoint, FRAME_BYTES_MAX, Frame, FrameError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;

/// The shortest time that a socket can be told to wait.
const SHORTEST: Duration = Duration::from_millis(1);

/// A peer on another host that is gone without a word is noticed after twice this long, though
/// nothing is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A connected socket; reading and writing go on at the same time, from different threads.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Connects within `timeout`. Later calls wait at most `slice` at a time, so that whoever reads
    /// can look whether its own time is over.
    pub(crate) fn connect(
        endpoint: &Endpoint,
        timeout: Duration,
        slice: Duration,
    ) -> io::Result<Self> {
        let slice = Some(slice.max(SHORTEST));
        match endpoint {
            Endpoint::Unix(path) => {
                let flags = SocketFlags::CLOEXEC;
                let socket =
                    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                let stream = UnixStream::from(socket);
                // A server that hangs lets its backlog fill up: then connecting waits like writing.
                stream.set_write_timeout(Some(timeout.max(SHORTEST)))?;
                rustix::net::connect(&stream, &SocketAddrUnix::new(path)?)?;
                stream.set_read_timeout(slice)?;
                stream.set_write_timeout(slice)?;
                Ok(Self::Unix(stream))
            }
            Endpoint::Tcp(address) => {
                let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
                let addresses: Vec<_> = address.to_socket_addrs()?.collect();
                let started = Instant::now();
                for (address, to_try) in addresses.iter().zip((1..=addresses.len()).rev()) {
                    // Each gets its share: the first may be one that nobody answers on.
                    let left = timeout.saturating_sub(started.elapsed());
                    let share = left / u32::try_from(to_try).unwrap_or(u32::MAX);
                    match TcpStream::connect_timeout(address, share.max(SHORTEST)) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_read_timeout(slice)?;
                            stream.set_write_timeout(slice)?;
                            return Ok(Self::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Bounds how long a read waits.
    pub(crate) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout.max(SHORTEST));
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// Has the kernel find out whether the peer is still there while only the peer speaks.
    pub(crate) fn keep_alive(&self) -> io::Result<()> {
        if let Self::Tcp(stream) = self {
            sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
            sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE / 5)?;
            sockopt::set_tcp_keepcnt(stream, 5)?;
            sockopt::set_socket_keepalive(stream, true)?;
        }
        Ok(())
    }

    pub(crate) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => (&mut &*stream).write_all(bytes),
            Self::Tcp(stream) => (&mut &*stream).write_all(bytes),
        }
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => (&mut &*stream).read(buffer),
            Self::Tcp(stream) => (&mut &*stream).read(buffer),
        }
    }

    /// Wakes whoever waits on the stream.
    pub(crate) fn shut_down(&self) {
        // It may be down already.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
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

/// Bytes received and not yet read.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    consumed: usize,
    filled: usize,
}

impl Inbox {
    /// Waits for more bytes; an error of kind `UnexpectedEof` at the end of the stream.
    pub(crate) fn fill(&mut self, stream: &Stream) -> io::Result<()> {
        self.buffer.copy_within(self.consumed..self.filled, 0);
        self.filled -= self.consumed;
        self.consumed = 0;
        if self.buffer.len() - self.filled < READ_BYTES {
            self.buffer.resize(self.filled + READ_BYTES, 0);
        }
        let read = loop {
            match stream.read(&mut self.buffer[self.filled..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.filled += read;
        if read == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// The next complete frame. Call [`Inbox::consume`] with its length when done with it.
    pub(crate) fn frame(&self) -> Result<Option<Frame<'_>>, FrameError> {
        Frame::split(&self.buffer[self.consumed..self.filled], FRAME_BYTES_MAX)
    }

    pub(crate) fn consume(&mut self, frame_len: usize) {
        self.consumed += frame_len;
    }
}
