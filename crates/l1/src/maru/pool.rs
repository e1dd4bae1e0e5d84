//! The pool as a manager asks it: in batches of any length, with an answer in any case.

use std::sync::Mutex;

use maru_client::{
    Acquire, Client, ClientConfig, ClientError, Committed, PinnedPage, PoolMemory, Promoted,
    Reserve, Reserved, ReservedPage,
};
use maru_protocol::{DeleteOutcome, Key, Presence, Stats};

use super::held::Right;
use crate::ObjectKey;
use crate::lock::lock;

/// Entries listed at a time.
const LIST_LIMIT: u32 = 1024;

/// The client of one manager, until that is closed.
#[derive(Debug)]
pub(super) struct Pool {
    client: Mutex<Option<Client>>,
}

impl Pool {
    pub(super) fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        Ok(Self { client: Mutex::new(Some(Client::connect(config)?)) })
    }

    /// The client; [`ClientError::SessionLost`] once it is closed.
    pub(super) fn client(&self) -> Result<Client, ClientError> {
        let client = lock(&self.client);
        client.clone().ok_or(ClientError::SessionLost)
    }

    /// The most keys of one request to the present server.
    fn batch_max(&self) -> usize {
        // Without one, the requests will say so.
        self.client().map_or(usize::MAX, |client| client.batch_max())
    }

    pub(super) fn close(&self) {
        let client = lock(&self.client).take();
        // Outside of the lock: this says goodbye.
        drop(client);
    }

    pub(super) fn memory(&self) -> Result<PoolMemory, ClientError> {
        self.client()?.memory()
    }

    /// Whether all that is held at this moment, and not lost as far as is known, was held all the
    /// time.
    pub(super) fn is_alive(&self) -> bool {
        self.client().and_then(|client| client.confirm()).inspect_err(warn("confirm")).is_ok()
    }

    /// Pages for all keys that need one, or for none: one answer a key.
    ///
    /// `tag` tells this call's reservations from all others; the manager knows its writers' tags.
    pub(super) fn reserve(
        &self,
        keys: &[&ObjectKey],
        page_bytes: u64,
        tag: u64,
    ) -> Result<Vec<Reserved>, ClientError> {
        let client = self.client()?;
        let mut all = Vec::with_capacity(keys.len());
        for keys in keys.chunks(self.batch_max()) {
            let how = Reserve { tag, ..Reserve::default() };
            let reserved = client.reserve(&wire(keys), page_bytes, how);
            all.extend(reserved.inspect_err(warn("reserve"))?);
        }
        // The server grants a request's pages together; here, those of several.
        let refused =
            |reserved: &Reserved| matches!(reserved, Reserved::OutOfMemory | Reserved::OverBudget);
        if all.iter().any(refused) {
            for reserved in &mut all {
                if matches!(reserved, Reserved::Page(_)) {
                    *reserved = Reserved::OutOfMemory;
                }
            }
            self.flush();
        }
        Ok(all)
    }

    /// Looks up and pins. What the server does not say is not there.
    pub(super) fn acquire(&self, keys: &[&ObjectKey]) -> Vec<Option<PinnedPage>> {
        let ask = |client: &Client, keys: &[_]| client.acquire(&wire(keys), Acquire::default());
        self.ask(keys, "acquire", ask).into_iter().map(Option::flatten).collect()
    }

    /// What is known of keys; `None` where the server does not say.
    pub(super) fn contains(&self, keys: &[&ObjectKey]) -> Vec<Option<Presence>> {
        self.ask(keys, "contains", |client, keys| client.contains(&wire(keys)))
    }

    /// Deletes; `None` where the server does not say what came of it.
    pub(super) fn delete(&self, keys: &[Key<'_>]) -> Vec<Option<DeleteOutcome>> {
        self.ask(keys, "delete", |client, keys| client.delete(keys))
    }

    /// Asks about any number of keys.
    fn ask<K, T>(
        &self,
        keys: &[K],
        what: &'static str,
        ask: impl Fn(&Client, &[K]) -> Result<Vec<T>, ClientError>,
    ) -> Vec<Option<T>> {
        let mut answers = Vec::with_capacity(keys.len());
        for keys in keys.chunks(self.batch_max()) {
            match self.client().and_then(|client| ask(&client, keys)).inspect_err(warn(what)) {
                Ok(some) => answers.extend(some.into_iter().map(Some)),
                Err(_) => answers.extend(none(keys.len())),
            }
        }
        answers
    }

    /// Commits. `None` where it is not known, or known not to be, stored.
    pub(super) fn commit(&self, pages: Vec<ReservedPage>) -> Vec<Option<Committed>> {
        let stored =
            |one: &Committed| matches!(one, Committed::Stored(_) | Committed::Superseded(_));
        self.each_batch(pages, |client, batch| {
            let committed = client.commit(batch)?.into_iter();
            Ok(committed.map(|one| Some(one).filter(stored)).collect())
        })
    }

    /// Commits and pins in one step. `None` as with [`Pool::commit`].
    pub(super) fn promote(&self, pages: Vec<ReservedPage>) -> Vec<Option<Promoted>> {
        self.each_batch(pages, Client::commit_and_acquire)
    }

    fn each_batch<T>(
        &self,
        pages: Vec<ReservedPage>,
        ask: impl Fn(&Client, Vec<ReservedPage>) -> Result<Vec<Option<T>>, ClientError>,
    ) -> Vec<Option<T>> {
        let mut answers = Vec::with_capacity(pages.len());
        let mut pages = pages.into_iter().peekable();
        while pages.peek().is_some() {
            let batch: Vec<ReservedPage> = pages.by_ref().take(self.batch_max()).collect();
            let len = batch.len();
            let answered = self.client().and_then(|client| ask(&client, batch));
            answers.extend(answered.inspect_err(warn("commit")).unwrap_or_else(|_| none(len)));
        }
        answers
    }

    /// Gives rights back, now. If the server is away, they go when it is back.
    pub(super) fn give_back(&self, rights: impl IntoIterator<Item = Right>) {
        let mut pinned = Vec::new();
        let mut private = false;
        for right in rights {
            match right {
                Right::Pinned(page) => pinned.push(page),
                Right::Private(page) => {
                    drop(page);
                    private = true;
                }
            }
        }
        while !pinned.is_empty() {
            let rest = pinned.split_off(pinned.len().min(self.batch_max()));
            let batch = std::mem::replace(&mut pinned, rest);
            let released = self.client().and_then(|client| client.release(batch));
            // Lost with its session, or not heard of: then nothing is left to be released, or the
            // client releases it later.
            let _ = released.inspect_err(|error| tracing::debug!(%error, "release"));
        }
        if private {
            self.flush();
        }
    }

    /// Has the server know of everything that was dropped.
    pub(super) fn flush(&self) {
        let _ = self.client().and_then(|client| client.flush()).inspect_err(warn("give back"));
    }

    /// Counts as use. A hint: what does not arrive is not missed.
    pub(super) fn touch(&self, keys: &[ObjectKey]) {
        for keys in keys.chunks(self.batch_max()) {
            let keys: Vec<Key<'_>> = keys.iter().map(ObjectKey::wire).collect();
            let touched = self.client().and_then(|client| client.touch(&keys));
            let _ = touched.inspect_err(|error| tracing::debug!(%error, "touch"));
        }
    }

    pub(super) fn stats(&self) -> Option<Stats> {
        self.client().and_then(|client| client.stats()).inspect_err(warn("stats")).ok()
    }

    /// The keys of a part of the entries, and where to go on.
    pub(super) fn list(&self, cursor: u64) -> Option<(Vec<Vec<u8>>, Option<u64>)> {
        let listed = self.client().and_then(|client| client.list(b"", cursor, LIST_LIMIT));
        let page = listed.inspect_err(warn("list")).ok()?;
        Some((page.entries.into_iter().map(|entry| entry.key).collect(), page.next))
    }
}

fn wire<'a>(keys: &[&'a ObjectKey]) -> Vec<Key<'a>> {
    keys.iter().map(|key| key.wire()).collect()
}

fn none<T>(count: usize) -> Vec<Option<T>> {
    std::iter::repeat_with(|| None).take(count).collect()
}

/// Says what the server did not do; the caller's answer to its own caller is a value.
fn warn(what: &'static str) -> impl Fn(&ClientError) {
    move |error| tracing::warn!(%error, "{what}: the pool did not do as asked")
}
