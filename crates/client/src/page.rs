//! Pages: what a reader holds, and what a writer holds.

use std::mem;
use std::sync::Arc;

use maru_memory::{MappingError, PageMut, PageView, PoolMapping, checksum};
use maru_protocol::{Checksum, Chunk, CommitItem, Handle, Location};

use crate::heartbeat::Returns;
use crate::link::{Link, MappedSession};
use crate::suspicion::Suspicion;
use crate::{ClientError, Return, Session, Writing};

/// Where pages come from and go back to.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) link: Arc<Link>,
    pub(crate) returns: Arc<Returns>,
    pub(crate) mapped: Arc<MappedSession>,
}

/// The right to one page. Dropping it gives the page back, a moment later.
#[derive(Debug)]
pub(crate) struct Ticket {
    home: Home,
    pub(crate) handle: Handle,
    /// So many pins; 0 for a reservation.
    pins: u32,
    spent: bool,
}

impl Ticket {
    const fn new(home: Home, handle: Handle, pins: u32) -> Self {
        Self { home, handle, pins, spent: false }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.home.mapped.session
    }

    fn mapping(&self) -> &Arc<PoolMapping> {
        &self.home.mapped.memory.mapping
    }

    /// Whether its session has ended: then the page may be somebody else's.
    fn is_lost(&self) -> bool {
        self.session().is_lost()
    }

    /// The page is the server's again, or will be: nothing is to be given back.
    pub(crate) fn spend(mut self) {
        self.spent = true;
    }

    fn confirm(&self) -> Result<(), ClientError> {
        match self.home.link.confirm(self.session()) {
            Err(ClientError::SessionLost) => Err(ClientError::Stale),
            result => result,
        }
    }

    /// Has the server told that the page is bad, a moment later.
    fn suspect(&self, writing: Option<Writing>) {
        let session = Arc::clone(self.session());
        self.home.returns.suspect(Suspicion { session, handle: self.handle, writing });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.spent && !self.is_lost() {
            let session = Arc::clone(self.session());
            self.home.returns.push(Return { session, handle: self.handle, pins: self.pins });
        }
    }
}

/// A chunk that this instance pins: read-only, and in its place until it is given back.
///
/// The pin belongs to a session. If that ends (the server lost sight of this instance for longer
/// than its lease), the page may become another chunk's: bytes read from it count only when
/// [`PinnedPage::confirm`], [`PinnedPage::copy_to`], [`PinnedPage::verify`] or
/// [`crate::Client::release`] said yes afterwards. Dropping the page releases it, a moment later;
/// [`crate::Client::release`] does so for many in one round trip.
///
/// ```compile_fail
/// fn overwrite(page: &mut maru_client::PinnedPage) {
///     page.bytes_mut().fill(0); // there is no such thing
/// }
/// ```
#[derive(Debug)]
pub struct PinnedPage {
    // Dropped in this order: what is given back is not in use any more.
    view: PageView,
    ticket: Ticket,
    chunk: Chunk,
}

impl PinnedPage {
    /// What another host wrote is acquired before it can be loaded.
    pub(crate) fn new(chunk: Chunk, home: Home) -> Result<Self, ClientError> {
        let location = chunk.location;
        let ticket = Ticket::new(home, location.handle, 1);
        let view = ticket.mapping().read(location.offset(), location.length)?;
        let page = Self { view, ticket, chunk };
        if page.ticket.home.returns.is_suspected(location.handle) {
            return Err(page.damaged("it was found to be before".to_owned()));
        }
        if chunk.foreign {
            page.protected(page.view.acquire(location.generation().0))?;
        }
        Ok(page)
    }

    /// Where the chunk lies.
    #[must_use]
    pub const fn location(&self) -> Location {
        self.chunk.location
    }

    /// The mapping that it lies in: for who hands addresses on, which are good as long as this is kept.
    #[must_use]
    pub fn mapping(&self) -> &Arc<PoolMapping> {
        self.ticket.mapping()
    }

