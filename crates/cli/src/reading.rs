//! How far reading something has come: a bar on a terminal, now and then a line in a log.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use maru_server::store::Progress;

use crate::output;

/// How often a log is told.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Tells how far reading something has come, if that takes a while. What is shown is gone when this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Reading {
    what: &'static str,
    told: Instant,
    bar: ProgressBar,
}

impl Reading {
    pub(crate) fn new(what: &'static str) -> Self {
        let template = "reading {msg} {wide_bar} {bytes}/{total_bytes}, {eta} left";
        let style = ProgressStyle::with_template(template);
        // Hidden by itself where stderr is not a terminal.
        let bar = ProgressBar::new(0).with_finish(ProgressFinish::AndClear).with_message(what);
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { what, told: Instant::now(), bar }
    }

    pub(crate) fn tell(&mut self, progress: Progress) {
        let Progress { done, total } = progress;
        self.bar.set_length(total);
        self.bar.set_position(done);
        if self.bar.is_hidden() && self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            tracing::info!(
                read = output::bytes(done),
                of = output::bytes(total),
                seconds_left = self.bar.eta().as_secs(),
                "reading {}",
                self.what
            );
        }
    }
}
