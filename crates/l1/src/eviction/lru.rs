//! Least recently used first.

use hashlink::LinkedHashSet;

use super::policy::L1EvictionPolicy;
use crate::ObjectKey;

/// Least recently used first; to be reserved and to become resident count as uses.
#[derive(Debug, Default)]
pub(crate) struct Lru {
    /// Coldest first.
    order: LinkedHashSet<ObjectKey>,
}

impl L1EvictionPolicy for Lru {
    fn reserved(&mut self, key: &ObjectKey) {
        self.order.insert(key.clone());
    }

    fn created(&mut self, key: &ObjectKey) {
        self.order.insert(key.clone());
    }

    fn touched(&mut self, key: &ObjectKey) {
        self.order.to_back(key);
    }

    fn removed(&mut self, key: &ObjectKey) {
        self.order.remove(key);
    }

    fn victims(&mut self, count: usize, evictable: &dyn Fn(&ObjectKey) -> bool) -> Vec<ObjectKey> {
        self.order.iter().filter(|key| evictable(key)).take(count).cloned().collect()
    }

    fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::tests::{ANY, key, keys};

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = Lru::default();
        for key in &keys(0..4) {
            lru.reserved(key);
        }
        lru.touched(&key(0));
        lru.created(&key(2));
        lru.touched(&key(9));
        assert_eq!(lru.victims(9, ANY), [key(1), key(3), key(0), key(2)]);
        assert_eq!(lru.victims(2, ANY), [key(1), key(3)], "a proposal changes nothing");
    }

    #[test]
    fn what_is_not_evictable_keeps_its_place() {
        let mut lru = Lru::default();
        for key in &keys(0..4) {
            lru.reserved(key);
        }
        assert_eq!(lru.victims(2, &|k| *k != key(0)), [key(1), key(2)]);
        lru.removed(&key(1));
        assert_eq!(lru.victims(2, ANY), [key(0), key(2)]);
    }
}
