//! A DHCPv6 server (RFC 8415; name servers and search domains by RFC 3646): addresses for those who have one reserved,
//! and the rest of what a host needs to know for all.
//!
//! - Clients on the link are answered, by themselves: no relays, no prefixes, no temporary addresses. A message that
//!   section 16 says to discard is discarded and counted; the answer to any other goes out of the port that it came by.
//! - An address is given to the client that it is reserved for and to nobody else. Who has none reserved is told so
//!   (`NoAddrsAvail`), and makes an address of its own if the network's prefix lets it (RFC 4862).
//! - A port asks as often as its bucket allows. What comes above that is dropped and counted; replies are never longer
//!   than the smallest MTU.
//!
//! # Why nothing is kept over a restart
//! A reservation *is* the binding: which address a client has follows from the configuration, as it did before. No two
//! clients can have been given the same address, so a server that forgets who has taken theirs cannot give one away,
//! and it renews what it finds reserved whether it remembers it or not. What is remembered ([`Binding`]) is for people
//! to look at, and is complete again when each client has renewed.
//!
//! Owned by the gateway's thread; without I/O and clock.

mod bindings;
mod config;
mod message;
#[cfg(test)]
mod tests;

use std::net::Ipv6Addr;
use std::time::Duration;

use dhcproto::v6::{
    CLIENT_PORT, DhcpOption, Message, MessageType, OptionCode, SERVER_PORT, Status, UnknownOption,
};
use switch_core::{Instant, PortId};

use super::budget::Budget;
use super::packet6::{self, Envelope, Received};
use super::{Handled, Outbox};
use bindings::{Asker, Table};
use message::{Association, Kind, Times};

pub use bindings::{Binding, Client, Reservation};
pub use config::{
    ADDRESSES_MAX, Dhcp6Config, Dhcp6ConfigError, RESERVATIONS_MAX, SEARCH_LEN_MAX, SERVERS_MAX,
};

/// ff02::1:2: all DHCP relay agents and servers.
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Messages of one port that are answered at once, after a time of none.
const REPLIES_BURST: u32 = 20;
/// The time in which a port is given one more.
const REPLIES_INTERVAL: Duration = Duration::from_millis(200);
/// Addresses in a reply whose time is over, at most.
const OVER_MAX: usize = 4;
/// The preference that has a client ask here at once, without waiting for other servers (RFC 8415, 18.2.9).
const PREFERENCE_MAX: u8 = 255;

/// What a server has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dhcp6Counters {
    /// Messages that were answered.
    pub answered: u64,
    /// Messages that were not sound, or that the server has nothing to say to.
    pub discarded: u64,
    /// Messages above what a port is answered.
    pub limited: u64,
    /// Addresses that clients found in use by somebody else.
    pub declined: u64,
}

/// The DHCPv6 server of one network. See the module's text.
#[derive(Debug)]
pub struct Dhcp6Server {
    config: Dhcp6Config,
    duid: Vec<u8>,
    table: Table,
    budget: Budget,
    counters: Dhcp6Counters,
}

impl Dhcp6Server {
    /// A server without reservations.
    ///
    /// # Errors
    /// The configuration cannot be served ([`Dhcp6Config::check`]).
    pub fn new(config: Dhcp6Config) -> Result<Self, Dhcp6ConfigError> {
        config.check()?;
        Ok(Self {
            duid: config.duid(),
            config,
            table: Table::default(),
            budget: Budget::new(REPLIES_BURST, REPLIES_INTERVAL),
            counters: Dhcp6Counters::default(),
        })
    }

    /// Takes over another configuration. Clients learn of it when they renew or refresh.
    ///
    /// # Errors
    /// The configuration cannot be served; the former one stays.
    pub fn configure(&mut self, config: Dhcp6Config) -> Result<(), Dhcp6ConfigError> {
        config.check()?;
        self.duid = config.duid();
        self.config = config;
        Ok(())
    }

