//! The pool's memory in this process.

use std::sync::Arc;

use maru_memory::{Device, PoolMapping, Populate, View, Visibility};
use maru_protocol::Topology;

use crate::{ClientConfig, ClientError};

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
        let mapping = PoolMapping::new(topology.address_space_bytes, Visibility::Coherent)?;
        let mapping = Arc::new(mapping);
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
