//! The memory that a pool lies in, or could.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use maru_memory::{
    DeviceError, DeviceKind, DeviceSpec, Examined, HeaderError, MIN_DEVICE_BYTES, examine, room,
};

use super::{Check, Status, access};
use crate::output;
use crate::serve::DEFAULT_POOL_BYTES;

const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// The largest alignment that a pool's addresses have.
const ALIGNMENT_MAX: u64 = 1 << 30;
const SHM: &str = "/dev/shm";
const DAX: &str = "/sys/bus/dax/devices";

/// Looks at these devices, or, where none were named, at all DAX devices.
pub(super) fn look(named: Option<&[DeviceSpec]>) -> Vec<Check> {
    if let Some(named) = named {
        return named.iter().map(|spec| device(spec, true)).collect();
    }
    let (found, kept) = dax_devices(Path::new("/dev"), Path::new(DAX));
    let mut checks: Vec<Check> =
        found.into_iter().map(|path| device(&DeviceSpec { path, bytes: None }, false)).collect();
    checks.extend(kept.iter().map(|name| kept_back(name)));
    if checks.is_empty() {
        checks.push(Check::new(
            Status::Note,
            "DAX devices",
            "there are none, so pools are files, for this host",
            "nothing, unless there should be CXL memory: then see `cxl list` and `daxctl list`",
        ));
    }
    checks
}

/// The DAX devices of this machine: those with a node, and those that the kernel has as memory.
fn dax_devices(dev: &Path, sys: &Path) -> (Vec<PathBuf>, Vec<String>) {
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| is_dax(name));
        names.sort();
        names
    };
    let nodes = names(dev);
    let kept = names(sys).into_iter().filter(|name| !nodes.contains(name));
    let kept = kept.filter(|name| is_system_ram(sys, name)).collect();
    (nodes.iter().map(|name| dev.join(name)).collect(), kept)
}

/// `dax0.0`, but not `dax` or a folder of another name.
fn is_dax(name: &str) -> bool {
    name.strip_prefix("dax").is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
}

fn is_system_ram(sys: &Path, name: &str) -> bool {
    fs::read_link(sys.join(name).join("driver")).is_ok_and(|driver| driver.ends_with("kmem"))
}

fn kept_back(name: &str) -> Check {
    let advice = format!("to have it for a pool: `daxctl reconfigure-device --mode=devdax {name}`");
    Check::new(
        Status::Note,
        format!("device {name}"),
        "the kernel uses it as its own memory",
        advice,
    )
}

/// Looks at one device; `wanted` if somebody named it.
fn device(spec: &DeviceSpec, wanted: bool) -> Check {
    let path = &spec.path;
    let name = format!("device {}", path.display());
    let bad = if wanted { Status::Problem } else { Status::Note };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return absent(name, spec),
        Err(error) => {
            let advice = "let this user search the folders above it, or correct the path";
            return Check::new(bad, name, format!("it cannot be looked at: {error}"), advice);
        }
    };
    // A link is for `examine` to refuse.
    let hindrance = if metadata.is_symlink() { None } else { access::hindrance(path, &metadata) };
    if let Some((found, advice)) = hindrance {
        return Check::new(bad, name, found, advice);
    }
    match examine(path) {
        Ok(examined) => judge(name, path, &examined, bad),
        Err(DeviceError::NotADevice { found, .. }) => {
            let advice = "name a DAX character device or a regular file, itself and not a link";
            Check::new(bad, name, format!("it is {found}"), advice)
        }
        Err(error) => {
            let advice = "see that /sys is mounted, and what the kernel's log (`dmesg`) says of it";
            Check::new(bad, name, error.to_string(), advice)
        }
    }
}

/// A path at which nothing is.
fn absent(name: String, spec: &DeviceSpec) -> Check {
    let DeviceSpec { path, bytes } = spec;
    let problem = |found: &str, advice: &str| Check::new(Status::Problem, &*name, found, advice);
    let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if path.parent() == Some(Path::new("/dev")) && is_dax(file_name) {
        let (found, advice) = absent_dax(file_name, Path::new(DAX));
        return problem(&found, &advice);
    }
    let Some(asked) = *bytes else {
        let path = path.display();
        let advice = format!("make it: `maru pool init {path}:SIZE`; or correct the path");
        return problem("it does not exist", &advice);
    };
    match room(path) {
        Ok(room) if asked > room.bytes => problem(
            &format!(
                "it does not exist, and {} are more than the {} that {} leaves",
                output::bytes(asked),
                output::bytes(room.bytes),
                room.limited_by
            ),
            "ask for less, or make room",
        ),
        Ok(room) => {
            let (kind, asked) = (room.kind, output::bytes(asked));
            Check::ok(
                name,
                format!("it is not there yet, and there is room for its {asked} ({kind})"),
            )
        }
        Err(error) => problem(&error.to_string(), "make the folder, or correct the path"),
    }
}

