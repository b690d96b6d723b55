//! Steps done and undone on the host.

use std::collections::BTreeMap;

use rustix::time::{ClockId, clock_gettime};

use super::plan::{End, Flag, Identity, Item, Plan, Step};
use crate::host::error::{HostError, Report};
use crate::host::netlink::address::{Address, Lifetime};
use crate::host::netlink::link::{Link, LinkChange};
use crate::host::netlink::route::{Listed, Route};
use crate::host::netlink::{Netlink, may_be_gone};
use crate::host::sysctl::Files;

/// Seconds since the host's boot, sleep included.
pub(in crate::host) fn boot_seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or_default()
}

/// The host, where a plan's steps are done.
pub(super) struct Site<'a> {
    pub(super) net: &'a Netlink,
    pub(super) files: &'a Files,
}

impl Site<'_> {
    /// Does one step of a plan. What is done already stays so.
    pub(super) async fn perform(&self, plan: &Plan, step: &Step) -> Result<(), HostError> {
        match step {
            Step::Sysctl { path, to, .. } => self.files.write(path, to),
            Step::Mac { to, .. } => {
                self.set(&plan.host_if, LinkChange { mac: Some(mac(*to)), ..off() }).await
            }
            Step::Flag { on, flag, to } => self.set(identity(plan, *on), flag_change(*flag, *to)).await,
            Step::Put { on, item } => self.put(identity(plan, *on), item).await,
            Step::Take { from, item } => self.take(identity(plan, *from), item).await,
        }
    }

    async fn set(&self, on: &Identity, change: LinkChange) -> Result<(), HostError> {
        self.net.set_link(on.index, change).await.map_err(HostError::kernel(format!("changing {}", on.name)))
    }

    async fn put(&self, on: &Identity, item: &Item) -> Result<(), HostError> {
        match item {
            Item::Address(address) => {
                let what = format!("adding {address} to {}", on.name);
                self.net.add_address(on.index, address).await.map_err(HostError::kernel(what))
            }
            Item::Route(route) => {
                let what = format!("adding the route {route} by {}", on.name);
                self.net.append_route(on.index, route).await.map_err(HostError::kernel(what))
            }
            Item::Neighbours(neighbours) => {
                for neighbour in neighbours {
                    // They are a convenience: those that do not go are asked for again.
                    let _ = self.net.add_neighbour(on.index, neighbour).await;
                }
                Ok(())
            }
        }
    }

    async fn take(&self, from: &Identity, item: &Item) -> Result<(), HostError> {
        match item {
            Item::Address(address) => {
                let what = format!("removing {address} from {}", from.name);
                may_be_gone(self.net.delete_address(from.index, address).await)
                    .map_err(HostError::kernel(what))
            }
            Item::Route(route) => {
                let what = format!("removing the route {route} by {}", from.name);
                may_be_gone(self.net.delete_route(from.index, route).await).map_err(HostError::kernel(what))
            }
            Item::Neighbours(neighbours) => {
                for neighbour in neighbours {
                    let _ = self.net.delete_neighbour(from.index, neighbour.address).await;
                }
                Ok(())
            }
        }
    }

    /// Undoes the first `begun` steps of a plan, last first. What somebody else has changed meanwhile is left alone
    /// and noted; what fails is noted, and the rest goes on.
    pub(super) async fn undo(&self, plan: &Plan, begun: usize) -> Report {
        let mut report = Report::default();
        let now = match Now::look(self.net, plan).await {
            Ok(now) => now,
            Err(error) => {
                report.fail(error.to_string());
                return report;
            }
        };
        if now.nic.is_none() {
            report.note(format!("{} is gone, and what it had with it", plan.nic.name));
        }
        for step in plan.steps.iter().take(begun).rev() {
            if let Err(error) = self.undo_step(plan, &now, step, &mut report).await {
                report.fail(error.to_string());
            }
        }
        report
    }

    async fn undo_step(
        &self,
        plan: &Plan,
        now: &Now,
        step: &Step,
        report: &mut Report,
    ) -> Result<(), HostError> {
        match step.opposite() {
            Step::Sysctl { path, from, to } => match self.files.read(&path)? {
                Some(value) if value == from => self.files.write(&path, &to),
                Some(value) if value != to => {
                    report.note(format!(
                        "/proc/sys/net/{path} is {value} by somebody else's hand and stays so"
                    ));
                    Ok(())
                }
                _ => Ok(()),
            },
            Step::Mac { from, to } => {
                let Some(link) = &now.host_if else { return Ok(()) };
                if from == to || link.mac != Some(mac(from)) {
                    return Ok(());
                }
                self.set(&known(link), LinkChange { mac: Some(mac(to)), ..off() }).await
            }
            Step::Flag { on, flag, to } => match now.link(on) {
                Some(link) => self.set(&known(link), flag_change(flag, to)).await,
                None => Ok(()),
            },
            Step::Take { from, item } => match now.link(from) {
                Some(link) => self.take(&known(link), &item).await,
                None => Ok(()),
            },
            Step::Put { on, item } => {
                let Some(link) = now.link(on) else { return Ok(()) };
                let Some(item) = now.restored(plan, item, report) else { return Ok(()) };
                self.put(&known(link), &item).await
            }
        }
    }
}

