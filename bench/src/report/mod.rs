//! A report of each scenario: what was measured (JSON), and the same for people (Markdown, with a plot).

mod page;
mod plot;
mod svg;

use std::path::Path;

use anyhow::{Context, Result};

use crate::results::Record;

/// Writes `NAME.json`, `NAME.md` and `NAME.svg` of a scenario into `dir`, which is made.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(dir: &Path, record: &Record) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let json = serde_json::to_string_pretty(record)? + "\n";
    let files = [("json", json), ("md", page::of(record)), ("svg", plot::of(&record.scenario))];
    for (ending, text) in files {
        let path = dir.join(format!("{}.{ending}", record.scenario.name));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
