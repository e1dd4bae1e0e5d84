//! Isolation: no user's chunks push another's out.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::policy::L1EvictionPolicy;
use crate::ObjectKey;

/// A policy of its own for each cache salt. What has to go is taken from the salt that has the most
/// keys, until another has as many: bytes are not known here.
#[derive(Debug)]
pub(crate) struct Isolated {
    make: fn() -> Box<dyn L1EvictionPolicy>,
    /// None of them is empty. In order, so that the same salts give the same victims.
    by_salt: BTreeMap<Box<str>, Box<dyn L1EvictionPolicy>>,
    /// Their keys.
    len: usize,
    /// The most there have been.
    peak: usize,
    /// Their ghosts.
    ghosts: usize,
}

impl Isolated {
    pub(crate) fn new(make: fn() -> Box<dyn L1EvictionPolicy>) -> Self {
        Self { make, by_salt: BTreeMap::new(), len: 0, peak: 0, ghosts: 0 }
    }

    /// Does `step` with the key's policy. One that was missing is made if `make` says so.
    fn with(&mut self, key: &ObjectKey, make: bool, step: impl FnOnce(&mut dyn L1EvictionPolicy)) {
        let salt = key.salt();
        if make && !self.by_salt.contains_key(salt) {
            self.by_salt.insert(salt.into(), (self.make)());
        }
        let Some(policy) = self.by_salt.get_mut(salt) else { return };
        self.len -= policy.len();
        self.ghosts -= policy.ghosts();
        step(policy.as_mut());
        if policy.len() == 0 {
            self.by_salt.remove(salt);
            return;
        }
        self.len += policy.len();
        self.ghosts += policy.ghosts();
        self.peak = self.peak.max(self.len);
        self.limit_ghosts();
    }

    /// A policy keeps ghosts by the most keys that it ever had, of which many salts in turn could
    /// have had all: those that they keep together are limited too.
    fn limit_ghosts(&mut self) {
        while self.ghosts > 2 * self.peak {
            let Some(policy) = self.by_salt.values_mut().max_by_key(|policy| policy.ghosts())
            else {
                return;
            };
            self.ghosts -= policy.ghosts();
            policy.forget_ghosts();
        }
    }
}

/// What one salt gives.
#[derive(Debug)]
struct Share<'a> {
    policy: &'a mut dyn L1EvictionPolicy,
    asked: usize,
    victims: Vec<ObjectKey>,
}

impl L1EvictionPolicy for Isolated {
    fn reserved(&mut self, key: &ObjectKey) {
        self.with(key, true, |policy| policy.reserved(key));
    }

    fn created(&mut self, key: &ObjectKey) {
        self.with(key, true, |policy| policy.created(key));
    }

    fn touched(&mut self, key: &ObjectKey) {
        self.with(key, false, |policy| policy.touched(key));
    }

    fn removed(&mut self, key: &ObjectKey) {
        self.with(key, false, |policy| policy.removed(key));
    }

