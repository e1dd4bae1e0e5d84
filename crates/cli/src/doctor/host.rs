//! What the kernel and the processor make of a pool: huge pages and cache lines.

use std::fs;

use maru_memory::{LineInstructions, line_instructions};
use maru_protocol::Visibility;

use super::{Check, Status};
use crate::output;

const THP: &str = "/sys/kernel/mm/transparent_hugepage";
const SET_ASIDE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Looks at all of it, for a pool of this size and visibility if there is one.
pub(super) fn look(pool_bytes: Option<u64>, visibility: Option<Visibility>) -> Vec<Check> {
    let read = |path: String| fs::read_to_string(path).unwrap_or_default();
    let mounts = read("/proc/self/mountinfo".to_owned());
    let number = |name: &str| read(format!("{SET_ASIDE}/{name}")).trim().parse().ok();
    vec![
        shared_huge_pages(&mounts, &read(format!("{THP}/shmem_enabled")), pool_bytes),
        private_huge_pages(&read(format!("{THP}/enabled"))),
        huge_pages_set_aside(number("nr_hugepages"), number("free_hugepages")),
        processor(line_instructions(), visibility),
    ]
}

/// The word in brackets: `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

/// What /dev/shm was mounted with as `huge=`, `never` if nothing was said.
fn huge_of_shm(mounts: &str) -> Option<&str> {
    // A later mount hides an earlier one.
    let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/dev/shm"))?;
    let options = line.split_once(" - ")?.1.strip_prefix("tmpfs ")?.split_once(' ')?.1;
    Some(options.split(',').find_map(|option| option.strip_prefix("huge=")).unwrap_or("never"))
}

/// Whether a pool in /dev/shm is mapped in huge pages.
fn shared_huge_pages(mounts: &str, shmem_enabled: &str, pool_bytes: Option<u64>) -> Check {
    let name = "huge pages of /dev/shm";
    let Some(kernel) = chosen(shmem_enabled) else {
        let advice = "nothing, if pools are small or on DAX devices; else a kernel with \
                      CONFIG_TRANSPARENT_HUGEPAGE";
        return Check::new(Status::Note, name, "this kernel has none", advice);
    };
    let Some(mount) = huge_of_shm(mounts) else {
        let advice = "mount a tmpfs there if pools are to be there";
        return Check::new(Status::Note, name, "no tmpfs is mounted at /dev/shm", advice);
    };
    // These two are said for every tmpfs; what else is said there is not for mounted ones.
    match kernel {
        "force" => return Check::ok(name, "shmem_enabled is force: all of it is mapped in 2 MiB"),
        "deny" => {}
        _ if mount != "never" => {
            return Check::ok(
                name,
                format!("mounted with huge={mount}: a pool is mapped in 2 MiB"),
            );
        }
        _ => {}
    }
    // Two views, and eight bytes for 4 KiB.
    let (bytes, tables) = match pool_bytes {
        Some(bytes) => (bytes, bytes / 256),
        None => (1 << 40, 1 << 32),
    };
    let why = if kernel == "deny" { "shmem_enabled is deny" } else { "mounted with huge=never" };
    let found = format!(
        "{why}: a pool there is mapped in 4 KiB, and one of {} takes up to {} of page tables in each instance",
        output::bytes(bytes),
        output::bytes(tables)
    );
    let advice = if kernel == "deny" {
        format!(
            "for a large pool, before it is made and as root: `echo never > {THP}/shmem_enabled`, and "
        )
    } else {
        "for a large pool, before it is made and as root: ".to_owned()
    };
    Check::new(Status::Note, name, found, advice + "`mount -o remount,huge=advise /dev/shm`")
}

