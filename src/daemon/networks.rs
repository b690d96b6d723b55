//! Networks come, change and go.

use std::time::Duration;

use ctl::model::{Mode, NetworkSpec};
use ctl::protocol::Refusal;
use modes::gateway::Gateway;
use tracing::{info, warn};

use super::backend::{Backend, Netdev, Sockets, Station, Tap};
use super::compose::{self, Surroundings};
use super::gateways::{self, Told};
use super::plumbing::HostSide;
use super::services::{self, Shared};
use super::switch::{
    Done, Everything, Host, NETWORKS_MAX, Network, Port, Purpose, gateway_port, own_mtu, own_ports,
    sockets_port, words,
};
use super::upstream::Upstream;

impl Host {
    /// Adds a network, with its uplink and host interface.
    pub(super) fn add_network(&self, spec: NetworkSpec, may_exist: bool) -> Done {
        let state = &mut *self.lock();
        let what = format!("network {}", spec.name);
        if let Some(present) = state.networks.get(&spec.name) {
            return match may_exist {
                true if present.spec == spec => Ok(()),
                true => Err(Refusal::refused(format!(
                    "{what}: it exists with other values ({}): set them, or delete it first",
                    words(&present.spec.words())
                ))),
                false => Err(Refusal::refused(format!(
                    "{what}: it exists already: delete it first, or say --may-exist"
                ))),
            };
        }
        self.check_beside(state, &spec, &what)?;
        let own = own_ports(&spec);
        for name in &own {
            state.check_port_name(name, &what)?;
        }
        let around = Surroundings {
            state_dir: &self.state_dir,
            clock: services::clock(&self.datapath),
            changed: &self.changed,
        };
        let made = compose::compose(&spec, &around).map_err(|e| Refusal::refused(format!("{what}: {e}")))?;
        let Some(id) = state.network_ids.mint() else {
            return Err(Refusal::refused(format!(
                "{what}: there are {NETWORKS_MAX} networks already, which is the most"
            )));
        };
        let name = spec.name.clone();
        let network = Network {
            id,
            spec: spec.clone(),
            mode: made.mode,
            nat: made.nat,
            sockets: None,
            gateway: None,
            told: Told::default(),
            host_side: HostSide::default(),
        };
        state.networks.insert(name.clone(), network);
        let begun = self.add_own_ports(state, &spec).and_then(|()| {
            if let Some(control) = state.networks.get(&name).and_then(|n| n.sockets.clone()) {
                // It is empty: the network was made just now.
                let _ = made.sockets.set(control);
            }
            match made.gateway {
                Some(gateway) => self.add_gateway(state, &name, gateway, made.upstream),
                None => Ok(()),
            }
        });
        if let Err(refusal) = begun {
            self.drop_network(state, &name);
            return Err(refusal);
        }
        own.iter().for_each(|port| state.tell_mode(port));
        self.publish(state);
        self.start_ports(state, own.iter().map(|n| &**n));
        // Last, because the host's traffic goes this way from here on.
        if let Err(error) = self.plumb(state, &name) {
            self.drop_network(state, &name);
            return Err(Refusal::refused(format!("{what}: {error}")));
        }
        info!(network = %name, mode = spec.mode.as_str(), "network added");
        Ok(())
    }

    /// Refuses a network that cannot be beside those that there are.
    fn check_beside(&self, state: &Everything, spec: &NetworkSpec, what: &str) -> Done {
        state.check_claims(&spec.claims(), what, Some(&spec.name))?;
        let others = state.networks.values().filter(|n| n.spec.name != spec.name);
        match others.map(|n| spec.conflicts(&n.spec)).find_map(|conflict| conflict) {
            Some(conflict) => Err(Refusal::refused(format!("{what}: {conflict}"))),
            None => Ok(()),
        }
    }

    /// Makes the ports that a network has by itself and that are not there yet, but for the gateway's.
    fn add_own_ports(&self, state: &mut Everything, spec: &NetworkSpec) -> Done {
        let mtu = spec.mtu_in_force();
        if let Some(name) = spec.host_interface()
            && !state.ports.contains_key(name)
        {
            let mac = Some(compose::host_mac(spec));
            // What has to be told to the host before the interface is up is told by `plumb`.
            let up = spec.mode == Mode::Bridge;
            let make = |context| Ok(Box::new(Tap::new(name, 1, mac, up, context)?) as Box<dyn Backend>);
            let kind = format!("tap:{name}");
            self.insert_port(state, name, &spec.name, kind, Purpose::HostInterface, mtu, spec.mtu, make)
                .map_err(|e| Refusal::refused(format!("network {}: host-if=on: {e}", spec.name)))?;
        }
        if let Some(uplink) = spec.uplink_interface()
            && !state.ports.contains_key(uplink)
        {
            let make = |context| Ok(Box::new(Netdev::new(uplink, context)?) as Box<dyn Backend>);
            let kind = format!("netdev:{uplink}");
            self.insert_port(state, uplink, &spec.name, kind, Purpose::Uplink, mtu, spec.mtu, make)
                .map_err(|e| Refusal::refused(format!("network {}: uplink {uplink}: {e}", spec.name)))?;
        }
        if spec.by_sockets() && !state.ports.contains_key(&sockets_port(&spec.name)) {
            self.add_sockets(state, spec, mtu)?;
        }
        Ok(())
    }

