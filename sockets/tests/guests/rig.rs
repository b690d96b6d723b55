//! A guest with a TCP stack of its own (smoltcp) on a network whose outside is the port's sockets: frames go the whole way,
//! through `FramePath`, with offloads as the guest takes them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use datapath::counters::PortCounters;
use datapath::inmem::{self, InMemoryRx, Peer};
use datapath::path::{Found, FramePath};
use datapath::topology::{PortEntry, Topology};
use datapath::{Armed, RxQueue, TxPort};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use sockets::{Control, Settings, SocketsRx};
use switch_core::head::Head;
use switch_core::ids::Registry;
use switch_core::ip::arp::{Arp, Operation};
use switch_core::ip::nd::{Message, Neighbor};
use switch_core::mode::{Forwarder, Mode};
use switch_core::offload::OffloadSet;
use switch_core::verdict::{Verdict, Verdicts};
use switch_core::virtio_net::VnetHeader;
use switch_core::{Instant, MacAddr, NetworkId, PortId};

pub const ROUTER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub const GUEST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// How long a test may wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the port is told in tests: the gateway's addresses mean the host's loopback.
pub fn settings() -> Settings {
    Settings {
        mac: ROUTER_MAC,
        gateway_v4: Some(GATEWAY),
        gateway_v6: Some(GATEWAY_V6),
        mtu: 1500,
        host_loopback: true,
        filtering: Default::default(),
        outbound: Arc::default(),
        limits: sockets::Limits::default(),
    }
}

/// A network of two ports, each of which sends to the other.
struct Wire(PortId, PortId);

impl Mode for Wire {
    fn forwarder(self: Arc<Self>) -> Box<dyn Forwarder> {
        Box::new(Self(self.0, self.1))
    }

    fn poll_at(&self) -> Option<Instant> {
        None
    }

    fn tick(&self, _now: Instant) {}

    fn port_removed(&self, _port: PortId) {}
}

impl Forwarder for Wire {
    fn decide(&mut self, _now: Instant, ingress: PortId, heads: &mut [Head], out: &mut Verdicts) {
        let to = if ingress == self.0 { self.1 } else { self.0 };
        for i in 0..heads.len() {
            out.set(i, Verdict::Unicast(to));
        }
    }
}

/// The switch, with one guest.
pub struct Lan {
    path: FramePath,
    guest: PortId,
    outside: PortId,
    guest_rx: InMemoryRx,
    rx: SocketsRx,
    poll: Poll,
    pub peer: Peer,
    pub control: Control,
    origin: Clock,
}