/// Why there is no node for a DAX device, and what to do.
fn absent_dax(name: &str, sys: &Path) -> (String, String) {
    if is_system_ram(sys, name) {
        let found = "it has no node: the kernel uses it as its own memory".to_owned();
        return (found, format!("take it back: `daxctl reconfigure-device --mode=devdax {name}`"));
    }
    if sys.join(name).exists() {
        let advice = format!(
            "enable it: `modprobe device_dax`, `daxctl enable-device {name}`; in a container, hand it in \
             (`--device /dev/{name}`)"
        );
        return ("the kernel has it, but here it has no node".to_owned(), advice);
    }
    let advice = "see what there is with `daxctl list` and `cxl list`: memory in no region has no device; \
                  or correct the path";
    ("there is no such DAX device".to_owned(), advice.to_owned())
}

/// What is to be said of a device that can be used; what makes it unfit for a pool is `bad`.
fn judge(name: String, path: &Path, examined: &Examined, bad: Status) -> Check {
    let Examined { kind, bytes, alignment, .. } = *examined;
    let path = path.display();
    let size = output::bytes(bytes);
    let mut check =
        Check::ok(name, format!("{kind}, {size}, aligned to {}", output::bytes(alignment)));
    match &examined.identity {
        Ok(identity) => {
            let served = if identity.in_use { "served now" } else { "not served now" };
            check.found = format!("{}, pool device {}, {served}", check.found, identity.uuid);
        }
        Err(_) if examined.blank && kind == DeviceKind::DevDax => check.also(
            Status::Note,
            "it is blank",
            &format!("`maru serve --pool {path}` makes it a pool's"),
        ),
        Err(_) if examined.blank => check.also(
            Status::Note,
            "it is empty",
            &format!("`maru serve --pool {path}:SIZE` makes it a pool's"),
        ),
        Err(DeviceError::Header { reason: HeaderError::NotAPool, .. }) => check.also(
            bad,
            "it holds data that is no pool's",
            &format!("leave it, or if nobody needs that: `maru pool init --overwrite {path}`"),
        ),
        Err(error) => {
            // The path is said already.
            let reason = match error {
                DeviceError::Header { reason, .. } => reason.to_string(),
                other => other.to_string(),
            };
            let advice = "do what it says; what a device holds is lost when it is made anew";
            check.also(bad, &reason, advice);
        }
    }
    if kind == DeviceKind::DevDax {
        judge_extent(&mut check, bytes, alignment, bad);
    }
    check
}

/// Whether a pool's addresses suit a DAX device. Files are what they were made.
fn judge_extent(check: &mut Check, bytes: u64, alignment: u64, bad: Status) {
    if bytes < MIN_DEVICE_BYTES {
        let least = format!("a pool's device has at least {MIN_DEVICE_BYTES} bytes");
        check.also(bad, &least, "take a larger one");
    }
    let (status, found) = if alignment < HUGE_PAGE_BYTES {
        (Status::Warning.min(bad), "so no huge page maps it, which costs page tables and speed")
    } else if alignment > ALIGNMENT_MAX {
        (bad, "which no pool's addresses are")
    } else {
        return;
    };
    let advice = "align it to 2 MiB, which destroys what it holds: `ndctl create-namespace --force \
                  --reconfig=NAMESPACE --mode=devdax --align=2M`, or of a CXL region `daxctl create-device \
                  --align=2M`";
    check.also(status, found, advice);
}

/// Looks at /dev/shm, where the default pool lies; `serving` if that, or another one, is there.
pub(super) fn shared_memory(serving: bool) -> Check {
    let advice = "mount a tmpfs there, or serve a file elsewhere: `maru serve --pool PATH:SIZE`";
    let room = room(Path::new(SHM).join("maru"));
    let (room, file_system) = match (room, rustix::fs::statvfs(SHM)) {
        (Ok(room), Ok(file_system)) => (room, file_system),
        (Err(error), _) => return Check::new(Status::Warning, SHM, error.to_string(), advice),
        (_, Err(error)) => return Check::new(Status::Warning, SHM, error.to_string(), advice),
    };
    if room.kind != DeviceKind::Shm {
        return Check::new(Status::Warning, SHM, "it is no tmpfs, so not in memory", advice);
    }
    let total = file_system.f_blocks.saturating_mul(file_system.f_frsize);
    judge_room(total, room.bytes, room.limited_by, serving)
}

