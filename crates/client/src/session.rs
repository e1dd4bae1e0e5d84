//! One session with the server, and the memory that its pages lie in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use maru_memory::{Device, PoolMapping, Populate, View, Visibility};
use maru_protocol::{Limits, Resume, Secret, SessionId, Topology, Welcome};

use crate::{ClientConfig, ClientError};

/// One session. Pages hold it, so that each knows whether it is still protected.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    secret: Secret,
    pub(crate) limits: Limits,
    pub(crate) memory: Arc<Memory>,
    began: Instant,
    /// The server is known to have kept the session up to this moment, in microseconds after
    /// `began`: when the last answered request was sent.
    confirmed_us: AtomicU64,
    lost: AtomicBool,
    /// Writable pages of this session that are out. In one order with `lost`: who takes a page either
    /// sees that the session is lost, or is counted when it is let go.
    pub(crate) writable: AtomicUsize,
}

impl Session {
    pub(crate) fn new(welcome: &Welcome, memory: Arc<Memory>, sent: Instant) -> Self {
        Self {
            id: welcome.session,
            secret: welcome.secret,
            limits: welcome.limits,
            memory,
            began: sent,
            confirmed_us: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            writable: AtomicUsize::new(0),
        }
    }

    pub(crate) const fn resume(&self) -> Resume {
        Resume { session: self.id, secret: self.secret }
    }

    /// An answer to a request that was sent at `sent` has come.
    pub(crate) fn confirm(&self, sent: Instant) {
        let us = sent.saturating_duration_since(self.began).as_micros();
        let us = u64::try_from(us).unwrap_or(u64::MAX);
        self.confirmed_us.fetch_max(us, Ordering::Release);
    }

    /// Another session has taken its place.
    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Whether the server cannot have ended the session by now. A session outlives its connection
    /// by `resume_ms`, and silence by `lease_ms`; both count from after the last request that it
    /// answered was sent. A tenth is left off, for clocks that run at different speeds.
    /// `false` means not known, not lost.
    pub(crate) fn is_certainly_alive(&self) -> bool {
        let grace = Duration::from_millis(self.limits.resume_ms.min(self.limits.lease_ms)) * 9 / 10;
        let confirmed = Duration::from_micros(self.confirmed_us.load(Ordering::Acquire));
        !self.is_lost() && self.began.elapsed() < confirmed + grace
    }
}

/// The pool's memory, mapped.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) topology: Topology,
    pub(crate) mapping: Arc<PoolMapping>,
    /// Brings the page tables in; stops when dropped.
    _populates: Vec<Populate>,
}

impl Memory {
    /// Opens and maps the devices of the pool. Each must be the very device that the server means:
    /// its UUID tells.
    pub(crate) fn map(topology: &Topology, config: &ClientConfig) -> Result<Self, ClientError> {
        let elsewhere = &config.device_paths;
        let mapping =
            Arc::new(PoolMapping::new(topology.address_space_bytes, Visibility::Coherent)?);
        for placed in &topology.devices {
            let found = elsewhere.iter().find_map(|path| Device::open(path, placed.uuid).ok());
            let device = match found {
                Some(device) => device,
                None => Device::open(&placed.path, placed.uuid)?,
            };
            mapping.add_device(&device, placed.offset)?;
        }
        let views = if config.eager_map { &[View::Read, View::Write][..] } else { &[] };
        let devices = topology.devices.iter();
        let populates = devices
            .flat_map(|placed| views.iter().map(move |view| (placed, *view)))
            .filter_map(|(placed, view)| {
                let started =
                    Populate::start(Arc::clone(&mapping), placed.offset, placed.bytes, 1, view);
                started
                    .inspect_err(
                        |error| tracing::warn!(%error, "pages are mapped as they are used"),
                    )
                    .ok()
            })
            .collect();
        Ok(Self { topology: topology.clone(), mapping, _populates: populates })
    }

    pub(crate) fn is_of(&self, topology: &Topology) -> bool {
        self.topology == *topology
    }
}
