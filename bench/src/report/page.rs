//! A scenario's results as a Markdown page.

use std::fmt::Write;

use crate::results::Record;
use crate::table;

/// The page.
pub(crate) fn of(record: &Record) -> String {
    let (m, scenario) = (&record.machine, &record.scenario);
    let mut text = format!("# {}\n\n{}\n\n", scenario.name, scenario.about);
    let _ = write!(
        text,
        "Each entry: {}. Ratios are taken within a round; everything is counted at the receiver.\n\n",
        table::entries(scenario)
    );
    let _ = write!(text, "![medians and spread]({}.svg)\n\n", scenario.name);
    for remark in &scenario.remarks {
        let _ = write!(text, "{remark}\n\n");
    }
    for cell in &scenario.cells {
        let _ = write!(text, "## {}\n\n", cell.name);
        for (number, row) in table::rows(cell).iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if number == 0 {
                let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
            }
        }
        text.push('\n');
        for note in table::notes(cell) {
            let _ = write!(text, "{note}\n\n");
        }
    }
    let _ = write!(
        text,
        "## Machine\n\n| | |\n|---|---|\n| command | `{}` |\n| date | {} |\n| processor | {}, {} CPUs |\n\
         | memory | {:.0} GiB |\n| system | {} |\n",
        record.command, m.date, m.processor, m.cpus, m.memory_gib, m.system
    );
    for (name, version) in &m.versions {
        let _ = writeln!(text, "| {name} | {version} |");
    }
    let _ = write!(text, "\n## Command lines\n\n`DIR` is a directory for the files of one run.\n");
    for (name, lines) in &scenario.commands {
        let _ = write!(text, "\n{name}:\n\n```sh\n{}\n```\n", lines.join("\n"));
    }
    text
}
