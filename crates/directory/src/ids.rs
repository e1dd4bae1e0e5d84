//! The numbers that tables of the directory are indexed by.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// Makes a number of its own kind: an index into one table, which no other kind can be taken for.
/// It is kept as one more than the index, so that an option of it takes no more room.
macro_rules! number {
    ($(#[$doc:meta])* $visible:vis $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $visible struct $name(NonZeroU32);

        impl $name {
            pub(crate) fn new(index: usize) -> Self {
                let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
                Self(number.expect("a table has fewer than 2^32 - 1 rows: a pool has fewer pages"))
            }

            /// The number, as an index into tables that run beside its own.
            #[must_use]
            $visible const fn index(self) -> usize {
                self.0.get() as usize - 1
            }
        }
    };
}

number! {
    /// The number of an entry; used again after the entry is gone.
    pub EntryId
}

number! {
    /// The number of a queue: entries that are weighed against each other, those of one page size,
    /// and, where their writer has a budget, of that writer.
    pub QueueId
}

number! {
    /// The number of an instance; used again after the instance is forgotten.
    pub(crate) InstanceId
}

number! {
    /// The number of a reservation; used again after the reservation is gone.
    pub(crate) ReservationId
}

number! {
    /// The number of a host.
    pub(crate) HostId
}

impl InstanceId {
    /// As records have it.
    pub(crate) const fn number(self) -> u32 {
        self.0.get() - 1
    }
}

impl HostId {
    /// As records have it.
    pub(crate) const fn number(self) -> u32 {
        self.0.get() - 1
    }
}

/// One page.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PageAt {
    /// The number of its region.
    pub region: u32,
    /// Its place in the region, counted in pages.
    pub index: u32,
}
