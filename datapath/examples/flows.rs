//! Many flows on an interface, as fast as it takes them: the sender of the `nat` and `routed` benchmarks, the same for
//! every peer.
//!
//! `flows IF DST_MAC FLOWS guests|prefixes` sends UDP datagrams of 64 bytes, each of the next of FLOWS flows, in an order
//! in which neighbours have nothing in common. `guests`: from 64 guests of 10.77.1.0/24 with 1,000 ports each, no two of
//! the same number, to as many remotes in 198.18.0.0/15 as it takes. `prefixes`: from 10.77.1.1 to one address in each of
//! FLOWS prefixes of 64 addresses from 10.128.0.0 on. After the first pass over all flows it prints `first NANOSECONDS`,
//! rests for a second, and goes on until it is killed.

use std::thread::sleep;
use std::time::{Duration, Instant};

use datapath::netdev::Netdev;
use datapath::{Burst, TxPort};
use switch_core::check;
use switch_core::checksum::Sum;
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;

const GUESTS: u32 = 64;
const PORTS: u32 = 1000;
/// A prime that divides no number of flows below it: each pass meets each flow once.
const STEP: u64 = 15_485_863;
const LEN: usize = 60;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [interface, mac, flows, kind] = args.as_slice() else {
        return Err("usage: flows IF DST_MAC FLOWS guests|prefixes".into());
    };
    let flows: u32 = flows.parse()?;
    if flows == 0 || u64::from(flows) >= STEP {
        return Err("1 to 15,485,862 flows".into());
    }
    let prefixes = match kind.as_str() {
        "guests" => false,
        "prefixes" => true,
        _ => return Err("guests or prefixes".into()),
    };
    let octets: Vec<u8> =
        mac.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<_, _>>()?;
    let mac: [u8; 6] = octets.try_into().map_err(|_| "a MAC address has six octets")?;
    let (netdev, _rx, tx) = Netdev::open(interface)?;
    let own = netdev.link()?.ok_or("the interface is gone")?.mac;
    let frame = |n: u32| if prefixes { to_prefix(mac, own.0, n) } else { of_guest(mac, own.0, n) };
    let mut burst = Burst::new();
    let members: Vec<u8> = (0..BURST as u8).collect();
    let mut at = 0;
    let mut pass = |burst: &mut Burst| -> Result<(), Box<dyn std::error::Error>> {
        let mut left = flows;
        while left > 0 {
            burst.clear();
            let n = left.min(BURST as u32);
            for _ in 0..n {
                at = (at + STEP) % u64::from(flows);
                let head = burst.next_head().ok_or("no room")?;
                head.begin(LEN as u32, LEN).copy_from_slice(&frame(at as u32));
                check::frame(head, OffloadSet::NONE).map_err(|reason| format!("{reason:?}"))?;
                burst.push(&[]).map_err(|why| format!("{why:?}"))?;
            }
            tx.tx_burst(0, &mut burst.bucket(members.get(..n as usize).unwrap_or_default()))?;
            left -= n;
        }
        Ok(())
    };
    let began = Instant::now();
    pass(&mut burst)?;
    println!("first {}", began.elapsed().as_nanos());
    sleep(Duration::from_secs(1));
    loop {
        pass(&mut burst)?;
    }
}

fn of_guest(to: [u8; 6], from: [u8; 6], n: u32) -> [u8; LEN] {
    let (guest, number, remote) = (n % GUESTS, n / GUESTS % PORTS, n / (GUESTS * PORTS));
    let source = 0x0a4d_0101 + guest;
    let port = (1024 + guest * PORTS + number) as u16;
    datagram(to, from, (source, port), (0xc612_0001 + remote, 53))
}

fn to_prefix(to: [u8; 6], from: [u8; 6], n: u32) -> [u8; LEN] {
    datagram(to, from, (0x0a4d_0101, 1024), (0x0a80_0001 + (n << 6), 53))
}

fn datagram(to: [u8; 6], from: [u8; 6], source: (u32, u16), destination: (u32, u16)) -> [u8; LEN] {
    let mut frame = [0; LEN];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17]);
    frame[26..30].copy_from_slice(&source.0.to_be_bytes());
    frame[30..34].copy_from_slice(&destination.0.to_be_bytes());
    let mut sum = Sum::new();
    sum.add(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.checksum().to_be_bytes());
    frame[34..36].copy_from_slice(&source.1.to_be_bytes());
    frame[36..38].copy_from_slice(&destination.1.to_be_bytes());
    frame[38..40].copy_from_slice(&26_u16.to_be_bytes());
    frame
}
