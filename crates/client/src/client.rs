//! The client: requests and what comes of them.

use std::sync::Arc;

use maru_protocol::{
    Answer, Body, CommitItem, CommitOutcome, DeleteOutcome, EntryPage, HolderPage, Key, Location,
    Presence, RegionInfo, ReleaseOutcome, ReserveOutcome, Stats,
};

use rustix::process::{Pid, getpid};

use crate::heartbeat::{self, Returns};
use crate::link::{Failed, Link};
use crate::page::{Home, Ticket};
use crate::session::Session;
use crate::{ClientConfig, ClientError, PinnedPage, ReservedPage};

/// One session with a server. Cheap to clone; clones share the session.
#[derive(Debug, Clone)]
pub struct Client {
    link: Arc<Link>,
    returns: Arc<Returns>,
    /// Says goodbye when the last clone is gone.
    _farewell: Arc<Farewell>,
}

/// How to reserve.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reserve {
    /// Tells writers of this instance apart; one reservation a key and tag.
    pub tag: u64,
    /// Refuse a key that somebody is writing at this moment.
    pub unless_being_written: bool,
}

/// How to acquire.
#[derive(Debug, Clone, Copy, Default)]
pub struct Acquire {
    /// Stop at the first chunk that is not there; the result is then a prefix.
    pub stop_at_miss: bool,
}

/// What came of reserving one key.
#[derive(Debug)]
pub enum Reserved {
    /// Write here, then commit.
    Page(ReservedPage),
    /// Somebody stored the chunk already.
    Resident,
    /// Somebody is writing it.
    BeingWritten,
    /// This instance holds a reservation for this key and tag.
    AlreadyReserved,
    /// The pool has no room for the batch.
    OutOfMemory,
    /// The instance's budget has no room for the batch.
    OverBudget,
}

/// What came of committing one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// The chunk is resident, as written.
    Stored(Location),
    /// Somebody was first; their chunk is resident, ours was discarded.
    Superseded(Location),
    /// The session that reserved the page has ended: the chunk was not stored.
    NotReserved,
}

