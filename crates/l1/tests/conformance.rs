//! Every case of the conformance suite, for every manager. Its last lines say how each did.

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use maru_l1::{
    Clock, L1Manager, L1ManagerConfig, L1MemoryConfig, LocalL1Manager, ManualClock, MaruL1Config,
    MaruL1Manager,
};
use maru_testkit::TestPool;
use maru_testkit::conformance::{Evictor, Factory, PAGE, READ_TTL, Subject, WRITE_TTL, cases};

/// Room for chunks in the cases that do not say how much they need.
const PAGES: u64 = 64;

#[derive(Debug)]
struct Local;

impl Factory for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn subject(&self, pages: u64) -> Subject {
        let bytes = pages * PAGE;
        let memory = L1MemoryConfig { bytes, initial_bytes: bytes, ..L1MemoryConfig::default() };
        let clock = Arc::new(ManualClock::default());
        let manager = LocalL1Manager::with_clock(
            L1ManagerConfig { memory, ..config(None) },
            Arc::clone(&clock) as Arc<dyn Clock>,
        );
        let manager: Arc<dyn L1Manager> = Arc::new(manager.expect("there is memory"));
        Subject { manager, clock, evictor: Evictor::Own, pages, keep: Box::new(()) }
    }
}

#[derive(Debug)]
struct Maru;

impl Factory for Maru {
    fn name(&self) -> &'static str {
        "maru"
    }

    fn subject(&self, pages: u64) -> Subject {
        // A device begins with 2 MiB for its header.
        let pool = TestPool::start_with((2 << 20) + pages * PAGE, |server| {
            // The suite fills the pool: the server makes room when it must, not before.
            server.directory.watermark_high_permille = 1000;
            server.directory.watermark_low_permille = 1000;
        });
        let clock = Arc::new(ManualClock::default());
        let manager = MaruL1Manager::with_clock(
            config(Some(MaruL1Config::new(pool.endpoint()))),
            Arc::clone(&clock) as Arc<dyn Clock>,
        );
        let manager: Arc<dyn L1Manager> = Arc::new(manager.expect("the server lets it in"));
        Subject { manager, clock, evictor: Evictor::Server, pages, keep: Box::new(pool) }
    }
}

fn config(maru: Option<MaruL1Config>) -> L1ManagerConfig {
    L1ManagerConfig { maru, write_ttl: WRITE_TTL, read_ttl: READ_TTL, ..Default::default() }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let factories: [Arc<dyn Factory>; 2] = [Arc::new(Local), Arc::new(Maru)];
    let mut lines = Vec::new();
    let mut failed = false;
    for factory in factories {
        let name = factory.name();
        let trial = |case: maru_testkit::conformance::Case| {
            let factory = Arc::clone(&factory);
            Trial::test(format!("{name}::{}", case.name), move || {
                (case.run)(&factory.subject(PAGES));
                Ok(())
            })
        };
        let done = libtest_mimic::run(&arguments, cases().into_iter().map(trial).collect());
        lines.push(format!("{name}: {} passed, {} failed", done.num_passed, done.num_failed));
        failed |= done.has_failed();
    }
    if !arguments.list {
        for line in lines {
            #[expect(clippy::print_stdout, reason = "a test's report")]
            {
                println!("{line}");
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
