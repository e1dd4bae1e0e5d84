//! `maru serve`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use maru_directory::{Config, SESSIONS_MAX};
use maru_memory::{DeviceSpec, parse_bytes};
use maru_protocol::{Endpoint, Visibility};
use maru_server::service::Found;
use maru_server::store::Durability;
use maru_server::{PoolConfig, Server, ServerConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::iterator::Signals;

use crate::reading::Reading;
use crate::usage::{WrongUsage, check_distinct};
use crate::{output, signals};

/// The pool without flags: enough to try things, little enough for a laptop.
pub(crate) const DEFAULT_POOL_BYTES: u64 = 1 << 30;

/// Serve a pool.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// A device of the pool: a DAX device, or a file, made with this SIZE if it does not exist.
    /// Repeat for several. Default: 1 GiB in /dev/shm that goes when the server stops.
    #[arg(long, value_name = "PATH[:SIZE]")]
    pool: Vec<DeviceSpec>,
    /// Also listen on this TCP address. Addresses other hosts can reach need --insecure.
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    listen: Option<SocketAddr>,
    /// The Unix socket to listen on. Default: $XDG_RUNTIME_DIR/maru.sock, else
    /// /tmp/maru-UID/maru.sock.
    #[arg(long, value_name = "PATH", env = "MARU_SOCKET")]
    socket: Option<PathBuf>,
    /// Let everybody who can reach --listen read and write the pool, unauthenticated and in clear.
    #[arg(long, requires = "listen")]
    insecure: bool,
    /// The size of a region, a power of two from 2MiB to 1GiB; no page can be larger. Default: a
    /// 32nd of the pool.
    #[arg(long, value_name = "SIZE", value_parser = region_size)]
    region_size: Option<u64>,
    /// Leave the memory to come in page by page as it is first written.
    #[arg(long)]
    no_populate: bool,
    #[command(flatten)]
    safety: Safety,
    #[command(flatten)]
    times: Times,
}

