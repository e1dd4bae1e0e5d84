//! Devices and sizes as people write them: `/dev/shm/maru:512MiB`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Largest first within each family, so that [`format_bytes`] finds the shortest exact form.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

/// Where a device is and how large it shall be: `PATH[:SIZE]`.
///
/// The text after the last `:` is the size ([`parse_bytes`]) unless it begins with a letter or holds
/// a `/`; then the colon belongs to the path. So `/dev/shm/a:b` is a path without a size,
/// `/dev/shm/a:b:1GiB` one with, and `/dev/shm/a:1Gb` a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// The file or the DAX character device.
    pub path: PathBuf,
    /// Size in bytes; `None` takes the whole of what exists.
    pub bytes: Option<u64>,
}

/// Why text names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceSpecError {
    /// There is no path.
    #[error(
        "device {0:?} has no path: write PATH[:SIZE], such as /dev/shm/maru:512MiB or /dev/dax0.0"
    )]
    NoPath(String),
    /// What stands where the size should is none.
    #[error(transparent)]
    Size(#[from] ParseBytesError),
}

impl FromStr for DeviceSpec {
    type Err = DeviceSpecError;

    fn from_str(text: &str) -> Result<Self, DeviceSpecError> {
        let is_name = |tail: &str| tail.starts_with(char::is_alphabetic) || tail.contains('/');
        let (path, bytes) = match text.rsplit_once(':').filter(|(_, tail)| !is_name(tail)) {
            Some((path, size)) => (path, Some(parse_bytes(size)?)),
            None => (text, None),
        };
        if path.is_empty() {
            return Err(DeviceSpecError::NoPath(text.to_owned()));
        }
        Ok(Self { path: PathBuf::from(path), bytes })
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match self.bytes {
            Some(bytes) => write!(f, ":{}", format_bytes(bytes)),
            None => Ok(()),
        }
    }
}

/// A text that is no size in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseBytesError {
    /// Not a whole number with one of the known units.
    #[error(
        "{0:?} is not a size: write a whole number and a unit (KiB MiB GiB TiB, or KB MB GB TB for \
         powers of ten), such as 512MiB, 64GiB, 4GB or 1048576"
    )]
    NotASize(String),
    /// More than 2^64 - 1 bytes.
    #[error("{0:?} is more than 16777215TiB, the largest size there is: write a smaller one")]
    TooLarge(String),
}

/// Reads a size in bytes, such as `512MiB`, `4GB`, `1048576` or `64 gib`.
///
/// `KiB` to `TiB` are powers of 1024, `KB` to `TB` powers of 1000; case does not matter. There are
/// no fractions: sizes become addresses, and have to be exact.
pub fn parse_bytes(text: &str) -> Result<u64, ParseBytesError> {
    let not_a_size = || ParseBytesError::NotASize(text.to_owned());
    let too_large = || ParseBytesError::TooLarge(text.to_owned());

    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(digits_end);
    let unit = unit.trim_start();
    let factor = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() || unit.eq_ignore_ascii_case("B") => 1,
        None => return Err(not_a_size()),
    };
    if digits.is_empty() {
        return Err(not_a_size());
    }
    // Only digits are left, so all that can go wrong is the magnitude.
    let count: u64 = digits.parse().map_err(|_| too_large())?;
    count.checked_mul(factor).ok_or_else(too_large)
}

/// Writes a size exactly, with the largest unit that leaves a whole number: `512MiB`, `4GB`,
/// `1000001B`.
///
/// [`parse_bytes`] reads it back to the same number.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    match unit {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("16KiB", 16 << 10),
            ("1GiB", 1 << 30),
            ("2tib", 2 << 40),
            ("4GB", 4_000_000_000),
            ("7 KB", 7_000),
            (" 1048576 ", 1 << 20),
            ("9B", 9),
            ("0", 0),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "GiB", "-1", "+1", "1.5GiB", "4G", "1 2", "1GiBs", "0x10", "1e9", "\u{661}"]
        {
            assert_eq!(parse_bytes(text), Err(ParseBytesError::NotASize(text.to_owned())));
        }
        for text in ["18446744073709551616", "16777216TiB", "99999999999999999999KB"] {
            assert_eq!(parse_bytes(text), Err(ParseBytesError::TooLarge(text.to_owned())));
        }
        let message = parse_bytes("12 parsecs").unwrap_err().to_string();
        assert!(message.contains("12 parsecs") && message.contains("512MiB"), "{message}");
        assert_eq!(format_bytes(3 << 29), "1536MiB");
        assert_eq!(format_bytes(4_000_000_000), "3906250KiB");
    }

    #[test]
    fn specs() {
        let check = |text: &str, path: &str, bytes: Option<u64>| {
            let spec: DeviceSpec = text.parse().unwrap();
            assert_eq!(spec, DeviceSpec { path: path.into(), bytes }, "{text}");
            assert_eq!(spec.to_string().parse::<DeviceSpec>().unwrap(), spec);
        };
        check("/dev/shm/maru:512MiB", "/dev/shm/maru", Some(512 << 20));
        check("/dev/dax0.0", "/dev/dax0.0", None);
        check("/a:b", "/a:b", None);
        check("/a:b:1GiB", "/a:b", Some(1 << 30));
        check("/a:1/b", "/a:1/b", None);
        for text in ["", ":1GiB"] {
            let error = text.parse::<DeviceSpec>().unwrap_err();
            assert!(error.to_string().contains("PATH[:SIZE]"));
        }
        for mistyped in ["/a:", "/a:8Q", "/a:-1", "/a:1.5GiB"] {
            let error = mistyped.parse::<DeviceSpec>().unwrap_err();
            assert!(matches!(error, DeviceSpecError::Size(_)), "{mistyped}");
        }
    }

    proptest! {
        #[test]
        fn formatted_sizes_read_back(bytes: u64, shift in 0_u32..64) {
            for bytes in [bytes, bytes >> shift, bytes << shift] {
                prop_assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
            }
        }

        #[test]
        fn any_text_is_answered(text in "\\PC*") {
            let _ = parse_bytes(&text);
            let _ = text.parse::<DeviceSpec>();
        }
    }
}
