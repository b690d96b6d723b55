//! The translator against plain maps. Times are multiples of 20 s, and timeouts lie between them, so that both agree
//! on what has ended.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::tcp::{Direction, State};
use super::*;

const UDP: u64 = 310;
const ICMP: u64 = 70;
const ESTABLISHED: u64 = 7450;
const TRANSITORY: u64 = 250;
const SESSIONS_PER_HOST: usize = 8;
const MAPPINGS_PER_HOST: usize = 4;
const SESSIONS_MAX: usize = 20;

#[derive(Clone, Debug)]
enum Step {
    Out(Protocol, End, End, TcpFlags),
    /// To the outside endpoint of this inside one, if it has one.
    In(Protocol, End, End, TcpFlags),
    /// To the forwarded port.
    ToForward(Protocol, End, TcpFlags),
    Error(Protocol, End, End),
    Forward(Protocol, bool),
    Wait(u64),
}

type Flow3 = (Protocol, End, End);

#[derive(Debug)]
struct Session {
    outside: End,
    state: State,
    until: u64,
    from_outside: bool,
    forward: bool,
}

#[derive(Debug, Default)]
struct Model {
    sessions: BTreeMap<Flow3, Session>,
    /// Ports that rest: until when, and whose.
    resting: Vec<(u64, Protocol, End, Ipv4Addr)>,
    forwards: HashSet<Protocol>,
}

fn target() -> End {
    guest(1, 1001)
}

fn forwarded() -> End {
    Endpoint::new(external(1), 80)
}

impl Model {
    fn timeout(protocol: Protocol, state: State) -> u64 {
        match protocol {
            Udp => UDP,
            Icmp => ICMP,
            Tcp if state.is_established() => ESTABLISHED,
            Tcp => TRANSITORY,
        }
    }

    /// The mapping of an inside endpoint: what was taken from the pool before what is forwarded.
    fn mapping(&self, protocol: Protocol, inside: End) -> Option<(End, bool)> {
        let of = |forward| {
            let mut sessions = self.sessions.iter();
            sessions.find(|((p, i, _), s)| *p == protocol && *i == inside && s.forward == forward)
        };
        of(false).or_else(|| of(true)).map(|(_, session)| (session.outside, session.forward))
    }

    fn forget(&mut self, now: u64, gone: impl Fn(&Flow3, &Session) -> bool) {
        let keys: Vec<_> = self.sessions.iter().filter(|(k, s)| gone(k, s)).map(|(k, _)| *k).collect();
        for key in keys {
            let session = self.sessions.remove(&key).expect("it was there");
            let same = |(p, _, _): &Flow3, s: &Session| *p == key.0 && s.outside == session.outside;
            if !session.forward && !self.sessions.iter().any(|(k, s)| same(k, s)) {
                self.resting.push((now + 121, key.0, session.outside, key.1.address));
            }
        }
        self.resting.retain(|(until, ..)| *until > now);
    }

    fn has_room(&self, host: Ipv4Addr, from_outside: bool) -> Result<(), DropReason> {
        let of_host = self.sessions.iter().filter(|((_, inside, _), _)| inside.address == host);
        let (all, outside) = of_host.fold((0, 0), |(n, o), (_, s)| (n + 1, o + usize::from(s.from_outside)));
        if all >= SESSIONS_PER_HOST || (from_outside && outside >= SESSIONS_PER_HOST / 2) {
            return Err(DropReason::NatQuota);
        }
        if self.sessions.len() >= SESSIONS_MAX { Err(DropReason::NatExhausted) } else { Ok(()) }
    }

    /// Ports that a host holds.
    fn ports(&self, protocol: Protocol, host: Ipv4Addr) -> usize {
        let held =
            self.sessions.iter().filter(|((p, i, _), s)| *p == protocol && i.address == host && !s.forward);
        let held: HashSet<_> = held.map(|(_, s)| s.outside).collect();
        held.len() + self.resting.iter().filter(|(_, p, _, h)| *p == protocol && *h == host).count()
    }

