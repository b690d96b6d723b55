//! Results as text: a table for a terminal, and the same as Markdown.

use std::fmt::Write;

use crate::peers::WEFT;
use crate::results::{Cell, DISTURBED, LIMITED, Results, Runs, Scenario};
use crate::statistics::Summary;

/// The row of one peer, as cells of text.
fn row(cell: &Cell, index: usize) -> [String; 4] {
    let runs = &cell.peers[index];
    let scale = if cell.unit == "bits/s" { 1e9 } else { 1e6 };
    let rate = runs.rate.as_ref().map_or_else(|| "failed".to_string(), |rate| spread(rate, scale));
    let loss = runs.loss.as_ref().map_or_else(String::new, |loss| format!("{:.1} %", loss.median * 100.0));
    let ratio = runs.ratio.as_ref().map_or_else(String::new, |ratio| spread(ratio, 1.0));
    [runs.peer.clone(), rate, loss, ratio]
}

/// The columns in which anything stands, and the rows, first the heads.
fn rows(cell: &Cell) -> (Vec<usize>, Vec<[String; 4]>) {
    let mut rows = vec![heads(cell).map(str::to_string)];
    rows.extend((0..cell.peers.len()).map(|index| row(cell, index)));
    let shown = (0..4).filter(|&column| rows.iter().skip(1).any(|row| !row[column].is_empty())).collect();
    (shown, rows)
}

fn spread(summary: &Summary, scale: f64) -> String {
    let [median, min, max] = [summary.median, summary.min, summary.max].map(|value| value / scale);
    format!("{median:.2} ({min:.2}–{max:.2})")
}

fn heads(cell: &Cell) -> [&'static str; 4] {
    let rate = if cell.unit == "bits/s" { "Gb/s" } else { "Mframes/s" };
    ["switch", rate, "loss", "weft ÷ switch"]
}

/// What can be said about the generator as the limit; nothing for a load in which that has no meaning.
fn verdict(cell: &Cell) -> Option<String> {
    if cell.unit != "frames/s" {
        return None;
    }
    let (whose, ceiling) = cell.ceiling()?;
    let mut text = format!("The generator's highest rate: {:.2} Mframes/s, with {whose}.", ceiling / 1e6);
    for runs in cell.peers.iter().filter(|runs| runs.peer != whose) {
        if let Some(rate) = &runs.rate {
            let part = rate.median / ceiling;
            let limit = if part >= LIMITED { ": may be held up by the generator" } else { "" };
            let _ = write!(text, " {} at {:.0} % of it{limit}.", runs.peer, part * 100.0);
        }
    }
    if whose == WEFT {
        text.push_str(" The generator may be the limit of weft: no faster switch was measured.");
    }
    Some(text)
}

/// A warning where other programs had the processors in some runs.
fn disturbance(cell: &Cell) -> Option<String> {
    let part = |runs: &Runs| Some((runs.peer.clone(), runs.disturbed.as_ref()?.max));
    let disturbed = cell.peers.iter().filter_map(part).filter(|(_, part)| *part > DISTURBED);
    let parts: Vec<String> = disturbed.map(|(peer, part)| format!("{peer} {:.0} %", part * 100.0)).collect();
    let parts = (!parts.is_empty()).then(|| parts.join(", "))?;
    Some(format!("DISTURBED: other programs took a part of the processors, at most (in one run): {parts}."))
}

fn runs(scenario: &Scenario) -> String {
    format!("median (min–max) of {} interleaved rounds of {} s", scenario.pairs, scenario.seconds)
}

/// A cell for a terminal.
pub(crate) fn cell(scenario: &Scenario, cell: &Cell) -> String {
    let (shown, rows) = rows(cell);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = format!("\n{} · {}    {}\n", scenario.name, cell.name, runs(scenario));
    for row in &rows {
        let words: Vec<String> =
            shown.iter().map(|&column| format!("{:<width$}", row[column], width = width(column))).collect();
        let _ = writeln!(text, "  {}", words.join("  ").trim_end());
    }
    for note in [verdict(cell), disturbance(cell)].into_iter().flatten() {
        let _ = writeln!(text, "  {note}");
    }
    text
}

