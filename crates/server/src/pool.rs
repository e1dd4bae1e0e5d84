//! The pool's memory, as the server sees it: devices opened, laid back to back, mapped.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use maru_directory::{DeviceSpan, Geometry};
use maru_memory::{
    Device, DeviceSpec, IfExists, PoolMapping, Populate, View, Visibility, check_backing, inspect,
};
use maru_protocol::Topology;

use crate::{PoolConfig, StartError};

/// Threads that bring memory in: enough to saturate the memory of a small machine, few enough to
/// leave the cores to those who are served.
const POPULATE_THREADS_MAX: usize = 8;

/// The least address range that is reserved; it costs nothing but numbers.
const ADDRESS_SPACE_MIN: u64 = 64 << 30;

/// The memory of one server.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) topology: Topology,
    pub(crate) geometry: Geometry,
    /// Held so that the devices stay locked.
    devices: Vec<Device>,
    /// Stops at drop.
    populates: Vec<Populate>,
    /// Removed at drop.
    temporary: Option<PathBuf>,
}

impl Pool {
    pub(crate) fn open(
        config: &PoolConfig,
        region_bytes: Option<u64>,
        populate: bool,
    ) -> Result<Self, StartError> {
        let mut made = Made::default();
        let (devices, temporary) = match config {
            PoolConfig::Devices(specs) => {
                let open = |spec| open_device(spec, &mut made);
                (specs.iter().map(open).collect::<Result<Vec<_>, _>>()?, None)
            }
            PoolConfig::Temporary(spec) => {
                // A pool that a killed server left behind is of no use: its directory died with it.
                // Anything else is somebody's.
                let left_behind = inspect(&spec.path).is_ok();
                let if_exists = if left_behind { IfExists::Overwrite } else { IfExists::Refuse };
                let device = Device::create(spec, if_exists)?;
                made.0.push(spec.path.clone());
                (vec![device], Some(spec.path.clone()))
            }
        };
        check_backing(&devices)?;
        made.keep();
        if devices.is_empty() {
            return Err(StartError::NoDevice);
        }
        let total: u64 = devices.iter().map(Device::bytes).sum();
        let region_bytes = region_bytes.unwrap_or_else(|| region_bytes_for(total));
        let mut pool = Self {
            topology: lay_out(&devices, region_bytes),
            geometry: Geometry { devices: Vec::new(), region_bytes },
            devices,
            populates: Vec::new(),
            temporary,
        };
        pool.geometry.devices = pool
            .topology
            .devices
            .iter()
            .zip(&pool.devices)
            .map(|(placed, device)| DeviceSpan {
                offset: placed.offset,
                bytes: placed.bytes,
                reserved: device.data_start(),
            })
            .collect();
        if populate {
            pool.populate()?;
        }
        Ok(pool)
    }

    /// Starts to bring the memory in, in the background.
    fn populate(&mut self) -> Result<(), StartError> {
        let mapping =
            Arc::new(PoolMapping::new(self.topology.address_space_bytes, Visibility::Coherent)?);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / 2).clamp(1, POPULATE_THREADS_MAX);
        for (device, placed) in self.devices.iter().zip(&self.topology.devices) {
            mapping.add_device(device, placed.offset)?;
            let mapping = Arc::clone(&mapping);
            let running =
                Populate::start(mapping, placed.offset, placed.bytes, threads, View::Write)?;
            self.populates.push(running);
        }
        Ok(())
    }

    /// What the pool lies on, for the log.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.devices.iter().map(|device| device.path().display().to_string()).collect()
    }

    /// Forgets the populates that are done. Returns what went wrong with one, in words.
    pub(crate) fn reap_populates(&mut self) -> Option<String> {
        let done = self.populates.iter().position(Populate::is_finished)?;
        let result = self.populates.swap_remove(done).wait();
        result.err().map(|error| error.to_string())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the temporary pool");
        }
    }
}

/// Files made for a server that may yet be refused; removed at drop.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn open_device(spec: &DeviceSpec, made: &mut Made) -> Result<Device, StartError> {
    let found = std::fs::symlink_metadata(&spec.path);
    let absent = found.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    // A character device has no length; whether it is a pool, its header tells.
    let empty = found.is_ok_and(|found| found.is_file() && found.len() == 0);
    if absent || empty {
        let device = Device::create(spec, IfExists::Refuse)?;
        if absent {
            made.0.push(spec.path.clone());
        }
        return Ok(device);
    }
    let device = Device::open_owner(&spec.path)?;
    match spec.bytes {
        Some(asked) if asked != device.bytes() => {
            Err(StartError::DeviceSize { path: spec.path.clone(), found: device.bytes(), asked })
        }
        _ => Ok(device),
    }
}

