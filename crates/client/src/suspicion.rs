//! Pages that were found bad here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use maru_protocol::{Body, Handle};

use crate::link::{Failed, Link};
use crate::{ClientError, Session, Writing};

/// Suspected chunks that are kept in mind: as many as a server looks into in a second.
const KNOWN_MAX: usize = 1024;

/// Something to tell the server of a page.
#[derive(Debug)]
pub(crate) struct Suspicion {
    /// The session that pins the page, or has reserved it.
    pub(crate) session: Arc<Session>,
    pub(crate) handle: Handle,
    /// Of a reserved page, which is given back with this. Until the server has heard it, the page counts
    /// as written to: with a goodbye it would be free, and taken to be clean.
    pub(crate) writing: Option<Writing>,
}

impl Suspicion {
    /// Its session is over, or it is not known whether the server has heard it.
    fn lose(self) {
        if let Some(writing) = self.writing {
            writing.never_end();
        }
    }
}

/// What is to be told, and what was.
#[derive(Debug, Default)]
pub(crate) struct Suspicions {
    queue: Mutex<Vec<Suspicion>>,
    /// Chunks that were found bad. They are not read again, whatever the server finds.
    known: Mutex<VecDeque<Handle>>,
    /// Whether there are any.
    any_known: AtomicBool,
}

impl Suspicions {
    pub(crate) fn push(&self, suspicion: Suspicion) {
        if suspicion.writing.is_none() {
            let mut known = self.known();
            if known.len() == KNOWN_MAX {
                known.pop_front();
            }
            known.push_back(suspicion.handle);
            self.any_known.store(true, Ordering::Release);
        }
        if suspicion.session.is_lost() { suspicion.lose() } else { self.lock().push(suspicion) }
    }

    /// Whether a chunk was found bad here.
    pub(crate) fn is_known(&self, handle: Handle) -> bool {
        self.any_known.load(Ordering::Acquire) && self.known().contains(&handle)
    }

    /// Whether the server is yet to be told of a page that could not be written.
    pub(crate) fn has_reserved(&self) -> bool {
        self.lock().iter().any(|suspicion| suspicion.writing.is_some())
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Handle>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Suspicion>> {
        // Nothing panics while the queue is half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what is queued.
    pub(crate) fn flush(&self, link: &Link) -> Result<(), ClientError> {
        let mut queue = std::mem::take(&mut *self.lock());
        while let Some(session) = queue.first().map(|first| Arc::clone(&first.session)) {
            let same = |item: &mut Suspicion| Arc::ptr_eq(&item.session, &session);
            let batch: Vec<_> = queue.extract_if(.., same).take(session.batch_max()).collect();
            let handles = batch.iter().map(|item| item.handle).collect();
            match link.call(Body::Suspect { handles }, Some(&session)) {
                Ok(_) => {}
                Err(Failed { error: ClientError::SessionLost, .. }) => {
                    batch.into_iter().for_each(Suspicion::lose);
                }
                Err(Failed { error, in_flight }) => {
                    if in_flight {
                        batch.into_iter().for_each(Suspicion::lose);
                    } else {
                        queue.extend(batch);
                    }
                    self.lock().extend(queue);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
