//! How far something long has come: a bar on a terminal, now and then a line in a log.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use crate::say;

/// How often a log is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How far something has come, of so many. What is shown is gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    name: String,
    bar: ProgressBar,
    told: Mutex<Instant>,
}

impl Progress {
    pub(crate) fn new(name: &str, len: u64) -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}, {eta} left");
        // Hidden by itself where stderr is not a terminal.
        let bar = ProgressBar::new(len).with_message(name.to_owned());
        let bar = bar.with_finish(ProgressFinish::AndClear);
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { name: name.to_owned(), bar, told: Mutex::new(Instant::now()) }
    }

    pub(crate) fn set(&self, done: u64) {
        self.bar.set_position(done);
        self.tell();
    }

    pub(crate) fn add_one(&self) {
        self.bar.inc(1);
        self.tell();
    }

    fn tell(&self) {
        if !self.bar.is_hidden() {
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= TELL_EVERY {
            *told = Instant::now();
            let (done, len) = (self.bar.position(), self.bar.length().unwrap_or(0));
            say(&format!("{}: {done} of {len}", self.name));
        }
    }
}