    /// What an outbound packet becomes; `None` for a port that the translator chooses.
    fn outbound(&mut self, now: u64, key: Flow3, flags: TcpFlags) -> Result<Option<End>, DropReason> {
        let (protocol, inside, _) = key;
        if let Some(session) = self.sessions.get_mut(&key) {
            session.follow(now, protocol, Direction::Out, flags);
            return Ok(Some(session.outside));
        }
        if protocol == Tcp && !flags.opens() {
            return Err(DropReason::NatNoMapping);
        }
        let mapping = self.mapping(protocol, inside);
        if let Err(reason) = self.has_room(inside.address, false) {
            return match mapping {
                Some((outside, true)) if protocol == Udp => Ok(Some(outside)),
                _ => Err(reason),
            };
        }
        let by_forward =
            (inside == target() && self.forwards.contains(&protocol)).then_some((forwarded(), true));
        match mapping.or(by_forward) {
            Some((outside, forward)) => {
                self.open(now, key, outside, forward, Direction::Out);
                Ok(Some(outside))
            }
            None if self.ports(protocol, inside.address) >= MAPPINGS_PER_HOST => Err(DropReason::NatQuota),
            None => Ok(None),
        }
    }

    fn open(&mut self, now: u64, key: Flow3, outside: End, forward: bool, direction: Direction) {
        let state = if key.0 == Tcp { State::opened(direction) } else { State::Active };
        let until = now + Self::timeout(key.0, state);
        let from_outside = direction == Direction::In;
        self.sessions.insert(key, Session { outside, state, until, from_outside, forward });
    }

    fn inbound(&mut self, now: u64, protocol: Protocol, local: End, end: End, flags: TcpFlags) -> Answer {
        let by_forward = local == forwarded() && self.forwards.contains(&protocol);
        let owner = self.sessions.iter().find(|((p, _, _), s)| *p == protocol && s.outside == local);
        let inside = if by_forward { target() } else { owner.ok_or(DropReason::NatNoMapping)?.0.1 };
        let key = (protocol, inside, end);
        if let Some(session) = self.sessions.get_mut(&key) {
            if session.outside != local {
                return FILTERED;
            }
            session.follow(now, protocol, Direction::In, flags);
            return Ok(inside);
        }
        if !by_forward {
            let knows = |(p, i, r): &Flow3| *p == protocol && *i == inside && r.address == end.address;
            let mut of_mapping = self.sessions.iter().filter(|(_, s)| s.outside == local);
            if protocol == Icmp || !of_mapping.any(|(k, _)| knows(k)) {
                return FILTERED;
            }
            if protocol == Udp {
                return Ok(inside);
            }
        }
        if protocol == Tcp && !flags.opens() {
            return NO_MAPPING;
        }
        match self.has_room(inside.address, true) {
            Ok(()) => self.open(now, key, local, by_forward, Direction::In),
            Err(_) if protocol == Udp => {}
            Err(reason) => return Err(reason),
        }
        Ok(inside)
    }
}

