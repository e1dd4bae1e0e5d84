//! What holds for every policy, and what sets them apart.

use std::collections::BTreeSet;
use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::*;

use super::choice::policy;
use super::policy::L1EvictionPolicy;
use crate::{EvictionConfig, EvictionPolicyKind, KvRank, ObjectKey};

pub(crate) const ANY: &dyn Fn(&ObjectKey) -> bool = &|_| true;

pub(crate) fn salted(n: u64, salt: &str) -> ObjectKey {
    ObjectKey::new("m", KvRank(0), &n.to_be_bytes(), 0, salt).unwrap()
}

pub(crate) fn key(n: u64) -> ObjectKey {
    salted(n, "")
}

pub(crate) fn keys(range: Range<u64>) -> Vec<ObjectKey> {
    range.map(key).collect()
}

pub(crate) fn write(policy: &mut dyn L1EvictionPolicy, key: &ObjectKey) {
    policy.reserved(key);
    policy.created(key);
}

pub(crate) fn evict(policy: &mut dyn L1EvictionPolicy, count: usize) -> Vec<ObjectKey> {
    let victims = policy.victims(count, ANY);
    for key in &victims {
        policy.removed(key);
    }
    victims
}

const KINDS: [EvictionPolicyKind; 3] =
    [EvictionPolicyKind::Lru, EvictionPolicyKind::S3Fifo, EvictionPolicyKind::Arc];

fn make(kind: EvictionPolicyKind, isolate_salts: bool) -> Box<dyn L1EvictionPolicy> {
    policy(&EvictionConfig { policy: kind, isolate_salts, ..EvictionConfig::default() }).unwrap()
}

#[derive(Debug, Clone)]
enum Op {
    Reserved(ObjectKey),
    Created(ObjectKey),
    Touched(ObjectKey),
    Removed(ObjectKey),
    /// Of `count` victims, those whose place in the order is in `refused` turn out to be locked.
    Evict {
        count: usize,
        locked: BTreeSet<ObjectKey>,
        refused: BTreeSet<usize>,
    },
}

fn any_key() -> impl Strategy<Value = ObjectKey> {
    (0..16_u64, 0..3_usize).prop_map(|(n, salt)| salted(n, ["", "a", "b"][salt]))
}

fn any_op() -> impl Strategy<Value = Op> {
    let locked = vec(any_key(), 0..12).prop_map(|keys| keys.into_iter().collect());
    let refused = vec(0..12_usize, 0..4).prop_map(|places| places.into_iter().collect());
    let evict = (0..12_usize, locked, refused).prop_map(|(count, locked, refused)| Op::Evict {
        count,
        locked,
        refused,
    });
    prop_oneof![
        4 => any_key().prop_map(Op::Reserved),
        3 => any_key().prop_map(Op::Created),
        6 => any_key().prop_map(Op::Touched),
        1 => any_key().prop_map(Op::Removed),
        2 => evict,
    ]
}

/// What a policy should track, in the order of LRU, and the most that it ever did.
#[derive(Debug, Default)]
struct Reference {
    tracked: Vec<ObjectKey>,
    peak: usize,
}

impl Reference {
    fn used(&mut self, key: &ObjectKey, new: bool) {
        let before = self.tracked.len();
        self.tracked.retain(|other| other != key);
        if new || self.tracked.len() < before {
            self.tracked.push(key.clone());
        }
        self.peak = self.peak.max(self.tracked.len());
    }

    fn removed(&mut self, key: &ObjectKey) {
        self.tracked.retain(|other| other != key);
    }

    fn evictable(&self, evictable: &dyn Fn(&ObjectKey) -> bool) -> Vec<ObjectKey> {
        self.tracked.iter().filter(|key| evictable(key)).cloned().collect()
    }
}