fn judge_room(total: u64, free: u64, limited_by: &str, serving: bool) -> Check {
    let [shown_total, shown_free] = [total, free].map(output::bytes);
    let found =
        format!("{shown_total}; a new pool there can have {shown_free}, limited by {limited_by}");
    if serving || free >= DEFAULT_POOL_BYTES {
        return Check::ok(SHM, found);
    }
    let advice = format!(
        "`maru serve` without --pool takes {}: make /dev/shm larger (`mount -o remount,size=SIZE /dev/shm`; \
         of a container, --shm-size), free memory, or say a smaller --pool PATH:SIZE",
        output::bytes(DEFAULT_POOL_BYTES)
    );
    Check::new(Status::Warning, SHM, found, advice)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn told(check: &Check) -> (Status, &str, &str) {
        (check.status, &check.found, check.advice.as_deref().unwrap_or_default())
    }

    #[test]
    fn dax_devices_are_found_and_their_absence_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let (dev, sys) = (folder.path().join("dev"), folder.path().join("sys"));
        for name in ["dax0.0", "dax1.0", "dax2.0"] {
            fs::create_dir_all(sys.join(name)).unwrap();
        }
        symlink("../../drivers/kmem", sys.join("dax1.0/driver")).unwrap();
        fs::create_dir_all(&dev).unwrap();
        for name in ["dax0.0", "daxctl", "null"] {
            fs::write(dev.join(name), "").unwrap();
        }
        let (found, kept) = dax_devices(&dev, &sys);
        assert_eq!((found, kept), (vec![dev.join("dax0.0")], vec!["dax1.0".to_owned()]));
        for (name, advice) in
            [("dax1.0", "--mode=devdax"), ("dax2.0", "enable"), ("dax9.0", "list")]
        {
            assert!(absent_dax(name, &sys).1.contains(advice), "{name}");
        }
        assert_eq!(dax_devices(Path::new("/nobody/here"), Path::new("/nobody/here")).0.len(), 0);
    }

    #[test]
    fn a_file_is_told_from_a_pool() {
        let folder = tempfile::tempdir_in(SHM).unwrap();
        let path = folder.path().join("pool");
        let spec = |bytes| DeviceSpec { path: path.clone(), bytes };
        let check = device(&spec(None), true);
        assert_eq!((check.status, &*check.found), (Status::Problem, "it does not exist"));
        assert_eq!(device(&spec(Some(8 << 20)), true).status, Status::Ok);
        assert_eq!(device(&spec(Some(1 << 60)), true).status, Status::Problem);
        fs::write(&path, "").unwrap();
        assert_eq!(device(&spec(None), true).status, Status::Note);
        fs::write(&path, "somebody's").unwrap();
        let check = device(&spec(None), true);
        assert!(
            matches!(told(&check), (Status::Problem, _, advice) if advice.contains("--overwrite"))
        );
        assert_eq!(device(&spec(None), false).status, Status::Note);
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
        fs::remove_file(&path).unwrap();
        maru_memory::Device::create(&spec(Some(8 << 20)), maru_memory::IfExists::Refuse).unwrap();
        let check = device(&spec(None), true);
        assert_eq!(check.status, Status::Ok, "{check:?}");
        assert!(check.found.starts_with("shm, 8.00 MiB, aligned to 4.00 KiB, pool device "));
        assert!(check.found.ends_with("not served now"), "{check:?}");
    }

    #[test]
    fn what_cannot_be_a_device_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink("/nobody/here", &link).unwrap();
        for (path, what) in [
            (folder.path(), "a directory"),
            (&link, "a symbolic link"),
            (Path::new("/dev/null"), "DAX"),
        ] {
            let check = device(&DeviceSpec { path: path.to_owned(), bytes: None }, true);
            assert_eq!(check.status, Status::Problem);
            assert!(check.found.contains(what), "{check:?}");
        }
    }

    #[test]
    fn a_dax_device_must_suit_the_addresses_of_a_pool() {
        for (bytes, alignment, status, found) in [
            (1 << 30, 2 << 20, Status::Ok, "d"),
            (1 << 30, 1 << 30, Status::Ok, "d"),
            (1 << 30, 4 << 10, Status::Warning, "d; so no huge page maps it"),
            (4 << 30, 2 << 30, Status::Problem, "d; which no"),
            (2 << 20, 2 << 20, Status::Problem, "d; a pool's device has at least 2101248 bytes"),
        ] {
            let mut check = Check::ok("device", "d");
            judge_extent(&mut check, bytes, alignment, Status::Problem);
            assert_eq!(check.status, status, "{check:?}");
            assert!(check.found.starts_with(found), "{check:?}");
        }
    }

    #[test]
    fn shared_memory_is_enough_for_the_default_pool() {
        let judge = |free, serving| judge_room(2 << 30, free, "its file system", serving).status;
        assert_eq!(judge(1 << 30, false), Status::Ok);
        assert_eq!(judge(64 << 20, false), Status::Warning);
        assert_eq!(judge(64 << 20, true), Status::Ok);
    }
}
