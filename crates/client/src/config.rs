//! What a client is told.

use std::path::PathBuf;
use std::time::Duration;

#[cfg(doc)]
use maru_memory::VisibilityPlugin;
use maru_protocol::Endpoint;

use crate::Verify;

/// What a client is told.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The server.
    pub endpoint: Endpoint,
    /// The instance's name, 1 to 128 printable characters; instances that share a name share a
    /// budget.
    pub instance: String,
    /// The host's name, 1 to 128 printable characters: equal for those whose processors share a
    /// cache-coherent view of the pool, and for nobody else, since these read what the others wrote as
    /// it is in their caches. `None` for the kernel's boot id, which is right for containers and for
    /// whole machines; virtual machines of one host may be told its name.
    pub host: Option<String>,
    /// How long a request may take, reconnecting included, give or take a quarter.
    pub timeout: Duration,
    /// How many bytes the instance may have in the pool; 0 for no limit.
    pub budget_bytes: u64,
    /// Where to look for the pool's devices, if not where the server has them: whatever of these
    /// has a device's UUID is that device.
    pub device_paths: Vec<PathBuf>,
    /// The most requests on their way at a time; the server's own limit holds in any case.
    pub in_flight_max: u32,
    /// Bring the pool into this process's page tables behind the connecting client, rather than page
    /// by page as they are used.
    pub eager_map: bool,
    /// The library that makes pages visible to other hosts, if the pool needs that and the processor's
    /// own instructions are not enough: an absolute path. See [`VisibilityPlugin`].
    pub visibility_plugin: Option<PathBuf>,
    /// Which chunks are held against their checksums when they are read.
    pub verify: Verify,
    /// Other processes, too, write into pages that this one reserves. Should it die, the server must
    /// not take them for dead with it: what was reserved is quarantined for the server's
    /// `--quarantine-ms`.
    pub outside_writers: bool,
    /// Have no session with another pool than the first: for who hands out places in it.
    pub one_pool: bool,
}

impl Default for ClientConfig {
    /// The server of this user on this host, and a name from host and process.
    fn default() -> Self {
        let user = rustix::process::getuid().as_raw();
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        Self {
            endpoint: Endpoint::Unix(Endpoint::default_socket(user)),
            instance: format!("{host}-{}", std::process::id()),
            host: None,
            timeout: Duration::from_secs(5),
            budget_bytes: 0,
            device_paths: Vec::new(),
            in_flight_max: 64,
            eager_map: false,
            visibility_plugin: None,
            verify: Verify::default(),
            outside_writers: false,
            one_pool: false,
        }
    }
}
