//! A look at the server of a shared L1, from outside of the instances.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use maru_client::{Client, ClientConfig, ClientError};
use maru_l1::{L1ManagerConfig, MaruL1Config, MemoryUsage};
use maru_protocol::Stats;

use super::result::Run;

/// How long the server may take to clean up after the instances, with much time to spare.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Sees what the server of a replay's instances says of them.
#[derive(Debug)]
pub(super) struct Watcher {
    client: Client,
    before: Stats,
    instances: BTreeSet<String>,
    page_bytes: u64,
}

/// A session that holds nothing, with the server of an instance.
pub(super) fn connect(config: &MaruL1Config) -> Result<Client, ClientError> {
    let instance = format!("replay-watcher-{}", std::process::id());
    let config = config.client_config();
    Client::connect(ClientConfig { instance, budget_bytes: 0, eager_map: false, ..config })
}

impl Watcher {
    /// Before the instances start; `None` if they have no server.
    pub(super) fn new(
        l1s: &[L1ManagerConfig],
        page_bytes: u64,
    ) -> Result<Option<Self>, ClientError> {
        let Some(first) = l1s.iter().find_map(|l1| l1.maru.as_ref()) else { return Ok(None) };
        let client = connect(first)?;
        let before = client.stats()?;
        let shared = l1s.iter().filter_map(|l1| l1.maru.as_ref());
        let instances = shared.filter_map(|maru| maru.instance.clone()).collect();
        Ok(Some(Self { client, before, instances, page_bytes }))
    }

    pub(super) fn usage(&self) -> Result<MemoryUsage, ClientError> {
        let stats = self.client.stats()?;
        Ok(MemoryUsage { used_bytes: stats.used_bytes(), total_bytes: stats.capacity_bytes })
    }

    /// What is left behind once the server has cleaned up after all instances, or after some
    /// seconds, added to what their own books say; and how many chunks it has evicted since.
    pub(super) fn audit(&self, run: &mut Run) -> Result<(), ClientError> {
        let start = Instant::now();
        let stats = loop {
            let stats = self.client.stats()?;
            let mut names = stats.sessions.iter().map(|session| &session.instance);
            let is_settled = !names.any(|name| self.instances.contains(name));
            if is_settled || start.elapsed() > SETTLE_MAX {
                break stats;
            }
            sleep(Duration::from_millis(20));
        };
        let ours = stats.sessions.iter().filter(|one| self.instances.contains(&one.instance));
        for session in ours {
            run.pins_left += session.pins;
            run.reservations_left += session.reservations;
        }
        let lost = stats.lost_bytes() / i128::from(self.page_bytes.max(1));
        run.pages_lost = run.pages_lost.saturating_add(i64::try_from(lost).unwrap_or(i64::MAX));
        // A server that was restarted on the way counts from 0 again.
        run.evictions += stats.counters.evicted().saturating_sub(self.before.counters.evicted());
        Ok(())
    }
}
