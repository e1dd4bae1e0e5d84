//! What must outlive the server, record by record.
//!
//! Every step appends what it changed for good; the driver stores that before it lets anybody know of
//! the step. Replayed in their order, the records make the directory again: [`crate::Recovery`].
//! Sessions are in them, what sessions pin and reserve is not: they know it themselves.
//!
//! On a disk a record is its postcard encoding, one behind the other. The order of the variants is
//! their code there: append, never insert.

use maru_protocol::{Answer, Checksum, Generation, Key, Refusal, Secret, SessionId};
use serde::{Deserialize, Serialize};

use crate::ids::PageAt;

/// A process on the server's host, told from all that have its number before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in whatever unit the driver chose.
    pub started: u64,
}

/// One thing that lasts. Instances and hosts go by numbers that earlier records gave a meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record<'a> {
    /// From here on this number means this host.
    Host {
        /// The number.
        host: u32,
        /// The host.
        name: &'a str,
    },
    /// From here on this number means this instance.
    Instance {
        /// The number.
        instance: u32,
        /// Its name.
        name: &'a str,
        /// How many bytes it may have in the pool; 0 for no limit.
        budget_bytes: u64,
    },
    /// A session was opened.
    Opened {
        /// The session.
        session: SessionId,
        /// What resumes it.
        secret: Secret,
        /// Its instance.
        instance: u32,
        /// Its host.
        host: u32,
        /// The process behind it, if its death would be seen.
        process: Option<ProcessId>,
    },
    /// A session is over. Some of what it had reserved may still be in no record.
    Ended {
        /// The session.
        session: SessionId,
    },
    /// All that an ended session had reserved was let go of, or is in quarantine.
    Drained {
        /// The session.
        session: SessionId,
    },
    /// Nothing is left of an ended session.
    Forgotten {
        /// The session.
        session: SessionId,
    },
    /// A region was cut into pages, all of them vacant.
    Cut {
        /// The region.
        region: u32,
        /// Their size in bytes; 0: it belongs to no size any more.
        page_bytes: u64,
    },
    /// A chunk became resident.
    Stored {
        /// Its page.
        page: PageAt,
        /// Which grant of the page.
        generation: Generation,
        /// The chunk's length in bytes.
        length: u32,
        /// Its checksum, if it has one.
        checksum: Option<Checksum>,
        /// The instance that wrote it.
        instance: u32,
        /// The host that it was written on.
        host: u32,
        /// Its key.
        #[serde(borrow)]
        key: Key<'a>,
    },
    /// A page is nobody's: the chunk in it left the directory, or what kept it from being granted is
    /// over.
    Vacated {
        /// The page.
        page: PageAt,
    },
    /// A page that the vanished writer of a session could still write to.
    Quarantined {
        /// The page.
        page: PageAt,
        /// Which grant of the page.
        generation: Generation,
        /// The session.
        session: SessionId,
    },
    /// A vacant page that the caches of hosts may hold unwritten lines of.
    Stained {
        /// The page.
        page: PageAt,
        /// Which grant of the page.
        generation: Generation,
        /// The hosts.
        hosts: Vec<u32>,
    },
    /// A page whose memory is bad.
    Damaged {
        /// The page.
        page: PageAt,
    },
    /// A request whose effect lasts was answered so.
    Replied {
        /// The session.
        session: SessionId,
        /// The request's number.
        seq: u64,
        /// All replies up to this number had arrived.
        acked: u64,
        /// Pins that it took on each chunk.
        pins: u32,
        /// The answer.
        result: Result<Answer, Refusal>,
    },
    /// Caches of these hosts may hold lines of any page that no other record tells of.
    Unclaimed {
        /// The hosts. None: of no page any more.
        hosts: Vec<u32>,
    },
    /// Whether nothing is granted, since it is not known what sessions of before hold.
    Withheld {
        /// It is so.
        withheld: bool,
    },
}

impl<'a> Record<'a> {
    /// Takes the first record off `bytes`.
    pub fn take(bytes: &mut &'a [u8]) -> Result<Self, postcard::Error> {
        let (record, rest) = postcard::take_from_bytes(bytes)?;
        *bytes = rest;
        Ok(record)
    }
}

/// Records that no driver has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// Nobody stores them, so there are none.
    pub(crate) off: bool,
    bytes: Vec<u8>,
}

impl Journal {
    pub(crate) fn write(&mut self, record: &Record<'_>) {
        if !self.off {
            append(record, &mut self.bytes);
        }
    }

    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// Appends the encoding of a record.
pub(crate) fn append(record: &Record<'_>, bytes: &mut Vec<u8>) {
    postcard::to_io(record, bytes).expect("memory takes all that is written to it");
}
