//! Reads a trace, a line at a time, and says of each bad line what is wrong with it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde_json::error::Category;

use super::TraceRequest;

/// The longest line that is read. A request of a million blocks has some 8 MB; what is longer is not
/// a trace, and must not take the memory.
const LINE_BYTES_MAX: usize = 16 << 20;

/// The longest part of a reason that may come from the file.
const REASON_CHARS_MAX: usize = 200;

/// What to do with a line that is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadLines {
    Stop,
    /// Pass over it and count it.
    Skip,
}

/// A trace in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    /// At least one, in the order of time.
    pub(crate) requests: Vec<TraceRequest>,
    pub(crate) skipped_lines: u64,
}

/// Why a trace could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error(
        "cannot open the trace {}: {source}; correct the path, or make a trace with \
         `maru trace generate`", .path.display()
    )]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read the trace {} at line {line}: {source}", .path.display())]
    Read { path: PathBuf, line: u64, source: io::Error },
    #[error(
        "{}, line {line}: {reason}; correct the line, or pass over such lines with \
         --skip-bad-lines", .path.display()
    )]
    BadLine { path: PathBuf, line: u64, reason: BadLine },
    /// The file is empty, or nothing was left of it.
    #[error(
        "{} has no request ({skipped_lines} bad lines were passed over): give a trace with one JSON \
         object a line, such as `maru trace generate` writes", .path.display()
    )]
    NoRequests { path: PathBuf, skipped_lines: u64 },
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadLine {
    #[error("longer than {} MiB", LINE_BYTES_MAX >> 20)]
    TooLong,
    #[error("not UTF-8 at byte {byte}")]
    NotUtf8 { byte: usize },
    /// Also refuses arrays, which serde would take for the fields in their order.
    #[error("not a JSON object with `timestamp`, `input_length`, `output_length` and `hash_ids`")]
    NotAnObject,
    #[error("the JSON object does not end on this line (column {column})")]
    Incomplete { column: usize },
    #[error("{reason} (column {column})")]
    Json { reason: String, column: usize },
    #[error("`hash_ids` is empty: a request needs at least one block")]
    NoBlocks,
    /// An id stands for its block and all before it, so it cannot come twice in one prompt.
    #[error("block {hash_id} comes twice in `hash_ids`")]
    RepeatedBlock { hash_id: u64 },
    #[error("`timestamp` goes back from {previous_ms} to {timestamp_ms} ms")]
    TimeGoesBack { timestamp_ms: u64, previous_ms: u64 },
}

/// Reads a whole trace. Blank lines are passed over and do not count as bad.
pub(crate) fn read(path: &Path, bad_lines: BadLines) -> Result<Trace, TraceError> {
    let file =
        File::open(path).map_err(|source| TraceError::Open { path: path.to_owned(), source })?;
    read_from(BufReader::with_capacity(1 << 16, file), path, bad_lines)
}

fn read_from(
    mut input: impl BufRead,
    path: &Path,
    bad_lines: BadLines,
) -> Result<Trace, TraceError> {
    let mut trace = Trace { requests: Vec::new(), skipped_lines: 0 };
    let mut buffer = Vec::new();
    let mut line = 0;
    loop {
        line += 1;
        let unreadable = |source| TraceError::Read { path: path.to_owned(), line, source };
        let end = next_line(&mut input, &mut buffer).map_err(unreadable)?;
        let parsed = match end {
            LineEnd::NoMoreLines => break,
            LineEnd::TooLong => Err(BadLine::TooLong),
            LineEnd::Whole if buffer.trim_ascii().is_empty() => continue,
            LineEnd::Whole => parse(&buffer).and_then(|request| follows(&trace, request)),
        };
        match parsed {
            Ok(request) => trace.requests.push(request),
            Err(reason) if bad_lines == BadLines::Skip => {
                tracing::debug!(line, %reason, "passed over a bad trace line");
                trace.skipped_lines += 1;
                if end == LineEnd::TooLong {
                    input.skip_until(b'\n').map_err(unreadable)?;
                }
            }
            Err(reason) => {
                return Err(TraceError::BadLine { path: path.to_owned(), line, reason });
            }
        }
    }
    if trace.requests.is_empty() {
        return Err(TraceError::NoRequests {
            path: path.to_owned(),
            skipped_lines: trace.skipped_lines,
        });
    }
    Ok(trace)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    Whole,
    /// The buffer holds its beginning; the rest is still in the input.
    TooLong,
    NoMoreLines,
}

