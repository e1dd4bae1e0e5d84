//! Pages: shared, bounded, exclusive, and out of a reader's reach.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;

use maru_memory::{DATA_START, Device, MappingError, PageMut, PageView, PoolMapping, Visibility};
use uuid::Uuid;

use crate::{MIB, create, map, shm_dir, smaps};

const PAGE: u64 = 64 << 10;

#[test]
fn two_mappings_share_their_bytes() {
    for dir in [shm_dir(), tempfile::tempdir().unwrap()] {
        let device = create(&dir, "pool", 4 * MIB);
        let (writer, reader) = (map(&device), map(&device));
        let text: Vec<u8> = (0..PAGE).map(|n| n.to_le_bytes()[0]).collect();
        let offset = DATA_START + 3 * PAGE;
        writer.write(offset, PAGE).unwrap().copy_from(&text).unwrap();
        let view = reader.read(offset, PAGE).unwrap();
        assert_eq!(view.bytes(), text);
        assert_eq!((view.offset(), view.len()), (offset, PAGE));
        let mut copy = vec![0; text.len()];
        view.clone().copy_to(&mut copy).unwrap();
        assert_eq!(copy, text);
        let beside = reader.read(offset + PAGE, PAGE).unwrap();
        assert!(beside.bytes().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_page_is_base_plus_offset() {
    let dir = shm_dir();
    let mapping = map(&create(&dir, "pool", 4 * MIB));
    let behind = usize::try_from(DATA_START).unwrap();
    let view = mapping.read(DATA_START, PAGE).unwrap();
    let mut page = mapping.write(DATA_START, PAGE).unwrap();
    assert_eq!(view.as_ptr(), mapping.read_base().wrapping_add(behind));
    assert_eq!(page.as_mut_ptr(), mapping.write_base().wrapping_add(behind));
    assert_ne!(mapping.read_base(), mapping.write_base().cast_const());
    assert_eq!(mapping.read_base().addr() % (1 << 30), 0);
    assert_eq!(mapping.write_base().addr() % (1 << 30), 0);
    assert_eq!(mapping.address_space_bytes(), 1 << 30);
    for (asked, reserved) in [(0, 2 * MIB), (2 * MIB + 1, 4 * MIB), (4 << 40, 4 << 40)] {
        assert_eq!(
            PoolMapping::new(asked, Visibility::Coherent).unwrap().address_space_bytes(),
            reserved
        );
    }
}

#[test]
fn a_store_through_the_read_only_view_faults() {
    const CHILD: &str = "MARU_TEST_STRAY_STORE";
    const SIGSEGV: i32 = 11;
    if let Ok(device) = env::var(CHILD) {
        let (uuid, path) = device.split_once(' ').unwrap();
        let device = Device::open(path, Uuid::parse_str(uuid).unwrap()).unwrap();
        let view = map(&device).read(DATA_START, PAGE).unwrap();
        let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Core, no_core).unwrap();
        assert_eq!(view.bytes()[0], 0);
        // SAFETY: none: this is the stray store of a broken reader, and must end the process.
        unsafe { view.as_ptr().cast_mut().write_volatile(1) };
        std::process::exit(0);
    }
    let dir = shm_dir();
    let device = create(&dir, "pool", 4 * MIB);
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "mapping::a_store_through_the_read_only_view_faults"])
        .env(CHILD, format!("{} {}", device.uuid(), device.path().display()))
        // Under the address sanitizer, the fault shall stay a signal.
        .env("ASAN_OPTIONS", "handle_segv=0")
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(SIGSEGV), "{child:?}");
    let view = map(&device).read(DATA_START, PAGE).unwrap();
    assert!(view.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn the_writable_view_stays_out_of_children() {
    let dir = shm_dir();
    let mapping = map(&create(&dir, "pool", 4 * MIB));
    let not_copied = |base| smaps(base, "VmFlags").split(' ').any(|flag| flag == "dc");
    assert!(not_copied(mapping.write_base()));
    assert!(!not_copied(mapping.read_base()));
}

#[test]
fn pages_lie_in_one_device_behind_its_header() {
    let dir = shm_dir();
    let mapping = map(&create(&dir, "one", 4 * MIB));
    mapping.add_device(&create(&dir, "two", 4 * MIB), 4 * MIB).unwrap();
    mapping.add_device(&create(&dir, "far", 4 * MIB), 16 * MIB).unwrap();
    for (offset, len) in [
        (0, PAGE),
        (DATA_START - 1, 1),
        (DATA_START - PAGE, 2 * PAGE),
        (4 * MIB - PAGE, 2 * PAGE),
        (4 * MIB, PAGE),
        (8 * MIB, PAGE),
        (8 * MIB - 1, 2),
        (20 * MIB, 1),
        (1 << 30, 1),
        (u64::MAX, 1),
        (DATA_START, u64::MAX),
        (DATA_START, 0),
    ] {
        let wanted = |error: MappingError| {
            let refused = matches!(error, MappingError::OutOfBounds { offset: o, len: l }
                if (o, l) == (offset, len));
            assert!(refused, "{error}");
        };
        wanted(mapping.read(offset, len).unwrap_err());
        wanted(mapping.write(offset, len).unwrap_err());
    }
    for offset in [DATA_START, 4 * MIB - 1, 6 * MIB, 8 * MIB - 1, 18 * MIB, 20 * MIB - 1] {
        mapping.read(offset, 1).unwrap();
        mapping.write(offset, 1).unwrap();
    }
}

#[test]
fn devices_must_fit_and_not_overlap() {
    let dir = shm_dir();
    let mapping = PoolMapping::new(32 * MIB, Visibility::Coherent).unwrap();
    let (large, small) = (create(&dir, "large", 8 * MIB), create(&dir, "small", 4 * MIB));
    mapping.add_device(&large, 8 * MIB).unwrap();
    for offset in [8 * MIB, 6 * MIB, 14 * MIB] {
        let error = mapping.add_device(&small, offset).unwrap_err();
        assert!(matches!(error, MappingError::Overlap { other: 0x80_0000, .. }), "{error}");
    }
    for offset in [4096, MIB, u64::MAX] {
        let error = mapping.add_device(&small, offset).unwrap_err();
        assert!(matches!(error, MappingError::Misaligned { alignment: 0x20_0000, .. }), "{error}");
    }
    for offset in [30 * MIB, 1 << 40, u64::MAX - 2 * MIB + 1] {
        let error = mapping.add_device(&small, offset).unwrap_err();
        assert!(matches!(error, MappingError::OutsideAddressSpace { .. }), "{error}");
    }
    mapping.add_device(&small, 28 * MIB).unwrap();
    let error = PoolMapping::new(1 << 60, Visibility::Coherent).unwrap_err();
    assert!(matches!(error, MappingError::Reserve { .. }), "{error}");
    assert!(matches!(
        PoolMapping::new(u64::MAX, Visibility::Coherent),
        Err(MappingError::Reserve { .. })
    ));
}

#[test]
fn bytes_are_writable_once() {
    let dir = shm_dir();
    let mapping = map(&create(&dir, "pool", 4 * MIB));
    let start = DATA_START + 4 * PAGE;
    let page = mapping.write(start, PAGE).unwrap();
    for (offset, len) in
        [(start, PAGE), (start + PAGE - 1, 1), (start - 1, 2), (start - PAGE, 3 * PAGE)]
    {
        let error = mapping.write(offset, len).unwrap_err();
        assert!(matches!(error, MappingError::AlreadyWritable { other, .. } if other == start));
    }
    let _beside = mapping.write(start + PAGE, PAGE).unwrap();
    let _before = mapping.write(start - PAGE, PAGE).unwrap();
    drop(page);
    mapping.write(start, PAGE).unwrap();
}

#[test]
fn pages_outlive_the_handle_they_came_from() {
    let dir = shm_dir();
    let device = create(&dir, "pool", 4 * MIB);
    let mapping = map(&device);
    let mut page = mapping.write(DATA_START, PAGE).unwrap();
    let view = mapping.read(DATA_START, PAGE).unwrap();
    let path = dir.path().to_str().unwrap().to_owned();
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(&path);
    drop(mapping);
    drop(device);
    drop(dir);
    page.bytes_mut().fill(5);
    drop(page);
    assert!(view.bytes().iter().all(|byte| *byte == 5));
    assert!(mapped());
    drop(view);
    assert!(!mapped(), "the last page takes the mapping with it");
}

#[test]
fn buffers_must_be_as_long_as_the_page() {
    let dir = shm_dir();
    let mapping = map(&create(&dir, "pool", 4 * MIB));
    let view = mapping.read(DATA_START, 8).unwrap();
    let mut page = mapping.write(DATA_START, 8).unwrap();
    for buffer in [0_usize, 7, 9] {
        for error in [view.copy_to(&mut vec![0; buffer]), page.copy_from(&vec![1; buffer])] {
            let error = error.unwrap_err();
            assert!(matches!(error, MappingError::LengthMismatch { page: 8, .. }), "{error}");
        }
    }
}

#[test]
fn handles_cross_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<PoolMapping>>();
    shared::<PageView>();
    shared::<PageMut>();
    shared::<Device>();
}
