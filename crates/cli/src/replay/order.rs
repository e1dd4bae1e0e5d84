//! What an instance is told at its start: a line of JSON. It reads neither flags nor environment.

use std::path::PathBuf;

use maru_l1::L1ManagerConfig;
use serde::{Deserialize, Serialize};

/// What an instance is told at its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Begins the keys: keeps those of one replay apart from those of another on the same server.
    pub(crate) run: String,
    pub(crate) seed: u64,
    pub(crate) page_bytes: u64,
    pub(crate) l1: L1ManagerConfig,
    /// Where to write down what is acknowledged, before anything else is asked.
    pub(crate) ledger: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use maru_l1::{EvictionConfig, EvictionPolicyKind, MaruL1Config};
    use maru_protocol::Endpoint;

    use super::*;

    #[test]
    fn an_order_arrives_as_it_was_given() {
        let servers = [Endpoint::Unix("/tmp/a b".into()), Endpoint::Tcp("[::1]:7000".to_owned())];
        for server in servers.into_iter().map(Some).chain([None]) {
            let maru = server.map(|server| MaruL1Config {
                instance: Some("a\"b-3".to_owned()),
                auto_expand: false,
                ..MaruL1Config::new(server)
            });
            let eviction = EvictionConfig { policy: EvictionPolicyKind::Arc, ..Default::default() };
            let read_ttl = Duration::from_millis(1500);
            let l1 = L1ManagerConfig { maru, eviction, read_ttl, ..L1ManagerConfig::default() };
            let (run, ledger) = ("7-shared".to_owned(), Some("/tmp/c d".into()));
            let order = Order { run, seed: 3, page_bytes: 4096, l1, ledger };
            let line = serde_json::to_string(&order).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
        }
    }
}