/// Takes the next line, without its end, into the buffer.
fn next_line(input: &mut impl BufRead, buffer: &mut Vec<u8>) -> io::Result<LineEnd> {
    buffer.clear();
    let limit = LINE_BYTES_MAX as u64 + 1;
    let bytes = input.by_ref().take(limit).read_until(b'\n', buffer)?;
    Ok(if bytes == 0 {
        LineEnd::NoMoreLines
    } else if buffer.last() == Some(&b'\n') {
        buffer.pop();
        LineEnd::Whole
    } else if bytes > LINE_BYTES_MAX {
        LineEnd::TooLong
    } else {
        LineEnd::Whole
    })
}

/// One line by itself.
fn parse(line: &[u8]) -> Result<TraceRequest, BadLine> {
    let text = std::str::from_utf8(line)
        .map_err(|error| BadLine::NotUtf8 { byte: error.valid_up_to() + 1 })?;
    if !text.trim_ascii_start().starts_with('{') {
        return Err(BadLine::NotAnObject);
    }
    let request: TraceRequest = serde_json::from_str(text).map_err(|error| json_reason(&error))?;
    if request.hash_ids.is_empty() {
        return Err(BadLine::NoBlocks);
    }
    let mut sorted = request.hash_ids.clone();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(BadLine::RepeatedBlock { hash_id: pair[0] }),
        None => Ok(request),
    }
}

/// A request among those before it.
fn follows(trace: &Trace, request: TraceRequest) -> Result<TraceRequest, BadLine> {
    let previous_ms = trace.requests.last().map_or(0, |last| last.timestamp_ms);
    if request.timestamp_ms < previous_ms {
        return Err(BadLine::TimeGoesBack { timestamp_ms: request.timestamp_ms, previous_ms });
    }
    Ok(request)
}

