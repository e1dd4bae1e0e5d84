//! Making devices: what is refused, what is replaced, and in which order.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use uuid::Uuid;

use crate::device::{Access, is_blank, lock, open_locked, options, read_header};
use crate::error::DeviceError;
use crate::header::{Header, HeaderError};
use crate::host::{DeviceKind, Host, Place};
use crate::{DATA_START, Device, DeviceSpec};

/// The smallest device, in bytes: its header area and one page of the smallest size.
pub const MIN_DEVICE_BYTES: u64 = DATA_START + 4096;

/// How large a new file could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Room {
    /// What the file would be.
    pub kind: DeviceKind,
    /// The largest size in bytes that it could have.
    pub bytes: u64,
    /// What sets that limit, in words.
    pub limited_by: &'static str,
}

/// How large a file could be that is made at `path`, where none need be; nothing is made.
pub fn room(path: impl AsRef<Path>) -> Result<Room, DeviceError> {
    let path = path.as_ref();
    let place = Host::default().new_file_place(path, directory_of(path)?)?;
    Ok(Room { kind: place.kind, bytes: place.available, limited_by: place.limited_by })
}

/// What [`Device::create`] does when something is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfExists {
    /// Leave it as it is and fail.
    Refuse,
    /// Replace it, whatever it is, unless a server has it.
    Overwrite,
}

impl Device {
    /// Makes the device `spec` and takes it, as its server.
    ///
    /// A file that is not there is made, readable and writable by its user alone, sparse: its
    /// memory comes in when it is touched. An empty file and a DAX device without content are taken
    /// as they are. Everything else is refused, or, with [`IfExists::Overwrite`], replaced. A file
    /// is replaced by a new one under its name, so that an instance which still maps the old one
    /// cannot write into the new.
    ///
    /// Without a size in `spec`, an existing file or device is taken whole. Sizes are checked
    /// before anything is made or changed.
    pub fn create(spec: &DeviceSpec, if_exists: IfExists) -> Result<Self, DeviceError> {
        create_on(&Host::default(), spec, if_exists)
    }
}

/// What [`Device::create`] does, on any host.
fn create_on(host: &Host, spec: &DeviceSpec, if_exists: IfExists) -> Result<Device, DeviceError> {
    let path = &spec.path;
    let (file, place) = match open_locked(host, path) {
        Ok(found) => found,
        Err(DeviceError::NotFound { .. }) => {
            let place = host.new_file_place(path, directory_of(path)?)?;
            let bytes = checked_size(spec, &place)?;
            return create_file(path, &place, bytes);
        }
        Err(error) => return Err(error),
    };
    let blank = is_blank(&file, path, &place)?;
    if !blank && if_exists == IfExists::Refuse {
        return Err(already_there(&file, path, &place));
    }
    let bytes = checked_size(spec, &place)?;
    if blank || place.kind == DeviceKind::DevDax {
        return fill(file, path, &place, bytes);
    }
    // The old file stays locked until the new one is there: no server can take it in between.
    fs::remove_file(path).map_err(DeviceError::io("remove the old", path))?;
    create_file(path, &place, bytes)
}

/// Makes the file, which must not be there, and everything in it; on failure it is gone again.
fn create_file(path: &Path, place: &Place, bytes: u64) -> Result<Device, DeviceError> {
    let file = options(Access::ReadWrite)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(DeviceError::io("make", path))?;
    // Not removed if this fails: then another server was faster, and the file is its own.
    lock(&file, path)?;
    fill(file, path, place, bytes).inspect_err(|_| {
        // The first error is the one to tell.
        let _ = fs::remove_file(path);
    })
}

/// Gives a locked file or device its size and its header.
fn fill(file: File, path: &Path, place: &Place, bytes: u64) -> Result<Device, DeviceError> {
    if place.kind != DeviceKind::DevDax {
        file.set_len(bytes).map_err(DeviceError::io("set the size of", path))?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let header = Header {
        uuid: Uuid::new_v4(),
        device_bytes: bytes,
        created_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        epoch: 0,
        in_service: false,
    };
    let mut device = Device::new(file, path, place, header);
    device.write_header(header)?;
    if place.kind == DeviceKind::File {
        // The only kind that outlives a power failure; the others have no cache to write back.
        let failed = DeviceError::io("write back the header of", path);
        device.file().sync_all().map_err(failed)?;
    }
    Ok(device)
}

/// The size that `spec` asks for, or that is there, if such a device can be.
fn checked_size(spec: &DeviceSpec, place: &Place) -> Result<u64, DeviceError> {
    let path = || spec.path.clone();
    let there = (place.bytes > 0).then_some(place.bytes);
    let asked = spec.bytes.or(there).ok_or_else(|| DeviceError::SizeMissing { path: path() })?;
    let least = MIN_DEVICE_BYTES.next_multiple_of(place.alignment);
    if asked < least {
        return Err(DeviceError::TooSmall { path: path(), asked, least });
    }
    if !asked.is_multiple_of(place.alignment) {
        return Err(DeviceError::Misaligned { path: path(), asked, alignment: place.alignment });
    }
    if asked > place.available {
        // Rounded to what could be asked for instead.
        let unit = place.alignment.max(1 << 20);
        let available = place.available / unit * unit;
        return Err(DeviceError::TooLarge { path: path(), asked, available, of: place.limited_by });
    }
    Ok(asked)
}

fn already_there(file: &File, path: &Path, place: &Place) -> DeviceError {
    let path = path.to_owned();
    match read_header(file, &path, place) {
        Ok(header) => DeviceError::AlreadyAPool { path, uuid: header.uuid },
        Err(DeviceError::Header { reason: HeaderError::NotAPool, .. }) => {
            DeviceError::NotEmpty { path }
        }
        Err(error) => error,
    }
}

/// The directory that a new file at `path` would be in; only to be asked, so permission to read it
/// is not needed.
fn directory_of(path: &Path) -> Result<File, DeviceError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(parent)
        .map_err(DeviceError::io("find the directory", parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(path: &Path, bytes: u64) -> DeviceSpec {
        DeviceSpec { path: path.to_owned(), bytes: Some(bytes) }
    }

    #[test]
    fn no_more_than_the_memory_of_this_host() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let host = Host { meminfo: dir.path().join("meminfo"), ..Host::default() };
        fs::write(&host.meminfo, "MemAvailable: 8199 kB\n").unwrap();
        let path = dir.path().join("pool");
        let error = create_on(&host, &spec(&path, 16 << 20), IfExists::Overwrite).unwrap_err();
        let DeviceError::TooLarge { asked, available, .. } = error else { panic!("{error}") };
        assert_eq!((asked, available), (16 << 20, 8 << 20));
        assert!(!path.exists());

        // What the old file holds is counted as free: it makes room for the new one.
        fs::write(&path, vec![1; 8 << 20]).unwrap();
        create_on(&host, &spec(&path, 16 << 20), IfExists::Overwrite).unwrap();
    }

    #[test]
    fn a_file_that_could_not_be_finished_is_gone_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool");
        let file = directory_of(&path).unwrap();
        let place = Host::default().new_file_place(&path, &file).unwrap();
        let unmappable = Place { alignment: 1 << 62, ..place };
        let error = create_file(&path, &unmappable, 4 << 20).unwrap_err();
        assert!(matches!(error, DeviceError::Io { action: "write the header of", .. }), "{error}");
        assert!(!path.exists());
    }
}
