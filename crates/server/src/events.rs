//! Telling those who watch what has left the directory.

use std::collections::BTreeMap;

use maru_directory::{Directory, Gone};
use maru_protocol::{Event, FrameKind, Key, SessionId};
use slab::Slab;

use crate::connection::{Connection, Peer};

/// Bytes that may wait to be sent to one who watches. What comes on top is lost, and told to be so
/// once all that waits is sent.
const UNSENT_MAX: usize = 1 << 20;

/// Bytes of keys in one frame.
const FRAME_KEY_BYTES: usize = 64 << 10;

/// Those who watch: at most one connection a session.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    by_session: BTreeMap<SessionId, Watcher>,
}

#[derive(Debug)]
struct Watcher {
    connection: usize,
    /// Keys that it was not told of, and does not know so yet.
    lost: u64,
}

impl Watchers {
    pub(crate) fn len(&self) -> usize {
        self.by_session.len()
    }

    /// The session watches on this connection from now on. Returns the one that it watched on.
    pub(crate) fn begin(&mut self, session: SessionId, connection: usize) -> Option<usize> {
        let old = self.by_session.insert(session, Watcher { connection, lost: 0 });
        old.map(|watcher| watcher.connection)
    }

    pub(crate) fn end(&mut self, session: SessionId) {
        self.by_session.remove(&session);
    }

    /// The connections whose session has ended.
    pub(crate) fn ended(&self, directory: &Directory) -> Vec<usize> {
        let watchers = self.by_session.iter();
        let ended = watchers.filter(|(session, _)| !directory.is_watching(**session));
        ended.map(|(_, watcher)| watcher.connection).collect()
    }

    /// Queues what is gone for everybody but who deleted it. Returns the connections to flush.
    pub(crate) fn tell(
        &mut self,
        mut gone: &[Gone],
        connections: &mut Slab<Connection>,
    ) -> Vec<usize> {
        if gone.is_empty() {
            return Vec::new();
        }
        while !gone.is_empty() {
            let (batch, rest) = gone.split_at(batch_len(gone));
            gone = rest;
            let for_all = frame(batch.iter());
            for (session, watcher) in &mut self.by_session {
                let Some(connection) = connections.get_mut(watcher.connection) else {
                    continue;
                };
                let of_others = |gone: &&Gone| gone.by != Some(*session);
                let keys = batch.iter().filter(of_others).count();
                if keys == batch.len() {
                    watcher.tell(keys, &for_all, connection);
                } else if keys > 0 {
                    watcher.tell(keys, &frame(batch.iter().filter(of_others)), connection);
                }
            }
        }
        self.by_session.values().map(|watcher| watcher.connection).collect()
    }

    /// After a flush: tells one who has lost events so, if there is room. Says whether there is
    /// something to flush.
    pub(crate) fn catch_up(&mut self, connection: &mut Connection) -> bool {
        let Peer::Watcher(session) = connection.peer else {
            return false;
        };
        match self.by_session.get_mut(&session) {
            Some(Watcher { lost, .. }) if *lost > 0 && connection.unsent_len() == 0 => {
                let lost = std::mem::take(lost);
                tracing::info!(%session, lost, "one who watches reads too slowly; events were lost");
                connection.send(FrameKind::Event, &Event::Resync { lost });
                true
            }
            _ => false,
        }
    }
}

impl Watcher {
    fn tell(&mut self, keys: usize, frame: &[u8], connection: &mut Connection) {
        // After a loss nothing is told before the loss itself.
        if self.lost > 0 || connection.unsent_len() + frame.len() > UNSENT_MAX {
            self.lost += keys as u64;
        } else {
            connection.send_frames(frame);
        }
    }
}

/// How many keys fit into one frame; at least one.
fn batch_len(gone: &[Gone]) -> usize {
    let mut bytes = 0;
    let fits = |gone: &&Gone| {
        bytes += gone.key.len();
        bytes <= FRAME_KEY_BYTES
    };
    gone.iter().take_while(fits).count().max(1)
}

fn frame<'a>(gone: impl Iterator<Item = &'a Gone>) -> Vec<u8> {
    let mut frame = Vec::new();
    let keys = gone.filter_map(|gone| Key::new(&gone.key).ok()).collect();
    maru_protocol::encode(FrameKind::Event, &Event::Gone { keys }, &mut frame)
        .expect("64 KiB of keys are far less than the longest frame");
    frame
}
