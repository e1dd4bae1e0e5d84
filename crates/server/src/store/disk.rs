//! Where segments lie: files in a folder, or what a simulation has in their place.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};
use rustix::io::Errno;

/// How many bytes are written at a time where memory cannot be set aside otherwise.
const ZEROS: usize = 1 << 20;

/// Numbered segments. One is written to at its end, the others are only read.
pub trait Disk: fmt::Debug {
    /// The segments there are, by number, with their lengths in bytes.
    fn list(&mut self) -> io::Result<BTreeMap<u64, u64>>;
    /// Makes an empty segment with `room` bytes set aside: writing to them does not fail for lack of
    /// space. On an error there is no such segment.
    fn create(&mut self, segment: u64, room: u64) -> io::Result<()>;
    /// Sets more room aside for the segment that was made last, up to `room` bytes in all.
    fn extend(&mut self, segment: u64, room: u64) -> io::Result<()>;
    /// Writes into the segment that was made last.
    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Waits until what was written to the segment would outlive a power failure.
    fn sync(&mut self, segment: u64) -> io::Result<()>;
    /// Ends a segment behind its first `len` bytes; what was set aside beyond is free.
    fn seal(&mut self, segment: u64, len: u64) -> io::Result<()>;
    /// Up to `len` bytes of a segment from `offset`; fewer at its end.
    fn read(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Removes a segment.
    fn remove(&mut self, segment: u64) -> io::Result<()>;
}

/// Files in a folder, whose name is their number.
#[derive(Debug)]
pub struct FileDisk {
    folder: PathBuf,
    /// What was made or removed is waited for, too.
    synced: bool,
    /// Locked: nobody else has the folder meanwhile.
    _folder: File,
    /// The segment that was used last.
    open: Option<(u64, File)>,
}

impl FileDisk {
    /// The folder, made if it is not there, for its user alone. `synced`: what [`Disk::create`] and
    /// [`Disk::remove`] did would outlive a power failure. [`ErrorKind::ResourceBusy`] while another
    /// has it.
    pub fn open(folder: &Path, synced: bool) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let locked = File::open(folder)?;
        flock(&locked, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => io::Error::new(
                ErrorKind::ResourceBusy,
                "another server or `maru pool fsck` has it; stop that first",
            ),
            error => error.into(),
        })?;
        Ok(Self { folder: folder.to_owned(), synced, _folder: locked, open: None })
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.folder.join(format!("{segment:016x}.log"))
    }

    fn file(&mut self, segment: u64) -> io::Result<&File> {
        if !matches!(self.open, Some((open, _)) if open == segment) {
            let file = options().open(self.path(segment))?;
            self.open = None;
            return Ok(&self.open.insert((segment, file)).1);
        }
        let open = self.open.as_ref();
        open.map(|(_, file)| file).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn sync_folder(&self) -> io::Result<()> {
        if self.synced { File::open(&self.folder)?.sync_all() } else { Ok(()) }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

/// Sets bytes aside in a file; they read as 0.
fn set_aside(file: &File, from: u64, to: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), from, to - from) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let zeros = vec![0; ZEROS];
            let mut at = from;
            while at < to {
                let len = usize::try_from(to - at).unwrap_or(ZEROS).min(ZEROS);
                file.write_all_at(&zeros[..len], at)?;
                at += len as u64;
            }
            Ok(())
        }
        result => Ok(result?),
    }
}

impl Disk for FileDisk {
    fn list(&mut self) -> io::Result<BTreeMap<u64, u64>> {
        let mut segments = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
            let number = number.filter(|number| number.len() == 16);
            if let Some(number) = number.and_then(|number| u64::from_str_radix(number, 16).ok()) {
                segments.insert(number, entry.metadata()?.len());
            }
        }
        Ok(segments)
    }

    fn create(&mut self, segment: u64, room: u64) -> io::Result<()> {
        let path = self.path(segment);
        let file = options().create_new(true).open(&path)?;
        let made = set_aside(&file, 0, room).and_then(|()| self.sync_folder());
        made.inspect_err(|_| {
            // The first error is the one to tell.
            let _ = fs::remove_file(&path);
        })?;
        self.open = Some((segment, file));
        Ok(())
    }

    fn extend(&mut self, segment: u64, room: u64) -> io::Result<()> {
        let file = self.file(segment)?;
        let len = file.metadata()?.len();
        if room > len { set_aside(file, len, room) } else { Ok(()) }
    }

    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(segment)?.write_all_at(bytes, offset)
    }

    fn sync(&mut self, segment: u64) -> io::Result<()> {
        self.file(segment)?.sync_data()
    }

    fn seal(&mut self, segment: u64, len: u64) -> io::Result<()> {
        self.file(segment)?.set_len(len)
    }

    fn read(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        // Beside the file that is written to: reading goes on while others are appended.
        let file = File::open(self.path(segment))?;
        let left = file.metadata()?.len().saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(len).min(len);
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        fs::remove_file(self.path(segment))?;
        self.sync_folder()
    }
}
