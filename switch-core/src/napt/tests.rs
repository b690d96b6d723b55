//! One test for each requirement, named after it, with a virtual clock; and a comparison with a naive model.

mod ends;
mod forwards;
mod model;
mod ports;
mod threads;

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::drop::DropReason;

const SYN: TcpFlags = TcpFlags::SYN;
const SYN_ACK: TcpFlags = TcpFlags(0x12);
const ACK: TcpFlags = TcpFlags::ACK;
const FIN: TcpFlags = TcpFlags(0x11);
const RST: TcpFlags = TcpFlags::RST;
const NONE: TcpFlags = TcpFlags::NONE;

use Protocol::{Icmp, Tcp, Udp};

type End = Endpoint<Ipv4Addr>;
type Answer = Result<End, DropReason>;

fn at(secs: u64) -> Instant {
    Instant::from_secs(secs)
}

/// A guest's endpoint: 10.0.0.`guest`.
fn guest(guest: u8, port: u16) -> End {
    Endpoint::new(Ipv4Addr::new(10, 0, 0, guest), port)
}

/// A remote endpoint: 203.0.113.`remote`.
fn remote(remote: u8, port: u16) -> End {
    Endpoint::new(Ipv4Addr::new(203, 0, 113, remote), port)
}

fn external(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

/// A translator with one worker.
struct Rig {
    napt: Arc<Napt<Ipv4Addr>>,
    view: View<Ipv4Addr>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Settings::new([1, 2]), &[1])
    }

    fn filtering(filtering: Filtering) -> Self {
        Self::with(Settings { filtering, ..Settings::new([1, 2]) }, &[1])
    }

    fn with(settings: Settings, externals: &[u8]) -> Self {
        let napt = Arc::new(Napt::new(settings));
        let externals: Vec<_> = externals.iter().map(|&last| external(last)).collect();
        napt.set_externals(Instant::ORIGIN, &externals);
        Self { view: View::new(Arc::clone(&napt)), napt }
    }

    fn out(&mut self, secs: u64, protocol: Protocol, local: End, remote: End, flags: TcpFlags) -> Answer {
        self.view.outbound(at(secs), &Flow { protocol, local, remote, flags })
    }

    fn inward(&mut self, secs: u64, protocol: Protocol, local: End, remote: End, flags: TcpFlags) -> Answer {
        self.view.inbound(at(secs), &Flow { protocol, local, remote, flags })
    }

    /// Opens a TCP connection from the inside.
    fn connect(&mut self, secs: u64, local: End, remote: End) -> End {
        let outside = self.out(secs, Tcp, local, remote, SYN).expect("a SYN makes a session");
        assert_eq!(self.inward(secs, Tcp, outside, remote, SYN_ACK), Ok(local));
        assert_eq!(self.out(secs, Tcp, local, remote, ACK), Ok(outside));
        outside
    }

    fn expire(&self, secs: u64) {
        while self.napt.expire(at(secs), 1000) {}
    }

    fn forward(&self, forward: &Forward) {
        self.napt.add_forward(Instant::ORIGIN, forward).expect("a sound forward");
    }
}

fn forward(protocol: Protocol, port: u16, count: u16, target: End) -> Forward {
    Forward { protocol, address: None, port, count, target: target.to_socket() }
}

const FILTERED: Answer = Err(DropReason::NatFiltered);
const NO_MAPPING: Answer = Err(DropReason::NatNoMapping);
const QUOTA: Answer = Err(DropReason::NatQuota);
const EXHAUSTED: Answer = Err(DropReason::NatExhausted);

#[test]
fn rfc4787_req1_mapping_is_endpoint_independent() {
    let mut rig = Rig::new();
    for protocol in [Udp, Tcp, Icmp] {
        let outside = rig.out(0, protocol, guest(5, 1234), remote(1, 53), SYN).unwrap();
        assert_eq!(rig.out(1, protocol, guest(5, 1234), remote(1, 54), SYN), Ok(outside), "another port");
        assert_eq!(rig.out(1, protocol, guest(5, 1234), remote(2, 53), SYN), Ok(outside), "another address");
        assert_ne!(rig.out(1, protocol, guest(5, 1235), remote(1, 53), SYN), Ok(outside));
    }
}

