//! The server's messages.
//!
//! Options are encoded one by one, those that a client cannot do without first, then those that it asked for in its
//! order, and what does not fit into the longest message that it takes is left out. dhcproto's own message would sort
//! them and write them all.

use std::net::Ipv4Addr;

use dhcproto::v4::fqdn::{ClientFQDN, FqdnFlags};
use dhcproto::v4::{
    DhcpOption, Encodable, Encoder, Flags, MIN_PACKET_SIZE, Message, MessageType, Opcode, OptionCode,
    UnknownOption,
};
use hickory_proto::rr::Name;
use ipnetwork::Ipv4Network;
use switch_core::MacAddr;

use super::config::Config;
use super::frame::{self, IP_UDP_LEN};
use super::message::Request;

/// Microsoft's code of the classless static routes, from before RFC 3442.
const ROUTES_MICROSOFT: u8 = 249;
/// What a client gets that does not say what it wants.
const UNASKED: [OptionCode; 5] = [
    OptionCode::Router,
    OptionCode::DomainNameServer,
    OptionCode::DomainName,
    OptionCode::BroadcastAddr,
    OptionCode::Hostname,
];

/// What is said besides what the configuration says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    pub(super) kind: MessageType,
    /// The address that the client gets; unspecified in an answer to an inform and in a refusal.
    pub(super) address: Ipv4Addr,
    /// For how long.
    pub(super) secs: Option<u32>,
    /// The name that it has.
    pub(super) hostname: Option<&'a str>,
    /// Why it is refused.
    pub(super) reason: Option<&'static str>,
}

/// The frame of an answer. `None` only if a message cannot be encoded.
pub(super) fn frame(config: &Config, request: &Request, answer: &Answer<'_>) -> Option<Vec<u8>> {
    let message = message(config, request, answer)?;
    let broadcast = (MacAddr::BROADCAST, Ipv4Addr::BROADCAST);
    // RFC 2131, 4.1. There is no ARP: a client that has no address yet cannot answer it.
    let to = if answer.kind == MessageType::Nak {
        broadcast
    } else if answer.kind == MessageType::Ack && !request.ciaddr.is_unspecified() {
        // The client has it; in an answer to an inform there is no other.
        (request.mac, if answer.address.is_unspecified() { request.ciaddr } else { answer.address })
    } else if Flags::new(request.flags).broadcast() {
        broadcast
    } else {
        (request.mac, answer.address)
    };
    frame::write((config.router_mac, config.server), to, &message)
}

fn message(config: &Config, request: &Request, answer: &Answer<'_>) -> Option<Vec<u8>> {
    let none = Ipv4Addr::UNSPECIFIED;
    let refused = answer.kind == MessageType::Nak;
    let ciaddr = if answer.kind == MessageType::Ack { request.ciaddr } else { none };
    let siaddr = config.next_server.filter(|_| !refused).unwrap_or(none);
    let mut header = Message::new_with_id(request.xid, ciaddr, answer.address, siaddr, none, &request.mac.0);
    header.set_opcode(Opcode::BootReply).set_flags(Flags::new(request.flags));
    if let Some(file) = config.boot_file.as_ref().filter(|f| !refused && f.len() < 128) {
        header.set_fname(file.as_bytes());
    }
    let mut bytes = header.to_vec().ok()?;
    bytes.truncate(236);
    bytes.extend(dhcproto::v4::MAGIC);

    let size_max = usize::from(request.size_max.min(config.mtu).max(super::message::SIZE_MIN)) - IP_UDP_LEN;
    let relay_info = request.relay_info.clone().map(|data| unknown(OptionCode::RelayAgentInformation, data));
    let relay_info = relay_info.and_then(|option| encoded(&option)).unwrap_or_default();
    // The mark of the end and the relay agent's information come behind everything else.
    let mut room = Room { bytes, left: size_max.saturating_sub(240 + 1 + relay_info.len()) };
    for option in options(config, request, answer) {
        room.put(&option);
    }
    let mut bytes = room.bytes;
    if bytes.len() + relay_info.len() < size_max {
        bytes.extend(relay_info);
    }
    bytes.push(OptionCode::End.into());
    bytes.resize(bytes.len().max(MIN_PACKET_SIZE), 0);
    Some(bytes)
}

/// A message that has no more than so much room.
struct Room {
    bytes: Vec<u8>,
    left: usize,
}

impl Room {
    fn put(&mut self, option: &DhcpOption) {
        if let Some(bytes) = encoded(option).filter(|b| b.len() <= self.left) {
            self.left -= bytes.len();
            self.bytes.extend(bytes);
        }
    }
}

fn encoded(option: &DhcpOption) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    option.encode(&mut Encoder::new(&mut bytes)).ok()?;
    Some(bytes)
}

