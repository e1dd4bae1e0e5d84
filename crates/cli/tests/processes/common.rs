//! The program under test, and what runs it.

use std::process::{Command, Output};

use maru_testkit::{Program, Serving};

/// The program under test.
pub(crate) fn program() -> Program {
    Program::new(env!("CARGO_BIN_EXE_maru"))
}

/// What runs it so.
pub(crate) fn maru(args: &[&str]) -> Command {
    program().command(args)
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    maru(args).output().unwrap()
}

/// Runs it to a good end and reads its JSON.
pub(crate) fn json(args: &[&str]) -> serde_json::Value {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Serves a pool of this size, with more flags.
pub(crate) fn serve(size: &str, flags: &[&str]) -> Serving {
    Serving::start(&program(), tempfile::tempdir_in("/dev/shm").unwrap(), size, flags)
}
