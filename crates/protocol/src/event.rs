//! What the server tells unasked, on a connection of its own.

use serde::{Deserialize, Serialize};

use crate::{Key, Secret, SessionId};

/// The first message of a connection on which the server then sends [`Event`]s, and the instance
/// nothing more. It ends with its session; a session has one, and a newer one ends the older.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch<'a> {
    /// The instance's name, for the server's log.
    pub instance: &'a str,
    /// The session that watches.
    pub session: SessionId,
    /// Its secret.
    pub secret: Secret,
}

/// What the server tells. The order of the variants is their code on the wire: append, never
/// insert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event<'a> {
    /// The first: what happens from this moment on is told.
    Watching {
        /// The life of the directory.
        epoch: u64,
    },
    /// Chunks that left the directory: evicted, or deleted by another session. They may have come
    /// back since.
    Gone {
        /// The chunks.
        #[serde(borrow)]
        keys: Vec<Key<'a>>,
    },
    /// The instance read too slowly, and was not told of some chunks that left; from here on it is
    /// told again.
    Resync {
        /// Of how many.
        lost: u64,
    },
}