#[test]
fn rfc4787_req2_a_host_keeps_one_outside_address() {
    let mut rig = Rig::with(Settings::new([1, 2]), &[1, 2, 3]);
    let mut used = HashSet::new();
    for host in 1..=6 {
        let of_host: HashSet<_> = (0..50)
            .map(|i| {
                let protocol = [Udp, Tcp, Icmp][i % 3];
                rig.out(0, protocol, guest(host, 1000 + i as u16), remote(i as u8, 80), SYN).unwrap().address
            })
            .collect();
        assert_eq!(of_host.len(), 1, "guest {host}");
        used.extend(of_host);
    }
    assert_eq!(used.len(), 3, "hosts are spread over the pool");
}

#[test]
fn rfc4787_req3_no_port_is_overloaded() {
    let settings = Settings { mappings_per_host: 1 << 16, ..Settings::new([1, 2]) };
    let mut rig = Rig::with(settings, &[1]);
    let mut used = HashSet::new();
    for port in 0..64512_u32 {
        let outside = rig.out(0, Udp, guest(1, port as u16), remote(1, 53), NONE).unwrap();
        assert!(outside.port >= FIRST_PORT && used.insert(outside));
    }
    assert_eq!(
        rig.out(0, Udp, guest(2, 1), remote(9, 53), NONE),
        EXHAUSTED,
        "not even for another remote end"
    );
    assert!(rig.out(0, Tcp, guest(2, 1), remote(9, 53), SYN).is_ok(), "TCP has ports of its own");
}

#[test]
fn rfc4787_req4_udp_keeps_the_parity_of_ports() {
    let mut rig = Rig::new();
    for port in 5000..5200 {
        let outside = rig.out(0, Udp, guest(1, port), remote(1, 53), NONE).unwrap();
        assert_eq!(outside.port % 2, port % 2);
    }
}

#[test]
fn rfc4787_req5_udp_timeout_is_five_minutes() {
    let mut rig = Rig::new();
    let outside = rig.out(0, Udp, guest(1, 1), remote(1, 53), NONE).unwrap();
    assert_eq!(rig.inward(299, Udp, outside, remote(1, 53), NONE), Ok(guest(1, 1)));
    assert_eq!(rig.inward(302, Udp, outside, remote(1, 53), NONE), FILTERED);
    rig.expire(303);
    assert_eq!(rig.inward(303, Udp, outside, remote(1, 53), NONE), NO_MAPPING);
    assert_eq!(rig.napt.session_count(), 0);
}

#[test]
fn rfc4787_req5_udp_timeout_is_at_least_two_minutes() {
    let settings = Settings { udp_timeout: Duration::from_secs(5), ..Settings::new([1, 2]) };
    let mut rig = Rig::with(settings, &[1]);
    let outside = rig.out(0, Udp, guest(1, 1), remote(1, 53), NONE).unwrap();
    rig.expire(120);
    assert_eq!(rig.inward(120, Udp, outside, remote(1, 53), NONE), Ok(guest(1, 1)));
    rig.expire(124);
    assert_eq!(rig.inward(124, Udp, outside, remote(1, 53), NONE), NO_MAPPING);
}

#[test]
fn rfc4787_req6_outbound_packets_refresh_and_inbound_ones_do_not() {
    let mut rig = Rig::new();
    let outside = rig.out(0, Udp, guest(1, 1), remote(1, 53), NONE).unwrap();
    assert_eq!(rig.out(200, Udp, guest(1, 1), remote(1, 53), NONE), Ok(outside));
    for secs in (210..=500).step_by(10) {
        rig.expire(secs);
        assert_eq!(rig.inward(secs, Udp, outside, remote(1, 53), NONE), Ok(guest(1, 1)), "{secs}");
    }
    rig.expire(503);
    assert_eq!(rig.inward(503, Udp, outside, remote(1, 53), NONE), NO_MAPPING);
}

#[test]
fn rfc4787_req6_what_a_cache_answers_counts_too() {
    let mut rig = Rig::new();
    let outside = rig.out(0, Udp, guest(1, 1), remote(1, 53), NONE).unwrap();
    let flow = Flow { protocol: Udp, local: guest(1, 1), remote: remote(1, 53), flags: NONE };
    for millis in (0..100_000).step_by(300) {
        rig.view.outbound(Instant::from_nanos(millis * 1_000_000), &flow).unwrap();
    }
    rig.expire(399);
    assert_eq!(rig.inward(399, Udp, outside, remote(1, 53), NONE), Ok(guest(1, 1)));
}

