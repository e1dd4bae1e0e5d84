//! The pool's memory, as the server sees it: devices opened, laid back to back, mapped.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use maru_directory::{DeviceSpan, Geometry};
use maru_memory::{
    Device, DeviceError, DeviceKind, DeviceSpec, IfExists, PoolMapping, Populate, View, Visibility,
    check_backing, inspect,
};
use maru_protocol::Topology;
use uuid::Uuid;

use crate::store::PoolIdentity;
use crate::{PoolConfig, StartError};

/// Threads that bring memory in: enough to saturate the memory of a small machine, few enough to
/// leave the cores to those who are served.
const POPULATE_THREADS_MAX: usize = 8;

/// The least address range that is reserved; it costs nothing but numbers.
const ADDRESS_SPACE_MIN: u64 = 64 << 30;

/// The memory of one server.
#[derive(Debug)]
pub(crate) struct Pool {
    // Dropped in this order: what is removed is locked until then.
    made: Made,
    pub(crate) topology: Topology,
    pub(crate) geometry: Geometry,
    /// Held so that the devices stay locked.
    devices: Vec<Device>,
    mapping: Option<Arc<PoolMapping>>,
    visibility: Visibility,
    /// Stops at drop.
    populates: Vec<Populate>,
    /// Its file, which goes with it.
    temporary: Option<PathBuf>,
}

/// The devices of a pool, open and locked, and not laid out yet.
#[derive(Debug)]
pub(crate) struct Devices {
    // Dropped in this order: what is removed is locked until then.
    made: Made,
    all: Vec<Device>,
    temporary: Option<PathBuf>,
    /// A killed server left it, so it may be another's than this server's to go on with.
    pub(crate) left_behind: bool,
}

impl Devices {
    pub(crate) fn open(config: &PoolConfig) -> Result<Self, StartError> {
        let mut made = Made::default();
        let (devices, temporary, left_behind) = match config {
            PoolConfig::Devices(specs) => {
                let open = |spec| open_device(spec, &mut made);
                (specs.iter().map(open).collect::<Result<Vec<_>, _>>()?, None, false)
            }
            PoolConfig::Temporary(spec) => {
                let found = match Device::open_owner(&spec.path) {
                    Err(error @ DeviceError::InUse { .. }) => return Err(error.into()),
                    found => found.ok().filter(|found| spec.bytes == Some(found.bytes())),
                };
                let left_behind = found.is_some();
                let device = match found {
                    Some(found) => found,
                    None => create_temporary(spec, &mut made)?,
                };
                (vec![device], Some(spec.path.clone()), left_behind)
            }
        };
        check_backing(&devices)?;
        if devices.is_empty() {
            return Err(StartError::NoDevice);
        }
        Ok(Self { all: devices, temporary, made, left_behind })
    }

    /// Devices that exist.
    pub(crate) fn open_all(paths: &[PathBuf]) -> Result<Self, StartError> {
        let all = paths.iter().map(Device::open_owner).collect::<Result<Vec<_>, _>>()?;
        if all.is_empty() {
            return Err(StartError::NoDevice);
        }
        Ok(Self { all, temporary: None, made: Made::default(), left_behind: false })
    }

    /// A temporary pool that is made anew: what a killed server left is of no use.
    pub(crate) fn anew(spec: &DeviceSpec) -> Result<Self, StartError> {
        let mut made = Made::default();
        let device = create_temporary(spec, &mut made)?;
        let temporary = Some(spec.path.clone());
        Ok(Self { all: vec![device], temporary, made, left_behind: false })
    }

    /// Where the store of this pool is kept if nobody says otherwise: beside the first device, or where
    /// that is no file, in the state folder of the user.
    pub(crate) fn default_store(&self) -> PathBuf {
        let Some(first) = self.all.first() else { return PathBuf::new() };
        store_of(first.path(), first.kind(), first.uuid())
    }

    /// Where they were opened, in words.
    pub(crate) fn paths(&self) -> Vec<String> {
        paths(&self.all)
    }

    /// The last epoch that they were served in; 0 before the first.
    pub(crate) fn epoch(&self) -> u64 {
        self.all.iter().map(|device| u64::from(device.epoch())).max().unwrap_or(0)
    }

    /// Whether somebody may still write to them who was told so by an earlier server.
    pub(crate) fn may_be_written(&self) -> bool {
        self.all.iter().any(Device::was_in_service)
    }

