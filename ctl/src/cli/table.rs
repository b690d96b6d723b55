//! Tables for people: columns aligned, numbers to the right.

use std::fmt::Write as _;

/// Rows under headings.
pub(super) struct Table {
    /// The heading, and whether the column is of numbers.
    columns: Vec<(&'static str, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows; a heading that starts with `>` is of a column of numbers.
    pub(super) fn new(headings: &[&'static str]) -> Self {
        let column = |heading: &&'static str| (heading.trim_start_matches('>'), heading.starts_with('>'));
        Self { columns: headings.iter().map(column).collect(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table, each line ended; nothing at all without rows.
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        if self.rows.is_empty() {
            return out;
        }
        let width = |n: usize, heading: &str| {
            let cells = self.rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count());
            cells.chain([heading.len()]).max().unwrap_or(0)
        };
        let widths: Vec<_> =
            self.columns.iter().enumerate().map(|(n, (heading, _))| width(n, heading)).collect();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for ((cell, width), (_, numbers)) in cells.zip(&widths).zip(&self.columns) {
                let width = *width;
                // Writing to a string does not fail.
                let _ = match numbers {
                    true => write!(text, "{cell:>width$}  "),
                    false => write!(text, "{cell:<width$}  "),
                };
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        line(&mut self.columns.iter().map(|(heading, _)| *heading));
        for row in &self.rows {
            line(&mut row.iter().map(|cell| &**cell));
        }
        out
    }
}

/// `key: value` lines, the values aligned.
pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.len() + 1).max().unwrap_or(0);
    pairs.iter().fold(String::new(), |mut out, (key, value)| {
        let _ = writeln!(out, "{:<width$}  {value}", format!("{key}:"));
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right() {
        let mut table = Table::new(&["NAME", ">COUNT", "STATE"]);
        table.row(["a".to_owned(), "1".to_owned(), "up".to_owned()]);
        table.row(["longer".to_owned(), "1234567".to_owned(), String::new()]);
        assert_eq!(table.render(), "NAME      COUNT  STATE\na             1  up\nlonger  1234567\n");
        assert_eq!(Table::new(&["NAME"]).render(), "");
        assert_eq!(pairs(&[("a", "1".to_owned()), ("long", "2".to_owned())]), "a:     1\nlong:  2\n");
    }
}
