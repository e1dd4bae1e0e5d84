//! S3-FIFO: three static queues.

use std::collections::HashSet;

use hashlink::{LinkedHashMap, LinkedHashSet};

use super::policy::L1EvictionPolicy;
use crate::ObjectKey;

/// So many uses are told apart.
const USES_MAX: u8 = 3;
/// So many uses while it was small take a key to the main queue: once may be chance.
const PROVEN_USES: u8 = 2;
/// The small queue has one place in so many.
const SMALL_SHARE: usize = 10;

/// Keys in the order of their arrival, with their uses since.
type Fifo = LinkedHashMap<ObjectKey, u8>;

/// Yang and others, "FIFO queues are all you need for cache eviction" (SOSP 2023), adapted to
/// eviction in batches:
///
/// - The capacity is the most keys there have been at a time.
/// - What cannot be evicted keeps its place.
/// - A key leaves a ghost only if it went because it was proposed.
#[derive(Debug, Default)]
pub(crate) struct S3Fifo {
    /// Where new keys wait for a use.
    small: Fifo,
    /// Where those are that were used, or came back.
    main: Fifo,
    /// What left the small queue; oldest first.
    ghosts: LinkedHashSet<ObjectKey>,
    capacity: usize,
    /// What the last call of `victims` returned.
    proposed: HashSet<ObjectKey>,
}

impl S3Fifo {
    fn admit(&mut self, key: &ObjectKey) {
        let came_back = self.ghosts.remove(key);
        let queue = if came_back { &mut self.main } else { &mut self.small };
        queue.insert(key.clone(), 0);
        self.capacity = self.capacity.max(self.len());
    }
}

impl L1EvictionPolicy for S3Fifo {
    /// One that is tracked is written anew: it goes to the end of its queue.
    fn reserved(&mut self, key: &ObjectKey) {
        self.proposed.remove(key);
        let again = self.small.to_back(key).or_else(|| self.main.to_back(key));
        match again {
            Some(uses) => *uses = 0,
            None => self.admit(key),
        }
    }

    fn created(&mut self, key: &ObjectKey) {
        if !self.small.contains_key(key) && !self.main.contains_key(key) {
            self.admit(key);
        }
    }

    fn touched(&mut self, key: &ObjectKey) {
        if let Some(uses) = self.small.get_mut(key).or_else(|| self.main.get_mut(key)) {
            *uses = USES_MAX.min(*uses + 1);
        }
    }

    fn removed(&mut self, key: &ObjectKey) {
        let proposed = self.proposed.remove(key);
        if self.small.remove(key).is_none() {
            self.main.remove(key);
        } else if proposed {
            self.ghosts.insert(key.clone());
            // As many as the main queue has places.
            while self.ghosts.len() > self.capacity - self.capacity / SMALL_SHARE {
                self.ghosts.pop_front();
            }
        }
    }

    fn victims(&mut self, count: usize, evictable: &dyn Fn(&ObjectKey) -> bool) -> Vec<ObjectKey> {
        let small_places = (self.capacity / SMALL_SHARE).max(1);
        let mut victims = Vec::new();
        // What was looked at and stays where it is until it is removed, by queue.
        let mut seen = [Vec::new(), Vec::new()];
        let mut locked_small = 0;
        while victims.len() < count {
            let small_is_full = self.small.len() + locked_small >= small_places;
            let small_next = self.main.is_empty() || small_is_full && !self.small.is_empty();
            let queue = if small_next { &mut self.small } else { &mut self.main };
            let Some((key, uses)) = queue.pop_front() else { break };
            if small_next && uses >= PROVEN_USES {
                self.main.insert(key, 0);
            } else if !small_next && uses > 0 {
                self.main.insert(key, uses - 1);
            } else {
                let evictable = evictable(&key);
                if evictable {
                    victims.push(key.clone());
                }
                locked_small += usize::from(small_next && !evictable);
                seen[usize::from(!small_next)].push((key, uses));
            }
        }
        for (queue, seen) in [&mut self.small, &mut self.main].into_iter().zip(seen) {
            for (key, uses) in seen.into_iter().rev() {
                queue.insert_front(key, uses);
            }
        }
        self.proposed = victims.iter().cloned().collect();
        victims
    }

    fn len(&self) -> usize {
        self.small.len() + self.main.len()
    }

    fn ghosts(&self) -> usize {
        self.ghosts.len()
    }

    fn forget_ghosts(&mut self) {
        self.ghosts = LinkedHashSet::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::tests::{ANY, evict, key, keys, write};

    fn filled(count: u64) -> S3Fifo {
        let mut policy = S3Fifo::default();
        for key in &keys(0..count) {
            write(&mut policy, key);
        }
        policy
    }

    fn touch(policy: &mut S3Fifo, n: u64, times: usize) {
        for _ in 0..times {
            policy.touched(&key(n));
        }
    }

    #[test]
    fn one_use_is_not_enough_two_are() {
        let mut policy = filled(4);
        touch(&mut policy, 0, 1);
        touch(&mut policy, 1, 2);
        assert_eq!(evict(&mut policy, 3), [key(0), key(2), key(3)]);
        assert_eq!(policy.main.keys().cloned().collect::<Vec<_>>(), [key(1)]);
    }

    #[test]
    fn what_comes_back_goes_to_the_main_queue() {
        let mut policy = filled(20);
        assert_eq!(evict(&mut policy, 2), [key(0), key(1)]);
        write(&mut policy, &key(1));
        assert!(policy.main.contains_key(&key(1)));
        // The small queue has more than its two places, so the main one is not asked.
        assert_eq!(evict(&mut policy, 16), keys(2..18));
        assert_eq!(evict(&mut policy, 1), [key(18)]);
        // It has one place left: now the main one is.
        assert_eq!(evict(&mut policy, 2), [key(1), key(19)]);
    }

    #[test]
    fn the_main_queue_gives_a_round_for_a_use_and_three_at_most() {
        let mut policy = filled(3);
        for n in 0..3 {
            touch(&mut policy, n, 2);
        }
        assert_eq!(policy.victims(1, ANY), [key(0)]);
        touch(&mut policy, 0, 9);
        touch(&mut policy, 1, 1);
        assert_eq!(evict(&mut policy, 2), [key(2), key(1)]);
        assert_eq!(policy.main.get(&key(0)), Some(&1), "two rounds of three");
        assert_eq!(policy.ghosts(), 0, "the main queue leaves no ghosts");
    }

    #[test]
    fn what_is_not_evictable_keeps_its_place() {
        let mut policy = filled(5);
        assert_eq!(policy.victims(2, &|k| *k != key(0)), [key(1), key(2)]);
        assert_eq!(policy.victims(3, ANY), keys(0..3));
    }

    #[test]
    fn only_what_was_proposed_leaves_a_ghost_and_few_are_kept() {
        let mut policy = filled(20);
        policy.removed(&key(0));
        assert_eq!(policy.ghosts(), 0);
        assert_eq!(evict(&mut policy, 19), keys(1..20));
        assert_eq!(policy.ghosts(), 18);
        assert!(!policy.ghosts.contains(&key(1)), "the oldest went");
    }
}
