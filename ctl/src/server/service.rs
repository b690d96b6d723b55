//! The methods of `io.weft.Switch`, dispatched and described by zlink.
//!
//! Each method turns words into the model, which checks them, calls the switch, and wraps what it says. The comments of
//! the methods are part of the interface's description, which clients can ask for.
// The macro makes public types without comments, which only zlink's dispatch sees.
#![allow(missing_docs, unreachable_pub)]

use super::Switch;
use crate::model::{
    ForwardSpec, LeaseKey, LeaseSpec, NetworkChanges, NetworkSpec, PortChanges, PortSpec, parse_mac,
};
use crate::protocol::{
    Counters, Error, FdbEntries, FdbEntry, Forward, Forwards, Lease, Leases, NatSession, NatSessionList,
    Network, NetworkDetail, Networks, OneNetwork, OnePort, Port, PortCounters, PortDetail, Ports, Refusal,
    RefusalKind, Resolved, Ring, SESSIONS_DEFAULT, SESSIONS_MAX, Status, Worker,
};
use futures_util::Stream;
use futures_util::stream;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use switch_core::{MacAddr, Vid};
use zlink::Reply;

/// The shortest and longest interval of `Monitor`, in milliseconds.
const INTERVAL_MS: (u64, u64) = (100, 3_600_000);

/// One client's view of the switch.
#[derive(Clone)]
pub(super) struct Service {
    switch: Rc<dyn Switch>,
}

impl Service {
    pub(super) fn new(switch: Rc<dyn Switch>) -> Self {
        Self { switch }
    }
}

type Words = BTreeMap<String, String>;

fn pairs(keys: &Option<Words>) -> Vec<(&str, &str)> {
    keys.iter().flatten().map(|(key, value)| (&**key, &**value)).collect()
}

/// `del --if-exists`: what is not there needs no deleting.
fn if_exists(done: Result<(), Refusal>, if_exists: Option<bool>) -> Result<(), Error> {
    match done {
        Err(refusal) if refusal.kind() == RefusalKind::NotFound && if_exists == Some(true) => Ok(()),
        done => Ok(done?),
    }
}

/// The same of what has no name: a missing address or forward is not a missing network.
fn if_there(
    done: Result<bool, Refusal>,
    if_exists_flag: Option<bool>,
    what: impl FnOnce() -> String,
) -> Result<(), Error> {
    let done = done.and_then(|there| {
        if there || if_exists_flag == Some(true) { Ok(()) } else { Err(Refusal::refused(what())) }
    });
    if_exists(done, if_exists_flag)
}

fn address(mac: &str, vlan: Option<u64>) -> Result<(MacAddr, Option<Vid>), Refusal> {
    let mac = parse_mac(mac)?;
    // 0 stands for untagged frames, as in replies.
    let vlan = match vlan {
        None | Some(0) => None,
        Some(vlan) => {
            let vid = u16::try_from(vlan).ok().and_then(Vid::new);
            Some(vid.ok_or_else(|| Refusal::refused(format!("vlan {vlan} is not a number from 1 to 4094")))?)
        }
    };
    Ok((mac, vlan))
}

/// Control of a virtual switch. Words and values are those of the command line.
#[zlink::service(
    interface = "io.weft.Switch",
    types = [Worker, Network, NetworkDetail, Resolved, Port, PortDetail, Ring, PortCounters, FdbEntry, Lease, NatSession, Forward],
    vendor = "Weft",
    product = "weft",
    version = env!("CARGO_PKG_VERSION"),
    url = ""
)]
impl Service {
    /// The daemon and its workers.
    async fn status(&self) -> Result<Status, Error> {
        Ok(self.switch.status())
    }

    /// Makes a network. Keys are those of the command line.
    async fn net_add(&self, name: String, keys: Option<Words>, may_exist: Option<bool>) -> Result<(), Error> {
        let spec = NetworkSpec::from_words(&name, pairs(&keys)).map_err(Refusal::from)?;
        Ok(self.switch.net_add(spec, may_exist == Some(true))?)
    }

