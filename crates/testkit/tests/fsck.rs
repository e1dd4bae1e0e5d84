//! What can be kept of a pool whose store does not fit it, and that nothing wrong is.
// Helpers of tests may fail loudly, like tests.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use maru_client::{Acquire, Client, ClientConfig, Committed, Reserve, Reserved};
use maru_directory::Config;
use maru_memory::{Device, DeviceSpec, IfExists};
use maru_protocol::{Endpoint, Key, Location};
use maru_server::fsck::{Examined, Finding, Fsck, FsckConfig};
use maru_server::{Embedded, PoolConfig, ServerConfig, StartError};
use tempfile::TempDir;

const PAGE: usize = 64 << 10;

/// A folder with devices and stores in it.
struct Place(TempDir);

/// What a chunk of this name holds.
fn content(name: &str) -> Vec<u8> {
    (0..PAGE).map(|n| (n % 251).to_le_bytes()[0] ^ name.as_bytes()[0]).collect()
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, devices: &[&str], checksums: bool) -> ServerConfig {
        let spec = |name: &&str| DeviceSpec { path: self.path(name), bytes: Some(8 << 20) };
        let pool = PoolConfig::Devices(devices.iter().map(spec).collect());
        ServerConfig {
            socket: Some(self.path("socket")),
            store: Some(self.path("store")),
            // So that every device has chunks.
            region_bytes: Some(2 << 20),
            checksums,
            // A full device stays full.
            directory: Config {
                watermark_high_permille: 1000,
                watermark_low_permille: 1000,
                ..Config::default()
            },
            ..ServerConfig::new(pool)
        }
    }

    /// Serves these devices for as long as `use_it` takes.
    fn serve<T>(
        &self,
        devices: &[&str],
        checksums: bool,
        use_it: impl FnOnce(&Client) -> T,
    ) -> Result<T, StartError> {
        let _server = Embedded::start(&self.config(devices, checksums))?;
        let endpoint = Endpoint::Unix(self.path("socket"));
        let config = ClientConfig { endpoint, instance: "tester".to_owned(), ..Default::default() };
        Ok(use_it(&Client::connect(config).unwrap()))
    }

    /// Serves them and stores these chunks.
    fn store(&self, devices: &[&str], checksums: bool, names: &[String]) -> Vec<Location> {
        let stored = self.serve(devices, checksums, |client| {
            names.iter().map(|name| store(client, name)).collect()
        });
        stored.unwrap()
    }

    /// Serves them, and says which of these chunks are there. Fails if one has wrong bytes.
    fn find<'a>(&self, devices: &[&str], names: &'a [String]) -> Vec<&'a str> {
        let there = |client: &Client| {
            names.iter().map(String::as_str).filter(|name| is_there(client, name)).collect()
        };
        self.serve(devices, true, there).unwrap()
    }

    fn look(&self, devices: &[&str], verify: bool) -> Fsck {
        let devices = devices.iter().map(|name| self.path(name)).collect();
        let config = FsckConfig { devices, store: Some(self.path("store")), verify };
        Fsck::look(&config, &mut |_, _| {}).unwrap()
    }

    fn examine(&self, devices: &[&str], verify: bool) -> Examined {
        self.look(devices, verify).examined().clone()
    }

    /// Has repaired what there is, and says what that was.
    fn repair(&self, devices: &[&str], verify: bool) -> Examined {
        let before = self.bytes();
        let fsck = self.look(devices, verify);
        assert_eq!(self.bytes(), before, "a look changes nothing");
        let examined = fsck.examined().clone();
        let repaired = fsck.repair().unwrap().unwrap();
        assert_eq!(repaired.kept, examined.kept);
        let again = self.examine(devices, verify);
        assert_eq!(again.findings, [], "nothing is left to repair");
        assert_eq!(again.entries, examined.kept);
        examined
    }

    /// All bytes of the store.
    fn bytes(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = fs::read_dir(self.path("store")).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        files
    }

    /// Changes a byte of a file.
    fn damage(&self, file: &str, at: u64) {
        let file = File::options().read(true).write(true).open(self.path(file)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }
}

fn store(client: &Client, name: &str) -> Location {
    let key = Key::new(name.as_bytes()).unwrap();
    let Reserved::Page(mut page) =
        client.reserve(&[key], PAGE as u64, Reserve::default()).unwrap().remove(0)
    else {
        panic!("{name} is not granted a page");
    };
    page.copy_from(&content(name)).unwrap();
    match client.commit([page]).unwrap().remove(0) {
        Committed::Stored(location) => location,
        other => panic!("{name} is not stored: {other:?}"),
    }
}

fn is_there(client: &Client, name: &str) -> bool {
    let key = Key::new(name.as_bytes()).unwrap();
    let Some(page) = client.acquire(&[key], Acquire::default()).unwrap().remove(0) else {
        return false;
    };
    let mut bytes = vec![0; PAGE];
    page.copy_to(&mut bytes).unwrap();
    assert!(bytes == content(name), "{name} has wrong bytes");
    true
}

fn names(letters: &str) -> Vec<String> {
    letters.chars().map(|letter| letter.to_string()).collect()
}

#[test]
fn what_fits_is_left_alone() {
    let place = Place::new();
    place.store(&["d"], true, &names("abc"));
    let fsck = place.look(&["d"], true);
    let Examined { entries, verified, kept, findings, .. } = fsck.examined().clone();
    assert_eq!((entries, verified, kept, &findings[..]), (3, 3, 3, &[][..]));
    assert_eq!(fsck.repair().unwrap(), None);
    assert_eq!(place.find(&["d"], &names("abc")), ["a", "b", "c"]);
}

