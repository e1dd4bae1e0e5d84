//! ARC: keeps the balance between recency and frequency by what it regrets.

use std::collections::HashSet;

use hashlink::LinkedHashSet;

use super::policy::L1EvictionPolicy;
use crate::ObjectKey;

/// Megiddo and Modha's Adaptive Replacement Cache (FAST 2003), as LMCache adapts it to eviction in
/// batches:
///
/// - A reservation is no use: only a touch makes a key frequent, and one that comes back is recent
///   again. That it came back moves the balance all the same.
/// - There is no fixed number of places, so the capacity is the most keys there have been at a time.
/// - A key leaves a ghost only if it went because it was proposed.
#[derive(Debug, Default)]
pub(crate) struct Adaptive {
    /// T1: used at most once since it came. This and all others: coldest first.
    recent: LinkedHashSet<ObjectKey>,
    /// T2: used again.
    frequent: LinkedHashSet<ObjectKey>,
    /// B1: evicted from `recent`.
    recent_ghosts: LinkedHashSet<ObjectKey>,
    /// B2: evicted from `frequent`.
    frequent_ghosts: LinkedHashSet<ObjectKey>,
    /// p: so many keys should be recent.
    target: usize,
    /// c.
    capacity: usize,
    /// What the last call of `victims` returned.
    proposed: HashSet<ObjectKey>,
}

impl Adaptive {
    /// Tracks a key anew, and learns from it if it went too early.
    fn admit(&mut self, key: &ObjectKey) {
        let (recent, frequent) = (self.recent_ghosts.len(), self.frequent_ghosts.len());
        if self.recent_ghosts.remove(key) {
            self.target = (self.target + (frequent / recent).max(1)).min(self.capacity);
        } else if self.frequent_ghosts.remove(key) {
            self.target = self.target.saturating_sub((recent / frequent).max(1));
        }
        self.recent.insert(key.clone());
        self.capacity = self.capacity.max(self.len());
        self.trim();
    }

    /// Keeps at most as many recent keys with their ghosts as there are places, and twice as many
    /// keys in all.
    fn trim(&mut self) {
        while self.recent.len() + self.recent_ghosts.len() > self.capacity
            && self.recent_ghosts.pop_front().is_some()
        {}
        while self.len() + self.ghosts() > 2 * self.capacity
            && (self.frequent_ghosts.pop_front().or_else(|| self.recent_ghosts.pop_front()))
                .is_some()
        {}
    }
}

impl L1EvictionPolicy for Adaptive {
    fn reserved(&mut self, key: &ObjectKey) {
        self.proposed.remove(key);
        // A key that is being written is not resident: what was known of it is of another life.
        self.frequent.remove(key);
        self.admit(key);
    }

    fn created(&mut self, key: &ObjectKey) {
        if !self.recent.contains(key) && !self.frequent.contains(key) {
            self.admit(key);
        }
    }

    fn touched(&mut self, key: &ObjectKey) {
        if self.recent.remove(key) {
            self.frequent.insert(key.clone());
        } else {
            self.frequent.to_back(key);
        }
    }

    fn removed(&mut self, key: &ObjectKey) {
        let proposed = self.proposed.remove(key);
        let ghosts = if self.recent.remove(key) {
            &mut self.recent_ghosts
        } else if self.frequent.remove(key) {
            &mut self.frequent_ghosts
        } else {
            return;
        };
        if proposed {
            ghosts.insert(key.clone());
            self.trim();
        }
    }

    fn victims(&mut self, count: usize, evictable: &dyn Fn(&ObjectKey) -> bool) -> Vec<ObjectKey> {
        let mut recent_left = self.recent.len();
        let mut recent = self.recent.iter().filter(|key| evictable(key));
        let mut frequent = self.frequent.iter().filter(|key| evictable(key));
        let next = || {
            let from_recent = recent_left >= self.target;
            let first = if from_recent { recent.next() } else { None };
            if let Some(key) = first.or_else(|| frequent.next()) {
                recent_left -= usize::from(first.is_some());
                return Some(key.clone());
            }
            recent.next().cloned()
        };
        let victims: Vec<ObjectKey> = std::iter::from_fn(next).take(count).collect();
        self.proposed = victims.iter().cloned().collect();
        victims
    }

