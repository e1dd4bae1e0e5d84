//! Wrong usage that no single flag shows.

use std::collections::HashSet;
use std::path::PathBuf;

/// What was asked for cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongUsage(pub(crate) String);

/// One device twice would be found to be in use, by nobody else.
pub(crate) fn check_distinct<'a>(
    paths: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<(), WrongUsage> {
    let mut seen = HashSet::new();
    for path in paths {
        if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
            return Err(WrongUsage(format!("{} is given twice: give it once", path.display())));
        }
    }
    Ok(())
}