    /// Replaces all reservations. What a client has taken of those that stay is remembered.
    ///
    /// # Errors
    /// An address that cannot be reserved, or is reserved for two clients, or too many; the former ones stay.
    pub fn set_reservations(&mut self, reservations: Vec<Reservation>) -> Result<(), Dhcp6ConfigError> {
        self.table = Table::new(reservations, &self.table)?;
        Ok(())
    }

    /// Addresses that clients have taken and whose time is not over.
    pub fn bindings(&self, now: Instant) -> Vec<Binding> {
        self.table.bindings(now)
    }

    /// A number that is another one after each change of [`Dhcp6Server::bindings`] that time alone did not make.
    pub fn revision(&self) -> u64 {
        self.table.revision
    }

    /// What it has done so far.
    pub fn counters(&self) -> Dhcp6Counters {
        self.counters
    }

    /// Forgets a port that is gone. Its reservations go with [`Dhcp6Server::set_reservations`].
    pub fn port_removed(&mut self, port: PortId) {
        self.budget.forget(port);
        self.table.port_removed(port);
    }

    /// Takes a frame that `from` received. It is this service's if it is a datagram to the servers' port, at this
    /// router or at all servers.
    pub fn receive(&mut self, now: Instant, from: PortId, frame: &[u8], out: &mut Outbox) -> Handled {
        let Some(packet) = Received::read(frame) else { return Handled::No };
        let to = packet.destination;
        let to_all = to == ALL_SERVERS;
        let ours = to_all || to == self.config.address || self.config.others.contains(&to);
        if !ours || packet.udp_port() != Some(SERVER_PORT) {
            return Handled::No;
        }
        if !self.budget.take(now, from) {
            self.counters.limited += 1;
            return Handled::Yes;
        }
        match self.answer(now, from, &packet, to_all) {
            Some(frame) => {
                self.counters.answered += 1;
                out.send_to(from, frame);
            }
            None => self.counters.discarded += 1,
        }
        Handled::Yes
    }

    fn answer(&mut self, now: Instant, from: PortId, packet: &Received<'_>, to_all: bool) -> Option<Vec<u8>> {
        let source = packet.source;
        // Who speaks to all servers speaks from a link-local address (RFC 8415, 13.1 and 18.2).
        let global = !(source.is_multicast() || source.is_unspecified() || source.is_loopback());
        if !(source.is_unicast_link_local() || !to_all && global) || !packet.mac.is_station() {
            return None;
        }
        let message = message::read(packet.checked_udp()?)?;
        let from_address = message::mac_of_address(source);
        let duid = message::client_id(&message).unwrap_or_default();
        let asker = Asker { port: from, mac: packet.mac, from_address, duid };
        let reply = self.reply(now, &asker, &message, to_all)?;
        let envelope =
            Envelope { from: (self.config.mac, self.config.address), to: (packet.mac, packet.source) };
        envelope.udp(SERVER_PORT, CLIENT_PORT, &message::write(&reply)?)
    }

    /// The answer to a message; `None` if it is to be discarded (RFC 8415, 16 and 18.4).
    fn reply(&mut self, now: Instant, asker: &Asker<'_>, message: &Message, to_all: bool) -> Option<Message> {
        use MessageType as T;
        let kind = message.msg_type();
        let named = message::client_id(message).is_some();
        let server = message::server_id(message);
        let chosen = server == Some(self.duid.as_slice());
        let sound = match kind {
            T::Solicit | T::Confirm | T::Rebind => named && server.is_none() && to_all,
            T::Request | T::Renew | T::Release | T::Decline => named && chosen,
            T::InformationRequest => {
                to_all && (server.is_none() || chosen) && message::associations(message).is_empty()
            }
            _ => false,
        };
        if !sound {
            return None;
        }
        if !to_all {
            // No client was told that it may send to this address (21.12).
            let why = message::status(Status::UseMulticast, "send to all servers");
            return Some(self.begin(T::Reply, message, [why]));
        }
        match kind {
            T::Solicit => Some(self.solicit(now, asker, message)),
            T::Confirm => self.confirm(message),
            T::Request | T::Renew | T::Rebind => {
                let options = self.associate(now, asker, message, true);
                Some(self.complete(T::Reply, message, options))
            }
            T::Release | T::Decline => Some(self.end(now, asker, message)),
            _ => {
                let mut options = Vec::new();
                if message::asks_for(message, OptionCode::InformationRefreshTime) {
                    options.push(DhcpOption::InformationRefreshTime(seconds(self.config.refresh)));
                }
                Some(self.complete(T::Reply, message, options))
            }
        }
    }

