//! The settings' names: their flags.

pub(super) const CONFIG: &str = "--l1-config";

pub(super) const SIZE: &str = "--l1-size-gb";
pub(super) const LAZY: &str = "--l1-use-lazy";
pub(super) const INITIAL_SIZE: &str = "--l1-init-size-gb";
pub(super) const ALIGN: &str = "--l1-align-bytes";
pub(super) const HUGE_PAGES: &str = "--l1-use-hugepages";
pub(super) const WRITE_TTL: &str = "--l1-write-ttl-seconds";
pub(super) const READ_TTL: &str = "--l1-read-ttl-seconds";

pub(super) const SERVER_URL: &str = "--maru-server-url";
pub(super) const POOL_SIZE: &str = "--maru-pool-size-gb";
pub(super) const INSTANCE: &str = "--maru-instance-id";
pub(super) const TIMEOUT: &str = "--maru-timeout-ms";
pub(super) const IN_FLIGHT: &str = "--maru-max-inflight";
pub(super) const EAGER_MAP: &str = "--maru-eager-map";
pub(super) const AUTO_EXPAND: &str = "--maru-auto-expand";
pub(super) const VERIFY: &str = "--maru-verify";
pub(super) const HOST: &str = "--maru-host-id";
pub(super) const VISIBILITY_PLUGIN: &str = "--maru-visibility-plugin";

pub(super) const POLICY: &str = "--eviction-policy";
pub(super) const ISOLATE_SALTS: &str = "--eviction-isolate-salts";
pub(super) const WATERMARK: &str = "--eviction-trigger-watermark";
pub(super) const RATIO: &str = "--eviction-ratio";
