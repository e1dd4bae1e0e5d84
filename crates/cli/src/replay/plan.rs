//! Which L1 each instance gets: what the flags come to.

use maru_l1::{L1Args, L1ConfigError, L1ManagerConfig, MaruL1Config};
use maru_protocol::{Endpoint, PAGE_ALIGN};
use tracing::subscriber::{NoSubscriber, with_default};

use super::{L1Kind, Replay};
use crate::output;
use crate::usage::WrongUsage;

/// The largest pool that one directory takes, in bytes.
const POOL_BYTES_MAX: u128 = 16 << 40;

/// Bytes of a GB on the command line.
const GB: f64 = 1_073_741_824.0;

/// Which L1 each instance gets.
#[derive(Debug)]
pub(super) struct Plan {
    instances: u32,
    /// Of all instances together.
    pub(super) capacity_blocks: u64,
    page_bytes: u64,
    /// Any instance's private L1, but for its size.
    pub(super) private: L1ManagerConfig,
    /// Any instance's shared one, but for its server, if that is the replay's own, and its name.
    shared: L1ManagerConfig,
    /// The server that the user named.
    pub(super) named: Option<MaruL1Config>,
}

impl Plan {
    pub(super) fn new(replay: &Replay) -> anyhow::Result<Self> {
        check_flags(replay)?;
        let mut private_flags = without_maru(&replay.l1_args);
        if replay.l1 == L1Kind::Maru {
            // With a server of others, none of this machine's memory is taken.
            private_flags.maru_server_url.clone_from(&replay.l1_args.maru_server_url);
        }
        let capacity_blocks = if replay.l1_args.l1_size_gb.is_some() {
            let memory = private_flags.resolve()?.memory;
            let page = replay.page_size.next_multiple_of(memory.align_bytes);
            u64::from(replay.instances) * (memory.bytes / page)
        } else {
            replay.capacity_blocks
        };
        let bytes = check_capacity(replay, capacity_blocks)?;
        // With all that is needed as the size, resolving tells whether it is there. It would warn in
        // words of a flag that was not given.
        let private_flags = L1Args { l1_size_gb: Some(in_gb(bytes)), ..private_flags };
        let private = with_default(NoSubscriber::default(), || private_flags.resolve())?;
        if private.maru.is_none() {
            check_memory(replay, capacity_blocks, bytes, &private)?;
        }
        let mut shared_flags = without_private(&replay.l1_args);
        let is_named = replay.l1_args.maru_server_url.is_some() || private.maru.is_some();
        if !is_named {
            // Until there is one: the settings of a session must come with a server.
            shared_flags.maru_server_url = Some("/replay/own".to_owned());
        }
        let shared = shared_flags.resolve()?;
        let named = shared.maru.clone().filter(|_| is_named && replay.l1 != L1Kind::Local);
        if let (Some(_), Some(_)) = (&named, replay.transport) {
            let problem = "--transport is for the replay's own server: leave it out, or \
                           --maru-server-url (or MARU_SERVER_URL)";
            return Err(WrongUsage(problem.to_owned()).into());
        }
        let private = L1ManagerConfig { maru: None, ..private };
        let (instances, page_bytes) = (replay.instances, replay.page_size);
        let plan = Self { instances, capacity_blocks, page_bytes, private, shared, named };
        // A name that is too long should not wait for the private run to end.
        plan.shared(|_| None)?;
        Ok(plan)
    }

    /// Private L1s, which hold just so many blocks.
    pub(super) fn private(&self) -> Result<Vec<L1ManagerConfig>, L1ConfigError> {
        let l1 = |index| {
            let mut l1 = self.private.clone();
            let page = self.page_bytes.next_multiple_of(l1.memory.align_bytes);
            l1.memory.bytes = share(self.capacity_blocks, self.instances, index) * page;
            l1.memory.initial_bytes = l1.memory.initial_bytes.min(l1.memory.bytes);
            l1.check()?;
            Ok(l1)
        };
        (0..self.instances).map(l1).collect()
    }

    /// Shared L1s; `own_server` says where an instance reaches the replay's own server.
    pub(super) fn shared(
        &self,
        own_server: impl Fn(u32) -> Option<Endpoint>,
    ) -> Result<Vec<L1ManagerConfig>, L1ConfigError> {
        let l1 = |index| {
            let mut l1 = self.shared.clone();
            if let Some(maru) = &mut l1.maru {
                let prefix = maru.instance.take();
                let prefix = prefix.unwrap_or_else(|| format!("{}-shared", std::process::id()));
                maru.instance = Some(format!("{prefix}-{index}"));
                if let Some(server) = own_server(index) {
                    maru.server = server;
                }
            }
            l1.check()?;
            Ok(l1)
        };
        (0..self.instances).map(l1).collect()
    }
}

