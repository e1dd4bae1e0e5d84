//! One connection: bytes in, frames out, with a limit on everything.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use maru_protocol::{FRAME_BYTES_MAX, Frame, FrameError, FrameKind, SessionId};
use serde::Serialize;

use crate::listener::Stream;

/// The buffer of a connection in bytes, but while a larger frame comes in.
const READ_BYTES: usize = 64 << 10;

/// Unsent bytes beyond which a connection is not served until it reads: more than a full window of
/// the largest replies that are of use.
const UNSENT_MAX: usize = 16 << 20;

/// What the socket may have for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Input {
    /// Nothing until the next event.
    Nothing,
    Bytes,
    /// Bytes and the end of the stream. It may have come with the last bytes, in one event: no other
    /// tells of it, so it is read up to.
    TheEnd,
}

/// Whose a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// It has not said so yet.
    Stranger,
    /// The session asks on it.
    Session(SessionId),
    /// The session is told events on it.
    Watcher(SessionId),
}

impl Peer {
    /// What the server takes, in words.
    pub(crate) const fn may_send(self) -> &'static str {
        match self {
            Self::Stranger => "Hello or Watch",
            Self::Session(_) => "Request",
            Self::Watcher(_) => "nothing more",
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    pub(crate) peer: Peer,
    pub(crate) opened: Instant,
    pub(crate) input: Input,
    /// It is queued to be served.
    pub(crate) queued: bool,
    /// The peer has hung up.
    pub(crate) ended: bool,
    /// It is closed as soon as what is unsent is sent.
    closing: bool,
    /// Bytes `consumed..filled` are received and not yet done with; the rest is room.
    buffer: Vec<u8>,
    consumed: usize,
    filled: usize,
    unsent: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            peer: Peer::Stranger,
            opened: Instant::now(),
            input: Input::Bytes,
            queued: false,
            ended: false,
            closing: false,
            buffer: vec![0; READ_BYTES],
            consumed: 0,
            filled: 0,
            unsent: Vec::new(),
        }
    }

    /// Reads what the socket has, once. `Ok(false)` at the end of the stream.
    pub(crate) fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.consumed..self.filled, 0);
        self.filled -= self.consumed;
        self.consumed = 0;
        if self.filled == self.buffer.len() {
            // A frame larger than the buffer; its length was checked when its header came.
            self.buffer.resize(self.filled * 2, 0);
        } else if self.filled == 0 && self.buffer.len() > READ_BYTES {
            self.buffer.truncate(READ_BYTES);
            self.buffer.shrink_to_fit();
        }
        let read = loop {
            match self.stream.read(&mut self.buffer[self.filled..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match read {
            Ok(len) => {
                self.filled += len;
                // A short read has drained the socket: more bytes make a new event.
                if self.input == Input::Bytes && self.filled < self.buffer.len() {
                    self.input = Input::Nothing;
                }
                Ok(len > 0)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.input = Input::Nothing;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// The next complete frame, if there is one. It is done with after [`Connection::consume`].
    pub(crate) fn frame(&self) -> Result<Option<Frame<'_>>, FrameError> {
        // Before hello nobody needs much: a stranger cannot make us buffer megabytes.
        let max = if matches!(self.peer, Peer::Session(_)) { FRAME_BYTES_MAX } else { 4096 };
        Frame::split(&self.buffer[self.consumed..self.filled], max)
    }

    pub(crate) fn consume(&mut self, frame_len: usize) {
        self.consumed += frame_len;
    }

    /// Whether it may be served: not while it owes us reading, nor after its end.
    pub(crate) fn accepts_work(&self) -> bool {
        !self.closing && self.unsent.len() < UNSENT_MAX
    }

    /// Whether a frame, or what should be one, waits in the buffer.
    pub(crate) fn has_frame(&self) -> bool {
        !matches!(self.frame(), Ok(None))
    }

    /// Queues a message; [`Connection::flush`] sends it.
    pub(crate) fn send<T: Serialize>(&mut self, kind: FrameKind, message: &T) {
        if let Err(error) = maru_protocol::encode(kind, message, &mut self.unsent) {
            // Every answer is bounded to fit; this would be a defect, and the peer must not wait.
            tracing::error!(%error, "a reply does not fit into a frame; closing the connection");
            self.closing = true;
        }
    }

    /// How many bytes wait to be sent.
    pub(crate) fn unsent_len(&self) -> usize {
        self.unsent.len()
    }

    /// Queues whole frames.
    pub(crate) fn send_frames(&mut self, frames: &[u8]) {
        self.unsent.extend_from_slice(frames);
    }

    /// Closes the connection once everything queued is sent, or the peer does not take it.
    pub(crate) fn close_after_sending(&mut self) {
        self.closing = true;
    }

    /// Sends what is queued, as far as the socket takes it. Says whether the connection goes on.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match self.stream.write(&self.unsent[sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => sent += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            self.unsent.shrink_to(READ_BYTES);
        }
        Ok(!self.closing && !self.ended)
    }
}
