//! Looks for guests whose leases are older than this process: the store knows their addresses, and nobody knows their
//! ports. On a network where each port is a link of its own, their packets have no way until they are heard, and a
//! guest that believes its neighbour to be there says nothing for half a minute. So they are asked, by ARP, on every
//! link, in a few rounds that double in length: a guest's device may come back later than its port.
//!
//! Bounds: so many leases and frames a round; what is beyond is found when it renews its lease, or asks by itself.

use std::net::Ipv4Addr;
use std::time::Duration;

use switch_core::ip::arp::Arp;
use switch_core::{Instant, MacAddr, PortId};

use super::outbox::Outbox;

/// Rounds after a port came.
const ROUNDS: u32 = 7;
/// Until the second round; twice as long until the third, and so on.
const FIRST: Duration = Duration::from_millis(250);
/// Leases that are looked for at a time.
const LEASES: usize = 64;
/// Frames of a round.
const FRAMES: usize = 1024;

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Search {
    /// The next round, and when it is.
    due: Option<(u32, Instant)>,
}

impl Search {
    /// A port came: there may be somebody behind it.
    pub(super) fn begin(&mut self) {
        self.due = Some((0, Instant::ORIGIN));
    }

    /// When there is something to do.
    pub(super) fn at(&self) -> Option<Instant> {
        self.due.map(|(_, at)| at)
    }

    /// Asks on each of `ports` for those of `lost` who have not been heard. `own` are the router's addresses.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        own: (MacAddr, Ipv4Addr),
        lost: impl Iterator<Item = (Ipv4Addr, MacAddr)>,
        ports: impl Iterator<Item = PortId> + Clone,
        out: &mut Outbox,
    ) {
        let Some((round, _)) = self.due.filter(|&(_, at)| at <= now) else { return };
        let mut frames = FRAMES;
        let mut found_all = true;
        for (address, mac) in lost.take(LEASES) {
            found_all = false;
            let question = Arp::request(own.0, own.1, address).to_frame(mac);
            for port in ports.clone().take(frames) {
                out.send_to(port, question.clone());
                frames -= 1;
            }
        }
        let again = !found_all && round + 1 < ROUNDS;
        self.due = again.then(|| (round + 1, now + FIRST * 2u32.pow(round)));
    }
}
