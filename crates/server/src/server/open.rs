//! The start of a server: its pool, and the store that belongs to it.

use std::time::{SystemTime, UNIX_EPOCH};

use maru_directory::{Config, Millis};
use maru_memory::Visibility;

use super::random;
use crate::pool::{Devices, Pool};
use crate::process;
use crate::service::{Found, Mismatch, OpenError, Service, ServiceConfig};
use crate::store::{self, Durability, FileDisk, Progress, StoreError};
use crate::{PoolConfig, ServerConfig, StartError};

/// Opens the pool and its store.
pub(super) fn open(
    config: &ServerConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Opened, StartError> {
    // Before anything is made.
    let visibility = config.memory_visibility()?;
    let devices = Devices::open(&config.pool)?;
    let left_behind = devices.left_behind;
    match (open_store(config, devices, visibility.clone(), progress), &config.pool) {
        (Err(error @ StartError::Unfit { .. }), PoolConfig::Temporary(spec)) if left_behind => {
            tracing::warn!(%error, "what a killed server left behind is of no use: it is made anew");
            open_store(config, Devices::anew(spec)?, visibility, progress)
        }
        (opened, _) => opened,
    }
}

pub(super) type Opened = (Service<FileDisk>, Pool, Found);

/// Opens the store of these devices.
fn open_store(
    config: &ServerConfig,
    devices: Devices,
    visibility: Visibility,
    progress: &mut dyn FnMut(Progress),
) -> Result<Opened, StartError> {
    let path = config.store.clone().unwrap_or_else(|| devices.default_store());
    let failed = |source| StartError::Store { store: path.clone(), source };
    let hosts_matter = matches!(visibility, Visibility::CacheLine { .. });
    let synced = config.durability == Durability::Fsync || hosts_matter;
    let mut disk = match config.durability {
        Durability::None => None,
        Durability::Process | Durability::Fsync => {
            let disk = FileDisk::open(&path, synced);
            Some(disk.map_err(|source| failed(StoreError::Io { what: "open", source }))?)
        }
    };
    let head = disk.as_mut().map(store::head).transpose();
    let unfit = StartError::open(&path, &devices.paths());
    let head = match head {
        Ok(head) => head.flatten(),
        Err(error) => return Err(unfit(error.into())),
    };
    if let Some(stored) = head.as_ref().map(|head| head.visibility)
        && hosts_matter != (stored == maru_protocol::Visibility::CacheLine)
    {
        let stored = if hosts_matter { "coherent" } else { "cache-line" };
        return Err(StartError::OtherVisibility { stored, store: path });
    }
    // A store knows the size that its regions have.
    let region_bytes = head.map(|head| head.pool.region_bytes);
    if let (Some(asked), Some(stored)) = (config.region_bytes, region_bytes)
        && asked != stored
    {
        return Err(StartError::RegionSize { stored, asked });
    }
    let (pool_epoch, may_be_written) = (devices.epoch(), devices.may_be_written());
    let names = devices.paths().join(", ");
    let pool = devices.into_pool(config.region_bytes.or(region_bytes), visibility);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |age| age.as_secs());
    let hash_seed = u64::from_le_bytes(random()?);
    let service = ServiceConfig {
        // Unix time grows from one life to the next; where it does not, the pool knows better.
        directory: Config { epoch: seconds & 0xffff_ffff, hash_seed, ..config.directory.clone() },
        geometry: pool.geometry.clone(),
        topology: pool.topology.clone(),
        checksums: config.checksums,
        durability: config.durability,
        may_be_written,
        system: process::system(),
    };
    match Service::open(service, disk, pool_epoch, Millis(0), progress) {
        Ok((service, found)) => Ok((service, pool, found)),
        // There is nothing in the pool that could be looked at.
        Err(OpenError::Mismatch(Mismatch::Pool(_))) if pool_epoch == 0 => {
            Err(StartError::StoreOfAnother { pool: names, store: path })
        }
        Err(error) => Err(unfit(error)),
    }
}
