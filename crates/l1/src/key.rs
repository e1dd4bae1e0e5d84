//! Names of chunks, as LMCache makes them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use maru_protocol::{KEY_LEN_MAX, Key};

/// The most characters of a cache salt.
const SALT_CHARS_MAX: usize = 128;

/// Which part of a model's KV a chunk holds: the place of one worker in a parallel setup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KvRank(pub u64);

impl KvRank {
    /// Packs world size, global rank, local world size and local rank, eight bits each.
    #[must_use]
    pub const fn pack(world_size: u8, rank: u8, local_world_size: u8, local_rank: u8) -> Self {
        Self(u32::from_be_bytes([world_size, rank, local_world_size, local_rank]) as u64)
    }

    /// The world size that [`KvRank::pack`] was given: tensor times pipeline parallel.
    #[must_use]
    pub const fn world_size(self) -> u64 {
        (self.0 >> 24) & 0xff
    }
}

/// At least eight hexadecimal digits.
impl fmt::Display for KvRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// The name of one chunk: `ObjectKey`. Cheap to clone.
///
/// It is kept as its key string, `<model>@<kv rank>@<chunk hash in hex>@<object group>[@<salt>]`,
/// under which the directory and every other tier know the chunk. The rules below make that string
/// unambiguous, so equal strings are equal keys.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    text: Arc<str>,
}

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// `@` ends the model's name in a key string.
    #[error("the model name {0:?} has an '@': key strings are split there; rename the model")]
    ModelName(String),
    /// `@` is the separator; slashes and NUL would end up in file names.
    #[error("the cache salt {salt:?} has a {found:?}: it may have neither '@', '/', '\\' nor NUL")]
    SaltChar {
        /// The salt.
        salt: String,
        /// The first character that may not be in it.
        found: char,
    },
    /// The salt is too long for a file name.
    #[error("the cache salt has {0} characters, more than {SALT_CHARS_MAX}")]
    SaltLength(usize),
    /// The whole key string is longer than the directory takes.
    #[error("the key string has {0} bytes, more than 1024: shorten the model's name")]
    TooLong(usize),
    /// A key string that no key has.
    #[error("{0:?} is no key: <model>@<kv rank>@<chunk hash in hex>@<object group>[@<salt>]")]
    Malformed(String),
}

impl ObjectKey {
    /// Names the chunk with this content hash of one model, rank and object group. `salt` keeps the
    /// chunks of one user from all others; empty for none.
    pub fn new(
        model: &str,
        rank: KvRank,
        chunk_hash: &[u8],
        group: u32,
        salt: &str,
    ) -> Result<Self, KeyError> {
        if model.contains('@') {
            return Err(KeyError::ModelName(model.to_owned()));
        }
        if let Some(found) = salt.chars().find(|c| matches!(c, '@' | '/' | '\\' | '\0')) {
            return Err(KeyError::SaltChar { salt: salt.to_owned(), found });
        }
        let salt_chars = salt.chars().count();
        if salt_chars > SALT_CHARS_MAX {
            return Err(KeyError::SaltLength(salt_chars));
        }
        let separator = if salt.is_empty() { "" } else { "@" };
        let text = format!("{model}@{rank}@{}@{group}{separator}{salt}", Hex(chunk_hash));
        if text.len() > KEY_LEN_MAX {
            return Err(KeyError::TooLong(text.len()));
        }
        Ok(Self { text: text.into() })
    }

