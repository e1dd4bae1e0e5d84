//! `maru doctor`: whether this machine has what Maru and LMCache need.
//!
//! What was asked for and is not there is a problem; what was only looked for is not: a machine
//! without CXL, GPU or LMCache is in order.

mod access;
mod devices;
mod host;
mod limits;
mod python;
mod server;

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use maru_memory::DeviceSpec;
use serde::Serialize;

use crate::inspect::ServerArgs;
use crate::output;
use crate::usage::check_distinct;

/// What fits every terminal.
const COLUMNS: usize = 80;

/// Look whether this machine has what Maru and LMCache need. Nothing is changed.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    server: ServerArgs,
    /// A device to look at, as maru serve takes it: with a size, it may still have to be made. Repeat
    /// for several. Default: those of the server, or else the DAX devices that are there.
    #[arg(long, value_name = "DEVICE[:SIZE]")]
    pool: Vec<DeviceSpec>,
    /// The Python that runs LMCache, at least 3.11. Default: python3.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    Ok,
    /// Good to know.
    Note,
    /// Something will not work, or be slow, that is likely to be wanted.
    Warning,
    /// Something that was asked for does not work.
    Problem,
}

/// What was looked at, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: String,
    status: Status,
    found: String,
    /// What to do; there is always something unless it is ok.
    advice: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, found: found.into(), advice: None }
    }

    fn new(
        status: Status,
        name: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { status, advice: Some(advice.into()), ..Self::ok(name, found) }
    }

    /// Adds what is not in order.
    fn also(&mut self, status: Status, found: &str, advice: &str) {
        self.status = self.status.max(status);
        self.found = format!("{}; {found}", self.found);
        self.advice = Some(match self.advice.take() {
            Some(before) => format!("{before}; {advice}"),
            None => advice.to_owned(),
        });
    }
}

/// All of it, as JSON.
#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Check>,
    ok: usize,
    notes: usize,
    warnings: usize,
    problems: usize,
}

impl Report {
    fn new(checks: Vec<Check>) -> Self {
        let of = |status| checks.iter().filter(|check| check.status == status).count();
        Self {
            ok: of(Status::Ok),
            notes: of(Status::Note),
            warnings: of(Status::Warning),
            problems: of(Status::Problem),
            checks,
        }
    }

    fn text(&self, colours: bool) -> String {
        let mut text = String::new();
        for Check { name, status, found, advice } in &self.checks {
            let word = status.word(colours);
            let found = wrapped(&format!("{name}: {found}"), 9);
            text.extend([&word, "  ", &found, "\n"]);
            if let Some(advice) = advice {
                text.extend(["         -> ", &wrapped(advice, 12), "\n"]);
            }
        }
        let some = |number, what: &str| match number {
            0 => format!("no {what}"),
            1 => format!("1 {what}"),
            _ => format!("{number} {what}s"),
        };
        text + &format!(
            "\n{}, {}\n",
            some(self.warnings, "warning"),
            some(self.problems, "problem")
        )
    }
}

impl Status {
    /// Its name, filled up to the longest.
    fn word(self, colours: bool) -> String {
        let (word, colour) = match self {
            Self::Ok => ("ok", 32),
            Self::Note => ("note", 36),
            Self::Warning => ("warning", 33),
            Self::Problem => ("problem", 31),
        };
        if colours { format!("\x1b[{colour}m{word:7}\x1b[0m") } else { format!("{word:7}") }
    }
}

/// In lines, all but the first with an indent; commands in backticks stay whole. Names of devices and
/// what programs say come from elsewhere: they cannot send codes to the terminal.
fn wrapped(text: &str, indent: usize) -> String {
    let mut wrapped = String::new();
    let mut column = indent;
    let mut is_quoted = false;
    let words = text.split(|c: char| {
        is_quoted ^= c == '`';
        c == ' ' && !is_quoted
    });
    for word in words {
        let word: String = word.chars().flat_map(shown).collect();
        let len = word.chars().count();
        if column > indent && column + 1 + len > COLUMNS {
            wrapped.push('\n');
            wrapped.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if column > indent {
            wrapped.push(' ');
            column += 1;
        }
        wrapped += &word;
        column += len;
    }
    wrapped
}

fn shown(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_default());
    let plain = escaped.is_none().then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

impl Doctor {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        check_distinct(self.pool.iter().map(|spec| &spec.path))?;
        let mut checks = vec![this_program()];
        let server = server::look(&self.server, self.pool.iter().map(|spec| spec.path.clone()));
        checks.extend(server.checks);
        let named = if self.pool.is_empty() { server.devices } else { Some(self.pool) };
        checks.extend(devices::look(named.as_deref()));
        checks.push(devices::shared_memory(server.bytes.is_some()));
        checks.extend(host::look(server.bytes, server.visibility));
        checks.extend(limits::look(server.bytes));
        checks.extend(python::look(self.python.as_deref()));
        let report = Report::new(checks);
        if self.server.json {
            output::print_json(&report)?;
        } else {
            output::print(&report.text(output::has_colours(&std::io::stdout())))?;
        }
        match report.problems {
            0 => Ok(()),
            1 => bail!("there is a problem: do what is said beside it, and ask again"),
            some => bail!("there are {some} problems: do what is said beside them, and ask again"),
        }
    }
}

fn this_program() -> Check {
    let (protocol, format) = (maru_protocol::VERSION, maru_memory::FORMAT_VERSION);
    let version = env!("CARGO_PKG_VERSION");
    Check::ok("maru", format!("{version}, protocol version {protocol}, pool format {format}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_for_people() {
        let long = "word ".repeat(30);
        let mut device = Check::ok("device \x1b[31m", "it is there");
        device.also(Status::Warning, &long, "do this");
        device.also(Status::Note, "small", "do that");
        let report = Report::new(vec![Check::ok("one", "fine"), device]);
        assert_eq!((report.ok, report.notes, report.warnings, report.problems), (1, 0, 1, 0));
        let text = report.text(false);
        assert!(
            text.starts_with("ok       one: fine\nwarning  device \\u{1b}[31m: it is"),
            "{text}"
        );
        assert!(text.contains("\n         -> do this; do that\n"), "{text}");
        assert!(text.ends_with("\n\n1 warning, no problem\n"), "{text}");
        assert!(text.lines().all(|line| line.len() <= COLUMNS), "{text}");
        assert!(
            !text.contains('\x1b') && report.text(true).contains("\x1b[33mwarning\x1b[0m  dev")
        );
    }

    #[test]
    fn a_word_that_is_too_long_is_whole() {
        let path = "/x".repeat(60);
        assert_eq!(wrapped(&format!("a {path} b"), 2), format!("a\n  {path}\n  b"));
        let command = "run ".repeat(15);
        assert_eq!(
            wrapped(&format!("to do it: `{command}`"), 10),
            format!("to do it:\n{:10}`{command}`", "")
        );
    }
}
