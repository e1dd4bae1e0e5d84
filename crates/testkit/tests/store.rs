//! The store of a server, on disks that crash, fill up and rot.
// Helpers of tests may fail loudly, like tests.
#![allow(clippy::unwrap_used)]

use maru_directory::rules::{self, Snapshot};
use maru_directory::{Config, DeviceSpan, Geometry, Millis};
use maru_protocol::{
    Answer, Body, CommitItem, CommitOutcome, Device, Hello, Key, Presence, Refusal, Request,
    ReserveOutcome, Secret, SessionId, Topology, Visibility,
};
use maru_server::service::{Found, Mismatch, OpenError, Service, ServiceConfig};
use maru_server::store::{Disk, Durability, FileDisk, Flaw, StoreError, System};
use maru_testkit::MemoryDisk;
use uuid::Uuid;

const PAGE: u64 = 4096;
const NOW: Millis = Millis(0);

fn config(durability: Durability) -> ServiceConfig {
    let bytes = 16 << 20;
    let device = Device { uuid: Uuid::from_u128(1), path: String::new(), offset: 0, bytes };
    let (address_space_bytes, visibility) = (64 << 20, Visibility::Coherent);
    ServiceConfig {
        directory: Config { epoch: 5, ..Config::default() },
        geometry: Geometry {
            devices: vec![DeviceSpan { offset: 0, bytes, reserved: 0 }],
            region_bytes: 2 << 20,
        },
        topology: Topology { address_space_bytes, visibility, devices: vec![device] },
        checksums: false,
        durability,
        may_be_written: false,
        system: System { boot: "1".to_owned(), processes: "here".to_owned() },
    }
}

/// A service with one session.
struct Serving<D> {
    service: Service<D>,
    session: SessionId,
    seq: u64,
}

impl<D: Disk> Serving<D> {
    fn open(disk: D) -> (Self, Found) {
        Self::open_with(config(Durability::Process), disk).unwrap()
    }

    fn open_with(config: ServiceConfig, disk: D) -> Result<(Self, Found), OpenError> {
        let (mut service, found) = Service::open(config, Some(disk), 0, NOW, &mut |_| {})?;
        let hello = Hello {
            instance: "a",
            host: "h",
            budget_bytes: 0,
            resume: None,
            outside_writers: false,
        };
        let session = service.hello(NOW, &hello, Secret([1; 16]), None).unwrap().session;
        service.settle().unwrap();
        Ok((Self { service, session, seq: 0 }, found))
    }

    fn ask(&mut self, body: Body<'_>) -> Result<Answer, Refusal> {
        self.seq += 1;
        let request = Request { seq: self.seq, acked: self.seq - 1, body };
        let reply = self.service.apply(NOW, self.session, &request).unwrap();
        self.service.settle().unwrap();
        reply.result
    }

    /// Stores chunks of one page each; how many were granted a page.
    fn store(&mut self, names: &[String]) -> usize {
        let keys = names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();
        let body = Body::Reserve { keys, page_bytes: PAGE, tag: 0, unless_being_written: false };
        let Ok(Answer::Reserved(outcomes)) = self.ask(body) else { panic!("a reserve fails") };
        let granted = outcomes.iter().filter_map(|outcome| match outcome {
            ReserveOutcome::Granted(location) => Some(location.handle),
            _ => None,
        });
        let items: Vec<CommitItem> =
            granted.map(|handle| CommitItem { handle, length: 1, checksum: None }).collect();
        let count = items.len();
        let Ok(Answer::Committed(outcomes)) =
            self.ask(Body::Commit { items, pins: 0, names: Vec::new() })
        else {
            panic!("a commit fails");
        };
        assert!(outcomes.iter().all(|one| matches!(one, CommitOutcome::Committed(_))));
        count
    }

    /// The same, and nobody evicts them.
    fn store_and_pin(&mut self, names: &[String]) {
        assert_eq!(self.store(names), names.len());
        let keys = names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();
        self.ask(Body::Acquire { keys, pins: 1, stop_at_miss: false }).unwrap();
    }

    fn has(&mut self, name: &str) -> bool {
        let keys = vec![Key::new(name.as_bytes()).unwrap()];
        self.ask(Body::Contains { keys }) == Ok(Answer::Contained(vec![Presence::Resident]))
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.service.directory())
    }
}

fn names(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|n| format!("model@00000000@{n:016x}@0")).collect()
}

fn open_error(disk: MemoryDisk) -> OpenError {
    Serving::open_with(config(Durability::Process), disk).map(|_| ()).unwrap_err()
}

