//! Pages: what a reader holds, and what a writer holds.

use std::sync::Arc;

use maru_memory::{PageMut, PageView, PoolMapping};
use maru_protocol::{Chunk, CommitItem, Handle, Location};

use crate::heartbeat::Returns;
use crate::link::{Link, MappedSession};
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
/// [`PinnedPage::confirm`], [`PinnedPage::copy_to`] or [`crate::Client::release`] said yes
/// afterwards. Dropping the page releases it, a moment later; [`crate::Client::release`] does so
/// for many in one round trip.
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
    pub(crate) fn new(chunk: Chunk, home: Home) -> Result<Self, ClientError> {
        let location = chunk.location;
        let ticket = Ticket { home, handle: location.handle, pins: 1, spent: false };
        let view = ticket.mapping().read(location.offset(), location.length)?;
        Ok(Self { view, ticket, chunk })
    }

    /// Where the chunk lies.
    #[must_use]
    pub const fn location(&self) -> Location {
        self.chunk.location
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

    /// Copies the chunk into `buffer`, of the same length, and confirms that it was protected.
    pub fn copy_to(&self, buffer: &mut [u8]) -> Result<(), ClientError> {
        self.view.copy_to(buffer)?;
        self.confirm()
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
    // Dropped in this order: the page is let go before anybody is told so.
    page: PageMut,
    writing: Writing,
    ticket: Ticket,
    length: u64,
}

impl ReservedPage {
    pub(crate) fn new(location: Location, home: Home) -> Result<Self, ClientError> {
        let ticket = Ticket { home, handle: location.handle, pins: 0, spent: false };
        let writing = Writing::begin(ticket.session())?;
        let page = ticket.mapping().write(location.offset(), location.length)?;
        Ok(Self { page, writing, ticket, length: location.length })
    }

    /// Where the chunk will lie, with the length it has so far.
    #[must_use]
    pub const fn location(&self) -> Location {
        Location::new(self.ticket.handle, self.length)
    }

    /// The page's bytes, in the pool itself. What was there before is undefined.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.page.bytes_mut()
    }

    /// Copies the whole chunk in; `bytes` has the page's length.
    pub fn copy_from(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        Ok(self.page.copy_from(bytes)?)
    }

    /// Says how many bytes the chunk has, if it is shorter than the page.
    pub fn set_length(&mut self, length: u64) -> Result<(), ClientError> {
        let page_len = self.page.len();
        if length == 0 || length > page_len {
            return Err(ClientError::BadLength { len: length, page_len });
        }
        self.length = length;
        Ok(())
    }

    /// Whether its session has ended: then it cannot be committed any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.ticket.is_lost()
    }

    /// Ends the writing, and keeps the chunk for this process alone: no key ever leads to it.
    pub fn into_private(self) -> Result<PrivatePage, ClientError> {
        let Self { page, writing, ticket, length } = self;
        let view = ticket.mapping().read(page.offset(), length);
        drop((page, writing));
        if ticket.is_lost() {
            return Err(ClientError::SessionLost);
        }
        Ok(PrivatePage { view: view?, ticket })
    }

    /// Ends the writing: what is to be committed, and the right to it.
    pub(crate) fn finish(self) -> (CommitItem, Ticket) {
        let Self { page, writing, ticket, length } = self;
        drop((page, writing));
        (CommitItem { handle: ticket.handle, length, checksum: None }, ticket)
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
