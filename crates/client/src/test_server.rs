//! A server for the tests inside this crate. The tests outside have `maru_testkit::TestPool`, which
//! brings a client library of its own.

use maru_directory::Config;
use maru_protocol::Endpoint;
use maru_server::{Embedded, PoolConfig, ServerConfig};

use crate::ClientConfig;

/// A server with a small pool in a folder, and what its clients are told.
pub(crate) fn start() -> (tempfile::TempDir, Embedded, ClientConfig) {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (pool, socket) = (folder.path().join("pool"), folder.path().join("socket"));
    let server = Embedded::start(&ServerConfig {
        pool: PoolConfig::Temporary(format!("{}:8MiB", pool.display()).parse().unwrap()),
        socket: Some(socket.clone()),
        listen: None,
        region_bytes: None,
        populate: false,
        directory: Config::default(),
    })
    .unwrap();
    let endpoint = Endpoint::Unix(socket);
    (folder, server, ClientConfig { endpoint, ..ClientConfig::default() })
}