#[test]
fn rfc4787_req8_filtering_is_selectable() {
    use Filtering::*;
    // Of a mapping that has sent to remote 1, port 53: who may answer.
    let ends = [remote(1, 53), remote(1, 54), remote(2, 53)];
    for (filtering, lets_in) in [
        (EndpointIndependent, [true, true, true]),
        (AddressDependent, [true, true, false]),
        (AddressAndPortDependent, [true, false, false]),
    ] {
        let mut rig = Rig::filtering(filtering);
        for protocol in [Udp, Tcp] {
            let outside = rig.out(0, protocol, guest(1, 1), ends[0], SYN).unwrap();
            for (end, lets_in) in ends.into_iter().zip(lets_in) {
                let want = if lets_in { Ok(guest(1, 1)) } else { FILTERED };
                assert_eq!(
                    rig.inward(1, protocol, outside, end, SYN),
                    want,
                    "{filtering:?} {protocol} {end:?}"
                );
            }
        }
        let count = rig.napt.session_count();
        for port in 1000..2000 {
            let _ = rig.inward(1, Udp, guest(1, 1), remote(1, port), NONE);
        }
        assert_eq!(rig.napt.session_count(), count, "datagrams from the outside make no sessions");
    }
}

#[test]
fn rfc4787_req8_an_ended_session_lets_nobody_in() {
    let mut rig = Rig::new();
    let outside = rig.out(0, Udp, guest(1, 1), remote(1, 53), NONE).unwrap();
    assert_eq!(rig.out(200, Udp, guest(1, 1), remote(2, 53), NONE), Ok(outside));
    rig.expire(310);
    assert_eq!(rig.inward(310, Udp, outside, remote(1, 54), NONE), FILTERED);
    assert_eq!(rig.inward(310, Udp, outside, remote(2, 54), NONE), Ok(guest(1, 1)));
}

#[test]
fn rfc4787_req9_hairpinning_has_the_outside_source() {
    let mut rig = Rig::new();
    let b = rig.out(0, Udp, guest(2, 20), remote(1, 53), NONE).unwrap();
    // Guest 1 sends to guest 2's outside endpoint: what arrives comes from guest 1's outside endpoint.
    let a = rig.out(1, Udp, guest(1, 10), b, NONE).unwrap();
    assert!(rig.view.is_external(b.address));
    assert_eq!(a.address, external(1));
    assert_eq!(rig.inward(1, Udp, b, a, NONE), FILTERED, "filtered as anybody else");
    assert_eq!(rig.out(2, Udp, guest(2, 20), a, NONE), Ok(b));
    assert_eq!(rig.inward(2, Udp, a, b, NONE), Ok(guest(1, 10)));
    assert_eq!(rig.inward(2, Udp, b, a, NONE), Ok(guest(2, 20)));
}

#[test]
fn rfc4787_req11_nothing_depends_on_the_load() {
    // Mapping, filtering and timeouts of one guest, alone and beside 40,000 sessions of others.
    let trace = |busy: bool| {
        let settings = Settings { mappings_per_host: 10_000, ..Settings::new([1, 2]) };
        let mut rig = Rig::with(settings, &[1]);
        if busy {
            for i in 0..40_000_u32 {
                let host = 100 + (i / 10_000) as u8;
                rig.out(0, Udp, guest(host, (i % 10_000) as u16), remote(1, 53), NONE).unwrap();
            }
        }
        let outside = rig.out(0, Udp, guest(1, 7), remote(1, 53), NONE).unwrap();
        let same = rig.out(1, Udp, guest(1, 7), remote(2, 53), NONE) == Ok(outside);
        let answers = [(1, 53, 299), (3, 53, 299), (1, 53, 303)]
            .map(|(end, port, secs)| rig.inward(secs, Udp, outside, remote(end, port), NONE));
        (same, outside.port % 2, answers)
    };
    assert_eq!(trace(false), trace(true));
}

