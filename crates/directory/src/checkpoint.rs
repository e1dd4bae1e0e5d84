//! What a log of records can begin with: all that lasts, said again.

use maru_protocol::{Generation, Key};

use crate::Directory;
use crate::ids::{InstanceId, PageAt};
use crate::pages::{Page, PageState, Why};
use crate::record::{Record, append};
use crate::sessions::Phase;
use crate::stains::numbers;
use crate::writing::stored;

impl Directory {
    /// The records that make all that lasts, but for the chunks: what a log can begin with.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut add = |record: Record<'_>| append(&record, &mut bytes);
        add(Record::Withheld { withheld: self.is_withheld() });
        for (host, name) in (0..).zip(&self.sessions.hosts) {
            add(Record::Host { host, name });
        }
        for (index, instance) in &self.sessions.instances {
            let (number, budget_bytes) = (InstanceId::new(index).number(), instance.budget_bytes);
            add(Record::Instance { instance: number, name: &instance.name, budget_bytes });
        }
        let live = self.sessions.live.iter();
        for (id, session) in live.filter(|(_, session)| !session.leaves_nothing()) {
            add(session.record(*id));
            if matches!(session.phase, Phase::Ended(_)) {
                add(Record::Ended { session: *id });
            }
            let kept = session.replies.kept.iter().filter(|(_, kept)| kept.durable);
            kept.for_each(|(seq, kept)| add(kept.record(*id, *seq, session.replies.floor)));
        }
        let gone = self.sessions.vanished.iter();
        for (id, vanished) in gone.filter(|(id, _)| !self.sessions.live.contains_key(id)) {
            let session = *id;
            add(vanished.record(session));
            add(Record::Ended { session });
            if !vanished.unclaimed {
                add(Record::Drained { session });
            }
        }
        for (region, state) in (0..).zip(&self.pages.regions) {
            if state.page_bytes > 0 {
                add(Record::Cut { region, page_bytes: state.page_bytes });
            }
        }
        add(self.claims.record());
        for (page, hosts) in self.stains.iter().chain(self.stains.kept()) {
            let generation = self.pages.get(page).generation;
            add(Record::Stained { page, generation, hosts: numbers(hosts) });
        }
        // After what a page was stained with when it was granted.
        for (session, vanished) in &self.sessions.vanished {
            for page in &vanished.pages {
                let generation = self.pages.get(*page).generation;
                add(Record::Quarantined { page: *page, generation, session: *session });
            }
        }
        self.add_damaged(&mut add);
        bytes
    }

    fn add_damaged(&self, add: &mut impl FnMut(Record<'_>)) {
        if self.pages.reasons.damaged == 0 && self.ghosts.is_empty() {
            return;
        }
        for (region, state) in (0..).zip(&self.pages.regions) {
            for (index, page) in (0..).zip(&state.pages) {
                let damaged = match page.state {
                    PageState::Quarantined(why) => why == Why::Damaged,
                    PageState::Resident(entry) => self.ghosts.contains(&entry),
                    _ => false,
                };
                if damaged {
                    add(Record::Damaged { page: PageAt { region, index } });
                }
            }
        }
    }

    /// Appends the record of the chunk that is resident in a page, if it is of this generation.
    pub fn append_stored(&self, page: PageAt, generation: Generation, bytes: &mut Vec<u8>) {
        let here = self.pages.regions.get(page.region as usize);
        let here = here.and_then(|region| region.pages.get(page.index as usize));
        if let Some(Page { generation: now, state: PageState::Resident(entry) }) = here
            && *now == generation
            && !self.ghosts.contains(entry)
            && let entry = self.entries.get(*entry)
            && let (Some(resident), Ok(key)) = (&entry.resident, Key::new(&entry.key))
        {
            append(&stored(resident, generation, key), bytes);
        }
    }

    /// All chunks, as [`Directory::append_stored`] takes them.
    pub fn chunks(&self) -> impl Iterator<Item = (PageAt, Generation)> {
        let residents = self.entries.iter().filter_map(|(_, entry)| entry.resident);
        residents.map(|resident| (resident.page, self.pages.get(resident.page).generation))
    }
}
