//! Whether the host is still reachable after a move: its link, its default routes, and the gateways at their end.
//!
//! A gateway is asked for by the kernel's own neighbour discovery, before the move by the NIC and after it by the
//! host interface. One that did not answer before proves nothing by its silence afterwards, and is not waited for.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::plan::Plan;
use crate::host::netlink::Netlink;
use crate::host::netlink::neighbour::Knowledge;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);
/// Between two times that a silent gateway is asked for.
const ASK_PERIOD: Duration = Duration::from_secs(1);
/// How long a gateway may take to answer before the move.
const ANSWER_TIME: Duration = Duration::from_millis(1000);

/// What has to hold.
struct Expected {
    nic: String,
    host_if: String,
    index: u32,
    /// Families that had a default route: true for IPv4.
    families: Vec<bool>,
    gateways: Vec<IpAddr>,
    watch_for: Duration,
}

/// A move that is not watched yet.
pub(super) struct Prepared(Expected);

/// A move under watch.
pub(super) struct Watched {
    expected: Expected,
    deadline: Instant,
    due: Instant,
    /// When the gateways were asked for last.
    asked: Option<Instant>,
}

impl Watched {
    /// Finds out what holds before the move.
    pub(super) async fn prepare(
        net: &Netlink,
        plan: &Plan,
        notes: &mut Vec<String>,
        watch_for: Duration,
    ) -> Prepared {
        let defaults = plan.default_routes();
        let mut families: Vec<bool> = defaults.iter().map(|route| route.destination.is_ipv4()).collect();
        families.sort_unstable();
        families.dedup();
        let mut gateways: Vec<IpAddr> = defaults.iter().filter_map(|route| route.gateway).collect();
        gateways.sort_unstable();
        gateways.dedup();
        let silent = ask(net, plan.nic.index, &gateways).await;
        for gateway in &silent {
            notes.push(format!("the gateway {gateway} did not answer before the move and is not waited for"));
        }
        gateways.retain(|gateway| !silent.contains(gateway));
        Prepared(Expected {
            nic: plan.nic.name.clone(),
            host_if: plan.host_if.name.clone(),
            index: plan.host_if.index,
            families,
            gateways,
            watch_for,
        })
    }

    pub(super) fn nic(&self) -> &str {
        &self.expected.nic
    }

    pub(super) fn host_if(&self) -> &str {
        &self.expected.host_if
    }

    /// When to look next.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Looks; `None` while it is too early to say.
    pub(super) async fn look(&mut self, net: &Netlink) -> Option<Result<(), String>> {
        if Instant::now() < self.due {
            return None;
        }
        let missing = match self.missing(net).await {
            Ok(missing) => missing,
            Err(error) => Some(format!("the kernel does not tell: {error}")),
        };
        let now = Instant::now();
        self.due = now + PERIOD;
        match missing {
            None => Some(Ok(())),
            Some(reason) if now >= self.deadline => {
                Some(Err(format!("{reason} for {} s", self.expected.watch_for.as_secs_f32())))
            }
            Some(_) => None,
        }
    }

    /// What does not hold.
    async fn missing(&mut self, net: &Netlink) -> std::io::Result<Option<String>> {
        let Expected { host_if, index, families, gateways, .. } = &self.expected;
        let links = net.links().await?;
        let Some(link) = links.iter().find(|link| link.index == *index) else {
            return Ok(Some(format!("{host_if} was not there")));
        };
        if !link.carrier {
            return Ok(Some(format!("the link of {host_if} was not up")));
        }
        let routes = net.routes(None).await?;
        for ipv4 in families {
            let usable = routes.iter().any(|listed| {
                let default =
                    listed.route.as_ref().is_ok_and(|r| r.is_default() && r.destination.is_ipv4() == *ipv4);
                default && listed.is_by(*index) && !listed.dead
            });
            if !usable {
                let family = if *ipv4 { "IPv4" } else { "IPv6" };
                return Ok(Some(format!("there was no usable default route of {family} by {host_if}")));
            }
        }
        if gateways.is_empty() {
            return Ok(None);
        }
        let neighbours = net.neighbours(*index).await?;
        let entry = |gateway: &IpAddr| neighbours.iter().find(|n| n.address == *gateway);
        let asked = self.asked;
        let mut silent = None;
        let mut ask_again = Vec::new();
        for gateway in gateways {
            match entry(gateway).map(|n| n.knowledge) {
                Some(Knowledge::Permanent) => continue,
                // What it is known by from before the move is no proof that it answers now.
                Some(Knowledge::Reachable) if asked.is_some() => continue,
                Some(Knowledge::Asking) if asked.is_some() => {}
                _ => ask_again.push((*gateway, entry(gateway).and_then(|n| n.mac))),
            }
            silent = Some(*gateway);
        }
        if !ask_again.is_empty() && asked.is_none_or(|at| at.elapsed() >= ASK_PERIOD) {
            for (gateway, mac) in ask_again {
                let _ = net.ask_neighbour(*index, gateway, mac).await;
            }
            self.asked = Some(Instant::now());
        }
        Ok(silent.map(|gateway| format!("the gateway {gateway} did not answer on {host_if}")))
    }
}

impl Prepared {
    /// Watches from now on.
    pub(super) fn begin(self) -> Watched {
        let now = Instant::now();
        Watched { deadline: now + self.0.watch_for, due: now, asked: None, expected: self.0 }
    }
}

/// Asks for gateways; those that do not answer.
async fn ask(net: &Netlink, index: u32, gateways: &[IpAddr]) -> Vec<IpAddr> {
    let mut silent = gateways.to_vec();
    let end = Instant::now() + ANSWER_TIME;
    let mut first = true;
    while !silent.is_empty() {
        let neighbours = net.neighbours(index).await.unwrap_or_default();
        let entry = |gateway: &IpAddr| neighbours.iter().find(|n| n.address == *gateway);
        silent.retain(|gateway| {
            let known = entry(gateway).map(|n| n.knowledge);
            !matches!(known, Some(Knowledge::Reachable | Knowledge::Permanent))
        });
        if first {
            for gateway in &silent {
                let _ = net.ask_neighbour(index, *gateway, entry(gateway).and_then(|n| n.mac)).await;
            }
            first = false;
        }
        if Instant::now() >= end {
            break;
        }
        if !silent.is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    }
    silent
}
