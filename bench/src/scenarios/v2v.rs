//! `v2v`: two vhost-user ports and one forwarding thread, against Open vSwitch with DPDK: the highest rate, the highest
//! without loss, and latency at half load.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Benchmark, Entry, peer_names};
use crate::flags::{Choices, Flag};
use crate::generators::{Frames, Generator, Load, RING_SIZE, Rate, Rings};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{LOSS, LOSS_FREE, LOSS_FREE_THROUGHPUT, Measure, P50, P99, RATE, THROUGHPUT};
use crate::peers::{Setup, VhostPeer};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, Turn, rounds};

/// Huge pages of 2 MiB: 512 MiB each for a DPDK switch and a DPDK generator, and the own generator's guests.
const PAGES: u64 = 256 + 256 + 32;

const GENERATORS: Flag =
    Flag { name: "generators", value: "NAME,…", about: "traffic, testpmd (as a cross-check)", default: "" };
const RINGS: Flag = Flag {
    name: "rings",
    value: "NAME,…",
    about: "split or packed, then what is on of -mergeable -inorder -indirect -event, or -plain; alone: mergeable; \
            without it packed for 64 only",
    default: "split,packed",
};
const SIZES: Flag = Flag {
    name: "sizes",
    value: "BYTES,…",
    about: "lengths of frames, 60 to 1514, without check sequence; mix; segments (of 64 KB)",
    default: "64,512,1514,mix,segments",
};
const RATES: Flag = Flag {
    name: "rates",
    value: "NAME,…",
    about: "full, lossless (the highest without loss), half (latency at half of the slowest switch's full rate)",
    default: "",
};

pub(super) const ENTRY: Entry = Entry {
    name: "v2v",
    about: "two vhost-user ports, one core: highest rate, without loss, latency at half load",
    peers: || peer_names(&VhostPeer::ALL),
    flags: &[GENERATORS, RINGS, SIZES, RATES],
    prepare,
};

/// What is measured of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offered {
    Full,
    Lossless,
    Half,
}

impl Offered {
    const ALL: [Offered; 3] = [Offered::Full, Offered::Lossless, Offered::Half];

    fn name(self) -> &'static str {
        match self {
            Offered::Full => "full",
            Offered::Lossless => "lossless",
            Offered::Half => "half",
        }
    }

    /// As reports call it.
    fn phase(self) -> &'static str {
        match self {
            Offered::Full => "full rate",
            Offered::Lossless => "without loss",
            Offered::Half => "half load",
        }
    }
}

/// What to measure.
struct V2v {
    /// Switches, ours among them.
    peers: Vec<VhostPeer>,
    generators: Vec<Generator>,
    /// The layouts for 64 bytes, and those for all other lengths.
    rings: [Vec<Rings>; 2],
    sizes: Vec<Frames>,
    rates: Vec<Offered>,
    /// The lengths that the cross-check measures: the shortest only, unless lengths were asked for.
    crossed: Vec<Frames>,
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(options(choices)?))
}

fn options(choices: &Choices) -> Result<V2v> {
    let rings = choices.parse(&RINGS)?;
    let others = if choices.given(&RINGS) { rings.clone() } else { vec![Rings::SPLIT] };
    let sizes: Vec<Frames> = choices.parse(&SIZES)?;
    let rates = choices.choose(&RATES, &Offered::ALL, Offered::name)?;
    if rates.contains(&Offered::Half) && !rates.contains(&Offered::Full) {
        bail!("--rates: half is that of the full rate, which has to be measured too");
    }
    Ok(V2v {
        peers: choices.peers(&VhostPeer::ALL, VhostPeer::name),
        generators: choices.choose(&GENERATORS, &Generator::ALL, Generator::name)?,
        rings: [rings, others],
        crossed: if choices.given(&SIZES) { sizes.clone() } else { vec![Frames::Fixed(64)] },
        sizes,
        rates,
    })
}

/// One cell: a load, by whom, on which switches.
struct Case {
    generator: Generator,
    load: Load<'static>,
    peers: Vec<VhostPeer>,
}

impl Case {
    fn name(&self) -> String {
        let by = if self.generator == Generator::Testpmd { ", by testpmd" } else { "" };
        format!("{}, {}{by}", self.load.frames.title(), self.load.rings)
    }

    /// Whether more than the highest rate is measured of a switch: what merely shows a limit is not asked.
    fn whole(&self, peer: VhostPeer) -> bool {
        let switch = matches!(peer, VhostPeer::Weft | VhostPeer::Ovs | VhostPeer::OvsTso);
        switch && self.generator == Generator::Traffic
    }
}

