//! The one line that says what was wrong with what an operator said.

use std::fmt;

/// The longest part of an operator's text that a message repeats, in characters.
const SHOWN_MAX: usize = 80;

/// Something in a network's or port's description was refused: one line that says what, on what, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelError {
    message: String,
}

impl ModelError {
    /// The reason, on one line: line breaks and control characters of `message` are escaped.
    pub fn new(message: impl AsRef<str>) -> Self {
        Self { message: one_line(message.as_ref()) }
    }

    /// The same reason, with what it is about in front: `CONTEXT: REASON`.
    #[must_use]
    pub fn of(self, context: impl fmt::Display) -> Self {
        Self::new(format!("{context}: {}", self.message))
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ModelError {}

/// `text` in quotes, clipped and with control characters escaped: fit to be repeated in a message.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::from("'");
    for (n, c) in text.chars().enumerate() {
        if n == SHOWN_MAX {
            out.push('…');
            break;
        }
        push_safe(&mut out, c);
    }
    out.push('\'');
    out
}

/// `text` on one line.
pub(crate) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push_safe(&mut out, c));
    out
}

fn push_safe(out: &mut String, c: char) {
    // Line and paragraph separators and direction overrides are not control characters, but deceive a reader as well.
    if c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
        out.extend(c.escape_default());
    } else {
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_and_bounded() {
        assert_eq!(shown("a\nb\u{1b}[2J"), "'a\\nb\\u{1b}[2J'");
        assert_eq!(shown(&"x".repeat(10_000)).chars().count(), SHOWN_MAX + 3);
        assert!(!ModelError::new("a\r\nb").to_string().contains('\n'));
    }
}
