use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::{CommandFactory, Parser};
use proptest::prelude::*;

use super::layers::variable;
use super::resolve::Surroundings;
use super::*;

const TIB: u64 = 1 << 40;
const GIB: u64 = 1 << 30;
const URL: &str = "--maru-server-url=maru://node-3:7000";

/// A command that has more than an L1.
#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    l1: L1Args,
    /// Another flag.
    #[arg(long)]
    other: bool,
}

/// What the layers say, on a machine with so much memory.
#[derive(Clone, Default)]
struct Layered {
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    file: Option<String>,
    available: Option<u64>,
}

impl Layered {
    fn flags(flags: &[&str]) -> Self {
        Self::default().and_flags(flags)
    }

    fn and_flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn file(mut self, text: &str) -> Self {
        self.file = Some(text.to_owned());
        self
    }

    fn available(mut self, bytes: u64) -> Self {
        self.available = Some(bytes);
        self
    }

    /// The result; in a message, the file's path is `FILE`.
    fn resolve(&self) -> Result<L1ManagerConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l1.toml");
        let mut flags = self.flags.clone();
        if let Some(text) = &self.file {
            std::fs::write(&path, text).unwrap();
            flags.push(format!("--l1-config={}", path.display()));
        }
        let flags = std::iter::once("command".to_owned()).chain(flags);
        let command = Command::try_parse_from(flags).map_err(|error| error.to_string())?;
        let variable = |name: &str| {
            let set = self.environment.iter().find(|(known, _)| known == name);
            set.map(|(_, value)| value.into())
        };
        let available = self.available.unwrap_or(TIB);
        let config = command.l1.resolve_in(&Surroundings {
            environment: &variable,
            available_bytes: &|| Some(available),
        });
        config.map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    }

    fn refused(&self) -> String {
        self.resolve().unwrap_err()
    }
}

#[test]
fn the_flags_are_well_formed_and_nobody_elses() {
    let mut command = Command::command();
    command.clone().debug_assert();
    assert_eq!(command.get_about().unwrap().to_string(), "A command that has more than an L1");
    let help = command.render_long_help().to_string();
    let (_, options) = help.split_once("\nOptions:").unwrap();
    let (options, _) = options.split_once("\nL1 memory:").unwrap();
    assert!(options.contains("--other"), "under no foreign heading: {help}");
}

#[test]
fn nothing_said_is_the_default() {
    let config = Layered::default().resolve().unwrap();
    assert_eq!(config, L1ManagerConfig::default());
    assert_eq!(L1ManagerConfig::default().check(), Ok(()));
}

#[test]
fn the_help_tells_the_variables_and_the_true_defaults() {
    let defaults = Layered::flags(&[URL]).resolve().unwrap();
    for arg in Command::command().get_arguments().filter(|arg| arg.get_id() != "other") {
        let flag = format!("--{}", arg.get_long().unwrap());
        let help = arg.get_help().unwrap().to_string();
        if !flag.starts_with("--no-") {
            assert!(help.contains(&format!("[env: {}]", variable(&flag))), "{flag}: {help}");
        }
        if let Some((_, default)) = help.split_once("[default: ") {
            let (default, _) = default.split_once(']').unwrap();
            let said = Layered::flags(&[URL, &format!("{flag}={default}")]).resolve();
            assert_eq!(said.unwrap(), defaults, "{flag}");
        }
    }
}

#[test]
fn a_flag_comes_before_a_variable_before_a_file_before_the_default() {
    let bytes = |layered: &Layered| layered.resolve().unwrap().memory.bytes;
    let mut layered = Layered::default();
    assert_eq!(bytes(&layered), 4 * GIB);
    layered = layered.file("l1_size_gb = 1\neviction-ratio = 0.5");
    assert_eq!(bytes(&layered), GIB);
    layered = layered.environment("MARU_L1_SIZE_GB", "2");
    assert_eq!(bytes(&layered), 2 * GIB);
    layered = layered.and_flags(&["--l1-size-gb", "3"]);
    assert_eq!(bytes(&layered), 3 * GIB);
    // Each setting for itself.
    assert!((layered.resolve().unwrap().eviction.ratio - 0.5).abs() < f64::EPSILON);
    // Nothing is no value.
    let layered = Layered::default().environment("MARU_L1_SIZE_GB", "");
    assert_eq!(bytes(&layered), 4 * GIB);
}

