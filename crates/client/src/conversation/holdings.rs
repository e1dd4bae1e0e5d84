//! What a session holds, as the instance knows it: a server that was restarted has to be told.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use maru_protocol::{
    Answer, Body, Chunk, CommitOutcome, Handle, Key, PinClaim, ReleaseOutcome, ReservationClaim,
    ReserveOutcome,
};

/// What the answers that came have granted, and not taken back.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// By generation, which no two pages share.
    pins: HashMap<u64, PinClaim, FixedState>,
    reservations: HashMap<u64, Reservation, FixedState>,
}

#[derive(Debug)]
struct Reservation {
    handle: Handle,
    key: Box<[u8]>,
    tag: u64,
}

/// Some of what is held, as much as one request can have.
#[derive(Debug, Default)]
pub(super) struct Claim<'a> {
    pub(super) pins: Vec<PinClaim>,
    pub(super) reservations: Vec<ReservationClaim<'a>>,
}

impl Holdings {
    /// Whether the answer to such a request changes what is held, and does not say it all by itself.
    pub(super) const fn matter(body: &Body<'_>) -> bool {
        matches!(
            body,
            Body::Reserve { .. }
                | Body::Commit { .. }
                | Body::Abort { .. }
                | Body::Release { .. }
                | Body::Suspect { .. }
        )
    }

    /// The request was answered.
    pub(super) fn book(&mut self, body: &Body<'_>, answer: &Answer) {
        match (body, answer) {
            (Body::Reserve { keys, tag, .. }, Answer::Reserved(outcomes)) => {
                for (key, outcome) in keys.iter().zip(outcomes) {
                    if let ReserveOutcome::Granted(location) = outcome {
                        let (handle, key) = (location.handle, key.bytes().into());
                        let reservation = Reservation { handle, key, tag: *tag };
                        self.reservations.insert(handle.generation.0, reservation);
                    }
                }
            }
            (Body::Commit { items, pins, .. }, Answer::Committed(outcomes)) => {
                for (item, outcome) in items.iter().zip(outcomes) {
                    if *outcome != CommitOutcome::BadLength {
                        self.reservations.remove(&item.handle.generation.0);
                    }
                    if let CommitOutcome::Committed(chunk) | CommitOutcome::Superseded(chunk) =
                        outcome
                    {
                        self.pin(chunk.location.handle, *pins);
                    }
                }
            }
            (Body::Abort { handles }, Answer::Released(_))
            | (Body::Suspect { handles }, Answer::Done) => {
                for handle in handles {
                    self.reservations.remove(&handle.generation.0);
                }
            }
            (Body::Release { handles, pins }, Answer::Released(outcomes)) => {
                for (handle, outcome) in handles.iter().zip(outcomes) {
                    if *outcome == ReleaseOutcome::Released {
                        self.unpin(*handle, *pins);
                    }
                }
            }
            _ => {}
        }
    }

    /// An acquire with so many pins was answered.
    pub(super) fn acquired(&mut self, found: &[Option<Chunk>], pins: u32) {
        found.iter().flatten().for_each(|chunk| self.pin(chunk.location.handle, pins));
    }

    fn pin(&mut self, handle: Handle, count: u32) {
        if count > 0 {
            let new = PinClaim { handle, count: 0 };
            self.pins.entry(handle.generation.0).or_insert(new).count += count;
        }
    }

    fn unpin(&mut self, handle: Handle, count: u32) {
        if let Some(held) = self.pins.get_mut(&handle.generation.0) {
            held.count = held.count.saturating_sub(count);
            if held.count == 0 {
                self.pins.remove(&handle.generation.0);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// All pins: where, and how many.
    pub(super) fn pins(&self) -> impl Iterator<Item = PinClaim> {
        self.pins.values().copied()
    }

    /// All reservations.
    pub(super) fn reservations(&self) -> impl Iterator<Item = Handle> {
        self.reservations.values().map(|reservation| reservation.handle)
    }

    /// All of it, in parts of at most `max`; one part at least. `committing` tells in which request,
    /// without an answer yet, a reserved page is to be committed.
    pub(super) fn claims(
        &self,
        max: usize,
        committing: impl Fn(Handle) -> Option<u64>,
    ) -> Vec<Claim<'_>> {
        let mut parts = vec![Claim::default()];
        let mut room = max;
        let mut next = |parts: &mut Vec<Claim<'_>>| {
            if room == 0 {
                parts.push(Claim::default());
                room = max;
            }
            room -= 1;
        };
        for pin in self.pins() {
            next(&mut parts);
            parts.last_mut().expect("there is one").pins.push(pin);
        }
        for reservation in self.reservations.values() {
            let Ok(key) = Key::new(&reservation.key) else { continue };
            let (handle, tag) = (reservation.handle, reservation.tag);
            let committing = committing(handle);
            next(&mut parts);
            let part = parts.last_mut().expect("there is one");
            part.reservations.push(ReservationClaim { handle, key, tag, committing });
        }
        parts
    }
}