impl V2v {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let base = Load::new(Path::new(""), plan.generator_cpu, plan.seconds);
        let mut cases = Vec::new();
        for &generator in &self.generators {
            for &frames in &self.sizes {
                let short = frames == Frames::Fixed(64);
                for &rings in if short { &self.rings[0] } else { &self.rings[1] } {
                    let load = Load { frames, rings, ..base };
                    let crossed = generator == Generator::Traffic || self.crossed.contains(&frames);
                    if crossed && generator.makes(&load) {
                        cases.push(self.case(generator, load));
                    }
                }
            }
        }
        cases.retain(|case| !case.peers.is_empty());
        cases
    }

    fn case(&self, generator: Generator, load: Load<'static>) -> Case {
        let mut case = Case { generator, load, peers: Vec::new() };
        let full = self.offered(&case).contains(&Offered::Full);
        let taken = |peer: &VhostPeer| takes(*peer, generator, &load) && (full || case.whole(*peer));
        case.peers = self.peers.iter().copied().filter(taken).collect();
        case
    }
}

/// Whether a peer has a part in a cell. The peers that are no switches show limits: for the shortest and the longest
/// frames, where they differ most.
fn takes(peer: VhostPeer, generator: Generator, load: &Load<'_>) -> bool {
    let own = generator == Generator::Traffic;
    let segments = load.frames == Frames::Segments;
    let ends = matches!(load.frames, Frames::Fixed(64 | 1514) | Frames::Segments);
    match peer {
        VhostPeer::Weft | VhostPeer::WeftBusy => true,
        // Without the setting it takes no segments; with it, it is slower with what is none.
        VhostPeer::Ovs => !segments,
        VhostPeer::OvsTso => segments,
        VhostPeer::OvsFlow => own && !segments && !load.rings.packed && ends,
        VhostPeer::TestpmdIo => ends,
        VhostPeer::Reflector => own,
    }
}

impl Benchmark for V2v {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        let generators = self.generators.iter().flat_map(|generator| generator.programs());
        std::iter::once(&machine::IP).chain(peers).chain(generators).copied().collect()
    }

    fn runs(&self, plan: &Plan) -> (usize, f64) {
        let asked = |case: &Case, offered: Offered| {
            case.peers.iter().filter(|peer| offered == Offered::Full || case.whole(**peer)).count()
        };
        let of =
            |case: &Case| self.offered(case).into_iter().map(|offered| asked(case, offered)).sum::<usize>();
        (self.cases(plan).iter().map(of).sum(), 2.5)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if plan.switch_cpu == plan.generator_cpu {
            bail!("the switch and the generator both poll: they need two processors");
        }
        let _pages = Hugepages::reserve(PAGES)?;
        let mut scenario = plan.scenario(ENTRY.name, about(plan));
        for case in self.cases(plan) {
            let names: Vec<&str> = case.peers.iter().map(|peer| peer.name()).collect();
            let cell = Cell::new(case.name(), &self.measures(&case)).peers(&names);
            let cell = match case.generator {
                Generator::Traffic => cell.ceiling(VhostPeer::Reflector.name()),
                Generator::Testpmd => cell,
            };
            let phases: Vec<&str> = self.offered(&case).iter().map(|offered| offered.phase()).collect();
            let cell = cell.phases(&phases);
            rounds(&mut scenario, cell, case.generator.name(), |turn| self.turn(plan, &case, turn))?;
        }
        Ok(scenario)
    }
}

impl V2v {
    /// What is measured in a cell: the cross-check knows its own rate only.
    fn offered(&self, case: &Case) -> Vec<Offered> {
        match case.generator {
            Generator::Traffic => self.rates.clone(),
            Generator::Testpmd => vec![Offered::Full],
        }
    }

    fn measures(&self, case: &Case) -> Vec<Measure> {
        let own = case.generator == Generator::Traffic;
        // Frames of several lengths, and very long ones, say little by their number.
        let in_bits = matches!(case.load.frames, Frames::Mix | Frames::Segments);
        let mut measures = Vec::new();
        let offered = self.offered(case);
        if offered.contains(&Offered::Full) {
            measures.push(RATE);
            if own {
                measures.push(LOSS);
            }
            if in_bits {
                measures.insert(0, THROUGHPUT);
            }
        }
        if offered.contains(&Offered::Lossless) {
            measures.push(if in_bits { LOSS_FREE_THROUGHPUT } else { LOSS_FREE });
        }
        if offered.contains(&Offered::Half) {
            measures.extend([P50, P99]);
        }
        measures
    }

