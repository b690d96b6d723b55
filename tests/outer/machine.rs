//! The two kinds of machine on a network, guests and namespaces, and what a test has them do with each other.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, ensure};
use harness::{Guest, GuestOptions, Netns, process};
use tempfile::TempDir;

/// Whoever connects here is sent the payload.
const PAYLOAD_PORT: u16 = 8000;
/// Bytes of a payload: some thousand segments.
const PAYLOAD_MIB: u32 = 8;

/// Something with an IP stack and a shell, on the network under test.
pub(crate) trait Machine {
    /// Runs a shell script; what it printed. An error if it fails.
    fn run(&mut self, script: &str) -> Result<String>;
    /// Its IPv4 address on the network under test.
    fn address(&self) -> &str;
    /// Makes a random payload and serves it, and starts an iperf3 server. The payload's SHA-256.
    fn serve(&mut self) -> Result<String>;
}

/// A QEMU guest with an address.
pub(crate) struct GuestMachine {
    pub(crate) guest: Guest,
    address: String,
}

impl GuestMachine {
    pub(crate) fn boot(socket: &Path, mac: &str, address: &str, options: &GuestOptions) -> Result<Self> {
        Ok(GuestMachine { guest: Guest::boot(socket, mac, options)?, address: address.to_string() })
    }

    /// The same with a NIC in QEMU's words.
    pub(crate) fn boot_on(netdev: &str, mac: &str, address: &str) -> Result<Self> {
        let guest = Guest::boot_on(netdev, mac, &GuestOptions::default())?;
        Ok(GuestMachine { guest, address: address.to_string() })
    }

    /// Waits for the guest and gives its NIC the address.
    pub(crate) fn configure(&mut self) -> Result<()> {
        let script = format!("ip address add {}/24 dev eth0; ip link set eth0 up", self.address);
        self.guest.run(&script).map(|_| ())
    }
}

impl Machine for GuestMachine {
    fn run(&mut self, script: &str) -> Result<String> {
        self.guest.run(script)
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn serve(&mut self) -> Result<String> {
        self.guest.run(&format!(
            "dd if=/dev/urandom of=/tmp/blob bs=1M count={PAYLOAD_MIB} 2>/dev/null
             nc -ll -p {PAYLOAD_PORT} -e cat /tmp/blob >/dev/null 2>&1 &
             iperf3 -s -D
             sha256sum </tmp/blob"
        ))
    }
}

/// A network namespace with an address.
pub(crate) struct Peer {
    pub(crate) namespace: Netns,
    address: String,
    dir: TempDir,
    servers: Vec<Child>,
}

impl Peer {
    /// `address` without prefix length; the network is a /24.
    pub(crate) fn new(role: &str, address: &str) -> Result<Self> {
        Ok(Peer {
            namespace: Netns::new(role)?,
            address: address.to_string(),
            dir: tempfile::tempdir()?,
            servers: Vec::new(),
        })
    }

    /// Takes a tap that the daemon in `host` made.
    pub(crate) fn adopt(&self, host: &Netns, tap: &str) -> Result<()> {
        self.namespace.adopt(host, tap, &format!("{}/24", self.address))
    }

    /// Gets one end of a veth pair whose other end, `interface`, is in `host`.
    pub(crate) fn veth(&self, host: &Netns, interface: &str) -> Result<()> {
        host.veth(interface, &self.namespace, "eth0", &format!("{}/24", self.address))
    }

