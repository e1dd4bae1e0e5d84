//! What lies behind a path: which kind of device, how large, how aligned, with how much room.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FsWord, fstatfs, fstatvfs, major, minor};

use crate::error::DeviceError;

/// `TMPFS_MAGIC` and `HUGETLBFS_MAGIC` of linux/magic.h.
const TMPFS: FsWord = 0x0102_1994;
const HUGETLBFS: FsWord = 0x9584_58f6;

/// What a device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// A DAX character device, `/dev/daxX.Y`: CXL or persistent memory, mapped without a page
    /// cache.
    DevDax,
    /// A file on a disk, on a DAX file system or on hugetlbfs.
    File,
    /// A file on tmpfs, such as in /dev/shm: ordinary memory of this host.
    Shm,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DevDax => "devdax",
            Self::File => "file",
            Self::Shm => "shm",
        })
    }
}

/// What is known of a device before its header is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) kind: DeviceKind,
    /// Every mapping of it starts and ends at a multiple of this, in bytes.
    pub(crate) alignment: u64,
    /// Its size in bytes now: of a new file 0, of a DAX device all that it has.
    pub(crate) bytes: u64,
    /// The largest size in bytes that it can have.
    pub(crate) available: u64,
    /// What limits `available`, for messages.
    pub(crate) limited_by: &'static str,
}

/// Where the kernel tells of devices and memory. A test has its own.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) sys: PathBuf,
    pub(crate) meminfo: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { sys: PathBuf::from("/sys"), meminfo: PathBuf::from("/proc/meminfo") }
    }
}

impl Host {
    /// What the open file `file` at `path` is.
    pub(crate) fn place(&self, path: &Path, file: &File) -> Result<Place, DeviceError> {
        let metadata = file.metadata().map_err(DeviceError::io("look at", path))?;
        if metadata.file_type().is_char_device() {
            return self.dax_place(path, metadata.rdev());
        }
        if !metadata.is_file() {
            let found = if metadata.is_dir() { "a directory" } else { "a special file" };
            return Err(DeviceError::NotADevice { path: path.to_owned(), found });
        }
        let empty = self.new_file_place(path, file)?;
        // What the file occupies now can be used again. st_blocks counts in 512 bytes always.
        let available = empty.available.saturating_add(metadata.blocks() * 512);
        Ok(Place { bytes: metadata.len(), available, ..empty })
    }

    /// What a file made in the open directory `directory` would be; `path` is the file's own.
    pub(crate) fn new_file_place(
        &self,
        path: &Path,
        directory: impl AsFd,
    ) -> Result<Place, DeviceError> {
        let fail = || DeviceError::io("look at the file system of", path);
        let kind = fstatfs(&directory).map_err(fail())?.f_type;
        let room = fstatvfs(&directory).map_err(fail())?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        let disk = Place {
            kind: DeviceKind::File,
            alignment: rustix::param::page_size() as u64,
            bytes: 0,
            available: free,
            limited_by: "its file system",
        };
        Ok(match kind {
            HUGETLBFS => {
                // Its statvfs counts nothing unless it was mounted with a size.
                let available = self.huge_pages(room.f_bsize, "free_hugepages")?;
                let available = available.saturating_mul(room.f_bsize);
                let limited_by =
                    "free huge pages (/proc/sys/vm/nr_hugepages sets how many there are)";
                Place { alignment: room.f_bsize, available, limited_by, ..disk }
            }
            TMPFS => {
                let memory = self.available_memory()?;
                let shm = Place { kind: DeviceKind::Shm, ..disk };
                if memory < free {
                    Place { available: memory, limited_by: "memory (MemAvailable)", ..shm }
                } else {
                    shm
                }
            }
            _ => disk,
        })
    }

    /// Size and alignment of a DAX device from sysfs: it has neither `st_size` nor statfs.
    fn dax_place(&self, path: &Path, number: u64) -> Result<Place, DeviceError> {
        let entry = self.sys.join(format!("dev/char/{}:{}", major(number), minor(number)));
        let subsystem = fs::read_link(entry.join("subsystem"));
        if !subsystem.is_ok_and(|target| target.ends_with("dax")) {
            let found = "a character device, but not a DAX one";
            return Err(DeviceError::NotADevice { path: path.to_owned(), found });
        }
        // Since Linux 5.10 the dax bus tells the alignment; before, only the nvdimm parent did.
        let align = entry.join("align");
        let align = if align.exists() { align } else { entry.join("device/align") };
        let bytes = read_number(&entry.join("size"))?;
        Ok(Place {
            kind: DeviceKind::DevDax,
            alignment: read_number(&align)?.max(rustix::param::page_size() as u64),
            bytes,
            available: bytes,
            limited_by: "the DAX device",
        })
    }

    /// One of the kernel's counts of huge pages of a size, such as `free_hugepages`.
    pub(crate) fn huge_pages(&self, page_bytes: u64, count: &str) -> Result<u64, DeviceError> {
        let path = format!("kernel/mm/hugepages/hugepages-{}kB/{count}", page_bytes / 1024);
        read_number(&self.sys.join(path))
    }