    /// Lays them out.
    pub(crate) fn into_pool(self, region_bytes: Option<u64>, visibility: Visibility) -> Pool {
        let total: u64 = self.all.iter().map(Device::bytes).sum();
        let region_bytes = region_bytes.unwrap_or_else(|| region_bytes_for(total));
        let topology = lay_out(&self.all, region_bytes, &visibility);
        let placed = topology.devices.iter().zip(&self.all);
        let spans = placed.map(|(placed, device)| DeviceSpan {
            offset: placed.offset,
            bytes: placed.bytes,
            reserved: device.data_start(),
        });
        Pool {
            geometry: Geometry { devices: spans.collect(), region_bytes },
            topology,
            devices: self.all,
            mapping: None,
            visibility,
            populates: Vec::new(),
            temporary: self.temporary,
            made: self.made,
        }
    }
}

fn paths(devices: &[Device]) -> Vec<String> {
    devices.iter().map(|device| device.path().display().to_string()).collect()
}

/// Where the store of a pool is kept whose first device is this one.
pub(crate) fn store_of(path: &Path, kind: DeviceKind, uuid: Uuid) -> PathBuf {
    if kind != DeviceKind::DevDax {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".store");
        return beside.into();
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let state = match (variable("XDG_STATE_HOME"), variable("HOME")) {
        _ if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib"),
        (Some(state), _) => state.into(),
        (None, Some(home)) => PathBuf::from(home).join(".local/state"),
        (None, None) => std::env::temp_dir(),
    };
    state.join("maru").join(uuid.to_string())
}

fn create_temporary(spec: &DeviceSpec, made: &mut Made) -> Result<Device, StartError> {
    // A pool that a killed server left behind may be replaced. Anything else is somebody's.
    let pool = inspect(&spec.path).is_ok();
    let if_exists = if pool { IfExists::Overwrite } else { IfExists::Refuse };
    let device = Device::create(spec, if_exists)?;
    made.0.push(spec.path.clone());
    let store = store_of(device.path(), device.kind(), device.uuid());
    match std::fs::remove_dir_all(&store) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let what = format!("remove what is left of {}", store.display());
            Err(StartError::io(what)(error))
        }
        _ => Ok(device),
    }
}

impl Pool {
    /// What its store knows it by.
    pub(crate) fn identity(&self) -> PoolIdentity {
        PoolIdentity::new(&self.topology, &self.geometry)
    }

    /// Says in the devices' headers that they are served in this epoch. From now on those that were
    /// made for that stay.
    pub(crate) fn begin_epoch(&mut self, epoch: u64) -> Result<(), StartError> {
        // The directory keeps epochs below 2^32.
        let epoch = u32::try_from(epoch).unwrap_or(u32::MAX);
        self.devices.iter_mut().try_for_each(|device| device.begin_epoch(epoch))?;
        self.made.0.clear();
        Ok(())
    }

    /// Lets go of it in good order: what is temporary goes. `is_left_alone`: nobody reads or writes it
    /// any more, which the devices' headers are told.
    pub(crate) fn close(&mut self, is_left_alone: bool) {
        if is_left_alone {
            for device in &mut self.devices {
                if let Err(error) = device.end_service() {
                    tracing::warn!(%error, "the next server will wait for writers that are gone");
                }
            }
        }
        let Some(path) = self.temporary.take() else { return };
        let store = self.devices.first().map(|first| store_of(&path, first.kind(), first.uuid()));
        if let Some(store) = store {
            // It may have none.
            let _ = std::fs::remove_dir_all(store);
        }
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove the temporary pool");
        }
    }

    /// The pool's memory in this process.
    pub(crate) fn mapping(&mut self) -> Result<Arc<PoolMapping>, StartError> {
        if let Some(mapping) = &self.mapping {
            return Ok(Arc::clone(mapping));
        }
        let visibility = self.visibility.clone();
        let mapping = PoolMapping::new(self.topology.address_space_bytes, visibility)?;
        let mapping = Arc::new(mapping);
        for (device, placed) in self.devices.iter().zip(&self.topology.devices) {
            mapping.add_device(device, placed.offset)?;
        }
        Ok(Arc::clone(self.mapping.insert(mapping)))
    }

    /// Starts to bring the memory in, in the background.
    pub(crate) fn populate(&mut self) -> Result<(), StartError> {
        let mapping = self.mapping()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / 2).clamp(1, POPULATE_THREADS_MAX);
        for placed in &self.topology.devices {
            let mapping = Arc::clone(&mapping);
            let running =
                Populate::start(mapping, placed.offset, placed.bytes, threads, View::Write)?;
            self.populates.push(running);
        }
        Ok(())
    }

    /// What the pool lies on, for the log.
    pub(crate) fn paths(&self) -> Vec<String> {
        paths(&self.devices)
    }

    /// Forgets the populates that are done. Returns what went wrong with one, in words.
    pub(crate) fn reap_populates(&mut self) -> Option<String> {
        let done = self.populates.iter().position(Populate::is_finished)?;
        let result = self.populates.swap_remove(done).wait();
        result.err().map(|error| error.to_string())
    }
}