#[test]
fn rfc5382_req2_tcp_opens_in_any_order() {
    let mut rig = Rig::new();
    // Simultaneous open: both sides send SYN, then SYN and ACK.
    let outside = rig.out(0, Tcp, guest(1, 1), remote(1, 80), SYN).unwrap();
    assert_eq!(rig.inward(0, Tcp, outside, remote(1, 80), SYN), Ok(guest(1, 1)));
    assert_eq!(rig.out(0, Tcp, guest(1, 1), remote(1, 80), SYN_ACK), Ok(outside));
    assert_eq!(rig.inward(0, Tcp, outside, remote(1, 80), SYN_ACK), Ok(guest(1, 1)));
    rig.expire(7000);
    assert_eq!(rig.inward(7000, Tcp, outside, remote(1, 80), ACK), Ok(guest(1, 1)), "it is established");
    // Only a connection request makes a session.
    for flags in [ACK, SYN_ACK, FIN, RST, SYN.with(RST)] {
        assert_eq!(rig.out(0, Tcp, guest(1, 2), remote(1, 80), flags), NO_MAPPING, "{flags:?}");
    }
    assert_eq!(rig.napt.session_count(), 1);
}

#[test]
fn rfc5382_req4_an_unsolicited_syn_is_known_to_be_answered_or_not() {
    let mut rig = Rig::filtering(Filtering::AddressAndPortDependent);
    let outside = rig.out(0, Tcp, guest(1, 1), remote(9, 80), SYN).unwrap();
    assert_eq!(rig.inward(0, Tcp, outside, remote(1, 80), SYN), FILTERED);
    assert!(!rig.view.has_session(at(5), Tcp, outside, remote(1, 80)));
    assert_eq!(rig.out(5, Tcp, guest(1, 1), remote(1, 80), SYN), Ok(outside));
    assert!(rig.view.has_session(at(6), Tcp, outside, remote(1, 80)), "the guest's own SYN came meanwhile");
}

#[test]
fn rfc5382_req5_tcp_lives_two_hours_and_four_minutes() {
    let mut rig = Rig::new();
    let (end, outside) = (remote(1, 80), rig.connect(0, guest(1, 1), remote(1, 80)));
    rig.expire(7440);
    assert_eq!(rig.inward(7440, Tcp, outside, end, ACK), Ok(guest(1, 1)));
    rig.expire(2 * 7440);
    assert_eq!(rig.out(2 * 7440, Tcp, guest(1, 1), end, ACK), Ok(outside), "either side refreshes");
    rig.expire(3 * 7440 + 3);
    assert_eq!(rig.out(3 * 7440 + 3, Tcp, guest(1, 1), end, ACK), NO_MAPPING);
}

#[test]
fn rfc5382_req5_transitory_is_four_minutes() {
    let end = remote(1, 80);
    // What is done after 100 s to a connection that was opened at once, if it was: it lives 240 s more.
    let closings: [&[(bool, TcpFlags)]; 3] =
        [&[(true, FIN), (false, FIN)], &[(false, RST)], &[(true, RST), (true, RST)]];
    for closing in closings {
        let mut rig = Rig::new();
        let outside = rig.connect(0, guest(1, 1), end);
        for &(out, flags) in closing {
            let answer = match out {
                true => rig.out(100, Tcp, guest(1, 1), end, flags),
                false => rig.inward(100, Tcp, outside, end, flags),
            };
            assert!(answer.is_ok(), "{closing:?}");
        }
        rig.expire(340);
        assert!(rig.view.has_session(at(340), Tcp, outside, end), "{closing:?}");
        rig.expire(344);
        assert!(!rig.view.has_session(at(344), Tcp, outside, end), "{closing:?}");
    }
    let mut rig = Rig::new();
    let outside = rig.out(0, Tcp, guest(1, 1), end, SYN).unwrap();
    assert!(rig.view.has_session(at(240), Tcp, outside, end));
    assert!(!rig.view.has_session(at(244), Tcp, outside, end), "never answered");
    // Half closed is established.
    let outside = rig.connect(1000, guest(1, 2), end);
    rig.out(1000, Tcp, guest(1, 2), end, FIN).unwrap();
    rig.expire(8000);
    assert_eq!(rig.inward(8000, Tcp, outside, end, ACK), Ok(guest(1, 2)));
}

