//! From settings to a configuration.

use super::available::{available_bytes, reserve_bytes};
use super::error::L1ConfigError;
use super::layers::{Environment, Kind, Layers};
use super::{EvictionConfig, L1Args, L1ManagerConfig, L1MemoryConfig, MaruL1Config, flags, value};

/// Settings of the private memory, which a shared L1 takes none of. The size is not among them:
/// LMCache always gives it.
const PRIVATE: [&str; 4] = [flags::LAZY, flags::INITIAL_SIZE, flags::ALIGN, flags::HUGE_PAGES];

/// Settings that need a server.
const SHARED: [&str; 9] = [
    flags::POOL_SIZE,
    flags::INSTANCE,
    flags::TIMEOUT,
    flags::IN_FLIGHT,
    flags::EAGER_MAP,
    flags::AUTO_EXPAND,
    flags::VERIFY,
    flags::HOST,
    flags::VISIBILITY_PLUGIN,
];

/// What is asked of the process and its machine.
pub(super) struct Surroundings<'a> {
    pub(super) environment: Environment<'a>,
    /// Bytes of memory that are available.
    pub(super) available_bytes: &'a dyn Fn() -> Option<u64>,
}

impl L1Args {
    /// The configuration, checked: flags come before environment variables, those before the file
    /// of `--l1-config`, and that before the defaults. The variable of `--l1-size-gb` is
    /// `MARU_L1_SIZE_GB`, that of `--maru-server-url` is `MARU_SERVER_URL`; one that is set to
    /// nothing counts as unset.
    ///
    /// Private memory is brought down, with a warning, to what this machine and this process's
    /// control group have available, less an eighth of it, at most 16 GiB, for everything else. Huge
    /// pages are not, since they are set aside already; nor is anything with a server, since then no
    /// private memory is taken.
    pub fn resolve(&self) -> Result<L1ManagerConfig, L1ConfigError> {
        self.resolve_in(&Surroundings {
            environment: &|name| std::env::var_os(name),
            available_bytes: &available_bytes,
        })
    }

    pub(super) fn resolve_in(
        &self,
        surroundings: &Surroundings<'_>,
    ) -> Result<L1ManagerConfig, L1ConfigError> {
        let mut layers = Layers::new(surroundings.environment, self.l1_config.as_deref())?;
        let maru = self.maru(&mut layers)?;
        let memory = self.memory(&mut layers, maru.is_some())?;
        let eviction = self.eviction(&mut layers)?;
        let defaults = L1ManagerConfig::default();
        let write_ttl = self.l1_write_ttl_seconds.as_deref();
        let write_ttl = layers.read(flags::WRITE_TTL, Kind::Number, write_ttl, value::seconds)?;
        let read_ttl = self.l1_read_ttl_seconds.as_deref();
        let read_ttl = layers.read(flags::READ_TTL, Kind::Number, read_ttl, value::seconds)?;
        let mut config = L1ManagerConfig {
            memory,
            maru,
            write_ttl: write_ttl.unwrap_or(defaults.write_ttl),
            read_ttl: read_ttl.unwrap_or(defaults.read_ttl),
            eviction,
        };
        layers.finish()?;
        config.check().map_err(|error| layers.explain(error))?;
        if config.maru.is_some() {
            let unused = layers.given(&PRIVATE).map(|(flag, _)| flag).collect::<Vec<_>>();
            if !unused.is_empty() {
                let server = flags::SERVER_URL;
                tracing::warn!(settings = unused.join(" "), "without effect, because of {server}");
            }
        } else if !config.memory.huge_pages {
            clamp(&mut config.memory, surroundings.available_bytes);
        }
        Ok(config)
    }

    fn memory(
        &self,
        layers: &mut Layers<'_>,
        unused: bool,
    ) -> Result<L1MemoryConfig, L1ConfigError> {
        let size = self.l1_size_gb.as_deref();
        let size = layers.read(flags::SIZE, Kind::Number, size, value::gigabytes)?;
        let initial = self.l1_init_size_gb.as_deref();
        let initial = layers.read(flags::INITIAL_SIZE, Kind::Number, initial, value::gigabytes)?;
        let align = self.l1_align_bytes.as_deref();
        let align = layers.read(flags::ALIGN, Kind::Number, align, value::align)?;
        let lazy = layers.switch(flags::LAZY, self.l1_use_lazy, self.no_l1_use_lazy)?;
        let (on, off) = (self.l1_use_hugepages, self.no_l1_use_hugepages);
        let huge_pages = layers.switch(flags::HUGE_PAGES, on, off)?.unwrap_or(false);
        if huge_pages && lazy == Some(true) && !unused {
            return Err(L1ConfigError::Conflict {
                flag: flags::HUGE_PAGES,
                origin: layers.origin(flags::HUGE_PAGES),
                other: flags::LAZY,
                other_origin: layers.origin(flags::LAZY),
                remedy: "huge pages are all taken at the start: say --no-l1-use-lazy, or nothing",
            });
        }
        let defaults = L1MemoryConfig::default();
        let bytes = size.unwrap_or(defaults.bytes);
        let lazy = lazy.unwrap_or(!huge_pages);
        let initial =
            if lazy { initial.unwrap_or(L1MemoryConfig::default().initial_bytes) } else { bytes };
        Ok(L1MemoryConfig {
            bytes,
            initial_bytes: initial.min(bytes),
            align_bytes: align.unwrap_or(defaults.align_bytes),
            huge_pages,
        })
    }

