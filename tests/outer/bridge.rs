//! Bridge policy as an operator sets it, seen by virtio-net drivers of our own, and what an idle daemon costs.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use frontend::{Config, NetDevice, wire};
use harness::{Daemon, Suite, conservation, process};

/// How long a port must be silent before nothing more is expected at it.
const QUIET: Duration = Duration::from_millis(150);

const BROADCAST: Mac = [0xff; 6];

type Mac = [u8; 6];

pub(crate) fn register(suite: &mut Suite) {
    suite.add("bridge_floods_what_it_does_not_know_then_learns", &[], floods_then_learns);
    suite.add("bridge_never_forwards_reserved_addresses", &[], reserved_addresses);
    suite.add("bridge_drops_sources_that_cannot_be", &[], impossible_sources);
    suite.add("bridge_follows_an_address_that_moves", &[], moves);
    suite.add("bridge_static_entry_cannot_be_taken_over", &[], static_entry);
    suite.add("bridge_fdb_del_and_flush_hold_for_the_next_frame", &[], del_and_flush);
    suite.add("bridge_full_fdb_evicts_from_the_port_that_fills_it", &[], fair_eviction);
    suite.add("bridge_isolated_ports_reach_only_the_others", &[], isolated_ports);
    suite.add("bridge_port_vlans_are_apart", &[], port_vlans);
    suite.add("bridge_port_mac_cannot_be_taken_over", &[], configured_mac);
    suite.add("bridge_antispoof_lets_in_only_the_ports_own_sources", &[], antispoof);
    suite.add("bridge_rate_makes_a_port_wait_and_loses_nothing", &[], rate);
    suite.add("idle_daemon_with_50_ports_uses_under_1_percent_of_a_cpu", &[], idle);
    suite.add("demo_passes_every_step", &[], demo);
}

/// A daemon with network `n` and devices on its ports `p0`, `p1`, …
struct Bridge {
    daemon: Daemon,
    devices: Vec<NetDevice>,
}

impl Bridge {
    fn new(network: &str, ports: &[&str]) -> Result<Self> {
        let daemon = Daemon::start()?;
        daemon.ok(&format!("net add n mode=bridge {network}"))?;
        let mut devices = Vec::new();
        for (index, keys) in ports.iter().enumerate() {
            let socket = daemon.path(&format!("p{index}"));
            daemon.ok(&format!("port add n p{index} vhost-user:{} {keys}", socket.display()))?;
            let config = Config::default().queue_size(64).mac_number(u32::try_from(index)? + 1);
            devices.push(NetDevice::connect(&socket, config).with_context(|| format!("p{index}"))?);
            daemon.await_port(&format!("p{index}"), "up")?;
        }
        Ok(Bridge { daemon, devices })
    }

    fn mac(&self, index: usize) -> Mac {
        self.devices[index].mac()
    }

    /// Sends a frame from a port, and gives the ports at which it came out.
    fn send(&mut self, from: usize, destination: Mac, source: Mac) -> Result<Vec<usize>> {
        self.send_frame(from, &frame(destination, source))
    }

    fn send_frame(&mut self, from: usize, frame: &[u8]) -> Result<Vec<usize>> {
        self.devices[from].send(frame)?;
        let mut seen = Vec::new();
        for (index, device) in self.devices.iter_mut().enumerate() {
            let got = device.recv_all(QUIET)?;
            ensure!(got.len() <= 1, "port {index} got the frame {} times", got.len());
            if let Some((_, got)) = got.first() {
                ensure!(got == frame, "port {index} got {got:x?}, not {frame:x?}");
                seen.push(index);
            }
        }
        Ok(seen)
    }

    /// Checks where a frame comes out.
    fn expect(&mut self, from: usize, destination: Mac, source: Mac, at: &[usize]) -> Result<()> {
        let seen = self.send(from, destination, source)?;
        ensure!(seen == at, "a frame from port {from} came out at {seen:?}, not at {at:?}");
        Ok(())
    }