#[test]
fn a_killed_server_leaves_all_that_was_settled() {
    let disk = MemoryDisk::default();
    let (mut first, found) = Serving::open(disk.clone());
    assert_eq!(found, Found::NewPool);
    first.store(&names(0, 100));
    let before = first.snapshot();
    drop(first);
    let (mut second, found) = Serving::open(disk);
    assert_eq!(found, Found::Store { entries: 100, sessions: 1, torn_bytes: 0 });
    assert_eq!(second.service.epoch(), 6);
    rules::acknowledged_is_recoverable(&before, &second.snapshot()).unwrap();
    assert!(second.has(&names(99, 1)[0]));
}

#[test]
fn what_was_half_written_is_as_if_it_was_not() {
    let disk = MemoryDisk::default();
    let (mut first, _) = Serving::open(disk.clone());
    first.store(&names(0, 10));
    let before = first.snapshot();
    let whole = disk.with_bytes(1, |bytes| bytes.len()).unwrap();
    first.store(&names(10, 10));
    drop(first);
    let end = disk.with_bytes(1, |bytes| bytes.len()).unwrap();
    for len in (whole..end).step_by(7) {
        let image = disk.image();
        image.with_bytes(1, |bytes| bytes.truncate(len));
        // What was set aside behind it reads as 0.
        let tail = len % 2 * 64;
        image.with_bytes(1, |bytes| bytes.resize(len + tail, 0));
        let (second, _) = Serving::open(image);
        let after = second.snapshot();
        // The reserve may have come through, and evicts nothing here.
        rules::acknowledged_is_recoverable(&before, &after).unwrap();
        rules::check(second.service.directory(), NOW).unwrap();
    }
}

#[test]
fn a_segment_that_was_being_begun_is_begun_anew() {
    for len in [0, 3, 8, 20, 30] {
        let disk = MemoryDisk::default();
        let (mut first, _) = Serving::open(disk.clone());
        first.store(&names(0, 10));
        drop(first);
        let mut writer = disk.clone();
        writer.create(2, 64).unwrap();
        let start = disk.with_bytes(1, |bytes| bytes[..len].to_vec()).unwrap();
        writer.write(2, 0, &start).unwrap();
        let (mut second, _) = Serving::open(disk.clone());
        assert!(second.has(&names(3, 1)[0]));
        drop(second);
        let (mut third, _) = Serving::open(disk);
        assert!(third.has(&names(3, 1)[0]));
    }
}

#[test]
fn a_store_that_was_never_begun_is_none() {
    let mut disk = MemoryDisk::default();
    disk.create(1, 64).unwrap();
    disk.write(1, 0, b"MARUL").unwrap();
    let (_, found) = Serving::open(disk);
    assert_eq!(found, Found::NewPool);
}

/// Three segments, the last of which is written to.
fn three_segments() -> MemoryDisk {
    let disk = MemoryDisk::default();
    for turn in 0..3 {
        let (mut serving, _) = Serving::open(disk.clone());
        serving.store(&names(turn * 10, 10));
    }
    disk
}

/// Where a segment ends, and where its last frame begins.
fn last_frame(bytes: &[u8]) -> (usize, usize) {
    let (mut at, mut last) = (8, 8);
    while let Some(len) = bytes[at..].first_chunk() {
        last = at;
        at += 12 + u32::from_le_bytes(*len) as usize;
    }
    assert_eq!(at, bytes.len());
    (at, last)
}

#[test]
fn rot_is_found_and_nothing_is_served() {
    for segment in 1..=3 {
        let (len, last) = three_segments().with_bytes(segment, |bytes| last_frame(bytes)).unwrap();
        for at in (0..len).step_by(41) {
            let disk = three_segments();
            disk.with_bytes(segment, |bytes| bytes[at] ^= 0x10);
            let before = disk.image();
            match Serving::open_with(config(Durability::Process), disk.clone()) {
                Err(OpenError::Store(StoreError::Corrupt { segment: found, .. })) => {
                    assert_eq!(found, segment);
                }
                Err(OpenError::Store(StoreError::Sequence { .. })) => {}
                // Nothing tells it from a write that a crash cut off, which nobody was told of.
                Ok((_, Found::Store { torn_bytes, .. })) if segment == 3 && at >= last => {
                    // Zeros at its end look like what was set aside.
                    assert!((1..=(len - last) as u64).contains(&torn_bytes));
                    continue;
                }
                other => panic!("byte {at} of segment {segment}: {:?}", other.map(|(_, f)| f)),
            }
            for segment in 1..=3 {
                let bytes = |disk: &MemoryDisk| disk.with_bytes(segment, |bytes| bytes.clone());
                assert_eq!(bytes(&disk), bytes(&before), "a refusal changes nothing");
            }
        }
    }
}

