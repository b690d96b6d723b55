//! Masquerading by the host: one table of nftables for each network with `egress=host`.
//!
//! Invariants: the table is ours whole, named after the network, in family `inet`; no other table is read or written.
//! It is put in place and changed in one transaction (`nft -j -f -`), so that there is no moment without rules; what
//! the kernel translates already keeps its translation. What it does, as libvirt does for a network in mode `nat`:
//!
//! - outwards (from the subnet, by an interface that is not the network's): translated to the host's address there,
//!   TCP and UDP to ports from 1024 on; never to the subnet itself, 224.0.0.0/24 or 255.255.255.255;
//! - inwards: what belongs to a connection from inside, and what a port forward let in; else ICMP port unreachable;
//! - port forwards: for an address of the host's (or one that was named), from outside, from the host and from the
//!   subnet itself. In the last case the source is translated too, so that answers come back the same way (hairpin).
//!
//! An `accept` of this table does not overrule another table's `drop`: a host firewall has to let the network's
//! interface forward.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use nftables::batch::Batch;
use nftables::expr::{
    CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix,
    Range, SetItem,
};
use nftables::schema::{Chain, NfListObject, Nftables, Rule, Table};
use nftables::stmt::{Match, NAT, NATFamily, Operator, Reject, RejectType, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};

use super::error::HostError;

pub(super) mod command;
pub(super) mod tables;
mod watch;

#[cfg(test)]
mod tests;

/// Ports that a forward to other ports may have: each takes a rule.
const SHIFTED_PORTS_MAX: usize = 1024;
/// Port forwards of a network, at most.
const FORWARDS_MAX: usize = 4096;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForwardProto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl ForwardProto {
    fn name(self) -> &'static str {
        match self {
            ForwardProto::Tcp => "tcp",
            ForwardProto::Udp => "udp",
        }
    }
}

/// Ports of the host that lead to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostForward {
    /// Of which protocol.
    pub proto: ForwardProto,
    /// At which address; `None` at each of the host's (but not the loopback).
    pub listen: Option<IpAddr>,
    /// Which ports.
    pub ports: RangeInclusive<u16>,
    /// To which guest.
    pub to: IpAddr,
    /// To which port the first of them leads; the others follow.
    pub to_port: u16,
}

/// What the host does for a network that masquerades behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The network.
    pub network: String,
    /// Its host interface.
    pub host_if: String,
    /// Its IPv4 subnet.
    pub subnet: Ipv4Network,
    /// Its IPv6 subnet.
    pub subnet6: Option<Ipv6Network>,
    /// Whether IPv6 is translated, too; else it is forwarded as it is, with the same filter.
    pub masquerade6: bool,
    /// Its port forwards.
    pub forwards: Vec<HostForward>,
}

/// The name of a network's table: letters, digits and underscores. Two networks never have the same: what is
/// neither letter nor digit is told by its number between underscores, an underscore by two.
pub fn table_name(network: &str) -> String {
    let mut name = String::from("weft_");
    for c in network.chars() {
        match c {
            '_' => name.push_str("__"),
            c if c.is_ascii_alphanumeric() => name.push(c),
            c => name.push_str(&format!("_{:x}_", u32::from(c))),
        }
    }
    name
}

impl Masquerade {
    /// Refuses what would not work, or would not end.
    pub(super) fn check(&self) -> Result<(), HostError> {
        let refused = |text: String| Err(HostError::Refused(format!("network {}: {text}", self.network)));
        if self.host_if.is_empty() || self.host_if.len() > 15 {
            return refused(format!("'{}' is not the name of an interface", self.host_if));
        }
        if self.forwards.len() > FORWARDS_MAX {
            return refused(format!("{} port forwards; {FORWARDS_MAX} is the most", self.forwards.len()));
        }
        for forward in &self.forwards {
            let (first, last) = (*forward.ports.start(), *forward.ports.end());
            let count = usize::from(last).saturating_sub(usize::from(first)).saturating_add(1);
            if first > last || first == 0 || forward.to_port == 0 {
                return refused(format!("{first}-{last} to {} is not a range of ports", forward.to_port));
            }
            if usize::from(forward.to_port).saturating_add(count) > 65_536 {
                return refused(format!("{count} ports from {} on are more than there are", forward.to_port));
            }
            if forward.to_port != first && count > SHIFTED_PORTS_MAX {
                return refused(format!(
                    "{count} ports to other ports; {SHIFTED_PORTS_MAX} is the most, any number to the same ports"
                ));
            }
            if forward.listen.is_some_and(|listen| listen.is_ipv4() != forward.to.is_ipv4()) {
                return refused(format!("a port forward to {} listens at another family", forward.to));
            }
            let inside = match forward.to {
                IpAddr::V4(to) => self.subnet.contains(to),
                IpAddr::V6(to) => self.subnet6.is_some_and(|subnet| subnet.contains(to)),
            };
            if !inside {
                return refused(format!("{} is not in the network's subnet", forward.to));
            }
        }
        Ok(())
    }