#[test]
fn rfc7857_2_2_a_reset_does_not_end_a_session() {
    let mut rig = Rig::new();
    let (end, outside) = (remote(1, 80), rig.connect(0, guest(1, 1), remote(1, 80)));
    assert_eq!(rig.inward(1, Tcp, outside, end, RST), Ok(guest(1, 1)), "a RST is passed on");
    assert_eq!(rig.napt.sessions(at(1), 9)[0].state, "transitory");
    // A forged one: the connection goes on.
    assert_eq!(rig.out(2, Tcp, guest(1, 1), end, ACK), Ok(outside));
    assert_eq!(rig.napt.sessions(at(2), 9)[0].state, "established");
    rig.expire(7000);
    assert_eq!(rig.inward(7000, Tcp, outside, end, ACK), Ok(guest(1, 1)));
    // A RST of no connection makes nothing and meets nothing.
    assert_eq!(rig.inward(7000, Tcp, outside, remote(1, 81), RST), NO_MAPPING);
    assert_eq!(rig.inward(7000, Tcp, outside, remote(2, 80), RST), FILTERED);
}

#[test]
fn rfc7857_a_closed_connection_can_be_opened_again() {
    let mut rig = Rig::new();
    let (end, outside) = (remote(1, 80), rig.connect(0, guest(1, 1), remote(1, 80)));
    rig.out(1, Tcp, guest(1, 1), end, FIN).unwrap();
    rig.inward(1, Tcp, outside, end, FIN).unwrap();
    assert_eq!(rig.connect(2, guest(1, 1), end), outside);
    rig.expire(5000);
    assert_eq!(rig.inward(5000, Tcp, outside, end, ACK), Ok(guest(1, 1)));
    assert_eq!(rig.napt.session_count(), 1);
}

#[test]
fn rfc5508_req1_and_req2_icmp_queries_are_mapped_for_a_minute() {
    let mut rig = Rig::new();
    let outside = rig.out(0, Icmp, guest(1, 77), remote(1, 0), NONE).unwrap();
    assert_eq!(rig.out(0, Icmp, guest(1, 77), remote(2, 0), NONE), Ok(outside));
    assert_ne!(rig.out(0, Icmp, guest(2, 77), remote(1, 0), NONE), Ok(outside));
    rig.expire(60);
    assert_eq!(rig.inward(60, Icmp, outside, remote(1, 0), NONE), Ok(guest(1, 77)));
    assert_eq!(rig.inward(60, Icmp, outside, remote(3, 0), NONE), FILTERED);
    rig.expire(64);
    assert_eq!(rig.inward(64, Icmp, outside, remote(1, 0), NONE), NO_MAPPING);
}

#[test]
fn rfc5508_req4_errors_from_outside_are_translated() {
    let mut rig = Rig::new();
    let end = remote(1, 53);
    for protocol in [Udp, Tcp, Icmp] {
        let outside = rig.out(0, protocol, guest(1, 1), end, SYN).unwrap();
        let mut error = |outside, end| rig.view.embedded_inbound(at(1), protocol, outside, end);
        assert_eq!(error(outside, end), Ok(guest(1, 1)));
        assert_eq!(error(outside, remote(2, 53)), NO_MAPPING, "nothing was sent there");
        assert_eq!(error(Endpoint::new(outside.address, outside.port ^ 1), end), NO_MAPPING);
        assert_eq!(error(Endpoint::new(external(9), outside.port), end), NO_MAPPING);
    }
}

#[test]
fn rfc5508_req5_errors_from_inside_are_translated() {
    let mut rig = Rig::new();
    let end = remote(1, 53);
    let outside = rig.out(0, Udp, guest(1, 1), end, NONE).unwrap();
    assert_eq!(rig.view.embedded_outbound(at(1), Udp, guest(1, 1), end), Ok(outside));
    assert_eq!(
        rig.view.embedded_outbound(at(1), Udp, guest(1, 1), remote(1, 99)),
        Ok(outside),
        "let in without"
    );
    assert_eq!(rig.view.embedded_outbound(at(1), Udp, guest(1, 2), end), NO_MAPPING);
    assert_eq!(rig.view.embedded_outbound(at(1), Tcp, guest(1, 1), end), NO_MAPPING);
}

#[test]
fn rfc5508_req6_errors_neither_end_nor_refresh() {
    let mut rig = Rig::new();
    let (end, outside) = (remote(1, 80), rig.connect(0, guest(1, 1), remote(1, 80)));
    let datagrams = rig.out(0, Udp, guest(1, 1), end, NONE).unwrap();
    for secs in (0..300).step_by(10) {
        assert!(rig.view.embedded_inbound(at(secs), Udp, datagrams, end).is_ok());
        assert!(rig.view.embedded_outbound(at(secs), Udp, guest(1, 1), end).is_ok());
        assert!(rig.view.embedded_inbound(at(secs), Tcp, outside, end).is_ok());
    }
    assert_eq!(rig.napt.sessions(at(301), 9).len(), 2);
    assert_eq!(rig.inward(303, Udp, datagrams, end, NONE), FILTERED);
    assert_eq!(rig.inward(303, Tcp, outside, end, ACK), Ok(guest(1, 1)));
}