/// A store with one segment whose head was broken passed for none, and was removed.
#[test]
fn a_lone_segment_with_a_broken_head_is_corrupt() {
    for at in [0, 8, 12, 30] {
        let disk = MemoryDisk::default();
        let (mut first, _) = Serving::open(disk.clone());
        first.store(&names(0, 10));
        drop(first);
        disk.with_bytes(1, |bytes| bytes[at] ^= 1);
        let error = open_error(disk);
        let corrupt = matches!(error, OpenError::Store(StoreError::Corrupt { segment: 1, .. }));
        assert!(corrupt, "byte {at}: {error}");
    }
}

/// A length of 0 is where a segment ends, so all that followed was passed over.
#[test]
fn nothing_lies_behind_the_end_of_a_segment() {
    for segment in 1..=3 {
        let disk = three_segments();
        disk.with_bytes(segment, |bytes| {
            let head = 12 + u32::from_le_bytes(*bytes[8..].first_chunk().unwrap()) as usize;
            bytes[8 + head..][..4].fill(0);
        });
        let error = open_error(disk);
        let corrupt = matches!(error, OpenError::Store(StoreError::Corrupt { .. }));
        assert!(corrupt, "segment {segment}: {error}");
    }
}

#[test]
fn a_segment_that_is_missing_is_missed() {
    let mut disk = three_segments();
    disk.remove(2).unwrap();
    let error = open_error(disk);
    assert!(matches!(error, OpenError::Store(StoreError::Sequence { segment: 3 })), "{error}");
    let disk = three_segments();
    disk.with_bytes(2, |bytes| bytes.truncate(30));
    let error = open_error(disk);
    let cut_off = matches!(
        error,
        OpenError::Store(StoreError::Corrupt { segment: 2, why: Flaw::CutOff, .. })
    );
    assert!(cut_off, "{error}");
}

#[test]
fn a_store_of_another_pool_is_refused() {
    let disk = three_segments();
    let refused = |change: &dyn Fn(&mut ServiceConfig)| {
        let mut config = config(Durability::Process);
        change(&mut config);
        match Serving::open_with(config, disk.image()).map(|_| ()) {
            Err(OpenError::Mismatch(Mismatch::Pool(how))) => how,
            other => panic!("{other:?}"),
        }
    };
    let other = refused(&|config| config.topology.devices[0].uuid = Uuid::from_u128(2));
    assert!(other.contains("is not there") && other.contains("is new"), "{other}");
    let larger = refused(&|config| config.topology.devices[0].bytes *= 2);
    assert!(larger.contains("had 16777216 bytes and has 33554432"), "{larger}");
    let regions = refused(&|config| config.geometry.region_bytes *= 2);
    assert!(regions.contains("regions had"), "{regions}");
}

#[test]
fn a_pool_that_was_served_without_this_store_is_refused() {
    let disk = three_segments();
    let open = |pool_epoch, disk| {
        let opened =
            Service::open(config(Durability::Process), Some(disk), pool_epoch, NOW, &mut |_| {});
        opened.map(|(service, _)| service.epoch())
    };
    assert_eq!(open(7, disk.image()).unwrap(), 8);
    let error = open(8, disk.image()).unwrap_err();
    let expected = Mismatch::Epoch { pool: 8, store: 7 };
    assert!(matches!(error, OpenError::Mismatch(how) if how == expected));
}