#[test]
fn switches_have_layers_too() {
    let expands = |layered: Layered| {
        let layered = layered.and_flags(&[URL]);
        layered.resolve().unwrap().maru.unwrap().auto_expand
    };
    assert!(expands(Layered::default()));
    let file = Layered::default().file("maru-auto-expand = false");
    assert!(!expands(file.clone()));
    let variable = file.environment("MARU_AUTO_EXPAND", "Yes");
    assert!(expands(variable.clone()));
    let flag = variable.and_flags(&["--no-maru-auto-expand"]);
    assert!(!expands(flag.clone()));
    assert!(expands(flag.and_flags(&["--maru-auto-expand"])), "the last flag counts");
}

#[test]
fn the_file_can_be_named_by_a_variable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("l1.toml");
    std::fs::write(&path, "l1-read-ttl-seconds = 1.5").unwrap();
    let path = path.display().to_string();
    let config = Layered::default().environment("MARU_L1_CONFIG", &path).resolve().unwrap();
    assert_eq!(config.read_ttl, Duration::from_millis(1500));
    let refused = Layered::default().environment("MARU_L1_CONFIG", "/no/such/file").refused();
    let expected = "cannot read /no/such/file, the file of --l1-config (from MARU_L1_CONFIG): ";
    assert!(refused.starts_with(expected), "{refused}");
}

#[test]
fn every_setting_arrives() {
    let text = r#"
        l1-size-gb = 10
        l1-use-lazy = true
        l1-init-size-gb = 0.5
        l1-align-bytes = 65536
        l1-use-hugepages = false
        l1-write-ttl-seconds = 7
        l1-read-ttl-seconds = 8
        eviction-policy = "s3-fifo"
        eviction-isolate-salts = true
        eviction-trigger-watermark = 0.9
        eviction-ratio = 1
    "#;
    let expected = L1ManagerConfig {
        memory: L1MemoryConfig {
            bytes: 10 * GIB,
            initial_bytes: GIB / 2,
            align_bytes: 65536,
            huge_pages: false,
        },
        maru: None,
        write_ttl: Duration::from_secs(7),
        read_ttl: Duration::from_secs(8),
        eviction: EvictionConfig {
            policy: EvictionPolicyKind::S3Fifo,
            isolate_salts: true,
            trigger_watermark: 0.9,
            ratio: 1.0,
        },
    };
    assert_eq!(Layered::default().file(text).resolve().unwrap(), expected);

    let shared = r#"
        maru-server-url = "tcp://127.0.0.1:7000"
        maru-pool-size-gb = 2
        maru-instance-id = "decode-1"
        maru-timeout-ms = 500
        maru-max-inflight = 8
        maru-eager-map = false
        maru-auto-expand = false
        maru-verify = "always"
        maru-host-id = "rack-7"
        maru-visibility-plugin = "/opt/visibility.so"
    "#;
    let config = Layered::default().file(shared).resolve().unwrap().maru.unwrap();
    let expected = MaruL1Config {
        server: Endpoint::Tcp("127.0.0.1:7000".to_owned()),
        pool_bytes: 2 * GIB,
        instance: Some("decode-1".to_owned()),
        timeout: Duration::from_millis(500),
        in_flight_max: 8,
        eager_map: false,
        auto_expand: false,
        verify: Verify::Always,
        host: Some("rack-7".to_owned()),
        visibility_plugin: Some(PathBuf::from("/opt/visibility.so")),
        outside_writers: false,
        one_pool: false,
    };
    assert_eq!(config, expected);
    let client = config.client_config();
    assert_eq!((client.budget_bytes, client.instance.as_str()), (2 * GIB, "decode-1"));
    assert_eq!((client.in_flight_max, client.eager_map), (8, false));
    assert_eq!((client.verify, client.host.as_deref()), (Verify::Always, Some("rack-7")));
    assert_eq!(client.visibility_plugin, expected.visibility_plugin);
    let unlimited = MaruL1Config { auto_expand: true, instance: None, ..config }.client_config();
    assert_eq!(unlimited.budget_bytes, 0);
    assert_eq!(unlimited.instance, ClientConfig::default().instance);
}

