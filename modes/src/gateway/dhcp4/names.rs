//! Names of clients: guest input that ends up in the network's DNS, so that only one kind of text gets through.

/// Bytes of a label, at most (RFC 1035, 2.3.4).
const LABEL_MAX: usize = 63;
/// Names that a guest must not have: `wpad` and `isatap` direct others' traffic by being found.
const NEVER: [&str; 3] = ["localhost", "wpad", "isatap"];

/// Makes a label of letters, digits and hyphens (RFC 952, RFC 1123 2.1) out of what a client calls itself: the first
/// label in small letters, spaces and underscores as hyphens, without anything else. `None` if nothing is left.
pub(super) fn label(text: &[u8]) -> Option<String> {
    let first = text.split(|&b| b == b'.').next()?;
    let kept = first.iter().take(4 * LABEL_MAX).filter_map(|&b| match b {
        b'a'..=b'z' | b'0'..=b'9' | b'-' => Some(char::from(b)),
        b'A'..=b'Z' => Some(char::from(b.to_ascii_lowercase())),
        b' ' | b'_' => Some('-'),
        _ => None,
    });
    let kept: String = kept.skip_while(|&c| c == '-').take(LABEL_MAX).collect();
    let label = kept.trim_end_matches('-');
    (!label.is_empty() && !NEVER.contains(&label)).then(|| label.to_owned())
}

/// True for a domain of labels of letters, digits and hyphens.
pub(super) fn is_domain(text: &str) -> bool {
    let is_label = |l: &str| {
        let ldh = l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ldh && !l.is_empty() && l.len() <= LABEL_MAX && !l.starts_with('-') && !l.ends_with('-')
    };
    text.len() <= 180 && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label)
}
