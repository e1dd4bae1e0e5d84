//! Every mistake is told by the flag, and by where it was made.

use super::*;

/// `name: value` on the command line, in the environment and in the file says the same, with where.
fn everywhere(flag: &str, value: &str, in_file: &str, message: &str) {
    let expected = |origin: &str| format!("{flag} is {message}").replace('@', origin);
    let server = if flag.starts_with("--maru") && !flag.ends_with("url") { URL } else { "--other" };
    let on_command_line = Layered::flags(&[server, &format!("{flag}={value}")]);
    assert_eq!(on_command_line.refused(), expected(" (from the command line)"));
    let name = variable(flag);
    let in_environment = Layered::flags(&[server]).environment(&name, value);
    assert_eq!(in_environment.refused(), expected(&format!(" (from {name})")));
    let key = flag.trim_start_matches("--");
    let in_file = Layered::flags(&[server]).file(&format!("\n# why\n{key} = {in_file}"));
    assert_eq!(in_file.refused(), expected(" (from FILE:3)"));
}

#[test]
fn values_out_of_range() {
    let gb = "but must be a number of GB above 0 and at most 131072, such as 8";
    let seconds = "but must be a number of seconds above 0 and at most 31536000, such as 300";
    for flag in ["--l1-size-gb", "--maru-pool-size-gb"] {
        everywhere(flag, "-1", "-1", &format!("-1@, {gb}"));
        everywhere(flag, "0", "0", &format!("0@, {gb}"));
        everywhere(flag, "NaN", "nan", &format!("NaN@, {gb}"));
        everywhere(flag, "inf", "inf", &format!("inf@, {gb}"));
        everywhere(flag, "200000", "200000", &format!("200000@, {gb}"));
    }
    for flag in ["--l1-write-ttl-seconds", "--l1-read-ttl-seconds"] {
        everywhere(flag, "0", "0", &format!("0@, {seconds}"));
        everywhere(flag, "-3", "-3", &format!("-3@, {seconds}"));
        everywhere(flag, "inf", "inf", &format!("inf@, {seconds}"));
    }
    for flag in ["--eviction-ratio", "--eviction-trigger-watermark"] {
        everywhere(flag, "1.5", "1.5", "1.5@, but must be 0 to 1");
        everywhere(flag, "-0.1", "-0.1", "-0.1@, but must be 0 to 1");
        everywhere(flag, "NaN", "nan", "NaN@, but must be 0 to 1");
    }
    let align = "but must be a power of two of bytes, 1 to 2097152, such as 4096";
    for bad in ["0", "5000", "4194304", "-4096"] {
        everywhere("--l1-align-bytes", bad, bad, &format!("{bad}@, {align}"));
    }
    let ms = "but must be a whole number of milliseconds, 1 to 86400000";
    everywhere("--maru-timeout-ms", "0", "0", &format!("0@, {ms}"));
    everywhere("--maru-timeout-ms", "1.5", "1.5", &format!("1.5@, {ms}"));
    let requests = "but must be a whole number of requests, 1 to 65536";
    everywhere("--maru-max-inflight", "0", "0", &format!("0@, {requests}"));
    let small = "0.0000001@, but must be at least --l1-align-bytes, 4096 bytes";
    everywhere("--l1-size-gb", "0.0000001", "1e-7", small);
}

#[test]
fn texts_that_are_no_such_thing() {
    let policy = "but must be LRU, S3-FIFO, ARC, IsolatedLRU, noop or none";
    everywhere("--eviction-policy", "MRU", "'MRU'", &format!("MRU@, {policy}"));
    let server = "but must be a server's address: maru://HOST:PORT, tcp://HOST:PORT, \
                  unix:///PATH or /PATH, without a user or password";
    for bad in ["http://node:80", "maru://node", "tcp://node:x", "node:7000"] {
        everywhere("--maru-server-url", bad, &format!("'{bad}'"), &format!("{bad}@, {server}"));
    }
    let long = "x".repeat(129);
    let cut = format!("{}...@, but must be 1 to 128 bytes of text without control characters", {
        "x".repeat(100)
    });
    let escaped = r#""a\tb"@, but must be 1 to 128 bytes of text without control characters"#;
    for flag in ["--maru-instance-id", "--maru-host-id"] {
        everywhere(flag, &long, &format!("'{long}'"), &cut);
        everywhere(flag, "a\tb", r#""a\tb""#, escaped);
    }
    everywhere("--maru-verify", "some", "'some'", "some@, but must be off, sample or always");
    let library = "but must be an absolute path, such as /usr/lib/libvisibility.so";
    everywhere("--maru-visibility-plugin", "a.so", "'a.so'", &format!("a.so@, {library}"));
}

#[test]
fn numbers_that_are_none() {
    let refused = Layered::flags(&["--l1-size-gb=8GiB"]).refused();
    assert!(refused.starts_with("--l1-size-gb is 8GiB (from the command line), but must"));
    let refused = Layered::default().environment("MARU_AUTO_EXPAND", "perhaps").refused();
    let expected =
        "--maru-auto-expand is perhaps (from MARU_AUTO_EXPAND), but must be true or false";
    assert_eq!(refused, expected);
}

#[test]
fn variables_that_are_no_text() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    let bad =
        |name: &str| (name == "MARU_SERVER_URL").then(|| OsString::from_vec(vec![b'/', 0xFF]));
    let surroundings = Surroundings { environment: &bad, available_bytes: &|| None };
    let refused = L1Args::default().resolve_in(&surroundings).unwrap_err().to_string();
    assert!(refused.ends_with(" (from MARU_SERVER_URL), but must be text in UTF-8"), "{refused}");
}

