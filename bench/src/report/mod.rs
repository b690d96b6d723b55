//! A report of each scenario: what was measured (JSON), and the same for people (Markdown).

mod page;

use std::path::Path;

use anyhow::{Context, Result};

use crate::results::Record;

/// Writes `NAME.json` and `NAME.md` of a scenario into `dir`, which is made.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(dir: &Path, record: &Record) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let json = serde_json::to_string_pretty(record)? + "\n";
    for (ending, text) in [("json", json), ("md", page::of(record))] {
        let path = dir.join(format!("{}.{ending}", record.scenario.name));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