    fn subnets(&self) -> Vec<IpNetwork> {
        let mut subnets = vec![IpNetwork::V4(self.subnet)];
        subnets.extend(self.subnet6.map(IpNetwork::V6));
        subnets
    }

    /// The transaction that puts the table in place of the one that may be there.
    pub(super) fn ruleset(&self) -> Nftables<'static> {
        let name = table_name(&self.network);
        let mut batch = Batch::new();
        batch.add(NfListObject::Table(table(&name)));
        batch.delete(NfListObject::Table(table(&name)));
        batch.add(NfListObject::Table(table(&name)));
        let mut rules = Rules { batch, table: name };
        self.translation(&mut rules);
        self.forwarding(&mut rules);
        rules.batch.to_nftables()
    }

    fn translation(&self, rules: &mut Rules) {
        rules.chain("prerouting", NfChainType::NAT, NfHook::Prerouting, -100);
        rules.chain("output", NfChainType::NAT, NfHook::Output, -100);
        for forward in &self.forwards {
            for (ports, to_port) in forward.parts() {
                let mut to = vec![forward.to_address(), forward.to_ports(ports.clone())];
                to.push(forward.dnat(to_port));
                rules.rule("prerouting", to.clone());
                if forward.listen.is_none() {
                    // What the host sends to its loopback has a source that no guest can answer.
                    to.insert(0, not_loopback(forward.to));
                }
                rules.rule("output", to);
            }
        }
        rules.chain("postrouting", NfChainType::NAT, NfHook::Postrouting, 100);
        let host_if = || string(&self.host_if);
        for subnet in self.subnets() {
            let from = || matches(address_field(subnet, "saddr"), Operator::EQ, prefix(subnet));
            let inwards = matches(meta(MetaKey::Oifname), Operator::EQ, host_if());
            let outwards = || matches(meta(MetaKey::Oifname), Operator::NEQ, host_if());
            rules.rule("postrouting", vec![from(), inwards, forwarded(), Statement::Masquerade(None)]);
            let to_itself = matches(address_field(subnet, "daddr"), Operator::EQ, prefix(subnet));
            rules.rule("postrouting", vec![from(), to_itself, Statement::Return(None)]);
            let groups = match subnet {
                IpNetwork::V4(_) => set([network("224.0.0.0", 24), string("255.255.255.255")]),
                IpNetwork::V6(_) => network("ff00::", 8),
            };
            let to_group = matches(address_field(subnet, "daddr"), Operator::EQ, groups);
            rules.rule("postrouting", vec![from(), to_group, Statement::Return(None)]);
            if subnet.is_ipv6() && !self.masquerade6 {
                continue;
            }
            let transports = set([string("tcp"), string("udp")]);
            let transport = matches(meta(MetaKey::L4proto), Operator::EQ, transports);
            let ports = NAT { addr: None, family: None, port: Some(range(1024, 65_535)), flags: None };
            rules
                .rule("postrouting", vec![from(), outwards(), transport, Statement::Masquerade(Some(ports))]);
            rules.rule("postrouting", vec![from(), outwards(), Statement::Masquerade(None)]);
        }
    }

    fn forwarding(&self, rules: &mut Rules) {
        rules.chain("forward", NfChainType::Filter, NfHook::Forward, 0);
        let by = |key| matches(meta(key), Operator::EQ, string(&self.host_if));
        let (comes, goes) = (|| by(MetaKey::Iifname), || by(MetaKey::Oifname));
        let accept = || Statement::Accept(None);
        rules.rule("forward", vec![comes(), goes(), accept()]);
        for subnet in self.subnets() {
            let from = matches(address_field(subnet, "saddr"), Operator::EQ, prefix(subnet));
            rules.rule("forward", vec![comes(), from, accept()]);
            let to = || matches(address_field(subnet, "daddr"), Operator::EQ, prefix(subnet));
            let known = Expression::List(vec![string("established"), string("related")]);
            let known = matches(ct("state"), Operator::IN, known);
            rules.rule("forward", vec![goes(), to(), known, accept()]);
            rules.rule("forward", vec![goes(), to(), forwarded(), accept()]);
        }
        let reject =
            || Statement::Reject(Some(Reject::new(Some(RejectType::ICMPX), Some(RejectCode::PortUnreach))));
        rules.rule("forward", vec![comes(), reject()]);
        rules.rule("forward", vec![goes(), reject()]);
    }
}

