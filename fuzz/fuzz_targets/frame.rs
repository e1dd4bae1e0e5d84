//! Bytes from outside: whatever reads as a message is written again to what reads as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use maru_protocol::{
    Event, FRAME_BYTES_MAX, Frame, FrameKind, HEADER_LEN, Hello, Refusal, Reply, Request, Watch,
    Welcome, decode, encode,
};

/// Reads `$body` as `$message`, writes it and reads it again.
macro_rules! round_trip {
    ($message:ty, $kind:expr, $body:expr) => {{
        let Ok(message) = decode::<$message>($body) else {
            return;
        };
        let mut bytes = Vec::new();
        encode($kind, &message, &mut bytes).expect("what was read can be written");
        let frame = Frame::split(&bytes, FRAME_BYTES_MAX).expect("the header is ours");
        let frame = frame.expect("the frame is whole");
        assert_eq!((frame.kind, frame.len_bytes()), ($kind, bytes.len()));
        assert!(
            frame.body.len() <= $body.len(),
            "the shortest form is written"
        );
        let again = decode::<$message>(frame.body).expect("what was written can be read");
        assert_eq!(message, again);
    }};
}

fuzz_target!(|bytes: &[u8]| {
    let (kind, body) = match Frame::split(bytes, FRAME_BYTES_MAX) {
        Ok(Some(frame)) => (frame.kind, frame.body),
        // A header is seldom guessed: any body is tried as what its first byte says.
        _ if bytes.len() > HEADER_LEN => (kind(bytes[0]), &bytes[1..]),
        _ => return,
    };
    match kind {
        FrameKind::Hello => round_trip!(Hello<'_>, kind, body),
        FrameKind::Welcome => round_trip!(Welcome, kind, body),
        FrameKind::Request => round_trip!(Request<'_>, kind, body),
        FrameKind::Reply => round_trip!(Reply, kind, body),
        FrameKind::Refused => round_trip!(Refusal, kind, body),
        FrameKind::Watch => round_trip!(Watch<'_>, kind, body),
        FrameKind::Event => round_trip!(Event<'_>, kind, body),
    }
});

fn kind(byte: u8) -> FrameKind {
    match byte % 7 {
        0 => FrameKind::Hello,
        1 => FrameKind::Welcome,
        2 => FrameKind::Request,
        3 => FrameKind::Reply,
        4 => FrameKind::Refused,
        5 => FrameKind::Watch,
        _ => FrameKind::Event,
    }
}
