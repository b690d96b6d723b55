//! A routed network with an interface of its own to the outside: what its segment sees of the guests, and what the
//! guests see of it.

use anyhow::{Result, ensure};
use harness::{Daemon, Need, Netns, Sniffer, Suite, conservation, counters};

use super::neighbours::{arping, discovered};
use super::{Guest, NET, ROUTER4, SUBNETS, reach, shown, unreachable};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Program("arping"), Need::Program("tcpdump")];
const HOPS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Program("traceroute")];

/// The segment's router, and what is behind it.
const LAN4: &str = "203.0.113.1";
const LAN6: &str = "2001:db8:1::1";
const WORLD4: &str = "198.51.100.7";
const WORLD6: &str = "2001:db8:f::7";

pub(super) fn register(suite: &mut Suite) {
    suite.add("routed_uplink_with_an_address_reaches_the_world_by_its_next_hop", HOPS, with_an_address);
    suite.add("routed_uplink_answers_its_segment_for_guests_only", NEEDS, answers);
    suite.add("routed_uplink_without_an_address_puts_guests_on_its_segment", NEEDS, without_an_address);
    suite.add("routed_uplink_drops_what_pretends_to_come_from_a_guest", NEEDS, pretended);
}

/// A daemon whose network's uplink leads to a segment with a router.
struct Rig {
    daemon: Daemon,
    host: Netns,
    lan: Netns,
}

impl Rig {
    fn new(keys: &str) -> Result<Self> {
        let (host, lan) = (Netns::new("host")?, Netns::new("lan")?);
        host.enable_ipv6()?;
        lan.enable_ipv6()?;
        host.veth("eth9", &lan, "eth0", &format!("{LAN4}/24"))?;
        lan.run(&format!(
            "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra
             ip address add {LAN6}/64 dev eth0; ip address add {WORLD4}/32 dev lo
             ip address add {WORLD6}/128 dev lo"
        ))?;
        let daemon = Daemon::start_in(&host)?;
        daemon.ok(&format!("net add {NET} mode=routed uplink=eth9 {keys}"))?;
        daemon.await_port("eth9", "up")?;
        Ok(Rig { daemon, host, lan })
    }

    fn addressed() -> Result<Self> {
        let rig = Self::new(&format!(
            "{SUBNETS} address=203.0.113.2/24 next-hop={LAN4} address6=2001:db8:1::2/64 next-hop6={LAN6}"
        ))?;
        rig.lan
            .run("ip route add 10.7.0.0/24 via 203.0.113.2; ip -6 route add fd00:7::/64 via 2001:db8:1::2")?;
        Ok(rig)
    }

    fn guest(&self, number: u8) -> Result<Guest> {
        Guest::new(&self.daemon, &self.host, number, "")
    }
}

fn with_an_address() -> Result<()> {
    let rig = Rig::addressed()?;
    let (a, b) = (rig.guest(10)?, rig.guest(20)?);
    for to in [LAN4, LAN6, WORLD4, WORLD6, &b.v4(), &b.v6(), ROUTER4] {
        reach(&a.namespace, to)?;
    }
    for to in [a.v4(), a.v6()] {
        reach(&rig.lan, &to)?;
    }
    let seen = a.run(&format!("traceroute -n -q 1 -N 1 -w 3 -m 6 {WORLD4}"))?;
    ensure!(seen.contains(&format!(" 1  {ROUTER4}")) && seen.contains(&format!(" 2  {WORLD4}")), "{seen}");
    // The host itself is on neither side.
    let interfaces = rig.host.interfaces()?;
    ensure!(!interfaces.contains(&NET.to_string()), "there is a host interface: {interfaces:?}");
    let routes = rig.host.run("ip route")?;
    ensure!(!routes.contains("10.7.0."), "the host routes to guests: {routes}");
    conservation(&rig.daemon)?;
    Ok(())
}

