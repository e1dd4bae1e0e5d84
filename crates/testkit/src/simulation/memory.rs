//! Memory that hosts share without their caches being coherent: what one host stores is in its own
//! cache until it is written back, and what it has in its cache it goes on seeing.

use std::collections::{BTreeMap, HashMap};

use maru_protocol::Visibility;

/// The size of a line of this memory in bytes. Far larger than a real one: a page has a few, and that
/// is enough for some of them to be in a cache and others not.
pub(super) const LINE_BYTES: u64 = 128 << 10;

/// One host.
pub(super) type Host = usize;

/// Memory, and the caches of the hosts.
#[derive(Debug)]
pub(super) struct Memory {
    visibility: Visibility,
    /// By line; what was never stored is 0.
    lines: HashMap<u64, u64>,
    /// What each host's caches have of it, in an order: the random ones are chosen by place.
    caches: Vec<BTreeMap<u64, Cached>>,
    /// Planted faults: writers do not publish what they commit, readers do not acquire what they read.
    pub(super) chunks_unpublished: bool,
    pub(super) chunks_unacquired: bool,
}

#[derive(Debug, Clone, Copy)]
struct Cached {
    value: u64,
    dirty: bool,
}

/// The lines of `bytes` bytes at `offset`.
pub(super) fn lines(offset: u64, bytes: u64) -> impl Iterator<Item = u64> + Clone {
    offset / LINE_BYTES..(offset + bytes).div_ceil(LINE_BYTES)
}

impl Memory {
    pub(super) fn new(visibility: Visibility, hosts: usize) -> Self {
        Self {
            visibility,
            lines: HashMap::new(),
            caches: vec![BTreeMap::new(); hosts],
            chunks_unpublished: false,
            chunks_unacquired: false,
        }
    }

    fn is_coherent(&self) -> bool {
        self.visibility == Visibility::Coherent
    }

    fn write_back(&mut self, host: Host, line: u64) {
        if let Some(cached) = self.caches[host].get_mut(&line)
            && cached.dirty
        {
            cached.dirty = false;
            self.lines.insert(line, cached.value);
        }
    }

    pub(super) fn store(&mut self, host: Host, line: u64, value: u64) {
        if self.is_coherent() {
            self.lines.insert(line, value);
        } else {
            self.caches[host].insert(line, Cached { value, dirty: true });
        }
    }

    /// Past the caches.
    pub(super) fn store_non_temporal(&mut self, host: Host, line: u64, value: u64) {
        self.caches[host].remove(&line);
        self.lines.insert(line, value);
    }

    pub(super) fn load(&mut self, host: Host, line: u64) -> u64 {
        let value = self.lines.get(&line).copied().unwrap_or(0);
        if self.is_coherent() {
            return value;
        }
        self.caches[host].entry(line).or_insert(Cached { value, dirty: false }).value
    }

    /// Writes lines back; they stay in the cache.
    pub(super) fn publish(&mut self, host: Host, lines: impl Iterator<Item = u64>) {
        lines.for_each(|line| self.write_back(host, line));
    }

    /// Writes lines back and forgets them: the next load is of memory.
    pub(super) fn acquire(&mut self, host: Host, lines: impl Iterator<Item = u64>) {
        lines.for_each(|line| self.evict(host, line));
    }

    fn evict(&mut self, host: Host, line: u64) {
        self.write_back(host, line);
        self.caches[host].remove(&line);
    }

    /// The host comes down, and what its caches held is lost.
    pub(super) fn lose_caches(&mut self, host: Host) {
        self.caches[host].clear();
    }

    /// What a cache does by itself: writes some line back, forgets one, or reads one ahead.
    pub(super) fn disturb(&mut self, host: Host, how: u8, choice: u64, line: u64) {
        let cached = &self.caches[host];
        let place = usize::try_from(choice).unwrap_or(0).checked_rem(cached.len());
        let some = place.and_then(|place| cached.keys().nth(place).copied());
        match (how % 3, some) {
            (0, Some(line)) => self.write_back(host, line),
            (1, Some(line)) => self.evict(host, line),
            _ => drop(self.load(host, line)),
        }
    }

    /// Something else than what was stored is there from now on.
    pub(super) fn damage(&mut self, line: u64) {
        *self.lines.entry(line).or_default() ^= 1 << 40;
    }

    /// What memory holds, whatever caches hold.
    pub(super) fn truth(&self, line: u64) -> u64 {
        self.lines.get(&line).copied().unwrap_or(0)
    }

    /// A host whose cache may yet write this line back.
    pub(super) fn dirty_host(&self, line: u64) -> Option<Host> {
        self.caches.iter().position(|cache| cache.get(&line).is_some_and(|cached| cached.dirty))
    }
}
