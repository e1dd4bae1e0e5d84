//! What the Python has that would run LMCache.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{Check, Status};

const PROBE: &str = include_str!("probe.py");

/// Enough for a Python on a slow network file system.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// Of what it prints no more is read.
const OUTPUT_MAX: u64 = 64 << 10;

/// The oldest Python that the package is for.
const PYTHON_MIN: (u32, u32) = (3, 11);

/// The LMCache that `maru_lmcache` is tested with.
const LMCACHE: &str = "0.5.6";

/// What the Python says of itself: `probe.py`.
#[derive(Debug, Clone, Deserialize)]
struct Probe {
    implementation: String,
    version: (u32, u32, u32),
    executable: String,
    maru: Option<Package>,
    lmcache: Option<String>,
    torch: Option<String>,
    torch_cuda: Option<String>,
    has_libcuda: bool,
}

/// The package `maru`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Package {
    Version(String),
    /// It is there, and does not work.
    Error(String),
}

/// Asks this Python, or the one that the path leads to.
pub(super) fn look(program: Option<&Path>) -> Vec<Check> {
    let named = program.is_some();
    let program = program.unwrap_or(Path::new("python3"));
    match probe(program) {
        Ok(probe) => judge(&probe, named, env!("CARGO_PKG_VERSION")),
        Err((status, found)) => {
            let found = format!("{}: {found}", program.display());
            let (status, advice) = if named {
                (Status::Problem, "name the Python that runs LMCache with --python")
            } else {
                (
                    status,
                    "if LMCache or a Python program is to use the pool, name its Python with --python",
                )
            };
            vec![Check::new(status, "python", found, advice)]
        }
    }
}

/// Runs the probe. Otherwise says what happened, and how bad that is if nobody asked for it.
fn probe(program: &Path) -> Result<Probe, (Status, String)> {
    let bad = |found: String| (Status::Warning, found);
    let failed = |error: std::io::Error| bad(format!("its output cannot be kept: {error}"));
    // In files: whatever it starts could keep a pipe open, or fill it.
    let mut stdout = tempfile::tempfile().map_err(failed)?;
    let mut stderr = tempfile::tempfile().map_err(failed)?;
    let mut child = Command::new(program)
        .args(["-B", "-c", PROBE])
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().map_err(failed)?)
        .stderr(stderr.try_clone().map_err(failed)?)
        .spawn()
        .map_err(|error| (Status::Note, format!("it cannot be started: {error}")))?;
    let started = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < PATIENCE => std::thread::sleep(LOOK),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(bad(format!("it did not answer within {} s", PATIENCE.as_secs())));
            }
            Err(error) => return Err(bad(format!("it cannot be waited for: {error}"))),
        }
    };
    let (said, complained) = (text(&mut stdout), text(&mut stderr));
    // Something may have been printed before, at its start.
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    serde_json::from_str(last).map_err(|_| {
        let complaint = complained.lines().rfind(|line| !line.trim().is_empty());
        let complaint = complaint.map_or_else(String::new, |line| format!(": {}", line.trim()));
        bad(format!("it does not do what a Python does ({status}){complaint}"))
    })
}

