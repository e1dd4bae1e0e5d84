//! What is wrong with a configuration, and where that was said.

use std::fmt;
use std::path::PathBuf;

/// Where a setting's value came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigOrigin {
    /// Nobody gave it: it is the default, or the program's own choice.
    #[default]
    Program,
    /// Its flag.
    CommandLine,
    /// The environment variable of this name.
    Environment(String),
    /// The file of `--l1-config`.
    File {
        /// Where the file is.
        path: PathBuf,
        /// The line of the setting's key, from 1.
        line: usize,
    },
}

/// What goes behind the setting's flag in a sentence.
impl fmt::Display for ConfigOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program => Ok(()),
            Self::CommandLine => f.write_str(" (from the command line)"),
            Self::Environment(variable) => write!(f, " (from {variable})"),
            Self::File { path, line } => write!(f, " (from {}:{line})", path.display()),
        }
    }
}

/// Why a configuration cannot be. Settings are named by their flags, wherever they were given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum L1ConfigError {
    /// A value that the setting does not take.
    #[error("{flag} is {value}{origin}, but must be {must}")]
    Value {
        /// The setting.
        flag: &'static str,
        /// Its value, as it was given.
        value: String,
        /// Who gave it.
        origin: ConfigOrigin,
        /// What it takes.
        must: String,
    },
    /// A setting that means nothing without another.
    #[error("{flag}{origin} needs {needed}, which is not given: give both or neither")]
    Needs {
        /// The setting.
        flag: &'static str,
        /// Who gave it.
        origin: ConfigOrigin,
        /// The other.
        needed: &'static str,
    },
    /// Two settings that exclude each other.
    #[error("{flag}{origin} does not go with {other}{other_origin}: {remedy}")]
    Conflict {
        /// One setting.
        flag: &'static str,
        /// Who gave it.
        origin: ConfigOrigin,
        /// The other.
        other: &'static str,
        /// Who gave the other.
        other_origin: ConfigOrigin,
        /// What to do.
        remedy: &'static str,
    },
    /// The file of `--l1-config` cannot be read.
    #[error("cannot read {}, the file of --l1-config{origin}: {problem}", path.display())]
    Unreadable {
        /// Where the file should be.
        path: PathBuf,
        /// Who named it.
        origin: ConfigOrigin,
        /// The system's words.
        problem: String,
    },
    /// The file of `--l1-config` is not TOML.
    #[error("{}:{line}: {problem}; --l1-config takes TOML, such as l1-size-gb = 8", path.display())]
    Syntax {
        /// Where the file is.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// The file of `--l1-config` has a key that is no setting.
    #[error("{}:{line}: there is no setting {key}: a key is a flag without its dashes in front, and \
             no-... is written false", path.display())]
    UnknownKey {
        /// Where the file is.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// The file of `--l1-config` has a key twice, with dashes and with underscores.
    #[error("{}:{line}: {flag} is given twice: write either dashes or underscores", path.display())]
    Twice {
        /// Where the file is.
        path: PathBuf,
        /// The line of one of them, from 1.
        line: usize,
        /// The setting, as a flag.
        flag: String,
    },
}