/// How switches and generators were started, for a terminal.
pub(crate) fn commands(scenario: &Scenario) -> String {
    let mut text = format!("\n{}: command lines (DIR: a directory for each run's files)\n", scenario.name);
    for (name, lines) in &scenario.commands {
        let _ = writeln!(text, "  {name}");
        for line in lines {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

/// The machine and the versions, for a terminal.
pub(crate) fn machine(results: &Results) -> String {
    let m = &results.machine;
    let mut text =
        format!("{}: {}, {} CPUs, {:.0} GiB, {}\n", m.date, m.processor, m.cpus, m.memory_gib, m.system);
    for (name, version) in &m.versions {
        let _ = writeln!(text, "  {name}: {version}");
    }
    text
}

/// Everything as a Markdown page.
pub(crate) fn page(results: &Results) -> String {
    let m = &results.machine;
    let mut text = format!(
        "# Performance\n\n\
         Weft beside other switches, as `cargo xtask bench` measures it; the command writes this page:\n\n\
         ```sh\n{}\n```\n\n\
         The switches have their turns round by round, and the ratio is taken within each round: machines that share\n\
         their processors vary by half from minute to minute, and the number of one run says little. Everything is\n\
         counted at the receiver.\n\n\
         | | |\n|---|---|\n| date | {} |\n| processor | {}, {} CPUs |\n| memory | {:.0} GiB |\n| system | {} |\n",
        results.command, m.date, m.processor, m.cpus, m.memory_gib, m.system
    );
    for (name, version) in &m.versions {
        let _ = writeln!(text, "| {name} | {version} |");
    }
    for scenario in &results.scenarios {
        let _ =
            write!(text, "\n## {}\n\n{}\n\nEach entry: {}.\n", scenario.name, scenario.about, runs(scenario));
        for cell in &scenario.cells {
            let _ = write!(text, "\n### {}\n\n", cell.name);
            let (shown, rows) = rows(cell);
            for (number, row) in rows.iter().enumerate() {
                let words: Vec<&str> = shown.iter().map(|&column| row[column].as_str()).collect();
                let _ = writeln!(text, "| {} |", words.join(" | "));
                if number == 0 {
                    let _ = writeln!(text, "|{}", "---|".repeat(shown.len()));
                }
            }
            for note in [verdict(cell), disturbance(cell)].into_iter().flatten() {
                let _ = write!(text, "\n{note}\n");
            }
        }
        let _ = write!(
            text,
            "\n### Command lines of {}\n\n`DIR` is a directory for the files of one run.\n",
            scenario.name
        );
        for (name, lines) in &scenario.commands {
            let _ = write!(text, "\n{name}:\n\n```sh\n{}\n```\n", lines.join("\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generators::Measured;

    fn scenario() -> Scenario {
        let mut cell = Cell::new("64 B".into(), "frames/s", &[WEFT, "peer"]);
        let run = |rate, disturbed| Measured { rate, disturbed, ..Measured::default() };
        for round in [1.0, 2.0, 3.0] {
            cell.note(WEFT, Some(&run(6e6 * round, Some(0.01))));
            cell.note("peer", Some(&run(4e6 * round, Some(0.25 * round))));
        }
        cell.sum_up();
        let commands = [("switch weft".to_string(), vec!["weft daemon".to_string()])].into();
        Scenario { name: "v2v", about: "About.".into(), pairs: 3, seconds: 5, commands, cells: vec![cell] }
    }

    #[test]
    fn a_table_has_rates_ratios_and_what_limits_them() {
        let scenario = scenario();
        let expected = "
v2v · 64 B    median (min–max) of 3 interleaved rounds of 5 s
  switch  Mframes/s           weft ÷ switch
  weft    12.00 (6.00–18.00)
  peer    8.00 (4.00–12.00)   1.50 (1.50–1.50)
  The generator's highest rate: 12.00 Mframes/s, with weft. peer at 67 % of it. The generator may be the limit of \
                        weft: no faster switch was measured.
  DISTURBED: other programs took a part of the processors, at most (in one run): peer 75 %.
";
        assert_eq!(cell(&scenario, &scenario.cells[0]), expected);
    }
}
