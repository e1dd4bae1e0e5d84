//! What people and programs read: tables, JSON, complaints.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// Writes to stdout. A reader that has gone (`maru ls | head`) is an error that `main` forgives.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")
}

pub(crate) fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes a line to stderr; if that is gone too, nobody is there to be told.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether what is written there may have colours.
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// An error and its causes, without those that the error's own words name already.
pub(crate) fn in_words(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |words, cause| match cause.to_string() {
        cause if words.is_empty() => cause,
        cause if words.contains(&cause) => words,
        cause => format!("{words}: {cause}"),
    })
}

pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A table with these column heads; a head that begins with `>` has its column set right.
pub(crate) fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heads.iter().map(|head| head.trim_start_matches('>')));
    for (head, column) in heads.iter().zip(table.column_iter_mut()) {
        if head.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
        column.set_padding((0, 2));
    }
    table
}

pub(crate) fn print_table(table: &Table) -> anyhow::Result<()> {
    let text = table.trim_fmt();
    print(&(text + "\n"))
}

/// A count with its thousands apart: `1 234 567`.
pub(crate) fn count(number: impl TryInto<u128>) -> String {
    let digits = number.try_into().map_or_else(|_| "?".to_owned(), |number| number.to_string());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A size to three figures: `4.69 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(4);
    // Shown to three figures: what is lost beyond 2^53 does not show.
    #[expect(clippy::cast_precision_loss)]
    let number = bytes as f64 / f64::from(1_u32 << 10).powi(unit.cast_signed());
    let decimals = if unit == 0 || number >= 100.0 {
        0
    } else if number >= 10.0 {
        1
    } else {
        2
    };
    format!("{number:.decimals$} {}", UNITS[unit as usize])
}

/// A time to its leading unit: `750 ms`, `12.0 s`, `3 min 20 s`.
pub(crate) fn duration(ms: u64) -> String {
    let time = Duration::from_millis(ms);
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..100_000 => format!("{:.1} s", time.as_secs_f64()),
        _ if ms < 7_200_000 => format!("{} min {} s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_once() {
        let io = || io::Error::other("no such thing");
        let twice = anyhow::Error::from(io()).context("cannot open it: no such thing");
        assert_eq!(in_words(&twice), "cannot open it: no such thing");
        let once = anyhow::Error::from(io()).context("cannot open it");
        assert_eq!(in_words(&once), "cannot open it: no such thing");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(count(7_u32), "7");
        assert_eq!(count(1_234_567_u64), "1 234 567");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(250 << 20), "250 MiB");
        assert_eq!(bytes(u64::MAX), "16777216 TiB");
        assert_eq!(duration(999), "999 ms");
        assert_eq!(duration(12_340), "12.3 s");
        assert_eq!(duration(200_000), "3 min 20 s");
        assert_eq!(duration(8_000_000), "2 h 13 min");
    }
}