impl Session {
    fn follow(&mut self, now: u64, protocol: Protocol, direction: Direction, flags: TcpFlags) {
        let was = self.state;
        if was == State::Active {
            if direction == Direction::Out {
                self.until = now + Model::timeout(protocol, was);
            }
            return;
        }
        self.state = was.after(direction, flags);
        let again = was == State::SynOut && direction == Direction::Out && !flags.any(RST);
        if self.state != was || was.is_established() || again {
            self.until = now + Model::timeout(protocol, self.state);
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let protocol = || prop_oneof![Just(Tcp), Just(Udp), Just(Icmp)];
    let ported = || prop_oneof![Just(Tcp), Just(Udp)];
    let inside = || (1..=3_u8, 1000..1006_u16).prop_map(|(host, port)| guest(host, port));
    let end = || (1..=3_u8, 50..53_u16).prop_map(|(host, port)| remote(host, port));
    let flags =
        || prop_oneof![3 => Just(SYN), 2 => Just(SYN_ACK), 3 => Just(ACK), 1 => Just(FIN), 1 => Just(RST)];
    let step = prop_oneof![
        8 => (protocol(), inside(), end(), flags()).prop_map(|(p, i, r, f)| Step::Out(p, i, r, f)),
        8 => (protocol(), inside(), end(), flags()).prop_map(|(p, i, r, f)| Step::In(p, i, r, f)),
        2 => (ported(), end(), flags()).prop_map(|(p, r, f)| Step::ToForward(p, r, f)),
        2 => (protocol(), inside(), end()).prop_map(|(p, i, r)| Step::Error(p, i, r)),
        1 => (ported(), any::<bool>()).prop_map(|(p, on)| Step::Forward(p, on)),
        2 => prop_oneof![1..4_u64, 10..20_u64, 300..400_u64].prop_map(|n| Step::Wait(n * 20)),
    ];
    proptest::collection::vec(step, 1..200)
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let settings = Settings {
        sessions_per_host: SESSIONS_PER_HOST as u32,
        mappings_per_host: MAPPINGS_PER_HOST as u32,
        sessions_max: SESSIONS_MAX as u32,
        udp_timeout: Duration::from_secs(UDP),
        icmp_timeout: Duration::from_secs(ICMP),
        tcp_established_timeout: Duration::from_secs(ESTABLISHED),
        tcp_transitory_timeout: Duration::from_secs(TRANSITORY),
        ..Settings::new([5, 6])
    };
    let mut rig = Rig::with(settings, &[1]);
    let mut model = Model::default();
    let mut now = 0;
    for step in steps {
        match step {
            Step::Out(protocol, inside, end, flags) => {
                let got = rig.out(now, protocol, inside, end, flags);
                match model.outbound(now, (protocol, inside, end), flags) {
                    Ok(None) => {
                        let outside = got.expect("a port is free");
                        prop_assert_eq!(outside.address, external(1));
                        let held =
                            |((p, _, _), s): (&Flow3, &Session)| *p == protocol && s.outside == outside;
                        prop_assert!(!model.sessions.iter().any(held), "given out twice");
                        let rests = model.resting.iter().any(|r| r.1 == protocol && r.2 == outside);
                        prop_assert!(!rests, "it rests");
                        model.open(now, (protocol, inside, end), outside, false, Direction::Out);
                    }
                    Ok(Some(outside)) => prop_assert_eq!(got, Ok(outside)),
                    Err(reason) => prop_assert_eq!(got, Err(reason)),
                }
            }
            Step::In(protocol, inside, end, flags) => {
                if let Some((outside, _)) = model.mapping(protocol, inside) {
                    let want = model.inbound(now, protocol, outside, end, flags);
                    prop_assert_eq!(rig.inward(now, protocol, outside, end, flags), want);
                }
            }
            Step::ToForward(protocol, end, flags) => {
                let want = model.inbound(now, protocol, forwarded(), end, flags);
                prop_assert_eq!(rig.inward(now, protocol, forwarded(), end, flags), want);
            }
            Step::Error(protocol, inside, end) => {
                let session = model.sessions.get(&(protocol, inside, end)).map(|s| s.outside);
                let mapping = model.mapping(protocol, inside).filter(|_| protocol == Udp).map(|m| m.0);
                let got = rig.view.embedded_outbound(at(now), protocol, inside, end);
                match session.or(mapping) {
                    // Which of two mappings is not said.
                    Some(_) if session.is_none() => prop_assert!(got.is_ok()),
                    want => prop_assert_eq!(got.ok(), want),
                }
                if let Some(outside) = session {
                    let got = rig.view.embedded_inbound(at(now), protocol, outside, end);
                    prop_assert_eq!(got, Ok(inside));
                }
            }
            Step::Forward(protocol, on) => {
                let forward = forward(protocol, 80, 1, target());
                if on {
                    let added = rig.napt.add_forward(at(now), &forward).is_ok();
                    prop_assert_eq!(added, model.forwards.insert(protocol));
                } else {
                    let removed = rig.napt.remove_forward(at(now), &forward);
                    prop_assert_eq!(removed, model.forwards.remove(&protocol));
                    model.forget(now, |(p, _, _), s| *p == protocol && s.forward);
                }
            }
            Step::Wait(secs) => {
                now += secs;
                rig.expire(now);
                model.forget(now, |_, session| session.until <= now);
            }
        }
        prop_assert_eq!(rig.napt.session_count(), model.sessions.len());
    }
    let listed = rig.napt.sessions(at(now), usize::MAX);
    let mut listed: Vec<_> =
        listed.iter().map(|s| (s.protocol, s.inside, s.outside, s.remote, s.state)).collect();
    listed.sort_unstable();
    let mut modelled: Vec<_> = model
        .sessions
        .iter()
        .map(|((p, i, r), s)| (*p, i.to_socket(), s.outside.to_socket(), r.to_socket(), s.state.name()))
        .collect();
    modelled.sort_unstable();
    prop_assert_eq!(listed, modelled);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_translator_is_its_model(steps in steps()) {
        run(steps)?;
    }
}
