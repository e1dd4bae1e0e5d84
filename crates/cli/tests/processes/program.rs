//! The program as its user meets it.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::process::{Child, Command};

use super::common::{json, maru, run, serve, stderr};
use maru_client::{Acquire, Reserve, Reserved};
use maru_protocol::Key;
use maru_testkit::{text, wait_until};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_server_is_looked_into_and_stops_cleanly() {
    let mut serving = serve("16MiB", &["--listen", "127.0.0.1:0"]);
    let client = serving.connect().unwrap();
    let keys =
        [Key::new(b"m@00000000@aa@0").unwrap(), Key::new(b"m@00000000@bb\x1b[31m@0").unwrap()];
    for reserved in client.reserve(&keys, 65_536, Reserve::default()).unwrap() {
        let Reserved::Page(page) = reserved else { panic!("{reserved:?}") };
        client.commit([page]).unwrap();
    }
    let _pinned = client.acquire(&keys[..1], Acquire::default()).unwrap();
    let socket = serving.socket();
    let server = text(&socket);

    let stat = json(&["stat", "--server", server, "--json"]);
    assert_eq!(stat["pages_resident"], 2);
    assert_eq!(stat["counters"]["rule_violations"], 0);
    let table = run(&["stat", "--server", server, "--regions"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("quarantined"));

    let ls = json(&["ls", "--server", server, "--json", "m@00000000@a"]);
    assert_eq!(ls.as_array().unwrap().len(), 1);
    assert_eq!((&ls[0]["key"], &ls[0]["pins"]), (&"m@00000000@aa@0".into(), &1.into()));
    let table = run(&["ls", "--server", server]).stdout;
    assert!(!table.contains(&0x1b), "a key cannot send codes to the terminal");

    let pins = json(&["pins", "--server", server, "--json"]);
    assert_eq!((&pins[0]["instance"], &pins[0]["kind"]), (&"test".into(), &"pin".into()));
    let by_instance = json(&["pins", "--server", server, "--json", "--by-instance"]);
    assert_eq!(by_instance[0]["pins"], 1);

    let inspected = json(&["pool", "inspect", "--json", text(&serving.pool())]);
    assert_eq!(inspected[0]["in_use"], true);

    kill_process(Pid::from_child(&serving.child), Signal::TERM).unwrap();
    let status = serving.child.wait().unwrap();
    assert!(status.success(), "{status} {:?}", status.signal());
    assert!(!socket.exists(), "the socket goes with the server");
    assert!(serving.pool().exists(), "a pool that was named stays");
}

#[test]
fn a_second_server_is_refused_and_the_first_goes_on() {
    let serving = serve("16MiB", &[]);
    let (socket, pool) = (serving.socket(), serving.pool());
    let same_socket = run(&["serve", "--socket", text(&socket), "--pool", "/dev/shm/never:16MiB"]);
    assert_eq!(same_socket.status.code(), Some(1));
    assert!(
        stderr(&same_socket).contains("another server is listening"),
        "{}",
        stderr(&same_socket)
    );
    let other = serving.folder.path().join("other");
    let same_pool = run(&["serve", "--socket", text(&other), "--pool", text(&pool)]);
    assert_eq!(same_pool.status.code(), Some(1));
    assert!(stderr(&same_pool).contains("in use by another server"), "{}", stderr(&same_pool));
    assert!(serving.connect().is_some());
}

/// One below the time that a session outlives its connection was refused, in words of no flag.
#[test]
fn the_shortest_lease_is_taken() {
    let serving = serve("8MiB", &["--lease-ms", "100"]);
    assert!(serving.client().stats().is_ok());
}

#[test]
fn wrong_input_is_answered_with_what_to_do() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let socket = path("socket");
    std::fs::write(path("foreign"), vec![7; 8 << 20]).unwrap();
    let too_large = format!("{}:900TiB", path("large"));
    let twice = format!("{}:8MiB", path("twice"));
    let cases: [(&[&str], i32, &str); 33] = [
        (&["stat", "--server", "/nobody/here"], 3, "maru serve"),
        (&["serve", "--socket", &socket, "--pool", &too_large], 1, "more than"),
        (&["serve", "--socket", &socket, "--pool", &path("foreign")], 1, "maru pool init"),
        (&["serve", "--socket", &socket, "--pool", &path("absent")], 1, "512MiB"),
        (&["serve", "--socket", &socket, "--listen", "0.0.0.0:0"], 2, "--insecure"),
        (&["serve", "--socket", &socket, "--listen", "localhost:0"], 2, "127.0.0.1:7000"),
        (&["serve", "--socket", &socket, "--insecure"], 2, "--listen"),
        (&["serve", "--socket", &socket, "--region-size", "3MiB"], 2, "power of two"),
        (&["serve", "--socket", &socket, "--lease-ms", "99"], 2, "--lease-ms"),
        (&["serve", "--socket", &socket, "--sessions-max", "0"], 2, "--sessions-max"),
        (&["serve", "--pool", &twice, "--pool", &twice], 2, "given twice"),
        (&["pool", "init", &twice, &twice], 2, "given twice"),
        (&["pool", "init", &twice, "/nobody/here:8MiB"], 1, &path("twice")),
        (&["pool", "fsck", "/nobody/here"], 1, "/nobody/here"),
        (&["pool", "fsck", &path("foreign")], 1, "maru pool init"),
        (&["pool", "fsck", &path("foreign"), "--store", "/nobody/here"], 1, "no store at"),
        (&["trace", "generate", "--turns", "0"], 2, "turns"),
        (&["trace", "generate", "-o", "/dev/full"], 1, "cannot write /dev/full"),
        (&["replay", "--page-size", "0"], 2, "1 byte to 1GiB"),
        (&["replay", "--speed-up", "0"], 2, "above 0"),
        (&["replay", "--capacity-blocks", "3"], 2, "--capacity-blocks"),
        (&["replay", "--capacity-blocks", "18446744073709551615"], 2, "16 TiB"),
        (&["replay", "--report", "/nobody/here"], 1, "/nobody/here"),
        (&["replay", "--page-size", "16 apples"], 2, "512MiB"),
        (&["replay", "--trace", "/nobody/here"], 1, "/nobody/here"),
        (&["replay", "--l1", "local", "--maru-server-url", "/x"], 2, "--maru-server-url"),
        (&["replay", "--l1", "maru", "--eviction-policy", "ARC"], 2, "--eviction-policy"),
        (&["replay", "--capacity-blocks", "9", "--l1-size-gb", "1"], 2, "--l1-size-gb"),
        (&["replay", "--l1-size-gb", "lots"], 2, "--l1-size-gb"),
        (&["replay", "--l1", "local", "--capacity-blocks", "1000000000"], 2, "--capacity-blocks"),
        (&["replay-instance"], 1, "maru replay"),
        (&["--log", "l=o=u=d", "stat"], 2, "--log"),
        (&["--log", "warning", "stat"], 2, "MODULE=LEVEL"),
    ];
    for (args, code, hint) in cases {
        let output = run(args);
        let complaint = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {complaint}");
        assert!(complaint.contains(hint), "{args:?}: {complaint}");
        assert!(!complaint.contains("panicked"), "{args:?}: {complaint}");
    }
    assert_eq!(std::fs::read(path("foreign")).unwrap(), vec![7; 8 << 20], "it is untouched");
    assert!(!folder.path().join("large").exists());
}

