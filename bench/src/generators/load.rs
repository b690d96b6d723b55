//! What a generator is asked for. Each part has a name, the same on command lines, in tables and in results.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};

/// The layout of the rings that a generator sets up: the format, and what is negotiated beside it. Every switch gets the
/// same.
///
/// The name is the format and the switches that are on: `packed-mergeable-inorder`. Drivers have mergeable buffers and
/// nothing else unless they are told: that is what the format alone means (`split`, `packed`). With any switch named, the
/// others are off; `split-plain` and `packed-plain` have none on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rings {
    /// The packed ring, else the split ring.
    pub(crate) packed: bool,
    /// Mergeable receive buffers.
    pub(crate) mergeable: bool,
    /// Buffers are used in the order in which they were made available.
    pub(crate) in_order: bool,
    /// Every frame is sent by an indirect table, as Linux does where it cannot put the header before the frame.
    pub(crate) indirect: bool,
    /// Notifications are suppressed by index, not by flag.
    pub(crate) event_index: bool,
}

impl Rings {
    const PLAIN: Rings =
        Rings { packed: false, mergeable: false, in_order: false, indirect: false, event_index: false };
    /// Split rings with mergeable receive buffers.
    pub(crate) const SPLIT: Rings = Rings { mergeable: true, ..Rings::PLAIN };
    /// Split rings with `VIRTIO_F_IN_ORDER`, without mergeable buffers.
    #[cfg(test)]
    pub(crate) const SPLIT_IN_ORDER: Rings = Rings { in_order: true, ..Rings::PLAIN };

    fn switches(self) -> [(&'static str, bool); 4] {
        [
            ("mergeable", self.mergeable),
            ("inorder", self.in_order),
            ("indirect", self.indirect),
            ("event", self.event_index),
        ]
    }
}

impl fmt::Display for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.packed { "packed" } else { "split" })?;
        let on: Vec<&str> = self.switches().iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        match on.as_slice() {
            [] => f.write_str("-plain"),
            ["mergeable"] => Ok(()),
            on => write!(f, "-{}", on.join("-")),
        }
    }
}

impl FromStr for Rings {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split('-');
        let packed = match words.next() {
            Some("split") => false,
            Some("packed") => true,
            _ => bail!("no ring layout '{text}': it begins with split or packed"),
        };
        let words: Vec<&str> = words.collect();
        match words.as_slice() {
            [] => return Ok(Rings { packed, ..Rings::SPLIT }),
            ["plain"] => return Ok(Rings { packed, ..Rings::PLAIN }),
            _ => {}
        }
        let mut rings = Rings { packed, ..Rings::PLAIN };
        for word in words {
            let switch = match word {
                "mergeable" => &mut rings.mergeable,
                "inorder" => &mut rings.in_order,
                "indirect" => &mut rings.indirect,
                "event" => &mut rings.event_index,
                _ => bail!(
                    "no ring layout '{text}': '{word}' is none of mergeable, inorder, indirect, event, plain"
                ),
            };
            ensure!(!*switch, "no ring layout '{text}': {word} twice");
            *switch = true;
        }
        Ok(rings)
    }
}

/// The frames' lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frames {
    /// All of one length, 60 to 1514 bytes without check sequence.
    Fixed(u16),
    /// Seven of 64 bytes, four of 594, one of 1518, each with check sequence.
    Mix,
    /// TCP segments of 64 KB that ask to be cut to the MTU, with checksums to be completed: what Linux sends where
    /// segmentation is offloaded. The receiver takes them whole.
    Segments,
}

impl Frames {
    /// The name in a table.
    pub(crate) fn title(self) -> String {
        match self {
            Frames::Fixed(length) => format!("{length} B"),
            Frames::Mix => "mix".into(),
            Frames::Segments => "64 KB segments".into(),
        }
    }
}

impl fmt::Display for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frames::Fixed(length) => length.fmt(f),
            Frames::Mix => f.write_str("mix"),
            Frames::Segments => f.write_str("segments"),
        }
    }
}