    /// Makes the port of a network whose outside is the host's sockets.
    fn add_sockets(&self, state: &mut Everything, spec: &NetworkSpec, mtu: u16) -> Done {
        let taken: u64 = state.networks.values().filter_map(|n| n.sockets.as_ref()).map(|s| s.files()).sum();
        let settings = compose::sockets_settings(spec, taken);
        let mut control = None;
        let make = |context| {
            let (port, far) = Sockets::new(settings, context)?;
            control = Some(far);
            Ok(Box::new(port) as Box<dyn Backend>)
        };
        let (name, kind) = (sockets_port(&spec.name), "sockets".to_owned());
        self.insert_port(state, &name, &spec.name, kind, Purpose::Sockets, mtu, None, make)
            .map_err(|e| Refusal::refused(format!("network {}: egress=user: {e}", spec.name)))?;
        if control.as_ref().is_some_and(|control| !control.pings_allowed()) {
            info!(
                network = spec.name,
                "guests' pings to the outside are not answered: net.ipv4.ping_group_range has none of this process's groups"
            );
        }
        if let Some(network) = state.networks.get_mut(&spec.name) {
            network.sockets = control;
        }
        Ok(())
    }

    /// Makes the port of a network's gateway, and lets the gateway run behind it.
    fn add_gateway(
        &self,
        state: &mut Everything,
        network: &str,
        gateway: Gateway,
        upstream: Upstream,
    ) -> Done {
        let (name, kind) = (gateway_port(network), "gateway".to_owned());
        let (mtu, _) = state.mtu(network, None);
        let mut far = None;
        let make = |context| {
            let (station, end, bell) = Station::new(context)?;
            far = Some((end, bell));
            Ok(Box::new(station) as Box<dyn Backend>)
        };
        self.insert_port(state, &name, network, kind, Purpose::Gateway, mtu, None, make)
            .map_err(|e| Refusal::refused(format!("network {network}: the gateway's port: {e}")))?;
        if let (Some((end, bell)), Some(network)) = (far, state.networks.get_mut(network)) {
            let shared = Shared::new(gateway, end, bell);
            let running = self.services.add(shared.clone(), upstream);
            network.gateway = Some((shared, running));
        }
        Ok(())
    }

    /// Takes a network away. Its ports must have gone, but for its own.
    pub(super) fn delete_network(&self, name: &str, if_exists: bool) -> Done {
        let state = &mut *self.lock();
        if !state.networks.contains_key(name) {
            return if if_exists { Ok(()) } else { Err(Refusal::no_network(name)) };
        }
        let added = |p: &&Port| p.network == name && matches!(p.purpose, Purpose::Added(_));
        let ports = state.ports.values().filter(added).count();
        if ports > 0 {
            return Err(Refusal::refused(format!(
                "network {name}: {ports} ports are on it (see weft port list {name}): delete them first"
            )));
        }
        self.drop_network(state, name);
        info!(network = name, "network deleted");
        Ok(())
    }

    /// Changes a network to `spec`, which differs from what it is only in keys that may change.
    pub(super) fn change_network(
        &self,
        name: &str,
        change: impl FnOnce(&NetworkSpec) -> Result<NetworkSpec, Refusal>,
    ) -> Done {
        let state = &mut *self.lock();
        let Some(network) = state.networks.get(name) else { return Err(Refusal::no_network(name)) };
        let old = network.spec.clone();
        let new = change(&old)?;
        if new == old {
            return Ok(());
        }
        let what = format!("network {name}");
        self.check_beside(state, &new, &what)?;
        let (had, has) = (own_ports(&old), own_ports(&new));
        let come: Vec<String> = has.iter().filter(|p| !had.contains(p)).cloned().collect();
        let go: Vec<String> = had.iter().filter(|p| !has.contains(p)).cloned().collect();
        for name in &come {
            state.check_port_name(name, &what)?;
        }
        // What can fail comes first, and is taken back when a later part does.
        if let Err(refusal) = self.add_own_ports(state, &new) {
            self.drop_ports(state, &come);
            return Err(refusal);
        }
        if let Err(refusal) = gateways::reconfigure(self, state, &new) {
            self.drop_ports(state, &come);
            return Err(refusal);
        }
        if let Some(network) = state.networks.get_mut(name) {
            network.spec = new.clone();
            if let Some(fdb) = network.mode.fdb() {
                fdb.configure(Duration::from_secs(new.ageing_s.into()), new.fdb_max as usize);
            }
        }
        if new.mtu != old.mtu {
            self.spread_mtu(state, name);
        }
        if let Some(sockets) = state.networks.get(name).and_then(|n| n.sockets.as_ref()) {
            sockets.set_policy(compose::outbound(&new));
            sockets.set_host_loopback(new.host_loopback);
        }
        come.iter().for_each(|port| state.tell_mode(port));
        self.publish(state);
        self.start_ports(state, come.iter().map(|n| &**n));
        // The host's addresses go when there is a way for them, and before the way that they had is gone.
        if let Some(network) = state.networks.get_mut(name)
            && let Err(error) = self.follow_move(network, &new)
        {
            network.spec = old.clone();
            if let Err(error) = self.follow_move(network, &old) {
                warn!(network = name, %error, "the host's addresses did not move again");
                network.host_side.problem = Some(error.to_string());
            }
            self.drop_ports(state, &come);
            return Err(Refusal::refused(format!("{what}: {error}")));
        }
        self.drop_ports(state, &go);
        info!(network = name, keys = %words(&new.words()), "network changed");
        Ok(())
    }

    /// Sets the MTU of interfaces that the switch made on a network.
    fn spread_mtu(&self, state: &mut Everything, network: &str) {
        let mtus: Vec<(String, u16)> = state
            .ports
            .iter()
            .filter(|(_, p)| p.network == network)
            .map(|(name, p)| (name.clone(), state.mtu(network, own_mtu(p)).0))
            .collect();
        for (name, mtu) in mtus {
            if let Some(port) = state.ports.get_mut(&name)
                && let Err(error) = port.backend.set_mtu(mtu)
            {
                warn!(port = %name, mtu, error, "the interface did not take the MTU");
            }
            state.tell_mode(&name);
        }
    }
}
