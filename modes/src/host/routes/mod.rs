//! Routes to guests: one for each address of each guest, by its network's host interface.
//!
//! Ours bear a routing protocol number of our own ([`PROTOCOL`]), so that nobody's else are ever touched. They come
//! and go at runtime: a network says what it wants, and the difference to what the kernel has is made. A prefix that
//! somebody else has a route to is left out and told, whatever its metric: two routes to one guest are one too many. The
//! other guests have theirs all the same.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::error::{HostError, Report};
use super::interface;
use super::journal::{Journal, Record};
use super::netlink::route::{Listed, MAIN, Route};
use super::netlink::{Netlink, may_be_gone};

/// The routing protocol number of our routes; `ip route` shows it as `proto 87`.
pub const PROTOCOL: u8 = 0x57;

/// A route to a guest, or to a prefix behind one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRoute {
    /// Where to; host bits are ignored.
    pub destination: IpNetwork,
    /// The source address that the host uses on it; one of its own.
    pub source: Option<IpAddr>,
}

impl HostRoute {
    /// To one address.
    pub fn to(address: IpAddr) -> Self {
        Self { destination: IpNetwork::from(address), source: None }
    }

    fn route(self) -> Result<Route, HostError> {
        let destination = IpNetwork::new(self.destination.network(), self.destination.prefix())
            .map_err(|_| HostError::Refused(format!("{} is not a prefix", self.destination)))?;
        if self.source.is_some_and(|source| source.is_ipv4() != destination.is_ipv4()) {
            return Err(HostError::Refused(format!(
                "a route to {destination} cannot prefer a source address of the other family"
            )));
        }
        Ok(Route::on_link(destination, self.source, PROTOCOL))
    }
}

/// Which interfaces have routes of ours.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// By network.
    interfaces: BTreeMap<String, String>,
}

/// A destination that somebody else has a route to, and the interfaces that it leads by.
type Foreign = (IpNetwork, Vec<u32>);

/// What has to change.
#[derive(Debug, Default)]
pub(super) struct Difference {
    add: Vec<Route>,
    remove: Vec<Route>,
    /// What is wanted and cannot be added.
    foreign: Vec<Foreign>,
}

/// What has to change so that the interface has the routes that are wanted.
pub(super) fn difference(wanted: &[Route], listed: &[Listed], interface: u32) -> Difference {
    let mut ours = Vec::new();
    let mut foreign: BTreeMap<IpNetwork, Vec<u32>> = BTreeMap::new();
    for listed in listed {
        match &listed.route {
            Ok(route) if route.protocol == PROTOCOL && listed.is_by(interface) => ours.push(route),
            Ok(route) => drop(foreign.insert(route.destination, listed.interfaces.clone())),
            Err(_) => {}
        }
    }
    let (mut add, mut taken): (Vec<Route>, Vec<Foreign>) = Default::default();
    for route in wanted {
        let there = ours.iter().any(|ours| ours.same(route) && ours.source == route.source);
        if there || add.iter().any(|other| other.destination == route.destination) {
            continue;
        }
        if let Some(by) = foreign.get(&route.destination) {
            taken.push((route.destination, by.clone()));
        } else {
            add.push(route.clone());
        }
    }
    let stays = |ours: &Route| wanted.iter().any(|route| ours.same(route) && ours.source == route.source);
    let remove = ours.into_iter().filter(|ours| !stays(ours)).cloned().collect();
    Difference { add, remove, foreign: taken }
}

impl Routes {
    /// Makes `wanted` the routes of a network, all by `interface`. Where somebody else has a route to one of them, the
    /// others are made before that is told.
    pub(super) async fn set(
        &mut self,
        net: &Netlink,
        journal: &mut Journal,
        network: &str,
        interface: &str,
        wanted: &[HostRoute],
    ) -> Result<(), HostError> {
        let mut routes = Vec::with_capacity(wanted.len());
        for route in wanted {
            routes.push(route.route()?);
        }
        if let Some(other) = self.interfaces.get(network)
            && other != interface
        {
            let other = other.clone();
            let report = self.clear(net, journal, network).await;
            if !report.is_clean() {
                let reason = format!("the routes of network {network} by {other} did not go");
                return Err(HostError::PutBack { reason, report });
            }
        }
        let taken = self.interfaces.iter().find(|(other, name)| *name == interface && *other != network);
        if let Some((other, _)) = taken {
            return Err(HostError::Refused(format!("{interface} has the routes of network {other} already")));
        }
        let link = interface::find(net, interface).await?;
        let listed = net.routes(Some(MAIN)).await.map_err(HostError::kernel("listing routes"))?;
        let change = difference(&routes, &listed, link.index);
        if !self.interfaces.contains_key(network) {
            journal.write(Record::Routes { interface: interface.to_owned() })?;
            self.interfaces.insert(network.to_owned(), interface.to_owned());
        }
        // What is to go goes first: it may be to a destination that is to have another source address.
        for route in change.remove {
            may_be_gone(net.delete_route(link.index, &route).await)
                .map_err(HostError::kernel(format!("removing the route to {route} by {interface}")))?;
        }
        for route in change.add {
            net.add_route(link.index, &route)
                .await
                .map_err(HostError::kernel(format!("adding a route to {route} by {interface}")))?;
        }
        match change.foreign.first() {
            Some((destination, by)) => Err(foreign(net, *destination, by).await),
            None => Ok(()),
        }
    }

    /// Removes a network's routes.
    pub(super) async fn clear(&mut self, net: &Netlink, journal: &mut Journal, network: &str) -> Report {
        match self.interfaces.remove(network) {
            Some(interface) => clear_interface(net, journal, &interface).await,
            None => Report::default(),
        }
    }

    pub(super) fn networks(&self) -> Vec<String> {
        self.interfaces.keys().cloned().collect()
    }
}

/// Removes all routes of ours by an interface that the journal tells of.
pub(super) async fn clear_interface(net: &Netlink, journal: &mut Journal, interface: &str) -> Report {
    let mut report = Report::default();
    if let Err(error) = remove_all(net, interface, &mut report).await {
        report.fail(error.to_string());
    }
    if report.is_clean()
        && let Err(error) = journal.write(Record::RoutesDone { interface: interface.to_owned() })
    {
        report.fail(error.to_string());
    }
    report
}

async fn remove_all(net: &Netlink, interface: &str, report: &mut Report) -> Result<(), HostError> {
    let link = net.link(interface).await.map_err(HostError::kernel(format!("looking for {interface}")))?;
    // An interface that is gone took its routes with it.
    let Some(link) = link else { return Ok(()) };
    let listed = net.routes(Some(MAIN)).await.map_err(HostError::kernel("listing routes"))?;
    for route in difference(&[], &listed, link.index).remove {
        if let Err(error) = may_be_gone(net.delete_route(link.index, &route).await) {
            report.fail(format!("removing the route to {route} by {interface}: {error}"));
        }
    }
    Ok(())
}

async fn foreign(net: &Netlink, destination: IpNetwork, by: &[u32]) -> HostError {
    let links = net.links().await.unwrap_or_default();
    let names: Vec<&str> =
        links.iter().filter(|link| by.contains(&link.index)).map(|link| link.name.as_str()).collect();
    let by = if names.is_empty() { String::new() } else { format!(" by {}", names.join(", ")) };
    HostError::Refused(format!(
        "the host has a route to {destination}{by} that is not ours: remove it, or give the guest another address"
    ))
}

#[cfg(test)]
mod tests;