/// What instances of before may still write to is not known.
#[test]
fn a_pool_without_its_store_grants_nothing_for_a_while() {
    let lost = || ServiceConfig { may_be_written: true, ..config(Durability::Process) };
    let disk = MemoryDisk::default();
    for _ in 0..2 {
        let opened = Service::open(lost(), Some(disk.clone()), 4, NOW, &mut |_| {}).unwrap();
        let (mut service, _) = opened;
        let hello = Hello {
            instance: "a",
            host: "h",
            budget_bytes: 0,
            resume: None,
            outside_writers: false,
        };
        let id = service.hello(NOW, &hello, Secret([1; 16]), None).unwrap().session;
        let mut seq = 0;
        let mut reserve = |service: &mut Service<MemoryDisk>, now| {
            let keys = vec![Key::new(b"k").unwrap()];
            let (page_bytes, tag, unless_being_written) = (PAGE, 0, false);
            let body = Body::Reserve { keys, page_bytes, tag, unless_being_written };
            seq += 1;
            let request = Request { seq, acked: seq - 1, body };
            match service.apply(now, id, &request).unwrap().result {
                Ok(Answer::Reserved(outcomes)) => outcomes[0],
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(reserve(&mut service, NOW), ReserveOutcome::OutOfMemory);
        let renew = Request { seq: 0, acked: 0, body: Body::Renew };
        for now in (0..40_000).step_by(5_000) {
            service.apply(Millis(now), id, &renew).unwrap();
            service.tick(Millis(now)).unwrap();
        }
        // A lease, and then a quarantine.
        assert_eq!(reserve(&mut service, Millis(39_999)), ReserveOutcome::OutOfMemory);
        // A second server that is killed before the time is over begins to count anew.
        if service.epoch() == 6 {
            service.tick(Millis(40_000)).unwrap();
            let granted = reserve(&mut service, Millis(40_000));
            assert!(matches!(granted, ReserveOutcome::Granted(_)));
        }
    }
}

#[test]
fn a_power_failure_takes_nothing_that_was_synced() {
    let disk = MemoryDisk::default();
    let (mut first, _) = Serving::open_with(config(Durability::Fsync), disk.clone()).unwrap();
    first.store(&names(0, 50));
    let before = first.snapshot();
    let (second, _) = Serving::open(disk.durable_image());
    rules::acknowledged_is_recoverable(&before, &second.snapshot()).unwrap();
}

/// What a life stored that did not wait for the disk was never synced, and believed all the same.
#[test]
fn a_power_failure_takes_nothing_of_the_lives_before_either() {
    let disk = MemoryDisk::default();
    let (mut first, _) = Serving::open(disk.clone());
    first.store(&names(0, 50));
    let before = first.snapshot();
    drop(first);
    let (second, _) = Serving::open_with(config(Durability::Fsync), disk.clone()).unwrap();
    drop(second);
    let (third, _) = Serving::open(disk.durable_image());
    rules::acknowledged_is_recoverable(&before, &third.snapshot()).unwrap();
}

/// The operating system came down. What the store was told last was not on the disk, and the pool, which
/// is another machine's memory, is ahead of it.
#[test]
fn a_store_that_may_be_behind_its_pool_is_not_trusted() {
    let disk = MemoryDisk::default();
    let (mut first, _) = Serving::open(disk.clone());
    first.store(&names(0, 10));
    first.service.close().unwrap();
    first.store(&names(10, 10));
    drop(first);
    let again = |boot: &str, in_service: bool| ServiceConfig {
        may_be_written: in_service,
        system: System { boot: boot.to_owned(), processes: "here".to_owned() },
        ..config(Durability::Process)
    };
    let lost = disk.durable_image();
    // The same system: its disk is as it was written.
    let (_, found) = Serving::open_with(again("1", true), disk.image()).unwrap();
    assert!(matches!(found, Found::Store { entries: 20, .. }), "{found:?}");
    // It was closed in good order, and nobody wrote since.
    let (_, found) = Serving::open_with(again("2", false), lost.image()).unwrap();
    assert!(matches!(found, Found::Store { entries: 10, .. }), "{found:?}");
    for image in [lost, disk] {
        let (behind, found) = Serving::open_with(again("2", true), image.clone()).unwrap();
        assert_eq!(found, Found::StoreBehind);
        assert!(behind.snapshot().entries.is_empty());
        assert!(behind.service.directory().withheld_ms(NOW) > 0);
        drop(behind);
        let (next, found) = Serving::open_with(again("2", true), image).unwrap();
        assert!(matches!(found, Found::Store { entries: 0, .. }), "{found:?}");
        assert!(next.service.directory().withheld_ms(NOW) > 0, "nor does the next forget that");
    }
}

#[test]
fn a_store_of_which_nothing_was_on_the_disk_is_none() {
    let disk = MemoryDisk::default();
    let (mut first, _) = Serving::open(disk.clone());
    first.store(&names(0, 10));
    drop(first);
    let (second, found) = Serving::open(disk.durable_image());
    assert_eq!(found, Found::NewPool);
    assert!(second.snapshot().entries.is_empty());
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_space_again() {
    let disk = MemoryDisk::default();
    let (mut serving, _) = Serving::open(disk.clone());
    serving.store(&names(0, 64));
    disk.set_capacity(Some(0));
    let mut next = 64;
    loop {
        let keys = [names(next, 64)].concat();
        let keys = keys.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();
        let body = Body::Reserve { keys, page_bytes: PAGE, tag: 0, unless_being_written: false };
        match serving.ask(body) {
            Err(Refusal::StoreFull) => break,
            Ok(Answer::Reserved(outcomes)) => {
                let granted = outcomes.iter().filter_map(|outcome| match outcome {
                    ReserveOutcome::Granted(location) => Some(location.handle),
                    _ => None,
                });
                let item = |handle| CommitItem { handle, length: 1, checksum: None };
                let items = granted.map(item).collect();
                match serving.ask(Body::Commit { items, pins: 0, names: Vec::new() }) {
                    Err(Refusal::StoreFull) => break,
                    committed => assert!(matches!(committed, Ok(Answer::Committed(_)))),
                }
            }
            other => panic!("{other:?}"),
        }
        next += 64;
    }
    assert!(next > 10_000, "a segment holds {next} chunks");
    let there = names(next - 64, 1).remove(0);
    let keys = || vec![Key::new(there.as_bytes()).unwrap()];
    assert!(serving.has(&there), "reads go on");
    let acquired = serving.ask(Body::Acquire { keys: keys(), pins: 1, stop_at_miss: false });
    assert!(matches!(acquired, Ok(Answer::Acquired(found)) if found[0].is_some()));
    assert_eq!(serving.ask(Body::Delete { keys: keys() }), Err(Refusal::StoreFull));
    serving.service.tick(NOW).unwrap();
    assert_eq!(serving.ask(Body::Delete { keys: keys() }), Err(Refusal::StoreFull));
    let image = disk.image();
    let (mut killed, _) = Serving::open(image);
    assert!(killed.has(&there), "and nothing is lost");
    disk.set_capacity(None);
    serving.service.tick(NOW).unwrap();
    assert_eq!(serving.store(&names(1_000_000, 8)), 8);
}

#[test]
fn a_long_log_is_tidied_up_while_it_is_written() {
    let disk = MemoryDisk::default();
    let (mut serving, _) = Serving::open(disk.clone());
    serving.store_and_pin(&names(0, 1000));
    let mut longest = 0;
    for turn in 0..1500 {
        serving.store(&names(10_000 + turn * 512, 512));
        longest = longest.max(serving.service.log().unwrap().bytes());
    }
    // 4096 chunks of some 80 bytes are true, and nearly 100 MB were written.
    assert!((20 << 20..80 << 20).contains(&longest), "{longest} bytes");
    assert!(disk.clone().list().unwrap().keys().next() > Some(&1), "the first segment is gone");
    let before = serving.snapshot();
    drop(serving);
    let (mut again, _) = Serving::open(disk);
    rules::acknowledged_is_recoverable(&before, &again.snapshot()).unwrap();
    assert!(again.has(&names(7, 1)[0]), "what was stored first, and never since, is there");
}

/// What was still true behind the damage went with its segment.
#[test]
fn a_damaged_segment_is_not_tidied_away_with_what_it_holds() {
    let disk = MemoryDisk::default();
    let (mut serving, _) = Serving::open(disk.clone());
    serving.store_and_pin(&names(0, 1000));
    disk.with_bytes(1, |bytes| bytes[2000] ^= 1);
    for turn in 0..1500 {
        serving.store(&names(10_000 + turn * 512, 512));
    }
    assert!(disk.clone().list().unwrap().keys().next() > Some(&1), "the first segment is gone");
    let before = serving.snapshot();
    drop(serving);
    let (again, _) = Serving::open(disk);
    rules::acknowledged_is_recoverable(&before, &again.snapshot()).unwrap();
}

#[test]
fn two_servers_do_not_have_one_store() {
    let folder = tempfile::tempdir().unwrap();
    let first = FileDisk::open(folder.path(), false).unwrap();
    let error = FileDisk::open(folder.path(), false).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy, "{error}");
    drop(first);
    FileDisk::open(folder.path(), false).unwrap();
}

#[test]
fn files_hold_a_store_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/store");
    for synced in [false, true] {
        let durability = if synced { Durability::Fsync } else { Durability::Process };
        let disk = || FileDisk::open(&path, synced).unwrap();
        let (mut first, _) = Serving::open_with(config(durability), disk()).unwrap();
        first.store(&names(0, 20));
        let before = first.snapshot();
        drop(first);
        let (second, _) = Serving::open_with(config(durability), disk()).unwrap();
        rules::acknowledged_is_recoverable(&before, &second.snapshot()).unwrap();
    }
    let segments = disk_files(&path);
    assert_eq!(segments.len(), 4);
    let (last, sealed) = segments.split_last().unwrap();
    assert!(last.1 > 1 << 20 && sealed.iter().all(|(_, len)| *len < 1 << 20), "{segments:?}");
}

fn disk_files(path: &std::path::Path) -> Vec<(std::ffi::OsString, u64)> {
    let files = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    let mut files: Vec<_> =
        files.map(|file| (file.file_name(), file.metadata().unwrap().len())).collect();
    files.sort();
    files
}
