//! What a server does with those who do not behave, and that the others never notice.
#![allow(clippy::unwrap_used)] // Helpers of tests may fail loudly, like tests.

mod wire;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use maru_directory::Config;
use maru_memory::DeviceSpec;
use maru_protocol::{
    Answer, Body, CommitItem, FRAME_BYTES_MAX, FrameKind, HEADER_LEN, Header, Hello, Key, Refusal,
    Request, ReserveOutcome, Resume, SessionId, Standing, Visibility,
};
use maru_server::{Embedded, PoolConfig, Server, ServerConfig, StartError};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use wire::{Pool, Wire, config};

fn pool() -> Pool {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let server = Embedded::start(&config(folder.path())).unwrap();
    Pool { folder, server }
}

#[test]
fn bad_frames_end_their_connection_and_no_other() {
    let pool = pool();
    let (mut bystander, _) = pool.session("bystander");
    let bad: [(&str, Vec<u8>); 6] = [
        ("random bytes", b"\x8f\x01\x02garbage that is longer than a header".to_vec()),
        ("another version", b"MR\x07\x01\x00\x00\x00\x00".to_vec()),
        ("too large before hello", b"MR\x03\x01\xff\xff\xff\x7f".to_vec()),
        ("an unknown kind", b"MR\x03\x63\x00\x00\x00\x00".to_vec()),
        ("a request before hello", b"MR\x03\x03\x03\x00\x00\x00\x01\x00\x00".to_vec()),
        ("a hello that is none", b"MR\x03\x01\x03\x00\x00\x00\xff\xff\xff".to_vec()),
    ];
    for (what, bytes) in bad {
        let mut wire = pool.wire();
        wire.send(&bytes);
        let refusal = wire.refused();
        match what {
            "another version" => assert_eq!(refusal, Refusal::Version { server: 3, client: 7 }),
            "a request before hello" => assert!(matches!(refusal, Refusal::Unexpected { .. })),
            _ => assert!(matches!(refusal, Refusal::Malformed { .. }), "{what}: {refusal:?}"),
        }
        assert_eq!(bystander.ask(Body::Renew), Ok(Answer::Renewed(vec![])), "{what}");
    }
    let (mut wire, _) = pool.session("half");
    wire.send(b"MR\x03\x03\xff\xff\xff\x7f");
    assert!(matches!(wire.refused(), Refusal::Malformed { .. }));
    let (mut wire, _) = pool.session("half");
    let mut frame = wire.encode(Body::Renew);
    frame[8] = 0xff;
    wire.send(&frame);
    assert!(matches!(wire.refused(), Refusal::Malformed { .. }));
    assert_eq!(bystander.ask(Body::Renew), Ok(Answer::Renewed(vec![])));
}

#[test]
fn a_truncated_frame_is_waited_for_and_its_sender_may_vanish() {
    let pool = pool();
    let (mut bystander, _) = pool.session("bystander");
    let (mut slow, _) = pool.session("slow");
    let frame = slow.encode(Body::Renew);
    for byte in &frame {
        slow.send(&[*byte]);
        assert_eq!(bystander.ask(Body::Renew), Ok(Answer::Renewed(vec![])));
    }
    assert_eq!(slow.reply().result, Ok(Answer::Renewed(vec![])));
    let half = slow.encode(Body::Stats);
    slow.send(&half[..half.len() - 1]);
    drop(slow);
    assert_eq!(bystander.ask(Body::Renew), Ok(Answer::Renewed(vec![])));
}

#[test]
fn one_who_floods_and_never_reads_does_not_stop_the_others() {
    let pool = pool();
    let (mut bystander, _) = pool.session("bystander");
    let (mut flooder, _) = pool.session("flooder");
    flooder.stream.set_nonblocking(true).unwrap();
    let frame = flooder.encode(Body::Regions);
    let flood = frame.repeat(1000);
    let (mut sent, mut refused) = (0, 0);
    // Until the server has stopped taking what the flooder makes no room for.
    while refused < 100 {
        match flooder.stream.write(&flood[sent % frame.len()..]) {
            Ok(len) => (sent, refused) = (sent + len, 0),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => refused += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 64 << 20, "the server buffers without end");
        assert_eq!(bystander.ask(Body::Renew), Ok(Answer::Renewed(vec![])));
    }
}

#[test]
fn a_request_sent_again_over_a_new_connection_is_applied_once() {
    let pool = pool();
    let (mut wire, welcome) = pool.session("a");
    let keys = vec![Key::new(b"key").unwrap()];
    let reserve = Body::Reserve { keys, page_bytes: 4096, tag: 0, unless_being_written: false };
    let frame = wire.encode(reserve);
    wire.send(&frame);
    let first = wire.reply();
    // The reply is "lost", the connection breaks, and the request comes again.
    let mut again = pool.wire();
    let resume = Resume { session: welcome.session, secret: welcome.secret };
    assert!(again.hello("a", Some(resume)).standing == Standing::Resumed);
    assert_eq!(wire.frame(), None, "the old connection is closed");
    again.send(&frame);
    assert_eq!(again.reply(), first);
    again.seq = 1;
    let Ok(Answer::Stats(stats)) = again.ask(Body::Stats) else { panic!("stats") };
    assert_eq!((stats.pages_reserved, stats.counters.replays), (1, 1));
}

