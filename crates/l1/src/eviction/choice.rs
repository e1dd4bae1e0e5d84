//! From a setting to a policy.

use super::adaptive::Adaptive;
use super::isolated::Isolated;
use super::lru::Lru;
use super::policy::L1EvictionPolicy;
use super::s3fifo::S3Fifo;
use crate::{EvictionConfig, EvictionPolicyKind};

/// The policy that was asked for; `None` if nothing is to be evicted.
pub(crate) fn policy(config: &EvictionConfig) -> Option<Box<dyn L1EvictionPolicy>> {
    let make: fn() -> Box<dyn L1EvictionPolicy> = match config.policy {
        EvictionPolicyKind::Lru => || Box::<Lru>::default(),
        EvictionPolicyKind::S3Fifo => || Box::<S3Fifo>::default(),
        EvictionPolicyKind::Arc => || Box::<Adaptive>::default(),
        EvictionPolicyKind::None => return None,
    };
    Some(if config.isolate_salts { Box::new(Isolated::new(make)) } else { make() })
}
