//! A network's host interface: its addresses, its MAC address, and that it is up.
//!
//! Only addresses that were set from here are ever removed from here; those that somebody else put on the interface
//! stay.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use switch_core::MacAddr;

use super::error::{HostError, Report};
use super::netlink::address::Address;
use super::netlink::link::{Link, LinkChange};
use super::netlink::{Netlink, may_be_gone};

/// What a host interface shall be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceSetup {
    /// Its name.
    pub name: String,
    /// Its MAC address; `None` leaves it.
    pub mac: Option<MacAddr>,
    /// Its addresses, each with the prefix that is on the link.
    pub addresses: Vec<IpNetwork>,
    /// Whether it is set up; false leaves it as it is.
    pub up: bool,
}

/// Which addresses of which interface are ours.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    ours: BTreeMap<String, Vec<Address>>,
}

/// What has to be added and removed so that an interface has what is wanted. Addresses that are there already are
/// not made ours by wanting them.
pub(super) fn difference(
    wanted: &[Address],
    there: &[Address],
    ours: &[Address],
) -> (Vec<Address>, Vec<Address>) {
    let among = |list: &[Address], one: &Address| list.iter().any(|other| other.same(one));
    let mut add: Vec<Address> = Vec::new();
    for address in wanted {
        if !among(there, address) && !among(&add, address) {
            add.push(address.clone());
        }
    }
    let remove = ours.iter().filter(|address| !among(wanted, address) && among(there, address));
    (add, remove.cloned().collect())
}

impl Interfaces {
    /// Makes an interface as it shall be.
    pub(super) async fn set(&mut self, net: &Netlink, setup: &InterfaceSetup) -> Result<(), HostError> {
        let link = find(net, &setup.name).await?;
        if let Some(mac) = setup.mac
            && link.mac != Some(mac)
        {
            let change = LinkChange { mac: Some(mac), ..LinkChange::default() };
            let what = format!("giving {} the MAC address {mac}", setup.name);
            net.set_link(link.index, change).await.map_err(HostError::kernel(what))?;
        }
        if setup.up && !link.up {
            let change = LinkChange { up: Some(true), ..LinkChange::default() };
            let what = format!("setting {} up", setup.name);
            net.set_link(link.index, change).await.map_err(HostError::kernel(what))?;
        }
        let wanted: Vec<Address> = setup.addresses.iter().map(|network| Address::new(*network)).collect();
        let there = addresses(net, &link).await?;
        let ours = self.ours.entry(setup.name.clone()).or_default();
        let (add, remove) = difference(&wanted, &there, ours);
        for address in add {
            let what = format!("adding {address} to {}", setup.name);
            net.add_address(link.index, &address).await.map_err(HostError::kernel(what))?;
            ours.push(address);
        }
        for address in remove {
            let what = format!("removing {address} from {}", setup.name);
            may_be_gone(net.delete_address(link.index, &address).await).map_err(HostError::kernel(what))?;
        }
        ours.retain(|address| wanted.iter().any(|other| other.same(address)));
        Ok(())
    }

    /// Takes our addresses off an interface.
    pub(super) async fn clear(&mut self, net: &Netlink, name: &str) -> Report {
        let mut report = Report::default();
        let Some(ours) = self.ours.remove(name) else { return report };
        let link = match net.link(name).await {
            Ok(Some(link)) => link,
            // It took its addresses with it.
            Ok(None) => return report,
            Err(error) => {
                report.fail(format!("looking for {name}: {error}"));
                return report;
            }
        };
        for address in ours {
            if let Err(error) = may_be_gone(net.delete_address(link.index, &address).await) {
                report.fail(format!("removing {address} from {name}: {error}"));
            }
        }
        report
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.ours.keys().cloned().collect()
    }
}

/// An interface that has to be there.
pub(super) async fn find(net: &Netlink, name: &str) -> Result<Link, HostError> {
    match net.link(name).await {
        Ok(Some(link)) => Ok(link),
        Ok(None) => Err(HostError::Refused(format!("there is no interface {name}"))),
        Err(source) => Err(HostError::Kernel { what: format!("looking for {name}"), source }),
    }
}

/// Its addresses.
pub(super) async fn addresses(net: &Netlink, link: &Link) -> Result<Vec<Address>, HostError> {
    let what = format!("listing the addresses of {}", link.name);
    net.addresses(link.index, &link.name).await.map_err(HostError::kernel(what))
}

#[cfg(test)]
mod tests;