impl Client {
    /// Connects, opens a session, and maps the pool.
    pub fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let endpoint = config.endpoint.clone();
        let cannot = |source| ClientError::Unreachable { endpoint, source: Arc::new(source) };
        let link = Arc::new(Link::new(config));
        link.session()?;
        let returns = Arc::new(Returns::new().map_err(cannot.clone())?);
        let farewell =
            Farewell { link: Arc::clone(&link), returns: Arc::clone(&returns), owner: getpid() };
        let (weak, queue) = (Arc::downgrade(&link), Arc::clone(&returns));
        std::thread::Builder::new()
            .name("maru-heartbeat".to_owned())
            .spawn(move || heartbeat::run(&weak, &queue))
            .map_err(cannot)?;
        Ok(Self { link, returns, _farewell: Arc::new(farewell) })
    }

    /// Reserves pages of `page_bytes` for chunks to be written, in the order of `keys`.
    pub fn reserve(
        &self,
        keys: &[Key<'_>],
        page_bytes: u64,
        how: Reserve,
    ) -> Result<Vec<Reserved>, ClientError> {
        let body = || Body::Reserve {
            keys: keys.to_vec(),
            page_bytes,
            tag: how.tag,
            unless_being_written: how.unless_being_written,
        };
        let (session, answer) = self.ask_in_any_session(body)?;
        let Answer::Reserved(outcomes) = answer else {
            return Err(self.unexpected(&answer));
        };
        self.check_len(outcomes.len(), keys.len())?;
        // A page that cannot be taken must not keep the others from being given back.
        let pages: Vec<Result<Reserved, ClientError>> = outcomes
            .into_iter()
            .map(|outcome| {
                Ok(match outcome {
                    ReserveOutcome::Granted(location) => {
                        Reserved::Page(ReservedPage::new(location, self.home(&session))?)
                    }
                    ReserveOutcome::Resident => Reserved::Resident,
                    ReserveOutcome::BeingWritten => Reserved::BeingWritten,
                    ReserveOutcome::AlreadyReserved => Reserved::AlreadyReserved,
                    ReserveOutcome::OutOfMemory => Reserved::OutOfMemory,
                    ReserveOutcome::OverBudget => Reserved::OverBudget,
                })
            })
            .collect();
        pages.into_iter().collect()
    }

    /// Makes written pages visible to all instances, in one step each.
    ///
    /// [`ClientError::SessionLost`] means that the outcome is not known: each chunk is either
    /// stored, whole, or not; the pages are not ours any more.
    pub fn commit(
        &self,
        pages: impl IntoIterator<Item = ReservedPage>,
    ) -> Result<Vec<Committed>, ClientError> {
        let (items, tickets): (Vec<CommitItem>, Vec<Ticket>) =
            pages.into_iter().map(ReservedPage::finish).unzip();
        let Some(session) = common_session(&tickets)? else {
            return Ok(Vec::new());
        };
        let count = items.len();
        let result = self.link.call(Body::Commit { items, pins: 0 }, Some(&session));
        let (_, answer) = settle(tickets, result)?;
        let Answer::Committed(outcomes) = answer else {
            return Err(self.unexpected(&answer));
        };
        self.check_len(outcomes.len(), count)?;
        Ok(outcomes
            .into_iter()
            .map(|outcome| match outcome {
                CommitOutcome::Committed(location) => Committed::Stored(location),
                CommitOutcome::Superseded(location) => Committed::Superseded(location),
                // `set_length` keeps lengths good.
                CommitOutcome::NotReserved | CommitOutcome::BadLength => Committed::NotReserved,
            })
            .collect())
    }

    /// Looks chunks up and pins those that are there, in one round trip. The result has an element
    /// a key, or with [`Acquire::stop_at_miss`] one for each key before the first miss.
    pub fn acquire(
        &self,
        keys: &[Key<'_>],
        how: Acquire,
    ) -> Result<Vec<Option<PinnedPage>>, ClientError> {
        let body =
            || Body::Acquire { keys: keys.to_vec(), pins: 1, stop_at_miss: how.stop_at_miss };
        let (session, answer) = self.ask_in_any_session(body)?;
        let Answer::Acquired(found) = answer else {
            return Err(self.unexpected(&answer));
        };
        if !how.stop_at_miss || found.len() > keys.len() {
            self.check_len(found.len(), keys.len())?;
        }
        let pages: Vec<Result<Option<PinnedPage>, ClientError>> = found
            .into_iter()
            .map(|found| {
                found.map(|location| PinnedPage::new(location, self.home(&session))).transpose()
            })
            .collect();
        pages.into_iter().collect()
    }

    /// Releases pages in one round trip. [`ClientError::Stale`] if any of them was not protected
    /// until now: then what was read from them must not be used.
    pub fn release(&self, pages: impl IntoIterator<Item = PinnedPage>) -> Result<(), ClientError> {
        let tickets: Vec<Ticket> = pages.into_iter().map(PinnedPage::into_ticket).collect();
        let stale = |error| match error {
            ClientError::SessionLost => ClientError::Stale,
            other => other,
        };
        let Some(session) = common_session(&tickets).map_err(stale)? else {
            return Ok(());
        };
        let handles = tickets.iter().map(|ticket| ticket.handle).collect();
        let result = self.link.call(Body::Release { handles, pins: 1 }, Some(&session));
        let (_, answer) = settle(tickets, result).map_err(stale)?;
        let Answer::Released(outcomes) = answer else {
            return Err(self.unexpected(&answer));
        };
        let all = outcomes.iter().all(|outcome| *outcome == ReleaseOutcome::Released);
        if all { Ok(()) } else { Err(ClientError::Stale) }
    }

    /// Which chunks are there; changes nothing, not even how recently they were used.
    pub fn contains(&self, keys: &[Key<'_>]) -> Result<Vec<Presence>, ClientError> {
        match self.ask_in_any_session(|| Body::Contains { keys: keys.to_vec() })? {
            (_, Answer::Contained(presence)) => Ok(presence),
            (_, answer) => Err(self.unexpected(&answer)),
        }
    }

    /// Counts chunks as used, without reading them.
    pub fn touch(&self, keys: &[Key<'_>]) -> Result<Vec<Presence>, ClientError> {
        match self.ask_in_any_session(|| Body::Touch { keys: keys.to_vec() })? {
            (_, Answer::Contained(presence)) => Ok(presence),
            (_, answer) => Err(self.unexpected(&answer)),
        }
    }

    /// Forgets chunks that nobody pins.
    pub fn delete(&self, keys: &[Key<'_>]) -> Result<Vec<DeleteOutcome>, ClientError> {
        match self.ask_in_any_session(|| Body::Delete { keys: keys.to_vec() })? {
            (_, Answer::Deleted(outcomes)) => Ok(outcomes),
            (_, answer) => Err(self.unexpected(&answer)),
        }
    }

    /// Numbers of the whole pool.
    pub fn stats(&self) -> Result<Stats, ClientError> {
        match self.ask_in_any_session(|| Body::Stats)? {
            (_, Answer::Stats(stats)) => Ok(*stats),
            (_, answer) => Err(self.unexpected(&answer)),
        }
    }

    /// A page of the entries whose keys begin with `prefix`: from `cursor`, 0 at first.
    pub fn list(&self, prefix: &[u8], cursor: u64, limit: u32) -> Result<EntryPage, ClientError> {
        match self.ask_in_any_session(|| Body::List { prefix, cursor, limit })? {
            (_, Answer::Entries(page)) => Ok(page),
            (_, answer) => Err(self.unexpected(&answer)),
        }
    }

    /// A page of what sessions hold: from `cursor`, 0 at first.
    pub fn holders(&self, cursor: u64, limit: u32) -> Result<HolderPage, ClientError> {
        match self.ask_in_any_session(|| Body::Holders { cursor, limit })? {
            (_, Answer::Holders(page)) => Ok(page),
            (_, answer) => Err(self.unexpected(&answer)),
        }
    }

    /// The pool's regions.
    pub fn regions(&self) -> Result<Vec<RegionInfo>, ClientError> {
        match self.ask_in_any_session(|| Body::Regions)? {
            (_, Answer::Regions(regions)) => Ok(regions),
            (_, answer) => Err(self.unexpected(&answer)),
        }
    }

    /// Gives everything back that was dropped so far, now rather than a moment later.
    pub fn flush(&self) -> Result<(), ClientError> {
        self.returns.flush(&self.link)
    }

    /// Asks, and if the session is lost on the way, once more in the next one: what the first
    /// request may have taken ended with its session.
    fn ask_in_any_session<'a>(
        &self,
        body: impl Fn() -> Body<'a>,
    ) -> Result<(Arc<Session>, Answer), ClientError> {
        let first = self.link.call(body(), None).map_err(ClientError::from);
        match first {
            Err(ClientError::SessionLost) => Ok(self.link.call(body(), None)?),
            result => result,
        }
    }

    fn home(&self, session: &Arc<Session>) -> Home {
        Home {
            link: Arc::clone(&self.link),
            returns: Arc::clone(&self.returns),
            session: Arc::clone(session),
        }
    }

    fn check_len(&self, found: usize, expected: usize) -> Result<(), ClientError> {
        if found == expected {
            return Ok(());
        }
        let reason = format!("{found} outcomes to {expected} keys");
        Err(ClientError::Protocol { endpoint: self.link.config.endpoint.clone(), reason })
    }

    fn unexpected(&self, answer: &Answer) -> ClientError {
        let mut reason = format!("an answer of another kind: {answer:?}");
        reason.truncate(reason.floor_char_boundary(80));
        ClientError::Protocol { endpoint: self.link.config.endpoint.clone(), reason }
    }
}

/// The session of all these pages; an error if they are of several, since then one was lost.
fn common_session(tickets: &[Ticket]) -> Result<Option<Arc<Session>>, ClientError> {
    let Some(first) = tickets.first().map(Ticket::session) else {
        return Ok(None);
    };
    let same = tickets.iter().all(|ticket| Arc::ptr_eq(ticket.session(), first));
    if same { Ok(Some(Arc::clone(first))) } else { Err(ClientError::SessionLost) }
}

/// Spends the tickets of a request if the server has applied it, or still may: else they drop, and
/// what they stand for is given back.
fn settle<T>(tickets: Vec<Ticket>, result: Result<T, Failed>) -> Result<T, ClientError> {
    if result.as_ref().map_or_else(|failed| failed.in_flight, |_| true) {
        tickets.into_iter().for_each(Ticket::spend);
    }
    Ok(result?)
}

/// Ends the session when the last clone of a client is gone. Pages that are still out keep the
/// link, but not the session: what they hold ends with it.
#[derive(Debug)]
struct Farewell {
    link: Arc<Link>,
    returns: Arc<Returns>,
    /// The process whose session it is. A forked child has a copy of all this, and the connection in
    /// common with its parent.
    owner: Pid,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if getpid() == self.owner {
            self.link.farewell();
            self.returns.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use maru_directory::Config;
    use maru_protocol::Endpoint;
    use maru_server::{Embedded, PoolConfig, ServerConfig};

    use super::*;

    /// A server, and a client of it with a reserved page.
    fn reserved() -> (tempfile::TempDir, Embedded, Client, ReservedPage) {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (pool, socket) = (folder.path().join("pool"), folder.path().join("socket"));
        let server = Embedded::start(&ServerConfig {
            pool: PoolConfig::Temporary(format!("{}:8MiB", pool.display()).parse().unwrap()),
            socket: Some(socket.clone()),
            listen: None,
            region_bytes: None,
            populate: false,
            directory: Config::default(),
        })
        .unwrap();
        let endpoint = Endpoint::Unix(socket);
        let client = Client::connect(ClientConfig { endpoint, ..ClientConfig::default() }).unwrap();
        let key = Key::new(b"key").unwrap();
        match client.reserve(&[key], 4096, Reserve::default()).unwrap().remove(0) {
            Reserved::Page(page) => (folder, server, client, page),
            other => panic!("not granted: {other:?}"),
        }
    }

    /// It said goodbye for its parent, and hung up on it.
    #[test]
    fn a_forked_child_does_not_end_the_session_of_its_parent() {
        let (_folder, _server, client, page) = reserved();
        let (link, returns) = (Arc::clone(&client.link), Arc::clone(&client.returns));
        drop(Farewell { link, returns, owner: Pid::INIT });
        assert!(matches!(client.commit([page]).unwrap()[..], [Committed::Stored(_)]));
    }

    /// A page of a lost session was handed out after the server was told that none is out.
    #[test]
    fn no_page_is_handed_out_once_its_session_is_lost() {
        let (_folder, _server, client, page) = reserved();
        let location = page.location();
        drop(page);
        let session = client.link.session().unwrap();
        session.lose();
        let late = ReservedPage::new(location, client.home(&session));
        assert!(matches!(late, Err(ClientError::SessionLost)));
    }
}
