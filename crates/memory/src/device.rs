//! Devices: made and locked by a server, opened by instances.
//!
//! The server that owns a device holds an exclusive `flock` on it. The lock belongs to the open
//! file, which a mapping keeps open too: it is free again when the [`Device`] *and* every mapping
//! made from it are gone, or the process has ended, however it ended.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use uuid::Uuid;

use crate::error::DeviceError;
use crate::header::{DATA_START, HEADER_LEN, Header, HeaderError};
use crate::host::{DeviceKind, Host, Place};
use crate::range::{read_first, write_first};

/// How much of a DAX device is looked at to see whether anything was ever written to it, in bytes.
const BLANK_LEN: usize = 4096;

/// One device of a pool: open, and known to be the right one.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
    kind: DeviceKind,
    alignment: u64,
    header: Header,
}

/// What [`inspect`] tells of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// The name that instances know it by; new whenever it is made anew.
    pub uuid: Uuid,
    /// What it is made of.
    pub kind: DeviceKind,
    /// Size in bytes, header area included.
    pub bytes: u64,
    /// Alignment of mappings in bytes.
    pub alignment: u64,
    /// Version of its header format.
    pub format_version: u32,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: u64,
    /// The last epoch that it was served in; 0 before the first.
    pub epoch: u32,
    /// Whether a server holds it now.
    pub in_use: bool,
}

impl Device {
    /// Opens a device that exists and takes it, as its server.
    ///
    /// It is locked; a second server is refused with [`DeviceError::InUse`] while the first has it.
    pub fn open_owner(path: impl AsRef<Path>) -> Result<Self, DeviceError> {
        let path = path.as_ref();
        let (file, place) = open_locked(&Host::default(), path)?;
        Self::from_parts(file, path, &place)
    }

    /// Opens the device `expected`, as an instance does: no lock, but nothing else than that
    /// device.
    pub fn open(path: impl AsRef<Path>, expected: Uuid) -> Result<Self, DeviceError> {
        let path = path.as_ref();
        let (file, place) = open(&Host::default(), path, Access::ReadWrite)?;
        let device = Self::from_parts(file, path, &place)?;
        let found = device.uuid();
        if found != expected {
            return Err(DeviceError::WrongIdentity { path: path.to_owned(), expected, found });
        }
        Ok(device)
    }

    fn from_parts(file: File, path: &Path, place: &Place) -> Result<Self, DeviceError> {
        let header = read_header(&file, path, place)?;
        Ok(Self::new(file, path, place, header))
    }

    pub(crate) fn new(file: File, path: &Path, place: &Place, header: Header) -> Self {
        let (path, kind, alignment) = (path.to_owned(), place.kind, place.alignment);
        Self { file, path, kind, alignment, header }
    }

    /// The last epoch that it was served in; 0 before the first.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.header.epoch
    }

    /// Whether the server that had it last did not let go of it in good order: somebody may still
    /// write to any of its pages.
    #[must_use]
    pub fn was_in_service(&self) -> bool {
        self.header.in_service
    }

    /// Says in its header that it is served in this epoch from now on.
    pub fn begin_epoch(&mut self, epoch: u32) -> Result<(), DeviceError> {
        self.write_header(Header { epoch, in_service: true, ..self.header })
    }

    /// Says in its header that its server lets go of it, and that nobody writes to it.
    pub fn end_service(&mut self) -> Result<(), DeviceError> {
        self.write_header(Header { in_service: false, ..self.header })
    }

    pub(crate) fn write_header(&mut self, header: Header) -> Result<(), DeviceError> {
        let failed = DeviceError::io("write the header of", &self.path);
        write_first(&self.file, self.alignment, &header.encode()).map_err(failed)?;
        self.header = header;
        Ok(())
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its identity.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.header.uuid
    }

    /// Its size in bytes, header area included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.header.device_bytes
    }

    /// What it is made of.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Every mapping of it starts and ends at a multiple of this, in bytes.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Offset in bytes at which its pages start.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        DATA_START
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// Whether there is memory behind all of these devices together.
///
/// A sparse file promises more than it has, and several on one file system may promise the same
/// memory: whoever touches what is not there is killed (SIGBUS). So this is to be asked before
/// anything is mapped.
pub fn check_backing(devices: &[Device]) -> Result<(), DeviceError> {
    let mut promised: BTreeMap<u64, u64> = BTreeMap::new();
    for device in devices.iter().filter(|device| device.kind != DeviceKind::DevDax) {
        let place = Host::default().place(&device.path, &device.file)?;
        let metadata = device.file.metadata().map_err(DeviceError::io("look at", &device.path))?;
        let occupied = metadata.blocks() * 512;
        let promised = promised.entry(metadata.dev()).or_default();
        *promised += device.bytes().saturating_sub(occupied);
        let free = place.available.saturating_sub(occupied);
        if *promised > free {
            return Err(DeviceError::TooLarge {
                path: device.path.clone(),
                asked: device.bytes(),
                available: device.bytes().saturating_sub(*promised - free),
                of: place.limited_by,
            });
        }
    }
    Ok(())
}