/// What survives, and who sees what.
#[derive(Debug, Args)]
struct Safety {
    /// What a crash may take: `process`, nothing that was acknowledged if only this server dies;
    /// `fsync`, nothing if the power fails either; `none`, everything.
    #[arg(long, value_enum, default_value_t)]
    durability: DurabilityArg,
    /// Where what outlives the server is kept. Default: beside the first device, with `.store` behind
    /// its name; for a DAX device, /var/lib/maru/UUID or ~/.local/state/maru/UUID.
    #[arg(long, value_name = "FOLDER", requires = "pool")]
    store: Option<PathBuf>,
    /// How what one host writes reaches another: `coherent`, by itself, as on one host; `cache-line`,
    /// by writing cache lines back and invalidating them, as with CXL 2.0 memory that hosts share.
    #[arg(long, value_enum, default_value_t)]
    visibility: VisibilityArg,
    /// The library that makes visible to this server what other hosts wrote, where the processor's own
    /// instructions are not enough: an absolute path.
    #[arg(long, env = "MARU_VISIBILITY_PLUGIN", value_name = "FILE")]
    visibility_plugin: Option<PathBuf>,
    /// Have writers say a checksum of each chunk, and readers check it.
    #[arg(long)]
    checksums: bool,
    /// How much of the pool is read a second in the background and held against its checksums.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = bytes)]
    #[arg(requires = "checksums")]
    scrub: u64,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum DurabilityArg {
    #[default]
    Process,
    Fsync,
    None,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum VisibilityArg {
    #[default]
    Coherent,
    CacheLine,
}

/// Times and thresholds.
#[derive(Debug, Args)]
struct Times {
    /// How long a session lives unheard, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = Config::default().lease_ms)]
    #[arg(value_parser = clap::value_parser!(u64).range(100..))]
    lease_ms: u64,
    /// How long the pages of a writer that vanished unseen are kept from others, in milliseconds:
    /// longer than any copy that may still be in flight.
    #[arg(long, value_name = "MS", default_value_t = Config::default().quarantine_ms)]
    #[arg(value_parser = clap::value_parser!(u64).range(1000..))]
    quarantine_ms: u64,
    /// How many instances may be connected.
    #[arg(long, value_name = "N", default_value_t = Config::default().sessions_max)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=SESSIONS_MAX.into()))]
    sessions_max: u32,
    /// Evict once more than this share of the pool is used, in thousandths...
    #[arg(long, value_name = "PERMILLE", default_value_t = Config::default().watermark_high_permille)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    watermark_high: u32,
    /// ...until no more than this share is.
    #[arg(long, value_name = "PERMILLE", default_value_t = Config::default().watermark_low_permille)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1000))]
    watermark_low: u32,
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:7000 or [::1]:7000")
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).map_err(|error| error.to_string())
}

fn region_size(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    if bytes.is_power_of_two() && (2 << 20..=1 << 30).contains(&bytes) {
        return Ok(bytes);
    }
    Err("a region is a power of two from 2MiB to 1GiB, such as 32MiB".to_owned())
}

impl Serve {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if let Some(address) = self.listen.filter(|address| !address.ip().is_loopback()) {
            if !self.insecure {
                let problem = format!(
                    "{address} can be reached from other hosts, and whoever reaches it could read \
                     and write the pool: listen on 127.0.0.1, or pass --insecure if the network is \
                     yours alone"
                );
                return Err(WrongUsage(problem).into());
            }
            tracing::warn!(%address, "--insecure: whoever reaches this address owns the pool");
        }
        check_distinct(self.pool.iter().map(|spec| &spec.path))?;
        let user = rustix::process::getuid().as_raw();
        let socket = self.socket.unwrap_or_else(|| Endpoint::default_socket(user));
        let pool = if self.pool.is_empty() {
            PoolConfig::Temporary(default_pool(user, &socket))
        } else {
            PoolConfig::Devices(self.pool)
        };
        raise_descriptor_limit();
        let safety = self.safety;
        let config = ServerConfig {
            socket: Some(socket.clone()),
            listen: self.listen,
            region_bytes: self.region_size,
            populate: !self.no_populate,
            durability: match safety.durability {
                DurabilityArg::Process => Durability::Process,
                DurabilityArg::Fsync => Durability::Fsync,
                DurabilityArg::None => Durability::None,
            },
            store: safety.store,
            checksums: safety.checksums,
            scrub_bytes_per_second: if safety.checksums { safety.scrub } else { 0 },
            visibility: match safety.visibility {
                VisibilityArg::Coherent => Visibility::Coherent,
                VisibilityArg::CacheLine => Visibility::CacheLine,
            },
            visibility_plugin: safety.visibility_plugin,
            directory: Config {
                lease_ms: self.times.lease_ms,
                // Nobody outlives its connection by more than its lease.
                resume_ms: Config::default().resume_ms.min(self.times.lease_ms),
                quarantine_ms: self.times.quarantine_ms,
                sessions_max: self.times.sessions_max,
                watermark_high_permille: self.times.watermark_high,
                watermark_low_permille: self.times.watermark_low,
                ..Config::default()
            },
            ..ServerConfig::new(pool)
        };
        let mut reading = Reading::new("the store");
        let server = Server::start_and_tell(&config, &mut |progress| reading.tell(progress))?;
        drop(reading);
        tell_what_was_found(&server, config.visibility == Visibility::CacheLine);
        let stopper = server.stopper();
        let mut signals = Signals::new(signals::ending()).context("cannot wait for signals")?;
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                tracing::info!(signal, "stopping");
                stopper.stop();
            }
        });
        tracing::info!(
            pool = server.pool_paths().join(", "),
            size = crate::output::bytes(server.pool_bytes()),
            socket = %socket.display(),
            tcp = server.tcp_address().map_or_else(|| "none".to_owned(), |tcp| tcp.to_string()),
            "serving"
        );
        server.run().context("the server broke down")
    }
}

fn tell_what_was_found(server: &Server, keeps_lines: bool) {
    match server.found() {
        Found::Store { entries, sessions, torn_bytes } => tracing::info!(
            entries = output::count(entries),
            sessions,
            torn_bytes,
            "the store was read: its chunks are found again, and its sessions may come back"
        ),
        Found::NewPool => {}
        Found::StoreGone => {
            tracing::warn!("the pool was served before and its store is gone: it starts empty");
        }
        Found::StoreBehind => tracing::warn!(
            "the operating system came down while the pool was served, and without \
             --durability=fsync the store may not know all of it: the pool starts empty"
        ),
        Found::Nothing => {
            tracing::warn!("--durability=none: what instances store is gone when this server ends");
        }
    }
    if server.withholds() {
        tracing::warn!(
            "somebody may still write to the pool, and no store tells where: no page is granted for \
             the time of a lease and of a quarantine"
        );
    }
    if keeps_lines && matches!(server.found(), Found::StoreGone | Found::Nothing) {
        tracing::warn!(
            "no store tells which hosts wrote to this pool before: what their caches still hold may \
             come over what is stored now; restart them, if it was served before"
        );
    }
}

/// A pool that goes with its server. Servers on different sockets have different ones, and a server
/// goes on with what one on its socket left behind when it was killed.
fn default_pool(user: u32, socket: &Path) -> DeviceSpec {
    let mut hasher = DefaultHasher::new();
    socket.hash(&mut hasher);
    let path = format!("/dev/shm/maru-{user}-{:016x}.pool", hasher.finish());
    DeviceSpec { path: path.into(), bytes: Some(DEFAULT_POOL_BYTES) }
}

/// Takes as many file descriptors as this process may: a session costs two, its socket and the watch
/// on its process.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit on open files; fewer instances can connect");
    }
}
