//! How the proxy changes what passes through it.

use maru_protocol::{
    Answer, Body, CommitOutcome, FrameKind, HEADER_LEN, Handle, Location, ReserveOutcome,
};
use serde::{Deserialize, Serialize};

/// Added to an offset, it leads out of any pool.
const OUTSIDE: u64 = 1 << 62;

/// The length of the first frame in `bytes`, once all of it is there. What is no frame is passed on
/// as it comes.
pub(crate) fn frame_len(bytes: &[u8]) -> Option<usize> {
    // By the header alone, which never changes: there may be kinds that are not known here.
    let [m0, m1, _, _, len @ ..] = *bytes.first_chunk::<HEADER_LEN>()?;
    if [m0, m1] != *b"MR" {
        return Some(bytes.len());
    }
    let len = usize::try_from(u32::from_le_bytes(len)).ok()?.checked_add(HEADER_LEN)?;
    (bytes.len() >= len).then_some(len)
}

/// The message in a complete frame, if it is of this kind and known here.
pub(crate) fn read<'a, T: Deserialize<'a>>(kind: FrameKind, frame: &'a [u8]) -> Option<T> {
    let (header, body) = frame.split_first_chunk::<HEADER_LEN>()?;
    if header[3] == kind as u8 { maru_protocol::decode(body).ok() } else { None }
}

pub(crate) fn framed<T: Serialize>(kind: FrameKind, message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    maru_protocol::encode(kind, message, &mut out).expect("it came out of a frame of this size");
    out
}

/// Takes every second key out of an acquire. Returns how many keys the answer must tell of.
pub(crate) fn leave_out(body: &mut Body<'_>) -> usize {
    let Body::Acquire { keys, stop_at_miss, .. } = body else {
        panic!("only an acquire can be pinned in part");
    };
    if *stop_at_miss {
        // The second key is the first miss, and with it the end.
        keys.truncate(1);
        return keys.len();
    }
    let asked = keys.len();
    *keys = keys.iter().copied().step_by(2).collect();
    asked
}

/// Puts a miss where [`leave_out`] took a key out.
pub(crate) fn put_misses(answer: &mut Answer, asked: usize) {
    if let Answer::Acquired(found) = answer {
        for index in (1..asked).step_by(2) {
            found.insert(index, None);
        }
    }
}

/// Takes the last element of the answer's list away.
pub(crate) fn shorten(answer: &mut Answer) {
    match answer {
        Answer::Reserved(list) => drop(list.pop()),
        Answer::Committed(list) => drop(list.pop()),
        Answer::Contained(list) => drop(list.pop()),
        Answer::Acquired(list) => drop(list.pop()),
        Answer::Released(list) => drop(list.pop()),
        Answer::Deleted(list) => drop(list.pop()),
        Answer::Entries(page) => drop(page.entries.pop()),
        Answer::Holders(page) => drop(page.holders.pop()),
        Answer::Regions(list) => drop(list.pop()),
        _ => {}
    }
}

/// Moves the pages that the answer tells of out of the pool.
pub(crate) fn move_outside(answer: &mut Answer) {
    let outside = |location: &mut Location| location.handle.offset |= OUTSIDE;
    match answer {
        Answer::Reserved(outcomes) => {
            for outcome in outcomes {
                if let ReserveOutcome::Granted(location) = outcome {
                    outside(location);
                }
            }
        }
        Answer::Committed(outcomes) => {
            for outcome in outcomes {
                if let CommitOutcome::Committed(chunk) | CommitOutcome::Superseded(chunk) = outcome
                {
                    outside(&mut chunk.location);
                }
            }
        }
        Answer::Acquired(found) => {
            found.iter_mut().flatten().for_each(|chunk| outside(&mut chunk.location));
        }
        _ => {}
    }
}

/// Moves the pages that are given back to where the server knows them. Returns whether any was
/// moved.
pub(crate) fn move_back(body: &mut Body<'_>) -> bool {
    let mut moved = false;
    let mut inside = |handle: &mut Handle| {
        moved |= handle.offset & OUTSIDE != 0;
        handle.offset &= !OUTSIDE;
    };
    match body {
        Body::Commit { items, .. } => items.iter_mut().for_each(|item| inside(&mut item.handle)),
        Body::Abort { handles } | Body::Release { handles, .. } => {
            handles.iter_mut().for_each(inside);
        }
        Body::Claim { pins, reservations, .. } => {
            let pins = pins.iter_mut().map(|claim| &mut claim.handle);
            let reservations = reservations.iter_mut().map(|claim| &mut claim.handle);
            pins.chain(reservations).for_each(inside);
        }
        _ => {}
    }
    moved
}
