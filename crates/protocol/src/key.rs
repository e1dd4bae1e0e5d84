//! The name of a chunk.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest key, in bytes. LMCache's key string is a model name, 8 hex digits, a chunk hash in
/// hex, a group and a salt of at most 128 characters: about 90 bytes, rarely over 300.
pub const KEY_LEN_MAX: usize = 1024;

/// What names a chunk: 1 to [`KEY_LEN_MAX`] bytes, opaque to the directory.
///
/// By custom the text `<model>@<kv rank, 8 hex digits>@<chunk hash, hex>@<object group>[@<salt>]`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key<'a>(&'a [u8]);

/// Why bytes are not a [`Key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key has at least one byte.
    #[error("a key must not be empty")]
    Empty,
    /// A key has at most [`KEY_LEN_MAX`] bytes.
    #[error("a key of {len} bytes is too long: at most {KEY_LEN_MAX} are allowed")]
    TooLong {
        /// The length that was given, in bytes.
        len: usize,
    },
}

impl<'a> Key<'a> {
    /// Takes `bytes` as a key.
    pub const fn new(bytes: &'a [u8]) -> Result<Self, KeyError> {
        match bytes.len() {
            0 => Err(KeyError::Empty),
            len if len > KEY_LEN_MAX => Err(KeyError::TooLong { len }),
            _ => Ok(Self(bytes)),
        }
    }

    /// The key's bytes.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// Printable text with everything else escaped, so that a key cannot send codes to a terminal.
impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl Serialize for Key<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = <&'a [u8]>::deserialize(deserializer)?;
        Self::new(bytes).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_to_1024_bytes() {
        assert_eq!(Key::new(b""), Err(KeyError::Empty));
        assert!(Key::new(b"k").is_ok());
        assert!(Key::new(&[7; KEY_LEN_MAX]).is_ok());
        assert_eq!(
            Key::new(&[7; KEY_LEN_MAX + 1]),
            Err(KeyError::TooLong { len: KEY_LEN_MAX + 1 })
        );
    }

    #[test]
    fn a_printed_key_holds_no_control_codes() {
        let shown = Key::new(b"m@\x1b[31m\n\xff").unwrap().to_string();
        assert_eq!(shown, r"m@\x1b[31m\n\xff");
    }
}
