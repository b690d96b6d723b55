//! The plan of a move, on a host that is a model: whatever the host has, and however far the move comes, undoing it
//! gives the host back as it was.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use proptest::prelude::*;

use super::execute::{aged, recognise};
use super::plan::{End, Flag, Identity, Item, Plan, SYSCTLS, Side, Step, plan, sysctl_path};
use super::survey::{managers, network_root};
use super::*;
use crate::host::netlink::address::{Address, Lifetime};
use crate::host::netlink::link::Link;
use crate::host::netlink::neighbour::{Knowledge, Neighbour};
use crate::host::netlink::route::{BY_KERNEL, MAIN, Route};

/// An interface of the model, with the kernel's habits that matter: addresses make routes to their prefixes and take
/// them along, routes need a way to their gateways, turning ARP on or off forgets neighbours, turning IPv6 off
/// forgets all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interface {
    mac: [u8; 6],
    up: bool,
    arp: bool,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    neighbours: BTreeMap<IpAddr, Neighbour>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    nic: Interface,
    host_if: Interface,
    sysctls: BTreeMap<String, String>,
}

impl Host {
    fn end(&mut self, end: End) -> &mut Interface {
        match end {
            End::Nic => &mut self.nic,
            End::HostIf => &mut self.host_if,
        }
    }

    /// Does a step as the kernel would; `undoing` allows for what is not as the step expects.
    fn perform(&mut self, step: &Step, undoing: bool) -> Result<(), String> {
        match step {
            Step::Sysctl { path, from, to } => {
                if undoing && self.sysctls.get(path) != Some(from) {
                    return Ok(());
                }
                self.sysctls.insert(path.clone(), to.clone());
                for (end, name) in [(End::Nic, "eth0"), (End::HostIf, "xenbr0")] {
                    if *path == sysctl_path(name, "ipv6/disable_ipv6") && to == "1" {
                        let interface = self.end(end);
                        interface.addresses.retain(|address| address.address.is_ipv4());
                        interface.routes.retain(|route| route.destination.is_ipv4());
                        interface.neighbours.retain(|address, _| address.is_ipv4());
                    }
                }
            }
            Step::Mac { from, to } => {
                if !undoing || (from != to && self.host_if.mac == *from) {
                    self.host_if.mac = *to;
                    self.host_if.neighbours.retain(|_, n| n.knowledge == Knowledge::Permanent);
                }
            }
            Step::Flag { on, flag: Flag::Up, to } => self.end(*on).up = *to,
            Step::Flag { on, flag: Flag::Arp, to } => {
                let interface = self.end(*on);
                if interface.arp != *to {
                    interface.neighbours.retain(|address, _| address.is_ipv6());
                }
                interface.arp = *to;
            }
            Step::Put { on, item } => return self.put(*on, item),
            Step::Take { from, item } => self.take(*from, item),
        }
        Ok(())
    }

    fn put(&mut self, on: End, item: &Item) -> Result<(), String> {
        let name = if on == End::Nic { "eth0" } else { "xenbr0" };
        let no_ipv6 = self.sysctls.get(&sysctl_path(name, "ipv6/disable_ipv6")).is_some_and(|v| v == "1");
        let interface = self.end(on);
        match item {
            Item::Address(address) => {
                if address.address.is_ipv6() && no_ipv6 {
                    return Err(format!("{address}: IPv6 is off on {name}"));
                }
                if !interface.addresses.iter().any(|other| other.same(address)) {
                    // IPv4 behind IPv4, IPv6 before what is of no wider scope.
                    let narrow =
                        |a: &Address| matches!(a.address, IpAddr::V6(a) if a.is_unicast_link_local());
                    let place = interface.addresses.iter().position(|other| match address.address {
                        IpAddr::V4(_) => other.address.is_ipv6(),
                        IpAddr::V6(_) => other.address.is_ipv6() && (narrow(other) || !narrow(address)),
                    });
                    interface.addresses.insert(place.unwrap_or(interface.addresses.len()), address.clone());
                }
            }
            Item::Route(route) => {
                if !interface.up {
                    return Err(format!("{route}: {name} is down"));
                }
                if let Some(gateway) = route.gateway
                    && !route.onlink
                {
                    let by_address = interface.addresses.iter().any(|address| {
                        address.makes_prefix_route() && address.network().is_some_and(|n| n.contains(gateway))
                    });
                    let by_route = interface
                        .routes
                        .iter()
                        .any(|other| other.gateway.is_none() && other.destination.contains(gateway));
                    if !by_address && !by_route {
                        return Err(format!("{route}: no way to its gateway by {name}"));
                    }
                }
                if !interface.routes.iter().any(|other| other.same(route)) {
                    interface.routes.push(route.clone());
                }
            }
            Item::Neighbours(neighbours) => {
                interface.neighbours.extend(neighbours.iter().map(|n| (n.address, n.clone())));
            }
        }
        Ok(())
    }

