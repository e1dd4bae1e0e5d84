//! How much memory this machine still has for a private L1.

use std::fs;
use std::path::{Component, Path};

/// Of what is available, an eighth is left for everything else, but no more than this, in bytes.
const RESERVE_BYTES_MAX: u64 = 16 << 30;

/// What is left for everything else of so many bytes that are available.
pub(super) fn reserve_bytes(available: u64) -> u64 {
    (available / 8).min(RESERVE_BYTES_MAX)
}

/// Bytes that can be used without swapping, by the whole machine and by this process's control
/// group (version 2) and those above it. `None` if the machine does not say.
pub(super) fn available_bytes() -> Option<u64> {
    available_under(Path::new("/"))
}

fn available_under(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let machine = field(&meminfo, "MemAvailable:")?.checked_mul(1024)?;
    Some(group_headroom(root).map_or(machine, |group| group.min(machine)))
}

/// The least that a group of this process may still take; `None` without limits.
fn group_headroom(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mount = root.join("sys/fs/cgroup");
    // A group outside this process's view of the tree begins with `..`: its limits are not seen.
    let names = Path::new(group).components().filter(|part| matches!(part, Component::Normal(_)));
    let path = names.fold(mount.clone(), |path, name| path.join(name));
    let within = path.ancestors().take_while(|folder| folder.starts_with(&mount));
    within.filter_map(headroom).min()
}

/// What one group may still take: its limit less what it uses, but for file pages, which the kernel
/// takes back first.
fn headroom(group: &Path) -> Option<u64> {
    let limit: u64 = number(&fs::read_to_string(group.join("memory.max")).ok()?)?;
    let current = fs::read_to_string(group.join("memory.current")).ok();
    let current = current.as_deref().and_then(number).unwrap_or(0);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let files = field(&stat, "inactive_file").unwrap_or(0);
    Some(limit.saturating_sub(current.saturating_sub(files)))
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next().and_then(number)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn the_tightest_limit_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(available_under(root), None);
        write(root, &[("proc/meminfo", "MemTotal: 64 kB\nMemAvailable:   8192 kB\n")]);
        assert_eq!(available_under(root), Some(8 << 20));
        write(root, &[("proc/self/cgroup", "4:memory:/a\n0::/a/b\n")]);
        assert_eq!(available_under(root), Some(8 << 20), "no group with a limit");
        write(
            root,
            &[
                ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                ("sys/fs/cgroup/a/memory.max", "5000000\n"),
                ("sys/fs/cgroup/a/memory.current", "3000000\n"),
                ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 1000000\n"),
            ],
        );
        assert_eq!(available_under(root), Some(3_000_000));
        write(root, &[("sys/fs/cgroup/a/b/memory.max", "2000000\n")]);
        assert_eq!(available_under(root), Some(2_000_000));
        write(root, &[("sys/fs/cgroup/a/b/memory.current", "2000001\n")]);
        assert_eq!(available_under(root), Some(0), "more used than allowed");
    }

    #[test]
    fn a_group_out_of_sight_limits_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(
            root,
            &[
                ("proc/meminfo", "MemAvailable: 100 kB"),
                ("proc/self/cgroup", "0::/../../elsewhere\n"),
                ("memory.max", "1"),
            ],
        );
        assert_eq!(available_under(root), Some(100 << 10));
    }

    #[test]
    fn this_machine_says_something() {
        assert!(available_bytes().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_reserve_is_left() {
        assert_eq!(reserve_bytes(8 << 30), 1 << 30);
        assert_eq!(reserve_bytes(1 << 40), 16 << 30);
    }
}
