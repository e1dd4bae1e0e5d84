//! A server, and bare connections to it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use maru_protocol::{
    Answer, Body, Frame, FrameKind, Hello, Refusal, Reply, Request, Resume, Welcome,
};
use maru_server::{Embedded, PoolConfig, ServerConfig};

/// A server with a small pool.
pub(crate) struct Pool {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) server: Embedded,
}

pub(crate) fn config(folder: &Path) -> ServerConfig {
    let spec = format!("{}:8MiB", folder.join("pool").display());
    ServerConfig {
        socket: Some(folder.join("socket")),
        ..ServerConfig::new(PoolConfig::Temporary(spec.parse().unwrap()))
    }
}

/// A bare connection: what it sends is up to the test.
pub(crate) struct Wire {
    pub(crate) stream: UnixStream,
    pub(crate) received: Vec<u8>,
    pub(crate) seq: u64,
}

impl Pool {
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn wire(&self) -> Wire {
        let stream = UnixStream::connect(self.socket()).unwrap();
        // Only a hang takes this long.
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        Wire { stream, received: Vec::new(), seq: 0 }
    }

    pub(crate) fn session(&self, instance: &str) -> (Wire, Welcome) {
        let mut wire = self.wire();
        let welcome = wire.hello(instance, None);
        (wire, welcome)
    }
}

impl Wire {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next frame, or `None` when the server has closed the connection.
    pub(crate) fn frame(&mut self) -> Option<(FrameKind, Vec<u8>)> {
        loop {
            if let Some(frame) = Frame::split(&self.received, u32::MAX).unwrap() {
                let (len, found) = (frame.len_bytes(), (frame.kind, frame.body.to_vec()));
                self.received.drain(..len);
                return Some(found);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => self.received.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the server neither answers nor closes: {error}"),
            }
        }
    }

    /// The refusal that must come, and then the end.
    pub(crate) fn refused(&mut self) -> Refusal {
        let (kind, body) = self.frame().expect("a refusal comes before the end");
        assert_eq!(kind, FrameKind::Refused);
        assert_eq!(self.frame(), None, "the connection is closed");
        maru_protocol::decode(&body).unwrap()
    }

    pub(crate) fn hello(&mut self, instance: &str, resume: Option<Resume>) -> Welcome {
        let hello =
            Hello { instance, host: "test", budget_bytes: 0, resume, outside_writers: false };
        let mut frame = Vec::new();
        maru_protocol::encode(FrameKind::Hello, &hello, &mut frame).unwrap();
        self.send(&frame);
        let (kind, body) = self.frame().unwrap();
        assert_eq!(kind, FrameKind::Welcome);
        maru_protocol::decode(&body).unwrap()
    }

    pub(crate) fn encode(&mut self, body: Body<'_>) -> Vec<u8> {
        self.seq += 1;
        let mut frame = Vec::new();
        let request = Request { seq: self.seq, acked: self.seq - 1, body };
        maru_protocol::encode(FrameKind::Request, &request, &mut frame).unwrap();
        frame
    }

    pub(crate) fn reply(&mut self) -> Reply {
        let (kind, body) = self.frame().unwrap();
        assert_eq!(kind, FrameKind::Reply);
        maru_protocol::decode(&body).unwrap()
    }

    pub(crate) fn ask(&mut self, body: Body<'_>) -> Result<Answer, Refusal> {
        let frame = self.encode(body);
        self.send(&frame);
        self.reply().result
    }
}