/// A region size for a pool of so many bytes: 32 of them or more, so that several page sizes find
/// room, but large enough for pages of some MiB.
fn region_bytes_for(total: u64) -> u64 {
    let share = (total / 32).clamp(2 << 20, 1 << 30);
    1 << share.ilog2()
}

/// Lays the devices back to back, each at a region boundary that also suits its alignment.
fn lay_out(devices: &[Device], region_bytes: u64) -> Topology {
    let mut end: u64 = 0;
    let placed = devices.iter().map(|device| {
        let offset = end.next_multiple_of(region_bytes.max(device.alignment()));
        end = offset + device.bytes();
        maru_protocol::Device {
            uuid: device.uuid(),
            path: device.path().display().to_string(),
            offset,
            bytes: device.bytes(),
        }
    });
    let devices = placed.collect();
    // Room for devices that are added later.
    let address_space_bytes = (end * 4).next_power_of_two().max(ADDRESS_SPACE_MIN);
    Topology { address_space_bytes, devices }
}

#[cfg(test)]
mod tests {
    use maru_memory::DeviceError;

    use super::*;

    #[test]
    fn the_region_size_suits_the_pool() {
        let mib = 1 << 20;
        for (total, region) in
            [(4, 2), (64, 2), (1024, 32), (1100, 32), (65_536, 1024), (1 << 24, 1024)]
        {
            assert_eq!(region_bytes_for(total * mib), region * mib, "{total} MiB");
        }
    }

    #[test]
    fn a_temporary_pool_goes_with_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let spec = DeviceSpec { path: path.clone(), bytes: Some(8 << 20) };
        let pool = Pool::open(&PoolConfig::Temporary(spec), None, true).unwrap();
        assert!(path.exists());
        assert_eq!(pool.geometry.region_bytes, 2 << 20);
        drop(pool);
        assert!(!path.exists());
    }

    #[test]
    fn a_device_of_another_size_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let spec =
            |mib: u64| DeviceSpec { path: folder.path().join("pool"), bytes: Some(mib << 20) };
        let open = |mib| Pool::open(&PoolConfig::Devices(vec![spec(mib)]), None, false);
        let first = open(8).unwrap().topology.devices[0].uuid;
        assert!(
            matches!(open(16).unwrap_err(), StartError::DeviceSize { found, .. } if found == 8 << 20)
        );
        assert_eq!(open(8).unwrap().topology.devices[0].uuid, first);
    }

    #[test]
    fn what_is_no_pool_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        std::fs::write(&path, "precious").unwrap();
        let spec = DeviceSpec { path: path.clone(), bytes: Some(8 << 20) };
        assert!(Pool::open(&PoolConfig::Temporary(spec), None, false).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    /// Each device alone would fit into the memory, both together do not: every instance would have
    /// died of it.
    #[test]
    fn devices_that_promise_the_same_memory_are_refused() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let spec = |name: &str, bytes| DeviceSpec { path: folder.path().join(name), bytes };
        let impossible = Device::create(&spec("all", Some(1 << 50)), IfExists::Refuse);
        let Err(DeviceError::TooLarge { available, .. }) = impossible else { panic!() };
        let most = available / 10 * 7 / 4096 * 4096;
        let specs = vec![spec("a", Some(most)), spec("b", Some(most))];
        let error = Pool::open(&PoolConfig::Devices(specs), None, false).unwrap_err();
        assert!(matches!(error, StartError::Device(DeviceError::TooLarge { .. })), "{error}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn devices_lie_back_to_back_with_room_behind() {
        let folder = tempfile::tempdir().unwrap();
        let spec = |name: &str| DeviceSpec { path: folder.path().join(name), bytes: Some(9 << 20) };
        let specs = PoolConfig::Devices(vec![spec("a"), spec("b")]);
        let pool = Pool::open(&specs, Some(4 << 20), false).unwrap();
        let offsets: Vec<u64> = pool.topology.devices.iter().map(|device| device.offset).collect();
        assert_eq!(offsets, [0, 12 << 20]);
        assert_eq!(pool.topology.address_space_bytes, 64 << 30);
    }
}
