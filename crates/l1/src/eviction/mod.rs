//! What a private L1 drops when it gets full.
//!
//! A policy is fed by a listener and orders the keys; the controller looks at the memory and has the
//! manager delete what the policy proposes. A shared pool's server evicts for all its instances, so
//! over a shared manager the controller is quiet.

mod adaptive;
mod choice;
mod controller;
mod isolated;
mod lru;
mod policy;
mod s3fifo;
#[cfg(test)]
mod tests;
mod tracker;

pub use controller::{EVICTION_INTERVAL, EvictionController, EvictionStatus};