/// Files made for a server that may yet be refused; removed at drop.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

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
fn lay_out(devices: &[Device], region_bytes: u64, visibility: &Visibility) -> Topology {
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
    let visibility = match visibility {
        Visibility::Coherent => maru_protocol::Visibility::Coherent,
        Visibility::CacheLine { .. } => maru_protocol::Visibility::CacheLine,
    };
    // Room for devices that are added later.
    let address_space_bytes = (end * 4).next_power_of_two().max(ADDRESS_SPACE_MIN);
    Topology { address_space_bytes, visibility, devices }
}

#[cfg(test)]
mod tests {
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

    fn open(config: &PoolConfig, region_bytes: Option<u64>) -> Result<Pool, StartError> {
        let mut pool = Devices::open(config)?.into_pool(region_bytes, Visibility::Coherent);
        pool.begin_epoch(1)?;
        Ok(pool)
    }

    #[test]
    fn a_temporary_pool_goes_with_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let spec = DeviceSpec { path: path.clone(), bytes: Some(8 << 20) };
        let mut pool = open(&PoolConfig::Temporary(spec), None).unwrap();
        pool.populate().unwrap();
        let store = folder.path().join("pool.store");
        std::fs::create_dir(&store).unwrap();
        assert!(path.exists());
        assert_eq!(pool.geometry.region_bytes, 2 << 20);
        pool.close(true);
        assert!(!path.exists() && !store.exists());
    }

    #[test]
    fn a_temporary_pool_of_a_killed_server_is_taken_over_if_it_is_as_large() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let spec = |mib: u64| DeviceSpec { path: path.clone(), bytes: Some(mib << 20) };
        let first = open(&PoolConfig::Temporary(spec(8)), None).unwrap();
        let uuid = first.topology.devices[0].uuid;
        drop(first);
        let found = Devices::open(&PoolConfig::Temporary(spec(8))).unwrap();
        assert!(found.left_behind);
        let again = found.into_pool(None, Visibility::Coherent);
        assert_eq!(again.topology.devices[0].uuid, uuid);
        drop(again);
        let other = Devices::open(&PoolConfig::Temporary(spec(16))).unwrap();
        assert!(!other.left_behind);
        assert_ne!(other.into_pool(None, Visibility::Coherent).topology.devices[0].uuid, uuid);
    }

    #[test]
    fn a_device_of_another_size_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let spec =
            |mib: u64| DeviceSpec { path: folder.path().join("pool"), bytes: Some(mib << 20) };
        let open = |mib| open(&PoolConfig::Devices(vec![spec(mib)]), None);
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
        assert!(open(&PoolConfig::Temporary(spec), None).is_err());
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
        let error = open(&PoolConfig::Devices(specs), None).unwrap_err();
        assert!(matches!(error, StartError::Device(DeviceError::TooLarge { .. })), "{error}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn devices_lie_back_to_back_with_room_behind() {
        let folder = tempfile::tempdir().unwrap();
        let spec = |name: &str| DeviceSpec { path: folder.path().join(name), bytes: Some(9 << 20) };
        let specs = PoolConfig::Devices(vec![spec("a"), spec("b")]);
        let pool = open(&specs, Some(4 << 20)).unwrap();
        let offsets: Vec<u64> = pool.topology.devices.iter().map(|device| device.offset).collect();
        assert_eq!(offsets, [0, 12 << 20]);
        assert_eq!(pool.topology.address_space_bytes, 64 << 30);
    }
}