fn follow(kind: EvictionPolicyKind, isolated: bool, ops: &[Op]) -> Result<(), TestCaseError> {
    let (mut policy, mut reference) = (make(kind, isolated), Reference::default());
    let in_order = kind == EvictionPolicyKind::Lru && !isolated;
    for op in ops {
        match op {
            Op::Reserved(key) => {
                policy.reserved(key);
                reference.used(key, true);
            }
            Op::Created(key) => {
                policy.created(key);
                reference.used(key, true);
            }
            Op::Touched(key) => {
                policy.touched(key);
                reference.used(key, false);
            }
            Op::Removed(key) => {
                policy.removed(key);
                reference.removed(key);
            }
            Op::Evict { count, locked, refused } => {
                let evictable = |key: &ObjectKey| !locked.contains(key);
                let mut expected = reference.evictable(&evictable);
                let victims = policy.victims(*count, &evictable);
                prop_assert_eq!(victims.len(), expected.len().min(*count));
                let distinct: BTreeSet<&ObjectKey> = victims.iter().collect();
                prop_assert_eq!(distinct.len(), victims.len());
                prop_assert!(victims.iter().all(|key| expected.contains(key)));
                if in_order {
                    expected.truncate(*count);
                    prop_assert_eq!(&victims, &expected);
                }
                let gone = victims.iter().enumerate().filter(|(at, _)| !refused.contains(at));
                for (_, key) in gone {
                    policy.removed(key);
                    reference.removed(key);
                }
            }
        }
        prop_assert_eq!(policy.len(), reference.tracked.len());
        prop_assert!(policy.ghosts() <= 2 * reference.peak);
    }
    while policy.len() > 0 {
        let victims = evict(policy.as_mut(), 3);
        prop_assert!(!victims.is_empty());
        for key in &victims {
            reference.removed(key);
        }
    }
    prop_assert!(reference.tracked.is_empty());
    Ok(())
}

proptest! {
    #[test]
    fn every_policy_proposes_what_can_go_and_forgets_nothing(
        kind in proptest::sample::select(&KINDS[..]),
        isolated in any::<bool>(),
        ops in vec(any_op(), 0..200),
    ) {
        follow(kind, isolated, &ops)?;
    }
}

/// A cache of `places` keys, and what it made of the keys it was asked for.
struct Cache {
    policy: Box<dyn L1EvictionPolicy>,
    stored: BTreeSet<ObjectKey>,
    places: usize,
}

impl Cache {
    fn new(kind: EvictionPolicyKind, places: usize) -> Self {
        Self { policy: make(kind, false), stored: BTreeSet::new(), places }
    }

    /// Says how many of the keys were there. Those that were not are then.
    fn ask(&mut self, keys: impl Iterator<Item = u64>) -> usize {
        let mut hits = 0;
        for key in keys.map(key) {
            if self.stored.contains(&key) {
                self.policy.touched(&key);
                hits += 1;
                continue;
            }
            write(self.policy.as_mut(), &key);
            self.stored.insert(key);
            if self.stored.len() >= self.places {
                for victim in evict(self.policy.as_mut(), self.places / 5) {
                    self.stored.remove(&victim);
                }
            }
        }
        hits
    }
}

#[test]
fn a_scan_pushes_out_what_is_used_often_from_lru_only() {
    for kind in KINDS {
        let mut cache = Cache::new(kind, 100);
        for _ in 0..4 {
            cache.ask(0..40);
        }
        cache.ask(1000..2000);
        let hits = cache.ask(0..40);
        assert_eq!(hits, if kind == EvictionPolicyKind::Lru { 0 } else { 40 }, "{kind:?}");
    }
}

#[test]
fn what_is_no_longer_used_goes_in_the_end() {
    for kind in KINDS {
        let mut cache = Cache::new(kind, 100);
        for _ in 0..4 {
            cache.ask(0..60);
        }
        // Another set, that fits only without the first.
        for _ in 0..30 {
            cache.ask(1000..1060);
        }
        assert!(cache.ask(1000..1060) >= 50, "{kind:?}");
    }
}

#[test]
fn none_is_no_policy() {
    let config = EvictionConfig { policy: EvictionPolicyKind::None, ..EvictionConfig::default() };
    assert!(policy(&config).is_none());
}
