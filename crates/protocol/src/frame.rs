//! Framing: an 8-byte header, then one message in the postcard format.
//!
//! ```text
//! byte 0  'M'
//! byte 1  'R'
//! byte 2  protocol version
//! byte 3  kind (FrameKind)
//! byte 4  length of the body in bytes, u32 little-endian
//! byte 8  body
//! ```
//!
//! The header never changes between versions, so that any two releases can at least refuse each
//! other with a sentence.

use serde::{Deserialize, Serialize};

/// The protocol version of this release.
pub const VERSION: u8 = 3;

/// The length of a frame's header in bytes.
pub const HEADER_LEN: usize = 8;

/// The longest body this release sends or takes, in bytes: a full batch of 4096 keys of 1 KiB.
pub const FRAME_BYTES_MAX: u32 = 8 << 20;

const MAGIC: [u8; 2] = *b"MR";

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A [`crate::Hello`].
    Hello = 1,
    /// A [`crate::Welcome`].
    Welcome = 2,
    /// A [`crate::Request`].
    Request = 3,
    /// A [`crate::Reply`].
    Reply = 4,
    /// A [`crate::Refusal`] of the connection itself, which is closed after it.
    Refused = 5,
    /// A [`crate::Watch`].
    Watch = 6,
    /// An [`crate::Event`].
    Event = 7,
}

impl FrameKind {
    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Hello),
            2 => Some(Self::Welcome),
            3 => Some(Self::Request),
            4 => Some(Self::Reply),
            5 => Some(Self::Refused),
            6 => Some(Self::Watch),
            7 => Some(Self::Event),
            _ => None,
        }
    }
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The first bytes are not ours.
    #[error("not a Maru frame: it begins with {found:02x?}; does the peer speak Maru's protocol?")]
    Magic {
        /// The first two bytes.
        found: [u8; 2],
    },
    /// Another version of the protocol.
    #[error("a frame of protocol version {found}; this release speaks {VERSION}")]
    Version {
        /// The frame's version.
        found: u8,
    },
    /// No message has this kind.
    #[error("a frame of unknown kind {found}")]
    Kind {
        /// The kind's code.
        found: u8,
    },
    /// The frame is longer than is taken.
    #[error("a frame of {len} bytes is too long: at most {max} are taken")]
    TooLong {
        /// The length it declares.
        len: u32,
        /// The longest that is taken.
        max: u32,
    },
    /// The message inside cannot be read.
    #[error("the message in the frame cannot be read: {0}")]
    Body(postcard::Error),
    /// Bytes are left over behind the message.
    #[error("{0} bytes are left over behind the message in the frame")]
    LeftOver(usize),
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: FrameKind,
    /// The body's length in bytes.
    pub len: usize,
}

impl Header {
    /// Reads a header; `max` is the longest body taken, in bytes.
    pub fn parse(bytes: [u8; HEADER_LEN], max: u32) -> Result<Self, FrameError> {
        let [m0, m1, version, kind, len @ ..] = bytes;
        if [m0, m1] != MAGIC {
            return Err(FrameError::Magic { found: [m0, m1] });
        }
        if version != VERSION {
            return Err(FrameError::Version { found: version });
        }
        let kind = FrameKind::from_code(kind).ok_or(FrameError::Kind { found: kind })?;
        let len = u32::from_le_bytes(len);
        if len > max {
            return Err(FrameError::TooLong { len, max });
        }
        Ok(Self { kind, len: len as usize })
    }
}

/// One frame, still encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the body is.
    pub kind: FrameKind,
    /// The message, for [`decode`].
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Splits the first frame off `bytes`. `None` while it is incomplete; a wrong header is an
    /// error as soon as it is there. `max` is the longest body taken, in bytes.
    pub fn split(bytes: &'a [u8], max: u32) -> Result<Option<Self>, FrameError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let Header { kind, len } = Header::parse(*header, max)?;
        Ok(rest.get(..len).map(|body| Self { kind, body }))
    }

    /// The frame's length with its header, in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        HEADER_LEN + self.body.len()
    }
}

