//! Faults to be planted: a simulation that does not find them proves nothing.

use maru_protocol::SessionId;

use crate::Directory;

impl Directory {
    /// The reply to a request is not kept: sent again, the request is applied again (rule 5).
    pub fn plant_forgotten_reply(&mut self, session: SessionId, seq: u64) {
        if let Some(session) = self.sessions.live.get_mut(&session) {
            session.replies.kept.remove(&seq);
        }
    }

    /// The writers that vanished.
    pub fn vanished_sessions(&self) -> impl Iterator<Item = SessionId> {
        self.sessions.vanished.keys().copied()
    }

    /// The next page that is granted keeps the generation that it had (rule 8).
    pub fn plant_old_generation(&mut self) {
        self.pages.keeps_generation = true;
    }
}