/// Whether private L1s have huge pages.
fn private_huge_pages(enabled: &str) -> Check {
    let name = "huge pages of private memory";
    match chosen(enabled) {
        Some(word @ ("always" | "madvise")) => {
            Check::ok(name, format!("{word}: L1s that are not shared have them"))
        }
        Some(word) => Check::new(
            Status::Note,
            name,
            format!("{word}: L1s that are not shared are mapped in 4 KiB"),
            format!("for large ones, as root: `echo madvise > {THP}/enabled`"),
        ),
        None => Check::new(
            Status::Note,
            name,
            "this kernel has none",
            "for large L1s that are not shared, a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

/// What hugetlbfs and `--l1-use-hugepages` take from.
fn huge_pages_set_aside(all: Option<u64>, free: Option<u64>) -> Check {
    let name = "huge pages set aside";
    let uses = "only a pool on hugetlbfs and --l1-use-hugepages need them";
    match (all, free) {
        (Some(all @ 1..), Some(free)) => {
            let [free, all] = [free, all].map(output::count);
            Check::ok(name, format!("{free} of {all} of 2 MiB are free; {uses}"))
        }
        (Some(_), Some(_)) => Check::new(
            Status::Note,
            name,
            format!("none of 2 MiB; {uses}"),
            "for those, as root: `sysctl vm.nr_hugepages=N`, 512 for each GiB",
        ),
        _ => Check::new(
            Status::Note,
            name,
            format!("this kernel has none of 2 MiB; {uses}"),
            "for those, a kernel with CONFIG_HUGETLBFS",
        ),
    }
}

/// Whether the processor is good at cache lines; only some pools need that.
fn processor(lines: LineInstructions, visibility: Option<Visibility>) -> Check {
    let LineInstructions { write_back, invalidate } = lines;
    let needed = match visibility {
        Some(Visibility::CacheLine) => "the pool needs that",
        _ => "only pools of --visibility cache-line need that",
    };
    let found = format!(
        "cache lines are written back with {write_back} and dropped with {invalidate}; {needed}"
    );
    // It waits for each line.
    if write_back != "clflush" && invalidate != "clflush" {
        return Check::ok("processor", found);
    }
    let status = match visibility {
        Some(Visibility::CacheLine) => Status::Warning,
        _ => Status::Note,
    };
    let advice = "where that is too slow, run instances on a newer processor; in a virtual machine, let it see \
                  clwb and clflushopt (of QEMU, `-cpu host`)";
    Check::new(status, "processor", found + ", and clflush is slow", advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNT: &str = "25 24 0:23 / /dev/shm rw,relatime shared:3 - tmpfs tmpfs rw,size=2k";

    #[test]
    fn the_mount_and_the_kernel_say_whether_a_pool_has_huge_pages() {
        let shmem = |word: &str| {
            "always within_size advise never deny force".replace(word, &format!("[{word}]"))
        };
        let (plain, advise) = (MOUNT.to_owned(), format!("{MOUNT},huge=advise,inode64"));
        for (mounts, kernel, status) in [
            (&plain, "never", Status::Note),
            (&plain, "always", Status::Note),
            (&plain, "force", Status::Ok),
            (&advise, "never", Status::Ok),
            (&advise, "deny", Status::Note),
            (&format!("{advise}\n{MOUNT}"), "never", Status::Note),
            (&format!("{MOUNT}\n{advise}"), "never", Status::Ok),
            (&MOUNT.replace("tmpfs", "ext4"), "never", Status::Note),
            (&String::new(), "never", Status::Note),
        ] {
            let check = shared_huge_pages(mounts, &shmem(kernel), None);
            assert_eq!(check.status, status, "{kernel} {mounts}: {check:?}");
        }
        let check = shared_huge_pages(&plain, &shmem("deny"), Some(64 << 30));
        assert!(check.found.contains("64.0 GiB takes up to 256 MiB"), "{check:?}");
        assert!(check.advice.unwrap().contains("echo never > /sys/"));
        assert_eq!(shared_huge_pages(&advise, "", None).found, "this kernel has none");
    }

    #[test]
    fn private_memory_and_what_is_set_aside() {
        assert_eq!(private_huge_pages("always [madvise] never\n").status, Status::Ok);
        assert_eq!(private_huge_pages("always madvise [never]\n").status, Status::Note);
        assert_eq!(private_huge_pages("").status, Status::Note);
        let check = huge_pages_set_aside(Some(1024), Some(1000));
        assert!(
            check.status == Status::Ok && check.found.starts_with("1 000 of 1 024"),
            "{check:?}"
        );
        assert_eq!(huge_pages_set_aside(Some(0), Some(0)).status, Status::Note);
        assert_eq!(huge_pages_set_aside(None, None).status, Status::Note);
    }

    #[test]
    fn an_old_processor_is_slow_where_cache_lines_matter() {
        let new = LineInstructions { write_back: "clwb", invalidate: "clflushopt" };
        let old = LineInstructions { write_back: "clflush", invalidate: "clflush" };
        let arm = LineInstructions { write_back: "dc cvac", invalidate: "dc civac" };
        for (lines, visibility, status) in [
            (new, Some(Visibility::CacheLine), Status::Ok),
            (arm, None, Status::Ok),
            (old, None, Status::Note),
            (old, Some(Visibility::Coherent), Status::Note),
            (old, Some(Visibility::CacheLine), Status::Warning),
        ] {
            assert_eq!(processor(lines, visibility).status, status);
        }
    }
}