#[test]
fn a_pool_is_made_once() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("pool");
    let spec = format!("{}:8MiB", path.display());
    let first = json(&["pool", "init", "--json", &spec]);
    assert_eq!(first[0]["bytes"], 8 << 20);
    let again = run(&["pool", "init", &spec]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("--overwrite"), "{}", stderr(&again));
    let anew = json(&["pool", "init", "--overwrite", "--json", &spec]);
    assert_ne!(first[0]["uuid"], anew[0]["uuid"]);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4 << 20).unwrap();
    let cut = run(&["pool", "inspect", text(&path)]);
    assert_eq!(cut.status.code(), Some(1));
}

#[test]
fn the_default_server_needs_no_flag_and_starts_again_after_a_kill() {
    // The defaults, but for a folder that no other test's socket is in.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let with_defaults = |args: &[&str]| {
        let mut command = maru(args);
        command.env("XDG_RUNTIME_DIR", folder.path());
        command
    };
    let serve = || {
        let mut child = with_defaults(&["serve"]).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the server answers", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}");
            with_defaults(&["stat", "--json"]).output().unwrap().status.success()
        });
        child
    };
    let mut killed = serve();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(folder.path().join("maru.sock").exists(), "it had no time to clean up");
    let mut child = serve();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!folder.path().join("maru.sock").exists());
}

#[test]
fn completions_come_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]).stdout;
        let script = String::from_utf8_lossy(&script);
        assert!(script.contains("replay") && script.contains("log-format"), "{shell}");
        assert!(!script.contains("replay-instance"), "{shell}: it is not for people");
    }
}

#[test]
fn what_cannot_be_written_is_named() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for args in [&["completions", "bash"][..], &["trace", "generate"]] {
        let output = maru(args).stdout(full.try_clone().unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("cannot write to stdout"), "{}", stderr(&output));
    }
}

#[test]
fn a_hang_up_ends_a_server_unless_it_was_told_to_go_on() {
    let hang_up = |child: &Child| kill_process(Pid::from_child(child), Signal::HUP).unwrap();
    let mut serving = serve("8MiB", &[]);
    hang_up(&serving.child);
    assert!(serving.child.wait().unwrap().success());
    assert!(!serving.socket().exists(), "it ended in good order");

    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let socket = folder.path().join("socket");
    let pool = format!("{}:8MiB", folder.path().join("pool").display());
    let script = "trap '' HUP; exec \"$0\" serve --socket \"$1\" --pool \"$2\"";
    let mut child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_maru"), text(&socket), &pool])
        .spawn()
        .unwrap();
    let stat = || run(&["stat", "--server", text(&socket)]).status.success();
    wait_until("the server answers", stat);
    hang_up(&child);
    assert!(stat(), "it was told to outlive its terminal");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}
