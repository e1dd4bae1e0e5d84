//! The numbers that tables of the directory are indexed by.

/// The number of an entry; used again after the entry is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub(crate) u32);

impl EntryId {
    /// The number, as an index into tables that run beside the entries.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The number of an instance; used again after the instance is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InstanceId(pub(crate) u32);

/// The number of a reservation; used again after the reservation is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ReservationId(pub(crate) u32);

impl ReservationId {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One page: a region and the page's place in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PageAt {
    pub(crate) region: u32,
    pub(crate) index: u32,
}

/// Entries that are weighed against each other: those of one page size, and, where their writer
/// has a budget, of that writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub(crate) u32);

impl QueueId {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}
