//! The server that a replay brings with it.

use std::path::Path;

use maru_memory::{DATA_START, DeviceSpec};
use maru_protocol::{Endpoint, PAGE_ALIGN};
use maru_server::{Embedded, PoolConfig, ServerConfig};

/// A server on a thread of this process, with a pool of its own in /dev/shm.
#[derive(Debug)]
pub(crate) struct OwnPool {
    server: Embedded,
}

impl OwnPool {
    /// Starts a server whose pool holds just so many pages.
    pub(crate) fn start(
        folder: &Path,
        pages: u64,
        page_bytes: u64,
        tcp: bool,
    ) -> anyhow::Result<Self> {
        let (region_bytes, pool_bytes) = size(pages, page_bytes);
        let path = format!("/dev/shm/maru-replay-{}-shared.pool", std::process::id());
        let spec = DeviceSpec { path: path.into(), bytes: Some(pool_bytes) };
        let config = ServerConfig {
            socket: Some(folder.join("shared.sock")),
            listen: tcp.then_some(([127, 0, 0, 1], 0).into()),
            region_bytes: Some(region_bytes),
            populate: true,
            ..ServerConfig::new(PoolConfig::Temporary(spec))
        };
        Ok(Self { server: Embedded::start(&config)? })
    }

    /// Where it is reached: over a Unix socket, or over TCP if it listens there.
    pub(crate) fn endpoint(&self, tcp: bool) -> Option<Endpoint> {
        if tcp {
            self.server.tcp_address().map(|address| Endpoint::Tcp(address.to_string()))
        } else {
            self.server.socket().cloned().map(Endpoint::Unix)
        }
    }
}

/// A region size for these pages, and the size of a device that holds just so many.
fn size(pages: u64, page_bytes: u64) -> (u64, u64) {
    let page = page_bytes.next_multiple_of(PAGE_ALIGN);
    // At least 64 to a region, so that little is lost at its end.
    let region = (page * 64).next_power_of_two().clamp(2 << 20, 1 << 30);
    let in_first = (region - DATA_START) / page;
    if pages <= in_first {
        return (region, DATA_START + pages * page);
    }
    let in_others = pages - in_first;
    let (full, rest) = (in_others / (region / page), in_others % (region / page));
    (region, region + full * region + rest * page)
}

#[cfg(test)]
mod tests {
    use maru_directory::{Config, DeviceSpan, Directory, Geometry, Millis};
    use maru_protocol::{Answer, Body, Hello, Request, Secret};

    use super::*;

    /// Asks a real directory how many pages of this size a device of this size gives.
    fn pages_in(region_bytes: u64, bytes: u64, page_bytes: u64) -> u64 {
        let device = DeviceSpan { offset: 0, bytes, reserved: DATA_START };
        let geometry = Geometry { devices: vec![device], region_bytes };
        let now = Millis(0);
        let mut directory = Directory::new(Config::default(), &geometry, now).unwrap();
        let hello = Hello {
            instance: "a",
            host: "h",
            budget_bytes: 0,
            resume: None,
            outside_writers: false,
        };
        let session = directory.hello(now, &hello, Secret([0; 16]), None).unwrap().session;
        let request = Request { seq: 1, acked: 0, body: Body::Regions };
        match directory.apply(now, session, &request).result.unwrap() {
            Answer::Regions(regions) => regions
                .iter()
                .map(|region| region.bytes / page_bytes.next_multiple_of(PAGE_ALIGN))
                .sum(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pool_holds_just_the_pages_that_were_asked_for() {
        for page_bytes in [4096, 16 << 10, 100_000, 300_000, 1 << 20, 3 << 20] {
            for pages in [1, 63, 64, 65, 500, 4001] {
                let (region, bytes) = size(pages, page_bytes);
                let found = pages_in(region, bytes, page_bytes);
                assert_eq!(found, pages, "{page_bytes}");
            }
        }
    }
}
