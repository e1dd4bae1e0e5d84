//! What a directory is told at its start.

use std::ops::{Add, Sub};

use maru_protocol::{PAGE_ALIGN, Visibility};

use crate::SESSIONS_MAX;

/// The longest that a session can outlive its connection: whoever was cut off is cleaned up after
/// within a second (rule 6).
pub(crate) const RESUME_MS_MAX: u64 = 900;

/// The most regions of a pool: their list fits into one frame, and a look at all of them is short.
const REGIONS_MAX: usize = 1 << 16;

/// A moment: milliseconds since some start that the driver of the directory chose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Add<u64> for Millis {
    type Output = Self;
    fn add(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl Sub for Millis {
    type Output = u64;
    /// How long after `earlier`; 0 if it is not.
    fn sub(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Times, limits and thresholds.
#[derive(Debug, Clone)]
pub struct Config {
    /// The life of the directory: larger than that of any before it on the same pool, by at least
    /// one for each 2^32 pages that one granted; Unix time in seconds is. Generations are drawn from
    /// it, so no handle of an earlier life fits a page of this one. Below 2^32.
    pub epoch: u64,
    /// How long a session lives unheard.
    pub lease_ms: u64,
    /// How long a session outlives its connection, for the instance to come back; at most 900, so
    /// that what it held is free one second after the drop (rule 6).
    pub resume_ms: u64,
    /// How long a page is kept from others after its writer vanished and was not seen to die (rule 7):
    /// longer than any copy that could still be in flight, and than it takes to drain a session; at
    /// least 1000. It does not run while the writer's process is seen to be stopped.
    pub quarantine_ms: u64,
    /// Unacknowledged requests a session may have; so many replies are kept for it (rule 5).
    pub window: u32,
    /// Keys or handles in one request.
    pub batch_max: u32,
    /// Sessions at a time.
    pub sessions_max: u32,
    /// Entries are evicted once more than this share of the pool is used, in thousandths...
    pub watermark_high_permille: u32,
    /// ...until no more than this share is.
    pub watermark_low_permille: u32,
    /// Holdings released, pages freed and entries evicted in one tick: the longest others wait. By
    /// default about 0.1 ms (docs/performance.md).
    pub work_per_tick: u32,
    /// Seeds the hash of keys, so that nobody outside can choose keys that collide.
    pub hash_seed: u64,
    /// How what one host writes reaches another.
    pub visibility: Visibility,
    /// Records are made of what must outlive the directory, for [`crate::Directory::take_records`].
    pub recorded: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            epoch: 1,
            lease_ms: 10_000,
            resume_ms: 800,
            quarantine_ms: 30_000,
            window: 64,
            batch_max: 4096,
            sessions_max: SESSIONS_MAX,
            watermark_high_permille: 990,
            watermark_low_permille: 980,
            work_per_tick: 256,
            hash_seed: 0,
            visibility: Visibility::Coherent,
            recorded: false,
        }
    }
}

/// One device's part of the pool's address range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSpan {
    /// Where the device begins, in bytes; a multiple of the region size.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// How many bytes at its start hold its identity header and no page.
    pub reserved: u64,
}

/// The memory the directory hands out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// The devices, by offset, not overlapping.
    pub devices: Vec<DeviceSpan>,
    /// The size of a region in bytes: a power of two from 2 MiB to 1 GiB. Regions lie at its
    /// multiples, so none straddles a 64 GiB boundary, and all are alike, so that a region emptied
    /// of one page size serves any other. The first and the last of a device may be shorter.
    pub region_bytes: u64,
}

/// Why a directory cannot start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A region size that cannot be.
    #[error("a region size of {0} bytes is impossible: it is a power of two, 2 MiB to 1 GiB")]
    RegionBytes(u64),
    /// Devices overlap, or do not begin at a multiple of the region size.
    #[error("the device at offset {offset} overlaps another or is not on a region boundary")]
    DeviceOffset {
        /// Where it begins.
        offset: u64,
    },
    /// No page fits.
    #[error("the pool's devices hold no region: give it more memory")]
    Empty,
    /// More regions than can be told of in one answer.
    #[error("{0} regions are too many, at most {REGIONS_MAX}: choose a larger region size")]
    TooManyRegions(usize),
    /// More memory than page numbers can count.
    #[error(
        "a pool of {0} bytes is too large for one directory: at most 16 TiB; use several pools"
    )]
    TooLarge(u64),
    /// A setting out of its range.
    #[error("{name} is {value}, but must be {range}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        range: &'static str,
    },
}

