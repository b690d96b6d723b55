//! Internal networks: guests reach each other by every protocol, and neither the host nor anything outside by any.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, Need, Netns, Sniffer, Suite, conservation, eventually, process};

const NEEDS: &[Need] =
    &[Need::Namespaces, Need::Ping, Need::Program("nmap"), Need::Program("tcpdump"), Need::Scapy];

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// The host's and the outside's addresses.
const HOST4: &str = "198.51.100.1";
const HOST6: &str = "2001:db8:f::1";
const OUTSIDE4: &str = "198.51.100.2";
const OUTSIDE6: &str = "2001:db8:f::2";
/// Debian's, which has scapy.
const PYTHON: &str = "/usr/bin/python3";

pub(crate) fn register(suite: &mut Suite) {
    suite.add("internal_nothing_but_guests_is_reached_without_a_gateway", NEEDS, || apart(""));
    suite.add("internal_nothing_but_guests_is_reached_with_dhcp_dns_and_advertisements", NEEDS, || {
        apart("subnet=10.8.0.0/24 subnet6=fd00:8::/64 dhcp=10.8.0.100-10.8.0.110 dns=on")
    });
}

/// A host that forwards all that it gets, an outside that it knows, and two guests of an internal network.
struct World {
    daemon: Daemon,
    host: Netns,
    outside: Netns,
    a: Netns,
    b: Netns,
}

impl World {
    fn new(keys: &str) -> Result<Self> {
        let (host, outside) = (Netns::new("host")?, Netns::new("outside")?);
        host.enable_ipv6()?;
        outside.enable_ipv6()?;
        // Nobody on this link says anything that was not asked for: no link-local addresses, and known neighbours.
        for namespace in [&host, &outside] {
            namespace.run("cd /proc/sys/net/ipv6/conf/default; echo 0 >accept_ra; echo 1 >addr_gen_mode")?;
        }
        host.run("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")?;
        host.veth("out0", &outside, "eth0", &format!("{OUTSIDE4}/24"))?;
        host.run(&format!("ip address add {HOST4}/24 dev out0; ip address add {HOST6}/64 dev out0"))?;
        outside.run(&format!(
            "ip address add {OUTSIDE6}/64 dev eth0
             ip route add default via {HOST4}; ip -6 route add default via {HOST6}"
        ))?;
        for (namespace, interface, addresses, other, far) in [
            (&host, "out0", [OUTSIDE4, OUTSIDE6], &outside, "eth0"),
            (&outside, "eth0", [HOST4, HOST6], &host, "out0"),
        ] {
            let mac = mac(other, far)?;
            for address in addresses {
                namespace.run(&format!(
                    "ip neighbour replace {address} lladdr {mac} nud permanent dev {interface}"
                ))?;
            }
        }
        let daemon = Daemon::start_in(&host)?;
        daemon.ok(&format!("net add i0 mode=internal {keys}"))?;
        let a = guest(&daemon, &host, 10)?;
        let b = guest(&daemon, &host, 20)?;
        for to in ["10.8.0.20", "fd00:8::20"] {
            reach(&a, to)?;
        }
        reach(&host, OUTSIDE4)?;
        reach(&outside, HOST6)?;
        Ok(World { daemon, host, outside, a, b })
    }

    /// The gateway's MAC address, if there is a gateway.
    fn gateway(&self) -> Result<Option<String>> {
        let network = self.daemon.json("net show i0")?;
        Ok(network["resolved"]["gateway_mac"].as_str().map(str::to_string))
    }
}

/// A guest that takes another guest for its way to everywhere, unless it is told better.
fn guest(daemon: &Daemon, host: &Netns, number: u8) -> Result<Netns> {
    let name = format!("t{number}");
    let namespace = Netns::new(&name)?;
    namespace.enable_ipv6()?;
    daemon.ok(&format!("port add i0 {name} tap:{name}"))?;
    namespace.adopt(host, &name, &format!("10.8.0.{number}/24"))?;
    namespace.run(&format!("ip address add fd00:8::{number}/64 dev {name}"))?;
    daemon.await_port(&name, "up")?;
    Ok(namespace)
}

fn mac(namespace: &Netns, interface: &str) -> Result<String> {
    Ok(namespace.run(&format!("cat /sys/class/net/{interface}/address"))?.trim().to_string())
}

