//! The one table of what an operator may come to say, and this version does not do yet. What is here is refused by
//! name; a version that does it takes the entry out.

use super::ModelError;

/// What an entry is about (`kind`, or the key whose value it is), the word, and what is said of it.
const LATER: &[(&str, &str, &str)] = &[("egress", "user", EGRESS_USER)];

/// What is said of `egress=user`.
pub(super) const EGRESS_USER: &str =
    "egress=user is not in this version: say egress=host or egress=uplink:IFNAME";

/// Refuses `word` (a `what`) when it waits for a later version.
pub(super) fn check_now(what: &str, word: &str) -> Result<(), ModelError> {
    match LATER.iter().find(|(about, later, _)| (*about, *later) == (what, word)) {
        Some((_, _, why)) => Err(ModelError::new(why)),
        None => Ok(()),
    }
}