#[test]
fn settings_of_maru_need_its_server() {
    let message = |flag: &str, origin: &str| {
        format!(
            "{flag} (from {origin}) needs --maru-server-url, which is not given: give both or \
             neither"
        )
    };
    for flag in [
        "--maru-pool-size-gb=1",
        "--maru-instance-id=a",
        "--maru-timeout-ms=1",
        "--maru-max-inflight=1",
        "--maru-eager-map",
        "--maru-auto-expand",
        "--maru-verify=off",
        "--maru-host-id=a",
        "--maru-visibility-plugin=/a.so",
    ] {
        let (name, _) = flag.split_once('=').unwrap_or((flag, ""));
        assert_eq!(Layered::flags(&[flag]).refused(), message(name, "the command line"));
    }
    let off = Layered::flags(&["--no-maru-auto-expand"]).refused();
    assert_eq!(off, message("--maru-auto-expand", "the command line"));
    let variable = Layered::default().environment("MARU_POOL_SIZE_GB", "8").refused();
    assert_eq!(variable, message("--maru-pool-size-gb", "MARU_POOL_SIZE_GB"));
    let file = Layered::default().file("maru_timeout_ms = 5").refused();
    assert_eq!(file, message("--maru-timeout-ms", "FILE:1"));
}

#[test]
fn settings_that_exclude_each_other() {
    let huge_pages = Layered::default().file("l1_use_hugepages = true");
    assert!(huge_pages.resolve().unwrap().memory.huge_pages, "lazy is off by itself");
    assert_eq!(
        huge_pages.and_flags(&["--l1-use-lazy"]).refused(),
        "--l1-use-hugepages (from FILE:1) does not go with --l1-use-lazy (from the command line): \
         huge pages are all taken at the start: say --no-l1-use-lazy, or nothing"
    );
    let isolated = Layered::default().environment("MARU_EVICTION_POLICY", "isolatedlru");
    assert_eq!(
        isolated.and_flags(&["--no-eviction-isolate-salts"]).refused(),
        "--eviction-policy (from MARU_EVICTION_POLICY) does not go with \
         --no-eviction-isolate-salts (from the command line): IsolatedLRU isolates them: say LRU, \
         or nothing of salts"
    );
}

#[test]
fn files_that_are_none() {
    let refused = |text: &str| Layered::default().file(text).refused();
    assert_eq!(
        refused("l1-size-gb = 1\n\nl1-sise-gb = 2\nx = 1"),
        "FILE:3: there is no setting l1-sise-gb: a key is a flag without its dashes in front, and \
         no-... is written false"
    );
    let tables = refused("[maru]\nserver-url = '/run/maru.sock'");
    assert!(tables.starts_with("FILE:1: there is no setting maru: "), "{tables}");
    let off = refused("no-maru-auto-expand = true");
    assert!(off.starts_with("FILE:1: there is no setting no-maru-auto-expand: "), "{off}");
    let config = refused("l1-config = 'another'");
    assert!(config.starts_with("FILE:1: there is no setting l1-config: "), "{config}");
    assert_eq!(
        refused("l1-size-gb = 1\nl1_size_gb = 2"),
        "FILE:2: --l1-size-gb is given twice: write either dashes or underscores"
    );
    for (text, message) in [
        (
            "l1-size-gb = '8'",
            "--l1-size-gb is of type string (from FILE:1), but must be a number, without quotes",
        ),
        (
            "l1-use-lazy = 1",
            "--l1-use-lazy is of type integer (from FILE:1), but must be true or false, without quotes",
        ),
        (
            "eviction-policy = ['LRU']",
            "--eviction-policy is of type array (from FILE:1), but must be text in quotes",
        ),
    ] {
        assert_eq!(refused(text), message);
    }
    let syntax = refused("l1-size-gb = 1\nl1-align-bytes 4096");
    assert!(syntax.starts_with("FILE:2: ") && syntax.contains("takes TOML"), "{syntax}");
    let large = refused(&"#".repeat((1 << 20) + 1));
    assert!(large.ends_with("(from the command line): it has more than 1 MiB"), "{large}");
}

