//! A scenario's results as a plot: a row for each cell, in it a panel for each measure. Medians are bars with whiskers
//! from the lowest to the highest round; over a parameter with numbers (ports, addresses, sessions) they are lines.
//!
//! Plain SVG, written here: a chart library would bring fonts and a drawing model, and has no page that is light or dark
//! as its reader's is. Colours are chosen by a style sheet in the file.

use super::svg::{Anchor, Svg};
use crate::measures::{Measure, Unit};
use crate::results::{Cell, Runs, Scenario};
use crate::statistics::Summary;

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 16.0;
/// From one panel to the next.
const GAP: f64 = 24.0;
const TITLE: f64 = 44.0;
/// Above a panel's drawing: the cell's name, the measure's.
const HEAD: f64 = 40.0;
const BAR: f64 = 20.0;
/// For the peers' names left of bars.
const NAMES: f64 = 130.0;
/// Of the drawing of lines, and for the numbers left of and below it.
const LINES: f64 = 150.0;
const NUMBERS: f64 = 44.0;
/// Panels in a row: more would be too narrow for their numbers.
const COLUMNS: usize = 3;
/// A label's width for each of its characters, about.
const CHARACTER: f64 = 6.6;

/// The plot.
pub(crate) fn of(scenario: &Scenario) -> String {
    let rows: Vec<(&Cell, Vec<&Measure>)> =
        scenario.cells.iter().flat_map(|cell| panels(cell).into_iter().map(move |row| (cell, row))).collect();
    let peers = peers(scenario);
    let height = TITLE + rows.iter().map(|(cell, _)| HEAD + drawing(cell) + GAP).sum::<f64>() + 28.0;
    let mut svg = Svg::new(WIDTH, height, &format!("{}: medians and spread", scenario.name));
    svg.text(MARGIN, 28.0, "title", Anchor::Start, &format!("{}: {}", scenario.name, entries(scenario)));
    let mut top = TITLE;
    for (cell, measures) in &rows {
        let width = (WIDTH - 2.0 * MARGIN - GAP * (measures.len() - 1) as f64) / measures.len() as f64;
        svg.text(MARGIN, top + 14.0, "cell", Anchor::Start, &cell.name);
        for (column, measure) in measures.iter().enumerate() {
            let frame = Frame { left: MARGIN + column as f64 * (width + GAP), top: top + HEAD, width };
            svg.text(frame.left, top + 32.0, "measure", Anchor::Start, &label(measure));
            if lines(cell) {
                draw_lines(&mut svg, cell, measure, &frame, &peers);
            } else {
                draw_bars(&mut svg, cell, measure, &frame, &peers);
            }
        }
        top += HEAD + drawing(cell) + GAP;
    }
    legend(&mut svg, &peers, height - 14.0);
    svg.end()
}

fn entries(scenario: &Scenario) -> String {
    match scenario.pairs {
        1 => "one round".to_string(),
        pairs => format!("median, lowest and highest of {pairs} rounds"),
    }
}

fn label(measure: &Measure) -> String {
    let better = match measure.better {
        crate::measures::Better::More => "more is better",
        crate::measures::Better::Less => "less is better",
    };
    format!("{}, {} ({better})", measure.name, measure.unit.shown)
}

/// Where a panel draws.
struct Frame {
    left: f64,
    top: f64,
    width: f64,
}

/// The measures of a cell that have something to show, in rows of panels.
fn panels(cell: &Cell) -> Vec<Vec<&Measure>> {
    let shows = |measure: &&Measure| {
        // A bar beside "0.0" would say what the number does not.
        let zero = measure.unit.show(0.0);
        cell.runs.iter().any(|runs| summary(runs, measure).is_some_and(|s| measure.unit.show(s.max) != zero))
    };
    let measures: Vec<&Measure> = cell.measures.iter().filter(shows).collect();
    measures.chunks(COLUMNS).map(<[_]>::to_vec).collect()
}

fn summary<'a>(runs: &'a Runs, measure: &Measure) -> Option<&'a Summary> {
    runs.values.get(measure.name)?.summary.as_ref()
}

/// The peers of all cells, whose place in the list is their colour.
fn peers(scenario: &Scenario) -> Vec<&str> {
    let mut peers: Vec<&str> = Vec::new();
    for runs in scenario.cells.iter().flat_map(|cell| &cell.runs) {
        if !peers.contains(&runs.peer.as_str()) {
            peers.push(&runs.peer);
        }
    }
    peers
}

/// A peer's style: ours is the first.
fn class(peers: &[&str], peer: &str) -> String {
    format!("p{}", peers.iter().position(|known| *known == peer).unwrap_or(0) % super::svg::COLOURS)
}

/// Whether a cell is a plot over a parameter: two numbers at least.
fn lines(cell: &Cell) -> bool {
    let mut numbers = cell.runs.iter().map(|runs| runs.at);
    let first = cell.runs.first().and_then(|runs| runs.at);
    cell.runs.iter().all(|runs| runs.at.is_some_and(|at| at > 0.0)) && numbers.any(|number| number != first)
}

