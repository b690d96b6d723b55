//! What a test needs of the machine, and whether the machine has it. Each need is probed once per run, by doing the thing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::{netns::Netns, ordinary, process, workspace};

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Network namespaces, veth pairs and taps: root with CAP_NET_ADMIN and CAP_SYS_ADMIN, `ip`, and `/dev/net/tun`.
    Namespaces,
    /// A user namespace of an ordinary user's, `setpriv` and `unshare`.
    OrdinaryUser,
    /// QEMU (software emulation will do) and an image for it to boot.
    Guests,
    /// DPDK's testpmd with virtio-user; root.
    Testpmd,
    /// `iperf3` on the host.
    Iperf3,
    /// `ethtool` on the host.
    Ethtool,
    /// `ping` on the host.
    Ping,
    /// busybox's DHCP client.
    Udhcpc,
    /// busybox's DHCP server: its leases may be as short as a test is.
    Udhcpd,
    /// ISC's DHCP client.
    Dhclient,
    /// `dig`.
    Dig,
    /// `dnsmasq`, as a server of the outside.
    Dnsmasq,
    /// `rdisc6` and `ndisc6`.
    Rdisc6,
    /// Debian's Python with scapy.
    Scapy,
    /// Any other program, found by PATH.
    Program(&'static str),
}

const ALL: [Need; 14] = [
    Need::Namespaces,
    Need::OrdinaryUser,
    Need::Guests,
    Need::Testpmd,
    Need::Iperf3,
    Need::Ethtool,
    Need::Ping,
    Need::Udhcpc,
    Need::Udhcpd,
    Need::Dhclient,
    Need::Dig,
    Need::Dnsmasq,
    Need::Rdisc6,
    Need::Scapy,
];

impl Need {
    /// Why the need is not met here; `None` if it is.
    pub fn unmet(self) -> Option<&'static str> {
        if let Need::Program(name) = self {
            return absent(name);
        }
        static PROBED: [OnceLock<Option<String>>; ALL.len()] = [const { OnceLock::new() }; ALL.len()];
        let slot = ALL.iter().position(|need| *need == self).and_then(|index| PROBED.get(index))?;
        slot.get_or_init(|| self.probe().err()).as_deref()
    }

    fn probe(self) -> Result<(), String> {
        match self {
            Need::Namespaces => {
                root()?;
                program("ip", &["-V"])?;
                if !std::path::Path::new("/dev/net/tun").exists() {
                    return Err("there is no /dev/net/tun".into());
                }
                let namespace = Netns::new("probe").map_err(|error| format!("{error:#}"))?;
                namespace.run("ip tuntap add probe0 mode tap").map_err(|error| format!("{error:#}"))?;
                Ok(())
            }
            Need::OrdinaryUser => ordinary::probe(),
            Need::Guests => {
                program("qemu-system-x86_64", &["--version"])?;
                guest_image().as_ref().map(|_| ()).map_err(Clone::clone)
            }
            Need::Testpmd => {
                root()?;
                program("dpdk-testpmd", &["--version"]).or_else(|why| {
                    // Releases differ in the status that they give for --version.
                    if process::find("dpdk-testpmd").is_some() { Ok(()) } else { Err(why) }
                })
            }
            Need::Iperf3 => program("iperf3", &["--version"]),
            Need::Ethtool => program("ethtool", &["--version"]),
            Need::Ping => program("ping", &["-V"]),
            Need::Udhcpc => applet("udhcpc"),
            Need::Udhcpd => applet("udhcpd"),
            Need::Dhclient => program("dhclient", &["--version"]),
            Need::Dig => program("dig", &["-v"]),
            Need::Dnsmasq => program("dnsmasq", &["--version"]),
            // It has no option that only tells about itself.
            Need::Rdisc6 => match process::find("rdisc6") {
                Some(_) => Ok(()),
                None => Err("rdisc6 is not installed".into()),
            },
            Need::Scapy => program("/usr/bin/python3", &["-c", "import scapy.layers.dhcp"]),
            Need::Program(name) => absent(name).map_or(Ok(()), |why| Err(why.into())),
        }
    }
}

/// The directory of the guest's kernel and initrd, made on the first call; or why there is none.
pub(crate) fn guest_image() -> &'static Result<PathBuf, String> {
    static IMAGE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        if let Some(dir) = ordinary::guest_image() {
            return Ok(dir);
        }
        let dir = workspace().join("target/guest-image");
        let made = Command::new(workspace().join("tests/rigs/guest-image")).arg(&dir).output();
        match made {
            Ok(output) if output.status.success() => Ok(dir),
            Ok(output) => {
                let told = String::from_utf8_lossy(&output.stderr);
                Err(told.lines().last().unwrap_or("guest-image failed and said nothing").to_string())
            }
            Err(error) => Err(format!("cannot start guest-image: {error}")),
        }
    })
}

/// Why a program cannot be started; `None` if it can. Some do not know `--version`, so they are only looked for.
fn absent(name: &'static str) -> Option<&'static str> {
    static LOOKED_FOR: Mutex<BTreeMap<&str, Option<&str>>> = Mutex::new(BTreeMap::new());
    let mut known = LOOKED_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(name).or_insert_with(|| {
        let missing = process::find(name).is_none();
        missing.then(|| &*Box::leak(format!("{name} is not installed").into_boxed_str()))
    })
}

fn root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() || ordinary::inside() { Ok(()) } else { Err("not root".into()) }
}

fn applet(name: &str) -> Result<(), String> {
    let list = Command::new("busybox").arg("--list").output().map_err(|_| "busybox is not installed")?;
    let has_it = String::from_utf8_lossy(&list.stdout).lines().any(|line| line == name);
    if has_it { Ok(()) } else { Err(format!("busybox has no {name}")) }
}

fn program(name: &str, args: &[&str]) -> Result<(), String> {
    match Command::new(name).args(args).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{name} does not work ({})", output.status)),
        Err(_) => Err(format!("{name} is not installed")),
    }
}
