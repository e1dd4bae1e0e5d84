//! Where a server is reached.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A Unix socket, or a host and port.
///
/// Written `unix:///path/to/socket` or a plain path, and `tcp://host:port` or `maru://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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

/// Why text is not an [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a server's address: write unix:///PATH, a path, or tcp://HOST:PORT")]
pub struct EndpointError(String);

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError(text.to_owned());
        let (scheme, rest) = text.split_once("://").unwrap_or(("unix", text));
        match scheme {
            "unix" if rest.is_empty() || rest.parse::<SocketAddr>().is_ok() => Err(bad()),
            "unix" => Ok(Self::Unix(rest.into())),
            "tcp" | "maru" => {
                let address = rest.trim_end_matches('/');
                let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
                if matches!(port, Some(Ok(_))) {
                    Ok(Self::Tcp(address.to_owned()))
                } else {
                    Err(bad())
                }
            }
            _ => Err(bad()),
        }
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

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for text in ["", "unix://", "http://x:1", "127.0.0.1:7000", "tcp://node", "tcp://node:x"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