#[test]
fn rfc6888_req4_a_guest_at_its_quota_stops_nobody_else() {
    let settings = Settings { sessions_per_host: 100, mappings_per_host: 10, ..Settings::new([1, 2]) };
    let mut rig = Rig::with(settings, &[1]);
    for port in 0..10 {
        rig.out(0, Udp, guest(1, port), remote(1, 53), NONE).unwrap();
    }
    assert_eq!(rig.out(0, Udp, guest(1, 10), remote(1, 53), NONE), QUOTA, "ports");
    assert!(rig.out(0, Tcp, guest(1, 10), remote(1, 53), SYN).is_ok(), "each protocol has its own");
    for port in 0..89 {
        rig.out(0, Udp, guest(1, 0), remote(2, port), NONE).unwrap();
    }
    assert_eq!(rig.out(0, Udp, guest(1, 0), remote(2, 1000), NONE), QUOTA, "sessions");
    assert_eq!(rig.out(0, Icmp, guest(1, 0), remote(2, 0), NONE), QUOTA);
    assert!(rig.out(0, Udp, guest(1, 0), remote(2, 5), NONE).is_ok(), "what is there goes on");
    for host in 2..100 {
        assert!(rig.out(0, Udp, guest(host, 1), remote(1, 53), NONE).is_ok());
    }
    // With the sessions go what they counted; the ports rest first.
    rig.expire(310);
    assert_eq!(rig.out(310, Udp, guest(1, 0), remote(1, 53), NONE), QUOTA);
    rig.expire(440);
    assert!(rig.out(440, Udp, guest(1, 0), remote(1, 53), NONE).is_ok());
}

#[test]
fn rfc6888_req4_all_guests_together_have_a_bound() {
    let settings = Settings { sessions_max: 50, ..Settings::new([1, 2]) };
    let mut rig = Rig::with(settings, &[1]);
    for i in 0..50 {
        rig.out(0, Udp, guest(i, 1), remote(1, 53), NONE).unwrap();
    }
    assert_eq!(rig.out(0, Udp, guest(60, 1), remote(1, 53), NONE), EXHAUSTED);
    rig.expire(303);
    assert!(rig.out(303, Udp, guest(60, 1), remote(1, 53), NONE).is_ok());
}

#[test]
fn rfc6888_req8_a_freed_port_rests() {
    let settings = Settings { mappings_per_host: 1 << 16, ..Settings::new([1, 2]) };
    let mut rig = Rig::with(settings, &[1]);
    for port in 0..=u16::MAX {
        rig.out(0, Icmp, guest(1, port), remote(1, 0), NONE).unwrap();
    }
    assert_eq!(rig.out(61, Icmp, guest(2, 1), remote(1, 0), NONE), EXHAUSTED);
    rig.expire(70);
    assert_eq!(rig.napt.session_count(), 0);
    assert_eq!(rig.out(189, Icmp, guest(2, 1), remote(1, 0), NONE), EXHAUSTED, "all rest");
    assert!(!rig.napt.is_idle());
    assert!(rig.out(191, Icmp, guest(2, 1), remote(1, 0), NONE).is_ok());
}

#[test]
fn rfc6056_ports_are_random_and_the_seed_decides() {
    let ports = |seed| {
        let mut rig = Rig::with(Settings::new(seed), &[1]);
        (0..1000).map(|i| rig.out(0, Tcp, guest(1, i), remote(1, 80), SYN).unwrap().port).collect::<Vec<_>>()
    };
    let first = ports([1, 2]);
    assert_eq!(first, ports([1, 2]));
    assert_ne!(first, ports([1, 3]));
    let mut eighths = [0; 8];
    first.iter().for_each(|port| eighths[usize::from(*port / 8192)] += 1);
    assert!(eighths.iter().all(|&n| n > 70), "{eighths:?}");
    let steps = first.windows(2).filter(|w| w[1].abs_diff(w[0]) < 64).count();
    assert!(steps < 20, "{steps} of 1,000 are beside the one before");
}

