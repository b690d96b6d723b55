//! What changes between two models: the steps from one to the other, so that what did not change is left alone.

use super::{Model, Told};
use crate::model::{ForwardSpec, HostRecord, LeaseSpec, NetworkChanges, NetworkSpec, PortChanges, PortSpec};
use std::collections::BTreeSet;

/// One step from a model to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The port goes.
    PortDel(String),
    /// A port forward goes.
    ForwardDel(ForwardSpec),
    /// A reservation goes.
    LeaseDel(LeaseSpec),
    /// A name goes.
    HostDel(HostRecord),
    /// The network goes, with all that it was told; its ports have gone before.
    NetDel(String),
    /// Keys of a network change while it forwards.
    NetSet(String, NetworkChanges),
    /// Keys of a port change while it forwards.
    PortSet(String, PortChanges),
    /// A network comes.
    NetAdd(NetworkSpec),
    /// A reservation comes; its network has come before, and its ports come after.
    LeaseAdd(LeaseSpec),
    /// A name comes; its network has come before.
    HostAdd(HostRecord),
    /// A port forward comes; its network has come before.
    ForwardAdd(ForwardSpec),
    /// A port comes; its network has come before.
    PortAdd(PortSpec),
}

/// The steps from `old` to `new`, in an order in which they can be taken: what goes, what changes, what comes. What has
/// a key that cannot change while it exists is deleted and added, and with a network its ports.
pub fn diff(old: &Model, new: &Model) -> Vec<Change> {
    let mut net_sets = Vec::new();
    let mut nets_gone = BTreeSet::new();
    for (name, spec) in &old.networks {
        match new.networks.get(name).and_then(|new| NetworkChanges::between(spec, new)) {
            Some(changes) if changes.is_empty() => {}
            Some(changes) => net_sets.push(Change::NetSet(name.clone(), changes)),
            None => {
                nets_gone.insert(name);
            }
        }
    }
    let mut port_sets = Vec::new();
    let mut ports_gone = BTreeSet::new();
    for (name, spec) in &old.ports {
        let stays = new.ports.get(name).filter(|_| !nets_gone.contains(&spec.network));
        match stays.and_then(|new| PortChanges::between(spec, new)) {
            Some(changes) if changes.is_empty() => {}
            Some(changes) => port_sets.push(Change::PortSet(name.clone(), changes)),
            None => {
                ports_gone.insert(name);
            }
        }
    }

    let mut out: Vec<_> = ports_gone.iter().map(|name| Change::PortDel((*name).clone())).collect();
    let nothing = Told::default();
    let (mut told_gone, mut told_new) = (Vec::new(), Vec::new());
    for name in old.told.keys().chain(new.told.keys().filter(|name| !old.told.contains_key(*name))) {
        // What a network was told goes with it, and comes again if the network does.
        let before = old.told.get(name).filter(|_| !nets_gone.contains(name)).unwrap_or(&nothing);
        let after = new.told.get(name).unwrap_or(&nothing);
        told_gone.extend(missing(&before.forwards, &after.forwards).map(Change::ForwardDel));
        told_gone.extend(missing(&before.leases, &after.leases).map(Change::LeaseDel));
        told_gone.extend(missing(&before.hosts, &after.hosts).map(Change::HostDel));
        told_new.extend(missing(&after.leases, &before.leases).map(Change::LeaseAdd));
        told_new.extend(missing(&after.hosts, &before.hosts).map(Change::HostAdd));
        told_new.extend(missing(&after.forwards, &before.forwards).map(Change::ForwardAdd));
    }
    out.extend(told_gone);
    out.extend(nets_gone.iter().map(|name| Change::NetDel((*name).clone())));
    out.extend(net_sets);
    out.extend(port_sets);
    let comes = |(name, spec)| (!old.networks.contains_key(name) || nets_gone.contains(name)).then_some(spec);
    out.extend(new.networks.iter().filter_map(comes).cloned().map(Change::NetAdd));
    out.extend(told_new);
    let comes = |(name, spec)| (!old.ports.contains_key(name) || ports_gone.contains(name)).then_some(spec);
    out.extend(new.ports.iter().filter_map(comes).cloned().map(Change::PortAdd));
    out
}

