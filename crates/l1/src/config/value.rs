//! Values as people write them. What is refused here is no such value at all; whether one is in its
//! range is for [`L1ManagerConfig::check`](super::L1ManagerConfig::check).

use std::path::PathBuf;
use std::time::Duration;

use maru_client::Verify;
use maru_protocol::Endpoint;

use super::EvictionPolicyKind;

/// Bytes of a GB on the command line, as LMCache counts them.
const GB: f64 = 1_073_741_824.0;

// What settings must be, for the parser and the check of its range alike.
pub(super) const GIGABYTES: &str = "a number of GB above 0 and at most 131072, such as 8";
pub(super) const SECONDS: &str = "a number of seconds above 0 and at most 31536000, such as 300";
pub(super) const MILLISECONDS: &str = "a whole number of milliseconds, 1 to 86400000";
pub(super) const IN_FLIGHT: &str = "a whole number of requests, 1 to 65536";
pub(super) const ALIGN: &str = "a power of two of bytes, 1 to 2097152, such as 4096";
pub(super) const SHARE: &str = "0 to 1";
pub(super) const NAME: &str = "1 to 128 bytes of text without control characters";
pub(super) const LIBRARY: &str = "an absolute path, such as /usr/lib/libvisibility.so";
const VERIFY: &str = "off, sample or always";
const SWITCH: &str = "true or false";
const POLICY: &str = "LRU, S3-FIFO, ARC, IsolatedLRU, noop or none";
const SERVER: &str = "a server's address: maru://HOST:PORT, tcp://HOST:PORT, unix:///PATH or \
                      /PATH, without a user or password";

/// A parsed value, or what must be there instead.
type Parsed<T> = Result<T, &'static str>;

/// A size in GB, as bytes.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both saturate")]
pub(super) fn gigabytes(text: &str) -> Parsed<u64> {
    let gigabytes: f64 = text.trim().parse().map_err(|_| GIGABYTES)?;
    if gigabytes >= 0.0 { Ok((gigabytes * GB) as u64) } else { Err(GIGABYTES) }
}

/// The other way round, for messages.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn in_gigabytes(bytes: u64) -> f64 {
    bytes as f64 / GB
}

/// A time in seconds.
pub(super) fn seconds(text: &str) -> Parsed<Duration> {
    let seconds = text.trim().parse().map_err(|_| SECONDS)?;
    Duration::try_from_secs_f64(seconds).map_err(|_| SECONDS)
}

/// A time in milliseconds.
pub(super) fn milliseconds(text: &str) -> Parsed<Duration> {
    text.trim().parse().map(Duration::from_millis).map_err(|_| MILLISECONDS)
}

/// A number of requests.
pub(super) fn in_flight(text: &str) -> Parsed<u32> {
    text.trim().parse().map_err(|_| IN_FLIGHT)
}

/// A number of bytes.
pub(super) fn align(text: &str) -> Parsed<u64> {
    text.trim().parse().map_err(|_| ALIGN)
}

/// A part of the whole.
pub(super) fn share(text: &str) -> Parsed<f64> {
    text.trim().parse().map_err(|_| SHARE)
}

/// On or off.
pub(super) fn switch(text: &str) -> Parsed<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(SWITCH),
    }
}

/// A policy, and whether its name says that salts are isolated.
pub(super) fn policy(text: &str) -> Parsed<(EvictionPolicyKind, bool)> {
    match text.trim().to_ascii_lowercase().as_str() {
        "lru" => Ok((EvictionPolicyKind::Lru, false)),
        "isolatedlru" => Ok((EvictionPolicyKind::Lru, true)),
        "s3-fifo" | "s3fifo" => Ok((EvictionPolicyKind::S3Fifo, false)),
        "arc" => Ok((EvictionPolicyKind::Arc, false)),
        "noop" | "none" => Ok((EvictionPolicyKind::None, false)),
        _ => Err(POLICY),
    }
}

/// An instance's or host's name. Any text is one until its range is checked.
#[expect(clippy::unnecessary_wraps, reason = "one of the parsers")]
pub(super) fn name(text: &str) -> Parsed<String> {
    Ok(text.to_owned())
}

/// A library's path, likewise.
#[expect(clippy::unnecessary_wraps, reason = "one of the parsers")]
pub(super) fn library(text: &str) -> Parsed<PathBuf> {
    Ok(text.into())
}

/// Which chunks are verified.
pub(super) fn verify(text: &str) -> Parsed<Verify> {
    match text.trim().to_ascii_lowercase().as_str() {
        "off" => Ok(Verify::Off),
        "sample" => Ok(Verify::Sample),
        "always" => Ok(Verify::Always),
        _ => Err(VERIFY),
    }
}

/// A server's address. A password in it would reach logs, and no server asks for one. A path begins
/// like one, so that a host and port without a scheme are not taken for it.
pub(super) fn server(text: &str) -> Parsed<Endpoint> {
    let text = text.trim();
    if !text.contains("://") && !text.starts_with(['/', '.']) {
        return Err(SERVER);
    }
    match text.parse() {
        Ok(Endpoint::Tcp(address)) if address.contains('@') => Err(SERVER),
        Ok(endpoint) => Ok(endpoint),
        Err(_) => Err(SERVER),
    }
}

/// A refused value as messages show it: on one line, not too long, and of an address neither what
/// could be a user and password nor a query.
pub(super) fn shown(text: &str, is_address: bool) -> String {
    const SHOWN_MAX: usize = 100;
    let mut text = text.to_owned();
    if is_address {
        if let Some(query) = text.find(['?', '#']) {
            text.replace_range(query.., "...");
        }
        if let Some(at) = text.rfind('@') {
            let scheme = text[..at].find("://").map_or(0, |end| end + 3);
            let user = if text[..scheme].contains('@') { 0 } else { scheme };
            text.replace_range(user..at, "...");
        }
    }
    if let Some((cut, _)) = text.char_indices().nth(SHOWN_MAX) {
        text.replace_range(cut.., "...");
    }
    if text.is_empty() || text.contains(|c: char| !c.is_ascii_graphic()) {
        return format!("{text:?}");
    }
    text
}