    /// How many addresses the FDB holds at each port.
    fn learned(&self) -> Result<Vec<usize>> {
        let table = self.daemon.json("fdb show n")?;
        let entries = table.as_array().context("fdb show")?;
        let at = |index: usize| {
            let name = format!("p{index}");
            entries.iter().filter(|entry| entry["port"] == name.as_str()).count()
        };
        Ok((0..self.devices.len()).map(at).collect())
    }

    fn conserve(&self) -> Result<()> {
        conservation(&self.daemon)?;
        Ok(())
    }
}

/// A frame of the EtherType that IEEE 802 leaves for local experiments.
fn frame(destination: Mac, source: Mac) -> Vec<u8> {
    let mut frame = Vec::with_capacity(64);
    frame.extend_from_slice(&destination);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&[0x88, 0xb5]);
    frame.extend((0..50).map(|n: u8| n ^ source[5]));
    frame
}

fn station(number: u16) -> Mac {
    let [high, low] = number.to_be_bytes();
    [0x02, 0, 0, 0, high, low]
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn floods_then_learns() -> Result<()> {
    let mut bridge = Bridge::new("", &["", "", ""])?;
    let (a, b) = (bridge.mac(0), bridge.mac(1));
    bridge.expect(0, b, a, &[1, 2]).context("unknown")?;
    bridge.expect(1, a, b, &[0]).context("learned")?;
    bridge.expect(0, b, a, &[1]).context("learned from the reply")?;
    bridge.expect(2, BROADCAST, bridge.mac(2), &[0, 1]).context("broadcast")?;
    bridge.expect(2, [0x01, 0, 0x5e, 0, 0, 1], bridge.mac(2), &[0, 1]).context("multicast")?;
    bridge.expect(0, a, station(9), &[]).context("to its own port")?;
    bridge.conserve()
}

fn reserved_addresses() -> Result<()> {
    let mut bridge = Bridge::new("", &["", ""])?;
    let source = bridge.mac(0);
    for last in 0..=0x0f {
        bridge.expect(0, [0x01, 0x80, 0xc2, 0, 0, last], source, &[])?;
    }
    bridge.expect(0, [0x01, 0x80, 0xc2, 0, 0, 0x10], source, &[1])?;
    let counted = harness::counters(&bridge.daemon, "p0")?;
    let drops: u64 = counted.drops.iter().map(|(_, count)| count).sum();
    ensure!(drops == 16, "{counted:?}");
    bridge.conserve()
}

fn impossible_sources() -> Result<()> {
    let mut bridge = Bridge::new("", &["", ""])?;
    for source in [BROADCAST, [0x01, 0, 0x5e, 0, 0, 1], [0; 6]] {
        bridge.expect(0, bridge.mac(1), source, &[]).with_context(|| text(source))?;
    }
    ensure!(bridge.learned()? == [0, 0], "learned: {:?}", bridge.learned()?);
    bridge.conserve()
}

fn moves() -> Result<()> {
    let mut bridge = Bridge::new("", &["", "", ""])?;
    let roamer = station(7);
    bridge.expect(0, BROADCAST, roamer, &[1, 2])?;
    bridge.expect(1, roamer, bridge.mac(1), &[0])?;
    bridge.expect(2, BROADCAST, roamer, &[0, 1])?;
    bridge.expect(1, roamer, bridge.mac(1), &[2]).context("after the move")?;
    bridge.conserve()
}

fn static_entry() -> Result<()> {
    let mut bridge = Bridge::new("", &["", "", ""])?;
    let owner = station(7);
    bridge.daemon.ok(&format!("fdb add n p0 {}", text(owner)))?;
    // The thief's frame may be dropped or forwarded; it may not teach the bridge anything.
    bridge.send(2, BROADCAST, owner)?;
    bridge.expect(1, owner, bridge.mac(1), &[0])?;
    bridge.daemon.ok(&format!("fdb del n {}", text(owner)))?;
    bridge.send(2, BROADCAST, owner)?;
    bridge.expect(1, owner, bridge.mac(1), &[2]).context("after fdb del")?;
    bridge.conserve()
}

fn configured_mac() -> Result<()> {
    let mut bridge = Bridge::new("", &["mac=52:54:00:00:00:01", "", ""])?;
    let (own, thief) = (bridge.mac(0), bridge.mac(1));
    // Before it has sent anything, its frames go to it alone.
    bridge.expect(1, own, thief, &[0]).context("configured")?;
    bridge.send(1, BROADCAST, own)?;
    bridge.expect(2, own, bridge.mac(2), &[0]).context("after another port sent from it")?;
    let socket = format!("vhost-user:{}", bridge.daemon.path("p9").display());
    let line = bridge.daemon.refused(1, &["port", "add", "n", "p9", &socket, "mac=52:54:00:00:00:01"])?;
    ensure!(line.contains("port p0's"), "{line}");
    bridge.conserve()
}

fn antispoof() -> Result<()> {
    let mut bridge = Bridge::new("", &["antispoof=on mac=52:54:00:00:00:01 ip=10.0.0.1", ""])?;
    let own = bridge.mac(0);
    let ask = |mac, ip| wire::arp_request(mac, ip, [10, 0, 0, 2]);
    for (frame, at, what) in [
        (ask(own, [10, 0, 0, 1]), &[1][..], "its own"),
        (ask(own, [10, 0, 0, 9]), &[], "another's IP address"),
        (ask(station(9), [10, 0, 0, 1]), &[], "another's MAC address"),
    ] {
        let seen = bridge.send_frame(0, &frame)?;
        ensure!(seen == at, "{what} came out at {seen:?}");
    }
    let counted = harness::counters(&bridge.daemon, "p0")?;
    ensure!(counted.drops == [("source_denied".to_string(), 2)], "{counted:?}");
    ensure!(bridge.learned()? == [1, 0], "what was denied was learned");
    bridge.conserve()
}

fn rate() -> Result<()> {
    // 500 bytes a window of 50 ms.
    let mut bridge = Bridge::new("", &["rate=10KB/s@50ms", ""])?;
    let frame = frame(BROADCAST, bridge.mac(0));
    const FRAMES: usize = 200;
    let began = Instant::now();
    let (mut arrived, mut got) = (0, Vec::new());
    for _ in 0..FRAMES {
        bridge.devices[0].send(&frame)?;
        while bridge.devices[1].try_recv(&mut got)?.is_some() {
            arrived += 1;
        }
    }
    for n in arrived..FRAMES {
        bridge.devices[1].recv(Duration::from_secs(10)).with_context(|| format!("frame {n}"))?;
    }
    // What comes for nothing: the first window, which may have been nearly over, and the last burst, whose excess
    // would have counted for windows to come. A burst is the device's ring at most.
    let owed = FRAMES * frame.len() - 500 - 64 * frame.len();
    let least = Duration::from_millis(50) * u32::try_from(owed / 500 - 1)?;
    ensure!(began.elapsed() >= least, "{FRAMES} frames came in {:?}", began.elapsed());
    let counted = harness::counters(&bridge.daemon, "p0")?;
    ensure!(counted.drops.is_empty(), "{counted:?}");
    bridge.conserve()
}

fn del_and_flush() -> Result<()> {
    let mut bridge = Bridge::new("", &["", "", ""])?;
    let a = bridge.mac(0);
    for verb in [format!("fdb del n {}", text(a)), "fdb flush n".to_string()] {
        bridge.expect(0, BROADCAST, a, &[1, 2])?;
        bridge.expect(1, a, bridge.mac(1), &[0])?;
        bridge.daemon.ok(&verb)?;
        bridge.expect(1, a, bridge.mac(1), &[0, 2]).with_context(|| verb.clone())?;
    }
    bridge.conserve()
}

/// The vector that Open vSwitch tests its table with: ten entries, five ports with two each; then sixteen addresses on
/// a sixth port leave it three, and everyone else at least one.
fn fair_eviction() -> Result<()> {
    let mut bridge = Bridge::new("fdb-max=10", &["", "", "", "", "", ""])?;
    for port in 0..5u16 {
        for number in 0..2 {
            bridge.send(port.into(), BROADCAST, station(port * 10 + number))?;
        }
    }
    ensure!(bridge.learned()? == [2, 2, 2, 2, 2, 0], "{:?}", bridge.learned()?);
    for number in 0..16 {
        bridge.send(5, BROADCAST, station(100 + number))?;
    }
    let learned = bridge.learned()?;
    ensure!(learned.iter().sum::<usize>() == 10, "{learned:?}");
    ensure!(learned[5] == 3 && learned[..5].iter().all(|count| *count >= 1), "{learned:?}");
    bridge.conserve()
}

fn isolated_ports() -> Result<()> {
    let mut bridge = Bridge::new("", &["isolated=on", "isolated=on", ""])?;
    let (a, b, c) = (bridge.mac(0), bridge.mac(1), bridge.mac(2));
    bridge.expect(0, BROADCAST, a, &[2])?;
    bridge.expect(1, BROADCAST, b, &[2])?;
    bridge.expect(2, BROADCAST, c, &[0, 1])?;
    bridge.expect(0, b, a, &[]).context("a known address behind an isolated port")?;
    bridge.expect(0, c, a, &[2])?;
    bridge.expect(2, a, c, &[0])?;
    bridge.daemon.ok("port set p1 isolated=off")?;
    bridge.expect(0, b, a, &[1]).context("after port set")?;
    bridge.conserve()
}

fn port_vlans() -> Result<()> {
    let mut bridge = Bridge::new("", &["vlan=10", "vlan=10", "vlan=20"])?;
    let (a, b, c) = (bridge.mac(0), bridge.mac(1), bridge.mac(2));
    bridge.expect(0, BROADCAST, a, &[1])?;
    bridge.expect(2, BROADCAST, c, &[])?;
    bridge.expect(1, a, b, &[0])?;
    bridge.expect(2, a, c, &[]).context("an address of another VLAN")?;
    let table = bridge.daemon.json("fdb show n")?;
    let entry = table.as_array().and_then(|entries| entries.iter().find(|entry| entry["mac"] == text(a)));
    ensure!(entry.is_some_and(|entry| entry["vlan"] == 10), "{table}");
    let counted = harness::counters(&bridge.daemon, "p2")?;
    ensure!(counted.rx_frames == 2 && counted.forwarded == 0, "{counted:?}");
    bridge.conserve()
}

fn idle() -> Result<()> {
    const PORTS: usize = 50;
    const WINDOW: Duration = Duration::from_secs(10);
    let mut bridge = Bridge::new("", &[""; PORTS])?;
    let a = bridge.mac(0);
    let all_others: Vec<usize> = (1..PORTS).collect();
    // Traffic first: a daemon that has worked must come to rest again.
    bridge.expect(0, BROADCAST, a, &all_others)?;
    std::thread::sleep(Duration::from_secs(1));
    let before = process::cpu_time(bridge.daemon.pid())?;
    std::thread::sleep(WINDOW);
    let used = process::cpu_time(bridge.daemon.pid())? - before;
    ensure!(used < WINDOW / 100, "an idle daemon used {used:?} of CPU in {WINDOW:?}");
    bridge.expect(0, BROADCAST, a, &all_others).context("after the rest")?;
    bridge.conserve()
}

fn demo() -> Result<()> {
    let mut command = Command::new(harness::binary()?);
    let output = process::run(command.args(["demo", "--json"]), Duration::from_secs(90))?;
    ensure!(output.code == 0, "{output:?}");
    let report: serde_json::Value = serde_json::from_str(&output.stdout).context("weft demo --json")?;
    ensure!(!output.stdout.contains("FAIL"), "{report}");
    Ok(())
}