impl HostForward {
    /// Ranges that one rule can translate, each with the port that its first leads to. A range that keeps its ports
    /// is one; `dnat` to a range of ports would choose one of them at will.
    fn parts(&self) -> Vec<(RangeInclusive<u16>, Option<u16>)> {
        if *self.ports.start() == self.to_port {
            return vec![(self.ports.clone(), None)];
        }
        let to = self.to_port..=u16::MAX;
        self.ports.clone().zip(to).map(|(port, to)| (port..=port, Some(to))).collect()
    }

    /// Matches what was sent to where the forward listens.
    fn to_address(&self) -> Statement<'static> {
        match self.listen {
            Some(listen) => matches(
                address_field(IpNetwork::from(listen), "daddr"),
                Operator::EQ,
                string(listen.to_string()),
            ),
            None => {
                let flags = [FibFlag::Daddr].into_iter().collect();
                let fib = NamedExpression::Fib(Fib { result: FibResult::Type, flags });
                matches(Expression::Named(fib), Operator::EQ, string("local"))
            }
        }
    }

    fn to_ports(&self, ports: RangeInclusive<u16>) -> Statement<'static> {
        let field = payload(self.proto.name(), "dport");
        let (first, last) = (u32::from(*ports.start()), u32::from(*ports.end()));
        let ports = if first == last { Expression::Number(first) } else { range(first, last) };
        matches(field, Operator::EQ, ports)
    }

    fn dnat(&self, port: Option<u16>) -> Statement<'static> {
        let family = if self.to.is_ipv4() { NATFamily::IP } else { NATFamily::IP6 };
        Statement::DNAT(Some(NAT {
            addr: Some(string(self.to.to_string())),
            family: Some(family),
            port: port.map(|port| Expression::Number(u32::from(port))),
            flags: None,
        }))
    }
}

/// A table in the making.
struct Rules {
    batch: Batch<'static>,
    table: String,
}

impl Rules {
    fn chain(&mut self, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) {
        self.batch.add(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: self.table.clone().into(),
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        }));
    }

    fn rule(&mut self, chain: &'static str, statements: Vec<Statement<'static>>) {
        self.batch.add(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: self.table.clone().into(),
            chain: chain.into(),
            expr: statements.into(),
            ..Rule::default()
        }));
    }
}

/// A table of ours, by name.
pub(super) fn table(name: &str) -> Table<'static> {
    Table { family: NfFamily::INet, name: name.to_owned().into(), handle: None }
}

fn matches(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

/// Matches what a port forward has let in.
fn forwarded() -> Statement<'static> {
    matches(ct("status"), Operator::IN, string("dnat"))
}

fn not_loopback(family_of: IpAddr) -> Statement<'static> {
    let loopback = if family_of.is_ipv4() { network("127.0.0.0", 8) } else { string("::1") };
    matches(address_field(IpNetwork::from(family_of), "daddr"), Operator::NEQ, loopback)
}

fn string(text: impl Into<String>) -> Expression<'static> {
    Expression::String(text.into().into())
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn address_field(family_of: IpNetwork, field: &'static str) -> Expression<'static> {
    payload(if family_of.is_ipv4() { "ip" } else { "ip6" }, field)
}

fn network(address: &str, len: u32) -> Expression<'static> {
    Expression::Named(NamedExpression::Prefix(Prefix { addr: Box::new(string(address)), len }))
}

fn prefix(prefix: IpNetwork) -> Expression<'static> {
    network(&prefix.network().to_string(), u32::from(prefix.prefix()))
}

fn set<const N: usize>(items: [Expression<'static>; N]) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(items.into_iter().map(SetItem::Element).collect()))
}

fn range(first: u32, last: u32) -> Expression<'static> {
    Expression::Range(Box::new(Range { range: [Expression::Number(first), Expression::Number(last)] }))
}
