//! What a result was measured on and with, and what is missing for measuring it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::guard::{Line, interrupt, run};

const LIMIT: Duration = Duration::from_secs(20);

/// The machine and the versions of what ran on it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Processor's name.
    pub(crate) processor: String,
    /// Processors that are on line.
    pub(crate) cpus: usize,
    /// Memory, GiB.
    pub(crate) memory_gib: f64,
    /// Kernel and distribution.
    pub(crate) system: String,
    /// When the run started, UTC.
    pub(crate) date: String,
    /// Program and version.
    pub(crate) versions: Vec<(String, String)>,
}

impl Machine {
    /// Looks at this machine.
    ///
    /// # Errors
    /// The system does not tell.
    pub(crate) fn look(programs: &[Program]) -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let field = |text: &str, label: &str| {
            let line = text.lines().find(|line| line.starts_with(label));
            line.and_then(|line| line.split_once([':', '=']))
                .map(|(_, value)| value.trim().trim_matches('"').to_string())
        };
        let memory = field(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
        let kib: f64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        let system = field(&read("/etc/os-release").unwrap_or_default(), "PRETTY_NAME").unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease")?;
        let mut versions = vec![("weft".to_string(), weft_version()?)];
        for program in programs {
            versions.push((program.name.to_string(), (program.version)()?));
        }
        Ok(Machine {
            processor: field(&read("/proc/cpuinfo")?, "model name").unwrap_or_else(|| "unknown".into()),
            cpus: std::thread::available_parallelism()?.get(),
            memory_gib: kib / f64::from(1 << 20),
            system: format!("Linux {} {system}", kernel.trim()),
            date: run(&Line::new("date").arg("-u").arg("+%Y-%m-%d %H:%M UTC"), LIMIT)?.trim().to_string(),
            versions,
        })
    }
}

/// A program that a benchmark starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    name: &'static str,
    file: &'static str,
    package: &'static str,
    version: fn() -> Result<String>,
}

impl Program {
    /// What people call it.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

/// DPDK's test program, which has no option for its version.
pub(crate) const TESTPMD: Program = Program {
    name: "DPDK testpmd",
    file: "dpdk-testpmd",
    package: "dpdk-dev",
    version: || Ok(package_version("dpdk-dev")),
};
/// Open vSwitch, built with DPDK.
pub(crate) const OVS: Program = Program {
    name: "Open vSwitch",
    file: crate::peers::VSWITCHD,
    package: "openvswitch-switch-dpdk",
    version: ovs_version,
};
/// The TCP generator.
pub(crate) const IPERF3: Program = Program {
    name: "iperf3",
    file: "iperf3",
    package: "iperf3",
    version: || first_line("iperf3", "--version"),
};
/// Namespaces and interfaces.
pub(crate) const IP: Program =
    Program { name: "iproute2", file: "ip", package: "iproute2", version: || first_line("ip", "-V") };

/// Sets an interface's offloads.
pub(crate) const ETHTOOL: Program = Program {
    name: "ethtool",
    file: "ethtool",
    package: "ethtool",
    version: || first_line("ethtool", "--version"),
};
/// VDE's switch.
pub(crate) const VDE: Program = Program {
    name: "VDE",
    file: "vde_switch",
    package: "vde2",
    version: || first_line("vde_switch", "--version"),
};
/// The user-mode NAT of passt.
pub(crate) const PASTA: Program =
    Program { name: "pasta", file: "pasta", package: "passt", version: || first_line("pasta", "--version") };
/// The guests' machine.
pub(crate) const QEMU: Program = Program {
    name: "QEMU",
    file: "qemu-system-x86_64",
    package: "qemu-system-x86",
    version: || first_line("qemu-system-x86_64", "--version"),
};
/// Tells a switch where an interface is.
pub(crate) const PING: Program =
    Program { name: "ping", file: "ping", package: "iputils-ping", version: || first_line("ping", "-V") };
/// The kernel's packet filter.
pub(crate) const NFT: Program = Program {
    name: "nftables",
    file: "nft",
    package: "nftables",
    version: || first_line("nft", "--version"),
};

/// The part of all processors' time that is used while nothing of the benchmark's runs.
///
/// # Errors
/// The benchmark was interrupted, or the system does not tell.
pub(crate) fn busy() -> Result<f64> {
    let before = ticks()?;
    interrupt::pause(Duration::from_millis(300))?;
    let after = ticks()?;
    let (used, all) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    Ok(used as f64 / all.max(1) as f64)
}

/// Ticks of all processors since the start: used, and all.
fn ticks() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user's.
    let fields: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|f| f.parse().ok()).collect();
    let all = fields.iter().sum();
    Ok((all - fields.iter().skip(3).take(2).sum::<u64>(), all))
}

fn first_line(program: &str, arg: &str) -> Result<String> {
    let text = run(&Line::new(program).arg(arg), LIMIT)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_string())
}

fn ovs_version() -> Result<String> {
    // The daemon names the DPDK it was built with in its second line.
    let text = run(&Line::new(crate::peers::VSWITCHD).arg("--version"), LIMIT)?;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    Ok(lines.join(", "))
}

/// What the package manager knows.
fn package_version(package: &str) -> String {
    let line = Line::new("dpkg-query").arg("-W").arg("-f=${Version}").arg(package);
    run(&line, LIMIT).map_or_else(|_| "unknown".to_string(), |text| text.trim().to_string())
}

/// Version and, in a work tree, revision.
fn weft_version() -> Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    let git = Line::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR"));
    let revision = run(&git.words("describe --always --dirty --abbrev=12"), LIMIT);
    Ok(revision.map_or_else(|_| version.to_string(), |text| format!("{version} ({})", text.trim())))
}

fn find(file: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    Path::new(file).is_absolute() && Path::new(file).is_file()
        || std::env::split_paths(&path).any(|dir| dir.join(file).is_file())
}

/// Checks that this is root.
///
/// # Errors
/// It is not.
pub(crate) fn root(why: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this benchmark needs root: {why}");
    }
    Ok(())
}

/// Checks that the programs are there.
///
/// # Errors
/// Says what is missing and how to get it.
pub(crate) fn require(programs: &[Program]) -> Result<()> {
    let missing: Vec<&Program> = programs.iter().filter(|program| !find(program.file)).collect();
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|program| program.file).collect();
        let packages: Vec<&str> = missing.iter().map(|program| program.package).collect();
        bail!("not installed: {}. On Debian: apt-get install {}", names.join(", "), packages.join(" "));
    }
    Ok(())
}

/// A program of this workspace, built beside this one.
///
/// # Errors
/// It is not there.
pub(crate) fn built(name: &str, build: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("this program's path")?;
    let path = own.parent().context("this program's directory")?.join(name);
    if !path.is_file() {
        bail!("{} is not there: {build} makes it", path.display());
    }
    Ok(path)
}

/// Builds an example of this workspace where a cargo runs this program; else it has to be there.
///
/// # Errors
/// It does not build.
pub(crate) fn build_example(package: &str, example: &str) -> Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let mut build = std::process::Command::new(cargo);
    build.args(["build", "--release", "--quiet", "--package", package, "--example", example]);
    let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cannot build the peer {example}");
    }
    Ok(())
}