impl FromStr for Frames {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "mix" => Ok(Frames::Mix),
            "segments" => Ok(Frames::Segments),
            _ => match text.parse() {
                Ok(length @ 60..=1514) => Ok(Frames::Fixed(length)),
                _ => bail!("no frames '{text}': a length of 60 to 1514 bytes, mix, or segments"),
            },
        }
    }
}

/// How many frames are offered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    /// As many as the rings take. What the switch drops is loss.
    Full,
    /// This many frames per second, all senders together, evenly.
    PerSecond(f64),
    /// The highest rate at which no more than `tolerance` (a part of 1) of the frames is lost, found by halving the
    /// interval in short steps; then `part` (above 0, at most 1) of that rate is measured.
    Lossless { part: f64, tolerance: f64 },
}

impl Rate {
    /// One frame in 100,000.
    const TOLERANCE: f64 = 1e-5;
    /// The highest rate without loss.
    pub(crate) const LOSSLESS: Rate = Rate::Lossless { part: 1.0, tolerance: Rate::TOLERANCE };
    /// Half of the highest rate without loss, where latency is the switch's and not its queues'.
    pub(crate) const HALF: Rate = Rate::Lossless { part: 0.5, tolerance: Rate::TOLERANCE };
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::Full => f.write_str("full"),
            Rate::PerSecond(rate) => rate.fmt(f),
            Rate::Lossless { part, tolerance } => write!(f, "lossless:{part}:{tolerance}"),
        }
    }
}

impl FromStr for Rate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "full" => return Ok(Rate::Full),
            "lossless" => return Ok(Rate::LOSSLESS),
            "half" => return Ok(Rate::HALF),
            _ => {}
        }
        let mut words = text.split(':');
        if words.next() == Some("lossless") {
            let mut number = |default: f64| words.next().map_or(Ok(default), str::parse::<f64>);
            let (part, tolerance) =
                (number(1.0).context("part")?, number(Rate::TOLERANCE).context("tolerance")?);
            ensure!(part > 0.0 && part <= 1.0, "a part of {part} is not above 0 and at most 1");
            ensure!((0.0..1.0).contains(&tolerance), "a tolerance of {tolerance} is not a part of 1");
            ensure!(words.next().is_none(), "no rate '{text}': lossless[:PART[:TOLERANCE]]");
            return Ok(Rate::Lossless { part, tolerance });
        }
        match text.parse::<f64>() {
            Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(Rate::PerSecond(rate)),
            _ => bail!("no rate '{text}': full, frames per second, half, or lossless[:PART[:TOLERANCE]]"),
        }
    }
}

/// From how many MAC addresses a port sends, and how its frames are spread over them and over those of the port that they
/// are for. The switch hears each once before anything is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stations {
    /// Addresses at each port: 1 to 2^24.
    pub(crate) count: u32,
    /// Whether the n-th has a part of the frames in proportion to 1/n; else all have the same.
    pub(crate) zipf: bool,
}

impl Stations {
    /// One at each port.
    pub(crate) const ONE: Stations = Stations { count: 1, zipf: false };
    const MAX: u32 = 1 << 24;
}

impl fmt::Display for Stations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, if self.zipf { ":zipf" } else { "" })
    }
}

impl FromStr for Stations {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (count, zipf) = match text.strip_suffix(":zipf") {
            Some(count) => (count, true),
            None => (text, false),
        };
        match count.parse() {
            Ok(count @ 1..=Stations::MAX) => Ok(Stations { count, zipf }),
            _ => bail!("no stations '{text}': 1 to {}, with :zipf where they are not equal", Stations::MAX),
        }
    }
}

/// Which port sends to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// The first and the second to each other, the third and the fourth, and so on.
    Pairs,
    /// Each to the next and to the one before, by turns.
    Chain,
    /// The first to all others, by broadcast. A frame is received as often as there are receivers.
    Broadcast,
}

impl Pattern {
    const ALL: [Pattern; 3] = [Pattern::Pairs, Pattern::Chain, Pattern::Broadcast];