impl Config {
    /// Checks every setting against its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let in_range = |name, value: u64, ok: bool, range| {
            if ok { Ok(()) } else { Err(ConfigError::OutOfRange { name, value, range }) }
        };
        in_range("epoch", self.epoch, u32::try_from(self.epoch).is_ok(), "below 2^32")?;
        in_range("lease_ms", self.lease_ms, self.lease_ms >= 100, "at least 100")?;
        let resume_fits = self.resume_ms <= RESUME_MS_MAX.min(self.lease_ms);
        in_range("resume_ms", self.resume_ms, resume_fits, "at most 900 and at most the lease")?;
        let quarantine = self.quarantine_ms;
        in_range("quarantine_ms", quarantine, quarantine >= 1000, "at least 1000")?;
        let sessions = self.sessions_max;
        let sessions_fit = (1..=SESSIONS_MAX).contains(&sessions);
        in_range("sessions_max", sessions.into(), sessions_fit, "1 to 1024")?;
        in_range("window", self.window.into(), self.window >= 1, "at least 1")?;
        let batch_fits = (1..=4096).contains(&self.batch_max);
        in_range("batch_max", self.batch_max.into(), batch_fits, "1 to 4096")?;
        in_range(
            "work_per_tick",
            self.work_per_tick.into(),
            self.work_per_tick >= 1,
            "at least 1",
        )?;
        let (low, high) = (self.watermark_low_permille, self.watermark_high_permille);
        in_range("watermark_high_permille", high.into(), (1..=1000).contains(&high), "1 to 1000")?;
        in_range("watermark_low_permille", low.into(), low <= high, "at most the high watermark")
    }
}

impl Geometry {
    /// The spans of all regions as (offset, bytes), by offset.
    pub(crate) fn regions(&self) -> Result<Vec<(u64, u64)>, ConfigError> {
        let size = self.region_bytes;
        if !size.is_power_of_two() || !(2 << 20..=1 << 30).contains(&size) {
            return Err(ConfigError::RegionBytes(size));
        }
        let mut regions = Vec::new();
        let mut free_from = 0;
        for device in &self.devices {
            let bad = ConfigError::DeviceOffset { offset: device.offset };
            if !device.offset.is_multiple_of(size) || device.offset < free_from {
                return Err(bad);
            }
            let end = device.offset.checked_add(device.bytes).ok_or(bad)?;
            // The header may end anywhere, pages lie on their boundary.
            let header = device.reserved.min(device.bytes);
            let first = device.offset + header;
            let first = first.checked_next_multiple_of(PAGE_ALIGN).unwrap_or(end);
            for start in (device.offset..end).step_by(usize::try_from(size).unwrap_or(usize::MAX)) {
                let from = start.max(first);
                let to = (start + size).min(end) / PAGE_ALIGN * PAGE_ALIGN;
                if from < to {
                    regions.push((from, to - from));
                }
            }
            free_from = end;
        }
        if regions.len() > REGIONS_MAX {
            return Err(ConfigError::TooManyRegions(regions.len()));
        }
        let capacity: u64 = regions.iter().map(|(_, bytes)| bytes).sum();
        match capacity {
            0 => Err(ConfigError::Empty),
            _ if capacity / PAGE_ALIGN >= u64::from(u32::MAX) => {
                Err(ConfigError::TooLarge(capacity))
            }
            _ => Ok(regions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_regions_than_can_be_listed_are_refused() {
        let regions = |bytes| {
            let device = DeviceSpan { offset: 0, bytes, reserved: 0 };
            Geometry { devices: vec![device], region_bytes: 2 << 20 }.regions()
        };
        assert_eq!(regions(128 << 30).unwrap().len(), 65_536);
        assert_eq!(regions((128 << 30) + 4096), Err(ConfigError::TooManyRegions(65_537)));
    }
}