    fn maru(&self, layers: &mut Layers<'_>) -> Result<Option<MaruL1Config>, L1ConfigError> {
        let server = self.maru_server_url.as_deref();
        let server = layers.read(flags::SERVER_URL, Kind::Text, server, value::server)?;
        let pool = self.maru_pool_size_gb.as_deref();
        let pool = layers.read(flags::POOL_SIZE, Kind::Number, pool, value::gigabytes)?;
        let instance = self.maru_instance_id.as_deref();
        let instance = layers.read(flags::INSTANCE, Kind::Text, instance, value::name)?;
        let timeout = self.maru_timeout_ms.as_deref();
        let timeout = layers.read(flags::TIMEOUT, Kind::Number, timeout, value::milliseconds)?;
        let in_flight = self.maru_max_inflight.as_deref();
        let in_flight = layers.read(flags::IN_FLIGHT, Kind::Number, in_flight, value::in_flight)?;
        let (on, off) = (self.maru_eager_map, self.no_maru_eager_map);
        let eager_map = layers.switch(flags::EAGER_MAP, on, off)?;
        let (on, off) = (self.maru_auto_expand, self.no_maru_auto_expand);
        let auto_expand = layers.switch(flags::AUTO_EXPAND, on, off)?;
        let verify = self.maru_verify.as_deref();
        let verify = layers.read(flags::VERIFY, Kind::Text, verify, value::verify)?;
        let host = self.maru_host_id.as_deref();
        let host = layers.read(flags::HOST, Kind::Text, host, value::name)?;
        let plugin = self.maru_visibility_plugin.as_deref();
        let plugin = layers.read(flags::VISIBILITY_PLUGIN, Kind::Text, plugin, value::library)?;
        let Some(server) = server else {
            let Some((flag, origin)) = layers.given(&SHARED).next() else { return Ok(None) };
            return Err(L1ConfigError::Needs { flag, origin, needed: flags::SERVER_URL });
        };
        let defaults = MaruL1Config::new(server);
        Ok(Some(MaruL1Config {
            pool_bytes: pool.unwrap_or(defaults.pool_bytes),
            instance,
            timeout: timeout.unwrap_or(defaults.timeout),
            in_flight_max: in_flight.unwrap_or(defaults.in_flight_max),
            eager_map: eager_map.unwrap_or(defaults.eager_map),
            auto_expand: auto_expand.unwrap_or(defaults.auto_expand),
            verify: verify.unwrap_or(defaults.verify),
            host,
            visibility_plugin: plugin,
            ..defaults
        }))
    }

    fn eviction(&self, layers: &mut Layers<'_>) -> Result<EvictionConfig, L1ConfigError> {
        let policy = self.eviction_policy.as_deref();
        let policy = layers.read(flags::POLICY, Kind::Text, policy, value::policy)?;
        let (on, off) = (self.eviction_isolate_salts, self.no_eviction_isolate_salts);
        let isolate_salts = layers.switch(flags::ISOLATE_SALTS, on, off)?;
        let watermark = self.eviction_trigger_watermark.as_deref();
        let watermark = layers.read(flags::WATERMARK, Kind::Number, watermark, value::share)?;
        let ratio = self.eviction_ratio.as_deref();
        let ratio = layers.read(flags::RATIO, Kind::Number, ratio, value::share)?;
        let defaults = EvictionConfig::default();
        let (policy, isolated) = policy.unwrap_or((defaults.policy, defaults.isolate_salts));
        if isolated && isolate_salts == Some(false) {
            return Err(L1ConfigError::Conflict {
                flag: flags::POLICY,
                origin: layers.origin(flags::POLICY),
                other: "--no-eviction-isolate-salts",
                other_origin: layers.origin(flags::ISOLATE_SALTS),
                remedy: "IsolatedLRU isolates them: say LRU, or nothing of salts",
            });
        }
        Ok(EvictionConfig {
            policy,
            isolate_salts: isolate_salts.unwrap_or(isolated),
            trigger_watermark: watermark.unwrap_or(defaults.trigger_watermark),
            ratio: ratio.unwrap_or(defaults.ratio),
        })
    }
}

/// Brings the memory down to what is available; says so if that is less.
fn clamp(memory: &mut L1MemoryConfig, available_bytes: &dyn Fn() -> Option<u64>) {
    let Some(available) = available_bytes() else {
        tracing::warn!("this machine does not say how much memory it has available");
        return;
    };
    let reserve = reserve_bytes(available);
    let most = available - reserve;
    if memory.bytes <= most {
        return;
    }
    let asked = memory.bytes;
    // Whole alignments, and at least one.
    memory.bytes = (most - most % memory.align_bytes).max(memory.align_bytes);
    memory.initial_bytes = memory.initial_bytes.min(memory.bytes);
    tracing::warn!(
        asked_gb = value::in_gigabytes(asked),
        available_gb = value::in_gigabytes(available),
        reserve_gb = value::in_gigabytes(reserve),
        taken_gb = value::in_gigabytes(memory.bytes),
        "{} is more than there is memory available, and was brought down",
        flags::SIZE
    );
}
