//! A server inside of another program.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::JoinHandle;

use crate::{Server, ServerConfig, StartError, Stopper};

/// A server on a thread of this process: for tests, and for programs that bring their own.
#[derive(Debug)]
pub struct Embedded {
    stopper: Stopper,
    thread: Option<JoinHandle<io::Result<()>>>,
    socket: Option<PathBuf>,
    tcp: Option<SocketAddr>,
}

impl Embedded {
    /// Starts a server and its thread.
    pub fn start(config: &ServerConfig) -> Result<Self, StartError> {
        let server = Server::start(config)?;
        let (stopper, tcp) = (server.stopper(), server.tcp_address());
        let thread = std::thread::Builder::new()
            .name("maru-server".to_owned())
            .spawn(move || server.run())
            .map_err(StartError::io("start the server's thread"))?;
        Ok(Self { stopper, thread: Some(thread), socket: config.socket.clone(), tcp })
    }

    /// Its Unix socket.
    #[must_use]
    pub fn socket(&self) -> Option<&PathBuf> {
        self.socket.as_ref()
    }

    /// Its TCP address.
    #[must_use]
    pub const fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp
    }
}

/// Stops the server and waits for it.
impl Drop for Embedded {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take()
            && !matches!(thread.join(), Ok(Ok(())))
        {
            tracing::error!("the embedded server did not stop cleanly");
        }
    }
}
