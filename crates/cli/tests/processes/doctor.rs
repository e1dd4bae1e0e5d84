//! What `maru doctor` finds, with a server and without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use maru_testkit::text;
use serde_json::{Value, json};

use super::common::{maru, run, serve, stderr};

/// A program that answers as a Python with these packages would.
fn python(folder: &Path, maru: &str, lmcache: &str) -> PathBuf {
    let answer = json!({
        "implementation": "cpython",
        "version": [3, 12, 1],
        "executable": "/venv/bin/python",
        "maru": { "version": maru },
        "lmcache": lmcache,
        "torch": null,
        "torch_cuda": null,
        "has_libcuda": false,
    });
    let path = folder.join("python");
    let script = format!("#!/bin/sh\necho hello\necho '{answer}'\n");
    // Not by this process: what another test forks meanwhile would have it open, and it be busy.
    let made = Command::new("sh")
        .args(["-c", r#"printf %s "$1" > "$0" && chmod +x "$0""#, text(&path), &script])
        .status();
    assert!(made.unwrap().success());
    path
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(output)))
}

/// Its status, and what was found and is to be done.
fn told(report: &Value, name: &str) -> (String, String) {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("nothing is said of {name}: {checks:?}"));
    let word = |what: &str| check[what].as_str().unwrap_or_default().to_owned();
    (word("status"), word("found") + " -> " + &word("advice"))
}

#[test]
fn a_machine_without_server_and_devices_is_in_order() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let python = python(folder.path(), env!("CARGO_PKG_VERSION"), "0.5.6");
    let doctor = |args: &[&str]| {
        let args = [&["doctor", "--python", text(&python)], args].concat();
        maru(&args).env("XDG_RUNTIME_DIR", folder.path()).output().unwrap()
    };
    let output = doctor(&["--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = report(&output);
    assert_eq!(report["problems"], 0);
    let (status, found) = told(&report, "server");
    assert!(status == "warning" && found.ends_with("start one: `maru serve`"), "{found}");
    assert_eq!(told(&report, "python").0, "ok");
    assert_eq!(told(&report, "package maru").0, "ok");
    assert_eq!(told(&report, "LMCache"), ("ok".to_owned(), "0.5.6 -> ".to_owned()));
    assert_eq!(told(&report, "torch").0, "warning", "LMCache needs it");

    let shown = doctor(&[]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("\nwarning  server: nobody listens at"), "{shown}");
    assert!(shown.ends_with(", no problem\n") && !shown.contains('\x1b'), "{shown}");
}

#[test]
fn what_is_served_is_looked_at() {
    let serving = serve("16MiB", &["--visibility", "cache-line"]);
    let (socket, pool) = (serving.socket(), serving.pool());
    let python = python(serving.folder.path(), "0.0.1", "0.4.0");
    let before = fs::read(&pool).unwrap();
    let args = ["doctor", "--json", "--server", text(&socket), "--python", text(&python)];
    let output = run(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = report(&output);
    assert_eq!(told(&report, "server").0, "ok");
    let (status, found) = told(&report, "pool");
    assert!(
        status == "ok" && found.contains("16.0 MiB in ") && found.contains("cache lines"),
        "{found}"
    );
    let (status, found) = told(&report, &format!("device {}", pool.display()));
    assert!(status == "ok" && found.contains("served now"), "{found}");
    assert!(told(&report, "processor").1.contains("the pool needs that"));
    let (status, found) = told(&report, "package maru");
    assert!(status == "warning" && found.contains("0.0.1, but this program is"), "{found}");
    assert_eq!(told(&report, "LMCache").0, "warning");
    assert_eq!(fs::read(&pool).unwrap(), before, "nothing is written");
}

#[test]
fn what_was_asked_for_and_is_not_there_is_a_problem() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (absent, dax) = (path("absent"), "/dev/dax99.99");
    let foreign = path("foreign");
    fs::write(&foreign, "somebody's").unwrap();
    let args = ["doctor", "--json", "--server", &path("socket"), "--python", &path("python")];
    let devices = ["--pool", &absent, "--pool", dax, "--pool", &foreign, "--pool", "/dev/null"];
    let output = run(&[&args[..], &devices].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there are 6 problems"), "{}", stderr(&output));
    let report = report(&output);
    assert_eq!(report["problems"], 6);
    for (name, hint) in [
        ("server", "maru serve"),
        ("python", "--python"),
        (&*format!("device {absent}"), "maru pool init"),
        (&*format!("device {dax}"), "daxctl list"),
        (&*format!("device {foreign}"), "--overwrite"),
        ("device /dev/null", "not a DAX one"),
    ] {
        let (status, found) = told(&report, name);
        assert!(status == "problem" && found.contains(hint), "{name}: {found}");
    }
    assert_eq!(fs::read(&foreign).unwrap(), b"somebody's");

    let twice = run(&["doctor", "--pool", &absent, "--pool", &absent]);
    assert_eq!(twice.status.code(), Some(2), "{}", stderr(&twice));
}