    fn take(&mut self, from: End, item: &Item) {
        let interface = self.end(from);
        match item {
            Item::Address(address) => {
                // A primary address takes the secondary ones of its prefix along.
                let Some(at) = interface.addresses.iter().position(|other| other.same(address)) else {
                    return;
                };
                let network = address.network();
                let primary = !interface.addresses[..at].iter().any(|other| other.network() == network);
                interface.addresses.remove(at);
                if primary && address.address.is_ipv4() {
                    interface.addresses.retain(|other| other.network() != network);
                }
            }
            Item::Route(route) => interface.routes.retain(|other| !other.same(route)),
            Item::Neighbours(neighbours) => {
                for neighbour in neighbours {
                    interface.neighbours.remove(&neighbour.address);
                }
            }
        }
    }

    /// The interface as the plan sees it, with the routes that the kernel makes.
    fn side(&self, end: End) -> Side {
        let (name, index, interface) = match end {
            End::Nic => ("eth0", 2, &self.nic),
            End::HostIf => ("xenbr0", 3, &self.host_if),
        };
        let mut routes = interface.routes.clone();
        for address in interface.addresses.iter().filter(|address| address.makes_prefix_route()) {
            let made = Route::on_link(address.network().unwrap(), Some(address.address), BY_KERNEL);
            routes.push(made);
        }
        let value = |name: &&'static str| {
            Some((*name, self.sysctls.get(&sysctl_path(self.name(end), name))?.clone()))
        };
        Side {
            identity: Identity { name: name.into(), index, mac: interface.mac },
            up: interface.up,
            arp: interface.arp,
            addresses: interface.addresses.clone(),
            routes,
            neighbours: interface.neighbours.values().cloned().collect(),
            sysctls: SYSCTLS.iter().filter_map(value).collect(),
        }
    }

    fn name(&self, end: End) -> &'static str {
        match end {
            End::Nic => "eth0",
            End::HostIf => "xenbr0",
        }
    }

    fn plan(&self) -> Plan {
        plan(&self.side(End::Nic), &self.side(End::HostIf), 100)
    }

    /// Undoes the steps that were begun, as [`Site::undo`] does.
    fn undo(&mut self, plan: &Plan, begun: usize) {
        for step in plan.steps[..begun].iter().rev() {
            self.perform(&step.opposite(), true).unwrap_or_else(|why| panic!("undoing {step:?}: {why}"));
        }
    }

    /// The model without an order that nobody sees.
    fn sorted(mut self) -> Self {
        for interface in [&mut self.nic, &mut self.host_if] {
            interface.routes.sort_by_key(|route| serde_json::to_string(route).unwrap());
        }
        self
    }
}

fn address(text: &str) -> Address {
    Address::new(text.parse().unwrap())
}

fn noprefix(text: &str) -> Address {
    Address { flags: 0x200, ..address(text) }
}

fn via(destination: &str, gateway: &str, metric: u32) -> Route {
    let gateway: IpAddr = gateway.parse().unwrap();
    let mut route = Route::on_link(destination.parse().unwrap(), None, 3);
    (route.gateway, route.metric, route.scope) = (Some(gateway), Some(metric), 0);
    route
}

fn on_link(destination: &str) -> Route {
    Route::on_link(destination.parse().unwrap(), None, 3)
}

fn neighbour(text: &str, knowledge: Knowledge) -> Neighbour {
    let address: IpAddr = text.parse().unwrap();
    Neighbour { address, mac: Some([2, 0, 0, 0, 9, 9]), knowledge }
}

