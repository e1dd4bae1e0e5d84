//! Numbers as people read them.

/// What stands where a figure cannot be given.
pub(super) const NONE: &str = "n/a";

/// As a float, to compare and to draw.
#[expect(clippy::cast_precision_loss, reason = "read by people, to a few digits")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

/// `1,234,567`
pub(super) fn count(number: impl Into<i128>) -> String {
    let number: i128 = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    if number < 0 {
        text.push('-');
    }
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `26.3 %`, of a share of 1.
pub(super) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", share * 100.0) } else { NONE.to_owned() }
}

/// Three digits that matter, and no more places behind the point than that takes.
pub(super) fn digits(number: f64) -> String {
    match number.abs() {
        size if !size.is_finite() => NONE.to_owned(),
        size if size >= 99.95 => format!("{number:.0}"),
        size if size >= 9.995 => format!("{number:.1}"),
        0.0 => "0".to_owned(),
        _ => format!("{number:.2}"),
    }
}

/// The largest binary unit that the number fills, and its size in bytes.
pub(super) fn byte_unit(bytes: f64) -> (&'static str, f64) {
    let mut unit = ("B", 1.0);
    for name in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if bytes < unit.1 * 1024.0 {
            break;
        }
        unit = (name, unit.1 * 1024.0);
    }
    unit
}

/// `1.53 GiB`
pub(super) fn bytes(number: u64) -> String {
    let (name, size) = byte_unit(float(number));
    if name == "B" {
        return format!("{number} B");
    }
    format!("{} {name}", digits(float(number) / size))
}

/// `48.2 us` (with a micro sign), `1.20 ms`, `2.00 s`
pub(super) fn microseconds(number: f64) -> String {
    let (size, unit) = match number {
        small if small < 999.5 => (1.0, "\u{b5}s"),
        middle if middle < 999_500.0 => (1e3, "ms"),
        _ => (1e6, "s"),
    };
    if number.is_finite() { format!("{} {unit}", digits(number / size)) } else { NONE.to_owned() }
}

/// `48.2 s`, `58 min 57 s`, `3 h 5 min`
pub(super) fn seconds(number: f64) -> String {
    if !number.is_finite() {
        return NONE.to_owned();
    }
    if number < 100.0 {
        return format!("{} s", digits(number));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at least 100, and far below 2^53"
    )]
    let whole = number.round() as u64;
    let (hours, minutes) = (whole / 3_600, whole / 60 % 60);
    if hours > 0 {
        format!("{} h {minutes} min", count(hours))
    } else {
        format!("{minutes} min {} s", whole % 60)
    }
}

/// `2.4 times`, of two shares; `None` where the second is 0.
pub(super) fn times(first: f64, second: f64) -> Option<String> {
    let factor = first / second;
    factor.is_finite().then(|| format!("{factor:.1} times"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (-1_234_567, "-1,234,567")]
        {
            assert_eq!(count(number), text);
        }
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn sizes() {
        for (number, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.00 KiB"),
            (16 << 10, "16.0 KiB"),
            (250 << 20, "250 MiB"),
            (1_023 << 20, "1023 MiB"),
            (1_643_000_000, "1.53 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn times_of_day() {
        for (number, text) in [
            (0.0, "0 \u{b5}s"),
            (0.5, "0.50 \u{b5}s"),
            (48.24, "48.2 \u{b5}s"),
            (999.4, "999 \u{b5}s"),
            (999.9, "1.00 ms"),
            (12_340.0, "12.3 ms"),
            (2_000_000.0, "2.00 s"),
            (f64::NAN, NONE),
        ] {
            assert_eq!(microseconds(number), text);
        }
        for (number, text) in [
            (0.0, "0 s"),
            (48.24, "48.2 s"),
            (125.4, "2 min 5 s"),
            (3_599.7, "1 h 0 min"),
            (f64::INFINITY, NONE),
        ] {
            assert_eq!(seconds(number), text);
        }
    }

    #[test]
    fn shares() {
        assert_eq!(percent(0.263), "26.3 %");
        assert_eq!(percent(f64::NAN), NONE);
        assert_eq!(times(0.263, 0.110), Some("2.4 times".to_owned()));
        assert_eq!(times(0.263, 0.0), None);
        assert_eq!(times(0.0, 0.0), None);
    }
}