    fn victims(&mut self, count: usize, evictable: &dyn Fn(&ObjectKey) -> bool) -> Vec<ObjectKey> {
        let share = |policy| Share { policy, asked: 0, victims: Vec::new() };
        let policies = self.by_salt.values_mut().map(|policy| &mut **policy as &mut _);
        let mut shares: Vec<Share<'_>> = policies.map(share).collect();
        // How many keys each has that it was not asked for, and which it is.
        let left = shares.iter().enumerate().map(|(index, share)| (share.policy.len(), index));
        let mut left: BinaryHeap<(usize, usize)> = left.collect();
        let mut missing = count;
        while missing > 0 {
            let mut asked = BTreeSet::new();
            for _ in 0..missing {
                let Some(mut most) = left.peek_mut().filter(|most| most.0 > 0) else { break };
                most.0 -= 1;
                shares[most.1].asked += 1;
                asked.insert(most.1);
            }
            if asked.is_empty() {
                break;
            }
            for index in asked {
                let Share { policy, asked, victims } = &mut shares[index];
                missing += victims.len();
                *victims = policy.victims(*asked, evictable);
                missing -= victims.len();
            }
            // Those that have no more, because the rest is locked, are not asked again.
            left.retain(|(_, index)| shares[*index].victims.len() == shares[*index].asked);
        }
        shares.into_iter().flat_map(|share| share.victims).collect()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn ghosts(&self) -> usize {
        self.ghosts
    }

    fn forget_ghosts(&mut self) {
        self.by_salt.values_mut().for_each(|policy| policy.forget_ghosts());
        self.ghosts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::lru::Lru;
    use crate::eviction::s3fifo::S3Fifo;
    use crate::eviction::tests::{ANY, evict, salted, write};

    fn filled(salts: &[(&str, u64)]) -> Isolated {
        let mut policy = Isolated::new(|| Box::<Lru>::default());
        for (salt, count) in salts {
            for n in 0..*count {
                write(&mut policy, &salted(n, salt));
            }
        }
        policy
    }

    fn lens(policy: &Isolated) -> Vec<(&str, usize)> {
        policy.by_salt.iter().map(|(salt, policy)| (&**salt, policy.len())).collect()
    }

    #[test]
    fn the_salt_with_most_keys_gives_until_another_has_as_many() {
        let mut policy = filled(&[("", 4), ("a", 9), ("b", 6)]);
        let victims = policy.victims(3, ANY);
        assert_eq!(victims, [salted(0, "a"), salted(1, "a"), salted(2, "a")]);
        evict(&mut policy, 7);
        assert_eq!(lens(&policy), [("", 4), ("a", 4), ("b", 4)]);
        assert_eq!(policy.len(), 12);
    }

    #[test]
    fn a_flood_does_not_push_the_quiet_out() {
        let mut policy = filled(&[("quiet", 3)]);
        for n in 0..1000 {
            write(&mut policy, &salted(n, "flood"));
            if policy.len() > 20 {
                assert_eq!(evict(&mut policy, 5).len(), 5);
            }
        }
        assert_eq!(policy.by_salt["quiet"].len(), 3);
    }

    #[test]
    fn what_the_largest_cannot_give_the_others_do() {
        let mut policy = filled(&[("a", 9), ("b", 4), ("c", 2)]);
        let unlocked = |key: &ObjectKey| key.salt() != "a" || *key == salted(5, "a");
        let victims = policy.victims(4, &unlocked);
        let expected = [salted(5, "a"), salted(0, "b"), salted(1, "b"), salted(0, "c")];
        assert_eq!(victims, expected);
        assert_eq!(policy.victims(99, &unlocked).len(), 7);
    }

    #[test]
    fn a_salt_without_keys_is_forgotten() {
        let mut policy = filled(&[("a", 2), ("b", 1)]);
        policy.touched(&salted(0, "never seen"));
        policy.removed(&salted(0, "never seen"));
        policy.removed(&salted(0, "b"));
        assert_eq!(lens(&policy), [("a", 2)]);
        evict(&mut policy, 2);
        assert_eq!((policy.by_salt.len(), policy.len(), policy.ghosts()), (0, 0, 0));
    }

    #[test]
    fn salts_that_were_large_in_turn_do_not_keep_all_their_ghosts() {
        let mut policy = Isolated::new(|| Box::<S3Fifo>::default());
        for salt in 0..20 {
            for n in 0..50 {
                write(&mut policy, &salted(n, &salt.to_string()));
            }
            let keep = salted(49, &salt.to_string());
            let victims = policy.victims(49, &|key| *key != keep);
            for key in &victims {
                policy.removed(key);
            }
        }
        assert_eq!(policy.len(), 20);
        assert!(policy.ghosts() <= 2 * policy.peak, "{} of {}", policy.ghosts(), policy.peak);
        let ghosts: usize = policy.by_salt.values().map(|policy| policy.ghosts()).sum();
        assert_eq!(policy.ghosts(), ghosts);
    }
}
