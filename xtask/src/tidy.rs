//! What neither rustfmt nor clippy looks at: long files, long functions' hiding places, pages that
//! must change with the code they describe.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Lines of one Rust file, tests included; a file about one thing has fewer.
const FILE_LINES_MAX: usize = 600;

/// Columns, where rustfmt does not break: comments and strings.
const COLUMNS_MAX: usize = 120;

/// A page, and the sources it describes line by line: each name in backticks in its tables must
/// stand in one of them.
const PAGES: [(&str, &[&str]); 1] = [(
    "docs/wire.md",
    &[
        "crates/protocol/src/frame.rs",
        "crates/protocol/src/message.rs",
        "crates/protocol/src/event.rs",
        "crates/protocol/src/refusal.rs",
        "crates/protocol/src/location.rs",
        "crates/protocol/src/key.rs",
    ],
)];

/// Checks the tree; the error names every place.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    for path in rust_files(root)? {
        let text = fs::read_to_string(&path)?;
        let name = path.strip_prefix(root).unwrap_or(&path).display();
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            problems.push(format!("{name}: {lines} lines, more than {FILE_LINES_MAX}: split it"));
        }
        for (number, line) in (1..).zip(text.lines()) {
            if line.chars().count() > COLUMNS_MAX {
                problems.push(format!("{name}:{number}: wider than {COLUMNS_MAX} columns"));
            }
            if line.chars().any(|c| !c.is_ascii() || c.is_ascii_control()) {
                problems.push(format!("{name}:{number}: not printable ASCII"));
            }
        }
    }
    for (page, sources) in PAGES {
        problems.extend(check_page(root, page, sources)?);
    }
    for page in pages(root)? {
        problems.extend(missing_paths(root, &page)?);
    }
    if problems.is_empty() { Ok(()) } else { bail!("untidy:\n  {}", problems.join("\n  ")) }
}

fn rust_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = ["crates", "python/src", "xtask", "fuzz/fuzz_targets"]
        .iter()
        .map(|name| root.join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The pages that people read.
fn pages(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for folder in [root.to_owned(), root.join("docs")] {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    Ok(pages)
}

/// Sources that a page leads to and that are not there, from the root or from `crates`.
fn missing_paths(root: &Path, page: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(page)?;
    let named = text.split('`').skip(1).step_by(2).filter(|name| is_source(name));
    let missing =
        named.filter(|name| ![root, &root.join("crates")].iter().any(|at| at.join(name).exists()));
    Ok(missing
        .map(|name| format!("{} names `{name}`, which is not there", page.display()))
        .collect())
}

/// Whether this is the path of a source with its folder, and nothing else.
fn is_source(name: &str) -> bool {
    let is_path = name.chars().all(|c| c.is_ascii_alphanumeric() || "/_-.".contains(c));
    let is_rust = Path::new(name).extension().is_some_and(|extension| extension == "rs");
    is_path && is_rust && name.contains('/')
}

/// Names that a page's tables use and its sources do not know, and variants of the wire's enums
/// that the page does not tell of.
fn check_page(root: &Path, page: &str, sources: &[&str]) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(root.join(page)).with_context(|| page.to_owned())?;
    let mut code = String::new();
    for source in sources {
        code += &fs::read_to_string(root.join(source)).with_context(|| (*source).to_owned())?;
    }
    let rows = text.lines().filter(|line| line.starts_with('|'));
    let names = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let unknown = names.filter(|name| {
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !code.contains(*name)
    });
    let mut problems: Vec<String> =
        unknown.map(|name| format!("{page} names `{name}`, which no source has")).collect();
    for name in variants(&code) {
        if !text.contains(&format!("`{name}`")) {
            problems.push(format!("{page} does not tell of `{name}`"));
        }
    }
    Ok(problems)
}

/// The variants of all enums in formatted code.
fn variants(code: &str) -> Vec<&str> {
    let mut variants = Vec::new();
    let mut in_enum = false;
    for line in code.lines() {
        if line.contains("pub enum ") {
            in_enum = !line.contains("Error");
        } else if line == "}" {
            in_enum = false;
        } else if in_enum
            && let Some(rest) = line.strip_prefix("    ")
            && rest.starts_with(|c: char| c.is_ascii_uppercase())
        {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
            variants.push(&rest[..end]);
        }
    }
    variants
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_from_other_code() {
        let told = ["link/mod.rs", "client/src/link/mod.rs", "mod.rs", "cargo x/y.rs", "a/b.toml"];
        assert_eq!(told.map(is_source), [true, true, false, false, false]);
    }

    #[test]
    fn variants_are_found() {
        let code = [
            "pub enum Body<'a> {",
            "    /// Doc.",
            "    Renew,",
            "    Reserve {",
            "        Keys: u8,",
            "    },",
            "    Done(Vec<u8>),",
            "}",
            "pub enum KeyError {",
            "    Empty,",
            "}",
        ]
        .join("\n");
        assert_eq!(variants(&code), ["Renew", "Reserve", "Done"]);
    }
}