#[test]
fn a_pool_that_is_served_is_not_looked_at() {
    let place = Place::new();
    let looked = place.serve(&["d"], true, |_| {
        let devices = vec![place.path("d")];
        Fsck::look(&FsckConfig { devices, store: None, verify: false }, &mut |_, _| {})
    });
    let error = looked.unwrap().unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
}

#[test]
fn a_pool_without_a_store_needs_none() {
    let place = Place::new();
    place.store(&["d"], true, &names("a"));
    fs::remove_dir_all(place.path("store")).unwrap();
    let fsck = place.look(&["d"], true);
    assert_eq!((fsck.examined().store_epoch, fsck.examined().is_sound()), (None, true));
    assert_eq!(fsck.repair().unwrap(), None);
    assert!(!place.path("store").exists(), "a look makes none");
}

/// Chunks that the store knows of are overwritten by now, or are as they were: only bytes tell.
#[test]
fn of_a_pool_that_was_served_since_only_what_is_verified_is_kept() {
    for (checksums, verify, kept) in
        [(true, true, names("bc")), (true, false, vec![]), (false, true, vec![])]
    {
        let place = Place::new();
        place.store(&["d"], checksums, &names("abc"));
        fs::rename(place.path("store"), place.path("old")).unwrap();
        // It takes the place of the first.
        place.store(&["d"], checksums, &names("x"));
        fs::remove_dir_all(place.path("store")).unwrap();
        fs::rename(place.path("old"), place.path("store")).unwrap();
        let refused = place.serve(&["d"], checksums, |_| ()).unwrap_err().to_string();
        let command = format!(
            "maru pool fsck {} --store {}",
            place.path("d").display(),
            place.path("store").display()
        );
        assert!(refused.contains(&command), "{refused}");
        let examined = place.repair(&["d"], verify);
        assert!(matches!(examined.findings[0], Finding::ServedSince { .. }), "{examined:?}");
        assert_eq!(examined.entries, 3);
        assert_eq!(place.find(&["d"], &names("abcx")), kept);
    }
}

#[test]
fn of_a_corrupt_store_only_what_is_verified_is_kept() {
    for (verify, kept) in [(true, names("bc")), (false, vec![])] {
        let place = Place::new();
        place.store(&["d"], true, &names("abc"));
        let (segment, bytes) = place.bytes().pop().unwrap();
        // In the first of the chunks' records, whose key is known.
        let record = bytes.windows(2).position(|two| two == b"\x01a").unwrap();
        place.damage(segment.to_str().unwrap(), record as u64);
        place.serve(&["d"], true, |_| ()).unwrap_err();
        let examined = place.repair(&["d"], verify);
        assert!(matches!(examined.findings[0], Finding::Corrupt { .. }), "{examined:?}");
        assert_eq!(place.find(&["d"], &names("abc")), kept);
        // It can be used.
        place.store(&["d"], true, &names("y"));
        assert_eq!(place.find(&["d"], &names("ay")), ["y"]);
    }
}

#[test]
fn a_store_of_which_nothing_can_be_read_is_put_aside() {
    let place = Place::new();
    place.store(&["d"], true, &names("abc"));
    let segments = place.bytes();
    for (segment, _) in &segments {
        place.damage(segment.to_str().unwrap(), 3);
    }
    fs::rename(&segments[0].0, place.path("store/0000000000000002.log")).unwrap();
    place.serve(&["d"], true, |_| ()).unwrap_err();
    let fsck = place.look(&["d"], true);
    assert!(matches!(fsck.examined().findings[..], [Finding::Corrupt { .. }]));
    let repaired = fsck.repair().unwrap().unwrap();
    assert!(!place.path("store").exists() && repaired.before.exists());
    assert_eq!(place.find(&["d"], &names("abc")), Vec::<&str>::new());
}

#[test]
fn chunks_go_with_their_devices() {
    let place = Place::new();
    let all: Vec<String> = (0..150).map(|n| format!("k{n}")).collect();
    let locations = place.store(&["d", "e"], false, &all);
    let on = |device: u64| {
        let there = |location: &&Location| location.offset() / (8 << 20) == device;
        locations.iter().filter(there).count()
    };
    assert!(on(0) > 0 && on(1) > 0, "both devices have chunks");
    place.serve(&["e", "d"], false, |_| ()).unwrap_err();
    let examined = place.repair(&["e", "d"], false);
    assert!(matches!(&examined.findings[..], [Finding::OtherDevices { lost: 0, .. }]));
    assert_eq!(place.find(&["e", "d"], &all).len(), 150);
    // One of them is gone, and another has come.
    let examined = place.repair(&["d"], false);
    let lost = on(1) as u64;
    assert!(
        matches!(&examined.findings[..], [Finding::OtherDevices { lost: n, .. }] if *n == lost),
        "{lost} of {examined:?}"
    );
    assert_eq!(place.find(&["d"], &all).len(), on(0));
    place.serve(&["d", "f"], false, |_| ()).unwrap_err();
    let new = DeviceSpec { path: place.path("f"), bytes: Some(8 << 20) };
    drop(Device::create(&new, IfExists::Refuse).unwrap());
    place.repair(&["d", "f"], false);
    assert_eq!(place.find(&["d", "f"], &all).len(), on(0));
}

#[test]
fn wrong_bytes_are_forgotten() {
    let place = Place::new();
    let locations = place.store(&["d"], true, &names("abc"));
    place.damage("d", locations[1].offset() + 99);
    assert!(place.examine(&["d"], false).is_sound(), "nobody has looked");
    let examined = place.repair(&["d"], true);
    assert_eq!(examined.findings, [Finding::WrongBytes { entries: 1 }]);
    assert_eq!((examined.verified, examined.kept), (2, 2));
    assert_eq!(place.find(&["d"], &names("abc")), ["a", "c"]);
}
