//! The instances' processes, as their parent sees them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde::de::DeserializeOwned;
use signal_hook::consts::SIGBUS;

use super::instance::{Books, Outcome};
use super::order::Order;

/// How long an instance may take to end in good order once nobody wants it any more.
const END_MAX: Duration = Duration::from_millis(500);

/// One instance's process. It has at most one request at a time.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// `None` once it shall end.
    requests: Option<ChildStdin>,
    outcomes: BufReader<ChildStdout>,
    busy: bool,
    /// What its last outcome says, of a private L1.
    used_bytes: u64,
}

impl Process {
    /// Starts it. It is ready after its first outcome.
    pub(super) fn spawn(order: &Order) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find the program itself")?;
        let mut child = Command::new(program)
            .args(["--log", "warn", "replay-instance"])
            // Ctrl-C is for the replay: it ends the instances.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start an instance")?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (mut requests, outcomes) = pipes.context("an instance has no pipes")?;
        // One that is gone already is told by its first outcome.
        let _ = writeln!(requests, "{}", serde_json::to_string(order)?);
        let (requests, outcomes) = (Some(requests), BufReader::new(outcomes));
        Ok(Self { child, requests, outcomes, busy: true, used_bytes: 0 })
    }

    /// Bytes that its private L1 has in use.
    pub(super) const fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Gives it a request.
    pub(super) fn give(&mut self, blocks: &[u64]) -> anyhow::Result<()> {
        let requests = self.requests.as_mut().context("it is to end")?;
        writeln!(requests, "{}", serde_json::to_string(blocks)?)?;
        self.busy = true;
        Ok(())
    }

    /// Waits for the outcome of what it is busy with; `None` if that is nothing.
    pub(super) fn outcome(&mut self) -> anyhow::Result<Option<Outcome>> {
        if !self.busy {
            return Ok(None);
        }
        let outcome: Outcome = self.read()?;
        (self.busy, self.used_bytes) = (false, outcome.used_bytes);
        Ok(Some(outcome))
    }

    fn read<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        if self.outcomes.read_line(&mut line)? == 0 {
            return Err(anyhow!("it ended"));
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Has it end, without waiting for that.
    pub(super) fn dismiss(&mut self) {
        self.requests = None;
    }

    /// Lets it end, and takes its books.
    pub(super) fn finish(mut self) -> anyhow::Result<Books> {
        self.dismiss();
        let books = self.read();
        let status = self.child.wait()?;
        if !status.success() {
            return Err(anyhow!("it ended with {status}"));
        }
        books
    }

    /// Makes sure that it is gone; says how it ended.
    pub(super) fn bury(mut self) -> String {
        let _ = self.child.kill();
        self.child.wait().map_or_else(|error| error.to_string(), ending)
    }
}

impl Drop for Process {
    /// Ends it, in good order if that does not take long.
    fn drop(&mut self) {
        self.dismiss();
        let end = Instant::now() + END_MAX;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a process ended, in words.
fn ending(status: ExitStatus) -> String {
    match status.signal() {
        Some(SIGBUS) => format!("{status}: the memory behind the pool ran out"),
        _ => status.to_string(),
    }
}