    /// `MemAvailable`: what can be had without swapping, page cache counted in.
    fn available_memory(&self) -> Result<u64, DeviceError> {
        let path = &self.meminfo;
        let text = fs::read_to_string(path).map_err(DeviceError::io("read", path))?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kilobytes = line.and_then(|rest| rest.trim().strip_suffix("kB"));
        let kilobytes = kilobytes.and_then(|count| count.trim().parse::<u64>().ok());
        let not_a_number = || DeviceError::NotANumber {
            path: path.clone(),
            found: format!("MemAvailable:{}", line.unwrap_or(" missing")),
        };
        Ok(kilobytes.ok_or_else(not_a_number)?.saturating_mul(1024))
    }
}

fn read_number(path: &Path) -> Result<u64, DeviceError> {
    let text = fs::read_to_string(path).map_err(DeviceError::io("read", path))?;
    let found = text.trim().to_owned();
    found.parse().map_err(|_| DeviceError::NotANumber { path: path.to_owned(), found })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::makedev;
    use tempfile::TempDir;

    use super::*;

    /// A tree like the kernel's: 252:0 is a DAX device of 64 GiB in 2 MiB, 1:3 is /dev/null, and
    /// two huge pages are free.
    fn fake() -> (TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let dax = root.join("devices/dax0.0");
        fs::create_dir_all(&dax).unwrap();
        fs::write(dax.join("size"), "68719476736\n").unwrap();
        fs::write(dax.join("align"), "2097152\n").unwrap();
        symlink("../../bus/dax", dax.join("subsystem")).unwrap();
        let null = root.join("devices/null");
        fs::create_dir_all(&null).unwrap();
        symlink("../../class/mem", null.join("subsystem")).unwrap();
        fs::create_dir_all(root.join("dev/char")).unwrap();
        symlink("../../devices/dax0.0", root.join("dev/char/252:0")).unwrap();
        symlink("../../devices/null", root.join("dev/char/1:3")).unwrap();
        let pages = root.join("kernel/mm/hugepages/hugepages-2048kB");
        fs::create_dir_all(&pages).unwrap();
        fs::write(pages.join("free_hugepages"), "2\n").unwrap();
        fs::write(root.join("meminfo"), "MemFree: 1 kB\nMemAvailable:    8192 kB\n").unwrap();
        let host = Host { sys: root.to_owned(), meminfo: root.join("meminfo") };
        (dir, host)
    }

    #[test]
    fn dax_devices_are_read_from_sysfs() {
        let (dir, host) = fake();
        let path = Path::new("/dev/dax0.0");
        let place = host.dax_place(path, makedev(252, 0)).unwrap();
        assert_eq!((place.kind, place.alignment), (DeviceKind::DevDax, 2 << 20));
        assert_eq!((place.bytes, place.available), (64 << 30, 64 << 30));

        // The older place of the alignment.
        let dax = dir.path().join("devices/dax0.0");
        fs::remove_file(dax.join("align")).unwrap();
        fs::create_dir(dax.join("device")).unwrap();
        fs::write(dax.join("device/align"), "1073741824\n").unwrap();
        assert_eq!(host.dax_place(path, makedev(252, 0)).unwrap().alignment, 1 << 30);

        fs::write(dax.join("size"), "plenty\n").unwrap();
        let error = host.dax_place(path, makedev(252, 0)).unwrap_err();
        assert!(matches!(&error, DeviceError::NotANumber { found, .. } if found == "plenty"));
        fs::remove_file(dax.join("size")).unwrap();
        let error = host.dax_place(path, makedev(252, 0)).unwrap_err();
        assert!(matches!(error, DeviceError::Io { action: "read", .. }));
    }

    #[test]
    fn other_character_devices_are_refused() {
        let (_dir, host) = fake();
        let null = File::open("/dev/null").unwrap();
        for number in [null.metadata().unwrap().rdev(), makedev(252, 9)] {
            let error = host.dax_place(Path::new("/dev/null"), number).unwrap_err();
            assert!(matches!(error, DeviceError::NotADevice { .. }));
        }
        let error = Host::default().place(Path::new("/dev/null"), &null).unwrap_err();
        assert!(error.to_string().contains("not a DAX one"), "{error}");
    }

    #[test]
    fn memory_limits_tmpfs_but_not_disks() {
        let (_dir, host) = fake();
        let shm = File::open("/dev/shm").unwrap();
        let place = host.new_file_place(Path::new("/dev/shm/x"), &shm).unwrap();
        assert_eq!((place.kind, place.available), (DeviceKind::Shm, 8 << 20));
        assert_eq!(place.limited_by, "memory (MemAvailable)");

        fs::write(&host.meminfo, "MemFree: 1 kB\n").unwrap();
        let error = host.new_file_place(Path::new("/dev/shm/x"), &shm).unwrap_err();
        assert!(error.to_string().contains("MemAvailable: missing"), "{error}");
        assert_eq!(host.huge_pages(2 << 20, "free_hugepages").unwrap(), 2);
    }
}