fn reach(from: &Netns, to: &str) -> Result<()> {
    eventually(&format!("{}'s ping of {to}", from.name()), LIMIT, || {
        let output = from.try_run(&format!("ping -c 1 -W 1 {to}"))?;
        Ok(if output.code == 0 { Ok(()) } else { Err(output.stdout) })
    })
}

/// Runs nmap; what it found, one line for each host that it takes for up, with its ports.
fn nmap(from: &Netns, arguments: &str) -> Result<String> {
    let mut command = from.command("nmap");
    command.args(["-n", "-oG", "-", "--max-retries", "1", "-T4"]).args(arguments.split_whitespace());
    process::run(&mut command, LIMIT)?.ok().with_context(|| format!("nmap {arguments}"))
}

/// The hosts that nmap found something of.
fn found(output: &str) -> Vec<&str> {
    let something = |line: &&str| line.contains("/open/") || line.contains("Status: Up");
    output.lines().filter(something).collect()
}

/// What a guest sends that no honest one would: by layer 2, to everybody it can name.
///
/// Arguments: the interface, its neighbour's MAC address, the gateway's (or the neighbour's again), the host's on its
/// outer link, the outside's.
const FRAMES: &str = r#"
import sys
from scapy.all import *
iface, neighbour, gateway, host, outside = sys.argv[1:]
own = get_if_hwaddr(iface)
everybody = "ff:ff:ff:ff:ff:ff"
macs = [neighbour, gateway, host, outside, everybody]
frames = []
# Other link protocols: loopback test, LLDP, EAPOL, MPLS, PPPoE, AoE, PTP, experimental, STP and CDP by LLC, VLANs.
for kind in (0x9000, 0x88cc, 0x888e, 0x8847, 0x8863, 0x88a2, 0x88f7, 0x88b5):
    for mac in macs + ["01:80:c2:00:00:0e", "01:80:c2:00:00:00", "01:1b:19:00:00:00"]:
        frames.append(Ether(src=own, dst=mac, type=kind) / Raw(b"internal" * 8))
frames.append(Dot3(src=own, dst="01:80:c2:00:00:00") / LLC() / STP())
frames.append(Dot3(src=own, dst="01:00:0c:cc:cc:cc") / LLC(dsap=0xaa, ssap=0xaa, ctrl=3) / Raw(b"internal" * 8))
for vid in (0, 1, 100):
    frames.append(Ether(src=own, dst=everybody) / Dot1Q(vlan=vid) / ARP(psrc="10.8.0.10", pdst="198.51.100.1"))
# Questions for addresses of the host and of outside, and answers that nobody asked for.
for ip in ("198.51.100.1", "198.51.100.2", "127.0.0.1", "10.8.0.1", "0.0.0.0"):
    frames.append(Ether(src=own, dst=everybody) / ARP(hwsrc=own, psrc="10.8.0.10", pdst=ip))
    frames.append(Ether(src=own, dst=everybody) / ARP(op=2, hwsrc=own, psrc=ip, pdst=ip))
    frames.append(Ether(src=host, dst=everybody) / ARP(op=2, hwsrc=host, psrc=ip, pdst="10.8.0.10"))
# Packets for the host and the outside, by every station, from its own address and from others'.
for mac in macs:
    for source in ("10.8.0.10", "10.8.0.99", "198.51.100.1", "198.51.100.77", "127.0.0.1", "0.0.0.0"):
        for to in ("198.51.100.1", "198.51.100.2", "255.255.255.255", "224.0.0.1", "127.0.0.1"):
            packet = Ether(src=own, dst=mac) / IP(src=source, dst=to)
            frames += [packet / ICMP(), packet / UDP(sport=53, dport=53) / Raw(b"x" * 20)]
            frames += [packet / TCP(sport=4000, dport=22, flags="S"), packet / GRE(), packet / Raw(b"x" * 40)]
    for source in ("fd00:8::10", "fe80::10", "2001:db8:f::1", "::1", "::"):
        for to in ("2001:db8:f::1", "2001:db8:f::2", "ff02::1", "ff02::2", "ff02::fb", "ff05::1", "::1"):
            packet = Ether(src=own, dst=mac) / IPv6(src=source, dst=to, hlim=255)
            frames += [packet / ICMPv6EchoRequest(), packet / UDP(sport=547, dport=547) / Raw(b"x" * 20)]
            frames += [packet / TCP(sport=4000, dport=22, flags="S"), packet / ICMPv6ND_RA(), packet / ICMPv6ND_RS()]
            frames += [packet / ICMPv6ND_NS(tgt="2001:db8:f::1"), packet / ICMPv6ND_NA(tgt="2001:db8:f::2")]