/// Everything that a generated host may have.
fn all_addresses() -> Vec<Address> {
    vec![
        address("192.0.2.10/24"),
        address("192.0.2.11/24"),
        address("10.0.0.1/8"),
        address("10.0.0.2/8"),
        noprefix("172.16.0.1/16"),
        address("198.51.100.1/32"),
        address("fd00:2::10/64"),
        address("fd00:2::11/64"),
        address("fd00:3::1/64"),
        address("fe80::1/64"),
        Address { lifetime: Some(Lifetime { preferred: 50, valid: 100 }), ..address("192.0.2.12/24") },
    ]
}

fn all_routes() -> Vec<Route> {
    vec![
        via("0.0.0.0/0", "192.0.2.1", 0),
        via("0.0.0.0/0", "192.0.2.2", 100),
        Route { onlink: true, ..via("203.0.113.0/24", "198.18.0.1", 0) },
        Route { table: 77, ..via("203.0.113.0/24", "10.9.9.9", 5) },
        on_link("198.18.0.0/24"),
        via("198.19.0.0/16", "198.18.0.7", 0),
        via("::/0", "fe80::99", 1024),
        via("fd00:99::/48", "fd00:2::1", 9),
    ]
}

prop_compose! {
    fn hosts()(
        addresses in proptest::sample::subsequence(all_addresses(), 0..=11),
        routes in proptest::sample::subsequence(all_routes(), 0..=8).prop_shuffle(),
        known in proptest::sample::subsequence(vec![
            neighbour("192.0.2.1", Knowledge::Reachable),
            neighbour("192.0.2.200", Knowledge::Permanent),
            neighbour("fd00:2::200", Knowledge::Permanent),
        ], 0..=3),
        also in proptest::sample::subsequence(all_addresses(), 0..=2),
        knows in any::<bool>(),
        (up, same_mac, ipv6_off, filter) in (any::<bool>(), any::<bool>(), any::<bool>(), 0..3_u8),
    ) -> Host {
        let interface = |mac, up| Interface {
            mac, up, arp: true, addresses: vec![], routes: vec![], neighbours: BTreeMap::new(),
        };
        let nic_mac = [2, 0, 0, 0, 0, 1];
        let mut host = Host {
            nic: interface(nic_mac, true),
            host_if: interface(if same_mac { nic_mac } else { [2, 0, 0, 0, 0, 2] }, up),
            sysctls: BTreeMap::new(),
        };
        for (name, value) in [
            (sysctl_path("eth0", "ipv4/rp_filter"), filter.to_string()),
            (sysctl_path("xenbr0", "ipv4/rp_filter"), "0".to_owned()),
            (sysctl_path("xenbr0", "ipv4/arp_notify"), "0".to_owned()),
            (sysctl_path("eth0", "ipv6/disable_ipv6"), "0".to_owned()),
            (sysctl_path("xenbr0", "ipv6/disable_ipv6"), u8::from(ipv6_off).to_string()),
        ] {
            host.sysctls.insert(name, value);
        }
        for address in addresses {
            host.put(End::Nic, &Item::Address(address)).unwrap();
        }
        for address in also {
            // Where IPv6 is off, it has none.
            let _ = host.put(End::HostIf, &Item::Address(address));
        }
        for route in routes.iter().chain(&routes) {
            // Those that the kernel would not have taken are not there; in two rounds, for the order.
            let _ = host.put(End::Nic, &Item::Route(route.clone()));
        }
        host.put(End::Nic, &Item::Neighbours(known.clone())).unwrap();
        if knows {
            let mut permanent = known;
            permanent.retain(|n| n.knowledge == Knowledge::Permanent && (n.address.is_ipv4() || !ipv6_off));
            host.put(End::HostIf, &Item::Neighbours(permanent)).unwrap();
        }
        host
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Every step goes, and afterwards everything that the NIC had is on the host interface.
    #[test]
    fn a_move_moves_everything(host in hosts()) {
        let plan = host.plan();
        let mut after = host.clone();
        for step in &plan.steps {
            if let Err(why) = after.perform(step, false) {
                return Err(TestCaseError::fail(format!("{step:?}: {why}")));
            }
        }
        prop_assert!(after.nic.addresses.is_empty() && after.nic.routes.is_empty());
        prop_assert!(!after.nic.arp && after.nic.neighbours.is_empty());
        prop_assert_eq!(after.host_if.mac, host.nic.mac);
        for address in &host.nic.addresses {
            prop_assert!(after.host_if.addresses.iter().any(|other| other.same(address)), "{}", address);
        }
        for route in &host.nic.routes {
            prop_assert!(after.host_if.routes.contains(route), "{}", route);
        }
        for neighbour in host.nic.neighbours.values() {
            prop_assert_eq!(after.host_if.neighbours.get(&neighbour.address), Some(neighbour));
        }
    }

    /// Undone after any number of steps, the last of them done or only begun, the host is as it was.
    #[test]
    fn undone_anywhere_the_host_is_as_it_was(host in hosts(), far in 0_usize..100, begun_only in any::<bool>()) {
        let plan = host.plan();
        let begun = far % (plan.steps.len() + 1);
        let done = if begun_only { begun.saturating_sub(1) } else { begun };
        let mut after = host.clone();
        for step in &plan.steps[..done] {
            after.perform(step, false).unwrap();
        }
        after.undo(&plan, begun);
        let want = host.clone().sorted();
        prop_assert_eq!(&after.clone().sorted(), &want);
        // Undone twice is undone.
        after.undo(&plan, begun);
        prop_assert_eq!(&after.sorted(), &want);
    }

    /// At no moment is the host without what it had: each address is on one of the two, and each route.
    #[test]
    fn at_no_moment_is_anything_nowhere(host in hosts(), back in any::<bool>()) {
        let plan = host.plan();
        let mut now = host.clone();
        let mut steps: Vec<(Step, bool)> = plan.steps.iter().map(|step| (step.clone(), false)).collect();
        if back {
            steps.extend(plan.steps.iter().rev().map(|step| (step.opposite(), true)));
        }
        for (step, undoing) in steps {
            now.perform(&step, undoing).unwrap();
            for address in &host.nic.addresses {
                let on = |i: &Interface| i.addresses.iter().any(|other| other.same(address));
                prop_assert!(on(&now.nic) || on(&now.host_if), "{} after {:?}", address, step);
            }
            for route in &host.nic.routes {
                prop_assert!(now.nic.routes.contains(route) || now.host_if.routes.contains(route), "{}", route);
            }
        }
    }

    /// The journal gives a plan back as it was.
    #[test]
    fn a_plan_survives_the_journal(host in hosts()) {
        let plan = host.plan();
        let text = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}

#[test]
fn routes_that_the_kernel_makes_are_not_moved_and_others_are() {
    let mut side = Host {
        nic: Interface {
            mac: [2; 6],
            up: true,
            arp: true,
            addresses: vec![address("192.0.2.10/24"), noprefix("10.0.0.1/8")],
            routes: vec![],
            neighbours: BTreeMap::new(),
        },
        host_if: Interface {
            mac: [4; 6],
            up: true,
            arp: true,
            addresses: vec![],
            routes: vec![],
            neighbours: BTreeMap::new(),
        },
        sysctls: BTreeMap::new(),
    }
    .side(End::Nic);
    let by_hand = Route::on_link("10.0.0.0/8".parse().unwrap(), None, BY_KERNEL);
    side.routes.push(by_hand.clone());
    assert_eq!(side.routes.len(), 2);
    assert_eq!(side.made_routes(), vec![by_hand]);
    // The same in another table is somebody's.
    let mut other = side.routes[0].clone();
    assert_eq!(other.table, MAIN);
    other.table = 9;
    side.routes.push(other.clone());
    assert!(side.made_routes().contains(&other));
}

#[test]
fn lifetimes_go_on() {
    let leased =
        Address { lifetime: Some(Lifetime { preferred: 50, valid: 100 }), ..address("192.0.2.1/24") };
    let left = |elapsed| aged(&leased, None, elapsed).map(|address| address.lifetime);
    assert_eq!(left(30), Some(Some(Lifetime { preferred: 20, valid: 70 })));
    assert_eq!(left(60), Some(Some(Lifetime { preferred: 0, valid: 40 })));
    assert_eq!(left(100), None);
    let renewed = Address { lifetime: Some(Lifetime { preferred: 500, valid: 600 }), ..leased.clone() };
    assert_eq!(aged(&leased, Some(&renewed), 1000), Some(renewed));
    let forever = address("192.0.2.1/24");
    assert_eq!(aged(&forever, Some(&leased), 1000), Some(forever.clone()));
    assert_eq!(aged(&forever, None, 1000), Some(forever));
}

fn link(index: u32, name: &str, mac: u8) -> Link {
    Link {
        index,
        name: name.into(),
        mac: Some(switch_core::MacAddr([mac; 6])),
        ethernet: true,
        loopback: false,
        up: true,
        carrier: true,
        arp: true,
        master: None,
        lower: None,
        kind: String::new(),
    }
}

#[test]
fn an_interface_is_known_again() {
    let identity = Identity { name: "eth0".into(), index: 2, mac: [2; 6] };
    let name = |links: &[Link]| recognise(links, &identity, &[[2; 6]]).map(|link| (link.index, link.name));
    assert_eq!(name(&[link(1, "lo", 0), link(2, "eth0", 2)]), Some((2, "eth0".into())));
    assert_eq!(name(&[link(2, "lan0", 2)]), Some((2, "lan0".into())), "renamed");
    assert_eq!(name(&[link(9, "eth0", 2)]), Some((9, "eth0".into())), "plugged in again");
    assert_eq!(
        name(&[link(2, "other", 7), link(5, "eth0", 4)]),
        Some((5, "eth0".into())),
        "the number is another's"
    );
    assert_eq!(name(&[link(2, "other", 7)]), None);
}

#[test]
fn roots_on_the_network_are_found() {
    let local = "/dev/vda1 / ext4 rw 0 0\nsrv:/home /home nfs4 rw 0 0\n";
    assert_eq!(network_root(local, "console=ttyS0 root=/dev/vda1 ip=dhcp", "../../devices/pci0/vda"), None);
    let device = "../../devices/platform/host3/session1/target3:0:0/3:0:0:1/block/sda";
    for (mounts, cmdline, device, word) in [
        ("srv:/root / nfs rw 0 0\n", "", "", "nfs"),
        ("proc /proc proc rw 0 0\nsrv:/root / nfs4 rw 0 0\n", "", "", "srv:/root"),
        ("/dev/nbd0 / ext4 rw 0 0\n", "", "", "/dev/nbd0"),
        (local, "", device, "iSCSI"),
        (local, "", "../../devices/virtual/block/nbd0", "block device"),
        ("overlay / overlay rw 0 0\n", "quiet root=/dev/nfs nfsroot=10.0.0.1:/r", "", "root=/dev/nfs"),
        ("overlay / overlay rw 0 0\n", "netroot=iscsi:10.0.0.1::::iqn", "", "netroot"),
    ] {
        let why = network_root(mounts, cmdline, device);
        assert!(why.as_ref().is_some_and(|why| why.contains(word)), "{word}: {why:?}");
    }
    assert_eq!(network_root("nonsense", "", ""), None);
}

#[test]
fn managers_are_told_with_what_to_do() {
    let run = tempfile::tempdir().unwrap();
    let nic = link(7, "eth0", 2);
    assert!(managers(run.path(), &nic).is_empty());
    let write = |path: &str, text: &str| {
        let path = run.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("systemd/netif/links/7", "ADMIN_STATE=unmanaged\nOPER_STATE=routable\n");
    write("NetworkManager/devices/7", "[device]\nmanaged=unmanaged\n");
    assert!(managers(run.path(), &nic).is_empty());
    write("systemd/netif/links/7", "ADMIN_STATE=configured\nOPER_STATE=routable\n");
    write("NetworkManager/devices/7", "[device]\nmanaged=full\n");
    let told = managers(run.path(), &nic).join("; ");
    assert!(told.contains("nmcli device set eth0") && told.contains("Unmanaged=yes"), "{told}");
    assert!(managers(run.path(), &link(8, "eth1", 2)).is_empty());
}

#[test]
fn the_place_to_fail_is_read() {
    let at = |step, after| Some(FailAt { step, after, how: Failure::Kill });
    assert_eq!(FailAt::parse("0"), at(0, false));
    assert_eq!(FailAt::parse("17+"), at(17, true));
    assert_eq!(FailAt::parse("x"), None);
    assert_eq!(FailAt::parse(""), None);
}
