//! What an instance is told at its start: a line of JSON. It reads neither flags nor environment.

use std::time::Duration;

use maru_l1::{EvictionConfig, EvictionPolicyKind, L1ManagerConfig, L1MemoryConfig, MaruL1Config};
use maru_protocol::Endpoint;
use serde::{Deserialize, Serialize};

/// What an instance is told at its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Begins the keys: keeps those of one replay apart from those of another on the same server.
    pub(crate) run: String,
    pub(crate) seed: u64,
    pub(crate) page_bytes: u64,
    #[serde(with = "Config")]
    pub(crate) l1: L1ManagerConfig,
}

// The mirrors below do not compile when a field is added there.

#[derive(Serialize, Deserialize)]
#[serde(remote = "L1ManagerConfig")]
struct Config {
    #[serde(with = "Memory")]
    memory: L1MemoryConfig,
    #[serde(with = "maru")]
    maru: Option<MaruL1Config>,
    write_ttl: Duration,
    read_ttl: Duration,
    #[serde(with = "Eviction")]
    eviction: EvictionConfig,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "L1MemoryConfig")]
struct Memory {
    bytes: u64,
    initial_bytes: u64,
    align_bytes: u64,
    huge_pages: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "EvictionConfig")]
struct Eviction {
    policy: EvictionPolicyKind,
    isolate_salts: bool,
    trigger_watermark: f64,
    ratio: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "MaruL1Config")]
struct Maru {
    #[serde(with = "endpoint")]
    server: Endpoint,
    pool_bytes: u64,
    instance: Option<String>,
    timeout: Duration,
    in_flight_max: u32,
    eager_map: bool,
    auto_expand: bool,
}

/// A mirror cannot stand inside an `Option` by itself.
mod maru {
    use maru_l1::MaruL1Config;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Maru;

    #[derive(Serialize)]
    struct Shown<'a>(#[serde(with = "Maru")] &'a MaruL1Config);

    #[derive(Deserialize)]
    struct Read(#[serde(with = "Maru")] MaruL1Config);

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(
        config: &Option<MaruL1Config>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        config.as_ref().map(Shown).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<MaruL1Config>, D::Error> {
        Ok(Option::<Read>::deserialize(deserializer)?.map(|read| read.0))
    }
}

/// As people write it.
mod endpoint {
    use maru_protocol::Endpoint;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        endpoint: &Endpoint,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(endpoint)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Endpoint, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
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
            let order = Order { run: "7-shared".to_owned(), seed: 3, page_bytes: 4096, l1 };
            let line = serde_json::to_string(&order).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
        }
    }
}
