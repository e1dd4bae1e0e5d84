//! What an operator meets of the store: restarts, a store that is gone, one that does not match, a disk
//! that is full.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use maru_client::{Acquire, Client, ClientError, Reserve, Reserved};
use maru_protocol::{Key, Presence, Refusal};
use maru_testkit::{Program, Serving, text, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use super::common::{json, program, run, serve, stderr};

const PAGE: u64 = 64 << 10;

fn store(client: &Client, names: &[String], byte: u8) -> Result<(), ClientError> {
    let keys: Vec<Key<'_>> = names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();
    let reserved = client.reserve(&keys, PAGE, Reserve::default())?;
    let pages = reserved.into_iter().map(|reserved| {
        let Reserved::Page(mut page) = reserved else { panic!("{reserved:?}") };
        page.bytes_mut().fill(byte);
        page
    });
    client.commit(pages.collect::<Vec<_>>()).map(drop)
}

/// The byte that the chunk is full of, if it is there.
fn read(client: &Client, name: &str) -> Option<u8> {
    let key = Key::new(name.as_bytes()).unwrap();
    let page = client.acquire(&[key], Acquire::default()).unwrap().remove(0)?;
    let byte = page.bytes()[0];
    assert!(page.bytes().iter().all(|other| *other == byte));
    client.release([page]).unwrap();
    Some(byte)
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("model@00000000@{n:064x}@0")).collect()
}

/// Starts it again, and waits until it lets clients in.
fn restart(serving: &mut Serving) -> Client {
    serving.restart();
    wait_until("the server listens again", || serving.connect().is_some());
    serving.client()
}

#[test]
fn what_is_stored_is_there_after_every_kind_of_end() {
    for durability in ["process", "fsync"] {
        let mut serving = serve("16MiB", &["--durability", durability]);
        // It lives through all of it.
        let instance = serving.client();
        store(&instance, &names(8), 7).unwrap();
        let held =
            instance.acquire(&[Key::new(names(1)[0].as_bytes()).unwrap()], Acquire::default());
        let held = held.unwrap().remove(0).unwrap();
        for signal in [Signal::TERM, Signal::KILL, Signal::INT] {
            kill_process(Pid::from_child(&serving.child), signal).unwrap();
            serving.child.wait().unwrap();
            let client = restart(&mut serving);
            assert!(names(8).iter().all(|name| read(&client, name) == Some(7)), "{signal:?}");
            instance.stats().unwrap();
            held.confirm().unwrap();
            assert_eq!(client.stats().unwrap().pins, 1, "{signal:?}");
        }
        instance.release([held]).unwrap();
        serving.assert_no_alarm();
    }
}

#[test]
fn without_durability_a_restart_begins_empty() {
    let mut serving = serve("16MiB", &["--durability", "none", "--quarantine-ms", "1000"]);
    let instance = serving.client();
    store(&instance, &names(8), 7).unwrap();
    serving.kill();
    let client = restart(&mut serving);
    assert_eq!(read(&client, &names(1)[0]), None);
    // What the instance had reserved, nobody knows: pages are granted once it cannot write any more.
    let key = Key::new(b"k").unwrap();
    wait_until("pages are granted again", || {
        let reserved = instance.reserve(&[key], PAGE, Reserve::default()).unwrap();
        matches!(reserved[0], Reserved::Page(_))
    });
    store(&instance, &names(8), 8).unwrap();
    assert_eq!(read(&client, &names(1)[0]), Some(8));
}

