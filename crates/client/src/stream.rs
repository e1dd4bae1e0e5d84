//! The byte stream to the server.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use maru_protocol::{Endpoint, FRAME_BYTES_MAX, Frame, FrameError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;

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
        let slice = Some(slice.max(Duration::from_millis(1)));
        match endpoint {
            Endpoint::Unix(path) => {
                let flags = SocketFlags::CLOEXEC;
                let socket =
                    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                let stream = UnixStream::from(socket);
                // A server that hangs lets its backlog fill up: then connecting waits like writing.
                stream.set_write_timeout(Some(timeout))?;
                rustix::net::connect(&stream, &SocketAddrUnix::new(path)?)?;
                stream.set_read_timeout(slice)?;
                stream.set_write_timeout(slice)?;
                Ok(Self::Unix(stream))
            }
            Endpoint::Tcp(address) => {
                let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
                for address in address.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, timeout) {
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
