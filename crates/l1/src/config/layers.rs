//! Where settings come from: the command line before the environment before a file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::Value;

use super::error::{ConfigOrigin, L1ConfigError};
use super::file::ConfigFile;
use super::flags;
use super::value::{shown, switch};

/// Looks a variable of the environment up.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The variable of the setting with this flag: `--l1-size-gb` is `MARU_L1_SIZE_GB`, and
/// `--maru-server-url` is `MARU_SERVER_URL`.
pub(super) fn variable(flag: &str) -> String {
    let name = flag.trim_start_matches('-');
    let name = name.strip_prefix("maru-").unwrap_or(name);
    format!("MARU_{}", name.replace('-', "_").to_ascii_uppercase())
}

/// What a setting is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Switch,
    Text,
}

/// A setting that somebody gave.
#[derive(Debug)]
struct Given {
    flag: &'static str,
    shown: String,
    origin: ConfigOrigin,
}

/// All layers below the command line, and what has been read so far.
pub(super) struct Layers<'a> {
    environment: Environment<'a>,
    file: Option<ConfigFile>,
    given: Vec<Given>,
}

impl<'a> Layers<'a> {
    /// The environment, and the file if one of the layers above it names one.
    pub(super) fn new(
        environment: Environment<'a>,
        file_flag: Option<&Path>,
    ) -> Result<Self, L1ConfigError> {
        let variable = variable(flags::CONFIG);
        let file = match file_flag {
            Some(path) => Some((path.to_owned(), ConfigOrigin::CommandLine)),
            None => set(environment, &variable)
                .map(|path| (PathBuf::from(path), ConfigOrigin::Environment(variable))),
        };
        let file = file.map(|(path, origin)| ConfigFile::read(&path, origin)).transpose()?;
        Ok(Self { environment, file, given: Vec::new() })
    }

    /// The uppermost layer's value of a setting; `None` if no layer has one. `on_command_line` is
    /// that of its flag.
    pub(super) fn read<T>(
        &mut self,
        flag: &'static str,
        kind: Kind,
        on_command_line: Option<&str>,
        parse: fn(&str) -> Result<T, &'static str>,
    ) -> Result<Option<T>, L1ConfigError> {
        // In any case, so that the file's key counts as known.
        let in_file = self.file.as_mut().and_then(|file| file.take(flag));
        let variable = variable(flag);
        let shown = |text: &str| shown(text, flag == flags::SERVER_URL);
        let (text, origin) = if let Some(text) = on_command_line {
            (Ok(text.to_owned()), ConfigOrigin::CommandLine)
        } else if let Some(value) = set(self.environment, &variable) {
            let lossy = |value: OsString| (shown(&value.to_string_lossy()), "text in UTF-8");
            (value.into_string().map_err(lossy), ConfigOrigin::Environment(variable))
        } else if let Some((value, origin)) = in_file {
            (text(&value, kind), origin)
        } else {
            return Ok(None);
        };
        let parsed = text.and_then(|text| match parse(&text) {
            Ok(value) => Ok((value, shown(&text))),
            Err(must) => Err((shown(&text), must)),
        });
        match parsed {
            Ok((value, shown)) => {
                self.given.push(Given { flag, shown, origin });
                Ok(Some(value))
            }
            Err((value, must)) => {
                Err(L1ConfigError::Value { flag, value, origin, must: must.to_owned() })
            }
        }
    }

    /// The same for a setting with two flags, one for on and one for off.
    pub(super) fn switch(
        &mut self,
        flag: &'static str,
        on: bool,
        off: bool,
    ) -> Result<Option<bool>, L1ConfigError> {
        let on_command_line = if on { Some("true") } else { off.then_some("false") };
        self.read(flag, Kind::Switch, on_command_line, switch)
    }

    /// Those of these settings that somebody gave, and who.
    pub(super) fn given(
        &self,
        flags: &[&str],
    ) -> impl Iterator<Item = (&'static str, ConfigOrigin)> {
        let given = self.given.iter().filter(|given| flags.contains(&given.flag));
        given.map(|given| (given.flag, given.origin.clone()))
    }

    /// Who gave the setting.
    pub(super) fn origin(&self, flag: &str) -> ConfigOrigin {
        self.given(&[flag]).next().map_or_else(ConfigOrigin::default, |(_, origin)| origin)
    }

    /// The same error, with the value as it was given and who gave it.
    pub(super) fn explain(&self, error: L1ConfigError) -> L1ConfigError {
        match error {
            L1ConfigError::Value { flag, value, origin, must } => {
                let given = self.given.iter().find(|given| given.flag == flag);
                let (value, origin) = given
                    .map_or((value, origin), |given| (given.shown.clone(), given.origin.clone()));
                L1ConfigError::Value { flag, value, origin, must }
            }
            other => other,
        }
    }

    /// All settings have been read: refuses what else the file has.
    pub(super) fn finish(&mut self) -> Result<(), L1ConfigError> {
        self.file.take().map_or(Ok(()), ConfigFile::finish)
    }
}

/// A variable that is set, and not to nothing: that is how one is unset in many a launcher.
fn set(environment: Environment<'_>, variable: &str) -> Option<OsString> {
    environment(variable).filter(|value| !value.is_empty())
}

/// A file's value as it would stand on the command line; or what it is, and what it must be.
fn text(value: &Value, kind: Kind) -> Result<String, (String, &'static str)> {
    match (kind, value) {
        (Kind::Number, Value::Integer(number)) => Ok(number.to_string()),
        (Kind::Number, Value::Float(number)) => Ok(number.to_string()),
        (Kind::Switch, Value::Boolean(on)) => Ok(on.to_string()),
        (Kind::Text, Value::String(text)) => Ok(text.clone()),
        (kind, value) => {
            let must = match kind {
                Kind::Number => "a number, without quotes",
                Kind::Switch => "true or false, without quotes",
                Kind::Text => "text in quotes",
            };
            Err((format!("of type {}", value.type_str()), must))
        }
    }
}