#[test]
fn an_outside_address_that_goes_takes_its_sessions_along() {
    let mut rig = Rig::new();
    let end = remote(1, 53);
    let outside = rig.out(0, Udp, guest(1, 1), end, NONE).unwrap();
    assert_eq!(rig.inward(0, Udp, outside, end, NONE), Ok(guest(1, 1)));
    rig.napt.set_externals(at(1), &[external(1), external(2)]);
    assert_eq!(rig.inward(1, Udp, outside, end, NONE), Ok(guest(1, 1)), "it stays");
    rig.napt.set_externals(at(2), &[external(2)]);
    assert_eq!(rig.inward(2, Udp, outside, end, NONE), NO_MAPPING);
    assert_eq!(rig.out(2, Udp, guest(1, 1), end, NONE).unwrap().address, external(2));
    rig.napt.set_externals(at(3), &[]);
    assert_eq!(rig.out(3, Udp, guest(1, 1), end, NONE), EXHAUSTED, "no address, nothing goes out");
    assert_eq!(rig.napt.session_count(), 0);
    rig.expire(130);
    for i in 0..16 {
        rig.expire(131 + i);
    }
    assert!(rig.napt.is_idle());
}

#[test]
fn sessions_are_listed_as_they_are() {
    let mut rig = Rig::new();
    let outside = rig.connect(0, guest(1, 1), remote(1, 80));
    rig.out(5, Udp, guest(1, 1), remote(1, 53), NONE).unwrap();
    let mut list = rig.napt.sessions(at(10), 9);
    list.sort_by_key(|session| session.protocol);
    assert_eq!(list.len(), 2);
    assert_eq!(list[0].inside, guest(1, 1).to_socket());
    assert_eq!(list[0].outside, outside.to_socket());
    assert_eq!(list[0].remote, remote(1, 80).to_socket());
    assert_eq!((list[0].state, list[1].state), ("established", "active"));
    let about =
        |idle: Duration, secs: u64| idle.abs_diff(Duration::from_secs(secs)) < Duration::from_millis(200);
    assert!(about(list[0].idle, 10) && about(list[1].idle, 5), "{list:?}");
    assert_eq!(rig.napt.sessions(at(10), 1).len(), 1);
}

#[test]
fn expiry_is_bounded_by_its_budget() {
    let mut rig = Rig::new();
    for port in 0..5000 {
        rig.out(0, Udp, guest(1, port), remote(1, 53), NONE).unwrap();
    }
    let mut calls = 0;
    let mut before = rig.napt.session_count();
    while rig.napt.expire(at(1000), 64) {
        let left = rig.napt.session_count();
        assert!(before - left <= 64);
        before = left;
        calls += 1;
    }
    assert_eq!(rig.napt.session_count(), 0);
    assert!(calls >= 5000 / 64, "{calls}");
}

#[test]
fn ipv6_is_the_same_code() {
    let napt = Arc::new(Napt::<Ipv6Addr>::new(Settings::new([1, 2])));
    let outside: Ipv6Addr = "2001:db8::1".parse().unwrap();
    napt.set_externals(Instant::ORIGIN, &[outside]);
    let mut view = View::new(Arc::clone(&napt));
    let end = |address: &str, port| Endpoint::new(address.parse::<Ipv6Addr>().unwrap(), port);
    let flow = Flow { protocol: Tcp, local: end("fd00::5", 1), remote: end("2001:db8:1::9", 80), flags: SYN };
    let translated = view.outbound(at(0), &flow).unwrap();
    assert_eq!(translated.address, outside);
    let reply = Flow { local: translated, flags: SYN_ACK, ..flow };
    assert_eq!(view.inbound(at(0), &reply), Ok(flow.local));
    assert_eq!(view.embedded_inbound(at(0), Tcp, translated, flow.remote), Ok(flow.local));
    let stranger = Flow { remote: end("2001:db8:1::8", 80), ..reply };
    assert_eq!(view.inbound(at(0), &stranger), Err(DropReason::NatFiltered));
    let forward = Forward {
        protocol: Tcp,
        address: None,
        port: 80,
        count: 1,
        target: "[fd00::5]:8080".parse().unwrap(),
    };
    napt.add_forward(at(0), &forward).unwrap();
    let request = Flow { local: Endpoint::new(outside, 80), flags: SYN, ..stranger };
    assert_eq!(view.inbound(at(0), &request), Ok(end("fd00::5", 8080)));
}