#[test]
fn a_secret_is_not_repeated() {
    for url in [
        "maru://me:hunter2@node:7000",
        "tcp://hunter2@node:7000",
        "me:hunter2@node:7000",
        "maru://node:7000?token=hunter2",
        "maru://node#hunter2",
        "@hunter2@://node:1",
    ] {
        let layers = [
            Layered::flags(&["--maru-server-url", url]),
            Layered::default().environment("MARU_SERVER_URL", url),
            Layered::default().file(&format!("maru-server-url = '{url}'")),
        ];
        for layered in layers {
            match layered.resolve() {
                Ok(config) => panic!("{config:?}"),
                Err(refused) => {
                    assert!(refused.contains("--maru-server-url"), "{refused}");
                    assert!(!refused.contains("hunter2"), "{refused}");
                }
            }
        }
    }
    for text in ["password = hunter2", "password = 'hunter2'", "'hunter2", "a = 1 'hunter2'"] {
        let refused = Layered::default().file(text).refused();
        assert!(!refused.contains("hunter2"), "{refused}");
    }
}

#[test]
fn configurations_of_programs_are_checked_too() {
    let config = L1ManagerConfig::default();
    let memory = L1MemoryConfig { initial_bytes: 5 * GIB, ..config.memory.clone() };
    let refused = L1ManagerConfig { memory, ..config.clone() }.check().unwrap_err();
    let expected = "--l1-init-size-gb is 5, but must be at most --l1-size-gb, 4 GB";
    assert_eq!(refused.to_string(), expected);
    let maru = MaruL1Config::new(Endpoint::Tcp("node:1".to_owned()));
    let maru = MaruL1Config { instance: Some(String::new()), ..maru };
    let refused = L1ManagerConfig { maru: Some(maru), ..config.clone() }.check().unwrap_err();
    assert!(refused.to_string().starts_with("--maru-instance-id is \"\", but must be"));
    let refused = L1ManagerConfig { read_ttl: Duration::MAX, ..config }.check().unwrap_err();
    assert!(refused.to_string().starts_with("--l1-read-ttl-seconds is 18446744073709552000, but"));
}

/// Any value for each flag, likely and unlikely ones.
fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC*",
        any::<f64>().prop_map(|number| number.to_string()),
        any::<i64>().prop_map(|number| number.to_string()),
        prop_oneof![Just("true"), Just("LRU"), Just("/s"), Just("maru://a:1"), Just("1e-300")]
            .prop_map(str::to_owned),
    ]
}

fn any_flag() -> impl Strategy<Value = String> {
    let command = Command::command();
    let long = command.get_arguments().filter_map(|arg| arg.get_long());
    let flags: Vec<String> =
        long.filter(|long| *long != "l1-config").map(|long| format!("--{long}")).collect();
    proptest::sample::select(flags)
}

proptest! {
    #[test]
    fn whatever_is_given_is_answered(
        flags in proptest::collection::vec((any_flag(), any_value(), any::<bool>()), 0..6),
        environment in proptest::collection::vec((any_flag(), any_value()), 0..4),
        file in proptest::option::of(prop_oneof![
            "\\PC*",
            (any_flag(), any_value()).prop_map(|(flag, value)| format!("{} = {value}", &flag[2..])),
        ]),
        available: u64,
    ) {
        let flags = flags.into_iter();
        let flags = flags.map(|(flag, value, bare)| if bare { flag } else { format!("{flag}={value}") });
        let environment = environment.into_iter().map(|(flag, value)| (variable(&flag), value));
        let layered = Layered {
            flags: flags.collect(),
            environment: environment.collect(),
            file,
            available: Some(available),
        };
        if let Ok(config) = layered.resolve() {
            prop_assert_eq!(config.check(), Ok(()));
        }
    }
}
