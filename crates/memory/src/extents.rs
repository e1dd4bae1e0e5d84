//! Extents of the pool that do not overlap.

use std::collections::BTreeMap;

/// Extents `(offset, len)` that never overlap, each with a value; no length is zero.
#[derive(Debug)]
pub(crate) struct Extents<T>(BTreeMap<u64, (u64, T)>);

impl<T> Default for Extents<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Extents<T> {
    /// The extent that `offset..offset + len` runs into, if any. Of several, the last.
    pub(crate) fn overlapping(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let (&start, &(bytes, _)) = self.0.range(..offset.saturating_add(len)).next_back()?;
        (start.saturating_add(bytes) > offset).then_some((start, bytes))
    }

    /// Where the extent starts that holds all of `offset..offset + len`, if any, and its value.
    pub(crate) fn containing(&self, offset: u64, len: u64) -> Option<(u64, &T)> {
        let (&start, (bytes, value)) = self.0.range(..=offset).next_back()?;
        (offset.checked_add(len)? <= start + bytes).then_some((start, value))
    }

    /// Adds an extent, or says which one it runs into.
    pub(crate) fn insert(&mut self, offset: u64, len: u64, value: T) -> Result<(), (u64, u64)> {
        debug_assert!(len > 0, "an empty extent would replace the one that starts there");
        if let Some(other) = self.overlapping(offset, len) {
            return Err(other);
        }
        self.0.insert(offset, (len, value));
        Ok(())
    }

    /// Takes out the extent that starts at `offset`.
    pub(crate) fn remove(&mut self, offset: u64) {
        self.0.remove(&offset);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the obvious model: a map of single bytes.
        #[test]
        fn agrees_with_a_byte_map(asked in vec((0_u64..64, 1_u64..16), 1..32)) {
            let mut extents: Extents<u64> = Extents::default();
            let mut owner = [None; 80];
            for (offset, len) in asked {
                let at = |offset: u64| usize::try_from(offset).unwrap();
                let bytes = at(offset)..at(offset + len);
                let first = owner[bytes.start];
                let inside = first.filter(|_| owner[bytes.clone()].iter().all(|o| *o == first));
                let found = extents.containing(offset, len).map(|(start, bytes)| (start, *bytes));
                prop_assert_eq!(found, inside);
                let last = owner[bytes.clone()].iter().rev().find_map(|o| *o);
                prop_assert_eq!(extents.insert(offset, len, len).err(), last);
                if last.is_none() {
                    owner[bytes].fill(Some((offset, len)));
                } else if offset % 3 == 0 {
                    let (start, _) = last.unwrap();
                    extents.remove(start);
                    for slot in owner.iter_mut().filter(|o| **o == last) {
                        *slot = None;
                    }
                }
            }
        }
    }
}
