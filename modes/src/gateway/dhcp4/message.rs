//! A client's message, read into what the server needs of it.
//!
//! dhcproto's borrowed view walks the options; their values are read here, because its owned form stops at the
//! first option that it does not like, and a client whose name is not UTF-8 is still a client. An option that is
//! there more than once is one long option (RFC 3396); one of a wrong length is as good as absent, but for those that
//! say what the message is.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::v4::borrowed::Message;
use dhcproto::v4::{HType, MAGIC, MessageType, Opcode, OptionCode};
use switch_core::MacAddr;

use super::names;
use crate::gateway::leases::ClientKey;

/// Bytes of the fixed part and the magic cookie.
const HEADER_LEN: usize = 240;
/// The longest IP packet that every client takes (RFC 2131, 2).
pub(super) const SIZE_MIN: u16 = 576;
/// Bytes of an option that is kept, at most.
const OPTION_MAX: usize = 255;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
}

/// A client's message.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) xid: u32,
    pub(super) flags: u16,
    pub(super) ciaddr: Ipv4Addr,
    /// The client's hardware address.
    pub(super) mac: MacAddr,
    pub(super) client: ClientKey,
    /// Its identifier as it was sent, to be sent back (RFC 6842).
    pub(super) client_id: Option<Vec<u8>>,
    pub(super) requested: Option<Ipv4Addr>,
    pub(super) server_id: Option<Ipv4Addr>,
    pub(super) lease_secs: Option<u32>,
    /// Codes of the options that it wants, in its order.
    pub(super) wanted: Option<Vec<u8>>,
    /// The longest IP packet that it takes.
    pub(super) size_max: u16,
    /// What it calls itself, made a label; from option 81 before 12 (RFC 4702, 4).
    pub(super) hostname: Option<String>,
    /// The flags of its option 81.
    pub(super) fqdn: Option<u8>,
    /// Option 82 (RFC 3046), to be sent back.
    pub(super) relay_info: Option<Vec<u8>>,
}

/// Why there is no request in a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is not what RFC 2131 describes.
    Malformed,
    /// A relay agent sent it. A network of the switch is one link, so that no client needs one, and an answer would
    /// go where the message says.
    Relayed,
    /// It is an answer, or of a kind that is not for servers.
    NotForServers,
}

/// Client FQDN: the flag for a name in wire format.
const FQDN_ENCODED: u8 = 0x04;
/// Client FQDN: the flag of a client that wants no entry.
const FQDN_NONE: u8 = 0x08;

impl Request {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Unread> {
        if bytes.len() < HEADER_LEN || bytes.get(236..HEADER_LEN) != Some(MAGIC.as_slice()) {
            return Err(Unread::Malformed);
        }
        let message = Message::new(bytes).map_err(|_| Unread::Malformed)?;
        if message.opcode() != Opcode::BootRequest {
            return Err(Unread::NotForServers);
        }
        // Before `chaddr`, which trusts the length.
        if message.hlen() != 6 || message.htype() != HType::Eth {
            return Err(Unread::Malformed);
        }
        let mac =
            MacAddr::from_slice(message.chaddr()).filter(|m| m.is_station()).ok_or(Unread::Malformed)?;
        if !message.giaddr().is_unspecified() {
            return Err(Unread::Relayed);
        }
        let mut options = Options::default();
        for option in message.opts() {
            options.0.entry(option.code().into()).or_default().extend_from_slice(option.data());
        }
        let kind = match options.first::<1>(OptionCode::MessageType)?.map(|[kind]| MessageType::from(kind)) {
            Some(MessageType::Discover) => Kind::Discover,
            Some(MessageType::Request) => Kind::Request,
            Some(MessageType::Decline) => Kind::Decline,
            Some(MessageType::Release) => Kind::Release,
            Some(MessageType::Inform) => Kind::Inform,
            Some(_) => return Err(Unread::NotForServers),
            // BOOTP is not served: it knows no leases.
            None => return Err(Unread::Malformed),
        };
        let requested = options.first(OptionCode::RequestedIpAddress)?.map(Ipv4Addr::from);
        let server_id = options.first(OptionCode::ServerIdentifier)?.map(Ipv4Addr::from);
        let lease_secs = options.first(OptionCode::AddressLeaseTime).ok().flatten().map(u32::from_be_bytes);
        let size_max =
            options.first(OptionCode::MaxMessageSize).ok().flatten().map_or(SIZE_MIN, u16::from_be_bytes);
        let client_id = options.bytes(OptionCode::ClientIdentifier)?;
        let client = client_id.as_deref().and_then(ClientKey::identifier).unwrap_or(ClientKey::ethernet(mac));
        let wanted = options.bytes(OptionCode::ParameterRequestList).ok().flatten();
        let relay_info = options.bytes(OptionCode::RelayAgentInformation).ok().flatten();
        let fqdn = options.bytes(OptionCode::ClientFQDN).ok().flatten().filter(|f| f.len() >= 3);
        let hostname = match &fqdn {
            Some(fqdn) => fqdn_label(fqdn),
            None => options.bytes(OptionCode::Hostname).ok().flatten().and_then(|name| names::label(&name)),
        };
        Ok(Self {
            kind,
            xid: message.xid(),
            flags: message.flags().into(),
            ciaddr: message.ciaddr(),
            mac,
            client,
            client_id,
            requested: requested.filter(|ip: &Ipv4Addr| !ip.is_unspecified()),
            server_id,
            lease_secs,
            wanted,
            size_max: size_max.max(SIZE_MIN),
            hostname,
            fqdn: fqdn.and_then(|f| f.first().copied()),
            relay_info,
        })
    }
}

/// The options by their code, pieces put together.
#[derive(Default)]
struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// The value of an option that is `N` bytes long. An error if it has another length.
    fn first<const N: usize>(&self, code: OptionCode) -> Result<Option<[u8; N]>, Unread> {
        let value = self.0.get(&code.into());
        value.map(|v| v.as_slice().try_into().map_err(|_| Unread::Malformed)).transpose()
    }

    /// The value of an option of any length that one can have.
    fn bytes(&self, code: OptionCode) -> Result<Option<Vec<u8>>, Unread> {
        match self.0.get(&code.into()) {
            Some(value) if value.len() > OPTION_MAX => Err(Unread::Malformed),
            value => Ok(value.filter(|v| !v.is_empty()).cloned()),
        }
    }
}

/// The first label of a client's FQDN (RFC 4702, 2.3). None if the client wants no entry in the DNS.
fn fqdn_label(value: &[u8]) -> Option<String> {
    let (&[flags, _, _], name) = value.split_first_chunk()?;
    if flags & FQDN_NONE != 0 {
        return None;
    }
    if flags & FQDN_ENCODED == 0 {
        return names::label(name);
    }
    let (&length, rest) = name.split_first()?;
    names::label(rest.get(..usize::from(length))?)
}
