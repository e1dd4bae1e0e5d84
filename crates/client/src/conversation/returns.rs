//! What is given back, and by which requests.

use std::sync::Arc;

use maru_protocol::{Answer, Body, CommitOutcome, Handle, Location, ReserveOutcome};

use super::Session;

/// One thing to give back.
#[derive(Debug)]
pub struct Return {
    /// The session that holds it.
    pub session: Arc<Session>,
    /// The page.
    pub handle: Handle,
    /// So many pins; 0 for a reservation.
    pub pins: u32,
}

impl Return {
    /// Takes what one request can give back from the queue: the session to ask it in, the request,
    /// and what it is about, to be queued again if it could not be asked. `None` if the queue is
    /// empty.
    pub fn next_batch(queue: &mut Vec<Self>) -> Option<(Arc<Session>, Body<'static>, Vec<Self>)> {
        let first = queue.first()?;
        let (session, pins) = (Arc::clone(&first.session), first.pins);
        let alike = |item: &mut Self| Arc::ptr_eq(&item.session, &session) && item.pins == pins;
        let batch: Vec<Self> = queue.extract_if(.., alike).take(session.batch_max()).collect();
        let handles = batch.iter().map(|item| item.handle).collect();
        let body = match pins {
            0 => Body::Abort { handles },
            pins => Body::Release { handles, pins },
        };
        Some((session, body, batch))
    }

    /// What an answer granted; `pins`: so many were asked for on each chunk.
    pub(super) fn all_of(session: &Arc<Session>, answer: &Answer, pins: u32) -> Vec<Self> {
        let give_back = |location: &Location, pins| {
            let session = Arc::clone(session);
            Self { session, handle: location.handle, pins }
        };
        match answer {
            Answer::Reserved(outcomes) => outcomes
                .iter()
                .filter_map(|outcome| match outcome {
                    ReserveOutcome::Granted(location) => Some(give_back(location, 0)),
                    _ => None,
                })
                .collect(),
            Answer::Acquired(found) => {
                found.iter().flatten().map(|chunk| give_back(&chunk.location, pins)).collect()
            }
            Answer::Committed(outcomes) if pins > 0 => outcomes
                .iter()
                .filter_map(|outcome| match outcome {
                    CommitOutcome::Committed(chunk) | CommitOutcome::Superseded(chunk) => {
                        Some(give_back(&chunk.location, pins))
                    }
                    CommitOutcome::NotReserved | CommitOutcome::BadLength => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}