    fn solicit(&mut self, now: Instant, asker: &Asker<'_>, message: &Message) -> Message {
        let any = !self.table.addresses(now, asker).is_empty();
        let wants = message::associations(message).iter().any(|ia| ia.kind == Kind::Na);
        let rapid = message.opts().get(OptionCode::RapidCommit).is_some();
        if rapid && any && wants {
            let mut options = self.associate(now, asker, message, true);
            options.push(DhcpOption::RapidCommit);
            return self.complete(MessageType::Reply, message, options);
        }
        let mut options = self.associate(now, asker, message, false);
        if any {
            options.push(DhcpOption::Preference(PREFERENCE_MAX));
        }
        self.complete(MessageType::Advertise, message, options)
    }

    /// Whether a client that may have moved has addresses that belong here (18.3.3). Without addresses there is
    /// nothing to say.
    fn confirm(&self, message: &Message) -> Option<Message> {
        let associations = message::associations(message);
        let mut addresses = associations.iter().flat_map(|ia| &ia.addresses).peekable();
        addresses.peek()?;
        let status = if addresses.all(|&address| self.on_link(address)) {
            message::status(Status::Success, "the addresses belong to this link")
        } else {
            message::status(Status::NotOnLink, "an address does not belong to this link")
        };
        Some(self.begin(MessageType::Reply, message, [status]))
    }

    /// Answers each identity association of a Solicit, Request, Renew or Rebind (18.3.1, 18.3.2, 18.3.4, 18.3.5). With
    /// `commit`, what is given is taken.
    ///
    /// A client's addresses go into one association: the one in which it names one of them, or its first.
    fn associate(
        &mut self,
        now: Instant,
        asker: &Asker<'_>,
        message: &Message,
        commit: bool,
    ) -> Vec<DhcpOption> {
        let kind = message.msg_type();
        let extends = matches!(kind, MessageType::Renew | MessageType::Rebind);
        let addresses = self.table.addresses(now, asker);
        let associations = message::associations(message);
        let names_one = |ia: &Association| ia.addresses.iter().any(|a| addresses.contains(a));
        let of_addresses = |ia: &Association| ia.kind == Kind::Na;
        let place = associations
            .iter()
            .position(|ia| of_addresses(ia) && names_one(ia))
            .or_else(|| associations.iter().position(of_addresses))
            .filter(|_| !addresses.is_empty());
        let mut over_left = OVER_MAX;
        let mut options = Vec::new();
        for (at, ia) in associations.iter().enumerate() {
            let off_link = ia.addresses.iter().any(|&address| !self.on_link(address));
            if ia.kind == Kind::Pd && !extends {
                options.push(ia.without(Status::NoPrefixAvail, "no prefixes are delegated here"));
            } else if ia.kind == Kind::Ta && !extends {
                options.push(ia.without(Status::NoAddrsAvail, "no temporary addresses are given here"));
            } else if ia.kind != Kind::Na {
                options.push(ia.without(Status::NoBinding, "there is no such binding"));
            } else if kind == MessageType::Request && off_link {
                options.push(ia.without(Status::NotOnLink, "an address does not belong to this link"));
            } else if place == Some(at) {
                let over = self.over(ia, &addresses, extends, &mut over_left);
                options.push(ia.with(self.times(), &addresses, &over));
                if commit {
                    let until = now + self.config.valid;
                    addresses.iter().for_each(|&address| self.table.take(asker, address, until));
                }
            } else if extends && off_link {
                let over = self.over(ia, &[], true, &mut over_left);
                options.push(ia.with(self.times(), &[], &over));
            } else if extends && addresses.is_empty() {
                options.push(ia.without(Status::NoBinding, "no address is reserved for this client"));
            } else {
                options.push(ia.without(Status::NoAddrsAvail, "no address is reserved for this client"));
            }
        }
        options
    }

