//! Replies as text for people.

use super::table::{Table, pairs};
use crate::protocol::{
    FdbEntry, Forward, Lease, NatSession, Network, NetworkDetail, Port, PortCounters, PortDetail, Resolved,
    Status,
};

/// A reply that a person can read.
pub(super) trait Render {
    /// Lines, each ended; may be empty.
    fn render(&self) -> String;
}

fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

fn state(state: &str, reason: Option<&String>) -> String {
    reason.map_or_else(|| state.to_owned(), |reason| format!("{state} ({reason})"))
}

fn switch(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

fn list(items: &[String]) -> String {
    or_dash(Some(&items.join(", ")))
}

/// One number for each of another, with a digit after the point; a dash if there is none of the other.
fn ratio(of: u64, each: u64) -> String {
    let tenths = (u128::from(of) * 10 + u128::from(each) / 2).checked_div(each.into());
    tenths.map_or_else(|| "-".to_owned(), |tenths| format!("{}.{}", tenths / 10, tenths % 10))
}

impl Render for Status {
    fn render(&self) -> String {
        let mut out = pairs(&[
            ("version", self.version.clone()),
            ("pid", self.pid.to_string()),
            ("uptime", format!("{} s", self.uptime_s)),
            ("networks", self.networks.to_string()),
            ("ports", self.ports.to_string()),
        ]);
        let mut table = Table::new(&[
            ">CPU",
            ">QUEUES",
            ">BUSY",
            ">FRAMES",
            ">CYCLES/FRAME",
            ">FRAMES/BURST",
            ">POLLS",
            ">IN-VAIN",
            ">SLEEPS",
            ">WAKE-UPS",
        ]);
        for worker in &self.workers {
            table.row([
                worker.cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string()),
                worker.queues.to_string(),
                format!("{} %", ratio(worker.busy_permille, 10)),
                worker.frames.to_string(),
                ratio(worker.cycles_busy, worker.frames),
                ratio(worker.frames, worker.bursts),
                worker.polls.to_string(),
                worker.polls_idle.to_string(),
                worker.sleeps.to_string(),
                worker.wakeups.to_string(),
            ]);
        }
        if !self.workers.is_empty() {
            out.push('\n');
        }
        out + &table.render()
    }
}

impl Render for Vec<Network> {
    fn render(&self) -> String {
        let mut table = Table::new(&["NAME", "MODE", ">PORTS", ">MTU", "UPLINK", "HOST-IF", "STATE"]);
        for network in self {
            table.row([
                network.name.clone(),
                network.mode.clone(),
                network.ports.to_string(),
                network.mtu.to_string(),
                or_dash(network.uplink.as_deref()),
                switch(network.host_if),
                state(&network.state, network.reason.as_ref()),
            ]);
        }
        table.render()
    }
}

impl Render for NetworkDetail {
    fn render(&self) -> String {
        let mut lines = vec![
            ("name", self.name.clone()),
            ("mode", self.mode.clone()),
            ("state", state(&self.state, self.reason.as_ref())),
            ("mtu", self.mtu.to_string()),
            ("uplink", or_dash(self.uplink.as_deref())),
            ("host-address", self.host_address.clone()),
            ("host-if", switch(self.host_if)),
        ];
        if let Some(ageing) = self.ageing_s {
            lines.push(("ageing", format!("{ageing} s")));
        }
        if let (Some(entries), Some(max)) = (self.fdb_entries, self.fdb_max) {
            lines.push(("fdb", format!("{entries} of {max}")));
        }
        if let Some(resolved) = &self.resolved {
            resolved_lines(resolved, &mut lines);
        }
        lines.push(("ports", self.ports.to_string()));
        lines.push(("members", list(&self.members)));
        let keys: Vec<_> = self.keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
        lines.push(("keys", or_dash(Some(&keys.join(" ")))));
        pairs(&lines)
    }
}

fn resolved_lines(resolved: &Resolved, lines: &mut Vec<(&'static str, String)>) {
    let count = |n: Option<u64>| n.map(|n| n.to_string());
    let mut push = |key, value: Option<String>| lines.extend(value.map(|value| (key, value)));
    push("gateway", resolved.gateway.clone());
    push("gateway6", resolved.gateway6.clone());
    push("gateway-mac", resolved.gateway_mac.clone());
    push("dhcp", Some(resolved.dhcp.clone().unwrap_or_else(|| "off".to_owned())));
    push("lease-time", resolved.lease_time_s.map(|s| format!("{s} s")));
    if let (Some(used), Some(free)) = (resolved.leases_used, resolved.leases_free) {
        push("leases", Some(format!("{used} used, {free} free")));
    }
    push("dns", Some(switch(resolved.dns)));
    push("dns-servers", Some(list(&resolved.dns_servers)));
    push("egress", resolved.egress.clone());
    push("address", resolved.address.clone());
    push("next-hop", resolved.next_hop.clone());
    push("address6", resolved.address6.clone());
    push("next-hop6", resolved.next_hop6.clone());
    push("host-interface", resolved.host_interface.clone());
    push("forwarding", resolved.forwarding.map(switch));
    push("sessions", count(resolved.sessions));
    push("quota", count(resolved.quota));
    push("pings", resolved.pings.map(switch));
    push("forwards", count(resolved.forwards));
    if let Some(counters) = &resolved.counters {
        let counted = counters.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name} {n}"));
        push("counted", Some(list(&counted.collect::<Vec<_>>())));
    }
}

impl Render for Vec<Port> {
    fn render(&self) -> String {
        let mut table = Table::new(&["NAME", "NETWORK", "KIND", "MAC", "IP", ">MTU", ">QUEUES", "STATE"]);
        for port in self {
            table.row([
                port.name.clone(),
                port.network.clone(),
                port.kind.clone(),
                or_dash(port.mac.as_deref()),
                or_dash(Some(&port.ip.join(","))),
                port.mtu.to_string(),
                port.queues.to_string(),
                state(&port.state, port.reason.as_ref()),
            ]);
        }
        table.render()
    }
}

