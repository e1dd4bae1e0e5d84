//! Memory that fails: an error where it can be one, and otherwise what would have happened anyway.

use std::env;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread;

use maru_memory::{DATA_START, Device, MappingError, Visibility, checksum};
use uuid::Uuid;

use crate::{CACHE_LINE, MIB, create, map, map_with, shm_dir};

/// What the kernel takes memory away by.
const UNIT: u64 = 4096;

/// Copied by ordinary stores where the pool is coherent; the last byte is alone in its unit.
const SMALL: u64 = 3 * UNIT + 1;

/// Copied around the caches, whatever the pool.
const LARGE: u64 = 64 * UNIT + 1;

/// Takes the memory of a device away from `offset` on, behind the back of who maps it.
pub(crate) fn cut(device: &Device, offset: u64) {
    let file = File::options().write(true).open(device.path()).unwrap();
    file.set_len(offset).unwrap();
}

/// As long as it was, with zeros where it was cut.
pub(crate) fn mend(device: &Device) {
    cut(device, device.bytes());
}

fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|n| (n * n % 251).to_le_bytes()[0]).collect()
}

/// Checks that `error` names this device and place.
#[track_caller]
pub(crate) fn expect_media(error: MappingError, device: &Device, expected: u64) {
    assert!(error.to_string().contains(device.path().to_str().unwrap()), "{error}");
    let MappingError::Media { path, offset, damaged } = error else { panic!("{error}") };
    assert_eq!((path.as_path(), offset, damaged), (device.path(), expected, false));
}

#[test]
fn a_copy_names_the_first_byte_that_failed() {
    for dir in [shm_dir(), tempfile::tempdir().unwrap()] {
        let cases = [(SMALL, Visibility::Coherent), (LARGE, Visibility::Coherent)];
        for (nth, (len, visibility)) in cases.into_iter().chain([(SMALL, CACHE_LINE)]).enumerate() {
            let device = create(&dir, &format!("{nth}"), 8 * MIB);
            let mapping = map_with(&device, visibility);
            let offset = DATA_START + 5 * UNIT;
            let bytes = pattern(len);
            let failing = [offset, offset + len / UNIT / 2 * UNIT, offset + len - 1];
            for first in failing {
                mapping.write(offset, len).unwrap().copy_from(&bytes).unwrap();
                let view = mapping.read(offset, len).unwrap();
                cut(&device, first);
                let mut copy = vec![0; bytes.len()];
                expect_media(view.copy_to(&mut copy).unwrap_err(), &device, first);
                expect_media(view.checksum().unwrap_err(), &device, first);
                let error = mapping.write(offset, len).unwrap().copy_from(&bytes).unwrap_err();
                expect_media(error, &device, first);
                let whole = usize::try_from(first - offset).unwrap();
                assert_eq!(copy[..whole], bytes[..whole], "what was read is right");
                mend(&device);
                view.copy_to(&mut copy).unwrap();
                assert_eq!(copy[..whole], bytes[..whole], "what was written stays");
                assert!(copy[whole..].iter().all(|byte| *byte == 0));
            }
        }
    }
}

#[test]
fn a_buffer_that_fails_is_not_the_pools_fault() {
    let dir = shm_dir();
    let (device, other) = (create(&dir, "pool", 4 * MIB), create(&dir, "other", 4 * MIB));
    let (mapping, elsewhere) = (map(&device), map(&other));
    for len in [SMALL, LARGE] {
        let view = elsewhere.read(DATA_START, len).unwrap();
        let mut page = elsewhere.write(DATA_START, len).unwrap();
        cut(&other, DATA_START + 2 * UNIT);
        let error = mapping.write(DATA_START, len).unwrap().copy_from(view.bytes()).unwrap_err();
        assert!(matches!(error, MappingError::Buffer), "{error}");
        let error = mapping.read(DATA_START, len).unwrap().copy_to(page.bytes_mut()).unwrap_err();
        assert!(matches!(error, MappingError::Buffer), "{error}");
        mend(&other);
    }
}

/// A page that was written whole before passed for one without lines to be written back.
#[test]
fn a_copy_that_failed_leaves_lines_to_be_written_back() {
    let dir = shm_dir();
    let (device, other) = (create(&dir, "pool", 4 * MIB), create(&dir, "other", 4 * MIB));
    let (mapping, elsewhere) = (map_with(&device, CACHE_LINE), map(&other));
    let view = elsewhere.read(DATA_START, SMALL).unwrap();
    let mut page = mapping.write(DATA_START, SMALL).unwrap();
    page.copy_from(&pattern(SMALL)).unwrap();
    cut(&other, DATA_START + UNIT);
    let error = page.copy_from(view.bytes()).unwrap_err();
    assert!(matches!(error, MappingError::Buffer), "{error}");
    // Who looks at the lines meets what is not there.
    cut(&device, DATA_START);
    expect_media(page.write_back(7).unwrap_err(), &device, DATA_START);
}

