//! Which parts of an arena are free.

use std::collections::BTreeMap;

/// The free extents of `0..grown`, by offset. They are never empty and never touch each other:
/// neighbours are made one at once.
#[derive(Debug, Default)]
pub(crate) struct FreeList {
    free: BTreeMap<u64, u64>,
    grown: u64,
    used: u64,
}

impl FreeList {
    /// Takes `count` extents of `len` bytes, first fit, so that low addresses fill first. If they do
    /// not fit, nothing is taken, and the error is the least growth with which they would.
    pub(crate) fn take(&mut self, len: u64, count: usize) -> Result<Vec<u64>, u64> {
        debug_assert!(len > 0, "an empty extent is nowhere");
        let mut left = count as u64;
        let mut plan = Vec::new();
        // All are as long, so none fits where an earlier one did not: one walk finds them all.
        for (&offset, &bytes) in &self.free {
            if left == 0 {
                break;
            }
            let fit = (bytes / len).min(left);
            if fit > 0 {
                plan.push((offset, fit));
                left -= fit;
            }
        }
        if left > 0 {
            let tail = self.free.last_key_value().map_or(0, |(&offset, &bytes)| {
                if offset + bytes == self.grown { bytes } else { 0 }
            });
            // What the last extent has over is where the growth continues.
            return Err(left.checked_mul(len).map_or(u64::MAX, |bytes| bytes - tail % len));
        }
        let mut taken = Vec::with_capacity(count);
        for (offset, fit) in plan {
            let bytes = self.free.remove(&offset).expect("planned from what is free");
            taken.extend((0..fit).map(|nth| offset + nth * len));
            if bytes > fit * len {
                self.free.insert(offset + fit * len, bytes - fit * len);
            }
        }
        self.used += count as u64 * len;
        Ok(taken)
    }

    /// Gives back one extent that was taken.
    pub(crate) fn give(&mut self, offset: u64, len: u64) {
        self.used -= len;
        self.insert(offset, len);
    }

    /// Adds `len` free bytes at the end.
    pub(crate) fn grow(&mut self, len: u64) {
        let end = self.grown;
        self.grown += len;
        self.insert(end, len);
    }

    /// How far it reaches, in bytes: free and used.
    pub(crate) fn grown(&self) -> u64 {
        self.grown
    }

    /// What is taken, in bytes.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Whether the extents are apart, none is empty or beyond the end, and free and used bytes are
    /// all there are.
    pub(crate) fn check(&self) -> bool {
        let mut free = 0;
        let mut last_end = None;
        for (&offset, &bytes) in &self.free {
            if bytes == 0 || last_end.is_some_and(|end| offset <= end) {
                return false;
            }
            free += bytes;
            last_end = Some(offset + bytes);
        }
        last_end.is_none_or(|end| end <= self.grown) && free + self.used == self.grown
    }

    fn insert(&mut self, offset: u64, len: u64) {
        let (mut start, mut end) = (offset, offset + len);
        if let Some((&before, &bytes)) = self.free.range(..offset).next_back()
            && before + bytes == offset
        {
            start = before;
        }
        if let Some(bytes) = self.free.remove(&end) {
            end += bytes;
        }
        if end > start {
            self.free.insert(start, end - start);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Take { len: u64, count: usize },
        Give { nth: usize },
        Grow { len: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1_u64..9, 0_usize..5).prop_map(|(len, count)| Step::Take { len, count }),
            4 => any::<usize>().prop_map(|nth| Step::Give { nth }),
            1 => (0_u64..16).prop_map(|len| Step::Grow { len }),
        ]
    }

    fn at(offset: u64) -> usize {
        usize::try_from(offset).unwrap()
    }

    /// The obvious model: one flag a byte, each extent sought from the start.
    fn first_fits(used: &[bool], len: u64, count: usize) -> Option<Vec<u64>> {
        let mut used = used.to_vec();
        let mut taken = Vec::new();
        for _ in 0..count {
            let offset = used.windows(at(len)).position(|part| part.iter().all(|used| !used))?;
            used[offset..offset + at(len)].fill(true);
            taken.push(offset as u64);
        }
        Some(taken)
    }

    proptest! {
        #[test]
        fn agrees_with_a_byte_map(steps in vec(step(), 1..64)) {
            let mut list = FreeList::default();
            let mut used = Vec::new();
            let mut taken = Vec::new();
            for step in steps {
                match step {
                    Step::Take { len, count } => {
                        let expected = first_fits(&used, len, count);
                        let result = list.take(len, count);
                        prop_assert_eq!(result.as_ref().ok(), expected.as_ref());
                        match result {
                            Ok(offsets) => {
                                for offset in offsets {
                                    used[at(offset)..at(offset + len)].fill(true);
                                    taken.push((offset, len));
                                }
                            }
                            Err(growth) => {
                                let grown = |by: u64| [&used[..], &vec![false; at(by)]].concat();
                                prop_assert!(first_fits(&grown(growth), len, count).is_some());
                                prop_assert!(first_fits(&grown(growth - 1), len, count).is_none());
                            }
                        }
                    }
                    Step::Give { nth } if !taken.is_empty() => {
                        let (offset, len) = taken.swap_remove(nth % taken.len());
                        used[at(offset)..at(offset + len)].fill(false);
                        list.give(offset, len);
                    }
                    Step::Give { .. } => {}
                    Step::Grow { len } => {
                        used.resize(used.len() + at(len), false);
                        list.grow(len);
                    }
                }
                prop_assert!(list.check(), "{:?}", list);
                prop_assert_eq!(list.grown(), used.len() as u64);
                prop_assert_eq!(list.used(), used.iter().filter(|used| **used).count() as u64);
            }
            for (offset, len) in taken {
                list.give(offset, len);
                prop_assert!(list.check(), "{:?}", list);
            }
            let whole = (list.grown() > 0).then_some((0, list.grown()));
            prop_assert_eq!(list.free, BTreeMap::from_iter(whole));
        }
    }

    #[test]
    fn too_much_is_refused_whole() {
        let mut list = FreeList::default();
        list.grow(64);
        assert_eq!(list.take(u64::MAX, 2), Err(u64::MAX));
        assert_eq!(list.take(1, usize::MAX), Err(u64::MAX - 64));
        assert_eq!((list.used(), list.check()), (0, true));
    }

    #[test]
    fn the_check_sees_what_is_wrong() {
        let list = |free: &[(u64, u64)], used| FreeList {
            free: free.iter().copied().collect(),
            grown: 64,
            used,
        };
        assert!(list(&[(0, 16), (32, 32)], 16).check());
        assert!(list(&[], 64).check());
        assert!(!list(&[(0, 16), (32, 32)], 15).check(), "a byte is lost");
        assert!(!list(&[(0, 16), (16, 16)], 32).check(), "neighbours are not one");
        assert!(!list(&[(0, 17), (16, 16)], 31).check(), "two overlap");
        assert!(!list(&[(0, 0), (32, 32)], 32).check(), "one is empty");
        assert!(!list(&[(48, 32)], 32).check(), "one ends outside");
    }
}
