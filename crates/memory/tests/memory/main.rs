//! Devices, mappings, populate and arenas as their users see them.
#![allow(
    unsafe_code,
    reason = "tests handle signals, and store where they must not, to see it fault"
)]
#![allow(clippy::unwrap_used, reason = "clippy takes the helpers for no tests")]

use std::sync::Arc;

use maru_memory::{Device, DeviceSpec, IfExists, PoolMapping, Visibility};
use tempfile::TempDir;

mod arena;
mod device;
mod lines;
mod mapping;
mod media;
mod populate;
mod visibility;

const MIB: u64 = 1 << 20;

fn shm_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn spec(dir: &TempDir, name: &str, bytes: u64) -> DeviceSpec {
    DeviceSpec { path: dir.path().join(name), bytes: Some(bytes) }
}

fn create(dir: &TempDir, name: &str, bytes: u64) -> Device {
    Device::create(&spec(dir, name, bytes), IfExists::Refuse).unwrap()
}

/// Cache lines are worked on by the processor's own instructions.
const CACHE_LINE: Visibility = Visibility::CacheLine { plugin: None };

/// A mapping of one gibibyte of addresses with `device` at offset 0, opened as an instance does.
fn map(device: &Device) -> Arc<PoolMapping> {
    map_with(device, Visibility::Coherent)
}

fn map_with(device: &Device, visibility: Visibility) -> Arc<PoolMapping> {
    let mapping = Arc::new(PoolMapping::new(1 << 30, visibility).unwrap());
    let opened = Device::open(device.path(), device.uuid()).unwrap();
    mapping.add_device(&opened, 0).unwrap();
    mapping
}

/// The value of `field` in /proc/self/smaps for the memory that starts at `base`.
fn smaps(base: *const u8, field: &str) -> String {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", base.addr());
    let mut entry = smaps.lines().skip_while(|line| !line.starts_with(&start)).skip(1);
    let value = entry.find_map(|line| line.strip_prefix(field)).expect("the memory is mapped");
    value.trim_start_matches(':').trim().to_owned()
}
