//! Who comes in: connections, and whose each is.

use std::io;
use std::time::Duration;

use maru_directory::Millis;
use maru_protocol::{Event, FrameKind, Hello, Refusal, Secret, Standing, Watch, Welcome};
use mio::Interest;

use super::{Server, connection_token, process_token, random, refusal};
use crate::connection::{Connection, Peer};
use crate::listener::Stream;
use crate::process;

/// How long a connection may stay without saying whose it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections without a session, beyond which new ones wait outside.
const STRANGERS_MAX: usize = 256;

impl Server {
    pub(super) fn accept(&mut self, listener: usize) {
        while self.connections.len() < self.by_session.len() + self.watchers.len() + STRANGERS_MAX {
            match self.listeners[listener].accept() {
                Ok(stream) => self.add_connection(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.crowded.remove(&listener);
                    return;
                }
                Err(error) => {
                    // Out of descriptors, most likely. Those who wait stay in the backlog.
                    if self.crowded.insert(listener) {
                        tracing::warn!(%error, "cannot accept a connection");
                    }
                    return;
                }
            }
        }
        if self.crowded.insert(listener) {
            tracing::warn!("new connections have to wait: too many have not said whose they are");
        }
    }

    fn add_connection(&mut self, stream: Stream) {
        let slot = self.connections.vacant_entry();
        let index = slot.key();
        let connection = slot.insert(Connection::new(stream));
        // Edge-triggered: both at once, and no call again for the life of the connection.
        let interest = Interest::READABLE | Interest::WRITABLE;
        let source = connection.stream.source();
        let registered = self.poll.registry().register(source, connection_token(index), interest);
        if let Err(error) = registered {
            tracing::warn!(%error, "cannot wait for a connection");
            self.connections.remove(index);
        }
    }

    pub(super) fn hello(&mut self, index: usize, now: Millis, body: &[u8]) {
        let welcome = maru_protocol::decode::<Hello<'_>>(body)
            .map_err(|error| refusal(&error))
            .and_then(|hello| self.open_session(index, now, &hello));
        match welcome {
            Ok(welcome) => self.connections[index].send(FrameKind::Welcome, &welcome),
            Err(refusal) => self.refuse(index, &refusal),
        }
    }

    fn open_session(
        &mut self,
        index: usize,
        now: Millis,
        hello: &Hello<'_>,
    ) -> Result<Welcome, Refusal> {
        let fresh = random().map_err(|error| Refusal::Unexpected { reason: error.to_string() })?;
        // Its death is that of all its writers, or tells nothing.
        let process = process::peer(&self.connections[index].stream);
        let process = process.filter(|_| !hello.outside_writers);
        let id = process.as_ref().map(|found| found.id);
        let welcome = self.service.hello(now, hello, Secret(fresh), id)?;
        let session = welcome.session;
        tracing::debug!(%session, instance = hello.instance, standing = ?welcome.standing, "hello");
        // The instance may be back before its old connection was seen to drop.
        if let Some(old) = self.by_session.insert(session, index) {
            self.connections[old].peer = Peer::Stranger;
            self.close(old);
        }
        self.connections[index].peer = Peer::Session(session);
        if welcome.standing == Standing::New
            && let Some(process) = process
        {
            let token = process_token(self.processes.vacant_key());
            match process.wait(session, self.poll.registry(), token) {
                Ok(process) => drop(self.processes.insert(process)),
                Err(error) => {
                    tracing::warn!(%error, "cannot wait for the death of an instance's process");
                    self.service.process_lost(session);
                }
            }
        }
        Ok(welcome)
    }

    /// Makes a connection its session's watcher.
    pub(super) fn watch(&mut self, index: usize, body: &[u8]) {
        let watched = maru_protocol::decode::<Watch<'_>>(body).map_err(|error| refusal(&error));
        let watched = watched.and_then(|watch| {
            self.service.watch(watch.session, watch.secret)?;
            tracing::debug!(session = %watch.session, instance = ?watch.instance, "watch");
            Ok(watch.session)
        });
        match watched {
            Ok(session) => {
                if let Some(old) = self.watchers.begin(session, index) {
                    self.connections[old].peer = Peer::Stranger;
                    self.close(old);
                }
                let epoch = self.service.epoch();
                let connection = &mut self.connections[index];
                connection.peer = Peer::Watcher(session);
                connection.send(FrameKind::Event, &Event::Watching { epoch });
            }
            Err(refusal) => self.refuse(index, &refusal),
        }
    }

    /// Closes connections that did not say in time whose they are.
    pub(super) fn close_strangers(&mut self) {
        let late = |connection: &Connection| {
            connection.peer == Peer::Stranger && connection.opened.elapsed() > HELLO_TIMEOUT
        };
        let late: Vec<usize> = self
            .connections
            .iter()
            .filter_map(|(index, connection)| late(connection).then_some(index))
            .collect();
        for index in late {
            let reason = "neither Hello nor Watch came in time".to_owned();
            self.refuse(index, &Refusal::Unexpected { reason });
            self.enqueue(index);
        }
    }
}