#[test]
fn a_server_is_named_in_any_of_its_forms() {
    let socket = || Endpoint::Unix(PathBuf::from("/run/maru@1.sock"));
    for (text, server) in [
        ("maru://node-3:7000", Endpoint::Tcp("node-3:7000".to_owned())),
        ("tcp://[::1]:7000/", Endpoint::Tcp("[::1]:7000".to_owned())),
        ("unix:///run/maru@1.sock", socket()),
        ("/run/maru@1.sock", socket()),
    ] {
        let layered = Layered::default().environment("MARU_SERVER_URL", text);
        let config = layered.resolve().unwrap().maru.unwrap();
        assert_eq!(config, MaruL1Config::new(server));
    }
}

#[test]
fn policies_have_lmcaches_names() {
    use EvictionPolicyKind::{Arc, Lru, None, S3Fifo};
    for (name, policy, isolated) in [
        ("LRU", Lru, false),
        ("lru", Lru, false),
        ("IsolatedLRU", Lru, true),
        ("S3-FIFO", S3Fifo, false),
        ("ARC", Arc, false),
        ("noop", None, false),
        ("none", None, false),
    ] {
        let eviction = Layered::flags(&["--eviction-policy", name]).resolve().unwrap().eviction;
        assert_eq!((eviction.policy, eviction.isolate_salts), (policy, isolated), "{name}");
    }
    let isolated = Layered::flags(&["--eviction-policy=ARC", "--eviction-isolate-salts"]);
    assert!(isolated.resolve().unwrap().eviction.isolate_salts);
}

#[test]
fn private_memory_is_brought_down_to_what_there_is() {
    let ask = Layered::flags(&["--l1-size-gb=100"]).available(16 * GIB + 5);
    let (config, log) = logged(|| ask.resolve().unwrap());
    assert_eq!((config.memory.bytes, config.memory.initial_bytes), (14 * GIB, GIB / 4));
    assert!(log.contains("WARN") && log.contains("--l1-size-gb is more than"), "{log}");
    assert!(log.contains("asked_gb=100") && log.contains("taken_gb=14"), "{log}");

    let (config, log) = logged(|| ask.clone().available(TIB).resolve().unwrap());
    assert_eq!((config.memory.bytes, config.memory.initial_bytes), (100 * GIB, GIB / 4));
    assert_eq!(log, "");
    let config = ask.clone().available(0).resolve().unwrap();
    assert_eq!(config.memory.bytes, 4096, "there is always a little");
    let config = ask.clone().and_flags(&["--l1-use-hugepages"]).resolve().unwrap();
    assert_eq!(config.memory.bytes, 100 * GIB, "set aside already");
    assert_eq!(config.memory.initial_bytes, 100 * GIB);

    let (config, log) = logged(|| ask.clone().and_flags(&[URL]).resolve().unwrap());
    assert_eq!(config.memory.bytes, 100 * GIB, "nothing is taken");
    assert_eq!(log, "");
}

#[test]
fn settings_of_private_memory_do_nothing_with_a_server() {
    let flags = [URL, "--l1-size-gb=0", "--l1-use-hugepages", "--l1-use-lazy"];
    let (_, log) = logged(|| Layered::flags(&flags).resolve().unwrap());
    assert!(log.contains("--l1-use-lazy --l1-use-hugepages"), "{log}");
    assert!(log.contains("WARN") && log.contains("because of --maru-server-url"), "{log}");
}

/// What `work` says to the log.
fn logged<T>(work: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time();
    let subscriber = subscriber.with_writer(move || writer.clone()).finish();
    let result = tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    (result, text)
}

mod refusals;
