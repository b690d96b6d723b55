//! The flags that are a scenario's own, and what was chosen with them.
//!
//! Each scenario declares its flags; two may share one (the help names both). All of them are lists that commas separate.
//! A flag that one of the chosen scenarios does not know is refused: it would silently say nothing there.
#![allow(dead_code, reason = "for scenarios of which each uses a part")]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};

use crate::peers::WEFT;

/// A flag of a scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    /// Without the dashes.
    pub(crate) name: &'static str,
    /// What the help calls its values.
    pub(crate) value: &'static str,
    /// For the help.
    pub(crate) about: &'static str,
    /// What holds without it; empty for all that there is.
    pub(crate) default: &'static str,
}

/// What was asked for on the command line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choices {
    /// Peers beside ours; all of them when none is named.
    pub(crate) peers: Vec<String>,
    /// By flag, the values that were given.
    pub(crate) given: BTreeMap<&'static str, Vec<String>>,
}

impl Choices {
    /// Those of `all` whose names were asked for with `--peers`, in the order of `all`, and always ours; all of them when
    /// nothing was asked for.
    pub(crate) fn peers<T: Copy>(&self, all: &[T], name: impl Fn(T) -> &'static str) -> Vec<T> {
        let wanted = |peer: &T| {
            let name = name(*peer);
            self.peers.is_empty() || name == WEFT || self.peers.iter().any(|wanted| wanted == name)
        };
        all.iter().copied().filter(wanted).collect()
    }

    /// Whether `flag` was given.
    pub(crate) fn given(&self, flag: &Flag) -> bool {
        self.given.contains_key(flag.name)
    }

    /// The words given with `flag`, else its default's.
    pub(crate) fn words(&self, flag: &Flag) -> Vec<String> {
        let default =
            || flag.default.split(',').filter(|word| !word.is_empty()).map(str::to_string).collect();
        self.given.get(flag.name).cloned().unwrap_or_else(default)
    }

    /// The numbers given with `flag`, else its default's.
    ///
    /// # Errors
    /// One is not a number, or outside of `range`.
    pub(crate) fn numbers<T>(&self, flag: &Flag, range: RangeInclusive<T>) -> Result<Vec<T>>
    where
        T: FromStr + PartialOrd + Display,
    {
        let parse = |word: String| {
            let number: T =
                word.parse().ok().with_context(|| format!("--{}: '{word}' is no number", flag.name))?;
            let (low, high) = (range.start(), range.end());
            ensure!(range.contains(&number), "--{}: {number} is not within {low} to {high}", flag.name);
            Ok(number)
        };
        self.words(flag).into_iter().map(parse).collect()
    }

    /// What the words given with `flag` mean, else its default's.
    ///
    /// # Errors
    /// A word means nothing.
    pub(crate) fn parse<T: FromStr<Err = Error>>(&self, flag: &Flag) -> Result<Vec<T>> {
        let parse = |word: String| word.parse().with_context(|| format!("--{}", flag.name));
        self.words(flag).into_iter().map(parse).collect()
    }

    /// Those of `all` whose names were given with `flag` (or are its default), in the order of `all`; all of them when
    /// nothing was given and there is no default.
    ///
    /// # Errors
    /// A name is nobody's.
    pub(crate) fn choose<T: Copy>(
        &self,
        flag: &Flag,
        all: &[T],
        name: impl Fn(T) -> &'static str,
    ) -> Result<Vec<T>> {
        let wanted = self.words(flag);
        known(flag.name, &wanted, &all.iter().map(|item| name(*item)).collect::<Vec<_>>())?;
        let chosen = |item: &T| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name(*item));
        Ok(all.iter().copied().filter(chosen).collect())
    }
}

/// # Errors
/// A name is nobody's.
pub(crate) fn known(what: &str, wanted: &[String], known: &[&str]) -> Result<()> {
    match wanted.iter().find(|wanted| !known.contains(&wanted.as_str())) {
        Some(unknown) => bail!("no '{unknown}' among the {what}: there are {}", known.join(", ")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Flag = Flag { name: "sizes", value: "BYTES,…", about: "", default: "64,1514" };
    const RINGS: Flag = Flag { name: "rings", value: "NAME,…", about: "", default: "" };
    const ALL: [&str; 3] = ["split", "packed", WEFT];

    fn given(flag: &Flag, words: &[&str]) -> Choices {
        let words = words.iter().map(|word| word.to_string()).collect();
        Choices { given: [(flag.name, words)].into(), ..Choices::default() }
    }

    #[test]
    fn numbers_have_a_default_and_a_range() {
        assert_eq!(Choices::default().numbers::<u16>(&SIZES, 60..=1514).expect("the default"), [64, 1514]);
        assert_eq!(given(&SIZES, &["512"]).numbers::<u16>(&SIZES, 60..=1514).expect("in range"), [512]);
        for wrong in ["59", "1515", "small", ""] {
            assert!(given(&SIZES, &[wrong]).numbers::<u16>(&SIZES, 60..=1514).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_chosen_in_the_order_of_all_and_unknown_ones_are_refused() {
        let name = |item: &'static str| item;
        assert_eq!(Choices::default().choose(&RINGS, &ALL, name).expect("all"), ALL);
        let chosen = given(&RINGS, &["packed", "split"]).choose(&RINGS, &ALL, name);
        assert_eq!(chosen.expect("known"), ["split", "packed"]);
        let error = given(&RINGS, &["round"]).choose(&RINGS, &ALL, name).expect_err("unknown");
        assert_eq!(error.to_string(), "no 'round' among the rings: there are split, packed, weft");
    }

    #[test]
    fn ours_is_always_among_the_peers() {
        let peers = |names: &[&str]| {
            let peers = names.iter().map(|name| name.to_string()).collect();
            Choices { peers, ..Choices::default() }.peers(&ALL, |item| item)
        };
        assert_eq!(peers(&[]), ALL);
        assert_eq!(peers(&["split"]), ["split", WEFT]);
    }
}
