//! Who of the outside sends datagrams to guests, and as whom a guest sees each: the gateway with a port of its own, or the
//! client itself.
//!
//! A client has one flow for each listener that it sends to, and each address of this host that it sends to; the flow ends
//! [`TIMEOUT`] after its last datagram in either direction. Bounds: so many flows in all, and so many to one guest. Where
//! they are used up, the flow of that guest that was used least lately ends for the new one; where all are taken, one of
//! the guest that has most.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use switch_core::Instant;

use crate::limits::Limits;
use crate::token::Token;
use crate::udp::TIMEOUT;

/// How exactly the use of a flow is noted.
const GRAIN: Duration = Duration::from_secs(1);

/// A flow as its guest names it: the guest's address and port, and those that the guest sees.
pub(super) type Name = (SocketAddr, SocketAddr);

/// Who sends by which listener, and to which address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) by: Token,
    pub(super) from: SocketAddr,
    pub(super) to: Option<IpAddr>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Clients {
    flows: HashMap<Name, (Client, Instant)>,
    names: HashMap<Client, Name>,
    /// The flows of each guest, the one that was used least lately first.
    ages: HashMap<IpAddr, BTreeSet<(Instant, Name)>>,
    /// Flows whose guest sees the client itself.
    seen: usize,
    /// No flow ends before.
    due: Option<Instant>,
}

/// Whether a flow's guest sees the client itself.
fn is_seen(name: &Name, client: &Client) -> bool {
    name.1.ip() == client.from.ip()
}

