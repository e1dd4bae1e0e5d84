//! How the pages of a pool become visible to other hosts.

use crate::guarded;
use crate::plugin::VisibilityPlugin;

/// How bytes that one host writes become visible to the others that map the same memory.
///
/// Within one host nothing is ever needed. Between hosts that share CXL 2.0 memory, no cache knows
/// of another: a writer has to write its lines back before anybody is told of the bytes
/// ([`PageMut::publish`]), a reader to drop the lines that it has before its first load
/// ([`PageView::acquire`]), and who gives a page back unfinished has to write back what it stored
/// ([`PageMut::write_back`]), or those lines would overwrite the next owner's bytes whenever the
/// cache runs full.
///
/// All hosts of a pool must agree on it.
///
/// [`PageMut::publish`]: crate::PageMut::publish
/// [`PageMut::write_back`]: crate::PageMut::write_back
/// [`PageView::acquire`]: crate::PageView::acquire
#[derive(Clone, Debug, Default)]
pub enum Visibility {
    /// The hardware sees to it: all instances run on one host, or the fabric keeps the caches of its
    /// hosts coherent. The three calls do nothing.
    #[default]
    Coherent,
    /// Cache lines are written back and dropped by software.
    CacheLine {
        /// What does it; without one, the processor's own instructions do (`clwb`, `clflushopt`,
        /// `clflush`; on arm64 `dc cvac` and `dc civac`).
        plugin: Option<VisibilityPlugin>,
    },
}

/// The instructions of this processor that [`Visibility::CacheLine`] works with if it has no plug-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineInstructions {
    /// What writes a line back.
    pub write_back: &'static str,
    /// What drops a line.
    pub invalidate: &'static str,
}

/// The best that this processor has.
#[must_use]
pub fn line_instructions() -> LineInstructions {
    guarded::line_instructions()
}
