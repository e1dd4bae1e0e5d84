//! Pages that hosts' caches may hold unwritten lines of.
//!
//! Between hosts that are not coherent, a writer that died or was cut off leaves what it wrote in its
//! host's caches. Any time later these lines may be written back, over whatever lies there then. So
//! the page is vacant, and is granted only to that host itself, whose caches know of its lines, until
//! the host has written them back. A grant alone is no proof of that: only if the page is committed
//! are its lines written back; if it is given up, it is as it was.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use foldhash::fast::FixedState;
use indexmap::IndexSet;
use maru_protocol::{Answer, Handle, Location, Refusal, SessionId, Visibility};

use crate::Directory;
use crate::ids::{HostId, PageAt};
use crate::pages::{PageState, Why};
use crate::record::Record;

/// Pages that one answer asks a host to write back: some milliseconds of work.
const ASKED_MAX: usize = 64;

/// Hosts whose caches may hold lines of a page; not empty.
pub(crate) type Hosts = BTreeSet<HostId>;

/// The stained pages, by hosts and page size.
#[derive(Debug, Default)]
pub(crate) struct Stains {
    pages: BTreeMap<(Hosts, u64), IndexSet<PageAt, FixedState>>,
    /// Those that are not vacant: granted to their host, and neither committed nor given up since.
    kept: BTreeMap<PageAt, Hosts>,
    /// Hosts whose caches hold nothing any more, for the ticks to come.
    gone: Hosts,
}

impl Stains {
    pub(crate) fn insert(&mut self, hosts: Hosts, page_bytes: u64, at: PageAt) {
        self.pages.entry((hosts, page_bytes)).or_default().insert(at);
    }

    /// An instance of this host is here: it is not gone.
    pub(crate) fn host_is_here(&mut self, host: HostId) {
        self.gone.remove(&host);
    }

    fn remove(&mut self, key: &(Hosts, u64), at: PageAt) {
        if let Some(pages) = self.pages.get_mut(key) {
            pages.swap_remove(&at);
            if pages.is_empty() {
                self.pages.remove(key);
            }
        }
    }

    /// Pages of this size that may be granted to `host`, and to no other.
    pub(crate) fn count(&self, host: HostId, page_bytes: u64) -> u64 {
        let own = self.pages.get(&(Hosts::from([host]), page_bytes));
        own.map_or(0, |pages| pages.len() as u64)
    }

    /// Takes one of them.
    pub(crate) fn take(&mut self, host: HostId, page_bytes: u64) -> Option<PageAt> {
        if self.pages.is_empty() {
            return None;
        }
        let key = (Hosts::from([host]), page_bytes);
        let at = self.pages.get(&key)?.last().copied()?;
        self.remove(&key, at);
        self.kept.insert(at, key.0);
        Some(at)
    }

    /// A page that is not vacant was or may have been stained when it was granted.
    pub(crate) fn keep(&mut self, at: PageAt, hosts: Hosts) {
        self.kept.insert(at, hosts);
    }

    /// Whether a page that is not vacant may have been granted to this host.
    pub(crate) fn may_be_held(&self, at: PageAt, host: HostId) -> bool {
        self.kept.get(&at).is_none_or(|hosts| hosts.iter().eq([&host]))
    }

    /// A page was committed, so all its lines are written back. Says whether it was stained.
    pub(crate) fn committed(&mut self, at: PageAt) -> bool {
        self.kept.remove(&at).is_some()
    }

    /// Pages that are not vacant and are stained once they are, with their hosts.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (PageAt, &Hosts)> {
        self.kept.iter().map(|(at, hosts)| (*at, hosts))
    }

    fn key_of(&self, at: PageAt) -> Option<&(Hosts, u64)> {
        self.pages.iter().find(|(_, pages)| pages.contains(&at)).map(|(key, _)| key)
    }

    /// All of them, with their hosts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PageAt, &Hosts)> {
        let keys = self.pages.iter();
        keys.flat_map(|((hosts, _), pages)| pages.iter().map(move |at| (*at, hosts)))
    }
}

