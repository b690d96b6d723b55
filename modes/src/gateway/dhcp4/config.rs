//! What a server gives out, and how much of it.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use switch_core::MacAddr;

/// Addresses in a range, at most.
pub const RANGE_MAX: u32 = 1 << 16;
/// Name servers and routes that are told, at most: more than fit into a message.
const LIST_MAX: usize = 32;
/// Bytes of the header's field for the boot file's name, its final zero included.
const FILE_MAX: usize = 128;

/// What the clients of a network are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The server's own address, in the subnet. No client gets it.
    pub server: Ipv4Addr,
    /// The Ethernet address that the server's frames come from.
    pub router_mac: MacAddr,
    /// The subnet: its mask and broadcast address are told.
    pub subnet: Ipv4Network,
    /// The addresses that are given to whoever asks, both ends included.
    pub range: RangeInclusive<Ipv4Addr>,
    /// The default router, if the network has one (option 3). No client gets its address.
    pub router: Option<Ipv4Addr>,
    /// Name servers (option 6).
    pub dns: Vec<Ipv4Addr>,
    /// The domain of the clients' names (option 15).
    pub domain: Option<String>,
    /// The MTU (option 26), and the longest IP packet that the server sends.
    pub mtu: u16,
    /// For how long an address is given, in seconds.
    pub lease_secs: u32,
    /// Routes besides the default one (options 121 and 249).
    pub routes: Vec<(Ipv4Network, Ipv4Addr)>,
    /// The file that a client boots from (the header's field and option 67).
    pub boot_file: Option<String>,
    /// The server that has it (siaddr and option 66).
    pub next_server: Option<Ipv4Addr>,
    /// Names that no client may take, besides `localhost`, `wpad` and `isatap`: the gateway's own.
    pub names_kept: Vec<String>,
    /// How long an address is probed by ARP before it is offered to somebody new; `None` never.
    pub probe: Option<Duration>,
    /// How long an address is not offered after somebody was found to use it.
    pub aside: Duration,
    /// What one port may take.
    pub limits: Limits,
}

/// What one port may take, so that the others have the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Messages that are read at once, and then for each second.
    pub messages: (u32, u32),
    /// Leases that are written at once, and then for each second: each waits for a disk.
    pub writes: (u32, u32),
    /// Addresses that are held for its clients while they have not accepted them.
    pub offers: usize,
    /// Leases of its clients, `None` as many as there are. A reserved address is had in any case, and counts.
    pub leases: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { messages: (600, 100), writes: (300, 20), offers: 256, leases: None }
    }
}

/// Why a configuration is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is not an address that a station of the subnet may have.
    #[error("{0} is not a host's address in {1}")]
    NotInSubnet(Ipv4Addr, Ipv4Network),
    /// Its ends are in the wrong order, or it is too large.
    #[error("the range {0}-{1} has no addresses, or more than {RANGE_MAX}")]
    Range(Ipv4Addr, Ipv4Addr),
    /// A value that no client takes.
    #[error("{0}")]
    Value(&'static str),
}

impl Config {
    /// A configuration with a router, no name servers, and the defaults of everything else.
    pub fn new(
        server: Ipv4Addr,
        router_mac: MacAddr,
        subnet: Ipv4Network,
        range: RangeInclusive<Ipv4Addr>,
    ) -> Self {
        Self {
            server,
            router_mac,
            subnet,
            range,
            router: Some(server),
            dns: Vec::new(),
            domain: None,
            mtu: 1500,
            lease_secs: 3600,
            routes: Vec::new(),
            boot_file: None,
            next_server: None,
            names_kept: Vec::new(),
            probe: Some(Duration::from_millis(500)),
            aside: Duration::from_secs(600),
            limits: Limits::default(),
        }
    }

    /// Says what is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (first, last) = (*self.range.start(), *self.range.end());
        for address in [self.server, first, last].into_iter().chain(self.router) {
            if !self.is_host(address) {
                return Err(ConfigError::NotInSubnet(address, self.subnet));
            }
        }
        if first > last || u32::from(last) - u32::from(first) >= RANGE_MAX {
            return Err(ConfigError::Range(first, last));
        }
        let bad = |why| Err(ConfigError::Value(why));
        if !self.router_mac.is_station() {
            return bad("the server's Ethernet address is not that of a station");
        }
        if self.lease_secs == 0 || self.lease_secs == u32::MAX {
            return bad("leases are at least a second, and not for ever");
        }
        if self.mtu < 576 {
            return bad("an MTU of less than 576 does not carry DHCP");
        }
        if self.dns.len() > LIST_MAX || self.routes.len() > LIST_MAX {
            return bad("there are more than 32 name servers or routes");
        }
        if self.boot_file.as_ref().is_some_and(|f| f.is_empty() || f.len() >= FILE_MAX || f.contains('\0')) {
            return bad("the boot file's name is 1 to 127 bytes");
        }
        if self.domain.as_ref().is_some_and(|d| !super::names::is_domain(d)) {
            return bad("the domain is not one of letters, digits and hyphens");
        }
        if self.limits.messages.1 == 0 || self.limits.writes.1 == 0 {
            return bad("a port may send a message a second at least");
        }
        Ok(())
    }

    /// True for addresses that a station of the subnet may have.
    pub(super) fn is_host(&self, address: Ipv4Addr) -> bool {
        let ends = address == self.subnet.network() || address == self.subnet.broadcast();
        self.subnet.contains(address) && (self.subnet.prefix() >= 31 || !ends) && !address.is_unspecified()
    }

    /// True for addresses that a client may have at all, reserved or not.
    pub(super) fn is_client(&self, address: Ipv4Addr) -> bool {
        self.is_host(address) && address != self.server && Some(address) != self.router
    }

    /// True for addresses that a client without a reservation may have.
    pub(super) fn is_dynamic(&self, address: Ipv4Addr) -> bool {
        self.range.contains(&address) && self.is_client(address)
    }
}
