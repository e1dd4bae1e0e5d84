//! What the numbers of a configuration may be.

use std::fmt;
use std::time::Duration;

use super::error::{ConfigOrigin, L1ConfigError};
use super::value::{ALIGN, GIGABYTES, IN_FLIGHT, LIBRARY, MILLISECONDS, NAME, SECONDS, SHARE};
use super::value::{in_gigabytes, shown};
use super::{EvictionConfig, L1ManagerConfig, L1MemoryConfig, MaruL1Config, flags};

/// More than a process can address, in bytes.
const BYTES_MAX: u64 = 1 << 47;

/// The coarsest that an arena aligns, in bytes.
const ALIGN_BYTES_MAX: u64 = 2 << 20;

/// A year: longer than any lock is for, and far from where a clock overflows.
const TTL_MAX: Duration = Duration::from_hours(365 * 24);

/// A day.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);

/// Far more than a server keeps replies of.
const IN_FLIGHT_MAX: u32 = 65_536;

/// The longest name of an instance or a host, in bytes.
const NAME_LEN_MAX: usize = 128;

impl L1ManagerConfig {
    /// Whether all of it can be. The error names the flag that the value belongs to. Of a shared
    /// L1 the private memory does not count, since none is taken.
    pub fn check(&self) -> Result<(), L1ConfigError> {
        match &self.maru {
            Some(maru) => check_maru(maru)?,
            None => check_memory(&self.memory)?,
        }
        let ttl = |flag, ttl: Duration| {
            let in_range = !ttl.is_zero() && ttl <= TTL_MAX;
            ensure(in_range, flag, &ttl.as_secs_f64(), SECONDS)
        };
        ttl(flags::WRITE_TTL, self.write_ttl)?;
        ttl(flags::READ_TTL, self.read_ttl)?;
        check_eviction(&self.eviction)
    }
}

fn check_memory(memory: &L1MemoryConfig) -> Result<(), L1ConfigError> {
    let L1MemoryConfig { bytes, initial_bytes, align_bytes, .. } = *memory;
    let in_range = align_bytes.is_power_of_two() && align_bytes <= ALIGN_BYTES_MAX;
    ensure(in_range, flags::ALIGN, &align_bytes, ALIGN)?;
    ensure((1..=BYTES_MAX).contains(&bytes), flags::SIZE, &in_gigabytes(bytes), GIGABYTES)?;
    let at_least = format!("at least {}, {align_bytes} bytes", flags::ALIGN);
    ensure(bytes >= align_bytes, flags::SIZE, &in_gigabytes(bytes), &at_least)?;
    let at_most = format!("at most {}, {} GB", flags::SIZE, &in_gigabytes(bytes));
    ensure(initial_bytes <= bytes, flags::INITIAL_SIZE, &in_gigabytes(initial_bytes), &at_most)
}

fn check_maru(maru: &MaruL1Config) -> Result<(), L1ConfigError> {
    let pool = maru.pool_bytes;
    ensure((1..=BYTES_MAX).contains(&pool), flags::POOL_SIZE, &in_gigabytes(pool), GIGABYTES)?;
    for (flag, name) in [(flags::INSTANCE, &maru.instance), (flags::HOST, &maru.host)] {
        if let Some(name) = name {
            let in_range = (1..=NAME_LEN_MAX).contains(&name.len());
            let is_name = in_range && !name.contains(char::is_control);
            ensure(is_name, flag, &shown(name, false), NAME)?;
        }
    }
    if let Some(library) = &maru.visibility_plugin {
        let path = shown(&library.to_string_lossy(), false);
        ensure(library.is_absolute(), flags::VISIBILITY_PLUGIN, &path, LIBRARY)?;
    }
    let timeout = maru.timeout;
    let in_range = (Duration::from_millis(1)..=TIMEOUT_MAX).contains(&timeout);
    ensure(in_range, flags::TIMEOUT, &timeout.as_millis(), MILLISECONDS)?;
    let in_flight = maru.in_flight_max;
    ensure((1..=IN_FLIGHT_MAX).contains(&in_flight), flags::IN_FLIGHT, &in_flight, IN_FLIGHT)
}

fn check_eviction(eviction: &EvictionConfig) -> Result<(), L1ConfigError> {
    // No range contains a NaN.
    let share = |flag, share: f64| ensure((0.0..=1.0).contains(&share), flag, &share, SHARE);
    share(flags::WATERMARK, eviction.trigger_watermark)?;
    share(flags::RATIO, eviction.ratio)
}

fn ensure(
    holds: bool,
    flag: &'static str,
    value: &dyn fmt::Display,
    must: &str,
) -> Result<(), L1ConfigError> {
    if holds {
        return Ok(());
    }
    let (value, must) = (value.to_string(), must.to_owned());
    Err(L1ConfigError::Value { flag, value, origin: ConfigOrigin::Program, must })
}