/// Refuses flags of an L1 that is not asked for. Of the environment and a file they have no effect:
/// those may be meant for whatever runs on this machine.
fn check_flags(replay: &Replay) -> Result<(), WrongUsage> {
    let unused = match replay.l1 {
        L1Kind::Local => first_of_shared(replay),
        L1Kind::Maru => first_of_private(&replay.l1_args),
        L1Kind::Both => None,
    };
    if let Some(flag) = unused {
        let only = if replay.l1 == L1Kind::Local { "local" } else { "maru" };
        return Err(WrongUsage(format!(
            "{flag} has no effect on --l1 {only}: leave it out, or say --l1 both"
        )));
    }
    let watermark = [
        ("--eviction-trigger-watermark", replay.l1_args.eviction_trigger_watermark.is_some()),
        ("--eviction-ratio", replay.l1_args.eviction_ratio.is_some()),
    ];
    if let Some((flag, _)) = watermark.iter().find(|(_, given)| *given) {
        return Err(WrongUsage(format!(
            "{flag} has no effect on a replay, which evicts only what a block needs: leave it out"
        )));
    }
    Ok(())
}

fn first_of_shared(replay: &Replay) -> Option<&'static str> {
    let args = &replay.l1_args;
    let flags = [
        ("--transport", replay.transport.is_some()),
        ("--maru-server-url", args.maru_server_url.is_some()),
        ("--maru-pool-size-gb", args.maru_pool_size_gb.is_some()),
        ("--maru-instance-id", args.maru_instance_id.is_some()),
        ("--maru-timeout-ms", args.maru_timeout_ms.is_some()),
        ("--maru-max-inflight", args.maru_max_inflight.is_some()),
        ("--maru-eager-map", args.maru_eager_map),
        ("--no-maru-eager-map", args.no_maru_eager_map),
        ("--maru-auto-expand", args.maru_auto_expand),
        ("--no-maru-auto-expand", args.no_maru_auto_expand),
        ("--maru-verify", args.maru_verify.is_some()),
        ("--maru-host-id", args.maru_host_id.is_some()),
        ("--maru-visibility-plugin", args.maru_visibility_plugin.is_some()),
    ];
    flags.iter().find(|(_, given)| *given).map(|(flag, _)| *flag)
}

fn first_of_private(args: &L1Args) -> Option<&'static str> {
    let flags = [
        ("--l1-use-lazy", args.l1_use_lazy),
        ("--no-l1-use-lazy", args.no_l1_use_lazy),
        ("--l1-init-size-gb", args.l1_init_size_gb.is_some()),
        ("--l1-align-bytes", args.l1_align_bytes.is_some()),
        ("--l1-use-hugepages", args.l1_use_hugepages),
        ("--no-l1-use-hugepages", args.no_l1_use_hugepages),
        ("--eviction-policy", args.eviction_policy.is_some()),
        ("--eviction-isolate-salts", args.eviction_isolate_salts),
        ("--no-eviction-isolate-salts", args.no_eviction_isolate_salts),
    ];
    flags.iter().find(|(_, given)| *given).map(|(flag, _)| *flag)
}

/// The flags of a private L1.
fn without_maru(args: &L1Args) -> L1Args {
    L1Args {
        maru_server_url: None,
        maru_pool_size_gb: None,
        maru_instance_id: None,
        maru_timeout_ms: None,
        maru_max_inflight: None,
        maru_eager_map: false,
        no_maru_eager_map: false,
        maru_auto_expand: false,
        no_maru_auto_expand: false,
        maru_verify: None,
        maru_host_id: None,
        maru_visibility_plugin: None,
        ..args.clone()
    }
}

/// The flags of a shared L1.
fn without_private(args: &L1Args) -> L1Args {
    L1Args {
        l1_size_gb: None,
        l1_use_lazy: false,
        no_l1_use_lazy: false,
        l1_init_size_gb: None,
        l1_align_bytes: None,
        l1_use_hugepages: false,
        no_l1_use_hugepages: false,
        ..args.clone()
    }
}

/// What the blocks take up, in bytes, if that can be.
fn check_capacity(replay: &Replay, blocks: u64) -> Result<u64, WrongUsage> {
    let flag = capacity_flag(replay);
    if blocks < u64::from(replay.instances) {
        return Err(WrongUsage(format!("{flag} is less than one block an instance: raise it")));
    }
    let page = u128::from(replay.page_size.next_multiple_of(PAGE_ALIGN));
    let bytes = u128::from(blocks) * page;
    u64::try_from(bytes).ok().filter(|_| bytes <= POOL_BYTES_MAX).ok_or_else(|| {
        WrongUsage(format!(
            "{flag}: {blocks} blocks of {} are more than a pool can have, 16 TiB: lower it",
            output::bytes(replay.page_size),
        ))
    })
}

