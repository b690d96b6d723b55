//! What a guest asks of its network's gateway: an address by DHCP, a name by DNS.

use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::socket::{dhcpv4, dns};
use smoltcp::wire::{DnsQueryType, IpAddress, IpCidr};

use super::Guest;
use crate::error::{Error, Result};

/// What a DHCP server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Bits of its prefix.
    pub prefix: u8,
    /// The way to everywhere else, if there is one.
    pub router: Option<Ipv4Addr>,
    /// Whom to ask for names.
    pub name_servers: Vec<Ipv4Addr>,
}

impl Guest {
    /// Asks for an address by DHCP and takes it, in the place of those that the guest had.
    ///
    /// # Errors
    /// [`Error::Timeout`] when there is none to be had.
    pub fn lease(&mut self, timeout: Duration) -> Result<Lease> {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        let lease = self.run_until("address by DHCP", timeout, |guest| {
            let socket = guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle);
            let Some(dhcpv4::Event::Configured(config)) = socket.poll() else { return Ok(None) };
            Ok(Some(Lease {
                address: config.address.address(),
                prefix: config.address.prefix_len(),
                router: config.router,
                name_servers: config.dns_servers.iter().copied().collect(),
            }))
        });
        self.sockets.remove(handle);
        let lease = lease?;
        let mut taken = true;
        self.iface.update_ip_addrs(|list| {
            list.clear();
            taken = list.push(IpCidr::new(lease.address.into(), lease.prefix)).is_ok();
        });
        self.iface.routes_mut().remove_default_ipv4_route();
        if let Some(router) = lease.router {
            taken &= self.iface.routes_mut().add_default_ipv4_route(router).is_ok();
        }
        if !taken {
            return Err(Error::Config("the stack does not take the leased address".into()));
        }
        Ok(lease)
    }

    /// The IPv4 addresses of a name, as `server` knows them.
    ///
    /// # Errors
    /// [`Error::Timeout`] when nobody answers; [`Error::Config`] when there is no such name.
    pub fn resolve(&mut self, server: Ipv4Addr, name: &str, timeout: Duration) -> Result<Vec<Ipv4Addr>> {
        let handle = self.sockets.add(dns::Socket::new(&[IpAddress::Ipv4(server)], vec![None]));
        let socket = self.sockets.get_mut::<dns::Socket<'_>>(handle);
        let wrong = |e: &dyn std::fmt::Debug| Error::Config(format!("asking for '{name}': {e:?}"));
        let query = socket.start_query(self.iface.context(), name, DnsQueryType::A);
        let answer = query.map_err(|e| wrong(&e)).and_then(|query| {
            self.run_until("answer to a name", timeout, |guest| {
                let socket = guest.sockets.get_mut::<dns::Socket<'_>>(handle);
                match socket.get_query_result(query) {
                    Ok(addresses) => Ok(Some(addresses)),
                    Err(dns::GetQueryResultError::Pending) => Ok(None),
                    Err(e) => Err(wrong(&e)),
                }
            })
        });
        self.sockets.remove(handle);
        let v4 = |address: &IpAddress| match address {
            IpAddress::Ipv4(address) => Some(*address),
            IpAddress::Ipv6(_) => None,
        };
        Ok(answer?.iter().filter_map(v4).collect())
    }
}
