//! What changes between two models: the steps from one to the other, so that what did not change is left alone.

use super::Model;
use crate::model::{NetworkChanges, NetworkSpec, PortChanges, PortSpec};
use std::collections::BTreeSet;

/// One step from a model to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The port goes.
    PortDel(String),
    /// The network goes; its ports have gone before.
    NetDel(String),
    /// Keys of a network change while it forwards.
    NetSet(String, NetworkChanges),
    /// Keys of a port change while it forwards.
    PortSet(String, PortChanges),
    /// A network comes.
    NetAdd(NetworkSpec),
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
    out.extend(nets_gone.iter().map(|name| Change::NetDel((*name).clone())));
    out.extend(net_sets);
    out.extend(port_sets);
    let comes = |(name, spec)| (!old.networks.contains_key(name) || nets_gone.contains(name)).then_some(spec);
    out.extend(new.networks.iter().filter_map(comes).cloned().map(Change::NetAdd));
    let comes = |(name, spec)| (!old.ports.contains_key(name) || ports_gone.contains(name)).then_some(spec);
    out.extend(new.ports.iter().filter_map(comes).cloned().map(Change::PortAdd));
    out
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
        };
        changes.iter().map(name).collect()
    }

    /// Takes the steps as a daemon would, refusing what a daemon would refuse.
    fn take(model: &Model, changes: &[Change]) -> Model {
        let mut model = model.clone();
        for change in changes {
            match change {
                Change::PortDel(name) => assert!(model.ports.remove(name).is_some()),
                Change::NetDel(name) => {
                    assert!(model.ports.values().all(|port| port.network != *name), "{name} has ports");
                    assert!(model.networks.remove(name).is_some());
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

    fn any_model() -> impl Strategy<Value = Model> {
        let network = prop::option::of((68_u16..70, any::<bool>()));
        let port = prop::option::of((0_usize..3, 1_u16..3, 1_u16..3, any::<bool>(), 0_usize..2));
        (prop::array::uniform3(network), prop::array::uniform4(port)).prop_map(|(networks, ports)| {
            let mut text = String::new();
            for (n, network) in networks.iter().enumerate() {
                if let Some((mtu, host_if)) = network {
                    text += &format!("[network.n{n}]\nmtu={mtu}\nhost-if={host_if}\n");
                }
            }
            for (n, port) in ports.iter().enumerate() {
                if let Some((network, queues, vlan, isolated, kind)) = *port
                    && networks[network].is_some()
                {
                    text += &format!(
                        "[port.p{n}]\nnetwork=\"n{network}\"\nkind=\"tap:t{n}{kind}\"\nqueues={queues}\nvlan={vlan}\nisolated={isolated}\n"
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
