//! Turns an [`Ask`] into the body of a request, with the keys and handles there are.

use maru_protocol::{
    Body, Checksum, CommitItem, Generation, Handle, Key, RegionId, Secret, SessionId,
};

use crate::op::{Ask, KEYS};
use crate::world::World;

impl World {
    pub(crate) fn body(&self, id: SessionId, ask: &Ask) -> Body<'static> {
        match ask {
            Ask::Renew => Body::Renew,
            Ask::Reserve { keys: chosen, size, tag, unless_being_written } => Body::Reserve {
                keys: keys(chosen),
                page_bytes: self.setup.size(*size),
                tag: u64::from(*tag % 2),
                unless_being_written: *unless_being_written,
            },
            Ask::Commit { handles, length, pins, names } => {
                let items = self.items(id, handles, *length);
                // Now and then one too few.
                let count =
                    names.map_or(0, |first| items.len().saturating_sub(usize::from(first == 99)));
                let first = names.unwrap_or_default();
                let names = (0..=u8::MAX).map(|n| first.wrapping_add(n)).take(count);
                let names: Vec<u8> = names.collect();
                let pins = pins_of(pins % 4 * (pins / 128));
                Body::Commit { items, pins, names: keys(&names) }
            }
            Ask::Abort { handles } => Body::Abort { handles: self.handles(id, handles, false) },
            Ask::Contains { keys: chosen } => Body::Contains { keys: keys(chosen) },
            Ask::Acquire { keys: chosen, pins, stop_at_miss } => Body::Acquire {
                keys: keys(chosen),
                pins: pins_of(*pins),
                stop_at_miss: *stop_at_miss,
            },
            Ask::Release { handles, pins } => {
                Body::Release { handles: self.handles(id, handles, true), pins: pins_of(*pins) }
            }
            Ask::Delete { keys: chosen } => Body::Delete { keys: keys(chosen) },
            Ask::Touch { keys: chosen } => Body::Touch { keys: keys(chosen) },
            Ask::Stats => Body::Stats,
            Ask::List { prefix, cursor, limit } => Body::List {
                prefix: [b"", &b"m"[..], b"n@", b"m@3", b"x"][usize::from(*prefix) % 5],
                cursor: cursor_of(*cursor),
                limit: u32::from(*limit),
            },
            Ask::Holders { cursor, limit } => {
                Body::Holders { cursor: cursor_of(*cursor), limit: u32::from(*limit) }
            }
            Ask::Regions => Body::Regions,
            Ask::Hosts => Body::Hosts,
            Ask::LetGo { session, right } => {
                let (session, secret) = self.any_session(*session).unwrap_or((id, Secret([7; 16])));
                let secret = if *right { secret } else { Secret([8; 16]) };
                Body::LetGo { session, secret }
            }
            Ask::Goodbye => Body::Goodbye,
            Ask::Suspect { handles } => {
                let pinned = handles.first().is_none_or(|choice| choice % 4 > 0);
                Body::Suspect { handles: self.handles(id, handles, pinned) }
            }
            Ask::Cleaned { pages } => Body::Cleaned { handles: self.stained(pages) },
            Ask::HostGone { host } => {
                Body::HostGone { host: ["moon", "mars", "venus"][usize::from(*host) % 3] }
            }
        }
    }

    fn items(&self, id: SessionId, chosen: &[u8], length: u8) -> Vec<CommitItem> {
        let handles = self.handles(id, chosen, false);
        let page_bytes = |handle: &Handle| {
            let session = self.model.sessions.get(&id);
            let held = session.and_then(|s| s.reservations.get(&handle.generation));
            held.map_or(4096, |held| held.page_bytes)
        };
        let item = |handle: Handle| CommitItem {
            length: match length {
                0 => 0,
                1 => page_bytes(&handle) + 1,
                2 => u64::MAX,
                3..100 => u64::from(length),
                _ => page_bytes(&handle),
            },
            handle,
            checksum: (length % 2 == 1).then(|| Checksum::new(length.into())),
        };
        handles.into_iter().map(item).collect()
    }

    /// Stained pages, and now and then others.
    fn stained(&self, chosen: &[u8]) -> Vec<Handle> {
        let stained: Vec<Handle> = self.model.stains.values().map(|stain| stain.handle).collect();
        let any = stained.iter().chain(&self.handles);
        let any: Vec<Handle> = any.copied().collect();
        let pick = |choice: &u8| {
            let among = if *choice < 200 && !stained.is_empty() { &stained } else { &any };
            among.get(usize::from(*choice).checked_rem(among.len())?).copied()
        };
        chosen.iter().filter_map(pick).collect()
    }

    /// Handles: mostly the session's own reservations or pins, else any, stale and foreign ones
    /// included, or made up.
    fn handles(&self, id: SessionId, chosen: &[u8], pinned: bool) -> Vec<Handle> {
        let session = self.model.sessions.get(&id);
        let own: Vec<Handle> = match session {
            None => Vec::new(),
            Some(session) if pinned => {
                let entries = session.pins.keys().map(|key| self.model.entries[key].handle);
                let ghosts = session.ghosts.keys().map(|ghost| self.model.ghosts[ghost].handle);
                entries.chain(ghosts).collect()
            }
            Some(session) => session.reservations.values().map(|held| held.handle).collect(),
        };
        let made_up = Handle { region: RegionId(0), offset: 0, generation: Generation(0) };
        let pick = |choice: &u8| {
            let place = usize::from(*choice);
            if *choice < 180 && !own.is_empty() {
                return own[place % own.len()];
            }
            let recent = self.handles.iter().rev().nth(place % self.handles.len().max(1));
            let mut handle = recent.copied().unwrap_or(made_up);
            match choice {
                255 => handle.generation.0 = handle.generation.0.wrapping_add(1),
                254 => handle.offset = handle.offset.wrapping_sub(4096),
                253 => handle.region.0 = handle.region.0.wrapping_sub(1),
                252 => handle.offset += 1,
                _ => {}
            }
            handle
        };
        chosen.iter().map(pick).collect()
    }
}

fn keys(chosen: &[u8]) -> Vec<Key<'static>> {
    // A few keys are asked for much more often, so that sessions meet at them.
    let place = |choice: usize| {
        if choice < 70 { choice % 4 } else { choice % KEYS.len() }
    };
    let key = |choice: &u8| Key::new(KEYS[place(usize::from(*choice))]).expect("it is short");
    chosen.iter().map(key).collect()
}

/// Mostly few; rarely none, more than a session may hold at last, or more than at all.
fn pins_of(choice: u8) -> u32 {
    match choice {
        0..240 => 1 + u32::from(choice) % 3,
        240..248 => 0,
        248..252 => 1 << 20,
        _ => u32::MAX - u32::from(choice),
    }
}

fn cursor_of(choice: u8) -> u64 {
    match choice {
        0..128 => 0,
        255 => u64::MAX,
        _ => u64::from(choice) - 128,
    }
}