fn answers() -> Result<()> {
    let rig = Rig::addressed()?;
    // The segment's machines may think that the guests are among them.
    rig.lan.run("ip route replace 10.7.0.0/24 dev eth0; ip -6 route replace fd00:7::/64 dev eth0")?;
    let guest = rig.guest(10)?;
    let router = shown(&rig.daemon, "gateway_mac")?;
    let router = router.as_str();
    for address in [&guest.v4(), "203.0.113.2"] {
        let answer = arping(&rig.lan, "eth0", address)?;
        ensure!(answer.as_deref() == Some(router), "{address}: {answer:?}, the router is {router}");
    }
    for address in ["10.7.0.77", "203.0.113.9", "192.0.2.10"] {
        let answer = arping(&rig.lan, "eth0", address)?;
        ensure!(answer.is_none(), "{address} is no guest's, and {answer:?} answers");
    }
    for (address, expected) in [
        (guest.v6(), Some(router)),
        ("2001:db8:1::2".to_string(), Some(router)),
        ("fd00:7::77".to_string(), None),
        ("2001:db8:1::9".to_string(), None),
    ] {
        let answer = discovered(&rig.lan, "eth0", &address)?;
        ensure!(answer.as_deref() == expected, "{address}: {answer:?}, and not {expected:?}");
    }
    reach(&rig.lan, &guest.v4())?;
    reach(&rig.lan, &guest.v6())?;
    rig.daemon.ok("port del t10")?;
    ensure!(arping(&rig.lan, "eth0", &guest.v4())?.is_none(), "a guest that is gone is answered for");
    Ok(())
}

fn without_an_address() -> Result<()> {
    let rig = Rig::new("subnet=203.0.113.0/24 gateway=203.0.113.254")?;
    let mut sniffer = Sniffer::start(&rig.lan, "eth0", "arp")?;
    rig.daemon.ok(&format!("port add {NET} t10 tap:t10 ip=203.0.113.10"))?;
    // The segment is told where the guest is.
    sniffer.await_packet("203.0.113.10")?;
    let guest = Guest::without_addresses(&rig.host, 10)?;
    guest.run("ip address add 203.0.113.10/24 dev t10; ip route add default via 203.0.113.254")?;
    reach(&guest.namespace, LAN4)?;
    reach(&rig.lan, "203.0.113.10")?;
    let router = shown(&rig.daemon, "gateway_mac")?;
    let router = router.as_str();
    ensure!(arping(&rig.lan, "eth0", "203.0.113.10")?.as_deref() == Some(router));
    ensure!(arping(&rig.lan, "eth0", "203.0.113.77")?.is_none(), "nobody's address is answered for");
    // Without a next hop there is no way beyond the segment, and the guest is told so.
    let output = guest.namespace.try_run(&format!("ping -c 1 -W 3 {WORLD4}"))?;
    ensure!(
        output.stdout.contains("From 203.0.113.254") && output.stdout.contains("Unreachable"),
        "{output:?}"
    );
    unreachable(&guest.namespace, "203.0.113.99")?;
    conservation(&rig.daemon)?;
    Ok(())
}

fn pretended() -> Result<()> {
    let rig = Rig::addressed()?;
    let (a, b) = (rig.guest(10)?, rig.guest(20)?);
    reach(&rig.lan, &a.v4())?;
    for (source, to) in [(b.v4(), a.v4()), (ROUTER4.to_string(), a.v4()), (b.v6(), a.v6())] {
        rig.lan.run(&format!("ip address add {source} dev lo"))?;
        let before = counters(&rig.daemon, "eth9")?.dropped("rpf");
        let mut sniffer = Sniffer::start(&a.namespace, "t10", "icmp or icmp6")?;
        let output = rig.lan.try_run(&format!("ping -c 2 -i 0.2 -W 1 -I {source} {to}"))?;
        ensure!(output.code != 0, "{source} from outside is answered: {}", output.stdout);
        let got = counters(&rig.daemon, "eth9")?.dropped("rpf") - before;
        ensure!(got >= 2, "of 2 from {source}, {got} were counted as rpf");
        // What comes with an honest source is seen by the guest, and nothing but that.
        let honest = if to.contains(':') { LAN6 } else { LAN4 };
        reach(&rig.lan, &to)?;
        sniffer.await_packet(&format!("{honest} > {to}"))?;
        let seen =
            sniffer.packets().into_iter().find(|line| line.contains(&format!("{source} > {to}: ICMP")));
        ensure!(seen.is_none(), "{source}: the guest got {seen:?}");
        rig.lan.run(&format!("ip address del {source} dev lo"))?;
    }
    Ok(())
}
