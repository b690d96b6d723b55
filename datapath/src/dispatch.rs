//! From verdicts to destinations, in two passes, as VALE has it: first every frame is put on its destinations'
//! lists, then each destination gets its list in one call.
//!
//! Split horizon, isolation and VLAN membership are applied here and only here. Each delivery is counted at
//! both ends: see [`switch_core::drop`] for what must balance.

use switch_core::head::ETHERNET_LEN;
use switch_core::ids::Id;
use switch_core::offload::OffloadSet;
use switch_core::verdict::{BURST, Verdicts};
use switch_core::{DropReason, Head, PortId, Verdict};

use crate::burst::Burst;
use crate::counters::Cell;
use crate::egress::{Change, Scratch, change};
use crate::port::{PortError, TxReport};
use crate::topology::{PortEntry, Topology};

/// The frames of the burst that one destination gets. The length stands beside its frames' numbers.
#[derive(Clone, Debug)]
struct List {
    len: u8,
    members: [u8; BURST],
}

impl List {
    #[inline]
    fn members(&self) -> &[u8] {
        &self.members[..usize::from(self.len)]
    }
}

/// A worker's dispatcher: the lists, and room for frames that must be changed on their way.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    worker: usize,
    /// By port slot.
    lists: Vec<List>,
    /// Slots whose list is not empty, in the order of their first frame.
    touched: Vec<u16>,
    scratch: Scratch,
    /// Ports that broke while transmitting, for the worker to report.
    pub(crate) broken: Vec<(PortId, PortError)>,
}

impl Dispatcher {
    pub(crate) fn new(worker: usize) -> Self {
        Self { worker, lists: Vec::new(), touched: Vec::new(), scratch: Scratch::new(), broken: Vec::new() }
    }

    /// Makes room for the lists of a topology, so that no burst allocates.
    pub(crate) fn prepare(&mut self, topology: &Topology) {
        self.lists.resize(topology.port_slots(), List { len: 0, members: [0; BURST] });
        self.touched.clear();
        self.touched.reserve(topology.port_slots());
    }

    /// Delivers a decided burst that was received from `ingress`; how many of its frames went to any port.
    pub(crate) fn deliver(
        &mut self,
        topology: &Topology,
        ingress: &PortEntry,
        burst: &mut Burst,
        verdicts: &Verdicts,
    ) -> u64 {
        let mut tally = Tally::default();
        // Where the frame before went, if every frame of its ingress port may go there. Frames come in trains.
        let mut train = None;
        for (i, (head, &verdict)) in burst.heads().iter().zip(verdicts.as_slice()).enumerate() {
            match verdict {
                Verdict::Unicast(to) if train == Some(to) => {
                    self.put(to.index(), i);
                    tally.deliveries += 1;
                }
                Verdict::Unicast(to) => match self.unicast(topology, ingress, head, to, i) {
                    Ok(port) => {
                        tally.deliveries += 1;
                        train = port.pvid.is_none().then_some(to);
                    }
                    Err(reason) => tally.dropped(ingress, self.worker, reason),
                },
                Verdict::Flood => match self.flood(topology, ingress, head, i) {
                    0 => tally.dropped(ingress, self.worker, DropReason::NoDestination),
                    n => {
                        tally.deliveries += n;
                        tally.copies += n - 1;
                    }
                },
                Verdict::Drop(reason) => tally.dropped(ingress, self.worker, reason),
            }
        }
        ingress.counters.cell(self.worker).forwarded(tally.deliveries, tally.copies);
        for t in 0..self.touched.len() {
            let slot = usize::from(self.touched[t]);
            if let Some(port) = topology.port_at(slot) {
                self.transmit(port, burst, slot);
            }
            self.lists[slot].len = 0;
        }
        self.touched.clear();
        tally.deliveries - tally.copies
    }