impl Directory {
    /// Makes a page vacant. If caches of `hosts` may hold lines of it, or if it was stained when it was
    /// granted, it is stained.
    pub(crate) fn vacate_page(&mut self, at: PageAt, hosts: &Hosts) {
        let mut hosts = Cow::Borrowed(hosts);
        if let Some(kept) = self.stains.kept.remove(&at) {
            hosts.to_mut().extend(kept);
        }
        if self.config.visibility == Visibility::Coherent || hosts.is_empty() {
            self.pages.set(at, PageState::Free);
        } else {
            self.pages.set(at, PageState::Quarantined(Why::Stained));
            self.record_stain(at, &hosts);
            self.stains.insert(hosts.into_owned(), self.pages.page_bytes(at), at);
        }
    }

    fn record_stain(&mut self, at: PageAt, hosts: &Hosts) {
        let (generation, hosts) = (self.pages.get(at).generation, numbers(hosts));
        self.pages.journal.write(&Record::Stained { page: at, generation, hosts });
    }

    /// Pages that the host of a session is asked to write back.
    pub(crate) fn stained_here(&self, id: SessionId) -> Vec<Location> {
        let Some(host) = self.sessions.live.get(&id).map(|session| session.host) else {
            return Vec::new();
        };
        let here = self.stains.iter().filter(|(_, hosts)| hosts.contains(&host));
        here.take(ASKED_MAX)
            .map(|(at, _)| Location::new(self.pages.handle(at), self.pages.page_bytes(at)))
            .collect()
    }

    /// The host of a session has written back what its caches held of these pages.
    pub(crate) fn cleaned(&mut self, id: SessionId, handles: &[Handle]) {
        let Some(host) = self.sessions.live.get(&id).map(|session| session.host) else {
            return;
        };
        for handle in handles {
            if let Some((at, PageState::Quarantined(Why::Stained))) = self.pages.find(*handle) {
                self.clean(at, host);
            }
        }
    }

    /// A host holds no line of a page any more.
    fn clean(&mut self, at: PageAt, host: HostId) {
        let Some(key) = self.stains.key_of(at).filter(|(hosts, _)| hosts.contains(&host)) else {
            return;
        };
        let key = key.clone();
        self.stains.remove(&key, at);
        let (mut hosts, page_bytes) = key;
        hosts.remove(&host);
        if hosts.is_empty() {
            self.pages.set(at, PageState::Free);
        } else {
            self.record_stain(at, &hosts);
            self.stains.insert(hosts, page_bytes, at);
        }
    }

    /// A host's caches hold nothing any more; its pages are cleaned by the ticks to come.
    pub(crate) fn host_gone(&mut self, name: &str) -> Result<Answer, Refusal> {
        if let Some(host) = self.sessions.host_named(name) {
            if self.sessions.live.values().any(|session| session.host == host) {
                return Err(Refusal::HostInUse);
            }
            self.stains.gone.insert(host);
        }
        Ok(Answer::Done)
    }

    /// Cleans pages of hosts that are gone, at most `work` of them. Returns how many.
    pub(crate) fn clean_after_hosts(&mut self, work: u32) -> u32 {
        let mut done = 0;
        while let Some(host) = self.stains.gone.first().copied() {
            let here = self.stains.iter().filter(|(_, hosts)| hosts.contains(&host));
            let some: Vec<PageAt> =
                here.take((work - done) as usize).map(|(page, _)| page).collect();
            for at in some {
                self.clean(at, host);
                done += 1;
            }
            if done == work {
                break;
            }
            self.stains.gone.remove(&host);
        }
        done
    }
}

/// Hosts, as records have them.
pub(crate) fn numbers(hosts: &Hosts) -> Vec<u32> {
    hosts.iter().map(|host| host.number()).collect()
}