/// All that is told apart: nothing there, what nobody may trust, and what fsck made of it.
#[test]
fn a_store_that_does_not_match_is_refused_until_fsck_has_mended_it() {
    let mut serving = serve("16MiB", &["--quarantine-ms", "1000", "--checksums"]);
    let [pool, stored] = ["pool", "pool.store"].map(|name| serving.folder.path().join(name));
    let kept = serving.folder.path().join("kept");
    let client = serving.client();
    store(&client, &names(8), 7).unwrap();
    drop(client);
    serving.kill();
    fs::rename(&stored, &kept).unwrap();

    let client = restart(&mut serving);
    assert_eq!(read(&client, &names(1)[0]), None, "without its store a pool is empty");
    assert!(serving.log().contains("its store is gone"), "{}", serving.log());
    drop(client);
    serving.kill();
    fs::remove_dir_all(&stored).unwrap();
    fs::rename(&kept, &stored).unwrap();

    let refused = run(&["serve", "--pool", text(&pool), "--socket", text(&serving.socket())]);
    let refused = (refused.status.code(), stderr(&refused));
    assert_eq!(refused.0, Some(1));
    let command = format!("maru pool fsck {} --store {}", text(&pool), text(&stored));
    assert!(refused.1.contains(&command), "{}", refused.1);

    let look = ["pool", "fsck", text(&pool), "--store", text(&stored), "--verify"];
    let looked = run(&look);
    assert_eq!(looked.status.code(), Some(1));
    let said = stderr(&looked);
    assert!(said.contains("--repair"), "{said}");
    assert!(run(&[&look[..], &["--repair"]].concat()).status.success());
    assert!(run(&look[..5]).status.success(), "it is mended");
    let client = restart(&mut serving);
    assert!(names(8).iter().all(|name| read(&client, name) == Some(7)));
    serving.assert_no_alarm();
}

/// A server in a mount namespace of its own, where its store lies on a small disk. `None` where the
/// system lets nobody make one, as in some containers; `a_full_disk_refuses_writes_until_there_is_space_again`
/// has the same with a disk in memory.
#[expect(clippy::print_stderr, reason = "a test that was not run is told of")]
fn serve_on_small_disk() -> Option<Serving> {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (script, store) = (folder.path().join("small-disk"), folder.path().join("pool.store"));
    fs::create_dir(&store).unwrap();
    let maru = program().command(&[]).get_program().to_owned();
    let mount = format!("mount -t tmpfs -o size=48m none '{}'", text(&store));
    let inside = format!("{mount} && exec '{}' \"$@\"", text(Path::new(&maru)));
    let inside = inside.replace('"', "\\\"").replace('$', "\\$");
    let unshare = "exec unshare --user --map-root-user --mount";
    fs::write(&script, format!("#!/bin/sh\n{unshare} sh -c \"{inside}\" maru \"$@\"\n")).unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let args = ["--user", "--map-root-user", "--mount", "sh", "-c", &mount];
    let may = Command::new("unshare").args(args).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("not run: no mount namespace can be made here");
        return None;
    }
    Some(Serving::start(&Program::new(script), folder, "16MiB", &[]))
}

#[test]
fn while_the_disk_is_full_reads_go_on_and_writes_come_back() {
    let Some(serving) = serve_on_small_disk() else {
        return;
    };
    let client = serving.client();
    let socket = serving.socket();
    store(&client, &names(1), 7).unwrap();
    // The store's disk, as the server sees it.
    let disk = format!("/proc/{}/root{}", serving.child.id(), text(serving.folder.path()));
    let filler = Path::new(&disk).join("pool.store/filler");
    let full = fs::write(&filler, vec![0; 64 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let other: Vec<String> = names(129).split_off(1);
    let keys: Vec<Key<'_>> = other.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();
    // What the store has set aside is used up first.
    let refused = loop {
        match store(&client, &other, 8).and_then(|()| client.delete(&keys)) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ClientError::Refused(Refusal::StoreFull)), "{refused}");
    assert!(refused.to_string().contains("make room"), "{refused}");
    assert_eq!(read(&client, &names(1)[0]), Some(7), "reads go on");
    assert_eq!(json(&["stat", "--server", text(&socket), "--json"])["store_full"], true);
    assert!(serving.log().contains("writes are refused until"), "{}", serving.log());
    fs::remove_file(&filler).unwrap();
    wait_until("it can be stored again", || client.delete(&keys).is_ok());
    store(&client, &other, 9).unwrap();
    assert_eq!(read(&client, &other[0]), Some(9));
    assert_eq!(client.contains(&keys[..1]).unwrap(), [Presence::Resident]);
    assert_eq!(json(&["stat", "--server", text(&socket), "--json"])["store_full"], false);
    serving.assert_no_alarm();
}
