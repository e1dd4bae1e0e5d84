//! Which entry goes first.

use std::fmt;

use crate::ids::{EntryId, QueueId};

/// Decides which entry of a queue is evicted first.
///
/// The directory tells it everything that happens to an entry and asks for the coldest one; the
/// policy holds no bytes and evicts nothing by itself. Calls come in the order `insert`, then any
/// number of `touch`, `pin` and `unpin`, then `remove`; `pin` and `unpin` alternate, and `remove`
/// comes only while unpinned. All calls should take constant time.
pub trait EvictionPolicy: fmt::Debug + Send {
    /// The entry became resident, in this queue.
    fn insert(&mut self, entry: EntryId, queue: QueueId);
    /// The entry was used.
    fn touch(&mut self, entry: EntryId);
    /// The entry must not be proposed until it is unpinned.
    fn pin(&mut self, entry: EntryId);
    /// The entry may be proposed again.
    fn unpin(&mut self, entry: EntryId);
    /// The entry is gone.
    fn remove(&mut self, entry: EntryId);
    /// These resident entries come next: the policy may read ahead what it holds of them.
    fn warm(&self, _entries: &mut dyn Iterator<Item = EntryId>) {}
    /// The unpinned entry of the queue that should go first.
    fn coldest(&self, queue: QueueId) -> Option<EntryId>;
}

/// Least recently used first. The time of use is when the last pin was taken or given back, or the
/// entry was touched or written.
#[derive(Debug, Default)]
pub struct Lru {
    nodes: Vec<Node>,
    queues: Vec<Ends>,
}

/// A doubly linked list through the entries' numbers; `None` is an end.
#[derive(Debug, Clone, Copy)]
struct Node {
    colder: Option<EntryId>,
    hotter: Option<EntryId>,
    queue: QueueId,
    pinned: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    coldest: Option<EntryId>,
    hottest: Option<EntryId>,
}

impl Lru {
    fn link_hottest(&mut self, entry: EntryId) {
        let ends = &mut self.queues[self.nodes[entry.index()].queue.index()];
        let colder = ends.hottest.replace(entry);
        match colder {
            Some(colder) => self.nodes[colder.index()].hotter = Some(entry),
            None => ends.coldest = Some(entry),
        }
        let node = &mut self.nodes[entry.index()];
        (node.colder, node.hotter) = (colder, None);
    }

    fn unlink(&mut self, entry: EntryId) {
        let Node { colder, hotter, queue, .. } = self.nodes[entry.index()];
        let ends = &mut self.queues[queue.index()];
        match colder {
            Some(colder) => self.nodes[colder.index()].hotter = hotter,
            None => ends.coldest = hotter,
        }
        match hotter {
            Some(hotter) => self.nodes[hotter.index()].colder = colder,
            None => ends.hottest = colder,
        }
    }
}

impl EvictionPolicy for Lru {
    fn insert(&mut self, entry: EntryId, queue: QueueId) {
        let node = Node { colder: None, hotter: None, queue, pinned: false };
        if self.nodes.len() <= entry.index() {
            self.nodes.resize(entry.index() + 1, node);
        }
        if self.queues.len() <= queue.index() {
            self.queues.resize(queue.index() + 1, Ends::default());
        }
        self.nodes[entry.index()] = node;
        self.link_hottest(entry);
    }

    fn touch(&mut self, entry: EntryId) {
        if !self.nodes[entry.index()].pinned {
            self.unlink(entry);
            self.link_hottest(entry);
        }
    }

    fn pin(&mut self, entry: EntryId) {
        self.unlink(entry);
        self.nodes[entry.index()].pinned = true;
    }

    fn unpin(&mut self, entry: EntryId) {
        self.nodes[entry.index()].pinned = false;
        self.link_hottest(entry);
    }

    fn remove(&mut self, entry: EntryId) {
        self.unlink(entry);
    }

    fn warm(&self, entries: &mut dyn Iterator<Item = EntryId>) {
        let own: Vec<Node> = entries.map(|entry| self.nodes[entry.index()]).collect();
        let neighbours = own.iter().flat_map(|node| [node.colder, node.hotter]).flatten();
        let read = neighbours.fold(0, |sum, entry| sum ^ self.nodes[entry.index()].queue.index());
        std::hint::black_box(read);
    }

    fn coldest(&self, queue: QueueId) -> Option<EntryId> {
        self.queues.get(queue.index()).and_then(|ends| ends.coldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(n: usize) -> QueueId {
        QueueId::new(n)
    }

    fn entry(n: usize) -> EntryId {
        EntryId::new(n)
    }

    fn drain(lru: &mut Lru, queue: QueueId) -> Vec<usize> {
        std::iter::from_fn(|| {
            let coldest = lru.coldest(queue)?;
            lru.remove(coldest);
            Some(coldest.index())
        })
        .collect()
    }

    fn filled() -> Lru {
        let mut lru = Lru::default();
        (0..4).for_each(|n| lru.insert(entry(n), queue(0)));
        lru
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = filled();
        lru.touch(entry(0));
        lru.touch(entry(2));
        assert_eq!(drain(&mut lru, queue(0)), [1, 3, 0, 2]);
    }

    #[test]
    fn a_pinned_entry_is_not_proposed_and_is_hottest_afterwards() {
        let mut lru = filled();
        lru.pin(entry(1));
        lru.touch(entry(1));
        assert_eq!(lru.coldest(queue(0)), Some(entry(0)));
        lru.remove(entry(0));
        assert_eq!(lru.coldest(queue(0)), Some(entry(2)));
        lru.unpin(entry(1));
        assert_eq!(drain(&mut lru, queue(0)), [2, 3, 1]);
    }

    #[test]
    fn queues_do_not_mix_and_numbers_can_be_used_again() {
        let mut lru = filled();
        lru.remove(entry(2));
        lru.insert(entry(2), queue(3));
        assert_eq!(drain(&mut lru, queue(3)), [2]);
        assert_eq!(drain(&mut lru, queue(0)), [0, 1, 3]);
        assert_eq!(lru.coldest(queue(9)), None);
    }
}
