//! What this user's processes may have.

use std::fs;
use std::path::Path;

use maru_directory::SESSIONS_MAX;
use rustix::process::{Resource, Rlimit, getrlimit};

use super::{Check, Status};
use crate::output;

/// The bit of `CAP_IPC_LOCK`, which lifts the limit on pinned memory.
const CAP_IPC_LOCK: u32 = 14;

/// What a server opens beside its sessions: devices, store, sockets.
const SERVER_FILES: u64 = 64;

/// Looks at the limits, for a pool of this size if there is one.
pub(super) fn look(pool_bytes: Option<u64>) -> Vec<Check> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let exempt = may_pin(&status);
    let limit = getrlimit(Resource::Memlock);
    vec![
        pinned_memory(limit, exempt, pool_bytes, has_adapter()),
        open_files(getrlimit(Resource::Nofile)),
    ]
}

fn may_pin(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok());
    capabilities.is_some_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1)
}

/// Whether there is what a pool could be registered with: NVIDIA's or AMD's GPUs, RDMA adapters.
fn has_adapter() -> bool {
    let rdma =
        fs::read_dir("/sys/class/infiniband").is_ok_and(|mut adapters| adapters.next().is_some());
    rdma || ["/dev/nvidiactl", "/dev/kfd"].iter().any(|path| Path::new(path).exists())
}

fn pinned_memory(limit: Rlimit, exempt: bool, pool_bytes: Option<u64>, adapter: bool) -> Check {
    let name = "memory that may be pinned";
    let shown = |bytes: Option<u64>| bytes.map_or_else(|| "unlimited".to_owned(), output::bytes);
    let Rlimit { current, maximum } = limit;
    if exempt {
        let limit = shown(current);
        return Check::ok(name, format!("without limit, by CAP_IPC_LOCK (for others: {limit})"));
    }
    let suffices = |limit: Option<u64>| match (limit, pool_bytes) {
        (None, _) => true,
        (Some(limit), Some(pool)) => limit >= pool,
        (Some(_), None) => false,
    };
    let needed =
        pool_bytes.map_or_else(String::new, |bytes| format!(" of {}", output::bytes(bytes)));
    if suffices(current) {
        let found = if current.is_none() {
            String::new()
        } else {
            format!(", enough for the pool{needed}")
        };
        return Check::ok(name, format!("{}{found}", shown(current)));
    }
    let found = format!(
        "{} (may be raised to {}): too little for a pool{needed} to be registered whole with a GPU or an \
         RDMA adapter",
        shown(current),
        shown(maximum)
    );
    let advice = if suffices(maximum) {
        "before an instance that does so: `ulimit -l unlimited`, or what `ulimit -Hl` says; in a systemd unit, \
         LimitMEMLOCK=infinity"
    } else {
        "for instances that do so: a line `* - memlock unlimited` in /etc/security/limits.conf, then \
         `ulimit -l` says so; in a systemd unit, LimitMEMLOCK=infinity; of a container, --ulimit memlock=-1"
    };
    Check::new(if adapter { Status::Warning } else { Status::Note }, name, found, advice)
}

/// Descriptors are what limits a server's sessions: it raises its own limit as far as it may, and a
/// session takes two.
fn open_files(limit: Rlimit) -> Check {
    let name = "open files";
    let Rlimit { current, maximum } = limit;
    let shown = |files: Option<u64>| files.map_or_else(|| "unlimited".to_owned(), output::count);
    let sessions = maximum.map_or(u64::MAX, |files| files.saturating_sub(SERVER_FILES) / 2);
    let found = format!("{} (may be raised to {})", shown(current), shown(maximum));
    if sessions >= SESSIONS_MAX.into() {
        return Check::ok(
            name,
            format!("{found}, enough for the {SESSIONS_MAX} instances of a server"),
        );
    }
    let advice = format!(
        "for more instances: LimitNOFILE={} in the systemd unit of `maru serve`, or `* hard nofile` in \
         /etc/security/limits.conf",
        u64::from(SESSIONS_MAX) * 2 + SERVER_FILES
    );
    let status = if sessions < 64 { Status::Warning } else { Status::Note };
    Check::new(status, name, format!("{found}: a server has room for {sessions} instances"), advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(current: impl Into<Option<u64>>, maximum: impl Into<Option<u64>>) -> Rlimit {
        Rlimit { current: current.into(), maximum: maximum.into() }
    }

    #[test]
    fn a_pool_must_be_pinned_whole() {
        let (pool, small, none) = (Some(1 << 30), 8 << 20, None::<u64>);
        for (limit, exempt, pool, adapter, status, advice) in [
            (limit(none, none), false, None, true, Status::Ok, ""),
            (limit(small, small), true, pool, true, Status::Ok, ""),
            (limit(2 << 30, 2 << 30), false, pool, true, Status::Ok, ""),
            (limit(2 << 30, 2 << 30), false, None, false, Status::Note, "limits.conf"),
            (limit(small, small), false, pool, true, Status::Warning, "limits.conf"),
            (limit(small, none), false, pool, true, Status::Warning, "ulimit -l unlimited"),
        ] {
            let check = pinned_memory(limit, exempt, pool, adapter);
            assert_eq!(check.status, status, "{check:?}");
            assert!(check.advice.unwrap_or_default().contains(advice));
        }
    }

    #[test]
    fn the_kernel_says_who_may_pin() {
        assert!(may_pin("CapPrm:\t0\nCapEff:\t000001fffeffffff\n"));
        assert!(!may_pin("CapEff:\t0000000000000000\n"));
        assert!(!may_pin("CapEff:\tlots\n") && !may_pin(""));
    }

    #[test]
    fn a_server_needs_two_files_for_an_instance() {
        for (limit, status, found) in [
            (limit(1024, 524_288), Status::Ok, "1 024 (may be raised to 524 288), enough"),
            (limit(None, None), Status::Ok, "unlimited"),
            (
                limit(1024, 1024),
                Status::Note,
                "1 024 (may be raised to 1 024): a server has room for 480",
            ),
            (limit(100, 100), Status::Warning, "100"),
            (limit(10, 10), Status::Warning, "10 (may be raised to 10): a server has room for 0"),
        ] {
            let check = open_files(limit);
            assert_eq!(check.status, status, "{check:?}");
            assert!(check.found.starts_with(found), "{check:?}");
        }
    }
}
