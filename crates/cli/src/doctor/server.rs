//! Whether the server is there, and what it serves.

use std::io::ErrorKind;
use std::path::PathBuf;

use maru_client::{Client, ClientConfig, ClientError, PoolMemory};
use maru_memory::DeviceSpec;
use maru_protocol::{Refusal, Visibility};

use super::{Check, Status};
use crate::inspect::{self, ServerArgs};
use crate::output;

/// What came of asking the server.
pub(super) struct Server {
    pub(super) checks: Vec<Check>,
    /// Its devices, as far as they are known here.
    pub(super) devices: Option<Vec<DeviceSpec>>,
    /// The size of its pool, if that could be mapped.
    pub(super) bytes: Option<u64>,
    pub(super) visibility: Option<Visibility>,
}

/// Asks the server. Its devices may be at these paths here.
pub(super) fn look(args: &ServerArgs, paths: impl Iterator<Item = PathBuf>) -> Server {
    let config = ClientConfig { device_paths: paths.collect(), ..args.config() };
    let endpoint = config.endpoint.to_string();
    let asked = Client::connect(config)
        .and_then(|client| Ok((client.memory()?, inspect::warnings(&client.stats()?))));
    let answers = || Check::ok("server", format!("{endpoint} answers"));
    match asked {
        Ok((memory, warnings)) => {
            let bytes = memory.topology.devices.iter().map(|device| device.bytes).sum();
            let mut pool = pool(&memory, bytes);
            for warning in warnings {
                pool.also(Status::Warning, &warning, "`maru stat` shows more");
            }
            let devices = memory.topology.devices;
            let device = |path: String| DeviceSpec { path: path.into(), bytes: None };
            Server {
                checks: vec![answers(), pool],
                devices: Some(devices.into_iter().map(|placed| device(placed.path)).collect()),
                bytes: Some(bytes),
                visibility: Some(memory.topology.visibility),
            }
        }
        Err(error) => {
            let mut checks = vec![refused(&error, &endpoint, args.is_named())];
            let mut devices = None;
            if let ClientError::Device(error) = &error {
                devices = Some(vec![DeviceSpec { path: error.path().to_owned(), bytes: None }]);
                checks.insert(0, answers());
            }
            Server { checks, devices, bytes: None, visibility: None }
        }
    }
}

fn pool(memory: &PoolMemory, bytes: u64) -> Check {
    let devices = &memory.topology.devices;
    let paths: Vec<&str> = devices.iter().map(|device| &*device.path).collect();
    let visibility = match memory.topology.visibility {
        Visibility::Coherent => "coherent",
        Visibility::CacheLine => "visible to other hosts by cache lines",
    };
    let found = format!("{} in {}, {visibility}", output::bytes(bytes), paths.join(", "));
    Check::ok("pool", found)
}

/// Why nothing is known of the pool; `named` if somebody said where the server is.
fn refused(error: &ClientError, endpoint: &str, named: bool) -> Check {
    let absent = if named { Status::Problem } else { Status::Warning };
    match error {
        ClientError::Unreachable { source, .. } => {
            let (found, advice) = match source.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => (
                    format!("nobody listens at {endpoint}"),
                    if named {
                        "start one there with `maru serve`, or correct --server"
                    } else {
                        "start one: `maru serve`"
                    },
                ),
                ErrorKind::PermissionDenied => (
                    format!("this user may not connect to {endpoint}"),
                    "be the user that serves, or have that one also --listen on 127.0.0.1 and name that address",
                ),
                ErrorKind::TimedOut => (
                    format!("{endpoint} does not answer"),
                    "look whether it is a Maru server, and at its log",
                ),
                _ => (
                    format!("{endpoint} cannot be reached: {source}"),
                    "look whether the address is right, and the network lets it through",
                ),
            };
            Check::new(absent, "server", found, advice)
        }
        ClientError::Timeout { .. } => {
            Check::new(absent, "server", error.to_string(), "look at its log, and start it anew")
        }
        ClientError::Refused(Refusal::Version { .. }) => Check::new(
            Status::Problem,
            "server",
            format!("{endpoint}: {error}"),
            "run a program and a server of the same release",
        ),
        ClientError::Protocol { .. } => Check::new(
            Status::Problem,
            "server",
            error.to_string(),
            "correct the address, or run a program and a server of the same release",
        ),
        ClientError::Device(_) => Check::new(
            Status::Problem,
            "pool",
            error.to_string(),
            "let this user open what the server opens; if it lies elsewhere here, say so with --pool",
        ),
        ClientError::Plugin(_) => Check::new(
            Status::Problem,
            "pool",
            error.to_string(),
            "name a library that can be loaded with --visibility-plugin",
        ),
        ClientError::Mapping(_) => Check::new(
            Status::Problem,
            "pool",
            error.to_string(),
            "lift this user's limit on address space: `ulimit -v unlimited`",
        ),
        other => Check::new(
            Status::Problem,
            "server",
            format!("{endpoint}: {other}"),
            "do what it says, or look at the server's log",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use maru_protocol::Endpoint;

    use super::*;

    #[test]
    fn a_server_that_nobody_named_may_be_away() {
        let error = |kind: ErrorKind| ClientError::Unreachable {
            endpoint: Endpoint::Unix("/s".into()),
            source: Arc::new(io::Error::from(kind)),
        };
        let away = refused(&error(ErrorKind::NotFound), "unix:///s", false);
        assert_eq!(
            (away.status, away.advice.as_deref()),
            (Status::Warning, Some("start one: `maru serve`"))
        );
        for (kind, told) in [
            (ErrorKind::ConnectionRefused, "nobody listens"),
            (ErrorKind::PermissionDenied, "may not connect"),
            (ErrorKind::TimedOut, "does not answer"),
            (ErrorKind::HostUnreachable, "unreachable"),
        ] {
            let check = refused(&error(kind), "unix:///s", true);
            assert_eq!(check.status, Status::Problem);
            assert!(check.found.contains(told), "{check:?}");
        }
    }

    #[test]
    fn another_version_is_told_by_its_own_words() {
        let error = ClientError::Refused(Refusal::Version { server: 9, client: 2 });
        let check = refused(&error, "unix:///s", false);
        assert_eq!(check.status, Status::Problem);
        assert!(check.found.contains("version 9, not 2"), "{check:?}");
    }
}
