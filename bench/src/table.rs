//! Results as text: tables, for a terminal and for a report, and what is to be said beside them.

use std::fmt::Write;

use crate::machine::Machine;
use crate::measures::{Better, Measure};
use crate::results::{Cell, DISTURBED, LIMITED, Runs, Scenario};
use crate::statistics::Summary;

/// Medians, spreads and ratios of a cell: first the heads, then a row for each peer and variant. Columns in which
/// nothing stands are left out.
pub(crate) fn rows(cell: &Cell) -> Vec<Vec<String>> {
    let mut rows = vec![heads(cell)];
    rows.extend(cell.runs.iter().map(|runs| row(cell, runs)));
    let columns = rows[0].len();
    let shown: Vec<bool> =
        (0..columns).map(|column| rows.iter().skip(1).any(|row| !row[column].is_empty())).collect();
    let keep =
        |row: Vec<String>| row.into_iter().zip(&shown).filter(|(_, shown)| **shown).map(|(cell, _)| cell);
    rows.into_iter().map(|row| keep(row).collect()).collect()
}

fn heads(cell: &Cell) -> Vec<String> {
    let mut heads = vec!["switch".to_string(), cell.parameter.to_string()];
    heads.extend(cell.measures.iter().map(|measure| format!("{}, {}", measure.name, measure.unit.shown)));
    heads.push(match cell.first().map(|measure| measure.better) {
        Some(Better::Less) => "switch ÷ weft".into(),
        _ => "weft ÷ switch".into(),
    });
    let base = cell.runs.first().map_or("", |runs| runs.variant.as_str());
    heads.extend([format!("÷ {base}"), "of the generator's".into(), "failed".into()]);
    heads
}

fn row(cell: &Cell, runs: &Runs) -> Vec<String> {
    let mut row = vec![runs.peer.clone(), runs.variant.clone()];
    row.extend(cell.measures.iter().map(|measure| value(runs, measure)));
    let first = cell.first().and_then(|measure| runs.values.get(measure.name));
    let ratio =
        |summary: Option<&Summary>| summary.map(|s| spread(s, |v| format!("{v:.2}"))).unwrap_or_default();
    row.push(ratio(first.and_then(|values| values.ratio.as_ref())));
    row.push(ratio(first.and_then(|values| values.of_base_summary.as_ref())));
    let percent = |summary: &Summary| format!("{:.0} %", summary.median * 100.0);
    row.push(runs.of_ceiling.as_ref().map(percent).unwrap_or_default());
    row.push(if runs.failed == 0 { String::new() } else { runs.failed.to_string() });
    row
}

/// A measure's median and spread; empty where it was not measured.
fn value(runs: &Runs, measure: &Measure) -> String {
    let summary = runs.values.get(measure.name).and_then(|values| values.summary.as_ref());
    summary.map(|summary| spread(summary, |value| measure.unit.show(value))).unwrap_or_default()
}

fn spread(summary: &Summary, show: impl Fn(f64) -> String) -> String {
    let [median, min, max] = [summary.median, summary.min, summary.max].map(show);
    if summary.n == 1 { median } else { format!("{median} ({min}–{max})") }
}

/// What is to be said beside a cell's table.
pub(crate) fn notes(cell: &Cell) -> Vec<String> {
    let mut notes: Vec<String> =
        [verdict(cell), searches(cell), failures(cell), disturbance(cell)].into_iter().flatten().collect();
    notes.extend(cell.remarks.iter().cloned());
    notes
}

fn who(runs: &Runs) -> String {
    if runs.variant.is_empty() { runs.peer.clone() } else { format!("{}, {}", runs.peer, runs.variant) }
}

/// Whom the generator held up; nothing for a load in which nobody showed how far the generator gets.
fn verdict(cell: &Cell) -> Option<String> {
    let ceiling = cell.ceiling?;
    let parts = cell.runs.iter().filter_map(|runs| Some((who(runs), runs.of_ceiling.as_ref()?.median)));
    let (limited, free): (Vec<_>, Vec<_>) = parts.partition(|(_, part)| *part >= LIMITED);
    if limited.is_empty() && free.is_empty() {
        return Some(format!(
            "Whether the generator was the limit is not known: {ceiling} was not measured."
        ));
    }
    let percent = |(who, part): &(String, f64)| format!("{who} ({:.0} %)", part * 100.0);
    let list = |parts: &[(String, f64)]| parts.iter().map(percent).collect::<Vec<_>>().join(", ");
    Some(match limited.as_slice() {
        [] => format!("The generator was nobody's limit: it gets further with {ceiling}."),
        limited => format!(
            "The generator may have been the limit of {}: that is what it reaches with {ceiling} in the same rounds.",
            list(limited)
        ),
    })
}

/// In how many searches for the rate without loss the generator was the limit.
fn searches(cell: &Cell) -> Option<String> {
    let part = |runs: &Runs| {
        let limited = runs.generator_limit.filter(|limited| *limited > 0)?;
        Some(format!("{} in {limited}", who(runs)))
    };
    let parts: Vec<String> = cell.runs.iter().filter_map(part).collect();
    let parts = (!parts.is_empty()).then(|| parts.join(", "))?;
    Some(format!("Rounds in which the generator could not offer more than the rate without loss: {parts}."))
}

