//! The one table of what an operator may come to say, and this version does not do yet. What is here is refused by
//! name; a version that does it takes the entry out.

use super::ModelError;

/// What an entry is about (`key`, `kind`, or the key whose value it is), and the word.
const LATER: &[(&str, &str)] = &[
    ("mode", "routed"),
    ("mode", "nat"),
    ("mode", "internal"),
    ("kind", "stream"),
    ("key", "subnet"),
    ("key", "subnet6"),
    ("key", "gateway"),
    ("key", "dhcp"),
    ("key", "dns"),
    ("key", "domain"),
    ("key", "egress"),
    ("key", "address"),
    ("key", "next-hop"),
    ("host-address", "move"),
];

/// Refuses `word` (a `what`) when it waits for a later version.
pub(super) fn check_now(what: &str, word: &str) -> Result<(), ModelError> {
    if !LATER.contains(&(what, word)) {
        return Ok(());
    }
    Err(ModelError::new(match what {
        "mode" => format!("mode {word} is not in this version, only mode bridge is"),
        "kind" => format!("port kind {word} is not in this version: take vhost-user, tap or netdev"),
        "key" => format!("the key {word}= is not in this version: leave it out"),
        _ => format!("{what}={word} is not in this version: leave it out"),
    }))
}