    /// The chunk's bytes, in the pool itself. See the type's description for when they count.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.view.bytes()
    }

    /// Fails with [`ClientError::Stale`] unless the page was protected all the time until now.
    pub fn confirm(&self) -> Result<(), ClientError> {
        self.ticket.confirm()
    }

    /// Whether it is known already that the page is protected no more. `false` promises nothing.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.ticket.is_lost()
    }

    /// Copies the chunk into `buffer`, of the same length, and confirms that it was protected. What was
    /// copied is held against the checksum, if that is this read's turn
    /// ([`crate::ClientConfig::verify`]); [`ClientError::Damaged`] if it is another, or if the page
    /// cannot be read.
    pub fn copy_to(&self, buffer: &mut [u8]) -> Result<(), ClientError> {
        self.protected(self.view.copy_to(buffer))?;
        match self.expected() {
            Some(expected) => self.compare(expected, checksum(buffer)),
            None => Ok(()),
        }
    }

    /// For who reads the bytes in place: holds the chunk against its checksum where it lies, if that is
    /// this read's turn, and confirms that it was protected. Errors as of [`PinnedPage::copy_to`].
    pub fn verify(&self) -> Result<(), ClientError> {
        match self.expected() {
            Some(expected) => self.compare(expected, self.protected(self.view.checksum())?),
            None => self.confirm(),
        }
    }

    /// What this read is to be held against.
    fn expected(&self) -> Option<Checksum> {
        self.chunk.checksum.filter(|_| self.ticket.home.link.sampler.takes())
    }

    fn compare(&self, expected: Checksum, found: u64) -> Result<(), ClientError> {
        if Checksum::new(found) == expected {
            return Ok(());
        }
        Err(self.suspect("its bytes are not those that were committed".to_owned()))
    }

    fn suspect(&self, reason: String) -> ClientError {
        self.ticket.suspect(None);
        self.damaged(reason)
    }

    /// What came of a read, if the page was protected until then. What was not may be anything, and is
    /// no damage.
    fn protected<T>(&self, read: Result<T, MappingError>) -> Result<T, ClientError> {
        match read {
            Err(error) if !matches!(error, MappingError::Media { .. }) => Err(error.into()),
            read => {
                self.confirm()?;
                read.map_err(|error| self.suspect(error.to_string()))
            }
        }
    }

    const fn damaged(&self, reason: String) -> ClientError {
        ClientError::Damaged { offset: self.chunk.location.offset(), reason }
    }

    pub(crate) fn into_ticket(self) -> Ticket {
        self.ticket
    }
}

/// A page granted to this instance to write a chunk into, visible to nobody until
/// [`crate::Client::commit`]. Dropping it gives it back unseen.
///
/// If the session ends meanwhile, the page stays this writer's, and may be written to, but its
/// commit is refused.
#[derive(Debug)]
pub struct ReservedPage {
    /// Taken by those that end the writing, with the page itself.
    open: Option<Open>,
    location: Location,
}

/// What a writer has until the writing ends.
#[derive(Debug)]
struct Open {
    // Dropped in this order: the page is let go before anybody is told so.
    page: PageMut,
    writing: Writing,
    ticket: Ticket,
    /// Of the whole page, if that was copied in and not touched since.
    checksum: Option<u64>,
    /// Why the page must not be anybody's any more.
    failure: Option<Arc<MappingError>>,
}

impl ReservedPage {
    pub(crate) fn new(location: Location, home: Home) -> Result<Self, ClientError> {
        let ticket = Ticket::new(home, location.handle, 0);
        let writing = Writing::begin(ticket.session())?;
        let page = ticket.mapping().write(location.offset(), location.length)?;
        let open = Open { page, writing, ticket, checksum: None, failure: None };
        Ok(Self { open: Some(open), location })
    }

    fn open(&self) -> &Open {
        self.open.as_ref().expect("who ends the writing takes the page")
    }

    fn open_mut(&mut self) -> &mut Open {
        self.open.as_mut().expect("who ends the writing takes the page")
    }

    /// Where the chunk will lie, with the length it has so far.
    #[must_use]
    pub const fn location(&self) -> Location {
        self.location
    }

    /// The mapping that it lies in: for who hands addresses on, which are good as long as this is kept.
    #[must_use]
    pub fn mapping(&self) -> &Arc<PoolMapping> {
        self.open().ticket.mapping()
    }