/// What [`examine`] tells of what lies at a path, a device of a pool or not yet.
#[derive(Debug)]
#[non_exhaustive]
pub struct Examined {
    /// What it is made of.
    pub kind: DeviceKind,
    /// Its size in bytes now.
    pub bytes: u64,
    /// Alignment of mappings in bytes.
    pub alignment: u64,
    /// Whether nothing is there that making it a device would destroy.
    pub blank: bool,
    /// What its header says, or why it has no good one.
    pub identity: Result<Identity, DeviceError>,
}

/// Looks at what may be a device, or become one, without taking or changing it, as [`inspect`] does.
pub fn examine(path: impl AsRef<Path>) -> Result<Examined, DeviceError> {
    let path = path.as_ref();
    let (file, place) = open(&Host::default(), path, Access::Read)?;
    let identity = identify(&file, path, &place);
    let blank = identity.is_err() && is_blank(&file, path, &place)?;
    let Place { kind, bytes, alignment, .. } = place;
    Ok(Examined { kind, bytes, alignment, blank, identity })
}

/// Looks at a device without taking or changing it.
///
/// To see whether a server has it, a shared lock is tried for a moment: a server that starts in
/// that very moment is told that the device is in use.
pub fn inspect(path: impl AsRef<Path>) -> Result<Identity, DeviceError> {
    let path = path.as_ref();
    let (file, place) = open(&Host::default(), path, Access::Read)?;
    identify(&file, path, &place)
}

fn identify(file: &File, path: &Path, place: &Place) -> Result<Identity, DeviceError> {
    let header = read_header(file, path, place)?;
    let in_use = match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => false,
        Err(Errno::WOULDBLOCK) => true,
        Err(error) => return Err(DeviceError::io("test the lock of", path)(error)),
    };
    Ok(Identity {
        uuid: header.uuid,
        kind: place.kind,
        bytes: header.device_bytes,
        alignment: place.alignment,
        format_version: crate::FORMAT_VERSION,
        created_unix_ms: header.created_unix_ms,
        epoch: header.epoch,
        in_use,
    })
}

pub(crate) fn read_header(file: &File, path: &Path, place: &Place) -> Result<Header, DeviceError> {
    let refuse = |reason| DeviceError::Header { path: path.to_owned(), reason };
    // Beyond the end of a file a load would fault.
    if place.bytes < HEADER_LEN as u64 {
        return Err(refuse(HeaderError::NotAPool));
    }
    let bytes: [u8; HEADER_LEN] =
        read_first(file, place.alignment).map_err(DeviceError::io("read the header of", path))?;
    let header = Header::decode(&bytes).map_err(refuse)?;
    let (asked, alignment) = (header.device_bytes, place.alignment);
    if asked > place.bytes {
        return Err(refuse(HeaderError::Truncated { header_says: asked, file_has: place.bytes }));
    }
    // A file copied from a disk to hugetlbfs, or a DAX device that was configured anew.
    if !asked.is_multiple_of(alignment) {
        return Err(DeviceError::Misaligned { path: path.to_owned(), asked, alignment });
    }
    Ok(header)
}