    /// Puts the frame on the list of a port, if the port may have it.
    #[inline]
    fn unicast<'t>(
        &mut self,
        topology: &'t Topology,
        ingress: &PortEntry,
        head: &Head,
        to: PortId,
        frame: usize,
    ) -> Result<&'t PortEntry, DropReason> {
        let port = topology.port(to).ok_or(DropReason::NoDestination)?;
        if port.id == ingress.id {
            return Err(DropReason::SamePort);
        }
        if port.network != ingress.network {
            return Err(DropReason::NoDestination);
        }
        if port.isolated && ingress.isolated {
            return Err(DropReason::Isolated);
        }
        if port.pvid.is_some() && port.pvid != head.vlan {
            return Err(DropReason::VlanDenied);
        }
        self.put(to.index(), frame);
        Ok(port)
    }

    /// Puts the frame on the list of every port that may have it; how many.
    fn flood(&mut self, topology: &Topology, ingress: &PortEntry, head: &Head, frame: usize) -> u64 {
        let Some(network) = topology.network(ingress.network) else { return 0 };
        let mut copies = 0;
        for &member in &network.members {
            if self.unicast(topology, ingress, head, member, frame).is_ok() {
                copies += 1;
            }
        }
        copies
    }

    #[inline]
    fn put(&mut self, slot: usize, frame: usize) {
        // The slot is a port's of the topology that `prepare` saw, and a burst has at most BURST frames, of
        // which each is put once on a list.
        if let Some(list) = self.lists.get_mut(slot) {
            if list.len == 0 {
                self.touched.push(slot as u16);
            }
            if let Some(member) = list.members.get_mut(usize::from(list.len)) {
                *member = frame as u8;
                list.len += 1;
            }
        }
    }

    /// Transmits a port's list and counts what became of it.
    fn transmit(&mut self, port: &PortEntry, burst: &mut Burst, slot: usize) {
        let offloads = port.tx.offloads();
        let cell = port.counters.cell(self.worker);
        let list = &mut self.lists[slot];
        let offered = u64::from(list.len);
        let (mut bytes, rewrite, kept) = match unchanged(burst, port, list.members()) {
            Some(bytes) => (bytes, false, usize::from(list.len)),
            None => sort_out(burst, port, offloads, cell, list),
        };
        let members = &list.members[..kept];
        let result = if kept == 0 {
            Ok((TxReport::default(), 0))
        } else if rewrite {
            self.scratch.transmit(self.worker, port, offloads, burst, members)
        } else {
            port.tx.tx_burst(self.worker, &mut burst.bucket(members)).map(|report| (report, 0))
        };
        let (report, unsegmented) = match result {
            Ok(r) => r,
            Err(error) => {
                self.broken.push((port.id, error));
                (TxReport { error: TxReport::all(kept), ..TxReport::default() }, 0)
            }
        };
        let mut taken = kept as u64;
        if report.dropped() | unsegmented != 0 {
            taken -= u64::from((report.dropped() | unsegmented).count_ones());
            // A frame counts once, for the first of its reasons, whatever its segments met.
            let mut seen = 0;
            for (reason, mask) in [
                (DropReason::EgressSegment, unsegmented),
                (DropReason::TxRingFull, report.full),
                (DropReason::TxBufferSmall, report.too_small),
                (DropReason::EgressDown, report.down),
                (DropReason::EgressError, report.error),
            ] {
                let mask = mask & !seen;
                seen |= mask;
                cell.dropped(reason, u64::from(mask.count_ones()));
            }
            for (i, &member) in members.iter().enumerate() {
                if seen & (1 << i) != 0 {
                    bytes -= burst.heads()[usize::from(member)].frame_len() as u64;
                }
            }
        }
        cell.transmitted(offered, taken, bytes);
    }
}

/// The bytes of the frames, if all of them can go to the port as they are for reasons that are quickly seen.
#[inline]
fn unchanged(burst: &Burst, port: &PortEntry, members: &[u8]) -> Option<u64> {
    let longest = usize::from(port.mtu) + ETHERNET_LEN;
    if port.pvid.is_some() {
        return None;
    }
    let mut bytes = 0;
    let mut all = true;
    for &member in members {
        let head = &burst.heads()[usize::from(member)];
        bytes += head.frame_len() as u64;
        all &= head.is_bare() & (head.frame_len() <= longest);
    }
    all.then_some(bytes)
}

/// Takes the frames that the port never takes off its list. The bytes of the others, whether any must be changed on its
/// way, and how many they are.
fn sort_out(
    burst: &Burst,
    port: &PortEntry,
    offloads: OffloadSet,
    cell: &Cell,
    list: &mut List,
) -> (u64, bool, usize) {
    let (mut bytes, mut rewrite, mut kept) = (0, false, 0);
    for i in 0..usize::from(list.len) {
        let member = list.members[i];
        let head = &burst.heads()[usize::from(member)];
        match change(head, port, offloads) {
            Change::Drop(reason) => {
                cell.dropped(reason, 1);
                continue;
            }
            Change::Rewrite => rewrite = true,
            Change::None => {}
        }
        bytes += head.frame_len() as u64;
        list.members[kept] = member;
        kept += 1;
    }
    (bytes, rewrite, kept)
}

#[derive(Default)]
struct Tally {
    deliveries: u64,
    copies: u64,
}

impl Tally {
    fn dropped(&self, ingress: &PortEntry, worker: usize, reason: DropReason) {
        ingress.counters.cell(worker).dropped(reason, 1);
    }
}
