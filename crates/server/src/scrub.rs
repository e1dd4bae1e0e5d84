//! Looking at bytes: at whatever somebody suspects, and bit by bit at everything that has a checksum.
//!
//! A thread reads; the loop hands it one chunk after the other, and condemns what it finds bad. The
//! first is looked at as soon as it is suspected. Whatever comes then, no more than a thousand chunks
//! and a GiB are looked at in a second: an eighth of what one core can sum up, whoever suspects what.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maru_directory::Look;
use maru_memory::{MappingError, PoolMapping};
use maru_protocol::Checksum;
use mio::Waker;

use crate::service::Service;
use crate::store::Disk;

/// The most that is looked at in a second, in bytes.
const BYTES_PER_SECOND_MAX: u64 = 1 << 30;

/// From one look to the next at least: each costs the loop some microseconds.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// How far the look at everything may be behind its rate and catch up, and when it is tried again if
/// there was nothing to look at.
const SLACK: Duration = Duration::from_millis(50);

/// What is looked at, and when.
#[derive(Debug)]
pub(crate) struct Scrubber {
    /// Of the look at everything; 0 for none.
    bytes_per_second: u64,
    reader: Option<Reader>,
    /// The reader has a chunk.
    is_busy: bool,
    /// When it may have the next.
    next: Instant,
    /// When that may be one that nobody suspects.
    next_of_all: Instant,
    /// Nobody asked yet whether there is one for it.
    is_put_off: bool,
}

/// What was seen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) look: Look,
    /// What is wrong with it, in words.
    pub(crate) flaw: Option<String>,
}

/// The thread that reads.
#[derive(Debug)]
struct Reader {
    looks: Option<Sender<Look>>,
    verdicts: Receiver<Verdict>,
    thread: Option<JoinHandle<()>>,
}

impl Scrubber {
    pub(crate) const fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self {
            bytes_per_second,
            reader: None,
            is_busy: false,
            next: now,
            next_of_all: now,
            is_put_off: false,
        }
    }

    /// When [`Scrubber::next`] is to be asked, though nothing happens until then.
    pub(crate) fn due(&self) -> Option<Instant> {
        if self.is_busy {
            None
        } else if self.is_put_off {
            Some(self.next)
        } else {
            (self.bytes_per_second > 0).then(|| self.next.max(self.next_of_all))
        }
    }

    /// The next chunk that the reader is to be given, if it is time.
    pub(crate) fn next<D: Disk>(&mut self, now: Instant, service: &mut Service<D>) -> Option<Look> {
        if self.is_busy {
            return None;
        }
        self.is_put_off = now < self.next;
        if self.is_put_off {
            return None;
        }
        let look = service.next_look(false).or_else(|| self.next_of_all(now, service))?;
        self.next = now + time_for(look.length, BYTES_PER_SECOND_MAX).max(PAUSE_MIN);
        self.is_busy = true;
        Some(look)
    }

    fn next_of_all<D: Disk>(&mut self, now: Instant, service: &mut Service<D>) -> Option<Look> {
        if self.bytes_per_second == 0 || now < self.next_of_all {
            return None;
        }
        let look = service.next_look(true);
        self.next_of_all = match &look {
            Some(look) => {
                let earliest = now.checked_sub(SLACK).unwrap_or(now);
                self.next_of_all.max(earliest) + time_for(look.length, self.bytes_per_second)
            }
            None => now + SLACK,
        };
        look
    }

    /// Gives the reader a chunk; starts it if this is the first, with the memory that `mapping` gives.
    pub(crate) fn read<E: ToString>(
        &mut self,
        look: Look,
        waker: &Arc<Waker>,
        mapping: impl FnOnce() -> Result<Arc<PoolMapping>, E>,
    ) {
        if self.reader.is_none() {
            let started = mapping().map_err(|error| error.to_string()).and_then(|mapping| {
                Reader::start(mapping, Arc::clone(waker)).map_err(|error| error.to_string())
            });
            match started {
                Ok(reader) => self.reader = Some(reader),
                Err(error) => return self.give_up(&error),
            }
        }
        let looks = self.reader.as_ref().and_then(|reader| reader.looks.as_ref());
        if looks.is_none_or(|looks| looks.send(look).is_err()) {
            self.give_up("the thread that reads has ended");
        }
    }

    /// What was seen of the chunk that the reader had.
    pub(crate) fn take_verdict(&mut self) -> Option<Verdict> {
        let reader = self.reader.as_ref().filter(|_| self.is_busy)?;
        match reader.verdicts.try_recv() {
            Ok(verdict) => {
                self.is_busy = false;
                Some(verdict)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.give_up("the thread that reads has ended");
                None
            }
        }
    }

    /// Looks at nothing more: busy for good.
    fn give_up(&mut self, error: &str) {
        tracing::error!(error, "no byte of the pool is looked at any more");
        (self.reader, self.is_busy) = (None, true);
    }
}

