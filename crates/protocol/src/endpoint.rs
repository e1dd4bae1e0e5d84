//! Where a server is reached.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A Unix socket, or a host and port.
///
/// Written `unix:///path/to/socket` or a plain path, and `tcp://host:port` or `maru://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A Unix socket on this host.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Endpoint {
    /// The socket that a server listens on and an instance connects to if it is told of none:
    /// `$XDG_RUNTIME_DIR/maru.sock`, or `/tmp/maru-<user>/maru.sock` where that is not set.
    #[must_use]
    pub fn default_socket(user: u32) -> PathBuf {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let folder = runtime.map_or_else(|| format!("/tmp/maru-{user}").into(), PathBuf::from);
        folder.join("maru.sock")
    }
}

impl FromStr for Endpoint {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let tcp = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("maru://"));
        Ok(match tcp {
            Some(address) => Self::Tcp(address.trim_end_matches('/').to_owned()),
            None => Self::Unix(text.strip_prefix("unix://").unwrap_or(text).into()),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_read_and_shown() {
        for (text, shown) in [
            ("/run/maru.sock", "unix:///run/maru.sock"),
            ("unix:///run/maru.sock", "unix:///run/maru.sock"),
            ("tcp://127.0.0.1:7000", "tcp://127.0.0.1:7000"),
            ("maru://node-3:7000/", "tcp://node-3:7000"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), shown);
        }
    }
}
