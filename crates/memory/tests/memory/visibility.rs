//! What makes pages visible to other hosts. On one host its effect cannot be seen, as its caches are
//! coherent: only that it changes nothing, fails when it has to, and what plug-ins are told.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use maru_memory::{
    DATA_START, MappingError, PluginError, PoolMapping, Visibility, VisibilityPlugin, checksum,
};
use tempfile::TempDir;

use crate::{CACHE_LINE, MIB, create, map_with, shm_dir};

#[test]
fn what_is_published_is_what_is_acquired() {
    let dir = shm_dir();
    let device = create(&dir, "pool", 8 * MIB);
    for visibility in [Visibility::Coherent, CACHE_LINE] {
        let writer = map_with(&device, visibility.clone());
        let reader = map_with(&device, visibility);
        for (generation, len) in (1_u8..).zip([1, 63, 64, 65, 4096, 5000, 65_536, MIB]) {
            let bytes: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0] ^ generation).collect();
            for by_copy in [false, true] {
                let mut page = writer.write(DATA_START, len).unwrap();
                if by_copy {
                    page.copy_from(&bytes).unwrap();
                } else {
                    page.bytes_mut().copy_from_slice(&bytes);
                }
                page.publish(len, generation.into()).unwrap();
                page.write_back(generation.into()).unwrap();
                drop(page);
                let view = reader.read(DATA_START, len).unwrap();
                view.acquire(generation.into()).unwrap();
                let mut copy = vec![0; bytes.len()];
                view.copy_to(&mut copy).unwrap();
                assert!(copy == bytes && view.bytes() == bytes);
                assert_eq!(view.checksum().unwrap(), checksum(&bytes));
                writer.write(DATA_START, len).unwrap().bytes_mut().fill(0);
            }
        }
    }
}

#[test]
fn no_more_than_the_page_is_published() {
    let dir = shm_dir();
    let device = create(&dir, "pool", 4 * MIB);
    for visibility in [Visibility::Coherent, CACHE_LINE] {
        let mapping = map_with(&device, visibility);
        let error = mapping.write(DATA_START, 4096).unwrap().publish(4097, 1).unwrap_err();
        assert!(matches!(error, MappingError::BeyondPage { page: 4096, len: 4097 }), "{error}");
    }
}

/// Writes down how it is called, with what it finds there; fails if the first byte is 255.
const PLUGIN: &str = r#"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>

int lmcache_shared_l1_visibility_v1(const char *mode, uint32_t operation, int fd, void *address,
                                    uint64_t device_offset, size_t length, uint64_t generation)
{
    unsigned first = *(volatile unsigned char *)address;
    struct stat device;
    FILE *log = fopen(LOG, "a");
    if (log == NULL || fstat(fd, &device) != 0)
        return 1;
    fprintf(log, "%s %u inode %ju first %u at %ju+%zu of %ju\n", mode, (unsigned)operation,
            (uintmax_t)device.st_ino, first, (uintmax_t)device_offset, length,
            (uintmax_t)generation);
    fclose(log);
    return first == 255 ? STATUS : 0;
}
"#;

/// Compiles `source` in `dir`, with some macros.
fn compile(dir: &TempDir, source: &str, macros: &[String]) -> PathBuf {
    let (code, library) = (dir.path().join("plugin.c"), dir.path().join("plugin.so"));
    fs::write(&code, source).unwrap();
    let macros = macros.iter().map(|value| format!("-D{value}"));
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &code])
        .args(macros)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    library
}

/// A pool that is made visible by `PLUGIN`, with a device at 8 MiB; its calls so far.
struct Plugged {
    mapping: Arc<PoolMapping>,
    library: PathBuf,
    log: PathBuf,
    inode: u64,
    _dirs: [TempDir; 2],
}

impl Plugged {
    fn new(status: i32) -> Self {
        let (dir, build) = (shm_dir(), tempfile::tempdir().unwrap());
        let log = build.path().join("log");
        let macros = [format!("LOG=\"{}\"", log.display()), format!("STATUS={status}")];
        let library = compile(&build, PLUGIN, &macros);
        let plugin = VisibilityPlugin::load(&library).unwrap();
        assert_eq!(plugin.path(), library);
        let first = create(&dir, "first", 4 * MIB);
        let mapping = map_with(&first, Visibility::CacheLine { plugin: Some(plugin) });
        let device = create(&dir, "second", 4 * MIB);
        let inode = fs::metadata(device.path()).unwrap().ino();
        // Only the mapping keeps it open.
        mapping.add_device(&device, 8 * MIB).unwrap();
        Self { mapping, library, log, inode, _dirs: [dir, build] }
    }

