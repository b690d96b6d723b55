//! What two tables of one file must not both have: interfaces, sockets, subnets of the host, addresses of guests, and
//! ports that are listened on.
//!
//! The checks are those of the model ([`NetworkSpec::conflicts`], [`PortSpec::conflicts`], [`ForwardSpec::conflicts`]);
//! here they are asked of those only that can answer yes, so that a file of many tables is read in good time.

use crate::model::{Claim, ForwardSpec, ModelError, NetworkSpec, PortSpec};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// The most forwards that share one outside.
const FORWARDS_MAX: usize = 4096;

/// Something of a guest that one port of a network has.
#[derive(PartialEq, Eq, Hash)]
enum OfGuest {
    Ip(IpAddr),
    Route(IpNetwork),
}

/// Who has what, so far.
#[derive(Default)]
pub(super) struct Taken {
    claims: BTreeMap<Claim, String>,
    /// First addresses of the subnets that the host routes, to their last ones and their networks. They are disjoint.
    v4: BTreeMap<u32, (u32, String)>,
    v6: BTreeMap<u128, (u128, String)>,
    guests: HashMap<(String, OfGuest), String>,
    /// Forwards by their outside: that of the host is one for all networks, and has no name.
    forwards: BTreeMap<String, Vec<ForwardSpec>>,
}

impl Taken {
    fn claim(&mut self, owner: &str, wanted: Vec<Claim>) -> Result<(), ModelError> {
        for claim in wanted {
            if let Some(other) = self.claims.get(&claim) {
                return Err(ModelError::new(format!("{owner}: {claim} is taken by {other} already")));
            }
            self.claims.insert(claim, owner.to_owned());
        }
        Ok(())
    }

    /// Takes what a network has, or says who has it already.
    pub(super) fn network(
        &mut self,
        spec: &NetworkSpec,
        others: &BTreeMap<String, NetworkSpec>,
    ) -> Result<(), ModelError> {
        self.claim(&format!("network {}", spec.name), spec.claims())?;
        if !spec.uses_host_routes() {
            return Ok(());
        }
        let v4 = spec.subnet.map(|s| (u32::from(s.network()), u32::from(s.broadcast())));
        let v6 = spec.subnet6.map(|s| (u128::from(s.network()), u128::from(s.broadcast())));
        let overlapping = [v4.and_then(|s| holder(&self.v4, s)), v6.and_then(|s| holder(&self.v6, s))];
        let why = overlapping.into_iter().flatten().find_map(|name| spec.conflicts(others.get(name)?));
        if let Some(why) = why {
            return Err(ModelError::new(format!("network {}: {why}", spec.name)));
        }
        v4.map(|(first, last)| self.v4.insert(first, (last, spec.name.clone())));
        v6.map(|(first, last)| self.v6.insert(first, (last, spec.name.clone())));
        Ok(())
    }

    /// The same for a port of `network`.
    pub(super) fn port(
        &mut self,
        spec: &PortSpec,
        network: &NetworkSpec,
        others: &BTreeMap<String, PortSpec>,
    ) -> Result<(), ModelError> {
        self.claim(&format!("port {}", spec.name), spec.claims())?;
        let of_guest =
            spec.ip.iter().map(|ip| OfGuest::Ip(*ip)).chain(spec.routes.iter().map(|r| OfGuest::Route(*r)));
        for of_guest in of_guest {
            let other = self.guests.insert((network.name.clone(), of_guest), spec.name.clone());
            let why = other.and_then(|name| spec.conflicts(others.get(&name)?, network));
            if let Some(why) = why {
                return Err(ModelError::new(format!("port {}: {why}", spec.name)));
            }
        }
        Ok(())
    }

    /// The same for a forward, which was compared with those of its own network already.
    pub(super) fn forward(&mut self, spec: &ForwardSpec, network: &NetworkSpec) -> Result<(), ModelError> {
        let outside = if network.translates() { network.name.clone() } else { String::new() };
        let there = self.forwards.entry(outside).or_default();
        let clash = there
            .iter()
            .filter(|other| other.network != spec.network)
            .find_map(|other| Some((spec.conflicts(other)?, other)));
        if let Some((port, other)) = clash {
            return Err(ModelError::new(format!(
                "forward {spec}: the host listens on port {port} for {other} already"
            )));
        }
        if there.len() == FORWARDS_MAX {
            return Err(ModelError::new(format!("forward {spec}: there are {FORWARDS_MAX} already")));
        }
        there.push(spec.clone());
        Ok(())
    }
}

/// Whose subnet has an address of this one.
fn holder<T: Ord + Copy>(subnets: &BTreeMap<T, (T, String)>, (first, last): (T, T)) -> Option<&str> {
    // Those that are there are disjoint, so the last that starts below our end is the only one that can reach us, or
    // the last of several that lie within us.
    let (_, (end, name)) = subnets.range(..=last).next_back()?;
    (*end >= first).then_some(name)
}