impl Clients {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// All, with when they were used.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Name, Client, Instant)> {
        self.flows.iter().map(|(&name, &(client, used))| (name, client, used))
    }

    /// Whether any guest sees a client itself.
    pub(super) fn are_seen(&self) -> bool {
        self.seen > 0
    }

    /// A client sends to a guest: whom the guest sees, if there is one that is free, and how many flows had to end. `pick`
    /// picks one that is not taken.
    pub(super) fn arrives(
        &mut self,
        now: Instant,
        client: Client,
        guest: SocketAddr,
        limits: &Limits,
        pick: impl FnOnce(&dyn Fn(SocketAddr) -> bool) -> Option<SocketAddr>,
    ) -> (Option<SocketAddr>, usize) {
        if let Some(&name) = self.names.get(&client) {
            self.touch(now, name);
            return (Some(name.1), 0);
        }
        let ended = self.make_room(guest.ip(), limits);
        let Some(seen) = pick(&|seen| self.flows.contains_key(&(guest, seen))) else { return (None, ended) };
        let name = (guest, seen);
        self.flows.insert(name, (client, now));
        self.seen += usize::from(is_seen(&name, &client));
        self.names.insert(client, name);
        self.ages.entry(guest.ip()).or_default().insert((now, name));
        self.due = self.due.or(Some(now + TIMEOUT));
        (Some(seen), ended)
    }

    /// The flow of a client.
    pub(super) fn name(&self, client: &Client) -> Option<Name> {
        self.names.get(client).copied()
    }

    /// A guest sends to whom it sees as a client: to whom that goes.
    pub(super) fn answers(&mut self, now: Instant, name: Name) -> Option<Client> {
        self.touch(now, name);
        self.flows.get(&name).map(|(client, _)| *client)
    }

    fn touch(&mut self, now: Instant, name: Name) {
        let Some((_, used)) = self.flows.get_mut(&name).filter(|(_, used)| now.since(*used) >= GRAIN) else {
            return;
        };
        let before = std::mem::replace(used, now);
        if let Some(ages) = self.ages.get_mut(&name.0.ip()) {
            ages.remove(&(before, name));
            ages.insert((now, name));
        }
    }

    fn make_room(&mut self, guest: IpAddr, limits: &Limits) -> usize {
        let held = self.ages.get(&guest).map_or(0, BTreeSet::len);
        let loser = if held >= limits.udp_each as usize {
            guest
        } else if self.len() >= limits.udp as usize {
            let most = self.ages.iter().max_by_key(|(_, ages)| ages.len());
            // Whoever asks is not to gain by it what another has no more of than itself.
            most.map_or(guest, |(&biggest, ages)| if ages.len() > held { biggest } else { guest })
        } else {
            return 0;
        };
        match self.ages.get(&loser).and_then(BTreeSet::first) {
            Some(&(_, oldest)) => {
                self.end(oldest);
                1
            }
            None => 0,
        }
    }

    fn end(&mut self, name: Name) {
        let Some((client, used)) = self.flows.remove(&name) else { return };
        self.names.remove(&client);
        self.seen -= usize::from(is_seen(&name, &client));
        if let Some(ages) = self.ages.get_mut(&name.0.ip()) {
            ages.remove(&(used, name));
            if ages.is_empty() {
                self.ages.remove(&name.0.ip());
            }
        }
    }

    /// Ends the flows of a listener.
    pub(super) fn forget(&mut self, by: Token) {
        let gone: Vec<Name> = self.iter().filter(|(_, c, _)| c.by == by).map(|(name, ..)| name).collect();
        for name in gone {
            self.end(name);
        }
    }

    /// When [`Clients::expire`] next has something to do, at the earliest.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Ends the flows that nobody used for [`TIMEOUT`].
    pub(super) fn expire(&mut self, now: Instant) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let old =
            self.ages.values().flat_map(|ages| ages.iter().take_while(|(used, _)| *used + TIMEOUT <= now));
        let old: Vec<Name> = old.map(|(_, name)| *name).collect();
        for name in old {
            self.end(name);
        }
        self.due = self.ages.values().filter_map(|ages| ages.first()).map(|(used, _)| *used + TIMEOUT).min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Kind;

    const BY: Token = Token::new(Kind::Listener, 1, 1);

    fn client(n: u16) -> Client {
        Client { by: BY, from: SocketAddr::from(([192, 0, 2, 1], n)), to: None }
    }

    fn guest(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 53))
    }

    fn arrive(clients: &mut Clients, second: u64, n: u16, at: u8, limits: &Limits) -> (u16, usize) {
        let free = |taken: &dyn Fn(SocketAddr) -> bool| (1024..).map(gateway).find(|seen| !taken(*seen));
        let (seen, ended) = clients.arrives(Instant::from_secs(second), client(n), guest(at), limits, free);
        (seen.unwrap().port(), ended)
    }

    fn gateway(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn a_client_keeps_its_port_until_it_is_silent_for_the_timeout() {
        let (mut clients, limits) = (Clients::default(), Limits::default());
        assert_eq!(arrive(&mut clients, 0, 1, 2, &limits), (1024, 0));
        assert_eq!(arrive(&mut clients, 0, 2, 2, &limits), (1025, 0));
        assert_eq!(arrive(&mut clients, 200, 1, 2, &limits), (1024, 0));
        assert_eq!(clients.due(), Some(Instant::from_secs(300)));
        clients.expire(Instant::from_secs(301));
        assert_eq!(clients.len(), 1);
        // The guest's answers count as well.
        assert_eq!(clients.answers(Instant::from_secs(400), (guest(2), gateway(1024))), Some(client(1)));
        clients.expire(Instant::from_secs(600));
        assert_eq!((clients.len(), clients.due()), (1, Some(Instant::from_secs(700))));
        clients.expire(Instant::from_secs(700));
        assert_eq!((clients.len(), clients.due()), (0, None));
        assert_eq!(clients.answers(Instant::from_secs(700), (guest(2), gateway(1024))), None);
        assert!(clients.names.is_empty() && clients.ages.is_empty());
    }

    #[test]
    fn a_guests_clients_push_out_each_other_and_then_those_of_who_has_most() {
        let limits = Limits { udp: 6, udp_each: 4, ..Limits::default() };
        let mut clients = Clients::default();
        for n in 0..10 {
            arrive(&mut clients, n.into(), n, 2, &limits);
        }
        let of = |clients: &Clients, at| clients.iter().filter(|(name, ..)| name.0 == guest(at)).count();
        assert_eq!(of(&clients, 2), 4);
        assert!(clients.names.contains_key(&client(9)) && !clients.names.contains_key(&client(5)));
        let ended: usize = (20..24).map(|n| arrive(&mut clients, 30, n, 3, &limits).1).sum();
        assert_eq!((of(&clients, 2), of(&clients, 3), ended), (3, 3, 2));
        clients.forget(BY);
        assert_eq!(clients.len(), 0);
    }
    #[test]
    fn a_client_that_is_seen_itself_is_found_by_its_address_until_it_ends() {
        let (mut clients, limits) = (Clients::default(), Limits::default());
        let to = |n: u8| Client { to: Some(IpAddr::from([198, 51, 100, n])), ..client(7) };
        let itself = |taken: &dyn Fn(SocketAddr) -> bool| {
            Some(client(7).from).filter(|from| !taken(*from)).or(Some(gateway(1024)))
        };
        let mut arrives = |at, to| clients.arrives(Instant::from_secs(at), to, guest(2), &limits, itself).0;
        assert_eq!(arrives(0, to(1)), Some(client(7).from));
        // The same client to another address of this host is another flow, which the guest has to tell from the first.
        assert_eq!(arrives(1, to(2)), Some(gateway(1024)));
        assert_eq!(arrives(2, to(1)), Some(client(7).from));
        assert!(clients.are_seen());
        let mut answers = |seen| clients.answers(Instant::from_secs(3), (guest(2), seen));
        assert_eq!((answers(client(7).from), answers(gateway(1024))), (Some(to(1)), Some(to(2))));
        assert_eq!(answers(client(8).from), None);
        clients.forget(BY);
        assert!(!clients.are_seen() && clients.len() == 0);
    }
}
