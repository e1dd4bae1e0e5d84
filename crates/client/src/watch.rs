//! Events of the pool, over a connection of their own: no thread reads the session's while nobody
//! asks anything, and who does not watch pays nothing for events.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maru_protocol::{Event, FrameKind, Refusal, Resume};

use crate::Client;
use crate::link::Link;
use crate::stream::{Inbox, Stream};

/// The first wait before connecting again; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(200);

/// The longest attempt to connect: what cannot be interrupted must not keep a closed watch.
const ATTEMPT_MAX: Duration = Duration::from_secs(1);

/// What happened in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolEvent {
    /// Chunks with these keys left the pool: evicted, or deleted by another instance. They may be
    /// back by now.
    Gone(Vec<Vec<u8>>),
    /// Some chunks may have left untold: the connection or the session was lost for a while, or
    /// events were not taken as fast as they came. What leaves from here on is told again.
    Missed,
}

/// Events of the pool, for one thread to wait for. See [`Client::watch`].
#[derive(Debug)]
pub struct Watch {
    link: Arc<Link>,
    number: u64,
    connection: Option<Connection>,
    /// The server has told events before: what happens between connections is missed.
    has_watched: bool,
    /// When to connect, after a connection was lost or could not be made.
    retry_at: Option<Instant>,
    pause: Duration,
}

/// A connection on which the server was asked for events.
#[derive(Debug)]
struct Connection {
    session: Resume,
    stream: Arc<Stream>,
    inbox: Inbox,
    opened: Instant,
    /// The server has said that it tells them.
    watching: bool,
}

impl Client {
    /// Watches the pool, for what to keep no longer outside of it. Of what this client deletes itself
    /// it is not told. A client has one watch: a newer one ends the older.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let link = Arc::clone(&self.link);
        let number = link.watched.begin();
        Watch {
            link,
            number,
            connection: None,
            has_watched: false,
            retry_at: None,
            pause: RETRY_MIN,
        }
    }
}

impl Watch {
    /// Waits for the next event, connecting to the server if need be; `None` if nothing came in time,
    /// and soon once the watch is closed. Before the first connection nothing is told, nor that
    /// it was missed: see [`Watch::is_watching`].
    ///
    /// An attempt to connect ends with the call, so `timeout` has to be long enough for one. Only
    /// looking up the server's name may take longer than `timeout`.
    pub fn next(&mut self, timeout: Duration) -> Option<PoolEvent> {
        let started = Instant::now();
        loop {
            let Some(session) = self.session() else {
                self.connection = None;
                return None;
            };
            let left = || timeout.saturating_sub(started.elapsed());
            match self.advance(session, left()) {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "the connection for events is lost");
                    self.disconnect();
                }
            }
            if left().is_zero() {
                return None;
            }
        }
    }

    /// Whether, when [`Watch::next`] returned last, the server was telling what leaves the pool.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.watching)
    }

    /// Whether nothing comes any more: the client is gone, or watches anew.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.session().is_none()
    }

    /// The session that is to watch now; `None` once the watch is closed.
    fn session(&self) -> Option<Resume> {
        let newest = self.link.watched.is_newest(self.number);
        newest.then(|| self.link.present())?.map(|session| session.resume())
    }

    /// One step towards the next event, for about as long as `left`.
    fn advance(&mut self, session: Resume, left: Duration) -> io::Result<Option<PoolEvent>> {
        if self.connection.as_ref().is_some_and(|connection| connection.session != session) {
            self.connection = None;
        }
        if let Some(connection) = &mut self.connection {
            let event = connection.next(left, self.has_watched)?;
            self.has_watched |= connection.watching;
            return Ok(event);
        }
        let now = Instant::now();
        match self.retry_at.filter(|at| *at > now) {
            Some(at) => std::thread::sleep(left.min(at - now)),
            None => self.connect(session, left.min(ATTEMPT_MAX))?,
        }
        Ok(None)
    }

    fn connect(&mut self, session: Resume, timeout: Duration) -> io::Result<()> {
        let config = &self.link.config;
        let stream = Arc::new(Stream::connect(&config.endpoint, timeout, timeout)?);
        stream.keep_alive()?;
        // From here on it is interrupted when the session changes or the client goes.
        if !self.link.watched.keep(self.number, &stream) || self.session() != Some(session) {
            return Ok(());
        }
        let Resume { session: id, secret } = session;
        let watch = maru_protocol::Watch { instance: &config.instance, session: id, secret };
        let mut frame = Vec::new();
        maru_protocol::encode(FrameKind::Watch, &watch, &mut frame).map_err(io::Error::other)?;
        stream.write_all(&frame)?;
        let (inbox, opened) = (Inbox::default(), Instant::now());
        self.connection = Some(Connection { session, stream, inbox, opened, watching: false });
        Ok(())
    }

    fn disconnect(&mut self) {
        // A server that lets one in and hangs up at once is not asked again at once.
        if self.connection.take().is_some_and(|gone| gone.opened.elapsed() > RETRY_MAX) {
            self.pause = RETRY_MIN;
        }
        self.retry_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }
}

