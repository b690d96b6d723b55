//! `v2v`: two vhost-user ports and one forwarding thread, against Open vSwitch with DPDK: the highest rate, the highest
//! without loss, and latency at half load.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Benchmark, Entry, peer_names};
use crate::flags::{Choices, Flag};
use crate::generators::{Frames, Generator, Load, Measured, RING_SIZE, Rate, Rings};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{LOSS, LOSS_FREE, Measure, P50, P99, RATE, THROUGHPUT};
use crate::peers::{Setup, VhostPeer, VhostSwitch};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, Turn, rounds};

/// Huge pages of 2 MiB: 512 MiB each for a DPDK switch and a DPDK generator, and the own generator's guests.
const PAGES: u64 = 256 + 256 + 32;

/// Of each cell in each round: what has a turn of its own.
const PHASES: [&str; 2] = ["highest rates", "half load"];

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
    /// Whether the cross-check measures all lengths, or the shortest and the longest only.
    crossed: Vec<Frames>,
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    let rings = choices.parse(&RINGS)?;
    let others = if choices.given(&RINGS) { rings.clone() } else { vec![Rings::SPLIT] };
    let sizes: Vec<Frames> = choices.parse(&SIZES)?;
    let ends = [Frames::Fixed(64), Frames::Fixed(1514)];
    let rates = choices.choose(&RATES, &Offered::ALL, Offered::name)?;
    if rates.contains(&Offered::Half) && !rates.contains(&Offered::Full) {
        bail!("--rates: half is that of the full rate, which has to be measured too");
    }
    Ok(Box::new(V2v {
        peers: choices.peers(&VhostPeer::ALL, VhostPeer::name),
        generators: choices.choose(&GENERATORS, &Generator::ALL, Generator::name)?,
        rings: [rings, others],
        crossed: if choices.given(&SIZES) { sizes.clone() } else { ends.to_vec() },
        sizes,
        rates,
    }))
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
        let full = self.rates.contains(&Offered::Full);
        let mut case = Case { generator, load, peers: Vec::new() };
        let taken = |peer: &VhostPeer| takes(*peer, generator, &load) && (full || case.whole(*peer));
        case.peers = self.peers.iter().copied().filter(taken).collect();
        case
    }
}

/// Whether a peer has a part in a cell.
fn takes(peer: VhostPeer, generator: Generator, load: &Load<'_>) -> bool {
    let segments = load.frames == Frames::Segments;
    match peer {
        // Without the setting it takes no segments; with it, it is slower with what is none.
        VhostPeer::Ovs => !segments,
        VhostPeer::OvsTso => segments,
        VhostPeer::OvsFlow => !segments && generator == Generator::Traffic && !load.rings.packed,
        VhostPeer::Weft | VhostPeer::TestpmdIo => true,
        VhostPeer::Reflector => !segments && !load.rings.packed,
    }
}

impl Benchmark for V2v {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        let generators = self.generators.iter().flat_map(|generator| generator.programs());
        std::iter::once(&machine::IP).chain(peers).chain(generators).copied().collect()
    }

    fn runs(&self, plan: &Plan) -> (usize, f64) {
        let of = |case: &Case| {
            let whole = case.peers.iter().filter(|peer| case.whole(**peer)).count();
            case.peers.len() + whole * (self.rates.len() - 1)
        };
        (self.cases(plan).iter().map(of).sum(), 3.0)
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
            let cell = cell.ceiling(VhostPeer::Reflector.name());
            let half = self.rates.contains(&Offered::Half) && case.generator == Generator::Traffic;
            let cell = cell.phases(if half { &PHASES } else { &PHASES[..1] });
            rounds(&mut scenario, cell, case.generator.name(), |turn| self.turn(plan, &case, turn))?;
        }
        Ok(scenario)
    }
}

impl V2v {
    fn measures(&self, case: &Case) -> Vec<Measure> {
        let own = case.generator == Generator::Traffic;
        let mut measures = Vec::new();
        if self.rates.contains(&Offered::Full) {
            measures.push(RATE);
            if own {
                measures.push(LOSS);
            }
            // Frames of several lengths say little by their number.
            if matches!(case.load.frames, Frames::Mix | Frames::Segments) {
                measures.insert(0, THROUGHPUT);
            }
        }
        if self.rates.contains(&Offered::Lossless) && own {
            measures.push(LOSS_FREE);
        }
        if self.rates.contains(&Offered::Half) && own {
            measures.extend([P50, P99]);
        }
        measures
    }

    /// One peer's turn; nothing for a peer of which this phase asks nothing.
    fn turn(&self, plan: &Plan, case: &Case, turn: &Turn<'_>) -> Result<Option<Run>> {
        let peer = case.peers.iter().find(|known| known.name() == turn.peer).context("no such peer")?;
        let half = turn.phase == 1;
        if half && !case.whole(*peer) {
            return Ok(None);
        }
        let segments = case.load.frames == Frames::Segments;
        let switch = peer.start(&Setup { segments, ..Setup::pair(turn.dir, plan.switch_cpu) })?;
        let load = Load { dir: turn.dir, ..case.load };
        let measured = if half {
            let lowest = turn.lowest(&RATE).context("no switch has a rate to take half of")?;
            let load = Load { rate: Rate::PerSecond(lowest / 2.0), ..load };
            case.generator.measure(&switch, &load)?.only(&[P50, P99])
        } else {
            self.highest(case, *peer, &switch, &load)?
        };
        Ok(Some(Run { switch: switch.commands.clone(), measured }))
    }

    /// The highest rate, and the highest without loss.
    fn highest(
        &self,
        case: &Case,
        peer: VhostPeer,
        switch: &VhostSwitch,
        load: &Load<'_>,
    ) -> Result<Measured> {
        let mut measured = Measured::new();
        if self.rates.contains(&Offered::Full) {
            measured = case.generator.measure(switch, load)?.only(&[RATE, THROUGHPUT, LOSS]);
        }
        if self.rates.contains(&Offered::Lossless) && case.whole(peer) {
            let lossless = case.generator.measure(switch, &Load { rate: Rate::LOSSLESS, ..*load })?;
            if let Some(rate) = lossless.get(&RATE) {
                measured = measured.with(&LOSS_FREE, rate);
            }
            measured.commands.extend(lossless.commands);
        }
        Ok(measured)
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
