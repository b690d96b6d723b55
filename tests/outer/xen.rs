//! Xen's hotplug script, `packaging/xen/vif-weft`: called as the toolstack calls it, with a veth pair for the vif and a
//! directory for xenstore.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::process::Output;
use harness::{Daemon, Need, Netns, Suite, conservation, process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::machine::{Machine, Peer, await_reach, ping};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping];
const DEVICE: &str = "/local/domain/0/backend/vif/1/0";

pub(crate) fn register(suite: &mut Suite) {
    suite.add("xen_a_vif_is_attached_and_taken_off", NEEDS, attached_and_taken_off);
    suite.add("xen_keys_of_a_vif_become_keys_of_its_port", NEEDS, keys_become_keys);
    suite.add("xen_an_emulated_nic_shares_its_address_with_the_vif", NEEDS, emulated_nic);
    suite.add("xen_what_goes_wrong_is_told_in_one_line", NEEDS, told_in_one_line);
}

/// A dom0 with a switch, and what the toolstack brings along.
struct Dom0 {
    host: Netns,
    daemon: Daemon,
    dir: TempDir,
}

impl Dom0 {
    fn new() -> Result<Self> {
        let host = Netns::new("dom0")?;
        let daemon = Daemon::start_in(&host)?;
        daemon.ok("net add xenbr0 mode=bridge")?;
        let dir = tempfile::tempdir()?;
        let bin = dir.path().join("bin");
        fs::create_dir_all(&bin)?;
        symlink(harness::binary()?, bin.join("weft"))?;
        let store = dir.path().join("xenstore");
        let programs = [
            ("xenstore-read", r#"cat "$STORE$1""#),
            (
                "xenstore-write",
                r#"while [ $# -gt 0 ]; do mkdir -p "$STORE${1%/*}"; printf %s "$2" >"$STORE$1"; shift 2; done"#,
            ),
        ];
        for (name, line) in programs {
            let script = format!("#!/bin/sh\nset -eu\nSTORE={}\n{line}\n", store.display());
            fs::write(bin.join(name), script)?;
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { host, daemon, dir })
    }

    fn path_of(&self, key: &str) -> PathBuf {
        self.dir.path().join(format!("xenstore{DEVICE}/{key}"))
    }

    /// Describes the device in xenstore, as xl does, and nothing that was there before.
    fn describe(&self, keys: &[(&str, &str)]) -> Result<()> {
        let dir = self.path_of("");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        keys.iter().try_for_each(|(key, value)| Ok(fs::write(self.path_of(key), value)?))
    }

    /// What xenstore has for a key; empty if it has nothing.
    fn told(&self, key: &str) -> String {
        fs::read_to_string(self.path_of(key)).unwrap_or_default()
    }

    /// Calls the script as the toolstack does for device 0 of domain 1, which has an emulated NIC.
    fn call(&self, command: &str, type_if: &str) -> Result<Output> {
        let script = harness::workspace().join("packaging/xen/vif-weft");
        let mut call = self.host.command(script);
        let path = std::env::var("PATH")?;
        call.args([command, &format!("type_if={type_if}")])
            .env("PATH", format!("{}:{path}", self.dir.path().join("bin").display()))
            .env("WEFT_SOCKET", self.daemon.socket())
            .env("XENBUS_PATH", DEVICE)
            .env("vif", "vif1.0")
            .env("INTERFACE", "vif1.0-emu");
        process::run(&mut call, Duration::from_secs(20))
    }

    /// Calls the script, which must do what it is called for and say nothing.
    fn done(&self, command: &str, type_if: &str) -> Result<()> {
        let output = self.call(command, type_if)?;
        ensure!(output.code == 0, "{command} {type_if}: {output:?}");
        ensure!(output.stdout.is_empty() && output.stderr.is_empty(), "{command} {type_if}: {output:?}");
        Ok(())
    }

    /// Calls the script, which must fail, and tell why in one line and in xenstore. The line.
    fn fails(&self, command: &str) -> Result<String> {
        let output = self.call(command, "vif")?;
        let line = output.stderr.trim_end();
        ensure!(output.code == 1 && output.stdout.is_empty() && line.lines().count() == 1, "{output:?}");
        ensure!(self.told("hotplug-status") == "error", "hotplug-status: {}", self.told("hotplug-status"));
        ensure!(self.told("hotplug-error") == line, "hotplug-error: {}", self.told("hotplug-error"));
        Ok(line.to_string())
    }

    /// Makes a guest's interface, down, whose other end is the guest's.
    fn guest(&self, interface: &str, address: &str) -> Result<Peer> {
        let peer = Peer::new("guest", address)?;
        peer.veth(&self.host, interface)?;
        self.host
            .run(&format!("ip link set {interface} down; ip address add 192.0.2.1/24 dev {interface}"))?;
        self.host.run(&format!("echo 0 >/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"))?;
        Ok(peer)
    }

    /// The interface as `ip` describes it: flags, MTU, MAC address, addresses.
    fn interface(&self, name: &str) -> Result<Value> {
        let text = self.host.run(&format!("ip -json address show dev {name}"))?;
        let list: Value = serde_json::from_str(&text)?;
        list.get(0).cloned().with_context(|| format!("no interface {name}: {text}"))
    }

    fn ports(&self) -> Result<Vec<String>> {
        let list = self.daemon.json("port list xenbr0")?;
        let ports = list.as_array().context("port list")?;
        Ok(ports.iter().filter_map(|port| port["name"].as_str().map(str::to_string)).collect())
    }
}

fn has_flag(interface: &Value, flag: &str) -> bool {
    interface["flags"].as_array().is_some_and(|flags| flags.iter().any(|f| f == flag))
}

fn attached_and_taken_off() -> Result<()> {
    let dom0 = Dom0::new()?;
    let mut guest = dom0.guest("vif1.0", "10.9.0.1")?;
    let other = Peer::new("other", "10.9.0.2")?;
    dom0.daemon.ok("port add xenbr0 t0 tap:t0")?;
    other.adopt(&dom0.host, "t0")?;
    let mac = guest.run("cat /sys/class/net/eth0/address")?.trim().to_string();
    dom0.describe(&[("bridge", "xenbr0"), ("mac", &mac), ("handle", "0")])?;

    dom0.done("add", "vif")?;
    dom0.done("online", "tap")?;
    ensure!(dom0.ports()? == ["t0"], "what is for the other interface attached something");
    ensure!(dom0.told("hotplug-status").is_empty(), "nothing was done, and xenstore was told");

    dom0.done("online", "vif")?;
    ensure!(dom0.told("hotplug-status") == "connected", "{}", dom0.told("hotplug-status"));
    ensure!(dom0.told("hotplug-error").is_empty());
    let vif = dom0.interface("vif1.0")?;
    ensure!(vif["address"] == "fe:ff:ff:ff:ff:ff", "{vif}");
    ensure!(has_flag(&vif, "UP") && has_flag(&vif, "NOARP"), "{vif}");
    ensure!(vif["addr_info"] == json!([]), "dom0 still has an address on it: {vif}");
    dom0.daemon.await_port("vif1.0", "up")?;
    let port = dom0.daemon.json("port show vif1.0")?;
    ensure!(port["network"] == "xenbr0" && port["kind"] == "netdev:vif1.0" && port["mac"] == mac, "{port}");
    ensure!(port["antispoof"] == false && port["rate"].is_null(), "{port}");
    await_reach(&mut guest, "10.9.0.2", Duration::from_secs(10))?;
    ping(&mut guest, "10.9.0.2")?;

    dom0.done("online", "vif").context("a second time")?;
    ping(&mut guest, "10.9.0.2")?;
    conservation(&dom0.daemon)?;

    dom0.done("offline", "vif")?;
    ensure!(dom0.ports()? == ["t0"], "the port is still there: {:?}", dom0.ports()?);
    ensure!(!has_flag(&dom0.interface("vif1.0")?, "UP"), "the interface is still up");
    dom0.host.run("ip link del vif1.0")?;
    dom0.done("offline", "vif").context("without port and interface")?;
    Ok(())
}

fn keys_become_keys() -> Result<()> {
    let dom0 = Dom0::new()?;
    let _guest = dom0.guest("vif1.0", "10.9.0.1")?;
    // As xl writes them into xenstore: 10Mb/s, and 1MB/s@20ms.
    let keys = |rate| {
        [
            ("bridge", "xenbr0"),
            ("mac", "00:16:3e:01:02:03"),
            ("ip", "10.9.0.1 fd00::1"),
            ("mtu", "1400"),
            ("rate", rate),
            ("vifname", "web0"),
        ]
    };
    for (rate, shown) in [
        ("62500,50000", "10Mb/s"),
        ("20000,20000", "8Mb/s@20ms"),
        ("1MB/s@20ms", "8Mb/s@20ms"),
        ("1000,0", ""),
    ] {
        dom0.describe(&keys(rate))?;
        dom0.done("online", "vif").with_context(|| format!("rate {rate}"))?;
        let port = dom0.daemon.json("port show web0")?;
        ensure!(port["rate"].as_str().unwrap_or_default() == shown, "{rate}: {port}");
        ensure!(port["kind"] == "netdev:web0" && port["mac"] == "00:16:3e:01:02:03", "{port}");
        ensure!(port["ip"] == json!(["10.9.0.1", "fd00::1"]) && port["antispoof"] == true, "{port}");
        ensure!(port["mtu"] == 1400 && dom0.interface("web0")?["mtu"] == 1400, "{port}");
        dom0.done("offline", "vif")?;
        ensure!(dom0.ports()?.is_empty(), "{:?}", dom0.ports()?);
    }
    Ok(())
}

fn emulated_nic() -> Result<()> {
    let dom0 = Dom0::new()?;
    let _vif = dom0.guest("vif1.0", "10.9.0.1")?;
    let mut emulated = dom0.guest("vif1.0-emu", "10.9.0.1")?;
    let other = Peer::new("other", "10.9.0.2")?;
    dom0.daemon.ok("port add xenbr0 t0 tap:t0")?;
    other.adopt(&dom0.host, "t0")?;
    let mac = emulated.run("cat /sys/class/net/eth0/address")?.trim().to_string();
    let own = dom0.interface("vif1.0-emu")?["address"].clone();
    dom0.describe(&[("bridge", "xenbr0"), ("mac", &mac)])?;
    dom0.done("online", "vif")?;
    dom0.done("add", "tap")?;
    let interface = dom0.interface("vif1.0-emu")?;
    ensure!(interface["address"] == own, "a tap of QEMU's keeps its address: {interface}");
    ensure!(has_flag(&interface, "NOARP") && interface["addr_info"] == json!([]), "{interface}");
    // The vif's port was to have the address for itself.
    await_reach(&mut emulated, "10.9.0.2", Duration::from_secs(10))?;
    dom0.done("remove", "tap")?;
    ensure!(dom0.ports()? == ["t0", "vif1.0"], "{:?}", dom0.ports()?);
    dom0.done("remove", "tap").context("a second time")
}

fn told_in_one_line() -> Result<()> {
    let mut dom0 = Dom0::new()?;
    dom0.describe(&[("mac", "00:16:3e:01:02:03")])?;
    let line = dom0.fails("online")?;
    ensure!(line.contains("bridge="), "{line}");
    dom0.describe(&[("bridge", "xenbr0")])?;
    let line = dom0.fails("online")?;
    ensure!(line.contains("no interface vif1.0"), "{line}");

    let _guest = dom0.guest("vif1.0", "10.9.0.1")?;
    dom0.describe(&[("bridge", "xenbr7")])?;
    let line = dom0.fails("online")?;
    ensure!(line.contains("xenbr7"), "{line}");
    dom0.describe(&[("bridge", "xenbr0"), ("mac", "nonsense")])?;
    let line = dom0.fails("online")?;
    ensure!(line.contains("nonsense"), "{line}");
    ensure!(dom0.ports()?.is_empty(), "{:?}", dom0.ports()?);
    let line = dom0.fails("frobnicate")?;
    ensure!(line.contains("'frobnicate'"), "{line}");

    dom0.describe(&[("bridge", "xenbr0")])?;
    dom0.done("online", "vif")?;
    dom0.daemon.terminate()?;
    let line = dom0.fails("offline")?;
    ensure!(line.contains("ctl.sock"), "{line}");
    ensure!(!has_flag(&dom0.interface("vif1.0")?, "UP"), "the interface is still up");
    Ok(())
}