/// What `of` has and `from` has not.
fn missing<'a, T: PartialEq + Clone>(of: &'a [T], from: &'a [T]) -> impl Iterator<Item = T> + 'a {
    of.iter().filter(|entry| !from.contains(entry)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn model(text: &str) -> Model {
        super::super::parse(Path::new("t"), text).unwrap()
    }

    fn names(changes: &[Change]) -> Vec<String> {
        let name = |change: &Change| match change {
            Change::PortDel(name) => format!("-port {name}"),
            Change::NetDel(name) => format!("-net {name}"),
            Change::NetSet(name, changes) => {
                format!("net {name} {}", changes.keys().collect::<Vec<_>>().join(" "))
            }
            Change::PortSet(name, changes) => {
                format!("port {name} {}", changes.keys().collect::<Vec<_>>().join(" "))
            }
            Change::NetAdd(spec) => format!("+net {}", spec.name),
            Change::PortAdd(spec) => format!("+port {}", spec.name),
            Change::ForwardDel(spec) => format!("-forward {spec}"),
            Change::ForwardAdd(spec) => format!("+forward {spec}"),
            Change::LeaseDel(spec) => format!("-lease {spec}"),
            Change::LeaseAdd(spec) => format!("+lease {spec}"),
            Change::HostDel(record) => format!("-host {record}"),
            Change::HostAdd(record) => format!("+host {record}"),
        };
        changes.iter().map(name).collect()
    }

    fn remove<T: PartialEq>(from: &mut Vec<T>, entry: &T) {
        let at = from.iter().position(|there| there == entry).expect("it was there");
        from.remove(at);
    }

    fn insert<T: PartialEq>(into: &mut Vec<T>, entry: T) {
        assert!(!into.contains(&entry));
        into.push(entry);
    }

    /// Takes the steps as a daemon would, refusing what a daemon would refuse.
    fn take(model: &Model, changes: &[Change]) -> Model {
        let mut model = model.clone();
        for change in changes {
            let network = match change {
                Change::ForwardDel(spec) | Change::ForwardAdd(spec) => &spec.network,
                Change::LeaseDel(spec) | Change::LeaseAdd(spec) => &spec.network,
                Change::HostDel(record) | Change::HostAdd(record) => &record.network,
                _ => "",
            };
            let mut told = model.told.remove(network).unwrap_or_default();
            match change {
                Change::ForwardDel(spec) => remove(&mut told.forwards, spec),
                Change::LeaseDel(spec) => remove(&mut told.leases, spec),
                Change::HostDel(record) => remove(&mut told.hosts, record),
                Change::ForwardAdd(spec) => {
                    spec.fits(&model.networks[network]).unwrap();
                    assert!(told.forwards.iter().all(|there| spec.conflicts(there).is_none()));
                    insert(&mut told.forwards, spec.clone());
                }
                Change::LeaseAdd(spec) => {
                    spec.fits(&model.networks[network]).unwrap();
                    assert!(told.leases.iter().all(|there| spec.conflicts(there).is_none()));
                    insert(&mut told.leases, spec.clone());
                }
                Change::HostAdd(record) => {
                    record.fits(&model.networks[network]).unwrap();
                    insert(&mut told.hosts, record.clone());
                }
                Change::PortDel(name) => assert!(model.ports.remove(name).is_some()),
                Change::NetDel(name) => {
                    assert!(model.ports.values().all(|port| port.network != *name), "{name} has ports");
                    assert!(model.networks.remove(name).is_some());
                    model.told.remove(name);
                }
                Change::NetSet(name, changes) => {
                    let spec = changes.apply(&model.networks[name]).unwrap();
                    model.networks.insert(name.clone(), spec);
                }
                Change::PortSet(name, changes) => {
                    let spec = changes.apply(&model.ports[name]).unwrap();
                    model.ports.insert(name.clone(), spec);
                }
                Change::NetAdd(spec) => {
                    assert!(model.networks.insert(spec.name.clone(), spec.clone()).is_none())
                }
                Change::PortAdd(spec) => {
                    assert!(model.networks.contains_key(&spec.network));
                    assert!(model.ports.insert(spec.name.clone(), spec.clone()).is_none());
                }
            }
            if !told.is_empty() {
                told.forwards.sort_by_key(ToString::to_string);
                told.leases.sort_by_key(ToString::to_string);
                told.hosts.sort_by_key(ToString::to_string);
                model.told.insert(network.to_owned(), told);
            }
        }
        model
    }

    #[test]
    fn only_what_changed_is_touched() {
        let port = |name: &str, net: &str, more: &str| {
            format!("[port.{name}]\nnetwork=\"{net}\"\nkind=\"tap\"\n{more}\n")
        };
        let old = model(&format!(
            "[network.a]\n[network.b]\nmtu=9000\n[network.c]\n{}{}{}{}",
            port("p1", "a", ""),
            port("p2", "a", "vlan=2"),
            port("p3", "b", "queues=1"),
            port("p4", "c", "")
        ));
        let new = model(&format!(
            "[network.a]\n[network.b]\nageing=60\n[network.d]\n{}{}{}{}",
            port("p1", "a", ""),
            port("p2", "a", "isolated=true"),
            port("p3", "b", "queues=2"),
            port("p5", "d", "")
        ));
        let changes = diff(&old, &new);
        assert_eq!(
            names(&changes),
            [
                "-port p3",
                "-port p4",
                "-net c",
                "net b mtu ageing",
                "port p2 vlan isolated",
                "+net d",
                "+port p3",
                "+port p5"
            ]
        );
        assert_eq!(take(&old, &changes), new);
        assert_eq!(diff(&new, &new), []);
    }

    #[test]
    fn a_port_that_moves_to_another_network_is_deleted_and_added() {
        let text = "[network.a]\n[network.b]\n[port.p]\nkind=\"tap\"\nnetwork=";
        let old = model(&format!("{text}\"a\""));
        let new = model(&format!("{text}\"b\""));
        assert_eq!(names(&diff(&old, &new)), ["-port p", "+port p"]);
    }

    #[test]
    fn entries_of_lists_come_and_go_one_by_one() {
        let nat = |name: &str, lists: &str| {
            format!(
                "[network.{name}]\nmode=\"nat\"\nsubnet=\"10.{}.0.0/24\"\negress=\"host\"\n{lists}\n",
                name.len()
            )
        };
        let kept = "forward=[\"tcp 1 10.1.0.2:1\"]";
        let old = model(
            &(nat("a", "forward=[\"tcp 1 10.1.0.2:1\",\"tcp 2 10.1.0.2:2\"]\nhost=[\"x 10.0.0.9\"]")
                + &nat("bb", "")),
        );
        let new = model(
            &(nat("a", &format!("{kept}\nlease=[\"02:00:00:00:00:01 10.1.0.2\"]"))
                + &nat("bb", "host=[\"y 10.0.0.9\"]")),
        );
        let changes = diff(&old, &new);
        assert_eq!(
            names(&changes),
            [
                "-forward tcp 2 to 10.1.0.2:2 on a",
                "-host x 10.0.0.9",
                "+lease 02:00:00:00:00:01 10.1.0.2",
                "+host y 10.0.0.9"
            ]
        );
        assert_eq!(take(&old, &changes), new);
        // A network that is made anew is told everything anew.
        let moved = model(&nat("a", &format!("dns=false\n{kept}")));
        assert_eq!(
            names(&diff(&new, &moved)),
            ["-net a", "-net bb", "+net a", "+forward tcp 1 to 10.1.0.2:1 on a"]
                .map(str::to_owned)
                .into_iter()
                .collect::<Vec<_>>()
        );
    }

    fn any_model() -> impl Strategy<Value = Model> {
        let network = prop::option::of((68_u16..70, any::<bool>(), 0_u8..3, 1_u8..4, 0_u8..16));
        let port = prop::option::of((0_usize..3, 1_u16..3, 1_u16..3, any::<bool>(), 0_usize..2));
        (prop::array::uniform3(network), prop::array::uniform4(port)).prop_map(|(networks, ports)| {
            let mut text = String::new();
            for (n, network) in networks.iter().enumerate() {
                let Some((mtu, host_if, mode, target, lists)) = network else { continue };
                text += &format!("[network.n{n}]\nmtu={mtu}\n");
                match mode {
                    0 => text += &format!("host-if={host_if}\n"),
                    _ => {
                        let subnet = format!("10.{n}.{mode}.0/24");
                        text += &format!("mode=\"nat\"\nsubnet=\"{subnet}\"\negress=\"uplink:e{n}\"\n");
                        let list = |bit: u8, key: &str, entry: &str, other: &str| match (lists >> bit) & 1 {
                            0 => format!("{key}=[\"{entry}\"]\n"),
                            _ => format!("{key}=[\"{entry}\",\"{other}\"]\n"),
                        };
                        let guest = format!("10.{n}.{mode}.{}", target + 1);
                        text += &list(0, "forward", &format!("tcp 80 {guest}:{target}"), &format!("udp 80 {guest}:1"));
                        text += &list(1, "lease", &format!("02:00:00:00:00:0{target} {guest}"), &format!("02:00:00:00:00:10 10.{n}.{mode}.9"));
                        text += &list(2, "host", &format!("a {guest}"), "b 10.9.9.9");
                    }
                }
            }
            for (n, port) in ports.iter().enumerate() {
                if let Some((network, queues, vlan, isolated, kind)) = *port
                    && let Some((_, _, mode, ..)) = networks[network]
                {
                    let vlan = if mode == 0 { format!("vlan={vlan}\n") } else { String::new() };
                    text += &format!(
                        "[port.p{n}]\nnetwork=\"n{network}\"\nkind=\"tap:t{n}{kind}\"\nqueues={queues}\n{vlan}isolated={isolated}\n"
                    );
                }
            }
            model(&text)
        })
    }

    proptest! {
        #[test]
        fn the_steps_lead_from_any_model_to_any_other(old in any_model(), new in any_model()) {
            prop_assert_eq!(take(&old, &diff(&old, &new)), new);
        }
    }
}