impl Lan {
    /// A network whose guest takes frames with the offloads `accepts`.
    pub fn new(settings: Settings, accepts: OffloadSet) -> Self {
        let mtu = settings.mtu;
        let (control, rx, tx) = sockets::open(settings).unwrap();
        let (peer, guest_rx, guest_tx) = inmem::port(accepts, OffloadSet::ALL, 4096).unwrap();
        let network = Registry::<NetworkId>::new(1).mint().unwrap();
        let mut ports = Registry::<PortId>::new(2);
        let (guest, outside) = (ports.mint().unwrap(), ports.mint().unwrap());
        let entry = |id, tx: Arc<dyn TxPort>, mtu| PortEntry {
            id,
            network,
            tx,
            counters: Arc::new(PortCounters::new(1)),
            pvid: None,
            isolated: false,
            flooded: true,
            mtu,
            guard: None,
            rate: None,
        };
        let ports = [entry(guest, Arc::new(guest_tx) as _, mtu), entry(outside, Arc::new(tx) as _, 65_535)];
        let mode: Arc<dyn Mode> = Arc::new(Wire(guest, outside));
        let mut path = FramePath::new(0);
        path.adopt(Arc::new(Topology::new([(network, mode)], ports)));
        let poll = Poll::new().unwrap();
        poll.registry().register(&mut SourceFd(&rx.wake_fd()), Token(0), Interest::READABLE).unwrap();
        Self { path, guest, outside, guest_rx, rx, poll, peer, control, origin: Clock::now() }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.origin.elapsed().as_nanos() as u64)
    }

    /// One look at each queue, as a worker does; true if there was anything.
    pub fn step(&mut self) -> bool {
        let now = self.now();
        let mut work = false;
        for (port, queue) in [
            (self.guest, &mut self.guest_rx as &mut dyn RxQueue),
            (self.outside, &mut self.rx as &mut dyn RxQueue),
        ] {
            match self.path.carry(now, port, queue) {
                Found::Frames(_) => work = true,
                Found::Nothing => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(self.path.broken().count(), 0, "no port may break");
        work
    }

    /// Sleeps until the port's queue has work, as a worker does, or for a little while.
    pub fn sleep(&mut self, most: Duration) {
        if self.rx.arm().unwrap() == Armed::Sleeping {
            self.poll.poll(&mut Events::with_capacity(4), Some(most)).unwrap();
        }
        self.rx.disarm();
    }
}

/// Says of a frame whether it is lost.
pub type Loses = Box<dyn FnMut(&[u8]) -> bool>;

/// Frames between the guest's stack and the switch.
#[derive(Clone)]
pub struct Nic {
    peer: Peer,
    /// Answers of the router's that the switch of these tests does not give: ARP and ND.
    local: Rc<RefCell<VecDeque<Vec<u8>>>>,
    mtu: usize,
    /// Each that is sent is lost if this says so.
    pub lose: Rc<RefCell<Loses>>,
    pub seen: Rc<RefCell<Vec<Vec<u8>>>>,
}

pub struct Rx(Vec<u8>);
pub struct Tx(Nic);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl Nic {
    /// Throws a frame for the guest away; false if there is none.
    pub fn peer_recv(&self) -> bool {
        self.peer.recv().is_some()
    }

    fn send(&self, frame: &[u8]) {
        if let Some(arp) = Arp::of_frame(frame).filter(|arp| arp.operation == Operation::Request) {
            if arp.target == GATEWAY {
                self.local.borrow_mut().push_back(arp.reply(ROUTER_MAC).to_frame(GUEST_MAC));
            }
        } else if let Some(asked) = Neighbor::of_frame(frame).filter(|nd| nd.message == Message::Solicitation)
        {
            if asked.target == GATEWAY_V6 {
                let answer = asked.reply(ROUTER_MAC, true).to_frame(GUEST_MAC, ROUTER_MAC);
                self.local.borrow_mut().push_back(answer);
            }
        } else if frame[..6] == ROUTER_MAC.0 && !(self.lose.borrow_mut())(frame) {
            self.peer.send(VnetHeader::default(), frame);
        }
    }
}

impl Device for Nic {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx)> {
        if let Some(frame) = self.local.borrow_mut().pop_front() {
            return Some((Rx(frame), Tx(self.clone())));
        }
        loop {
            let frame = self.peer.recv()?.frame;
            if !(self.lose.borrow_mut())(&frame) {
                if self.seen.borrow().len() < 64 {
                    self.seen.borrow_mut().push(frame.clone());
                }
                return Some((Rx(frame), Tx(self.clone())));
            }
        }
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx> {
        (self.peer.unsent() < 512).then(|| Tx(self.clone()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.mtu + 14;
        // Super-frames come with partial checksums.
        if self.mtu > 9000 {
            caps.checksum.tcp = Checksum::Tx;
        }
        caps
    }
}

/// A guest and its switch.
pub struct Guest {
    pub lan: Lan,
    pub nic: Nic,
    iface: Interface,
    pub sockets: SocketSet<'static>,
    started: Clock,
    next_port: u16,
}

impl Guest {
    /// A guest with packets of 1,500 bytes that negotiated no offloads.
    pub fn new() -> Self {
        Self::with(settings(), OffloadSet::NONE)
    }

    pub fn with(settings: Settings, accepts: OffloadSet) -> Self {
        let mtu = usize::from(settings.mtu);
        let lan = Lan::new(settings, accepts);
        let mut nic = Nic {
            peer: lan.peer.clone(),
            local: Rc::default(),
            mtu,
            lose: Rc::new(RefCell::new(Box::new(|_| false))),
            seen: Rc::default(),
        };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC.0)));
        let mut iface = Interface::new(config, &mut nic, smoltcp::time::Instant::ZERO);
        iface.update_ip_addrs(|list| {
            list.push(IpCidr::new(IpAddress::from(IpAddr::V4(GUEST)), 24)).unwrap();
            list.push(IpCidr::new(IpAddress::from(IpAddr::V6(GUEST_V6)), 64)).unwrap();
        });
        iface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        iface.routes_mut().add_default_ipv6_route(GATEWAY_V6).unwrap();
        Self {
            lan,
            nic,
            iface,
            sockets: SocketSet::new(Vec::new()),
            started: Clock::now(),
            next_port: 40_000,
        }
    }

    /// One round of everything; true if frames moved.
    pub fn step(&mut self) -> bool {
        let now = smoltcp::time::Instant::from_micros(self.lan.origin.elapsed().as_micros() as i64);
        self.iface.poll(now, &mut self.nic, &mut self.sockets);
        self.lan.step()
    }

    /// Goes on until `done` is true of the guest.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        self.started = Clock::now();
        while !done(self) {
            let counters: Vec<_> = self.lan.control.counters().iter().filter(|(_, n)| *n > 0).collect();
            assert!(self.started.elapsed() < PATIENCE, "in vain: {what}; {counters:?}");
            if !self.step() {
                self.lan.sleep(Duration::from_millis(1));
            }
        }
    }

    /// Goes on for a while.
    pub fn run_for(&mut self, time: Duration) {
        let begin = Clock::now();
        while begin.elapsed() < time {
            if !self.step() {
                self.lan.sleep(Duration::from_millis(1));
            }
        }
    }

    /// Begins a connection.
    pub fn connect(&mut self, to: IpAddr, port: u16, buffer: usize) -> SocketHandle {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; buffer]),
            tcp::SocketBuffer::new(vec![0; buffer]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let local = self.next_port;
        self.next_port = if local == 65_000 { 40_000 } else { local + 1 };
        socket.connect(self.iface.context(), (IpAddress::from(to), port), local).unwrap();
        self.sockets.add(socket)
    }

    /// Waits for a connection.
    pub fn listen(&mut self, port: u16, buffer: usize) -> SocketHandle {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; buffer]),
            tcp::SocketBuffer::new(vec![0; buffer]),
        );
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn state(&mut self, handle: SocketHandle) -> tcp::State {
        self.socket(handle).state()
    }

    /// A connection that is open.
    #[track_caller]
    pub fn connected(&mut self, to: IpAddr, port: u16, buffer: usize) -> SocketHandle {
        let handle = self.connect(to, port, buffer);
        self.until("a connection", |guest| guest.socket(handle).may_send());
        handle
    }

    pub fn count(&self, counter: sockets::Counter) -> u64 {
        self.lan.control.counters().get(counter)
    }
}