    /// Addresses that a client names when it renews, and that are not its own (any more): their time is over.
    fn over(&self, ia: &Association, own: &[Ipv6Addr], extends: bool, left: &mut usize) -> Vec<Ipv6Addr> {
        let foreign = ia.addresses.iter().filter(|address| extends && !own.contains(address));
        let over: Vec<Ipv6Addr> = foreign.copied().take(*left).collect();
        *left -= over.len();
        over
    }

    /// Release and Decline (18.3.7, 18.3.8).
    fn end(&mut self, now: Instant, asker: &Asker<'_>, message: &Message) -> Message {
        let declines = message.msg_type() == MessageType::Decline;
        let mut options = vec![message::status(Status::Success, "done")];
        for ia in message::associations(message) {
            let mut ended = 0;
            for &address in ia.addresses.iter().filter(|_| ia.kind == Kind::Na) {
                let done = if declines {
                    self.table.decline(now, asker, address)
                } else {
                    self.table.release(now, asker, address)
                };
                ended += u64::from(done);
            }
            if declines {
                self.counters.declined += ended;
            }
            if ended == 0 {
                options.push(ia.without(Status::NoBinding, "there is no such binding"));
            }
        }
        self.begin(MessageType::Reply, message, options)
    }

    /// A reply with the identifiers that every reply has, and `options`.
    fn begin(
        &self,
        kind: MessageType,
        message: &Message,
        options: impl IntoIterator<Item = DhcpOption>,
    ) -> Message {
        let mut reply = Message::new_with_id(kind, message.xid());
        let ids = [
            Some(DhcpOption::ServerId(self.duid.clone())),
            message::client_id(message).map(|duid| DhcpOption::ClientId(duid.to_vec())),
        ];
        reply.set_opts(ids.into_iter().flatten().chain(options).collect());
        reply
    }

    /// A reply that also tells what the client asks to know.
    fn complete(&self, kind: MessageType, message: &Message, mut options: Vec<DhcpOption>) -> Message {
        if !self.config.dns.is_empty() && message::asks_for(message, OptionCode::DomainNameServers) {
            options.push(DhcpOption::DomainNameServers(self.config.dns.clone()));
        }
        if !self.config.search.is_empty() && message::asks_for(message, OptionCode::DomainSearchList) {
            // The codec would compress the names.
            let names = self.config.search.iter().flat_map(packet6::domain).collect();
            options.push(DhcpOption::Unknown(UnknownOption::new(OptionCode::DomainSearchList, names)));
        }
        self.begin(kind, message, options)
    }

    fn on_link(&self, address: Ipv6Addr) -> bool {
        self.config.prefixes.iter().any(|prefix| prefix.contains(address)) || self.table.is_reserved(address)
    }

    /// Clients renew after half of the preferred lifetime, and ask any server after four fifths (RFC 8415, 21.4).
    fn times(&self) -> Times {
        let preferred = self.config.preferred;
        Times {
            t1: seconds(preferred / 2),
            t2: seconds(preferred / 5 * 4),
            preferred: seconds(preferred),
            valid: seconds(self.config.valid),
        }
    }
}

/// Whole seconds; what does not fit means "for ever" (RFC 8415, 7.7).
fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}