/// The host when undoing begins.
struct Now {
    nic: Option<Link>,
    host_if: Option<Link>,
    /// The addresses of the host interface: their lifetimes may have been renewed there.
    addresses: Vec<Address>,
    routes: Vec<Listed>,
    /// Seconds since the plan was made.
    elapsed: u32,
    names: BTreeMap<u32, String>,
}

impl Now {
    async fn look(net: &Netlink, plan: &Plan) -> Result<Self, HostError> {
        let links = net.links().await.map_err(HostError::kernel("listing interfaces"))?;
        let nic = recognise(&links, &plan.nic, &[plan.nic.mac]);
        let host_if = recognise(&links, &plan.host_if, &[plan.host_if.mac, plan.nic.mac]);
        let addresses = match &host_if {
            Some(link) => net.addresses(link.index, &link.name).await.unwrap_or_default(),
            None => Vec::new(),
        };
        let routes = net.routes(None).await.map_err(HostError::kernel("listing routes"))?;
        let elapsed = u32::try_from(boot_seconds().saturating_sub(plan.made_s)).unwrap_or(u32::MAX);
        let names = links.into_iter().map(|link| (link.index, link.name)).collect();
        Ok(Self { nic, host_if, addresses, routes, elapsed, names })
    }

    fn link(&self, end: End) -> Option<&Link> {
        match end {
            End::Nic => self.nic.as_ref(),
            End::HostIf => self.host_if.as_ref(),
        }
    }

    /// What is to be put back, as it is by now; `None` if it is not to be.
    fn restored(&self, plan: &Plan, item: Item, report: &mut Report) -> Option<Item> {
        match item {
            Item::Address(address) => {
                let renewed = self
                    .addresses
                    .iter()
                    .find(|other| other.address == address.address && other.prefix == address.prefix);
                match aged(&address, renewed, self.elapsed) {
                    Some(address) => Some(Item::Address(address)),
                    None => {
                        report
                            .note(format!("{address} has expired and is not put back on {}", plan.nic.name));
                        None
                    }
                }
            }
            Item::Route(mut route) => {
                if let Some(other) = self.replaced(plan, &route) {
                    report.note(format!("the route {route} leads by {other} now, by somebody else's hand"));
                    return None;
                }
                if let Some(expires) = route.expires {
                    route.expires = Some(expires.saturating_sub(self.elapsed).max(1));
                }
                Some(Item::Route(route))
            }
            neighbours @ Item::Neighbours(_) => Some(neighbours),
        }
    }

    /// By which other interface a route to the same destination, of the same metric, leads.
    fn replaced(&self, plan: &Plan, route: &Route) -> Option<String> {
        let ours = [&self.nic, &self.host_if].map(|link| link.as_ref().map(|link| link.index));
        let key = |r: &Route| (r.destination, r.from, r.table, r.tos, r.effective_metric());
        let others = self.routes.iter().filter_map(|listed| Some((listed, listed.route.as_ref().ok()?)));
        let mut indices = others
            .filter(|(_, other)| key(other) == key(route))
            .flat_map(|(listed, _)| listed.interfaces.iter())
            .filter(|index| !ours.contains(&Some(**index)) && **index != plan.host_if.index);
        let index = indices.next()?;
        Some(self.names.get(index).cloned().unwrap_or_else(|| format!("interface {index}")))
    }
}

/// An address with what is left of its lifetime: what `renewed` says, or what time has left of it.
pub(super) fn aged(address: &Address, renewed: Option<&Address>, elapsed: u32) -> Option<Address> {
    let mut address = address.clone();
    address.lifetime = match (renewed.map(|renewed| renewed.lifetime), address.lifetime) {
        (Some(renewed), Some(_)) => renewed,
        (None, Some(was)) => {
            let valid = was.valid.saturating_sub(elapsed);
            if valid == 0 {
                return None;
            }
            let preferred = match was.preferred {
                u32::MAX => u32::MAX,
                preferred => preferred.saturating_sub(elapsed),
            };
            Some(Lifetime { preferred, valid })
        }
        (_, None) => None,
    };
    Some(address)
}

/// The interface that a plan means: of the same number and one of its MAC addresses (it may have another name by
/// now), or else of the same name (it may have been plugged in again).
pub(super) fn recognise(links: &[Link], identity: &Identity, macs: &[[u8; 6]]) -> Option<Link> {
    let same =
        |link: &&Link| link.index == identity.index && macs.iter().any(|known| link.mac == Some(mac(*known)));
    links.iter().find(same).or_else(|| links.iter().find(|link| link.name == identity.name)).cloned()
}

fn known(link: &Link) -> Identity {
    Identity { name: link.name.clone(), index: link.index, mac: link.mac.unwrap_or_default().0 }
}

fn identity(plan: &Plan, end: End) -> &Identity {
    match end {
        End::Nic => &plan.nic,
        End::HostIf => &plan.host_if,
    }
}

fn mac(bytes: [u8; 6]) -> switch_core::MacAddr {
    switch_core::MacAddr(bytes)
}

fn off() -> LinkChange {
    LinkChange::default()
}

fn flag_change(flag: Flag, to: bool) -> LinkChange {
    match flag {
        Flag::Up => LinkChange { up: Some(to), ..off() },
        Flag::Arp => LinkChange { arp: Some(to), ..off() },
    }
}
