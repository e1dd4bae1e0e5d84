//! What a shared manager keeps in its own books: reservations, and chunks that it holds.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maru_client::{ClientError, PinnedPage, PrivatePage, ReservedPage};

use crate::clock::TtlLock;
use crate::lock::lock;
use crate::object::{ReadBuffer, WriteBuffer};
use crate::staging::Staging;
use crate::{ObjectKey, ReadObject};

/// The books. What is resident in the pool is not in them, unless this manager holds it.
#[derive(Debug)]
pub(super) struct State {
    pub(super) staging: Staging<ReservedPage>,
    pub(super) held: HashMap<ObjectKey, Held>,
    /// Keys that a thread is staging, making resident or deleting at the server at this moment.
    pub(super) changing: HashSet<ObjectKey>,
    pub(super) closed: bool,
}

/// A chunk that this manager may read: pinned at the server, or temporary and its own.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) page: Arc<HeldPage>,
    pub(super) lock: TtlLock,
    /// Until when it stays although nobody has locked it.
    idle_until: Duration,
}

impl State {
    pub(super) fn new(write_ttl: Duration) -> Self {
        Self {
            staging: Staging::new(write_ttl),
            held: HashMap::new(),
            changing: HashSet::new(),
            closed: false,
        }
    }

    /// The chunk, if it is held, and neither damaged nor its session over, as far as is known.
    pub(super) fn held(&self, key: &ObjectKey) -> Option<&Held> {
        self.held.get(key).filter(|held| !held.page.is_lost())
    }

    /// The same, to be locked.
    pub(super) fn held_mut(&mut self, key: &ObjectKey) -> Option<&mut Held> {
        self.held.get_mut(key).filter(|held| !held.page.is_lost())
    }

    /// Locks a chunk that was just pinned. If another thread was first, its pin serves both, and
    /// this one is returned; and if the manager was closed meanwhile, it is returned, too.
    pub(super) fn hold(
        &mut self,
        now: Duration,
        ttl: Duration,
        key: &ObjectKey,
        right: Right,
        read_locks: u32,
    ) -> (ReadObject, Option<Right>) {
        if let Some(held) = self.held_mut(key) {
            held.reserve(now, ttl, read_locks);
            return (held.object(), Some(right));
        }
        let page = Arc::new(HeldPage::new(right));
        let idle_until = now.saturating_add(ttl);
        let mut held = Held { page, lock: TtlLock::OPEN, idle_until };
        held.reserve(now, ttl, read_locks);
        let object = held.object();
        if self.closed {
            return (object, held.page.end());
        }
        self.held.insert(key.clone(), held);
        (object, None)
    }

    /// Takes the chunks that nobody holds any more: their locks have expired, they are temporary and
    /// were not read in time, they are damaged, or they were lost with their session.
    pub(super) fn take_expired(&mut self, now: Duration) -> Vec<(ObjectKey, Held)> {
        let expired = |held: &Held| !held.lock.is_locked(now) && now >= held.idle_until;
        self.held.extract_if(|_, held| expired(held) || held.page.is_lost()).collect()
    }
}

impl Held {
    /// Takes so many read locks, or none.
    pub(super) fn reserve(&mut self, now: Duration, ttl: Duration, read_locks: u32) {
        if read_locks > 0 {
            self.lock.lock(now, ttl, read_locks);
        }
    }

    pub(super) fn object(&self) -> ReadObject {
        ReadObject::new(Arc::clone(&self.page) as Arc<dyn ReadBuffer>)
    }
}

/// The right to read one page.
#[derive(Debug)]
pub(super) enum Right {
    /// A resident chunk of the pool.
    Pinned(PinnedPage),
    /// A temporary chunk, known to nobody else.
    Private(PrivatePage),
}

impl Right {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Pinned(page) => page.bytes(),
            Self::Private(page) => page.bytes(),
        }
    }

    fn offset(&self) -> u64 {
        match self {
            Self::Pinned(page) => page.location().offset(),
            Self::Private(page) => page.offset(),
        }
    }

    /// Holds it against its checksum, if it has one, as the client is told to.
    fn verify(&self) -> Result<(), ClientError> {
        match self {
            Self::Pinned(page) => page.verify(),
            Self::Private(_) => Ok(()),
        }
    }

    fn is_confirmed(&self) -> bool {
        match self {
            Self::Pinned(page) => page.confirm(),
            Self::Private(page) => page.confirm(),
        }
        .is_ok()
    }

    fn is_lost(&self) -> bool {
        match self {
            Self::Pinned(page) => page.is_lost(),
            Self::Private(page) => page.is_lost(),
        }
    }
}

/// A page whose readers can be told that it is over: the pin goes when the manager says so, not when
/// the last [`ReadObject`] does.
#[derive(Debug)]
pub(super) struct HeldPage {
    bytes: u64,
    offset: u64,
    temporary: bool,
    right: Mutex<Option<Arc<Right>>>,
    /// Whether it was verified. Locked by who is at that: the others wait for what comes of it.
    verified: Mutex<bool>,
    /// Its bytes are not the chunk's.
    damaged: AtomicBool,
}

impl HeldPage {
    fn new(right: Right) -> Self {
        Self {
            bytes: right.bytes().len() as u64,
            offset: right.offset(),
            temporary: matches!(right, Right::Private(_)),
            right: Mutex::new(Some(Arc::new(right))),
            verified: Mutex::new(false),
            damaged: AtomicBool::new(false),
        }
    }

    pub(super) const fn is_temporary(&self) -> bool {
        self.temporary
    }

    fn right(&self) -> Option<Arc<Right>> {
        lock(&self.right).clone()
    }

    /// Whether it is known that nobody can read it any more.
    pub(super) fn is_lost(&self) -> bool {
        self.damaged.load(Ordering::Acquire) || self.right().is_none_or(|right| right.is_lost())
    }

    /// Whether its bytes may be shown, as far as it is looked at: once.
    fn is_sound(&self, right: &Right) -> bool {
        let mut verified = lock(&self.verified);
        if *verified || self.damaged.load(Ordering::Acquire) {
            return *verified;
        }
        match right.verify() {
            Ok(()) => *verified = true,
            Err(error) => {
                tracing::warn!(%error, "a chunk cannot be read");
                let damaged = matches!(error, ClientError::Damaged { .. });
                self.damaged.store(damaged, Ordering::Release);
            }
        }
        *verified
    }

    /// Ends all reading. The right is the caller's to give back; if a reader is at it just now, that
    /// one gives it back, a moment later.
    pub(super) fn end(&self) -> Option<Right> {
        let mut right = lock(&self.right);
        mem::take(&mut *right).and_then(Arc::into_inner)
    }
}

impl ReadBuffer for HeldPage {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn offset(&self) -> u64 {
        self.offset
    }

    fn is_live(&self) -> bool {
        !self.is_lost()
    }

    fn read(&self, read: &mut dyn FnMut(&[u8])) -> bool {
        // Keeps the pin while the bytes are looked at.
        let Some(right) = self.right().filter(|right| self.is_sound(right)) else {
            return false;
        };
        read(right.bytes());
        right.is_confirmed()
    }
}

impl WriteBuffer for ReservedPage {
    fn bytes_mut(&mut self) -> &mut [u8] {
        let length = usize::try_from(self.location().length).unwrap_or(usize::MAX);
        let bytes = self.bytes_mut();
        let length = length.min(bytes.len());
        &mut bytes[..length]
    }

    fn len(&self) -> u64 {
        self.location().length
    }

    fn offset(&self) -> u64 {
        self.location().offset()
    }

    fn is_lost(&self) -> bool {
        self.is_lost()
    }
}