/// The height of a cell's drawing.
fn drawing(cell: &Cell) -> f64 {
    if lines(cell) { LINES + NUMBERS } else { BAR * cell.runs.len() as f64 + 4.0 }
}

/// The highest value that is drawn.
fn highest(cell: &Cell, measure: &Measure) -> f64 {
    let values = cell.runs.iter().filter_map(|runs| summary(runs, measure)).map(|summary| summary.max);
    values.fold(f64::MIN_POSITIVE, f64::max)
}

fn draw_bars(svg: &mut Svg, cell: &Cell, measure: &Measure, frame: &Frame, peers: &[&str]) {
    let numbers = 62.0;
    let scale = (frame.width - NAMES - numbers) / highest(cell, measure);
    let left = frame.left + NAMES;
    for (number, runs) in cell.runs.iter().enumerate() {
        let top = frame.top + BAR * number as f64;
        let middle = top + BAR / 2.0;
        let name = match runs.variant.as_str() {
            "" => runs.peer.clone(),
            variant => format!("{} · {variant}", runs.peer),
        };
        svg.text(left - 6.0, middle + 4.0, "name", Anchor::End, &cut(&name, NAMES - 6.0));
        let Some(summary) = summary(runs, measure) else {
            svg.text(left + 4.0, middle + 4.0, "value", Anchor::Start, "–");
            continue;
        };
        let style = class(peers, &runs.peer);
        svg.rect(left, top + 3.0, summary.median * scale, BAR - 6.0, &style);
        let (low, high) = (left + summary.min * scale, left + summary.max * scale);
        svg.line(low, middle, high, middle, "whisker");
        for end in [low, high] {
            svg.line(end, middle - 4.0, end, middle + 4.0, "whisker");
        }
        svg.text(high + 5.0, middle + 4.0, "value", Anchor::Start, &measure.unit.show(summary.median));
    }
    svg.line(left, frame.top, left, frame.top + BAR * cell.runs.len() as f64, "axis");
}

/// A name that fits into `width`.
fn cut(name: &str, width: f64) -> String {
    let room = (width / CHARACTER) as usize;
    if name.chars().count() <= room {
        return name.to_string();
    }
    name.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

fn draw_lines(svg: &mut Svg, cell: &Cell, measure: &Measure, frame: &Frame, peers: &[&str]) {
    let numbers = cell.runs.iter().filter_map(|runs| runs.at);
    let (low, high) = numbers.clone().fold((f64::MAX, f64::MIN), |(low, high), n| (low.min(n), high.max(n)));
    let left = frame.left + NUMBERS;
    let width = frame.width - NUMBERS - 12.0;
    let bottom = frame.top + LINES;
    // Ports, addresses and sessions grow by factors.
    let x = |at: f64| left + width * (at.ln() - low.ln()) / (high.ln() - low.ln());
    let top_value = highest(cell, measure);
    let y = |value: f64| bottom - (LINES - 8.0) * value / top_value;
    for part in [0.0, 0.5, 1.0] {
        let value = top_value * part;
        svg.line(left, y(value), left + width, y(value), if part == 0.0 { "axis" } else { "grid" });
        svg.text(left - 5.0, y(value) + 4.0, "value", Anchor::End, &short(&measure.unit, value));
    }
    let mut shown: Vec<f64> = Vec::new();
    for at in numbers {
        if !shown.contains(&at) {
            shown.push(at);
            svg.line(x(at), bottom, x(at), bottom + 4.0, "axis");
            svg.text(x(at), bottom + 17.0, "value", Anchor::Middle, &count(at));
        }
    }
    svg.text(left + width / 2.0, bottom + 33.0, "measure", Anchor::Middle, cell.parameter);
    for peer in peers {
        let style = class(peers, peer);
        let points = cell.runs.iter().filter(|runs| runs.peer == *peer);
        let points: Vec<(f64, &Summary)> =
            points.filter_map(|runs| Some((x(runs.at?), summary(runs, measure)?))).collect();
        svg.path(&points.iter().map(|(x, s)| (*x, y(s.median))).collect::<Vec<_>>(), &style);
        for (x, summary) in points {
            svg.line(x, y(summary.min), x, y(summary.max), "whisker");
            svg.dot(x, y(summary.median), &style);
        }
    }
}

/// A value on an axis: no more digits than are read there.
fn short(unit: &Unit, value: f64) -> String {
    let value = value / unit.scale;
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// A parameter's number, as people say it.
fn count(number: f64) -> String {
    match number {
        n if n >= 1e6 && n % 1e5 == 0.0 => format!("{} M", n / 1e6),
        n if n >= 1e4 && n % 100.0 == 0.0 => format!("{} k", n / 1e3),
        n => n.to_string(),
    }
}

fn legend(svg: &mut Svg, peers: &[&str], baseline: f64) {
    let mut left = MARGIN;
    for peer in peers {
        svg.rect(left, baseline - 9.0, 10.0, 10.0, &class(peers, peer));
        svg.text(left + 15.0, baseline, "name", Anchor::Start, peer);
        left += 15.0 + CHARACTER * peer.chars().count() as f64 + 18.0;
    }
}