impl Render for PortDetail {
    fn render(&self) -> String {
        let mut lines = vec![
            ("name", self.name.clone()),
            ("network", self.network.clone()),
            ("kind", self.kind.clone()),
            ("state", state(&self.state, self.reason.as_ref())),
        ];
        let mut push = |key, value: Option<String>| lines.extend(value.map(|value| (key, value)));
        push("uptime", self.uptime_s.map(|s| format!("{s} s")));
        push("role", self.role.clone());
        push("remote", self.remote.clone());
        push("queues", Some(self.queues.to_string()));
        push("mac", Some(or_dash(self.mac.as_deref())));
        push("ip", Some(list(&self.ip)));
        push("routes", (!self.routes.is_empty()).then(|| list(&self.routes)));
        push("mtu", Some(self.mtu.to_string()));
        push("vlan", self.vlan.map(|vlan| vlan.to_string()));
        push("isolated", Some(switch(self.isolated)));
        push("antispoof", Some(switch(self.antispoof)));
        push("rate", self.rate.clone());
        push("features", self.features.as_deref().map(list));
        let mut out = pairs(&lines);
        if let Some(rings) = self.rings.as_ref().filter(|rings| !rings.is_empty()) {
            let mut table = Table::new(&[">RING", ">SIZE", "STATE"]);
            for ring in rings {
                table.row([ring.index.to_string(), ring.size.to_string(), ring.state.clone()]);
            }
            out = out + "\n" + &table.render();
        }
        out
    }
}

fn drops(counters: &PortCounters) -> u64 {
    counters.drops.values().fold(0, |sum, n| sum.saturating_add(*n))
}

impl Render for PortCounters {
    fn render(&self) -> String {
        let mut lines = vec![
            ("name", self.name.clone()),
            ("rx_frames", self.rx_frames.to_string()),
            ("rx_bytes", self.rx_bytes.to_string()),
            ("tx_frames", self.tx_frames.to_string()),
            ("tx_bytes", self.tx_bytes.to_string()),
            ("copies", self.copies.to_string()),
            ("forwarded", self.forwarded.to_string()),
            ("offered", self.offered.to_string()),
            ("frames/burst", ratio(self.rx_frames, self.rx_bursts)),
            ("cycles/frame", ratio(self.cycles, self.rx_frames)),
            ("polls in vain", self.polls_idle.to_string()),
            ("wake-ups", self.wakeups.to_string()),
            ("drops", drops(self).to_string()),
        ];
        let reasons: Vec<_> = self.drops.iter().map(|(reason, n)| (format!("  {reason}"), n)).collect();
        lines.extend(reasons.iter().filter(|(_, n)| **n > 0).map(|(reason, n)| (&**reason, n.to_string())));
        pairs(&lines)
    }
}

impl Render for Vec<PortCounters> {
    fn render(&self) -> String {
        let mut table = Table::new(&[
            "NAME",
            ">RX-FRAMES",
            ">RX-BYTES",
            ">TX-FRAMES",
            ">TX-BYTES",
            ">DROPS",
            ">FRAMES/BURST",
            ">CYCLES/FRAME",
        ]);
        for port in self {
            let numbers = [port.rx_frames, port.rx_bytes, port.tx_frames, port.tx_bytes, drops(port)];
            let ratios = [ratio(port.rx_frames, port.rx_bursts), ratio(port.cycles, port.rx_frames)];
            table.row([port.name.clone()].into_iter().chain(numbers.map(|n| n.to_string())).chain(ratios));
        }
        table.render()
    }
}

impl Render for Vec<FdbEntry> {
    fn render(&self) -> String {
        let mut table = Table::new(&["MAC", ">VLAN", "PORT", ">AGE", "KIND"]);
        for entry in self {
            let (age, kind) = match entry.r#static {
                true => ("-".to_owned(), "static"),
                false => (entry.age_s.to_string(), "learned"),
            };
            table.row([entry.mac.clone(), entry.vlan.to_string(), entry.port.clone(), age, kind.to_owned()]);
        }
        table.render()
    }
}

impl Render for Vec<Lease> {
    fn render(&self) -> String {
        let mut table = Table::new(&["NETWORK", "MAC", "IP", "HOSTNAME", ">EXPIRES", "STATE", "KIND"]);
        for lease in self {
            let expires = match &*lease.state {
                "reserved" => "-".to_owned(),
                _ => lease.expires_s.to_string(),
            };
            table.row([
                lease.network.clone(),
                lease.mac.clone(),
                lease.ip.clone(),
                or_dash(Some(&lease.hostname)),
                expires,
                lease.state.clone(),
                if lease.r#static { "static" } else { "dynamic" }.to_owned(),
            ]);
        }
        table.render()
    }
}

impl Render for Vec<NatSession> {
    fn render(&self) -> String {
        let mut table = Table::new(&["PROTO", "INSIDE", "OUTSIDE", "REMOTE", "STATE", ">IDLE"]);
        for s in self {
            let words = [&s.proto, &s.inside, &s.outside, &s.remote, &s.state];
            table.row(words.into_iter().cloned().chain([s.idle_s.to_string()]));
        }
        table.render()
    }
}

impl Render for Vec<Forward> {
    fn render(&self) -> String {
        let mut table = Table::new(&["NETWORK", "PROTO", "LISTEN", "TARGET", "SOURCE"]);
        for f in self {
            table.row([&f.network, &f.proto, &f.listen, &f.target, &f.source].map(String::clone));
        }
        table.render()
    }
}