/// Runs without a result.
fn failures(cell: &Cell) -> Option<String> {
    let failed = cell.runs.iter().filter(|runs| runs.failed > 0);
    let parts: Vec<String> = failed.map(|runs| format!("{} {}", who(runs), runs.failed)).collect();
    (!parts.is_empty()).then(|| format!("Runs that failed and are left out: {}.", parts.join(", ")))
}

/// A warning where other programs had the processors in some runs.
fn disturbance(cell: &Cell) -> Option<String> {
    let part = |runs: &Runs| Some((who(runs), runs.disturbed.as_ref()?.max));
    let disturbed = cell.runs.iter().filter_map(part).filter(|(_, part)| *part > DISTURBED);
    let parts: Vec<String> = disturbed.map(|(peer, part)| format!("{peer} {:.0} %", part * 100.0)).collect();
    let parts = (!parts.is_empty()).then(|| parts.join("; "))?;
    Some(format!("DISTURBED: other programs took a part of the processors, at most (in one run): {parts}."))
}

/// What an entry of a table is.
pub(crate) fn entries(scenario: &Scenario) -> String {
    match scenario.pairs {
        1 => format!("one round of {} s", scenario.seconds),
        pairs => format!("median (lowest–highest) of {pairs} interleaved rounds of {} s", scenario.seconds),
    }
}

/// A cell for a terminal.
pub(crate) fn cell(scenario: &Scenario, cell: &Cell) -> String {
    let rows = rows(cell);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = format!("\n{} · {}    {}\n", scenario.name, cell.name, entries(scenario));
    for row in &rows {
        let words =
            row.iter().enumerate().map(|(column, word)| format!("{word:<width$}", width = width(column)));
        let _ = writeln!(text, "  {}", words.collect::<Vec<_>>().join("  ").trim_end());
    }
    for note in notes(cell) {
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
pub(crate) fn machine(m: &Machine) -> String {
    let mut text =
        format!("{}: {}, {} CPUs, {:.0} GiB, {}\n", m.date, m.processor, m.cpus, m.memory_gib, m.system);
    for (name, version) in &m.versions {
        let _ = writeln!(text, "  {name}: {version}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generators::Measured;
    use crate::measures::{LOSS, RATE};
    use crate::peers::WEFT;

    fn scenario(cell: Cell) -> Scenario {
        Scenario {
            name: "v2v",
            about: "About.".into(),
            pairs: 3,
            seconds: 5,
            commands: Default::default(),
            cells: vec![cell],
            remarks: Vec::new(),
        }
    }

    #[test]
    fn a_table_has_rates_ratios_and_what_limits_them() {
        let mut cell = Cell::new("64 B", &[RATE, LOSS]).peers(&[WEFT, "peer", "bare"]).ceiling("bare");
        let run = |rate, disturbed| Measured { disturbed, ..Measured::new().with(&RATE, rate) };
        for round in [1.0, 2.0, 3.0] {
            cell.begin_round();
            cell.note(0, Some(&run(6e6 * round, Some(0.01))));
            cell.note(1, Some(&run(4e6 * round, Some(0.25 * round))));
            cell.note(2, Some(&run(6.25e6 * round, None)));
        }
        cell.sum_up();
        let scenario = scenario(cell);
        let expected = "
v2v · 64 B    median (lowest–highest) of 3 interleaved rounds of 5 s
  switch  rate, Mframes/s     weft ÷ switch     of the generator's
  weft    12.00 (6.00–18.00)                    96 %
  peer    8.00 (4.00–12.00)   1.50 (1.50–1.50)  64 %
  bare    12.50 (6.25–18.75)  0.96 (0.96–0.96)
  The generator may have been the limit of weft (96 %): that is what it reaches with bare in the same rounds.
  DISTURBED: other programs took a part of the processors, at most (in one run): peer 75 %.
";
        assert_eq!(super::cell(&scenario, &scenario.cells[0]), expected);
    }

    #[test]
    fn a_table_of_variants_has_the_part_of_the_first() {
        let variants = [("2".to_string(), Some(2.0)), ("64".to_string(), Some(64.0))];
        let mut cell = Cell::new("ports", &[RATE]).variants("ports", &variants, &[WEFT]);
        cell.begin_round();
        cell.note(0, Some(&Measured::new().with(&RATE, 8e6)));
        cell.note(1, Some(&Measured::new().with(&RATE, 7e6)));
        cell.begin_round();
        cell.note(0, Some(&Measured::new().with(&RATE, 8e6)));
        cell.note(1, None);
        cell.sum_up();
        cell.runs[1].generator_limit = Some(2);
        let expected = [
            ["switch", "ports", "rate, Mframes/s", "÷ 2", "failed"],
            ["weft", "2", "8.00 (8.00–8.00)", "", ""],
            ["weft", "64", "7.00", "0.88", "1"],
        ];
        assert_eq!(rows(&cell), expected);
        let expected = [
            "Rounds in which the generator could not offer more than the rate without loss: weft, 64 in 2.",
            "Runs that failed and are left out: weft, 64 1.",
        ];
        assert_eq!(notes(&cell), expected);
    }
}