#[test]
fn a_session_needs_its_secret() {
    let pool = pool();
    let (_wire, welcome) = pool.session("a");
    let mut thief = pool.wire();
    let resume = Resume { session: welcome.session, secret: maru_protocol::Secret([0; 16]) };
    let got = thief.hello("thief", Some(resume));
    assert!(got.standing == Standing::New && got.session != welcome.session);
    let mut stranger = pool.wire();
    let resume = Resume { session: SessionId(1), secret: welcome.secret };
    assert!(stranger.hello("stranger", Some(resume)).standing == Standing::New);
}

#[test]
fn a_second_server_on_the_same_socket_or_pool_is_refused_and_the_first_goes_on() {
    let pool = pool();
    let (mut client, _) = pool.session("a");
    let first = config(pool.folder.path());
    let error = Embedded::start(&first).unwrap_err();
    assert!(matches!(error, StartError::AddressInUse { .. }), "{error}");
    let same_pool =
        ServerConfig { socket: Some(pool.folder.path().join("other")), ..first.clone() };
    let error = Embedded::start(&same_pool).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    assert_eq!(client.ask(Body::Renew), Ok(Answer::Renewed(vec![])));
    let (mut late, _) = pool.session("late");
    assert_eq!(late.ask(Body::Renew), Ok(Answer::Renewed(vec![])));
}

#[test]
fn what_is_not_a_socket_is_left_alone() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("socket");
    std::fs::write(&path, "precious").unwrap();
    let error = Embedded::start(&config(folder.path())).unwrap_err();
    assert!(matches!(error, StartError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    assert!(!folder.path().join("pool").exists(), "nothing is left behind");
}

/// The new pool of a server that was refused its store stayed.
#[test]
fn a_pool_that_was_made_for_nothing_is_removed() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = |name: &str| folder.path().join(name);
    let config = |name: &str| ServerConfig {
        socket: Some(path("socket")),
        store: Some(path("store")),
        ..ServerConfig::new(PoolConfig::Devices(vec![DeviceSpec {
            path: path(name),
            bytes: Some(8 << 20),
        }]))
    };
    drop(Embedded::start(&config("first")).unwrap());
    let error = Embedded::start(&config("second")).unwrap_err();
    assert!(matches!(error, StartError::StoreOfAnother { .. }), "{error}");
    assert!(path("first").exists() && !path("second").exists());
}

/// A wrong flag was taken for a store that does not match, and the pool was made anew.
#[test]
fn what_a_killed_server_left_outlives_wrong_settings() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let spec = DeviceSpec { path: folder.path().join("pool"), bytes: Some(8 << 20) };
    let config = |change: fn(&mut ServerConfig)| {
        let pool = PoolConfig::Temporary(spec.clone());
        let mut config =
            ServerConfig { socket: Some(folder.path().join("socket")), ..ServerConfig::new(pool) };
        change(&mut config);
        config
    };
    // As if it was killed: it never ran to its end.
    drop(Server::start(&config(|_| {})).unwrap());
    let before = std::fs::read(&spec.path).unwrap();
    let low = |config: &mut ServerConfig| config.directory.watermark_high_permille = 10;
    let error = Server::start(&config(low)).unwrap_err();
    assert!(matches!(error, StartError::Config(_)), "{error}");
    let regions = |config: &mut ServerConfig| config.region_bytes = Some(4 << 20);
    let error = Server::start(&config(regions)).unwrap_err();
    assert!(matches!(error, StartError::RegionSize { stored, .. } if stored == 2 << 20), "{error}");
    let visibility = |config: &mut ServerConfig| config.visibility = Visibility::CacheLine;
    let error = Server::start(&config(visibility)).unwrap_err();
    assert!(matches!(error, StartError::OtherVisibility { stored: "coherent", .. }), "{error}");
    assert!(std::fs::read(&spec.path).unwrap() == before, "it is untouched");
}

#[test]
fn an_expired_session_is_told_so() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let directory = Config { lease_ms: 100, resume_ms: 100, ..Config::default() };
    let config = ServerConfig { directory, ..config(folder.path()) };
    let server = Embedded::start(&config).unwrap();
    let pool = Pool { folder, server };
    let (mut silent, _) = pool.session("silent");
    assert_eq!(silent.refused(), Refusal::SessionEnded);
}