# Source routes, and a packet in a packet.
frames.append(Ether(src=own, dst=gateway) / IP(src="10.8.0.10", dst="10.8.0.1", options=IPOption(b"\x83\x07\x04\xc6\x33\x64\x02")) / ICMP())
frames.append(Ether(src=own, dst=gateway) / IP(src="10.8.0.10", dst="10.8.0.1", proto=4) / IP(src="10.8.0.10", dst="198.51.100.2") / ICMP())
# As if it were another station.
for mac in (host, outside, gateway, neighbour, "00:00:00:00:00:00", "01:00:5e:00:00:01"):
    frames.append(Ether(src=mac, dst=everybody) / IP(src="198.51.100.1", dst="198.51.100.2") / ICMP())
conf.verb = 0
sendp(frames, iface=iface)
print(len(frames))
"#;

fn apart(keys: &str) -> Result<()> {
    let world = World::new(keys)?;
    let neighbour = mac(&world.b, "t20")?;
    let gateway = world.gateway()?;
    ensure!(gateway.is_some() != keys.is_empty(), "{gateway:?}");
    let gateway = gateway.unwrap_or_else(|| neighbour.clone());
    let (host_mac, outside_mac) = (mac(&world.host, "out0")?, mac(&world.outside, "eth0")?);

    // The host has nothing on the network, whatever its taps are called: only what it had, and those of guests went.
    let mut interfaces = world.host.interfaces()?;
    interfaces.sort();
    ensure!(interfaces == ["lo", "out0"], "the host has {interfaces:?}");
    let at_host = Sniffer::start(&world.host, "any", "")?;
    let mut at_outside = Sniffer::start(&world.outside, "any", "")?;

    // Whatever way a guest takes for right: its neighbour, or the gateway where there is one.
    let via = if keys.is_empty() { "10.8.0.20" } else { "10.8.0.1" };
    let via6 = if keys.is_empty() { "fd00:8::20" } else { "fd00:8::1" };
    world.a.run(&format!(
        "ip route add default via {via}; ip -6 route replace default via {via6} dev t10 metric 1"
    ))?;
    let targets = format!("{HOST4} {OUTSIDE4}");
    for scan in [
        "-Pn -sT -p 22,53,80,5201",
        "-Pn -sS -p 22,53,80,5201",
        "-Pn -sU -p 53,67,123",
        "-Pn -sO -p 1,2,4,6,17,41,47,50,89,132",
        "-sn -PE -PP -PS22 -PA80 -PU53",
    ] {
        let output = nmap(&world.a, &format!("{scan} {targets}"))?;
        let up: Vec<&str> = found(&output).into_iter().filter(|line| !line.contains("Status: Up")).collect();
        ensure!(up.is_empty(), "nmap {scan} {targets} found {up:?}");
    }
    for scan in ["-6 -Pn -sT -p 22,53,80", "-6 -Pn -sS -p 22,53,80", "-6 -Pn -sU -p 53"] {
        let output = nmap(&world.a, &format!("{scan} {HOST6} {OUTSIDE6}"))?;
        let up: Vec<&str> = found(&output).into_iter().filter(|line| !line.contains("Status: Up")).collect();
        ensure!(up.is_empty(), "nmap {scan} found {up:?}");
    }
    // On the link, as far as the guest knows: asked for by ARP and discovery.
    world.a.run("ip route add 198.51.100.0/24 dev t10; ip -6 route add 2001:db8:f::/64 dev t10")?;
    let output = nmap(&world.a, &format!("-sn -PR -e t10 {targets}"))?;
    ensure!(found(&output).is_empty(), "an ARP scan found {output}");
    for to in [HOST4, OUTSIDE4, HOST6, OUTSIDE6] {
        let output = world.a.try_run(&format!("ping -c 1 -W 1 {to}"))?;
        ensure!(output.code != 0, "{to} answers: {}", output.stdout);
    }
    let mut command = world.a.command(PYTHON);
    command.args(["-c", FRAMES, "t10", &neighbour, &gateway, &host_mac, &outside_mac]);
    let sent: u32 = process::run(&mut command, LIMIT)?.ok()?.trim().parse()?;
    ensure!(sent > 1000, "only {sent} frames were sent");

    // One packet of the outside's own: tcpdump sees what there is, and saw nothing before.
    world.outside.run(&format!("ping -c 1 -W 5 -p 7765667465 {HOST4}"))?;
    at_outside.await_packet(&format!("{OUTSIDE4} > {HOST4}: ICMP echo request"))?;
    for (sniffer, at) in [(at_host, "the host"), (at_outside, "the outside")] {
        let seen = sniffer.finish()?;
        let own = |line: &&String| {
            let between =
                [format!("{OUTSIDE4} > {HOST4}: ICMP echo"), format!("{HOST4} > {OUTSIDE4}: ICMP echo")];
            // Which groups it is in, each tells again after some time; no guest sends this here.
            between.iter().any(|text| line.contains(text)) || line.contains("multicast listener report")
        };
        let control = seen.iter().filter(|line| line.contains("ICMP echo request")).count();
        ensure!(control == 1, "{at} saw {control} of the test's own pings");
        let foreign: Vec<&String> = seen.iter().filter(|line| !own(line)).collect();
        ensure!(foreign.is_empty(), "{at} saw {foreign:#?}");
    }
    among_guests(&world, &neighbour)?;
    conservation(&world.daemon)?;
    Ok(())
}

