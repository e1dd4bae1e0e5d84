//! Making, opening, locking and refusing devices.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use maru_memory::{
    DATA_START, Device, DeviceError, DeviceKind, DeviceSpec, HeaderError, IfExists,
    MIN_DEVICE_BYTES, PoolMapping, Populate, View, Visibility, inspect,
};
use uuid::Uuid;

use crate::{MIB, create, map, shm_dir, spec};

/// All of a file that a refusal must leave alone.
#[derive(Debug, PartialEq)]
struct Untouched {
    bytes: Vec<u8>,
    inode: u64,
    mode: u32,
    modified: std::time::SystemTime,
}

fn state(path: &Path) -> Untouched {
    let metadata = fs::metadata(path).unwrap();
    Untouched {
        bytes: fs::read(path).unwrap(),
        inode: metadata.ino(),
        mode: metadata.mode(),
        modified: metadata.modified().unwrap(),
    }
}

/// Opens `path` in every way there is, which must fail and leave it as it was.
fn refused_everywhere(path: &Path, expected: &dyn Fn(&DeviceError) -> bool) {
    let before = state(path);
    let results = [
        Device::open_owner(path).err(),
        Device::open(path, Uuid::nil()).err(),
        inspect(path).err(),
    ];
    for error in results {
        let error = error.expect("it is refused");
        assert!(expected(&error), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(state(path), before);
}

fn header_error(wanted: HeaderError) -> impl Fn(&DeviceError) -> bool {
    move |error| matches!(error, DeviceError::Header { reason, .. } if *reason == wanted)
}

#[test]
fn a_new_device_is_private_sparse_and_found_again() {
    for (dir, kind) in
        [(shm_dir(), DeviceKind::Shm), (tempfile::tempdir().unwrap(), DeviceKind::File)]
    {
        let device = create(&dir, "pool", 32 * MIB);
        assert_eq!((device.kind(), device.bytes()), (kind, 32 * MIB));
        assert_eq!((device.alignment(), device.data_start()), (4096, DATA_START));
        let metadata = fs::metadata(device.path()).unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (32 * MIB, 0o600));
        assert!(metadata.blocks() * 512 < 4 * MIB, "{} blocks", metadata.blocks());

        let opened = Device::open(device.path(), device.uuid()).unwrap();
        assert_eq!((opened.uuid(), opened.bytes()), (device.uuid(), device.bytes()));
        let identity = inspect(device.path()).unwrap();
        assert_eq!((identity.uuid, identity.kind), (device.uuid(), kind));
        assert_eq!((identity.bytes, identity.format_version), (32 * MIB, 2));
        assert!(identity.in_use && identity.created_unix_ms > 0);
    }
}

#[test]
fn bad_sizes_are_refused_before_anything_is_made() {
    let dir = shm_dir();
    let check = |bytes, expected: &dyn Fn(&DeviceError) -> bool| {
        let spec = DeviceSpec { path: dir.path().join("pool"), bytes };
        let refused = |if_exists| {
            let error = Device::create(&spec, if_exists).unwrap_err();
            assert!(expected(&error), "{bytes:?}: {error}");
        };
        refused(IfExists::Refuse);
        assert!(!spec.path.exists());
        fs::write(&spec.path, "").unwrap();
        let before = state(&spec.path);
        refused(IfExists::Overwrite);
        assert_eq!(state(&spec.path), before);
        fs::remove_file(&spec.path).unwrap();
    };
    check(None, &|error| matches!(error, DeviceError::SizeMissing { .. }));
    for bytes in [0, 4096, 2 * MIB] {
        check(Some(bytes), &|error| {
            matches!(error, DeviceError::TooSmall { least: MIN_DEVICE_BYTES, .. })
        });
    }
    check(Some(4 * MIB + 1), &|error| {
        matches!(error, DeviceError::Misaligned { alignment: 4096, .. })
    });
    for bytes in [1 << 50, u64::MAX / 4096 * 4096] {
        check(Some(bytes), &|error| {
            let available = if let DeviceError::TooLarge { available, .. } = error {
                *available
            } else {
                return false;
            };
            0 < available && available < 1 << 50
        });
    }
}

#[test]
fn content_is_only_overwritten_when_asked() {
    let dir = shm_dir();
    let spec = spec(&dir, "pool", 8 * MIB);
    // All zeros is content too: somebody made that file.
    for content in [b"diary".to_vec(), vec![0; 5 << 20]] {
        fs::write(&spec.path, content).unwrap();
        let before = state(&spec.path);
        let error = Device::create(&spec, IfExists::Refuse).unwrap_err();
        assert!(matches!(error, DeviceError::NotEmpty { .. }), "{error}");
        assert_eq!(state(&spec.path), before);
        drop(Device::create(&spec, IfExists::Overwrite).unwrap());
        fs::remove_file(&spec.path).unwrap();
    }

    let first = Device::create(&spec, IfExists::Refuse).unwrap().uuid();
    let before = state(&spec.path);
    let error = Device::create(&spec, IfExists::Refuse).unwrap_err();
    assert!(matches!(error, DeviceError::AlreadyAPool { uuid, .. } if uuid == first), "{error}");
    assert_eq!(state(&spec.path), before);
    let second = Device::create(&DeviceSpec { bytes: None, ..spec }, IfExists::Overwrite).unwrap();
    assert_ne!(second.uuid(), first);
    assert_eq!(second.bytes(), 8 * MIB);
}

#[test]
fn an_instance_of_the_old_device_cannot_write_into_the_new() {
    let dir = shm_dir();
    let old = create(&dir, "pool", 4 * MIB);
    let mapping = map(&old);
    let mut page = mapping.write(DATA_START, 4096).unwrap();
    drop(old);
    let new = Device::create(&spec(&dir, "pool", 4 * MIB), IfExists::Overwrite).unwrap();
    page.bytes_mut().fill(1);
    let fresh = map(&new).read(DATA_START, 4096).unwrap();
    assert!(fresh.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn an_empty_file_is_taken_as_it_is() {
    let dir = shm_dir();
    let spec = spec(&dir, "pool", 4 * MIB);
    fs::write(&spec.path, "").unwrap();
    fs::set_permissions(&spec.path, fs::Permissions::from_mode(0o660)).unwrap();
    let inode = fs::metadata(&spec.path).unwrap().ino();
    let device = Device::create(&spec, IfExists::Refuse).unwrap();
    let metadata = fs::metadata(device.path()).unwrap();
    assert_eq!((metadata.ino(), metadata.mode() & 0o777), (inode, 0o660));
}

#[test]
fn foreign_and_damaged_files_are_refused_and_untouched() {
    let dir = shm_dir();
    let device = create(&dir, "pool", 4 * MIB);
    let (path, good) = (device.path().to_owned(), fs::read(device.path()).unwrap());
    drop(device);
    let check = |bytes: &[u8], wanted: HeaderError| {
        fs::write(&path, bytes).unwrap();
        refused_everywhere(&path, &header_error(wanted));
    };
    for length in [0, 5, 63, 64, 8192, 4 << 20] {
        check(&vec![b'x'; length], HeaderError::NotAPool);
    }
    let mut newer = good.clone();
    newer[8] = 9;
    check(&newer, HeaderError::WrongVersion { found: 9, supported: 2 });
    let mut torn = good.clone();
    torn[20] ^= 1;
    check(&torn, HeaderError::Corrupt { what: "its checksum does not match" });
    let error = Device::create(&spec(&dir, "pool", 4 * MIB), IfExists::Refuse).unwrap_err();
    assert!(matches!(error, DeviceError::Header { .. }), "{error}");
    for file_has in [64, 4096, 2 * MIB, 4 * MIB - 1] {
        let whole = usize::try_from(file_has).unwrap();
        check(&good[..whole], HeaderError::Truncated { header_says: 4 * MIB, file_has });
    }

    // Grown is fine: the pool is as large as its header says.
    fs::write(&path, [good.as_slice(), &[1; 4096]].concat()).unwrap();
    assert_eq!(Device::open_owner(&path).unwrap().bytes(), 4 * MIB);
}

#[test]
fn only_the_expected_device_is_opened() {
    let dir = shm_dir();
    let (one, other) = (create(&dir, "one", 4 * MIB), create(&dir, "other", 4 * MIB));
    let before = state(one.path());
    let error = Device::open(one.path(), other.uuid()).unwrap_err();
    assert!(matches!(error, DeviceError::WrongIdentity { .. }));
    let message = error.to_string();
    for named in [one.uuid(), other.uuid()] {
        assert!(message.contains(&named.to_string()), "{message}");
    }
    assert_eq!(state(one.path()), before);
}

#[test]
fn a_device_has_one_server_at_a_time() {
    let dir = shm_dir();
    let first = create(&dir, "pool", 4 * MIB);
    let before = state(first.path());
    let again = Device::create(&spec(&dir, "pool", 4 * MIB), IfExists::Overwrite);
    for error in [Device::open_owner(first.path()).unwrap_err(), again.unwrap_err()] {
        assert!(matches!(error, DeviceError::InUse { .. }), "{error}");
    }
    assert_eq!(state(first.path()), before);
    let instance = Device::open(first.path(), first.uuid()).unwrap();
    assert!(inspect(first.path()).unwrap().in_use);

    drop(first);
    assert!(!inspect(instance.path()).unwrap().in_use, "an instance takes no lock");
    let second = Device::open_owner(instance.path()).unwrap();
    assert_eq!(second.uuid(), instance.uuid());
}

#[test]
fn a_mapping_keeps_its_servers_lock() {
    let dir = shm_dir();
    let device = create(&dir, "pool", 4 * MIB);
    let path = device.path().to_owned();
    let mapping = PoolMapping::new(MIB * 64, Visibility::Coherent).unwrap();
    mapping.add_device(&device, 0).unwrap();
    drop(device);
    assert!(matches!(Device::open_owner(&path), Err(DeviceError::InUse { .. })));
    drop(mapping);
    Device::open_owner(&path).unwrap();
}

#[test]
fn what_cannot_be_a_device_is_named() {
    let dir = shm_dir();
    let pool = create(&dir, "pool", 4 * MIB);
    let at = |name: &str| dir.path().join(name);
    symlink(pool.path(), at("link")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo, mode, 0).unwrap();
    for (name, wanted) in [
        ("link", "a symbolic link"),
        ("directory", "a directory"),
        ("socket", "a special file"),
        ("fifo", "a special file"),
        ("/dev/null", "a character device, but not a DAX one"),
    ] {
        let spec = DeviceSpec { path: at(name), bytes: Some(4 * MIB) };
        let results = [
            Device::create(&spec, IfExists::Overwrite).err(),
            Device::open_owner(&spec.path).err(),
            inspect(&spec.path).err(),
        ];
        for error in results {
            let Some(DeviceError::NotADevice { found, .. }) = error else { panic!("{error:?}") };
            assert_eq!(found, wanted);
        }
    }
    let missing = at("missing");
    assert!(matches!(Device::open_owner(&missing), Err(DeviceError::NotFound { .. })));
    assert!(matches!(inspect(&missing), Err(DeviceError::NotFound { .. })));
    let error = Device::create(&spec(&dir, "missing/pool", 4 * MIB), IfExists::Refuse).unwrap_err();
    assert!(matches!(error, DeviceError::Io { action: "find the directory", .. }), "{error}");
}

/// For memory that not every machine has: `MARU_TEST_DEVICE=/dev/dax0.0`, or a file on hugetlbfs
/// with its size, and `cargo test -p maru-memory -- --ignored`. What is on the device is lost.
#[test]
#[ignore = "needs MARU_TEST_DEVICE=PATH[:SIZE], and overwrites it"]
fn a_real_device_serves_pages() {
    let spec = std::env::var("MARU_TEST_DEVICE").expect("MARU_TEST_DEVICE names a device");
    let device = Device::create(&spec.parse().unwrap(), IfExists::Overwrite).unwrap();
    println!("{device:?}");
    let opened = Device::open(device.path(), device.uuid()).unwrap();
    let mapping = Arc::new(PoolMapping::new(1 << 42, Visibility::Coherent).unwrap());
    let (start, len) = (1 << 30, device.bytes());
    mapping.add_device(&opened, start).unwrap();
    for view in [View::Write, View::Read] {
        Populate::start(Arc::clone(&mapping), start, len, 2, view).unwrap().wait().unwrap();
    }
    let (offset, len) = (start + DATA_START, len - DATA_START);
    mapping.write(offset, len).unwrap().bytes_mut().fill(3);
    assert!(mapping.read(offset, len).unwrap().bytes().iter().all(|byte| *byte == 3));
    assert!(inspect(device.path()).unwrap().in_use);
    let path = device.path().to_owned();
    drop(device);
    assert_eq!(Device::open_owner(path).unwrap().uuid(), opened.uuid());
}

#[test]
fn a_device_knows_the_epoch_it_was_served_in_last() {
    let dir = shm_dir();
    let mut device = create(&dir, "pool", 8 * MIB);
    let path = device.path().to_owned();
    assert_eq!((device.epoch(), device.was_in_service()), (0, false));
    device.begin_epoch(7).unwrap();
    drop(device);
    let mut killed = Device::open_owner(&path).unwrap();
    assert_eq!((killed.epoch(), killed.was_in_service()), (7, true));
    killed.end_service().unwrap();
    drop(killed);
    let ended = Device::open_owner(&path).unwrap();
    assert_eq!((ended.epoch(), ended.was_in_service()), (7, false));
    assert_eq!(inspect(&path).unwrap().epoch, 7);
}
