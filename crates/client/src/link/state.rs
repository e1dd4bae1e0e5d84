//! What the threads of a link share: the conversation, and the connection that it goes over.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use maru_protocol::Body;

use crate::memory::Memory;
use crate::stream::{Inbox, Stream};
use crate::{Asked, ClientError, Conversation, Session};

/// What the threads of a link share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) conversation: Conversation,
    /// The conversation's session, with its memory; `None` before the first.
    pub(super) mapped: Option<Arc<MappedSession>>,
    /// `None` while the connection is broken.
    pub(super) stream: Option<Arc<Stream>>,
    /// Taken by the thread that reads.
    pub(super) inbox: Option<Inbox>,
    /// A thread connects; it does not hold the lock meanwhile.
    pub(super) connecting: bool,
    /// Why that thread has not yet succeeded.
    pub(super) unreachable: Option<ClientError>,
}

/// A session, and the memory that its pages lie in.
#[derive(Debug)]
pub(crate) struct MappedSession {
    pub(crate) session: Arc<Session>,
    pub(crate) memory: Arc<Memory>,
}

impl State {
    pub(super) fn new(in_flight_max: u32) -> Self {
        Self {
            conversation: Conversation::new(in_flight_max),
            mapped: None,
            stream: None,
            inbox: Some(Inbox::default()),
            connecting: false,
            unreachable: None,
        }
    }

    /// Asks in the present session, or fails if it is not `session`. Returns it, and the request's
    /// number. Without a connection, the request is sent once there is one.
    pub(super) fn ask(
        &mut self,
        now: Duration,
        session: Option<&Arc<Session>>,
        body: Body<'_>,
    ) -> Result<(Arc<MappedSession>, u64), ClientError> {
        let mapped = self.mapped.clone().ok_or(ClientError::SessionLost)?;
        let Asked { seq, frame } = self.conversation.ask(now, session, body)?;
        if let Some(stream) = &self.stream
            && let Err(error) = stream.write_all(frame)
        {
            tracing::debug!(%error, "the connection is lost");
            self.disconnect();
        }
        Ok((mapped, seq))
    }

    /// Passes the frames on that have come.
    pub(super) fn deliver(&mut self, inbox: &mut Inbox) -> io::Result<()> {
        while let Some(frame) = inbox.frame().map_err(io::Error::other)? {
            self.conversation.received(frame).map_err(io::Error::other)?;
            let len = frame.len_bytes();
            inbox.consume(len);
        }
        Ok(())
    }

    pub(super) fn disconnect(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.shut_down();
        }
    }
}
