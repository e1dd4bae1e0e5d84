//! What left the directory, kept for those who watch.

use std::collections::BTreeSet;

use maru_protocol::{Refusal, Secret, SessionId};

use crate::Directory;
use crate::sessions::Phase;

/// A chunk that was resident and is not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// The key's bytes.
    pub key: Box<[u8]>,
    /// The session that deleted it; `None` if it was evicted.
    pub by: Option<SessionId>,
}

/// Who watches, and what they were not told yet.
#[derive(Debug, Default)]
pub(crate) struct Watching {
    sessions: BTreeSet<SessionId>,
    gone: Vec<Gone>,
}

impl Watching {
    /// A resident entry left; `key` is only called if that matters to anybody.
    pub(crate) fn withdrawn(&mut self, by: Option<SessionId>, key: impl FnOnce() -> Box<[u8]>) {
        if !self.sessions.is_empty() {
            self.gone.push(Gone { key: key(), by });
        }
    }
}

impl Directory {
    /// From now on chunks that leave are kept for [`Directory::take_gone`], until the session ends or
    /// stops to watch.
    pub fn watch(&mut self, id: SessionId, secret: Secret) -> Result<(), Refusal> {
        match self.sessions.live.get(&id) {
            Some(session)
                if session.secret == secret && !matches!(session.phase, Phase::Ended(_)) =>
            {
                self.watching.sessions.insert(id);
                Ok(())
            }
            _ => Err(Refusal::SessionEnded),
        }
    }

    /// The session watches no more.
    pub fn unwatch(&mut self, id: SessionId) {
        self.watching.sessions.remove(&id);
    }

    /// Whether the session watches: it does until it ends.
    #[must_use]
    pub fn is_watching(&self, id: SessionId) -> bool {
        self.watching.sessions.contains(&id)
    }

    /// The chunks that left since this was called last, in their order. To be called after every
    /// step, which bounds their number; empty while nobody watches.
    #[must_use]
    pub fn take_gone(&mut self) -> Vec<Gone> {
        std::mem::take(&mut self.watching.gone)
    }
}
