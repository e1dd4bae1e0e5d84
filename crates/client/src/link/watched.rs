//! What a link knows of the watch of its client, to end it or have it look again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::stream::Stream;

/// What a link knows of the watch of its client.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    newest: Mutex<Newest>,
}

#[derive(Debug, Default)]
struct Newest {
    number: u64,
    stream: Weak<Stream>,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Newest> {
        // Nothing panics while it is half changed.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a new watch; the older ones end.
    pub(crate) fn begin(&self) -> u64 {
        let mut newest = self.lock();
        newest.number += 1;
        newest.interrupt();
        newest.number
    }

    /// Whether no watch has begun since.
    pub(crate) fn is_newest(&self, number: u64) -> bool {
        self.lock().number == number
    }

    /// Keeps the stream of a watch for [`Watched::interrupt`]; `false` if there is a newer watch.
    pub(crate) fn keep(&self, number: u64, stream: &Arc<Stream>) -> bool {
        let mut newest = self.lock();
        if newest.number == number {
            newest.stream = Arc::downgrade(stream);
        }
        newest.number == number
    }

    /// Has the thread that waits for events look again whether, and for which session, it does.
    pub(crate) fn interrupt(&self) {
        self.lock().interrupt();
    }
}

impl Newest {
    fn interrupt(&mut self) {
        if let Some(stream) = std::mem::take(&mut self.stream).upgrade() {
            stream.shut_down();
        }
    }
}
