//! Ports come, change and go, as an operator says.

use ctl::model::{Mode, PortSpec};
use ctl::protocol::Refusal;
use tracing::info;

use super::switch::{Done, Host, Port, Purpose, rate_limit, words};
use super::{backend, gateways, pinned};

impl Host {
    /// Adds a port.
    pub(super) fn add_port(&self, spec: PortSpec, may_exist: bool) -> Done {
        let state = &mut *self.lock();
        let name = spec.name.clone();
        let what = format!("port {name}");
        if !state.networks.contains_key(&spec.network) {
            return Err(Refusal::no_network(&spec.network));
        }
        if let Some(Port { purpose: Purpose::Added(present), .. }) = state.ports.get(&name) {
            return match may_exist {
                true if **present == spec => Ok(()),
                true => Err(Refusal::refused(format!(
                    "{what}: it exists with other values (network {}, {}, {}): set them, or delete it first",
                    present.network,
                    present.kind,
                    words(&present.words())
                ))),
                false => Err(Refusal::refused(format!(
                    "{what}: it exists already: delete it first, or say --may-exist"
                ))),
            };
        }
        state.check_port_name(&name, &what)?;
        state.check_claims(&spec.claims(), &what, None)?;
        pinned::check(state, &spec)?;
        gateways::check_port(state, &spec)?;
        let (mtu, offered) = state.mtu(&spec.network, spec.mtu);
        let (network, kind) = (spec.network.clone(), spec.kind.to_string());
        let purpose = Purpose::Added(Box::new(spec.clone()));
        self.insert_port(state, &name, &network, kind, purpose, mtu, offered, |context| {
            backend::make(&spec, context)
        })
        .map_err(|e| Refusal::refused(format!("{what}: {e}")))?;
        let id = state.ports.get(&name).map(|p| p.id);
        let told = id.map(|id| {
            pinned::pin(state, id, None, &spec)?;
            gateways::reserve_port(self, state, id, None, Some(&spec))
        });
        if let Some(Err(refusal)) = told {
            self.drop_ports(state, &[name]);
            return Err(refusal);
        }
        state.tell_mode(&name);
        self.publish(state);
        self.follow_host(state);
        self.start_ports(state, [&*name]);
        info!(port = %name, network = %network, kind = %spec.kind, "port added");
        Ok(())
    }

    /// Takes a port away.
    pub(super) fn delete_port(&self, name: &str, if_exists: bool) -> Done {
        let state = &mut *self.lock();
        match state.ports.get(name) {
            None if if_exists => return Ok(()),
            None => return Err(Refusal::no_port(name)),
            Some(Port { purpose: Purpose::Added(_), .. }) => {}
            Some(port) => {
                let bridge = state.networks.get(&port.network).is_some_and(|n| n.spec.mode == Mode::Bridge);
                let advice = match &port.purpose {
                    Purpose::Uplink if bridge => format!("use weft net set {} uplink=", port.network),
                    Purpose::HostInterface if bridge => {
                        format!("use weft net set {} host-if=off", port.network)
                    }
                    _ => "it goes with the network".to_owned(),
                };
                return Err(Refusal::refused(format!(
                    "port {name}: it belongs to network {}: {advice}",
                    port.network
                )));
            }
        }
        if let Some(Port { id, purpose: Purpose::Added(spec), .. }) = state.ports.get(name) {
            let (id, spec) = (*id, spec.clone());
            gateways::reserve_port(self, state, id, Some(&spec), None)?;
        }
        self.drop_ports(state, &[name.to_owned()]);
        self.follow_host(state);
        info!(port = name, "port deleted");
        Ok(())
    }

    /// Changes a port to what `change` makes of it.
    pub(super) fn change_port(
        &self,
        name: &str,
        change: impl FnOnce(&PortSpec) -> Result<PortSpec, Refusal>,
    ) -> Done {
        let state = &mut *self.lock();
        let Some(port) = state.ports.get(name) else { return Err(Refusal::no_port(name)) };
        let Purpose::Added(old) = &port.purpose else {
            return Err(Refusal::refused(format!(
                "port {name}: it belongs to network {}: set the network's keys",
                port.network
            )));
        };
        let new = change(old)?;
        if new == **old {
            return Ok(());
        }
        pinned::check(state, &new)?;
        gateways::check_port(state, &new)?;
        let (id, old) = (port.id, PortSpec::clone(old));
        let (mtu, _) = state.mtu(&new.network, new.mtu);
        pinned::pin(state, id, Some(&old), &new)?;
        if let Err(refusal) = gateways::reserve_port(self, state, id, Some(&old), Some(&new)) {
            // It had its old addresses a moment ago, so there is room for them.
            let _ = pinned::pin(state, id, Some(&new), &old);
            let _ = gateways::reserve_port(self, state, id, None, Some(&old));
            return Err(refusal);
        }
        let Some(port) = state.ports.get_mut(name) else { return Err(Refusal::no_port(name)) };
        if new.mtu != old.mtu
            && let Err(error) = port.backend.set_mtu(mtu)
        {
            let _ = pinned::pin(state, id, Some(&new), &old);
            let _ = gateways::reserve_port(self, state, id, Some(&new), Some(&old));
            return Err(Refusal::refused(format!("port {name}: mtu={mtu}: {error}")));
        }
        if new.rate != old.rate {
            port.rate = rate_limit(&new);
        }
        info!(port = name, keys = %words(&new.words()), "port changed");
        port.purpose = Purpose::Added(Box::new(new));
        state.tell_mode(name);
        self.publish(state);
        self.follow_host(state);
        Ok(())
    }
}