fn json_reason(error: &serde_json::Error) -> BadLine {
    let column = error.column();
    if error.classify() == Category::Eof {
        return BadLine::Incomplete { column };
    }
    let message = error.to_string();
    // serde_json counts lines inside of what it was given, which is always one line.
    let place = format!(" at line {} column {column}", error.line());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    BadLine::Json { reason: message.chars().take(REASON_CHARS_MAX).collect(), column }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str =
        r#"{"timestamp": 5, "input_length": 600, "output_length": 9, "hash_ids": [0, 1]}"#;

    fn check(input: impl AsRef<[u8]>, bad_lines: BadLines) -> Result<Trace, TraceError> {
        read_from(input.as_ref(), Path::new("a.jsonl"), bad_lines)
    }

    /// The line and the reason of the first bad line, which must also be the only one.
    fn bad(input: impl AsRef<[u8]>) -> (u64, BadLine) {
        let mut input = input.as_ref().to_vec();
        let Err(TraceError::BadLine { line, reason, .. }) = check(&input, BadLines::Stop) else {
            panic!("was not refused");
        };
        // With a good line behind it, only the bad one is lost.
        let good_before = usize::try_from(line).unwrap() - 1;
        input.push(b'\n');
        input.extend_from_slice(GOOD.replace(": 5,", ": 99,").as_bytes());
        let trace = check(&input, BadLines::Skip).unwrap();
        assert_eq!(trace.skipped_lines, 1);
        assert_eq!(trace.requests.len(), good_before + 1);
        (line, reason)
    }

    fn request(change: (&str, &str)) -> String {
        let changed = GOOD.replace(change.0, change.1);
        assert_ne!(changed, GOOD);
        changed
    }

    #[test]
    fn good_lines() {
        let input = format!(
            "{GOOD}\n\n  \t\r\n{}\r\n{}",
            request((": 5", ": 5, \"model\": {\"name\": [null, 1.5]}")),
            request(("[0, 1]", "[7]")),
        );
        let trace = check(&input, BadLines::Stop).unwrap();
        let expected = TraceRequest {
            timestamp_ms: 5,
            input_length: 600,
            output_length: 9,
            hash_ids: vec![0, 1],
        };
        assert_eq!(trace.skipped_lines, 0);
        assert_eq!(trace.requests.len(), 3);
        assert_eq!(trace.requests[..2], [expected.clone(), expected]);
        assert_eq!(trace.requests[2].hash_ids, [7]);
    }

    #[test]
    fn bad_json() {
        for (line, reason) in [
            (request(("5", "\"5\"")), "invalid type: string \"5\", expected u64 (column 17)"),
            (request(("5", "-5")), "invalid value: integer `-5`, expected u64 (column 16)"),
            (request(("5", "5.5")), "invalid type: floating point `5.5`, expected u64 (column 17)"),
            (request(("\"hash_ids\"", "\"ids\"")), "missing field `hash_ids` (column 72)"),
            (request(("output", "input")), "duplicate field `input_length` (column 52)"),
            (request(("}", "} {}")), "trailing characters (column 79)"),
            (request(("]}", "")), "the JSON object does not end on this line (column 75)"),
            (request(("[0, 1]", "{}")), "invalid type: map, expected a sequence (column 70)"),
        ] {
            let (number, found) = bad(&line);
            assert_eq!((number, found.to_string().as_str()), (1, reason), "{line}");
        }
        for line in ["[5, 600, 9, [0, 1]]", "null", "7", "timestamp,input_length", "\u{feff}{}"] {
            assert_eq!(bad(line), (1, BadLine::NotAnObject), "{line}");
        }
    }

    #[test]
    fn bad_requests() {
        assert_eq!(bad(request(("[0, 1]", "[]"))), (1, BadLine::NoBlocks));
        let repeated = request(("[0, 1]", "[3, 1, 2, 3]"));
        assert_eq!(bad(repeated), (1, BadLine::RepeatedBlock { hash_id: 3 }));
        let back = format!("{GOOD}\n{}", request((": 5,", ": 4,")));
        let reason = BadLine::TimeGoesBack { timestamp_ms: 4, previous_ms: 5 };
        assert_eq!(bad(back), (2, reason));
        assert_eq!(bad(b"{\"a\": \"\xff\"}"), (1, BadLine::NotUtf8 { byte: 8 }));
    }

    #[test]
    fn a_long_line_is_refused_without_being_held() {
        let filler = " ".repeat(LINE_BYTES_MAX - GOOD.len());
        let longest = format!("{GOOD}{filler}\n{GOOD}");
        assert_eq!(check(&longest, BadLines::Stop).unwrap().requests.len(), 2);
        assert_eq!(bad(format!("{GOOD}\n{GOOD}{filler} ")), (2, BadLine::TooLong));
        // Endless input, too, is refused once the limit is passed.
        let endless = check_endless();
        assert!(matches!(endless, Err(TraceError::BadLine { line: 1, .. })));
    }

    fn check_endless() -> Result<Trace, TraceError> {
        read_from(BufReader::new(io::repeat(b'x')), Path::new("zero"), BadLines::Stop)
    }

    #[test]
    fn a_long_reason_is_cut() {
        let (_, reason) = bad(request(("5", &format!("\"{}\"", "x".repeat(100_000)))));
        assert!(reason.to_string().len() < REASON_CHARS_MAX + 30);
    }

    #[test]
    fn nothing_in_it() {
        for input in ["", "\n", "\n \r\n"] {
            let error = check(input, BadLines::Stop).unwrap_err();
            assert!(matches!(error, TraceError::NoRequests { skipped_lines: 0, .. }));
        }
        let error = check("x\ny\n", BadLines::Skip).unwrap_err();
        assert!(matches!(error, TraceError::NoRequests { skipped_lines: 2, .. }));
    }

    #[test]
    fn messages_say_what_next() {
        let error = check("[]", BadLines::Stop).unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl, line 1: not a JSON object"), "{error}");
        assert!(error.ends_with("--skip-bad-lines"), "{error}");

        let folder = tempfile::tempdir().unwrap();
        let missing = read(&folder.path().join("none"), BadLines::Stop).unwrap_err();
        assert!(matches!(missing, TraceError::Open { .. }));
        assert!(missing.to_string().contains("maru trace generate"));
        let unreadable = read(folder.path(), BadLines::Stop).unwrap_err();
        assert!(matches!(unreadable, TraceError::Read { line: 1, .. }));
    }

    proptest! {
        /// Whatever the bytes, an answer; and skipping never says more than there are lines.
        #[test]
        fn any_bytes(input: Vec<u8>) {
            let _ = check(&input, BadLines::Stop);
            if let Ok(trace) = check(&input, BadLines::Skip) {
                prop_assert!(trace.requests.len() <= input.len());
            }
        }

        #[test]
        fn damaged_lines(at in 0..GOOD.len(), byte: u8) {
            let mut line = GOOD.as_bytes().to_vec();
            line[at] = byte;
            if let Ok(trace) = check(&line, BadLines::Skip) {
                prop_assert!(trace.requests.iter().all(|request| !request.hash_ids.is_empty()));
            }
        }
    }
}
