//! The Python packages: their wheel, and their tests that need no LMCache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::{cargo, root, step};

/// How the native module, and the server that it is tested with, are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Formatting, lints, types, and all tests that need no LMCache.
pub(crate) fn test() -> anyhow::Result<()> {
    let venv = environment()?;
    let ruff = |args: &[&str]| program(&venv, "ruff", args);
    step("python formatting", ruff(&["format", "--check", "python"]))?;
    step("python lints", ruff(&["check", "python"]))?;
    let server = server(Profile::Dev)?;
    install(&venv, &wheel(Profile::Dev)?)?;
    let mypy = ["--config-file", "python/pyproject.toml", "-p", "maru", "-p", "maru_lmcache"];
    step("python types", program(&venv, "mypy", &mypy))?;
    step("stubs of the native module", program(&venv, "stubtest", &["maru._native"]))?;
    let mut tests = program(&venv, "pytest", &["-q", "python/tests"]);
    tests.env("MARU_PROGRAM", server);
    step("python tests", tests)
}

/// The `maru` program.
pub(crate) fn server(profile: Profile) -> anyhow::Result<PathBuf> {
    let (folder, flags) = match profile {
        Profile::Dev => ("debug", &[][..]),
        Profile::Release => ("release", &["--release"][..]),
    };
    let mut build = cargo(&["build", "--quiet", "--package", "maru"]);
    build.args(flags);
    step("the maru program", build)?;
    Ok(target().join(folder).join("maru"))
}

/// Builds the wheel, and says where it is.
pub(crate) fn wheel(profile: Profile) -> anyhow::Result<PathBuf> {
    let venv = environment()?;
    let out = target().join("wheels");
    // Only one is to be there.
    let _ = fs::remove_dir_all(&out);
    let mut build = program(&venv, "maturin", &["build", "--quiet", "--out"]);
    build.arg(&out).args(["--manifest-path", "python/Cargo.toml"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    step("the wheel", build)?;
    let mut wheels =
        fs::read_dir(&out).with_context(|| format!("cannot list {}", out.display()))?;
    let wheel = wheels.next().with_context(|| format!("no wheel in {}", out.display()))??;
    Ok(wheel.path())
}

/// Installs the wheel, and nothing that it asks for.
pub(crate) fn install(venv: &Path, wheel: &Path) -> anyhow::Result<()> {
    let mut pip = program(venv, "pip", &["install", "--quiet", "--no-deps", "--force-reinstall"]);
    pip.arg("--disable-pip-version-check").arg(wheel);
    step("installing the wheel", pip)
}

/// What builds the wheel and checks it, made once for each list of requirements.
fn environment() -> anyhow::Result<PathBuf> {
    let venv = target().join("python");
    let list = root().join("python/tests/requirements.txt");
    let wanted = fs::read(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let stamp = venv.join("requirements.txt");
    if fs::read(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(venv);
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(&venv);
    step("an environment for Python", make)?;
    let mut pip = program(&venv, "pip", &["install", "--quiet", "--disable-pip-version-check"]);
    pip.arg("--requirement").arg(&list);
    step("installing what tests Python", pip)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(venv)
}

/// A program of an environment, to run at the root of the workspace.
pub(crate) fn program(venv: &Path, name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(venv.join("bin").join(name));
    // maturin asks for the environment that it is to build for.
    command.args(args).current_dir(root()).env("VIRTUAL_ENV", venv);
    // As for cargo: what was set for this program would bind the next cargo to its toolchain.
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
        command.env_remove(name);
    }
    command
}

/// Where cargo builds, whoever else may have been told another place.
pub(crate) fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    named.map_or_else(|| root().join("target"), |named| root().join(named))
}
