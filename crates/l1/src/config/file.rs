//! The file of `--l1-config`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::{Spanned, Value};

use super::error::{ConfigOrigin, L1ConfigError};

/// More is no configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a file says, until it is asked.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) value: Value,
    line: usize,
}

impl ConfigFile {
    /// Reads the file that `origin` has named.
    pub(super) fn read(path: &Path, origin: ConfigOrigin) -> Result<Self, L1ConfigError> {
        let path = path.to_owned();
        match read_text(&path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) => {
                Err(L1ConfigError::Unreadable { path, origin, problem: error.to_string() })
            }
        }
    }

    fn parse(path: PathBuf, text: &str) -> Result<Self, L1ConfigError> {
        let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let read: Result<BTreeMap<Spanned<String>, Spanned<Value>>, _> = toml::from_str(text);
        let read = match read {
            Ok(read) => read,
            // The error's own form would show the line's text, whatever stands in it.
            Err(error) => {
                let line = error.span().map_or(1, |span| line(span.start));
                return Err(L1ConfigError::Syntax {
                    path,
                    line,
                    problem: error.message().to_owned(),
                });
            }
        };
        let mut entries = BTreeMap::new();
        for (key, value) in read {
            let line = line(key.span().start);
            let key = key.into_inner().replace('_', "-");
            let entry = Entry { value: value.into_inner(), line };
            if entries.contains_key(&key) {
                return Err(L1ConfigError::Twice { path, line, flag: format!("--{key}") });
            }
            entries.insert(key, entry);
        }
        Ok(Self { path, entries })
    }

    /// What the file says of the setting with this flag. Whatever is never taken is no setting.
    pub(super) fn take(&mut self, flag: &str) -> Option<(Value, ConfigOrigin)> {
        let entry = self.entries.remove(flag.trim_start_matches('-'))?;
        Some((entry.value, ConfigOrigin::File { path: self.path.clone(), line: entry.line }))
    }

    /// All settings have been taken: whatever is left is none.
    pub(super) fn finish(self) -> Result<(), L1ConfigError> {
        match self.entries.into_iter().min_by_key(|(_, entry)| entry.line) {
            None => Ok(()),
            Some((key, Entry { line, .. })) => {
                let key = super::value::shown(&key, false);
                Err(L1ConfigError::UnknownKey { path: self.path, line, key })
            }
        }
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("it has more than 1 MiB"));
    }
    Ok(text)
}