/// The last bytes and the end of the stream may come in one event; the end went unseen, and the
/// connection stayed until its lease ran out, or for ever if the process was dead.
#[test]
fn an_end_that_comes_with_the_last_bytes_is_seen() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let directory = Config { lease_ms: 600_000, ..Config::default() };
    let server = Embedded::start(&ServerConfig { directory, ..config(folder.path()) }).unwrap();
    let pool = Pool { folder, server };
    let (mut bystander, _) = pool.session("bystander");
    for _ in 0..100 {
        let (mut wire, _) = pool.session("half");
        let half = wire.encode(Body::Stats);
        wire.send(&half[..half.len() - 1]);
    }
    let start = Instant::now();
    loop {
        let Ok(Answer::Stats(stats)) = bystander.ask(Body::Stats) else { panic!("stats") };
        if stats.sessions.iter().filter(|session| session.connected).count() == 1 {
            break;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "a connection that is gone is kept");
        std::thread::yield_now();
    }
}

/// Requests were left in the buffer if their answers had no room and then all went out at once.
#[test]
fn all_requests_are_answered_however_large_the_answers() {
    const LISTS: u64 = 40;
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let listen = Some("127.0.0.1:0".parse().unwrap());
    let server = Embedded::start(&ServerConfig { listen, ..config(folder.path()) }).unwrap();
    let pool = Pool { folder, server };
    let (mut writer, _) = pool.session("writer");
    let names: Vec<String> = (0..1024).map(|n| format!("{n:01024}")).collect();
    let keys = names.iter().map(|name| Key::new(name.as_bytes()).unwrap()).collect();
    let body = Body::Reserve { keys, page_bytes: 4096, tag: 0, unless_being_written: false };
    let Ok(Answer::Reserved(granted)) = writer.ask(body) else { panic!("reserve") };
    let item = |outcome| match outcome {
        ReserveOutcome::Granted(location) => {
            CommitItem { handle: location.handle, length: 1, checksum: None }
        }
        other => panic!("not granted: {other:?}"),
    };
    let items = granted.into_iter().map(item).collect();
    assert!(writer.ask(Body::Commit { items, pins: 0, names: Vec::new() }).is_ok());
    let hello = Hello {
        instance: "reader",
        host: "test",
        budget_bytes: 0,
        resume: None,
        outside_writers: false,
    };
    let mut frames = Vec::new();
    maru_protocol::encode(FrameKind::Hello, &hello, &mut frames).unwrap();
    for seq in 1..=LISTS {
        let body = Body::List { prefix: b"", cursor: 0, limit: 4096 };
        let request = Request { seq, acked: seq - 1, body };
        maru_protocol::encode(FrameKind::Request, &request, &mut frames).unwrap();
    }
    // Whether the answers go out at once is up to the kernel, so this is tried a few times.
    for _ in 0..8 {
        let mut stream = TcpStream::connect(pool.server.tcp_address().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        stream.write_all(&frames).unwrap();
        for _ in 0..=LISTS {
            let mut header = [0; HEADER_LEN];
            stream.read_exact(&mut header).unwrap();
            let mut body = vec![0; Header::parse(header, FRAME_BYTES_MAX).unwrap().len];
            stream.read_exact(&mut body).unwrap();
        }
    }
}

/// Many instances may start at once: those who came last were turned away.
#[test]
fn those_who_are_too_many_to_be_let_in_at_once_wait() {
    let pool = pool();
    let wires: Vec<Wire> = (0..280).map(|_| pool.wire()).collect();
    for mut wire in wires {
        wire.hello("one of many", None);
    }
}

#[test]
fn a_connection_ends_with_its_session() {
    let pool = pool();
    let (mut wire, _) = pool.session("a");
    assert_eq!(wire.ask(Body::Goodbye), Ok(Answer::Done));
    assert_eq!(wire.frame(), None);
}

/// Names the folder of a server that runs in a process of its own.
const SERVE_IN: &str = "MARU_TEST_SERVE_IN";

/// That process; killed at drop.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_server_that_was_stopped_hears_who_spoke_meanwhile() {
    let lease = Duration::from_secs(3);
    let directory = Config { lease_ms: 3000, ..Config::default() };
    if let Some(folder) = std::env::var_os(SERVE_IN) {
        let config = ServerConfig { directory, ..config(Path::new(&folder)) };
        Server::start(&config).unwrap().run().unwrap();
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_server_that_was_stopped_hears_who_spoke_meanwhile"])
        .env(SERVE_IN, folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let server = Process(server);
    let pid = Pid::from_child(&server.0);
    let start = Instant::now();
    let stream = loop {
        match UnixStream::connect(folder.path().join("socket")) {
            Ok(stream) => break stream,
            Err(error) => assert!(start.elapsed() < Duration::from_mins(1), "{error}"),
        }
        std::thread::yield_now();
    };
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let mut wire = Wire { stream, received: Vec::new(), seq: 0 };
    wire.hello("a", None);
    kill_process(pid, Signal::STOP).unwrap();
    waitpid(Some(pid), WaitOptions::UNTRACED).unwrap();
    let renew = wire.encode(Body::Renew);
    wire.send(&renew);
    // Nothing happens meanwhile but that the lease runs out.
    std::thread::sleep(lease);
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(wire.reply().result, Ok(Answer::Renewed(vec![])));
}