#[test]
fn many_threads_fail_at_once() {
    const ROUNDS: usize = 200;
    let dir = shm_dir();
    let (good, bad) = (create(&dir, "good", 8 * MIB), create(&dir, "bad", 8 * MIB));
    let mapping = map_with(&good, CACHE_LINE);
    mapping.add_device(&bad, 8 * MIB).unwrap();
    cut(&bad, DATA_START + UNIT);
    thread::scope(|scope| {
        for nth in 0..4 {
            let (mapping, bad) = (&mapping, &bad);
            scope.spawn(move || {
                let len = if nth % 2 == 0 { SMALL } else { LARGE };
                let bytes = pattern(len);
                let mut copy = vec![0; bytes.len()];
                let offset = DATA_START + nth * MIB;
                let missing = 8 * MIB + DATA_START + (nth + 1) * UNIT * 100;
                for _ in 0..ROUNDS {
                    mapping.write(offset, len).unwrap().copy_from(&bytes).unwrap();
                    let error = mapping.write(missing, len).unwrap().copy_from(&bytes);
                    expect_media(error.unwrap_err(), bad, missing);
                    let view = mapping.read(offset, len).unwrap();
                    copy.fill(0);
                    view.copy_to(&mut copy).unwrap();
                    assert_eq!(copy, bytes);
                    assert_eq!(view.checksum().unwrap(), checksum(&bytes));
                    let error = mapping.read(missing, len).unwrap().copy_to(&mut copy);
                    expect_media(error.unwrap_err(), bad, missing);
                }
            });
        }
    });
}

/// What a child does with a SIGBUS that is not the crate's.
const CHILD: &str = "MARU_TEST_SIGBUS";

const SIGBUS: i32 = libc::SIGBUS;

extern "C" fn exit_42(_signal: i32) {
    // SAFETY: async-signal-safe.
    unsafe { libc::_exit(42) }
}

extern "C" fn exit_43(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel's own; async-signal-safe.
    unsafe { libc::_exit(if (*info).si_signo == signal { 43 } else { 1 }) }
}

/// Installs what the process has for SIGBUS before the crate's handler.
fn install(before: &str) {
    let plain: extern "C" fn(i32) = exit_42;
    let with_info: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = exit_43;
    let (handler, flags) = match before {
        "std" => return,
        "default" => (libc::SIG_DFL, 0),
        "ignored" => (libc::SIG_IGN, 0),
        "plain" => (plain as usize, 0),
        _ => (with_info as usize, libc::SA_SIGINFO),
    };
    // SAFETY: all zeros are a valid `sigaction`, and the handlers do only what they may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (action.sa_sigaction, action.sa_flags) = (handler, flags);
        assert_eq!(libc::sigaction(SIGBUS, &raw const action, std::ptr::null_mut()), 0);
    }
}

fn child(what: &str) -> ! {
    let mut words = what.split(' ');
    let [before, how, uuid, path] = std::array::from_fn(|_| words.next().unwrap());
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, no_core).unwrap();
    install(before);
    let device = Device::open(path, Uuid::parse_str(uuid).unwrap()).unwrap();
    let mapping = map(&device);
    let view = mapping.read(DATA_START, SMALL).unwrap();
    cut(&device, DATA_START);
    expect_media(view.copy_to(&mut vec![0; 3 * 4096 + 1]).unwrap_err(), &device, DATA_START);
    if how == "fault" {
        assert_ne!(view.bytes()[0], 1, "there is nothing to read");
    } else {
        // SAFETY: no memory is involved.
        unsafe { libc::raise(SIGBUS) };
    }
    std::process::exit(0);
}

#[test]
fn every_other_sigbus_goes_where_it_went_before() {
    if let Ok(what) = env::var(CHILD) {
        child(&what);
    }
    let (killed, survived) = ((None, Some(SIGBUS)), (Some(0), None));
    for (before, how, expected) in [
        ("std", "fault", killed),
        ("default", "fault", killed),
        ("default", "sent", killed),
        ("ignored", "fault", killed),
        ("ignored", "sent", survived),
        ("plain", "fault", (Some(42), None)),
        ("plain", "sent", (Some(42), None)),
        ("info", "fault", (Some(43), None)),
        ("info", "sent", (Some(43), None)),
    ] {
        let dir = shm_dir();
        let device = create(&dir, "pool", 4 * MIB);
        let what = format!("{before} {how} {} {}", device.uuid(), device.path().display());
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "media::every_other_sigbus_goes_where_it_went_before"])
            .env(CHILD, what)
            // Under the address sanitizer, the signal shall stay one.
            .env("ASAN_OPTIONS", "handle_sigbus=0")
            .output()
            .unwrap();
        let ended = (child.status.code(), child.status.signal());
        assert_eq!(ended, expected, "{before} {how}: {child:?}");
    }
}
