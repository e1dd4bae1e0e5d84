//! A server for the tests inside this crate. The tests outside have `maru_testkit::TestPool`, which
//! brings a client library of its own.

use maru_protocol::Endpoint;
use maru_server::{Embedded, PoolConfig, ServerConfig};

use crate::ClientConfig;

/// A server with a small pool in a folder, and what its clients are told.
pub(crate) fn start() -> (tempfile::TempDir, Embedded, ClientConfig) {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let spec = format!("{}:8MiB", folder.path().join("pool").display());
    let socket = folder.path().join("socket");
    let server = Embedded::start(&ServerConfig {
        socket: Some(socket.clone()),
        ..ServerConfig::new(PoolConfig::Temporary(spec.parse().unwrap()))
    })
    .unwrap();
    let endpoint = Endpoint::Unix(socket);
    (folder, server, ClientConfig { endpoint, ..ClientConfig::default() })
}