fn unknown(code: OptionCode, data: Vec<u8>) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(code, data))
}

/// Everything that is said, the most important first (RFC 2131, table 3).
fn options(config: &Config, request: &Request, answer: &Answer<'_>) -> Vec<DhcpOption> {
    let mut options = vec![DhcpOption::MessageType(answer.kind), DhcpOption::ServerIdentifier(config.server)];
    options.extend(request.client_id.clone().map(DhcpOption::ClientIdentifier));
    if answer.kind == MessageType::Nak {
        options.extend(answer.reason.map(|reason| DhcpOption::Message(reason.to_owned())));
        return options;
    }
    if let Some(secs) = answer.secs {
        // RFC 2131, 4.4.5: half, and seven eighths.
        options.push(DhcpOption::AddressLeaseTime(secs));
        options.push(DhcpOption::Renewal(secs / 2));
        options.push(DhcpOption::Rebinding(secs - secs / 8));
    }
    options.push(DhcpOption::SubnetMask(config.subnet.mask()));
    options.extend(fqdn(config, request, answer));
    let mut said = Vec::new();
    let wanted = request.wanted.as_ref().map(|codes| codes.iter().map(|&c| OptionCode::from(c)).collect());
    for code in wanted.unwrap_or(UNASKED.to_vec()) {
        if !said.contains(&code) {
            said.push(code);
            options.extend(asked(config, answer, code));
        }
    }
    options
}

/// The option that a client asked for, if there is something to say.
fn asked(config: &Config, answer: &Answer<'_>, code: OptionCode) -> Option<DhcpOption> {
    match code {
        OptionCode::Router => config.router.map(|r| DhcpOption::Router(vec![r])),
        OptionCode::DomainNameServer => {
            (!config.dns.is_empty()).then(|| DhcpOption::DomainNameServer(config.dns.clone()))
        }
        OptionCode::DomainName => {
            config.domain.as_ref().map(|d| DhcpOption::DomainName(d.trim_end_matches('.').to_owned()))
        }
        OptionCode::Hostname => answer.hostname.map(|name| DhcpOption::Hostname(name.to_owned())),
        OptionCode::BroadcastAddr => Some(DhcpOption::BroadcastAddr(config.subnet.broadcast())),
        OptionCode::InterfaceMtu => Some(DhcpOption::InterfaceMtu(config.mtu)),
        OptionCode::ClasslessStaticRoute => routes(config).map(|data| unknown(code, data)),
        _ if u8::from(code) == ROUTES_MICROSOFT => routes(config).map(|data| unknown(code, data)),
        OptionCode::TFTPServerName => {
            config.next_server.map(|s| DhcpOption::TFTPServerName(s.to_string().into_bytes()))
        }
        OptionCode::BootfileName => {
            config.boot_file.as_ref().map(|f| DhcpOption::BootfileName(f.clone().into_bytes()))
        }
        _ => None,
    }
}

/// The routes in the form of RFC 3442. A client that takes them does not look at the router's option, so that the
/// default route is among them.
fn routes(config: &Config) -> Option<Vec<u8>> {
    if config.routes.is_empty() {
        return None;
    }
    let default = config.router.filter(|_| config.routes.iter().all(|(net, _)| net.prefix() != 0));
    let mut data = Vec::new();
    let mut put = |prefix: u8, network: Ipv4Addr, via: Ipv4Addr| {
        data.push(prefix);
        data.extend(network.octets().into_iter().take(usize::from(prefix).div_ceil(8)));
        data.extend(via.octets());
    };
    config.routes.iter().for_each(|&(net, via): &(Ipv4Network, _)| put(net.prefix(), net.network(), via));
    if let Some(router) = default {
        put(0, Ipv4Addr::UNSPECIFIED, router);
    }
    Some(data)
}

/// The answer to a client's FQDN (RFC 4702, 4): its name is in our DNS, whoever the client wanted to put it there,
/// unless it wanted no entry at all.
fn fqdn(config: &Config, request: &Request, answer: &Answer<'_>) -> Option<DhcpOption> {
    let asked = FqdnFlags::new(request.fqdn?);
    let flags = FqdnFlags::default().set_e(asked.e());
    let flags = if asked.n() { flags.set_n(true) } else { flags.set_s(true).set_o(!asked.s()) };
    let name = match (answer.hostname, config.domain.as_deref()) {
        (Some(host), Some(domain)) => format!("{host}.{}.", domain.trim_end_matches('.')),
        (Some(host), None) => host.to_owned(),
        (None, _) => return None,
    };
    Some(DhcpOption::ClientFQDN(ClientFQDN::new(flags, Name::from_ascii(name).ok()?)))
}
