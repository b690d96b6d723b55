//! Debian packages that tests and benchmarks use, installed where that is permitted.

use anyhow::Result;

use crate::run;

/// What the end-to-end tests start: guests, DPDK's virtio-user, traffic tools, clients of the gateway's services,
/// the servers of its outside, and what looks at routes.
pub(crate) const TESTS: &[&str] = &[
    "qemu-system-x86",
    "dpdk-dev",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "ethtool",
    "busybox-static",
    "gcc",
    "libc6-dev",
    "cpio",
    "isc-dhcp-client",
    "bind9-dnsutils",
    "dnsmasq-base",
    "ndisc6",
    "python3-scapy",
    "iputils-arping",
    "iputils-tracepath",
    "traceroute",
    "mtr-tiny",
    "nmap",
    "tcpdump",
    "nftables",
    "ca-certificates",
];

/// What the benchmarks start beside that: the peers.
pub(crate) const BENCH: &[&str] = &["dpdk-dev", "iperf3", "iproute2", "openvswitch-switch-dpdk", "passt"];

/// What counts the instructions of the hot path.
pub(crate) const GUARD: &[&str] = &["valgrind"];

/// What could not be installed, and why.
pub(crate) struct Missing {
    packages: Vec<&'static str>,
    why: &'static str,
}

impl Missing {
    /// Prints what is missing, if anything is.
    pub(crate) fn tell(&self) {
        if !self.packages.is_empty() {
            eprintln!("xtask: not installed ({}): {}", self.why, self.packages.join(" "));
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        self.packages.is_empty()
    }
}

/// Installs those of `wanted` that are missing, as root on Debian; elsewhere it changes nothing and says what is missing.
pub(crate) fn install(wanted: &[&'static str]) -> Result<Missing> {
    if run::program("dpkg-query").arg("--version").quiet_output().is_none() {
        // Without dpkg nobody can say what is missing; the tests look for the programs themselves.
        eprintln!("xtask: not a Debian system, so nothing is installed");
        return Ok(Missing { packages: Vec::new(), why: "" });
    }
    let mut packages = absent(wanted);
    if packages.is_empty() {
        return Ok(Missing { packages, why: "" });
    }
    if !run::is_root() {
        return Ok(Missing { packages, why: "only root may install packages" });
    }
    let apt = || run::program("apt-get").env("DEBIAN_FRONTEND", "noninteractive");
    let install = |packages: &[&str]| {
        apt().args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages).passes()
    };
    // Package lists are often absent or old on a fresh machine.
    if !install(&packages)? && apt().args(["update", "-qq"]).passes()? {
        install(&packages)?;
    }
    packages = absent(&packages);
    Ok(Missing { packages, why: "apt-get install failed" })
}

fn absent(wanted: &[&'static str]) -> Vec<&'static str> {
    let installed = |package: &str| {
        run::program("dpkg-query")
            .args(["-W", "-f=${db:Status-Status}", package])
            .quiet_output()
            .is_some_and(|status| status == "installed")
    };
    wanted.iter().copied().filter(|package| !installed(package)).collect()
}