    fn name(self) -> &'static str {
        match self {
            Pattern::Pairs => "pairs",
            Pattern::Chain => "chain",
            Pattern::Broadcast => "broadcast",
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Pattern::ALL.into_iter().find(|pattern| pattern.name() == text);
        found.with_context(|| format!("no pattern '{text}': pairs, chain, broadcast"))
    }
}

/// What to measure. [`Load::new`] is what most want; a scenario changes what it is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load<'a> {
    /// For logs.
    pub(crate) dir: &'a Path,
    /// The generator's processor.
    pub(crate) cpu: usize,
    /// The rings.
    pub(crate) rings: Rings,
    /// The frames.
    pub(crate) frames: Frames,
    /// How many of them.
    pub(crate) rate: Rate,
    /// From where to where, in addresses.
    pub(crate) stations: Stations,
    /// From where to where, in ports.
    pub(crate) pattern: Pattern,
    /// How many of the last ports are connected and neither send nor are sent to. The pattern is that of the others.
    pub(crate) resting: usize,
    /// How long is measured.
    pub(crate) seconds: u64,
}

impl<'a> Load<'a> {
    /// Frames of 64 bytes between pairs of ports as fast as rings of the usual layout take them.
    pub(crate) fn new(dir: &'a Path, cpu: usize, seconds: u64) -> Self {
        Load {
            dir,
            cpu,
            rings: Rings::SPLIT,
            frames: Frames::Fixed(64),
            rate: Rate::Full,
            stations: Stations::ONE,
            pattern: Pattern::Pairs,
            resting: 0,
            seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `text` means says `text`, or `other` where there are two names.
    fn round_trip<T: FromStr<Err = Error> + fmt::Display>(text: &str, other: &str) {
        assert_eq!(text.parse::<T>().unwrap_or_else(|e| panic!("{text}: {e}")).to_string(), other);
    }

    fn refused<T: FromStr<Err = Error> + fmt::Debug>(texts: &[&str]) {
        for text in texts {
            assert!(text.parse::<T>().is_err(), "{text} is {:?}", text.parse::<T>());
        }
    }

    #[test]
    fn rings_are_named_by_their_switches() {
        assert_eq!("split".parse::<Rings>().unwrap(), Rings::SPLIT);
        assert_eq!("split-inorder".parse::<Rings>().unwrap(), Rings::SPLIT_IN_ORDER);
        let all = "packed-mergeable-inorder-indirect-event";
        let every =
            Rings { packed: true, mergeable: true, in_order: true, indirect: true, event_index: true };
        assert_eq!(all.parse::<Rings>().unwrap(), every);
        for text in ["split", "packed", "split-plain", "packed-plain", "split-inorder", "packed-event", all] {
            round_trip::<Rings>(text, text);
        }
        round_trip::<Rings>("packed-mergeable", "packed");
        round_trip::<Rings>("split-inorder-mergeable", "split-mergeable-inorder");
        refused::<Rings>(&["", "packet", "split-", "split-plain-event", "split-inorder-inorder"]);
    }

    #[test]
    fn loads_are_said_and_read_in_the_same_words() {
        for text in ["60", "1514", "mix", "segments"] {
            round_trip::<Frames>(text, text);
        }
        refused::<Frames>(&["59", "1515", "-1", "imix"]);
        for text in ["full", "1000", "0.5", "lossless:0.5:0.00001"] {
            round_trip::<Rate>(text, text);
        }
        round_trip::<Rate>("lossless", &Rate::LOSSLESS.to_string());
        round_trip::<Rate>("half", &Rate::HALF.to_string());
        round_trip::<Rate>("lossless:0.5", &Rate::HALF.to_string());
        refused::<Rate>(&[
            "0",
            "-1",
            "inf",
            "NaN",
            "lossless:0",
            "lossless:1.1",
            "lossless:1:1",
            "lossless:1:0:0",
        ]);
        for text in ["1", "16777216", "1000:zipf"] {
            round_trip::<Stations>(text, text);
        }
        refused::<Stations>(&["0", "16777217", ":zipf", "1:uniform"]);
        for text in ["pairs", "chain", "broadcast"] {
            round_trip::<Pattern>(text, text);
        }
        refused::<Pattern>(&["ring"]);
    }
}
