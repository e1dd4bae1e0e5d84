//! The file that a report goes to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::super::result::Comparison;

/// A file that can be written. What it holds stays until there is a report; if there was none, and
/// there will be none, it goes again.
#[derive(Debug)]
pub(crate) struct ReportFile {
    path: PathBuf,
    file: File,
    is_new: bool,
}

impl ReportFile {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let is_new = !path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, is_new })
    }

    pub(crate) fn write(mut self, comparison: &Comparison) -> anyhow::Result<()> {
        self.replace(super::html(comparison).as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.is_new = false;
        tracing::info!(path = %self.path.display(), "wrote the report");
        Ok(())
    }

    fn replace(&mut self, page: &[u8]) -> io::Result<()> {
        // Pipes and terminals have no length.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(page)
    }
}

impl Drop for ReportFile {
    fn drop(&mut self) {
        if self.is_new {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