    fn len(&self) -> usize {
        self.recent.len() + self.frequent.len()
    }

    fn ghosts(&self) -> usize {
        self.recent_ghosts.len() + self.frequent_ghosts.len()
    }

    fn forget_ghosts(&mut self) {
        self.recent_ghosts = LinkedHashSet::new();
        self.frequent_ghosts = LinkedHashSet::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::tests::{ANY, evict, key, keys, write};

    fn filled(count: u64) -> Adaptive {
        let mut arc = Adaptive::default();
        for key in &keys(0..count) {
            write(&mut arc, key);
        }
        arc
    }

    #[test]
    fn what_was_not_touched_goes_before_what_was() {
        let mut arc = filled(4);
        arc.touched(&key(0));
        arc.touched(&key(2));
        arc.touched(&key(0));
        assert_eq!(arc.victims(9, ANY), [key(1), key(3), key(2), key(0)]);
    }

    #[test]
    fn to_be_reserved_and_to_become_resident_is_no_use() {
        let mut arc = filled(2);
        write(&mut arc, &key(0));
        assert_eq!(arc.recent.iter().cloned().collect::<Vec<_>>(), [key(1), key(0)]);
        assert!(arc.frequent.is_empty());
    }

    #[test]
    fn recent_ghosts_that_come_back_protect_recent_keys() {
        let mut arc = filled(4);
        for n in [2, 3] {
            arc.touched(&key(n));
        }
        assert_eq!(evict(&mut arc, 2), [key(0), key(1)]);
        write(&mut arc, &key(0));
        assert_eq!(arc.target, 1);
        write(&mut arc, &key(1));
        assert_eq!(arc.target, 2);
        // Two recent ones are not too many: one goes, then a frequent one.
        assert_eq!(evict(&mut arc, 2), [key(0), key(2)]);
    }

    #[test]
    fn frequent_ghosts_that_come_back_protect_frequent_keys() {
        let mut arc = filled(3);
        assert_eq!(evict(&mut arc, 1), [key(0)]);
        write(&mut arc, &key(0));
        assert_eq!(arc.target, 1);
        for n in [0, 1, 2] {
            arc.touched(&key(n));
        }
        assert_eq!(evict(&mut arc, 1), [key(0)]);
        write(&mut arc, &key(0));
        assert_eq!(arc.target, 0);
    }

    #[test]
    fn a_rare_ghost_weighs_more() {
        let mut arc = filled(8);
        for n in [0, 1, 2, 3] {
            arc.touched(&key(n));
        }
        assert_eq!(evict(&mut arc, 7).len(), 7);
        assert_eq!((arc.recent_ghosts.len(), arc.frequent_ghosts.len()), (4, 3));
        for n in [4, 5, 6] {
            write(&mut arc, &key(n));
        }
        assert_eq!((arc.recent_ghosts.len(), arc.target), (1, 3));
        write(&mut arc, &key(7));
        assert_eq!(arc.target, 6, "by three frequent ghosts to one recent");
    }

    #[test]
    fn only_what_was_proposed_leaves_a_ghost() {
        let mut arc = filled(3);
        arc.removed(&key(0));
        assert_eq!(arc.ghosts(), 0);
        assert_eq!(arc.victims(1, ANY), [key(1)]);
        // It is written anew before it is deleted: the proposal is void.
        arc.reserved(&key(1));
        arc.removed(&key(1));
        assert_eq!(arc.ghosts(), 0);
        assert_eq!(evict(&mut arc, 1), [key(2)]);
        assert_eq!(arc.ghosts(), 1);
        arc.forget_ghosts();
        write(&mut arc, &key(2));
        assert_eq!(arc.target, 0);
    }
}
