//! DHCPv6 messages (RFC 8415, 8 and 21), in front of and behind the codec.
//!
//! A client's bytes do not go to the codec as they are: it trusts the lengths of some options, reads others past
//! their end, stops silently at what it cannot read, and follows options within options as deep as they go. So
//! [`sieve`] walks them first. What it passes on are the options that the server knows, whole and of a right length,
//! and of an identity association those that name addresses; nothing is nested deeper than that. A message whose
//! options do not end where it ends is not one.

use std::net::Ipv6Addr;
use std::ops::RangeInclusive;

use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, IATA, Message, OptionCode, Status, StatusCode,
};
use dhcproto::{Decodable, Encodable};
use switch_core::MacAddr;

/// Bytes of a message from a client, at most: clients do not send fragments.
const MESSAGE_LEN_MAX: usize = 1500;
/// Bytes of a reply, at most: with its headers it fits into the smallest MTU that IPv6 allows.
pub(super) const REPLY_LEN_MAX: usize = 1280 - 40 - 8;
/// Bytes of a client's or server's identifier (RFC 8415, 11.1): its type, and 1 to 128 more.
pub(super) const DUID_LEN: RangeInclusive<usize> = 3..=130;
/// Identity associations of a message that are answered, at most.
const ASSOCIATIONS_MAX: usize = 8;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_TA: u16 = 4;
const IA_ADDR: u16 = 5;
const ORO: u16 = 6;
const RAPID_COMMIT: u16 = 14;
const IA_PD: u16 = 25;

/// Bytes of an IA Address option before the options in it.
const IA_ADDR_LEN: usize = 24;

/// Reads a client's message. `None` if it is none.
pub(super) fn read(bytes: &[u8]) -> Option<Message> {
    if bytes.len() > MESSAGE_LEN_MAX {
        return None;
    }
    let (head, options) = bytes.split_first_chunk::<4>()?;
    let mut known = head.to_vec();
    sieve(options, &mut known)?;
    Message::from_bytes(&known).ok()
}

/// Copies the options that the server knows.
fn sieve(options: &[u8], into: &mut Vec<u8>) -> Option<()> {
    let mut associations = 0;
    for option in Options(options) {
        let (code, value) = option?;
        let fits = match code {
            CLIENT_ID | SERVER_ID => DUID_LEN.contains(&value.len()),
            ORO => value.len().is_multiple_of(2),
            RAPID_COMMIT => value.is_empty(),
            IA_NA | IA_TA | IA_PD => {
                let own = if code == IA_TA { 4 } else { 12 };
                let (own, within) = value.split_at_checked(own)?;
                associations += 1;
                if associations <= ASSOCIATIONS_MAX {
                    let mut association = own.to_vec();
                    addresses(within, &mut association)?;
                    put(into, code, &association);
                }
                continue;
            }
            _ => continue,
        };
        if !fits {
            return None;
        }
        put(into, code, value);
    }
    Some(())
}

/// Copies the addresses of an identity association, without what is in their options.
fn addresses(options: &[u8], into: &mut Vec<u8>) -> Option<()> {
    for option in Options(options) {
        let (code, value) = option?;
        if code == IA_ADDR {
            put(into, code, value.get(..IA_ADDR_LEN)?);
        }
    }
    Some(())
}

/// Appends an option that is no longer than a message.
fn put(into: &mut Vec<u8>, code: u16, value: &[u8]) {
    into.extend(code.to_be_bytes());
    into.extend((value.len() as u16).to_be_bytes());
    into.extend(value);
}

/// The options in a run of bytes: code and value, or `None` once for what runs past the end.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let option = self.0.split_first_chunk::<4>().and_then(|(&[a, b, c, d], rest)| {
            let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
            Some((u16::from_be_bytes([a, b]), value, rest))
        });
        self.0 = option.map(|(.., rest)| rest).unwrap_or_default();
        Some(option.map(|(code, value, _)| (code, value)))
    }
}

/// Bytes of a reply. `None` if it is too long.
pub(super) fn write(reply: &Message) -> Option<Vec<u8>> {
    reply.to_vec().ok().filter(|bytes| bytes.len() <= REPLY_LEN_MAX)
}

/// The client's identifier.
pub(super) fn client_id(message: &Message) -> Option<&[u8]> {
    match message.opts().get(OptionCode::ClientId)? {
        DhcpOption::ClientId(duid) => Some(duid),
        _ => None,
    }
}