/// Reads a body that must be exactly one message.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(FrameError::Body)?;
    if rest.is_empty() { Ok(message) } else { Err(FrameError::LeftOver(rest.len())) }
}

/// Appends `message` as one frame to `out`. On an error `out` is as it was.
///
/// Fails with [`FrameError::TooLong`] where the message is larger than [`FRAME_BYTES_MAX`].
pub fn encode<T: Serialize>(
    kind: FrameKind,
    message: &T,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[MAGIC[0], MAGIC[1], VERSION, kind as u8, 0, 0, 0, 0]);
    if let Err(error) = postcard::to_io(message, &mut *out) {
        out.truncate(start);
        return Err(FrameError::Body(error));
    }
    let len = out.len() - start - HEADER_LEN;
    match u32::try_from(len) {
        Ok(len) if len <= FRAME_BYTES_MAX => {
            out[start + 4..start + HEADER_LEN].copy_from_slice(&len.to_le_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            Err(FrameError::TooLong { len, max: FRAME_BYTES_MAX })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Answer, Body, Checksum, Chunk, Event, Handle, Key, Location, PinClaim, Refusal, RegionId,
        Reply, Request, ReservationClaim, Secret, SessionId, Watch,
    };

    fn framed<T: Serialize>(kind: FrameKind, message: &T) -> Vec<u8> {
        let mut out = Vec::new();
        encode(kind, message, &mut out).unwrap();
        out
    }

    #[test]
    fn a_request_survives_the_journey() {
        let key = Key::new(b"model@00000000@ab@0").unwrap();
        let body = Body::Acquire { keys: vec![key, key], pins: 2, stop_at_miss: true };
        let request = Request { seq: 300, acked: 299, body };
        let bytes = framed(FrameKind::Request, &request);
        let frame = Frame::split(&bytes, FRAME_BYTES_MAX).unwrap().unwrap();
        assert_eq!(frame.kind, FrameKind::Request);
        assert_eq!(frame.len_bytes(), bytes.len());
        assert_eq!(decode::<Request<'_>>(frame.body).unwrap(), request);
    }

    /// The bytes on the wire, pinned: a change here is a new protocol version.
    #[test]
    fn the_bytes_are_as_documented() {
        let key = Key::new(b"k").unwrap();
        let body = Body::Contains { keys: vec![key] };
        let request = framed(FrameKind::Request, &Request { seq: 1, acked: 0, body });
        assert_eq!(request, b"MR\x03\x03\x06\0\0\0\x01\0\x04\x01\x01k");
        let refusal = Refusal::WindowFull { window: 64 };
        let reply = framed(FrameKind::Reply, &Reply { seq: 1, result: Err(refusal) });
        assert_eq!(reply, b"MR\x03\x04\x04\0\0\0\x01\x01\x07@");
        let reply = framed(FrameKind::Reply, &Reply { seq: 1, result: Ok(Answer::Done) });
        assert_eq!(reply, b"MR\x03\x04\x03\0\0\0\x01\0\0");
    }

    /// As above, of a chunk that is found, and of what a restored session claims.
    #[test]
    fn the_bytes_of_holdings_are_as_documented() {
        let handle =
            Handle { region: RegionId(1), offset: 4096, generation: crate::Generation(300) };
        let location = Location::new(handle, 7);
        let chunk = Chunk { location, checksum: Some(Checksum::new(0)), foreign: true };
        let found = Ok(Answer::Acquired(vec![Some(chunk), None]));
        let reply = framed(FrameKind::Reply, &Reply { seq: 1, result: found });
        assert_eq!(
            reply,
            b"MR\x03\x04\x0f\0\0\0\x01\0\x04\x02\x01\x01\x80 \xac\x02\x07\x01\x01\x01\0"
        );
        let pins = vec![PinClaim { handle, count: 2 }];
        let key = Key::new(b"k").unwrap();
        let reservation = ReservationClaim { handle, key, tag: 9, committing: Some(5) };
        let reservations = vec![reservation];
        let body = Body::Claim { pins, reservations, commits: vec![5], last: true };
        let claim = framed(FrameKind::Request, &Request { seq: 6, acked: 4, body });
        let bytes = b"MR\x03\x03\x18\0\0\0\x06\x04\x0f\
            \x01\x01\x80 \xac\x02\x02\x01\x01\x80 \xac\x02\x01k\x09\x01\x05\x01\x05\x01";
        assert_eq!(claim, bytes);
    }

    /// As above, of a connection that watches.
    #[test]
    fn the_bytes_of_events_are_as_documented() {
        let (session, secret) = (SessionId(300), Secret(*b"0123456789abcdef"));
        let watch = framed(FrameKind::Watch, &Watch { instance: "a", session, secret });
        assert_eq!(watch, b"MR\x03\x06\x14\0\0\0\x01a\xac\x020123456789abcdef");
        let event = |event: Event<'_>| framed(FrameKind::Event, &event);
        assert_eq!(event(Event::Watching { epoch: 5 }), b"MR\x03\x07\x02\0\0\0\0\x05");
        let keys = [b"k".as_slice(), b"key"].map(|bytes| Key::new(bytes).unwrap());
        let gone = event(Event::Gone { keys: keys.to_vec() });
        assert_eq!(gone, b"MR\x03\x07\x08\0\0\0\x01\x02\x01k\x03key");
        assert_eq!(event(Event::Resync { lost: 128 }), b"MR\x03\x07\x03\0\0\0\x02\x80\x01");
        let body = &gone[HEADER_LEN..];
        assert_eq!(decode::<Event<'_>>(body), Ok(Event::Gone { keys: keys.to_vec() }));
    }

    #[test]
    fn every_prefix_of_a_frame_is_incomplete() {
        let bytes = framed(FrameKind::Request, &Request { seq: 1, acked: 0, body: Body::Stats });
        for len in 0..bytes.len() {
            assert_eq!(Frame::split(&bytes[..len], FRAME_BYTES_MAX).unwrap(), None);
        }
    }

    #[test]
    fn a_wrong_header_is_refused_at_once() {
        let split = |bytes: &[u8]| Frame::split(bytes, 16).unwrap_err();
        assert_eq!(split(b"GET / HT"), FrameError::Magic { found: *b"GE" });
        assert_eq!(split(b"MR\x01\x03\0\0\0\0"), FrameError::Version { found: 1 });
        assert_eq!(split(b"MR\x03\x09\0\0\0\0"), FrameError::Kind { found: 9 });
        assert_eq!(split(b"MR\x03\x03\x11\0\0\0"), FrameError::TooLong { len: 17, max: 16 });
    }

    #[test]
    fn bytes_behind_the_message_are_refused() {
        assert_eq!(decode::<Request<'_>>(&[1, 0, 0, 9]), Err(FrameError::LeftOver(1)));
    }

    #[test]
    fn an_empty_or_overlong_key_does_not_decode() {
        assert!(matches!(decode::<Key<'_>>(&[0]), Err(FrameError::Body(_))));
        let mut long = vec![0x81, 0x08];
        long.resize(2 + 1025, b'k');
        assert!(matches!(decode::<Key<'_>>(&long), Err(FrameError::Body(_))));
    }

    #[test]
    fn a_message_too_large_leaves_the_buffer_alone() {
        let mut out = b"before".to_vec();
        let huge = vec![0_u8; FRAME_BYTES_MAX as usize + 1];
        let error = encode(FrameKind::Reply, &huge, &mut out).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { .. }));
        assert_eq!(out, b"before");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Frame::split(&bytes, 1 << 20);
            let _ = decode::<Request<'_>>(&bytes);
            let _ = decode::<Reply>(&bytes);
            let _ = decode::<crate::Hello<'_>>(&bytes);
            let _ = decode::<crate::Welcome>(&bytes);
            let _ = decode::<Watch<'_>>(&bytes);
            let _ = decode::<Event<'_>>(&bytes);
        }
    }
}
