//! The connections, by slot and by the addresses and ports of their guests' packets, and how many each guest has.

use std::collections::HashMap;
use std::net::IpAddr;

use switch_core::PortId;
use switch_core::ip::Addresses;

use super::flow::Flow;
use crate::counters::Counter;
use crate::limits::Limits;

/// A connection's name: addresses and ports as in its guest's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) addresses: Addresses,
    /// The guest's, and the outside's.
    pub(super) ports: (u16, u16),
}

impl Key {
    /// The guest's address.
    pub(super) fn inside(&self) -> IpAddr {
        match self.addresses {
            Addresses::V4 { source, .. } => source.into(),
            Addresses::V6 { source, .. } => source.into(),
        }
    }

    /// The outside's address, as the guest names it.
    pub(super) fn outside(&self) -> IpAddr {
        match self.addresses {
            Addresses::V4 { destination, .. } => destination.into(),
            Addresses::V6 { destination, .. } => destination.into(),
        }
    }
}

/// Who is charged for a connection: the address that it is from, and the port that it came by, for a guest that has many
/// addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Payer {
    Address(IpAddr),
    Port(PortId),
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// With a socket.
    all: u32,
    /// Of these, those that nobody has accepted yet.
    opening: u32,
}

#[derive(Debug, Default)]
struct Slot {
    flow: Option<Box<Flow>>,
    generation: u16,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    keys: HashMap<Key, u32>,
    shares: HashMap<Payer, Share>,
    total: Share,
}

impl Table {
    /// The connection's slot.
    #[inline]
    pub(super) fn find(&self, key: &Key) -> Option<u32> {
        self.keys.get(key).copied()
    }

    /// The connection in a slot.
    #[inline]
    pub(super) fn get(&mut self, slot: u32) -> Option<&mut Flow> {
        self.slots.get_mut(slot as usize)?.flow.as_deref_mut()
    }

    /// The same, if it has the generation still.
    #[inline]
    pub(super) fn get_if(&mut self, slot: u32, generation: u16) -> Option<&mut Flow> {
        let slot = self.slots.get_mut(slot as usize)?;
        if slot.generation == generation { slot.flow.as_deref_mut() } else { None }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.slots.iter().filter_map(|slot| slot.flow.as_deref())
    }

    /// The slots of those of which something is true.
    pub(super) fn find_all(&self, mut is_meant: impl FnMut(&Flow) -> bool) -> Vec<u32> {
        let meant = |slot: &Slot| slot.flow.as_deref().is_some_and(&mut is_meant);
        let slots = self.slots.iter().map(meant).collect::<Vec<_>>();
        slots.iter().zip(0..).filter_map(|(meant, slot)| meant.then_some(slot)).collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether one more may begin.
    ///
    /// # Errors
    /// What is used up.
    pub(super) fn admits(&self, key: &Key, port: Option<PortId>, limits: &Limits) -> Result<(), Counter> {
        let share = |payer| self.shares.get(&payer).copied().unwrap_or_default();
        let address = share(Payer::Address(key.inside()));
        // A port may have many guests behind it, but not everything.
        let of_port = port.map(|port| share(Payer::Port(port))).unwrap_or_default();
        let port_most = limits.tcp_each.max(limits.tcp / 2);
        let port_opening_most = limits.tcp_opening_each.max(limits.tcp_opening / 2);
        if self.total.all >= limits.tcp {
            Err(Counter::TcpFull)
        } else if address.all >= limits.tcp_each || of_port.all >= port_most {
            Err(Counter::TcpQuota)
        } else if self.total.opening >= limits.tcp_opening
            || address.opening >= limits.tcp_opening_each
            || of_port.opening >= port_opening_most
        {
            Err(Counter::TcpOpening)
        } else {
            Ok(())
        }
    }

    /// Where the next connection will be, and its generation.
    pub(super) fn next(&mut self) -> (u32, u16) {
        if self.free.is_empty() {
            self.free.push(self.slots.len() as u32);
            self.slots.push(Slot::default());
        }
        let slot = self.free.last().copied().unwrap_or_default();
        (slot, self.slots.get(slot as usize).map_or(0, |slot| slot.generation))
    }

    /// Puts a connection, which has a socket and is opening, where [`Table::next`] said.
    pub(super) fn insert(&mut self, flow: Flow) -> u32 {
        let (slot, _) = self.next();
        self.free.pop();
        self.keys.insert(flow.key, slot);
        self.charge(&flow, |share| {
            share.all += 1;
            share.opening += 1;
        });
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.flow = Some(Box::new(flow));
        }
        slot
    }

    /// A connection is not opening any more.
    pub(super) fn opened(&mut self, slot: u32) {
        self.settle(slot, false);
    }

    /// A connection has no socket any more.
    pub(super) fn released(&mut self, slot: u32) {
        self.settle(slot, true);
    }

    /// Charges nothing more for a connection's opening, and, if it `is_over`, for itself.
    fn settle(&mut self, slot: u32, is_over: bool) {
        let Some(flow) = self.slots.get_mut(slot as usize).and_then(|slot| slot.flow.take()) else { return };
        let mut flow = flow;
        let opening = u32::from(std::mem::take(&mut flow.charged_opening));
        let all = u32::from(is_over && std::mem::take(&mut flow.charged));
        self.charge(&flow, |share| {
            share.opening = share.opening.saturating_sub(opening);
            share.all = share.all.saturating_sub(all);
        });
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.flow = Some(flow);
        }
    }

    /// Forgets a connection.
    pub(super) fn remove(&mut self, slot: u32) -> Option<Box<Flow>> {
        self.released(slot);
        let place = self.slots.get_mut(slot as usize)?;
        let flow = place.flow.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.keys.remove(&flow.key);
        self.free.push(slot);
        Some(flow)
    }

    fn charge(&mut self, flow: &Flow, change: impl Fn(&mut Share)) {
        change(&mut self.total);
        let payers = [Some(Payer::Address(flow.key.inside())), flow.port.map(Payer::Port)];
        for payer in payers.into_iter().flatten() {
            let share = self.shares.entry(payer).or_default();
            change(share);
            if share.all == 0 && share.opening == 0 {
                self.shares.remove(&payer);
            }
        }
    }
}
