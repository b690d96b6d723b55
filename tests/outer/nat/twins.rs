//! Two networks of one host with the same subnet, each behind an uplink of its own: neither knows of the other.

use anyhow::{Result, ensure};
use harness::{Daemon, Need, Netns, Suite, conservation, counters};

use super::rig::{Inside, OUTSIDE, at, namespace};
use super::talk::{Server, ask_tcp, ask_udp};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc];

pub(crate) fn register(suite: &mut Suite) {
    suite.add("nat_networks_with_the_same_subnet_are_apart", NEEDS, apart);
}

/// One of the two: its own outside, with the same addresses as the other's.
struct Side {
    outside: Netns,
    guest: Inside,
    other_guest: Inside,
}

impl Side {
    fn new(daemon: &Daemon, host: &Netns, network: &str) -> Result<Self> {
        let outside = namespace(network)?;
        host.veth(&format!("up-{network}"), &outside, "wan0", "203.0.113.254/24")?;
        outside.run("ip address add 2001:db8:1::fe/64 dev wan0")?;
        daemon.ok(&format!(
            "net add {network} mode=nat subnet=192.168.77.0/24 subnet6=fd77::/64 egress=uplink:up-{network} \
             address={OUTSIDE}/24 next-hop=203.0.113.254 address6=2001:db8:1::2/64 next-hop6=2001:db8:1::fe"
        ))?;
        let guest = Inside::on_tap(daemon, host, network, &format!("{network}-1"))?;
        let other_guest = Inside::on_tap(daemon, host, network, &format!("{network}-2"))?;
        Ok(Side { outside, guest, other_guest })
    }
}

fn apart() -> Result<()> {
    let host = namespace("host")?;
    let daemon = Daemon::start_in(&host)?;
    let (red, blue) = (Side::new(&daemon, &host, "red")?, Side::new(&daemon, &host, "blue")?);
    // The same leases, the same addresses outside, the same ports: nothing but the network tells them apart.
    ensure!(red.guest.address == blue.guest.address, "{} and {}", red.guest.address, blue.guest.address);
    ensure!(red.other_guest.address == blue.other_guest.address, "{}", blue.other_guest.address);
    let mut servers = Vec::new();
    for (name, side) in [("red", &red), ("blue", &blue)] {
        servers.push(Server::start(&side.outside, &format!("{name}-outside"), &[80])?);
        servers.push(Server::start(&side.guest.namespace, &format!("{name}-inside"), &[80])?);
        servers.push(Server::start(&side.other_guest.namespace, &format!("{name}-other"), &[80])?);
        for proto in ["tcp", "udp"] {
            daemon.ok(&format!("forward add {name} {proto} 8080 {}:80", side.guest.address))?;
        }
    }
    for round in 0..2 {
        for (name, side) in [("red", &red), ("blue", &blue)] {
            let guest = &side.guest.namespace;
            let told = [
                (ask_tcp(guest, "203.0.113.254:80")?, "outside"),
                (ask_udp(guest, "203.0.113.254:80", 4000)?, "outside"),
                (ask_tcp(&side.outside, &at(OUTSIDE, 8080))?, "inside"),
                (ask_udp(&side.outside, &at(OUTSIDE, 8080), 0)?, "inside"),
                (ask_tcp(&side.other_guest.namespace, &at(OUTSIDE, 8080))?, "inside"),
                (ask_tcp(guest, &format!("{}:80", side.other_guest.address))?, "other"),
            ];
            for (answer, who) in told {
                ensure!(answer.starts_with(&format!("{name}-{who} 80 from")), "round {round}: {answer}");
            }
        }
    }
    // What one does leaves no trace in the other: not in its ports, its sessions or its leases.
    let before = counters(&daemon, "blue-1")?;
    let sessions = daemon.json("nat sessions blue")?.as_array().map(Vec::len);
    red.guest.reaches("203.0.113.254")?;
    red.other_guest.reaches(&red.guest.address)?;
    ensure!(counters(&daemon, "blue-1")?.tx_frames <= before.tx_frames + 2, "red's frames went to blue");
    ensure!(
        daemon.json("nat sessions blue")?.as_array().map(Vec::len) == sessions,
        "blue has red's sessions"
    );
    // One's forward goes, the other's stays.
    daemon.ok(&format!("forward del red tcp 8080 {}:80", red.guest.address))?;
    ensure!(ask_tcp(&red.outside, &at(OUTSIDE, 8080)).is_err(), "a deleted forward still leads somewhere");
    let told = ask_tcp(&blue.outside, &at(OUTSIDE, 8080))?;
    ensure!(told.starts_with("blue-inside"), "{told}");
    conservation(&daemon)?;
    Ok(())
}
