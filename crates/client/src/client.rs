//! The client: requests and what comes of them.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use maru_memory::PoolMapping;
use maru_protocol::{
    Answer, Body, Chunk, CommitItem, CommitOutcome, DeleteOutcome, EntryPage, Handle, HolderPage,
    HostInfo, Key, Location, Presence, RegionInfo, ReleaseOutcome, ReserveOutcome, Stats, Topology,
};

use crate::heartbeat::{self, Returns};
use crate::link::{Failed, Link, MappedSession};
use crate::memory::Memory;
use crate::page::{Home, Ticket};
use crate::{ClientConfig, ClientError, PinnedPage, ReservedPage, Session};

/// One session with a server. Cheap to clone; clones share the session.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) link: Arc<Link>,
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
    /// The page's memory failed, or could not be made visible to other hosts: the chunk was not stored,
    /// and nobody gets the page any more.
    Unwritable,
}

/// A chunk that was committed and pinned in one step.
#[derive(Debug)]
pub struct Promoted {
    /// The resident chunk.
    pub page: PinnedPage,
    /// Somebody was first: it is their chunk, and ours was discarded.
    pub superseded: bool,
}

/// The pool's memory in this process.
#[derive(Debug, Clone)]
pub struct PoolMemory {
    /// Both views of it.
    pub mapping: Arc<PoolMapping>,
    /// Which devices lie where in it.
    pub topology: Topology,
}