    /// The page's bytes, in the pool itself. What was there before is undefined.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let open = self.open_mut();
        open.checksum = None;
        open.page.bytes_mut()
    }

    /// Copies the whole chunk in; `bytes` has the page's length. A page whose memory fails is never
    /// stored, nor granted again.
    pub fn copy_from(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let open = self.open_mut();
        open.checksum = None;
        if let Err(error) = open.page.copy_from(bytes) {
            let (is_bad, error) = (matches!(error, MappingError::Media { .. }), Arc::new(error));
            if is_bad {
                open.failure = Some(Arc::clone(&error));
            }
            return Err(ClientError::Mapping(error));
        }
        // The copy has just brought them near.
        open.checksum = open.ticket.session().has_checksums().then(|| checksum(bytes));
        Ok(())
    }

    /// Says how many bytes the chunk has, if it is shorter than the page.
    pub fn set_length(&mut self, length: u64) -> Result<(), ClientError> {
        let page_len = self.open().page.len();
        if length == 0 || length > page_len {
            return Err(ClientError::BadLength { len: length, page_len });
        }
        self.location.length = length;
        Ok(())
    }

    /// Whether its session has ended: then it cannot be committed any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.open().ticket.is_lost()
    }

    /// Gives the page up without a word, since others may still write to it: nobody gets it before this
    /// session has ended, without a goodbye, and a quarantine is over.
    pub fn leave(mut self) {
        if let Some(open) = self.open.take() {
            open.leave();
        }
    }

    /// Ends the writing, and keeps the chunk for this process alone: no key ever leads to it.
    pub fn into_private(mut self) -> Result<PrivatePage, ClientError> {
        let location = self.location;
        let mut open = self.open.take().expect("it was not taken before");
        // Here, since what is read does not change any more, and the page may be given back any time.
        if let Err(error) = open.write_back() {
            open.condemn();
            return Err(error);
        }
        let ticket = open.close();
        let view = ticket.mapping().read(location.offset(), location.length);
        if ticket.is_lost() {
            return Err(ClientError::SessionLost);
        }
        Ok(PrivatePage { view: view?, ticket })
    }

    /// Ends the writing, and makes the chunk visible to other hosts: what is to be committed, and the
    /// right to it. If that fails, nobody gets the page any more.
    pub(crate) fn finish(mut self) -> Result<(CommitItem, Ticket), ClientError> {
        let length = self.location.length;
        let mut open = self.open.take().expect("it was not taken before");
        match open.publish(length) {
            Ok(checksum) => {
                let ticket = open.close();
                Ok((CommitItem { handle: ticket.handle, length, checksum }, ticket))
            }
            Err(error) => {
                open.condemn();
                Err(error)
            }
        }
    }
}

impl Drop for ReservedPage {
    fn drop(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        if open.ticket.is_lost() && open.ticket.home.link.config.outside_writers {
            // That this process writes no more would end its quarantine.
            open.leave();
        } else if let Err(error) = open.write_back() {
            tracing::warn!(%error, "a page cannot be given back; nobody gets it any more");
            open.condemn();
        }
    }
}

impl Open {
    /// Makes what was written visible to other hosts. Returns its checksum, if the pool has them.
    fn publish(&mut self, length: u64) -> Result<Option<Checksum>, ClientError> {
        self.check()?;
        let checksum = match self.checksum {
            _ if !self.ticket.session().has_checksums() => None,
            Some(checksum) if length == self.page.len() => Some(checksum),
            _ => Some(self.page.checksum(length)?),
        };
        self.page.publish(length, self.ticket.handle.generation.0)?;
        Ok(checksum.map(Checksum::new))
    }

    /// Leaves nothing of the page in this host's caches alone.
    fn write_back(&mut self) -> Result<(), ClientError> {
        if self.ticket.home.link.check_owner().is_err() {
            // A forked child has not got the page's memory, and wrote nothing.
            return Ok(());
        }
        self.check()?;
        Ok(self.page.write_back(self.ticket.handle.generation.0)?)
    }

    fn check(&self) -> Result<(), ClientError> {
        self.failure.clone().map_or(Ok(()), |failure| Err(ClientError::Mapping(failure)))
    }

    /// The page is written no more.
    fn close(self) -> Ticket {
        let Self { page, writing, ticket, .. } = self;
        drop((page, writing));
        ticket
    }

    /// The page is out for as long as the session lives.
    fn leave(self) {
        let Self { page, writing, ticket, .. } = self;
        drop(page);
        // Never let go: so the session says neither goodbye nor that nothing of it is written to.
        mem::forget(writing);
        ticket.spend();
    }

    /// Nobody is to have the page any more.
    fn condemn(self) {
        let Self { page, writing, ticket, .. } = self;
        drop(page);
        ticket.suspect(Some(writing));
        ticket.spend();
    }
}

/// A chunk that only this process reads, in a page that it reserved and wrote. Dropping it gives the
/// page back.
///
/// As with [`PinnedPage`], what was read counts only if the session still lived afterwards.
#[derive(Debug)]
pub struct PrivatePage {
    // Dropped in this order: what is given back is not in use any more.
    view: PageView,
    ticket: Ticket,
}

impl PrivatePage {
    /// The chunk's bytes, in the pool itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.view.bytes()
    }

    /// Where it lies in the pool's address range, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.view.offset()
    }

    /// Fails with [`ClientError::Stale`] unless the page was this process's all the time until now.
    pub fn confirm(&self) -> Result<(), ClientError> {
        self.ticket.confirm()
    }

    /// Whether it is known already that the page may be another's. `false` promises nothing.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.ticket.is_lost()
    }
}
