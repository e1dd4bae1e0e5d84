//! Real processes of the `maru` program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use maru_client::{Client, ClientConfig};
use maru_protocol::Endpoint;

/// The program under test.
pub(crate) fn maru(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_maru"));
    command.args(args);
    // Whatever is set for programs on this machine is not meant for tests.
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.to_string_lossy().starts_with("MARU_")) {
        command.env_remove(name);
    }
    command
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

/// Polls until it is so. Fails after a time that only a hang takes.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_mins(1), "{what}: it does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A `maru serve` of its own; killed when dropped.
pub(crate) struct Serving {
    pub(crate) child: Child,
    pub(crate) folder: tempfile::TempDir,
}

impl Serving {
    /// Serves a pool of this size in pages of the default page size, with more flags.
    pub(crate) fn start(size: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let pool = format!("{}:{size}", folder.path().join("pool").display());
        let socket = folder.path().join("socket");
        let mut args = vec!["serve", "--pool", &pool, "--socket", socket.to_str().unwrap()];
        args.extend(flags);
        let child = maru(&args).stderr(Stdio::null()).spawn().unwrap();
        let serving = Self { child, folder };
        wait_until("the server listens", || serving.connect().is_some());
        serving
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn pool(&self) -> PathBuf {
        self.folder.path().join("pool")
    }

    pub(crate) fn connect(&self) -> Option<Client> {
        let endpoint = Endpoint::Unix(self.socket());
        let instance = "test".to_owned();
        Client::connect(ClientConfig { endpoint, instance, ..ClientConfig::default() }).ok()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