    /// One peer's turn; nothing for a peer of which this phase asks nothing.
    fn turn(&self, plan: &Plan, case: &Case, turn: &Turn<'_>) -> Result<Option<Run>> {
        let peer = case.peers.iter().find(|known| known.name() == turn.peer).context("no such peer")?;
        let offered = self.offered(case).get(turn.phase).copied().context("no such phase")?;
        if offered != Offered::Full && !case.whole(*peer) {
            return Ok(None);
        }
        let rate = match offered {
            Offered::Full => Rate::Full,
            Offered::Lossless => Rate::LOSSLESS,
            Offered::Half => {
                Rate::PerSecond(turn.lowest(&RATE).context("no switch has a rate to take half of")? / 2.0)
            }
        };
        let segments = case.load.frames == Frames::Segments;
        let switch = peer.start(&Setup { segments, ..Setup::pair(turn.dir, plan.switch_cpu) })?;
        let measured = case.generator.measure(&switch, &Load { dir: turn.dir, rate, ..case.load })?;
        let measured = match offered {
            Offered::Full => measured.only(&[RATE, THROUGHPUT, LOSS]),
            Offered::Lossless => {
                let frames = measured.get(&RATE).context("the generator has no rate")?;
                let bits = measured.get(&THROUGHPUT).context("the generator has no throughput")?;
                measured.only(&[]).with(&LOSS_FREE, frames).with(&LOSS_FREE_THROUGHPUT, bits)
            }
            Offered::Half => measured.only(&[P50, P99]),
        };
        Ok(Some(Run { switch: switch.commands.clone(), measured }))
    }
}

fn about(plan: &Plan) -> String {
    format!(
        "Two vhost-user ports, one forwarding thread, alone on CPU {}; the generator is one thread on CPU {}. Rings of\n\
         {RING_SIZE} descriptors, frames both ways, lengths without check sequence; `mix`: seven frames of 60 bytes, four of\n\
         590, one of 1514; 64 KB segments: TCP with segmentation offload, as Linux guests send it.\n\n\
         `weft`: a network of mode bridge; `ovs`: Open vSwitch's userspace datapath with action NORMAL; `ovs-flow`: with a\n\
         flow from each port to the other; `ovs-tso`: NORMAL with `userspace-tso-enable`, without which it passes no segments\n\
         on; `testpmd-io`: DPDK testpmd forwarding between two vhost ports, which decides nothing; `reflector`: the least\n\
         that moves a frame, to show how far the generator gets.\n\n\
         Rate: as fast as the rings take frames, or, by `testpmd`, a fixed number of frames going round and round. Rate\n\
         without loss: the highest at which at most one frame in 100,000 is lost. Latency: from the sender's write to the\n\
         receiver's read, at half of the slowest switch's rate of the same round, the same number of frames per second for\n\
         each switch.",
        plan.switch_cpu, plan.generator_cpu
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { pairs: 5, seconds: 1, switch_cpu: 1, generator_cpu: 0 };

    fn v2v(flags: &[(&'static str, &str)]) -> V2v {
        let words = |text: &str| text.split(',').map(str::to_string).collect();
        let given = flags.iter().map(|(name, text)| (*name, words(text))).collect();
        options(&Choices { given, ..Choices::default() }).expect("options")
    }

    fn cells(v2v: &V2v) -> Vec<String> {
        let peers = |case: &Case| case.peers.iter().map(|peer| peer.name()).collect::<Vec<_>>().join(" ");
        v2v.cases(&PLAN).iter().map(|case| format!("{}: {}", case.name(), peers(case))).collect()
    }

    #[test]
    fn every_load_has_the_peers_that_it_means_something_to() {
        let expected = [
            "64 B, split: weft ovs ovs-flow testpmd-io reflector",
            "64 B, packed: weft ovs testpmd-io reflector",
            "512 B, split: weft ovs reflector",
            "1514 B, split: weft ovs ovs-flow testpmd-io reflector",
            "mix, split: weft ovs reflector",
            "64 KB segments, split: weft ovs-tso testpmd-io reflector",
            "64 B, split, by testpmd: weft ovs testpmd-io",
            "64 B, packed, by testpmd: weft ovs testpmd-io",
        ];
        assert_eq!(cells(&v2v(&[])), expected);
    }

    #[test]
    fn rings_that_were_asked_for_are_those_of_every_length() {
        let chosen = v2v(&[("rings", "packed"), ("sizes", "512,mix"), ("generators", "traffic")]);
        assert_eq!(cells(&chosen), ["512 B, packed: weft ovs reflector", "mix, packed: weft ovs reflector"]);
    }

    #[test]
    fn a_switch_has_a_turn_for_each_rate_and_what_shows_a_limit_one() {
        let chosen = v2v(&[("sizes", "64"), ("rings", "split"), ("generators", "traffic")]);
        assert_eq!(chosen.runs(&PLAN).0, 2 * 3 + 3);
        let lossless = v2v(&[("sizes", "64"), ("rings", "split"), ("rates", "lossless")]);
        assert_eq!(cells(&lossless)[0], "64 B, split: weft ovs");
        assert_eq!(lossless.measures(&lossless.cases(&PLAN)[0]), [LOSS_FREE]);
    }

    #[test]
    fn half_of_what_is_not_measured_is_refused() {
        let given = [("rates", vec!["half".to_string()])].into();
        assert!(options(&Choices { given, ..Choices::default() }).is_err());
    }
}