    /// The key string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The key as the directory takes it.
    #[must_use]
    pub fn wire(&self) -> Key<'_> {
        Key::new(self.text.as_bytes()).expect("checked when it was made: 1 to 1024 bytes")
    }

    /// The fields: model, rank, hash, group and salt.
    fn fields(&self) -> [&str; 5] {
        let mut fields = self.text.split('@');
        std::array::from_fn(|_| fields.next().unwrap_or_default())
    }

    /// The model's name.
    #[must_use]
    pub fn model(&self) -> &str {
        self.fields()[0]
    }

    /// Which part of the KV it is.
    #[must_use]
    pub fn kv_rank(&self) -> KvRank {
        KvRank(u64::from_str_radix(self.fields()[1], 16).unwrap_or_default())
    }

    /// The hash of the chunk's content and of all before it.
    #[must_use]
    pub fn chunk_hash(&self) -> Vec<u8> {
        let hex = self.fields()[2].as_bytes();
        let digit = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default();
        let byte = |pair: &[u8]| u8::try_from(digit(pair[0]) << 4 | digit(pair[1])).unwrap_or(0);
        hex.chunks_exact(2).map(byte).collect()
    }

    /// The object group: which of a model's kinds of KV.
    #[must_use]
    pub fn group(&self) -> u32 {
        self.fields()[3].parse().unwrap_or_default()
    }

    /// The cache salt; empty for none.
    #[must_use]
    pub fn salt(&self) -> &str {
        self.fields()[4]
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Takes exactly what [`ObjectKey::as_str`] gives: one string a key.
impl FromStr for ObjectKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let malformed = || KeyError::Malformed(text.to_owned());
        let fields: Vec<&str> = text.split('@').collect();
        let (model, rank, hash, group, salt) = match fields[..] {
            [model, rank, hash, group] => (model, rank, hash, group, ""),
            [model, rank, hash, group, salt] => (model, rank, hash, group, salt),
            _ => return Err(malformed()),
        };
        let rank = u64::from_str_radix(rank, 16).map_err(|_| malformed())?;
        let group = group.parse().map_err(|_| malformed())?;
        if !hash.len().is_multiple_of(2) || !hash.is_ascii() {
            return Err(malformed());
        }
        let byte = |at: usize| u8::from_str_radix(&hash[at..at + 2], 16).map_err(|_| malformed());
        let hash: Vec<u8> = (0..hash.len()).step_by(2).map(byte).collect::<Result<_, _>>()?;
        let key = Self::new(model, KvRank(rank), &hash, group, salt)?;
        // Capitals, leading zeros and signs would be other names for the same chunk.
        if key.as_str() == text { Ok(key) } else { Err(malformed()) }
    }
}

/// Bytes as hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_key_string_is_lmcaches() {
        let rank = KvRank::pack(8, 5, 4, 1);
        let key = ObjectKey::new("org/model-7b", rank, &[0xc0, 0xff, 0x0e], 3, "tenant").unwrap();
        assert_eq!(key.as_str(), "org/model-7b@08050401@c0ff0e@3@tenant");
        assert_eq!(rank.world_size(), 8);
        let bare = ObjectKey::new("m", KvRank(0), &[], 0, "").unwrap();
        assert_eq!(bare.as_str(), "m@00000000@@0");
        // LMCache does not keep ranks to 32 bits: a world of 512 has nine digits.
        let wide = ObjectKey::new("m", KvRank(512 << 24), &[1], 0, "").unwrap();
        assert_eq!(wide.as_str(), "m@200000000@01@0");
        assert_eq!(wide.as_str().parse(), Ok(wide));
    }

    #[test]
    fn what_would_make_keys_ambiguous_is_refused() {
        let new = |model: &str, salt: &str| ObjectKey::new(model, KvRank(0), &[1], 0, salt);
        assert_eq!(new("a@b", ""), Err(KeyError::ModelName("a@b".to_owned())));
        for found in ['@', '/', '\\', '\0'] {
            let salt = format!("x{found}y");
            assert_eq!(new("a", &salt), Err(KeyError::SaltChar { salt: salt.clone(), found }));
        }
        assert!(new("a", &"\u{e9}".repeat(128)).is_ok());
        assert_eq!(new("a", &"s".repeat(129)), Err(KeyError::SaltLength(129)));
        assert_eq!(new(&"m".repeat(1011), ""), Err(KeyError::TooLong(1025)));
    }

    #[test]
    fn only_the_one_spelling_is_a_key() {
        for text in [
            "",
            "m",
            "m@0@01@0",
            "m@00000000@1@0",
            "m@00000000@0g@0",
            "m@00000000@AB@0",
            "m@0000000A@ab@0",
            "m@00000000@ab@+1",
            "m@00000000@ab@01",
            "m@00000000@ab@0@",
            "m@00000000@ab@0@s@t",
            "m@00000000@\u{e9}@0",
        ] {
            assert!(text.parse::<ObjectKey>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn the_string_and_the_fields_are_the_same_key(
            model in "[a-zA-Z0-9/._ -]{0,40}",
            rank in any::<u64>(),
            hash in proptest::collection::vec(any::<u8>(), 0..40),
            group in any::<u32>(),
            salt in "[^@/\\\\\0]{0,20}",
        ) {
            let key = ObjectKey::new(&model, KvRank(rank), &hash, group, &salt).unwrap();
            prop_assert_eq!(key.as_str().parse::<ObjectKey>().unwrap(), key.clone());
            prop_assert_eq!(key.model(), model);
            prop_assert_eq!(key.kv_rank(), KvRank(rank));
            prop_assert_eq!(key.chunk_hash(), hash);
            prop_assert_eq!(key.group(), group);
            prop_assert_eq!(key.salt(), salt);
        }

        #[test]
        fn no_string_makes_it_panic(text in "\\PC{0,60}") {
            let _ = text.parse::<ObjectKey>();
        }
    }
}