    /// Changes keys of a network; an empty value is the key's default.
    async fn net_set(&self, name: String, keys: Words) -> Result<(), Error> {
        let keys = Some(keys);
        let changes = NetworkChanges::from_words(&name, &pairs(&keys)).map_err(Refusal::from)?;
        Ok(self.switch.net_set(&name, &changes)?)
    }

    /// Deletes a network that has no ports.
    async fn net_del(&self, name: String, if_exists: Option<bool>) -> Result<(), Error> {
        self::if_exists(self.switch.net_del(&name), if_exists)
    }

    /// All networks.
    async fn net_list(&self) -> Result<Networks, Error> {
        Ok(Networks { networks: self.switch.net_list() })
    }

    /// One network.
    async fn net_show(&self, name: String) -> Result<OneNetwork, Error> {
        Ok(OneNetwork { network: self.switch.net_show(&name)? })
    }

    /// Makes a port. Its kind is vhost-user:PATH, tap:IFNAME, netdev:IFNAME, stream:PATH or dgram:PATH; paths are absolute.
    async fn port_add(
        &self,
        network: String,
        name: String,
        kind: String,
        keys: Option<Words>,
        may_exist: Option<bool>,
    ) -> Result<(), Error> {
        let spec = PortSpec::from_words(&network, &name, &kind, pairs(&keys)).map_err(Refusal::from)?;
        Ok(self.switch.port_add(spec, may_exist == Some(true))?)
    }

    /// Changes keys of a port; an empty value is the key's default.
    async fn port_set(&self, name: String, keys: Words) -> Result<(), Error> {
        let keys = Some(keys);
        let changes = PortChanges::from_words(&name, &pairs(&keys)).map_err(Refusal::from)?;
        Ok(self.switch.port_set(&name, &changes)?)
    }

    /// Deletes a port.
    async fn port_del(&self, name: String, if_exists: Option<bool>) -> Result<(), Error> {
        self::if_exists(self.switch.port_del(&name), if_exists)
    }

    /// All ports, or those of a network.
    async fn port_list(&self, network: Option<String>) -> Result<Ports, Error> {
        Ok(Ports { ports: self.switch.port_list(network.as_deref())? })
    }

    /// One port.
    async fn port_show(&self, name: String) -> Result<OnePort, Error> {
        Ok(OnePort { port: self.switch.port_show(&name)? })
    }

    /// What a port has counted, or all of them.
    async fn port_stats(&self, name: Option<String>) -> Result<Counters, Error> {
        Ok(Counters { counters: self.switch.port_stats(name.as_deref())? })
    }

    /// The same again and again, every `interval_ms` (1000 when not given); once without 'more'.
    #[zlink(more)]
    async fn monitor(
        &self,
        more: bool,
        name: Option<String>,
        interval_ms: Option<u64>,
    ) -> impl Stream<Item = Result<Reply<Counters>, Error>> + Unpin + use<> {
        let interval = Duration::from_millis(interval_ms.unwrap_or(1000).clamp(INTERVAL_MS.0, INTERVAL_MS.1));
        let mut timer = tokio::time::interval(interval);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let start = Some((Rc::clone(&self.switch), timer));
        Box::pin(stream::unfold(start, move |state| {
            let name = name.clone();
            async move {
                let (switch, mut timer) = state?;
                timer.tick().await;
                // A port that is gone ends the stream, with the error that says so.
                let counters = switch.port_stats(name.as_deref());
                let continues = more && counters.is_ok();
                let reply = match counters {
                    Ok(counters) => {
                        Ok(Reply::new(Some(Counters { counters })).set_continues(Some(continues)))
                    }
                    Err(refusal) => Err(Error::from(refusal)),
                };
                Some((reply, continues.then_some((switch, timer))))
            }
        }))
    }

    /// The addresses of a network.
    async fn fdb_show(&self, network: String) -> Result<FdbEntries, Error> {
        Ok(FdbEntries { entries: self.switch.fdb_show(&network)? })
    }