/// Refuses what this machine does not have.
fn check_memory(
    replay: &Replay,
    blocks: u64,
    bytes: u64,
    found: &L1ManagerConfig,
) -> Result<(), WrongUsage> {
    let memory = &found.memory;
    if memory.bytes < bytes {
        return Err(WrongUsage(format!(
            "{} instances with {} blocks of {} together take {}, and this machine has {} left: lower {}",
            replay.instances,
            output::count(blocks),
            output::bytes(replay.page_size),
            output::bytes(bytes),
            output::bytes(memory.bytes),
            capacity_flag(replay),
        )));
    }
    if memory.huge_pages {
        tracing::warn!(
            "--l1-use-hugepages: private L1s take whole pages of 2 MiB, so they may hold a few blocks \
             more than the shared one"
        );
    }
    Ok(())
}

/// What the capacity follows from.
fn capacity_flag(replay: &Replay) -> &'static str {
    if replay.l1_args.l1_size_gb.is_some() { "--l1-size-gb" } else { "--capacity-blocks" }
}

/// As on the command line, to the byte below 2^53.
#[expect(clippy::cast_precision_loss)]
fn in_gb(bytes: u64) -> String {
    (bytes as f64 / GB).to_string()
}

/// How much of `total` the instance `index` of `instances` gets, so that nothing is left over.
fn share(total: u64, instances: u32, index: u32) -> u64 {
    let (instances, index) = (u64::from(instances), u64::from(index));
    total / instances + u64::from(index < total % instances)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        replay: Replay,
    }

    fn plan(flags: &str) -> anyhow::Result<Plan> {
        let line = Line::try_parse_from(["maru"].into_iter().chain(flags.split_whitespace()))?;
        Plan::new(&line.replay)
    }

    #[test]
    fn shares_sum_to_the_total() {
        for (total, instances) in [(16_000, 4), (16_003, 4), (5, 5), (100, 7)] {
            let sum: u64 = (0..instances).map(|index| share(total, instances, index)).sum();
            assert_eq!(sum, total);
        }
    }

    #[test]
    fn a_private_l1_holds_its_share_to_the_block() {
        let plan = plan("--instances 3 --capacity-blocks 100 --page-size 10007").unwrap();
        let bytes: Vec<u64> = plan.private().unwrap().iter().map(|l1| l1.memory.bytes).collect();
        assert_eq!(bytes, [34 * 12_288, 33 * 12_288, 33 * 12_288]);
        let plan = plan_of_aligned();
        assert_eq!(plan.private().unwrap()[0].memory.bytes, 25 << 16);
    }

    fn plan_of_aligned() -> Plan {
        plan("--capacity-blocks 100 --page-size 4KiB --l1-align-bytes 65536").unwrap()
    }

    #[test]
    fn a_size_of_l1_gives_the_capacity() {
        let plan = plan("--instances 2 --l1-size-gb 0.0625 --page-size 16KiB").unwrap();
        assert_eq!(plan.capacity_blocks, 2 * 4096);
        assert_eq!(plan.private().unwrap()[1].memory.bytes, 64 << 20);
    }

    #[test]
    fn shared_l1s_have_names_of_their_own_and_each_its_budget() {
        let flags = "--maru-instance-id blue --maru-pool-size-gb 0.5 --no-maru-auto-expand";
        let plan = plan(flags).unwrap();
        assert_eq!(plan.named, None);
        let own = Endpoint::Tcp("127.0.0.1:7".to_owned());
        let l1s = plan.shared(|index| (index == 1).then(|| own.clone())).unwrap();
        let second = l1s[1].maru.as_ref().unwrap().client_config();
        assert_eq!((second.instance.as_str(), second.budget_bytes), ("blue-1", 1 << 29));
        assert_eq!(second.endpoint, own);
        assert!(plan.private().unwrap().iter().all(|l1| l1.maru.is_none()));
    }

    #[test]
    fn combinations_that_cannot_be_name_their_flags() {
        let long = format!("--maru-instance-id {}", "x".repeat(127));
        for (flags, named) in [
            ("--l1 local --maru-server-url /x", ["--maru-server-url", "--l1 local"]),
            ("--l1 local --no-maru-auto-expand", ["--no-maru-auto-expand", "--l1 local"]),
            ("--l1 local --transport tcp", ["--transport", "--l1 local"]),
            ("--l1 maru --eviction-policy ARC", ["--eviction-policy", "--l1 maru"]),
            ("--l1 maru --l1-use-hugepages", ["--l1-use-hugepages", "--l1 maru"]),
            ("--capacity-blocks 9 --l1-size-gb 1", ["--capacity-blocks", "--l1-size-gb"]),
            ("--transport tcp --maru-server-url /x", ["--transport", "--maru-server-url"]),
            ("--eviction-ratio 0.5", ["--eviction-ratio", "replay"]),
            ("--l1-size-gb 0.00001", ["--l1-size-gb", "one block"]),
            ("--l1-size-gb 8GB", ["--l1-size-gb", "8GB"]),
            ("--eviction-policy FIFO", ["--eviction-policy", "FIFO"]),
            (&long, ["--maru-instance-id", "128"]),
        ] {
            let complaint = plan(flags).unwrap_err().to_string();
            assert!(named.iter().all(|name| complaint.contains(name)), "{flags}: {complaint}");
        }
    }
}