impl Client {
    /// Connects, opens a session, and maps the pool.
    pub fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let endpoint = config.endpoint.clone();
        let cannot = |source| ClientError::Unreachable { endpoint, source: Arc::new(source) };
        let link = Arc::new(Link::new(config));
        link.session()?;
        let returns = Arc::new(Returns::new().map_err(cannot.clone())?);
        let farewell = Farewell { link: Arc::clone(&link), returns: Arc::clone(&returns) };
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
        let (mapped, answer) = self.ask_in_any_session(body)?;
        let Answer::Reserved(outcomes) = answer else {
            return Err(self.unexpected(&mapped, &answer));
        };
        self.check_len(&mapped, outcomes.len(), keys.len())?;
        // A page that cannot be taken must not keep the others from being given back.
        let pages: Vec<Result<Reserved, ClientError>> = outcomes
            .into_iter()
            .map(|outcome| {
                Ok(match outcome {
                    ReserveOutcome::Granted(location) => {
                        Reserved::Page(ReservedPage::new(location, self.home(&mapped))?)
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

    /// Reserves `count` pages of `page_bytes` for chunks that have no name yet; they get one with
    /// [`Client::commit_as`]. The result has an element a page: a page, or why the pool has none.
    pub fn reserve_unnamed(
        &self,
        count: usize,
        page_bytes: u64,
    ) -> Result<Vec<Reserved>, ClientError> {
        // Names that only this process uses, each once; random, since numbers of processes come again.
        static PROCESS: LazyLock<u64> =
            LazyLock::new(|| RandomState::new().build_hasher().finish());
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let first = NEXT.fetch_add(count as u64, Ordering::Relaxed);
        let (process, ends) = (*PROCESS, first..first + count as u64);
        let names: Vec<String> = ends.map(|n| format!("(unnamed)@{process:x}@{n}")).collect();
        let keys = names.iter().map(|name| Key::new(name.as_bytes()).expect("at most 48 bytes"));
        let keys: Vec<Key<'_>> = keys.collect();
        self.reserve(&keys, page_bytes, Reserve::default())
    }

    /// Makes written pages visible to all instances, in one step each; before anybody is told of them,
    /// to other hosts. The result has an element a page.
    ///
    /// [`ClientError::SessionLost`] and [`ClientError::Timeout`] mean that the outcome is not known:
    /// each chunk is either stored, whole, or not; the pages are not ours any more.
    pub fn commit(
        &self,
        pages: impl IntoIterator<Item = ReservedPage>,
    ) -> Result<Vec<Committed>, ClientError> {
        let pages = pages.into_iter().map(|page| (None, page));
        Ok(self.commit_and_pin(pages, 0)?.outcomes.into_iter().map(committed).collect())
    }

    /// [`Client::commit`] under other keys than the pages were reserved for, one a page: for those of
    /// [`Client::reserve_unnamed`].
    pub fn commit_as<'a>(
        &self,
        pages: impl IntoIterator<Item = (Key<'a>, ReservedPage)>,
    ) -> Result<Vec<Committed>, ClientError> {
        let pages = pages.into_iter().map(|(name, page)| (Some(name), page));
        Ok(self.commit_and_pin(pages, 0)?.outcomes.into_iter().map(committed).collect())
    }

    /// [`Client::commit`] and [`Client::acquire`] in one step: pins the chunks that are resident
    /// afterwards, ours or those of who was first. `None` where the chunk was not stored, as with
    /// [`Committed::NotReserved`] and [`Committed::Unwritable`], or cannot be read from here.
    pub fn commit_and_acquire(
        &self,
        pages: impl IntoIterator<Item = ReservedPage>,
    ) -> Result<Vec<Option<Promoted>>, ClientError> {
        let pages = pages.into_iter().map(|page| (None, page));
        let CommitAnswer { mapped, outcomes } = self.commit_and_pin(pages, 1)?;
        let promoted = outcomes.into_iter().map(|outcome| {
            let (chunk, superseded) = match outcome? {
                CommitOutcome::Committed(chunk) => (chunk, false),
                CommitOutcome::Superseded(chunk) => (chunk, true),
                CommitOutcome::NotReserved | CommitOutcome::BadLength => return None,
            };
            Some(Promoted { page: self.pinned(mapped.as_ref()?, chunk)?, superseded })
        });
        Ok(promoted.collect())
    }

    /// All pages have a name, or none has.
    fn commit_and_pin<'a>(
        &self,
        pages: impl IntoIterator<Item = (Option<Key<'a>>, ReservedPage)>,
        pins: u32,
    ) -> Result<CommitAnswer, ClientError> {
        self.link.check_owner()?;
        let (mut is_good, mut names) = (Vec::new(), Vec::new());
        let (mut items, mut tickets) = (Vec::new(), Vec::new());
        // All of them, before the first is committed: what fails is given up, and the others are not.
        for (name, page) in pages {
            let finished = finished(page);
            is_good.push(finished.is_some());
            if let Some((item, ticket)) = finished {
                names.extend(name);
                items.push(item);
                tickets.push(ticket);
            }
        }
        let Some(session) = common_session(&tickets)? else {
            return Ok(CommitAnswer { mapped: None, outcomes: vec![None; is_good.len()] });
        };
        let count = items.len();
        let result = self.link.call(Body::Commit { items, pins, names }, Some(&session));
        let (mapped, answer) = settle(tickets, result)?;
        let Answer::Committed(outcomes) = answer else {
            return Err(self.unexpected(&mapped, &answer));
        };
        self.check_len(&mapped, outcomes.len(), count)?;
        let mut outcomes = outcomes.into_iter();
        let outcome = |good: bool| if good { outcomes.next() } else { None };
        let outcomes = is_good.into_iter().map(outcome).collect();
        Ok(CommitAnswer { mapped: Some(mapped), outcomes })
    }

    /// Looks chunks up and pins those that are there, in one round trip. The result has an element
    /// a key, or with [`Acquire::stop_at_miss`] one for each key before the first miss. A chunk that
    /// cannot be read from here (this process has no memory mapped there, what another host wrote
    /// cannot be made visible, or it was found to be damaged before) is a miss, too; its pin is given
    /// back.
    pub fn acquire(
        &self,
        keys: &[Key<'_>],
        how: Acquire,
    ) -> Result<Vec<Option<PinnedPage>>, ClientError> {
        let body =
            || Body::Acquire { keys: keys.to_vec(), pins: 1, stop_at_miss: how.stop_at_miss };
        let (mapped, answer) = self.ask_in_any_session(body)?;
        let Answer::Acquired(found) = answer else {
            return Err(self.unexpected(&mapped, &answer));
        };
        if !how.stop_at_miss || found.len() > keys.len() {
            self.check_len(&mapped, found.len(), keys.len())?;
        }
        // All of them, before any is left out: what is not handed out gives itself back.
        let mut pages: Vec<Option<PinnedPage>> =
            found.into_iter().map(|found| self.pinned(&mapped, found?)).collect();
        if how.stop_at_miss {
            let hits = pages.iter().take_while(|page| page.is_some()).count();
            pages.truncate(hits);
        }
        Ok(pages)
    }

    /// A pinned chunk, if it can be read from here.
    fn pinned(&self, mapped: &Arc<MappedSession>, chunk: Chunk) -> Option<PinnedPage> {
        PinnedPage::new(chunk, self.home(mapped))
            .inspect_err(|error| tracing::warn!(%error, "a chunk cannot be read from here"))
            .ok()
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
        let handles: Vec<Handle> = tickets.iter().map(|ticket| ticket.handle).collect();
        let count = handles.len();
        let result = self.link.call(Body::Release { handles, pins: 1 }, Some(&session));
        let (mapped, answer) = settle(tickets, result).map_err(stale)?;
        let Answer::Released(outcomes) = answer else {
            return Err(self.unexpected(&mapped, &answer));
        };
        self.check_len(&mapped, outcomes.len(), count)?;
        let all = outcomes.iter().all(|outcome| *outcome == ReleaseOutcome::Released);
        if all { Ok(()) } else { Err(ClientError::Stale) }
    }

    /// Which chunks are there; changes nothing, not even how recently they were used.
    pub fn contains(&self, keys: &[Key<'_>]) -> Result<Vec<Presence>, ClientError> {
        match self.ask_in_any_session(|| Body::Contains { keys: keys.to_vec() })? {
            (mapped, Answer::Contained(presence)) => {
                self.check_len(&mapped, presence.len(), keys.len())?;
                Ok(presence)
            }
            (mapped, answer) => Err(self.unexpected(&mapped, &answer)),
        }
    }

    /// Counts chunks as used, without reading them.
    pub fn touch(&self, keys: &[Key<'_>]) -> Result<Vec<Presence>, ClientError> {
        match self.ask_in_any_session(|| Body::Touch { keys: keys.to_vec() })? {
            (mapped, Answer::Contained(presence)) => {
                self.check_len(&mapped, presence.len(), keys.len())?;
                Ok(presence)
            }
            (mapped, answer) => Err(self.unexpected(&mapped, &answer)),
        }
    }

    /// Forgets chunks that nobody pins.
    pub fn delete(&self, keys: &[Key<'_>]) -> Result<Vec<DeleteOutcome>, ClientError> {
        match self.ask_in_any_session(|| Body::Delete { keys: keys.to_vec() })? {
            (mapped, Answer::Deleted(outcomes)) => {
                self.check_len(&mapped, outcomes.len(), keys.len())?;
                Ok(outcomes)
            }
            (mapped, answer) => Err(self.unexpected(&mapped, &answer)),
        }
    }

    /// Numbers of the whole pool.
    pub fn stats(&self) -> Result<Stats, ClientError> {
        match self.ask_in_any_session(|| Body::Stats)? {
            (_, Answer::Stats(stats)) => Ok(*stats),
            (mapped, answer) => Err(self.unexpected(&mapped, &answer)),
        }
    }

    /// A page of the entries whose keys begin with `prefix`: from `cursor`, 0 at first.
    pub fn list(&self, prefix: &[u8], cursor: u64, limit: u32) -> Result<EntryPage, ClientError> {
        match self.ask_in_any_session(|| Body::List { prefix, cursor, limit })? {
            (_, Answer::Entries(page)) => Ok(page),
            (mapped, answer) => Err(self.unexpected(&mapped, &answer)),
        }
    }

    /// A page of what sessions hold: from `cursor`, 0 at first.
    pub fn holders(&self, cursor: u64, limit: u32) -> Result<HolderPage, ClientError> {
        match self.ask_in_any_session(|| Body::Holders { cursor, limit })? {
            (_, Answer::Holders(page)) => Ok(page),
            (mapped, answer) => Err(self.unexpected(&mapped, &answer)),
        }
    }

    /// The hosts that the server was told of.
    pub fn hosts(&self) -> Result<Vec<HostInfo>, ClientError> {
        match self.ask_in_any_session(|| Body::Hosts)? {
            (_, Answer::Hosts(hosts)) => Ok(hosts),
            (mapped, answer) => Err(self.unexpected(&mapped, &answer)),
        }
    }

    /// Says that a host is powered off or was started anew: its caches hold nothing any more, so pages
    /// that it left unwritten lines of can be granted to others. Said of a host that runs, it is how
    /// bytes are lost; one that has a session is refused.
    pub fn host_gone(&self, host: &str) -> Result<(), ClientError> {
        match self.ask_in_any_session(|| Body::HostGone { host })? {
            (_, Answer::Done) => Ok(()),
            (mapped, answer) => Err(self.unexpected(&mapped, &answer)),
        }
    }

    /// The pool's regions.
    pub fn regions(&self) -> Result<Vec<RegionInfo>, ClientError> {
        match self.ask_in_any_session(|| Body::Regions)? {
            (_, Answer::Regions(regions)) => Ok(regions),
            (mapped, answer) => Err(self.unexpected(&mapped, &answer)),
        }
    }

    /// Fails unless the present session was alive at a moment after this call began: then whatever
    /// it held before, it held all the time. Costs a round trip only if nothing was heard lately.
    pub fn confirm(&self) -> Result<(), ClientError> {
        let mapped = self.link.session()?;
        self.link.confirm(&mapped.session)
    }

    /// The pool's memory, as this process has it mapped. Asks nobody: it is that of the session that
    /// was begun last, whether or not that lives.
    pub fn memory(&self) -> Result<PoolMemory, ClientError> {
        let mapped = self.link.mapped().map_or_else(|| self.link.session(), Ok)?;
        let Memory { topology, mapping, .. } = &*mapped.memory;
        Ok(PoolMemory { mapping: Arc::clone(mapping), topology: topology.clone() })
    }

    /// The most keys or pages that one request may have, as the server last said.
    #[must_use]
    pub fn batch_max(&self) -> usize {
        self.link.present().map_or(usize::MAX, |session| session.batch_max())
    }

    /// Gives everything back that was dropped so far, now rather than a moment later.
    pub fn flush(&self) -> Result<(), ClientError> {
        // What could not be sent, the heartbeat tries again.
        self.returns.flush(&self.link).inspect_err(|_| self.returns.wake())
    }

    /// Asks, and if the session is lost on the way, once more in the next one: what the first
    /// request may have taken ended with its session.
    fn ask_in_any_session<'a>(
        &self,
        body: impl Fn() -> Body<'a>,
    ) -> Result<(Arc<MappedSession>, Answer), ClientError> {
        let first = self.link.call(body(), None).map_err(ClientError::from);
        match first {
            Err(ClientError::SessionLost) => Ok(self.link.call(body(), None)?),
            result => result,
        }
    }

    fn home(&self, mapped: &Arc<MappedSession>) -> Home {
        Home {
            link: Arc::clone(&self.link),
            returns: Arc::clone(&self.returns),
            mapped: Arc::clone(mapped),
        }
    }

    fn check_len(
        &self,
        mapped: &MappedSession,
        found: usize,
        expected: usize,
    ) -> Result<(), ClientError> {
        if found == expected {
            return Ok(());
        }
        Err(self.unusable(mapped, format!("{found} outcomes to {expected} keys")))
    }

    fn unexpected(&self, mapped: &MappedSession, answer: &Answer) -> ClientError {
        let mut reason = format!("an answer of another kind: {answer:?}");
        reason.truncate(reason.floor_char_boundary(80));
        self.unusable(mapped, reason)
    }

    /// An answer that makes no sense. What it granted cannot be given back one by one, since it does
    /// not say all of it; so the session is given up, and everything with it.
    fn unusable(&self, mapped: &MappedSession, reason: String) -> ClientError {
        self.link.give_up(&mapped.session);
        ClientError::Protocol { endpoint: self.link.config.endpoint.clone(), reason }
    }
}

/// What came of a commit, and in which session; of nothing, in none.
struct CommitAnswer {
    mapped: Option<Arc<MappedSession>>,
    /// `None` for a page that could not be written, so that nothing was asked for it.
    outcomes: Vec<Option<CommitOutcome>>,
}

/// What is to be committed of a page; `None` if it cannot be written.
fn finished(page: ReservedPage) -> Option<(CommitItem, Ticket)> {
    let offset = page.location().offset();
    page.finish()
        .inspect_err(|error| tracing::warn!(offset, %error, "a page cannot be committed"))
        .ok()
}

/// What came of committing a page; `None` is one that could not be written.
const fn committed(outcome: Option<CommitOutcome>) -> Committed {
    match outcome {
        None => Committed::Unwritable,
        Some(CommitOutcome::Committed(chunk)) => Committed::Stored(chunk.location),
        Some(CommitOutcome::Superseded(chunk)) => Committed::Superseded(chunk.location),
        // `set_length` keeps lengths good.
        Some(CommitOutcome::NotReserved | CommitOutcome::BadLength) => Committed::NotReserved,
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
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.returns.settle(&self.link);
        self.link.farewell();
        self.returns.wake();
    }
}

#[cfg(test)]
mod tests {
    use maru_server::Embedded;

    use super::*;
    use crate::test_server;

    /// A server, and a client of it with a reserved page.
    fn reserved() -> (tempfile::TempDir, Embedded, Client, ReservedPage) {
        let (folder, server, config) = test_server::start();
        let client = Client::connect(config).unwrap();
        let key = Key::new(b"key").unwrap();
        match client.reserve(&[key], 4096, Reserve::default()).unwrap().remove(0) {
            Reserved::Page(page) => (folder, server, client, page),
            other => panic!("not granted: {other:?}"),
        }
    }

    /// A copy of the link in another process spoke for it: it released pins, and said goodbye.
    #[test]
    fn a_forked_child_does_not_speak_for_its_parent() {
        let (_folder, _server, client, page) = reserved();
        let copy = client.link.of_another_process();
        assert!(matches!(copy.session(), Err(ClientError::SessionLost)));
        let session = &client.link.session().unwrap().session;
        assert!(matches!(copy.confirm(session), Err(ClientError::SessionLost)));
        let asked = copy.call(Body::Renew, None).map_err(ClientError::from);
        assert!(matches!(asked, Err(ClientError::SessionLost)));
        copy.farewell();
        assert!(matches!(client.commit([page]).unwrap()[..], [Committed::Stored(_)]));
    }

    /// A page of a lost session was handed out after the server was told that none is out.
    #[test]
    fn no_page_is_handed_out_once_its_session_is_lost() {
        let (_folder, _server, client, page) = reserved();
        let location = page.location();
        drop(page);
        let mapped = client.link.session().unwrap();
        mapped.session.lose();
        let late = ReservedPage::new(location, client.home(&mapped));
        assert!(matches!(late, Err(ClientError::SessionLost)));
    }
}