/// Guests find each other by the same means.
fn among_guests(world: &World, neighbour: &str) -> Result<()> {
    let mut server = harness::Program::start(&world.b, "busybox", &["nc", "-ll", "-p", "2222", "-e", "cat"])?;
    world.b.run("for i in $(seq 200); do ss -Hltn | grep -q :2222 && exit 0; sleep 0.05; done; exit 1")?;
    for (scan, expected) in [
        ("-Pn -sT -p 2222 10.8.0.20", "2222/open/tcp"),
        ("-Pn -sS -p 2222 10.8.0.20", "2222/open/tcp"),
        ("-6 -Pn -sS -p 2222 fd00:8::20", "2222/open/tcp"),
        ("-Pn -sU -p 9 10.8.0.20", "9/closed/udp"),
        ("-Pn -sO -p 1 10.8.0.20", "1/open/icmp"),
        ("-sn -PR -e t10 10.8.0.20", "Status: Up"),
    ] {
        let output = nmap(&world.a, scan)?;
        ensure!(output.contains(expected), "nmap {scan} does not find {expected}: {output}");
    }
    server.kill();
    // Other link protocols and groups, too, but for those that no bridge passes on.
    let mut sniffer = Sniffer::start(&world.b, "t20", "")?;
    let script = "
import sys
from scapy.all import *
conf.verb = 0
own = get_if_hwaddr('t10')
sendp([Ether(src=own, dst='01:80:c2:00:00:0e', type=0x88cc) / Raw(b'reserved'),
       Ether(src=own, dst=sys.argv[1], type=0x88b5) / Raw(b'for you'),
       Ether(src=own, dst='33:33:00:00:00:01') / IPv6(src='fe80::10', dst='ff02::1', hlim=255) / ICMPv6EchoRequest(id=77),
       Ether(src=own, dst='ff:ff:ff:ff:ff:ff', type=0x88b6) / Raw(b'for all')], iface='t10')";
    let mut command = world.a.command(PYTHON);
    command.args(["-c", script, neighbour]);
    process::run(&mut command, LIMIT)?.ok()?;
    for kind in ["0x88b5", "fe80::10 > ff02::1: ICMP6, echo request, id 77", "0x88b6"] {
        sniffer.await_packet(kind)?;
    }
    let reserved =
        sniffer.packets().into_iter().find(|line| line.contains("LLDP") || line.contains("0x88cc"));
    ensure!(reserved.is_none(), "a reserved group was passed on: {reserved:?}");
    Ok(())
}