/// The identifier of the server that a message is for.
pub(super) fn server_id(message: &Message) -> Option<&[u8]> {
    match message.opts().get(OptionCode::ServerId)? {
        DhcpOption::ServerId(duid) => Some(duid),
        _ => None,
    }
}

/// True if the client asks for an option, or asks for none in particular.
pub(super) fn asks_for(message: &Message, code: OptionCode) -> bool {
    match message.opts().get(OptionCode::ORO) {
        Some(DhcpOption::ORO(oro)) => oro.opts.contains(&code),
        _ => true,
    }
}

/// An identity association: kind, identifier, and the addresses that the client names in it.
#[derive(Clone, Debug)]
pub(super) struct Association {
    pub(super) kind: Kind,
    pub(super) id: u32,
    pub(super) addresses: Vec<Ipv6Addr>,
}

/// What an identity association is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Addresses.
    Na,
    /// Temporary addresses.
    Ta,
    /// Delegated prefixes.
    Pd,
}

/// A message's identity associations.
pub(super) fn associations(message: &Message) -> Vec<Association> {
    let named = |opts: &DhcpOptions| {
        let address = |option: &DhcpOption| match option {
            DhcpOption::IAAddr(address) => Some(address.addr),
            _ => None,
        };
        opts.iter().filter_map(address).collect()
    };
    let association = |option: &DhcpOption| match option {
        DhcpOption::IANA(ia) => Some(Association { kind: Kind::Na, id: ia.id, addresses: named(&ia.opts) }),
        DhcpOption::IATA(ia) => Some(Association { kind: Kind::Ta, id: ia.id, addresses: named(&ia.opts) }),
        DhcpOption::IAPD(ia) => Some(Association { kind: Kind::Pd, id: ia.id, addresses: Vec::new() }),
        _ => None,
    };
    message.opts().iter().filter_map(association).collect()
}

/// Seconds of an association: when to renew and rebind, and its addresses' lifetimes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) t1: u32,
    pub(super) t2: u32,
    pub(super) preferred: u32,
    pub(super) valid: u32,
}

impl Association {
    /// The association with addresses, and with others whose time is over.
    pub(super) fn with(&self, times: Times, addresses: &[Ipv6Addr], over: &[Ipv6Addr]) -> DhcpOption {
        let lasting = addresses.iter().map(|&addr| (addr, times.preferred, times.valid));
        let all = lasting.chain(over.iter().map(|&addr| (addr, 0, 0)));
        let option = |(addr, preferred_life, valid_life)| {
            let opts = DhcpOptions::new();
            DhcpOption::IAAddr(IAAddr { addr, preferred_life, valid_life, opts })
        };
        let (t1, t2) = if addresses.is_empty() { (0, 0) } else { (times.t1, times.t2) };
        DhcpOption::IANA(IANA { id: self.id, t1, t2, opts: all.map(option).collect() })
    }

    /// The association with nothing but a status.
    pub(super) fn without(&self, why: Status, text: &str) -> DhcpOption {
        let opts = DhcpOptions::from_iter([status(why, text)]);
        let (id, t1, t2) = (self.id, 0, 0);
        match self.kind {
            Kind::Na => DhcpOption::IANA(IANA { id, t1, t2, opts }),
            Kind::Ta => DhcpOption::IATA(IATA { id, opts }),
            Kind::Pd => DhcpOption::IAPD(IAPD { id, t1, t2, opts }),
        }
    }
}

/// A status, with a word for whoever reads the client's log.
pub(super) fn status(status: Status, text: &str) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: text.to_owned() })
}

/// The MAC address in a DUID-LLT or DUID-LL of an Ethernet interface (RFC 8415, 11.2 and 11.4).
pub(super) fn mac_of_duid(duid: &[u8]) -> Option<MacAddr> {
    let mac = match duid {
        [0, 1, 0, 1, _, _, _, _, mac @ ..] | [0, 3, 0, 1, mac @ ..] => <[u8; 6]>::try_from(mac).ok()?,
        _ => return None,
    };
    Some(MacAddr(mac)).filter(|mac| mac.is_station())
}

/// The MAC address that a link-local address is made of (RFC 4291, appendix A), if it is made of one.
pub(super) fn mac_of_address(address: Ipv6Addr) -> Option<MacAddr> {
    match address.octets() {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => {
            Some(MacAddr([a ^ 2, b, c, d, e, f])).filter(|mac| mac.is_station())
        }
        _ => None,
    }
}
