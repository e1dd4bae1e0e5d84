//! The environment with the real LMCache, for what is tested against it.

use std::path::PathBuf;
use std::process::Command;

use crate::{root, step};

/// Makes sure of `target/lmcache`, in which `venv` has LMCache and `tests` its own tests, and says
/// where it is: an absolute path. The first time takes minutes, and later ones no time.
pub(crate) fn environment() -> anyhow::Result<PathBuf> {
    let folder = root().join("target/lmcache");
    let mut setup = Command::new("python3");
    setup.arg("python/lmcache_tests/environment.py").arg(&folder).current_dir(root());
    step("the environment with LMCache", setup)?;
    Ok(folder)
}