    fn start_server(&mut self, line: &[&str]) -> Result<()> {
        let mut command = self.namespace.command(line[0]);
        command.args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.servers.push(command.process_group(0).spawn().with_context(|| line.join(" "))?);
        Ok(())
    }
}

impl Machine for Peer {
    fn run(&mut self, script: &str) -> Result<String> {
        self.namespace.run(script)
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn serve(&mut self) -> Result<String> {
        let dir = self.dir.path().display().to_string();
        let script = format!("head -c {PAYLOAD_MIB}M /dev/urandom >{dir}/blob; sha256sum <{dir}/blob");
        let sum = process::sh(&script)?;
        let (port, blob) = (PAYLOAD_PORT.to_string(), format!("{dir}/blob"));
        self.start_server(&["busybox", "nc", "-ll", "-p", &port, "-e", "cat", &blob])?;
        self.start_server(&["iperf3", "-s"])?;
        self.namespace.run(&format!(
            "for i in $(seq 100); do
               [ $(ss -Hltn 'sport = :{PAYLOAD_PORT} or sport = :5201' | wc -l) -ge 2 ] && exit 0; sleep 0.05
             done; exit 1"
        ))?;
        Ok(sum)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for server in &mut self.servers {
            process::kill(server);
        }
    }
}

/// `from` reaches `to` by ICMP echo, three times in a row.
pub(crate) fn ping(from: &mut dyn Machine, to: &str) -> Result<()> {
    from.run(&format!("ping -c 3 -i 0.2 -W 3 {to}"))?;
    Ok(())
}

/// `from` reaches `to` with frames of exactly `mtu`.
pub(crate) fn ping_full_mtu(from: &mut dyn Machine, to: &str, mtu: u16) -> Result<()> {
    // 20 bytes of IPv4 and 8 of ICMP come before the data.
    from.run(&format!("ping -c 2 -i 0.2 -W 3 -s {} {to}", mtu - 28))?;
    Ok(())
}

/// A second of TCP from `client` to an iperf3 server, or from it with `reverse`; the receiver's rate in kbit/s.
pub(crate) fn iperf(client: &mut dyn Machine, server: &str, reverse: bool) -> Result<f64> {
    let flag = if reverse { "-R" } else { "" };
    let told = client.run(&format!("iperf3 -c {server} -t 1 -f k --connect-timeout 5000 {flag}"))?;
    let line = told.lines().find(|line| line.contains("receiver")).with_context(|| told.clone())?;
    let mut words = line.split_whitespace().rev().skip_while(|word| *word != "Kbits/sec").skip(1);
    let rate: f64 = words.next().with_context(|| line.to_string())?.parse()?;
    ensure!(rate > 0.0, "iperf3 got nothing through: {told}");
    Ok(rate)
}

/// The shell command that prints the payload of the machine at `server`.
pub(crate) fn payload_of(server: &str) -> String {
    format!("busybox nc -w 10 {server} {PAYLOAD_PORT} </dev/null")
}

/// `client` fetches the payload that `server` serves; it must hash to `sum`.
pub(crate) fn fetch(client: &mut dyn Machine, server: &str, sum: &str) -> Result<()> {
    let got = client.run(&format!("{} | sha256sum", payload_of(server)))?;
    ensure!(got.trim() == sum.trim(), "the payload from {server} hashes to {got}, and {sum} was sent");
    Ok(())
}

/// Everything two machines do with each other: ping, full-MTU ping, TCP both ways, payloads both ways. The hashes of
/// the payloads that `a` and `b` serve from now on.
pub(crate) fn exchange(a: &mut dyn Machine, b: &mut dyn Machine) -> Result<(String, String)> {
    let (a_address, b_address) = (a.address().to_string(), b.address().to_string());
    ping(a, &b_address).context("ping")?;
    ping_full_mtu(a, &b_address, 1500).context("full-MTU ping")?;
    let (a_sum, b_sum) = (a.serve()?, b.serve()?);
    iperf(a, &b_address, false).context("iperf3")?;
    iperf(a, &b_address, true).context("iperf3 in reverse")?;
    fetch(a, &b_address, &b_sum)?;
    fetch(b, &a_address, &a_sum)?;
    Ok((a_sum, b_sum))
}

/// Waits until `from` reaches `to`.
pub(crate) fn await_reach(from: &mut dyn Machine, to: &str, limit: Duration) -> Result<()> {
    harness::eventually(&format!("ping of {to}"), limit, || {
        Ok(from.run(&format!("ping -c 1 -W 1 {to}")).map(|_| ()).map_err(|error| format!("{error:#}")))
    })
}