fn time_for(bytes: u64, bytes_per_second: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / bytes_per_second)
}

impl Reader {
    fn start(mapping: Arc<PoolMapping>, waker: Arc<Waker>) -> std::io::Result<Self> {
        let (looks, to_be_read) = channel();
        let (tell, verdicts) = channel();
        let run = move || {
            for look in to_be_read {
                let flaw = flaw_of(&mapping, &look);
                if tell.send(Verdict { look, flaw }).is_err() || waker.wake().is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("maru-scrub".to_owned()).spawn(run)?;
        Ok(Self { looks: Some(looks), verdicts, thread: Some(thread) })
    }
}

/// Ends the thread, when it has read what it is at.
impl Drop for Reader {
    fn drop(&mut self) {
        self.looks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads has panicked");
        }
    }
}

/// What is wrong with a chunk, in words. What cannot be told is not wrong.
fn flaw_of(mapping: &Arc<PoolMapping>, look: &Look) -> Option<String> {
    let Look { handle, length, checksum } = *look;
    let read = || {
        let page = mapping.read(handle.offset, length)?;
        // Wherever it was written, and whatever this host has of before.
        page.acquire(handle.generation.0)?;
        page.checksum()
    };
    match read() {
        Ok(found) => {
            let differs = checksum.is_some_and(|expected| expected != Checksum::new(found));
            differs.then(|| "its bytes are not those that were committed".to_owned())
        }
        Err(error @ MappingError::Media { .. }) => Some(error.to_string()),
        Err(error) => {
            tracing::warn!(%error, "a chunk cannot be looked at");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use maru_directory::{Config, DeviceSpan, Geometry, Millis};
    use maru_protocol::{
        Answer, Body, CommitItem, Handle, Hello, Key, Request, ReserveOutcome, Secret, SessionId,
        Topology, Visibility,
    };

    use super::*;
    use crate::service::ServiceConfig;
    use crate::store::{Durability, FileDisk, System};

    const MIB: u64 = 1 << 20;

    /// A service with some chunks of this size, all with a checksum.
    struct Chunks {
        service: Service<FileDisk>,
        session: SessionId,
        asked: u64,
        handles: Vec<Handle>,
    }

    impl Chunks {
        fn new(count: u64, bytes: u64) -> Self {
            let device = DeviceSpan { offset: 0, bytes: 128 * MIB, reserved: 0 };
            let visibility = Visibility::Coherent;
            let config = ServiceConfig {
                directory: Config::default(),
                geometry: Geometry { devices: vec![device], region_bytes: 2 * MIB },
                topology: Topology { address_space_bytes: 0, visibility, devices: Vec::new() },
                checksums: true,
                durability: Durability::None,
                may_be_written: false,
                system: System::default(),
            };
            let opened = Service::open(config, None, 0, Millis(0), &mut |_| {});
            let mut service = opened.unwrap().0;
            let hello = Hello {
                instance: "a",
                host: "h",
                budget_bytes: 0,
                resume: None,
                outside_writers: false,
            };
            let welcome = service.hello(Millis(0), &hello, Secret([1; 16]), None).unwrap();
            let session = welcome.session;
            let mut chunks = Self { service, session, asked: 0, handles: Vec::new() };
            for n in 0..count {
                let name = n.to_string();
                let keys = vec![Key::new(name.as_bytes()).unwrap()];
                let reserved = chunks.ask(Body::Reserve {
                    keys,
                    page_bytes: bytes,
                    tag: 0,
                    unless_being_written: false,
                });
                let Answer::Reserved(outcomes) = reserved else { panic!("{reserved:?}") };
                let ReserveOutcome::Granted(location) = outcomes[0] else { panic!("{outcomes:?}") };
                let (handle, checksum) = (location.handle, Some(Checksum::new(n)));
                let items = vec![CommitItem { handle, length: bytes, checksum }];
                chunks.ask(Body::Commit { items, pins: 0, names: Vec::new() });
                chunks.handles.push(handle);
            }
            chunks
        }

        fn ask(&mut self, body: Body<'_>) -> Answer {
            let (seq, acked) = (self.asked + 1, self.asked);
            self.asked = seq;
            let request = Request { seq, acked, body };
            self.service.apply(Millis(0), self.session, &request).unwrap().result.unwrap()
        }

        fn suspect(&mut self, handles: Vec<Handle>) {
            self.ask(Body::Suspect { handles });
        }
    }

    /// Bytes and looks in a second, if the reader takes no time and the loop is late at times.
    fn in_a_second(scrubber: &mut Scrubber, chunks: &mut Chunks, from: Instant) -> (u64, u64) {
        let (mut bytes, mut looks) = (0, 0);
        for tick in 0..5000 {
            let now = from + Duration::from_micros(tick * 200);
            if tick % 100 < 3 {
                continue;
            }
            if let Some(look) = scrubber.next(now, &mut chunks.service) {
                (bytes, looks) = (bytes + look.length, looks + 1);
                assert_eq!(scrubber.due(), None, "the reader says when it is done");
                scrubber.is_busy = false;
            }
        }
        (bytes, looks)
    }

    #[test]
    fn everything_is_looked_at_at_the_rate_that_is_asked_for() {
        let mut chunks = Chunks::new(20, MIB);
        for rate in [16 * MIB, 64 * MIB] {
            let from = Instant::now();
            let mut scrubber = Scrubber::new(rate, from);
            let (bytes, _) = in_a_second(&mut scrubber, &mut chunks, from);
            assert!((rate..=rate + 4 * MIB).contains(&(bytes + 2 * MIB)), "{bytes} of {rate}");
        }
    }

    #[test]
    fn small_chunks_do_not_keep_the_loop_busy() {
        let mut chunks = Chunks::new(100, 4096);
        let from = Instant::now();
        let mut scrubber = Scrubber::new(1 << 30, from);
        let (_, looks) = in_a_second(&mut scrubber, &mut chunks, from);
        assert!((800..=1000).contains(&looks), "{looks}");
    }

    #[test]
    fn what_is_suspected_comes_first_and_at_once() {
        let mut chunks = Chunks::new(20, MIB);
        let from = Instant::now();
        for rate in [0, 1] {
            let mut scrubber = Scrubber::new(rate, from);
            if rate > 0 {
                assert!(scrubber.next(from, &mut chunks.service).is_some());
                scrubber.is_busy = false;
            }
            let then = from + PAUSE_MIN;
            assert_eq!(scrubber.next(then, &mut chunks.service), None);
            assert_eq!(scrubber.due().is_some(), rate > 0, "nothing to wait for");
            let handles = chunks.handles[7..9].to_vec();
            chunks.suspect(handles.clone());
            let mut found = vec![scrubber.next(then, &mut chunks.service).unwrap().handle];
            scrubber.is_busy = false;
            assert_eq!(scrubber.next(then, &mut chunks.service), None, "not all at once");
            let due = scrubber.due().unwrap();
            found.push(scrubber.next(due, &mut chunks.service).unwrap().handle);
            found.sort_unstable();
            assert_eq!(found, handles);
        }
    }

    #[test]
    fn whoever_suspects_what_the_rate_is_bounded() {
        let mut chunks = Chunks::new(60, 2 * MIB);
        let from = Instant::now();
        let mut scrubber = Scrubber::new(0, from);
        let all = chunks.handles.clone();
        let mut looked = 0;
        for tenth in 0..10 {
            (0..20).for_each(|_| chunks.suspect(all.clone()));
            let mut now = from + Duration::from_millis(tenth * 100);
            for _ in 0..500 {
                if let Some(look) = scrubber.next(now, &mut chunks.service) {
                    looked += look.length;
                    scrubber.is_busy = false;
                }
                now += Duration::from_micros(200);
            }
        }
        assert!((900 * MIB..=1024 * MIB).contains(&looked), "{looked}");
    }
}