impl Connection {
    /// The next event, reading once if there is none yet.
    fn next(&mut self, timeout: Duration, has_watched: bool) -> io::Result<Option<PoolEvent>> {
        if self.inbox.frame().map_err(io::Error::other)?.is_none() {
            self.stream.set_read_timeout(timeout)?;
            match self.inbox.fill(&self.stream) {
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Ok(None);
                }
                filled => filled?,
            }
        }
        let Some(frame) = self.inbox.frame().map_err(io::Error::other)? else {
            return Ok(None);
        };
        let event = match frame.kind {
            FrameKind::Event => maru_protocol::decode(frame.body).map_err(io::Error::other)?,
            FrameKind::Refused => {
                let refusal = maru_protocol::decode::<Refusal>(frame.body);
                return Err(io::Error::other(refusal.map_err(io::Error::other)?));
            }
            kind => return Err(io::Error::other(format!("{kind:?} where Event is expected"))),
        };
        let event = match event {
            Event::Watching { .. } if !self.watching => {
                self.watching = true;
                has_watched.then_some(PoolEvent::Missed)
            }
            Event::Gone { keys } if self.watching => {
                Some(PoolEvent::Gone(keys.iter().map(|key| key.bytes().to_vec()).collect()))
            }
            Event::Resync { .. } if self.watching => Some(PoolEvent::Missed),
            event => return Err(io::Error::other(format!("{event:?} is not expected now"))),
        };
        let len = frame.len_bytes();
        self.inbox.consume(len);
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use maru_protocol::Key;

    use super::*;
    use crate::{Reserve, Reserved, test_server};

    /// Only a hang takes this long.
    const LONG: Duration = Duration::from_mins(1);

    /// The server may hang up on a watch and not on the session.
    #[test]
    fn a_watch_that_is_hung_up_on_goes_on_in_the_same_session() {
        let (_folder, _server, config) = test_server::start();
        let (a, b) = (Client::connect(config.clone()).unwrap(), Client::connect(config).unwrap());
        let mut watch = a.watch();
        let session = watch.session().unwrap();
        while !watch.is_watching() {
            assert_eq!(watch.next(Duration::from_millis(10)), None);
        }
        // The server has one watch a session, and this one is newer.
        let stranger = Stream::connect(&b.link.config.endpoint, LONG, LONG).unwrap();
        let Resume { session: id, secret } = session;
        let newer = maru_protocol::Watch { instance: "newer", session: id, secret };
        let mut frame = Vec::new();
        maru_protocol::encode(FrameKind::Watch, &newer, &mut frame).unwrap();
        stranger.write_all(&frame).unwrap();
        assert_eq!(watch.next(LONG), Some(PoolEvent::Missed));
        assert!(watch.is_watching() && watch.session() == Some(session));
        let key = Key::new(b"key").unwrap();
        match b.reserve(&[key], 4096, Reserve::default()).unwrap().remove(0) {
            Reserved::Page(page) => b.commit([page]).unwrap(),
            other => panic!("not granted: {other:?}"),
        };
        b.delete(&[key]).unwrap();
        assert_eq!(watch.next(LONG), Some(PoolEvent::Gone(vec![b"key".to_vec()])));
    }
}