fn text(file: &mut File) -> String {
    let mut text = Vec::new();
    // What cannot be read is not JSON either.
    let _ = file.rewind().and_then(|()| file.take(OUTPUT_MAX).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

fn judge(probe: &Probe, named: bool, own_version: &str) -> Vec<Check> {
    let (major, minor, patch) = probe.version;
    let bad = if named { Status::Problem } else { Status::Warning };
    let found = format!("{} {major}.{minor}.{patch}, {}", probe.implementation, probe.executable);
    let python = if probe.implementation == "cpython" && (major, minor) >= PYTHON_MIN {
        Check::ok("python", found)
    } else {
        let advice = "use CPython 3.11 or later, and name it with --python";
        Check::new(bad, "python", format!("{found}: no package `maru` is made for it"), advice)
    };
    vec![python, package(probe, bad, own_version), lmcache(probe), torch(probe)]
}

fn package(probe: &Probe, bad: Status, own_version: &str) -> Check {
    let name = "package maru";
    match &probe.maru {
        None => Check::new(
            Status::Note,
            name,
            "it is not installed; only Python programs and LMCache need it",
            format!("for those: install the wheel `maru-kv` of release {own_version}"),
        ),
        Some(Package::Version(version)) if version == own_version => Check::ok(name, version),
        Some(Package::Version(version)) => Check::new(
            Status::Warning,
            name,
            format!("{version}, but this program is {own_version}"),
            "install the same release of both: one of another protocol version is refused",
        ),
        Some(Package::Error(error)) => Check::new(
            bad,
            name,
            format!("it cannot be imported: {error}"),
            format!("install the wheel `maru-kv` of release {own_version} anew"),
        ),
    }
}

fn lmcache(probe: &Probe) -> Check {
    match probe.lmcache.as_deref() {
        None => Check::new(
            Status::Note,
            "LMCache",
            "it is not installed",
            format!(
                "to use the pool as its L1: `{} -m pip install lmcache=={LMCACHE}`",
                probe.executable
            ),
        ),
        Some(LMCACHE) => Check::ok("LMCache", LMCACHE),
        Some(version) => Check::new(
            Status::Warning,
            "LMCache",
            format!("{version}, which is untested: {LMCACHE} is tested"),
            format!("`{} -m pip install lmcache=={LMCACHE}`, or try", probe.executable),
        ),
    }
}

fn torch(probe: &Probe) -> Check {
    let Some(version) = &probe.torch else {
        // LMCache does not start without.
        let status = if probe.lmcache.is_some() { Status::Warning } else { Status::Note };
        return Check::new(
            status,
            "torch",
            "it is not installed; only LMCache needs it",
            "install the build for this machine's GPU, as pytorch.org says",
        );
    };
    match (&probe.torch_cuda, probe.has_libcuda) {
        (Some(cuda), true) => {
            Check::ok("torch", format!("{version} for CUDA {cuda}, and NVIDIA's driver is there"))
        }
        (Some(cuda), false) => Check::new(
            Status::Note,
            "torch",
            format!("{version} for CUDA {cuda}, but there is no libcuda.so.1: it sees no GPU"),
            "nothing, unless there is a GPU: then install NVIDIA's driver, or give the container the GPU",
        ),
        (None, true) => Check::new(
            Status::Warning,
            "torch",
            format!("{version} without CUDA, though NVIDIA's driver is there: it sees no GPU"),
            "install the build for CUDA, as pytorch.org says",
        ),
        (None, false) => {
            Check::ok("torch", format!("{version} without CUDA, and no driver of NVIDIA's"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Probe {
        Probe {
            implementation: "cpython".to_owned(),
            version: (3, 11, 7),
            executable: "/bin/py".to_owned(),
            maru: Some(Package::Version("1.0.0".to_owned())),
            lmcache: Some(LMCACHE.to_owned()),
            torch: Some("2.11.0".to_owned()),
            torch_cuda: Some("13.0".to_owned()),
            has_libcuda: true,
        }
    }

    fn statuses(probe: &Probe, named: bool) -> [Status; 4] {
        let checks = judge(probe, named, "1.0.0");
        checks.iter().map(|check| check.status).collect::<Vec<_>>().try_into().unwrap()
    }

    #[test]
    fn what_fits_is_ok_and_what_is_absent_is_a_note() {
        assert_eq!(statuses(&good(), true), [Status::Ok; 4]);
        let bare = Probe {
            maru: None,
            lmcache: None,
            torch: None,
            torch_cuda: None,
            has_libcuda: false,
            ..good()
        };
        assert_eq!(statuses(&bare, true), [Status::Ok, Status::Note, Status::Note, Status::Note]);
        for (torch_cuda, has_libcuda, status) in [
            (Some("13.0".to_owned()), false, Status::Note),
            (None, true, Status::Warning),
            (None, false, Status::Ok),
        ] {
            assert_eq!(statuses(&Probe { torch_cuda, has_libcuda, ..good() }, true)[3], status);
        }
        assert_eq!(statuses(&Probe { torch: None, ..good() }, true)[3], Status::Warning);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        for version in [(3, 10, 9), (2, 7, 18)] {
            let old = Probe { version, ..good() };
            assert_eq!(statuses(&old, true)[0], Status::Problem);
            assert_eq!(statuses(&old, false)[0], Status::Warning);
        }
        assert_eq!(statuses(&Probe { version: (4, 0, 0), ..good() }, true)[0], Status::Ok);
        let pypy = Probe { implementation: "pypy".to_owned(), ..good() };
        assert_eq!(statuses(&pypy, true)[0], Status::Problem);
        let other = Probe { maru: Some(Package::Version("0.9.0".to_owned())), ..good() };
        assert_eq!(statuses(&other, true)[1], Status::Warning);
        let broken = Probe { maru: Some(Package::Error("ImportError: libc".to_owned())), ..good() };
        assert_eq!(statuses(&broken, true)[1], Status::Problem);
        assert_eq!(statuses(&broken, false)[1], Status::Warning);
        let newer = Probe { lmcache: Some("0.6.0".to_owned()), ..good() };
        assert_eq!(statuses(&newer, true)[2], Status::Warning);
    }

    #[test]
    fn what_is_no_python_is_told() {
        for (program, named, status, found) in [
            ("/nobody/here", true, Status::Problem, "cannot be started"),
            ("/bin/echo", true, Status::Problem, "does not do what a Python does (exit status: 0)"),
            ("/bin/false", true, Status::Problem, "(exit status: 1)"),
        ] {
            let checks = look(named.then_some(Path::new(program)));
            assert_eq!((checks.len(), checks[0].status), (1, status));
            assert!(checks[0].found.contains(found), "{checks:?}");
        }
    }
}