/// Whether nothing is lost when this is made a device: an empty file, or a DAX device that starts
/// with zeros. A file with content is somebody's, even if it is all zeros.
pub(crate) fn is_blank(file: &File, path: &Path, place: &Place) -> Result<bool, DeviceError> {
    if place.kind != DeviceKind::DevDax {
        return Ok(place.bytes == 0);
    }
    let start: [u8; BLANK_LEN] =
        read_first(file, place.alignment).map_err(DeviceError::io("read the start of", path))?;
    Ok(start.iter().all(|byte| *byte == 0))
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

pub(crate) fn options(access: Access) -> OpenOptions {
    // Links could lead a privileged server anywhere; a FIFO must not make the open wait.
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::ReadWrite).custom_flags(flags.bits().cast_signed());
    options
}

fn open(host: &Host, path: &Path, access: Access) -> Result<(File, Place), DeviceError> {
    let not_a_device = |found| DeviceError::NotADevice { path: path.to_owned(), found };
    let file = options(access).open(path).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => DeviceError::NotFound { path: path.to_owned() },
        Some(Errno::LOOP) => not_a_device("a symbolic link"),
        Some(Errno::ISDIR) => not_a_device("a directory"),
        Some(Errno::NXIO) => not_a_device("a special file"),
        _ => DeviceError::io("open", path)(error),
    })?;
    let place = host.place(path, &file)?;
    Ok((file, place))
}

/// Opens a device that exists and locks it.
pub(crate) fn open_locked(host: &Host, path: &Path) -> Result<(File, Place), DeviceError> {
    let (file, _) = open(host, path, Access::ReadWrite)?;
    lock(&file, path)?;
    // Again, since another server may have filled the file before it was locked.
    let place = host.place(path, &file)?;
    Ok((file, place))
}

/// Takes the lock that says "a server has this device".
pub(crate) fn lock(file: &File, path: &Path) -> Result<(), DeviceError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(DeviceError::InUse { path: path.to_owned() });
        }
        Err(error) => return Err(DeviceError::io("lock", path)(error)),
    }
    // `Device::create` may have replaced the file before we had the lock: nobody finds ours any
    // more.
    let metadata = file.metadata().map_err(DeviceError::io("look at", path))?;
    if metadata.nlink() == 0 {
        return Err(DeviceError::Replaced { path: path.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{DeviceSpec, IfExists};

    #[test]
    fn a_file_that_was_replaced_meanwhile_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool");
        fs::write(&path, "old").unwrap();
        let (file, _) = open(&Host::default(), &path, Access::ReadWrite).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(lock(&file, &path), Err(DeviceError::Replaced { .. })));
    }

    #[test]
    fn what_is_no_device_yet_is_examined() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool");
        assert!(matches!(examine(&path), Err(DeviceError::NotFound { .. })));
        for (content, blank) in [("", true), ("somebody's", false)] {
            fs::write(&path, content).unwrap();
            let examined = examine(&path).unwrap();
            assert_eq!((examined.bytes, examined.blank), (content.len() as u64, blank));
            assert!(matches!(examined.identity, Err(DeviceError::Header { .. })));
            assert_eq!(fs::read(&path).unwrap(), content.as_bytes());
        }
        let spec = DeviceSpec { path: path.clone(), bytes: Some(4 << 20) };
        let device = Device::create(&spec, IfExists::Overwrite).unwrap();
        let examined = examine(&path).unwrap();
        let identity = examined.identity.unwrap();
        assert_eq!((identity.uuid, identity.in_use), (device.uuid(), true));
        assert_eq!(identity, inspect(&path).unwrap());
        assert!(!examined.blank);
    }

    #[test]
    fn an_alignment_that_does_not_suit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool");
        let spec = DeviceSpec { path: path.clone(), bytes: Some(5 << 20) };
        let device = Device::create(&spec, IfExists::Refuse).unwrap();
        let (file, place) = open(&Host::default(), &path, Access::ReadWrite).unwrap();
        let huge = Place { alignment: 2 << 20, ..place };
        let error = Device::from_parts(file, &path, &huge).unwrap_err();
        assert!(matches!(error, DeviceError::Misaligned { asked, .. } if asked == device.bytes()));
    }
}