    /// Tells a network an address; it does not age or move.
    async fn fdb_add(
        &self,
        network: String,
        port: String,
        mac: String,
        vlan: Option<u64>,
        may_exist: Option<bool>,
    ) -> Result<(), Error> {
        let (mac, vlan) = address(&mac, vlan)?;
        Ok(self.switch.fdb_add(&network, &port, mac, vlan, may_exist == Some(true))?)
    }

    /// Forgets an address.
    async fn fdb_del(
        &self,
        network: String,
        mac: String,
        vlan: Option<u64>,
        if_exists: Option<bool>,
    ) -> Result<(), Error> {
        let (mac, vid) = address(&mac, vlan)?;
        if_there(self.switch.fdb_del(&network, mac, vid), if_exists, || {
            format!("network {network} has no address {mac} in vlan {}: see weft fdb show", vlan.unwrap_or(0))
        })
    }

    /// Forgets every learned address of a network.
    async fn fdb_flush(&self, network: String) -> Result<(), Error> {
        Ok(self.switch.fdb_flush(&network)?)
    }

    /// The DHCP leases and reservations of a network, or of all.
    async fn lease_list(&self, network: Option<String>) -> Result<Leases, Error> {
        Ok(Leases { leases: self.switch.lease_list(network.as_deref())? })
    }

    /// Keeps an address for a guest, and a name if one is given.
    async fn lease_add(
        &self,
        network: String,
        mac: String,
        ip: String,
        hostname: Option<String>,
        may_exist: Option<bool>,
    ) -> Result<(), Error> {
        let spec = LeaseSpec::from_words(&network, &mac, &ip, hostname.as_deref()).map_err(Refusal::from)?;
        Ok(self.switch.lease_add(spec, may_exist == Some(true))?)
    }

    /// Ends the lease and forgets the reservation of a guest or an address: `which` is a MAC or an IP address.
    async fn lease_del(&self, network: String, which: String, if_exists: Option<bool>) -> Result<(), Error> {
        let key = LeaseKey::parse(&which).map_err(Refusal::from)?;
        if_there(self.switch.lease_del(&network, key), if_exists, || {
            format!("network {network} has no lease of {key}: see weft lease list")
        })
    }

    /// The translations that a network holds, at most `limit` of them (65536 when not given, 1000000 at most), and how
    /// many there are.
    async fn nat_sessions(&self, network: String, limit: Option<u64>) -> Result<NatSessionList, Error> {
        let limit = limit.unwrap_or(SESSIONS_DEFAULT).min(SESSIONS_MAX);
        Ok(self.switch.nat_sessions(&network, usize::try_from(limit).unwrap_or(usize::MAX))?)
    }

    /// Makes a port forward: `listen` is `[ADDR:]PORT`, `target` is `ADDR:PORT`, both may have a range or a list of ports;
    /// `source` is `keep` or not given.
    async fn forward_add(
        &self,
        network: String,
        proto: String,
        listen: String,
        target: String,
        source: Option<String>,
        may_exist: Option<bool>,
    ) -> Result<(), Error> {
        let spec = ForwardSpec::from_words(&network, &proto, &listen, &target)
            .and_then(|spec| spec.with_source(source.as_deref()))
            .map_err(Refusal::from)?;
        Ok(self.switch.forward_add(spec, may_exist == Some(true))?)
    }

    /// Deletes a port forward, whatever its `source`.
    async fn forward_del(
        &self,
        network: String,
        proto: String,
        listen: String,
        target: String,
        if_exists: Option<bool>,
    ) -> Result<(), Error> {
        let spec = ForwardSpec::from_words(&network, &proto, &listen, &target).map_err(Refusal::from)?;
        let what = format!("there is no forward {spec}: see weft forward list");
        if_there(self.switch.forward_del(spec), if_exists, || what)
    }

    /// The port forwards of a network, or of all.
    async fn forward_list(&self, network: Option<String>) -> Result<Forwards, Error> {
        Ok(Forwards { forwards: self.switch.forward_list(network.as_deref())? })
    }
}
