//! A library for visibility that writes down what it is asked for, can be made to wait, and to fail.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

const SOURCE: &str = r#"
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

int lmcache_shared_l1_visibility_v1(const char *mode, uint32_t operation, int fd, void *address,
                                    uint64_t device_offset, size_t length, uint64_t generation)
{
    FILE *log = fopen(FOLDER "/log", "a");
    fprintf(log, "%s %ju+%zu of %ju\n", operation == 1 ? "publish" : "acquire",
            (uintmax_t)device_offset, length, (uintmax_t)generation);
    fclose(log);
    int gate = open(FOLDER "/gate", O_RDONLY);
    if (gate >= 0) {
        char byte;
        if (read(gate, &byte, 1) != 1)
            return -4;
        close(gate);
    }
    uintmax_t bad;
    FILE *fails = fopen(FOLDER "/fails", "r");
    if (fails == NULL)
        return 0;
    int found = fscanf(fails, "%ju", &bad);
    fclose(fails);
    return found == 1 && bad == device_offset ? -5 : 0;
}
"#;

/// One such library.
pub(crate) struct Plugin(TempDir);

impl Plugin {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("plugin.c"), SOURCE).unwrap();
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-o", "plugin.so", "plugin.c"])
            .arg(format!("-DFOLDER=\"{}\"", folder.path().display()))
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.file("plugin.so")
    }

    /// What it was asked for so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.file("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    pub(crate) fn forget_calls(&self) {
        let _ = fs::remove_file(self.file("log"));
    }

    /// Whoever calls it next waits.
    pub(crate) fn shut_gate(&self) {
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, self.file("gate"), FileType::Fifo, mode, 0).unwrap();
    }

    /// Lets the caller go on that waits; those to come do not wait.
    pub(crate) fn open_gate(&self) {
        // It is opened when somebody waits.
        let mut gate = File::options().write(true).open(self.file("gate")).unwrap();
        fs::remove_file(self.file("gate")).unwrap();
        gate.write_all(b"x").unwrap();
    }

    /// Fails for the page at this offset of its device.
    pub(crate) fn fail_at(&self, device_offset: u64) {
        fs::write(self.file("fails"), device_offset.to_string()).unwrap();
    }

    pub(crate) fn fail_no_more(&self) {
        fs::remove_file(self.file("fails")).unwrap();
    }
}