    /// Checks what the plug-in was called with since the last time, file and mode apart.
    #[track_caller]
    fn expect_calls(&self, expected: &[(u32, &str)]) {
        let expected: Vec<String> = expected
            .iter()
            .map(|(operation, rest)| format!("software_fenced {operation} inode {} {rest}", self.inode))
            .collect();
        let found = fs::read_to_string(&self.log).unwrap_or_default();
        assert_eq!(found.lines().collect::<Vec<_>>(), expected);
        let _ = fs::remove_file(&self.log);
    }
}

/// Where pages start in the second device, from its own start and from the pool's.
const INSIDE: u64 = DATA_START + 4096;
const OFFSET: u64 = 8 * MIB + INSIDE;

#[test]
fn a_plugin_is_told_what_to_do() {
    let pool = Plugged::new(-5);
    let at = |first: u8, len: u64, generation: u64| {
        format!("first {first} at {INSIDE}+{len} of {generation}")
    };

    // By a copy: nothing to drop before, and no more to publish than is committed.
    let mut page = pool.mapping.write(OFFSET, 8192).unwrap();
    page.copy_from(&[7; 8192]).unwrap();
    pool.expect_calls(&[]);
    page.publish(5000, 30).unwrap();
    pool.expect_calls(&[(1, &at(7, 5000, 30))]);
    page.write_back(30).unwrap();
    pool.expect_calls(&[]);
    drop(page);
    pool.mapping.read(OFFSET, 5000).unwrap().acquire(30).unwrap();
    pool.expect_calls(&[(2, &at(7, 5000, 30))]);

    // In place: old lines are dropped once, and all that may be dirty is written back.
    let mut page = pool.mapping.write(OFFSET, 8192).unwrap();
    page.bytes_mut()[0] = 8;
    page.bytes_mut()[1] = 8;
    pool.expect_calls(&[(2, &at(7, 8192, 0))]);
    page.publish(5000, 31).unwrap();
    pool.expect_calls(&[(1, &at(8, 8192, 31))]);
    drop(page);

    // Given back.
    let mut page = pool.mapping.write(OFFSET, 8192).unwrap();
    page.write_back(32).unwrap();
    pool.expect_calls(&[(1, &at(8, 8192, 32))]);
}

#[test]
fn a_plugin_that_fails_is_an_error() {
    for (status, words) in [(-5, "Input/output error"), (5, "status 5"), (i32::MIN, "status -")] {
        let pool = Plugged::new(status);
        let check = |error: MappingError, wanted: &str| {
            let text = error.to_string();
            assert!(
                text.contains(words) && text.contains(pool.library.to_str().unwrap()),
                "{text}"
            );
            let MappingError::Plugin { operation, offset, status: found, .. } = error else {
                panic!("{error}")
            };
            assert_eq!((operation, offset, found), (wanted, OFFSET, status));
        };
        let mut page = pool.mapping.write(OFFSET, 64).unwrap();
        page.copy_from(&[255; 64]).unwrap();
        check(page.publish(64, 1).unwrap_err(), "publish");
        check(pool.mapping.read(OFFSET, 64).unwrap().acquire(1).unwrap_err(), "acquire");
        drop(page);
        // What cannot be dropped before the first store is said at the end.
        let mut page = pool.mapping.write(OFFSET, 64).unwrap();
        page.bytes_mut().fill(1);
        check(page.publish(64, 1).unwrap_err(), "acquire");
        page.write_back(1).unwrap();
    }
}

#[test]
fn what_is_no_plugin_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = VisibilityPlugin::load(Path::new("plugin.so")).unwrap_err();
    assert!(matches!(error, PluginError::NotAbsolute { .. }), "{error}");

    let missing = dir.path().join("missing.so");
    let text = dir.path().join("text.so");
    fs::write(&text, "not a library").unwrap();
    for path in [missing, text] {
        let error = VisibilityPlugin::load(&path).unwrap_err();
        assert!(matches!(error, PluginError::Load { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }

    let other = compile(&dir, "int lmcache_shared_l1_visibility_v2(void) { return 0; }", &[]);
    let error = VisibilityPlugin::load(&other).unwrap_err();
    assert!(matches!(error, PluginError::Symbol { .. }), "{error}");
    assert!(error.to_string().contains("lmcache_shared_l1_visibility_v1"), "{error}");
}
