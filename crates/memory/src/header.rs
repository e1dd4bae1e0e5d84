//! The identity header: what makes a piece of memory a device of a pool, and which one.
//!
//! It lies at offset 0. The bytes up to [`DATA_START`] belong to it and are zero after its end;
//! pages start behind them. 2 MiB, so that pages stay aligned for huge page mappings. All numbers
//! are little-endian:
//!
//! ```text
//! offset  bytes  what
//!      0      8  magic, "MARUPOOL"
//!      8      4  format version, 2
//!     12      4  the last epoch that it was served in; 0 before the first
//!     16     16  UUID of the device, in the byte order of RFC 9562
//!     32      8  size of the device in bytes, this header included
//!     40      8  offset at which pages start, 2097152
//!     48      8  creation time, milliseconds since 1970-01-01 UTC
//!     56      4  1 from when a server takes it until it lets go with nobody writing; else 0
//!     60      4  CRC-32 (the one of zlib) of bytes 0 to 59
//! ```
//!
//! It fills one cache line, so it reaches other hosts whole or not at all. The checksum is there
//! for torn and stray writes, not against malice, and CRC-32 is what every script language can
//! compute.

use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offset in bytes at which the pages of a device start; what lies before belongs to its header.
pub const DATA_START: u64 = 2 << 20;

/// The version of the header format that this program writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 2;

pub(crate) const HEADER_LEN: usize = size_of::<Layout>();

const MAGIC: [u8; 8] = *b"MARUPOOL";

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Layout {
    magic: [u8; 8],
    version: U32,
    epoch: U32,
    uuid: [u8; 16],
    device_bytes: U64,
    data_start: U64,
    created_unix_ms: U64,
    in_service: U32,
    checksum: U32,
}

const _: () = assert!(size_of::<Layout>() == 64);

/// What a valid header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) uuid: Uuid,
    pub(crate) device_bytes: u64,
    pub(crate) created_unix_ms: u64,
    pub(crate) epoch: u32,
    pub(crate) in_service: bool,
}

/// Why the first bytes of a device are not the header of a pool that this program can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The magic bytes are missing.
    #[error("it is not a Maru pool: make it one with `maru pool init`")]
    NotAPool,
    /// Another version of Maru made it.
    #[error(
        "its pool format is version {found}, this program reads version {supported}: use the \
         `maru` that made it, or make it anew with `maru pool init --overwrite`"
    )]
    WrongVersion {
        /// The version in the header.
        found: u32,
        /// The version that this program reads.
        supported: u32,
    },
    /// The header contradicts itself.
    #[error(
        "its pool header is corrupt ({what}): nothing in it can be trusted; make it anew with \
         `maru pool init --overwrite`"
    )]
    Corrupt {
        /// Which check failed.
        what: &'static str,
    },
    /// The device is smaller than it was when it was made.
    #[error(
        "it has {file_has} bytes, its pool header says {header_says}: it was cut off or copied in \
         part; bring it back whole, or make it anew with `maru pool init --overwrite`"
    )]
    Truncated {
        /// Size in bytes when it was made.
        header_says: u64,
        /// Size in bytes now.
        file_has: u64,
    },
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut layout = Layout {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            epoch: self.epoch.into(),
            uuid: self.uuid.into_bytes(),
            device_bytes: self.device_bytes.into(),
            data_start: DATA_START.into(),
            created_unix_ms: self.created_unix_ms.into(),
            in_service: u32::from(self.in_service).into(),
            checksum: 0.into(),
        };
        layout.checksum = layout.computed_checksum().into();
        zerocopy::transmute!(layout)
    }

    /// Checks everything that the bytes alone can show. The version comes before the checksum,
    /// since a later version may keep its checksum elsewhere.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let layout: Layout = zerocopy::transmute!(*bytes);
        if layout.magic != MAGIC {
            return Err(HeaderError::NotAPool);
        }
        if layout.version != FORMAT_VERSION {
            let (found, supported) = (layout.version.get(), FORMAT_VERSION);
            return Err(HeaderError::WrongVersion { found, supported });
        }
        let checks = [
            (layout.checksum == layout.computed_checksum(), "its checksum does not match"),
            (layout.in_service.get() <= 1, "it says neither that it is served nor that it is not"),
            (layout.data_start == DATA_START, "its pages do not start at 2 MiB"),
            (layout.device_bytes > DATA_START, "its size leaves no room for pages"),
        ];
        if let Some((_, what)) = checks.into_iter().find(|(holds, _)| !holds) {
            return Err(HeaderError::Corrupt { what });
        }
        Ok(Self {
            uuid: Uuid::from_bytes(layout.uuid),
            device_bytes: layout.device_bytes.get(),
            created_unix_ms: layout.created_unix_ms.get(),
            epoch: layout.epoch.get(),
            in_service: layout.in_service.get() == 1,
        })
    }
}

impl Layout {
    fn computed_checksum(&self) -> u32 {
        let bytes = self.as_bytes();
        crc32fast::hash(&bytes[..bytes.len() - size_of::<U32>()])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Header {
        Header {
            uuid: Uuid::from_u128(0x1234_5678),
            device_bytes: 8 << 20,
            created_unix_ms: 99,
            epoch: 7,
            in_service: true,
        }
    }

    /// The example with one field changed and the checksum put right.
    fn forged(change: impl FnOnce(&mut Layout)) -> [u8; HEADER_LEN] {
        let mut layout: Layout = zerocopy::transmute!(example().encode());
        change(&mut layout);
        layout.checksum = layout.computed_checksum().into();
        zerocopy::transmute!(layout)
    }

    #[test]
    fn bytes_are_where_the_table_says() {
        let bytes = example().encode();
        assert_eq!(&bytes[0..8], b"MARUPOOL");
        assert_eq!(bytes[8..16], [2, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78]);
        assert_eq!(bytes[32..40], [0, 0, 0x80, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[40..48], [0, 0, 0x20, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[48..60], [99, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[60..64], crc32fast::hash(&bytes[..60]).to_le_bytes());
        assert_eq!(Header::decode(&bytes), Ok(example()));
    }

    #[test]
    fn each_lie_has_its_error() {
        let decode = |bytes: [u8; HEADER_LEN]| Header::decode(&bytes).unwrap_err();
        assert_eq!(decode([0; HEADER_LEN]), HeaderError::NotAPool);
        assert_eq!(
            decode(forged(|layout| layout.version = 1.into())),
            HeaderError::WrongVersion { found: 1, supported: 2 }
        );
        for bytes in [
            forged(|layout| layout.in_service = 2.into()),
            forged(|layout| layout.data_start = 4096.into()),
            forged(|layout| layout.device_bytes = DATA_START.into()),
        ] {
            assert!(matches!(decode(bytes), HeaderError::Corrupt { .. }));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(mut bytes: [u8; HEADER_LEN], keep in 0_usize..=16) {
            bytes[..keep].copy_from_slice(&example().encode()[..keep]);
            let _ = Header::decode(&bytes);
        }

        #[test]
        fn one_flipped_bit_is_seen(at in 0..HEADER_LEN, bit in 0_u32..8) {
            let mut bytes = example().encode();
            bytes[at] ^= 1 << bit;
            prop_assert!(Header::decode(&bytes).is_err());
        }

        #[test]
        fn headers_read_back(
            uuid: u128,
            device_bytes in DATA_START + 1..,
            created_unix_ms: u64,
            epoch: u32,
            in_service: bool,
        ) {
            let uuid = Uuid::from_u128(uuid);
            let header = Header { uuid, device_bytes, created_unix_ms, epoch, in_service };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }
}
