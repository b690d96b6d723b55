//! The two interfaces before a move, what stands in its way, and what a person should know of it.

use std::fs;
use std::path::Path;

use super::plan::{Identity, SYSCTLS, Side, sysctl_path};
use crate::host::error::HostError;
use crate::host::netlink::Netlink;
use crate::host::netlink::link::Link;
use crate::host::netlink::route::Listed;
use crate::host::sysctl::Files;

/// Kinds of interface on another one that do not get their frames by its IP stack: a veth's "lower" is its peer.
const PAIRED: [&str; 2] = ["veth", "netkit"];
/// File systems that are reached by the network.
const NETWORK_FILE_SYSTEMS: [&str; 9] =
    ["nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "glusterfs", "fuse.glusterfs", "lustre"];

/// All that is looked at before a move.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) nic: Link,
    pub(super) host_if: Link,
    pub(super) links: Vec<Link>,
    pub(super) nic_side: Side,
    pub(super) host_if_side: Side,
    /// Routes by the NIC that cannot be put elsewhere, and why.
    pub(super) unfit_routes: Vec<(String, &'static str)>,
    /// Priorities of policy rules that name the NIC.
    pub(super) rules: Vec<u32>,
    pub(super) wireless: bool,
    /// Why the root file system would be lost.
    pub(super) network_root: Option<String>,
    /// What manages the NIC's addresses, with advice.
    pub(super) managers: Vec<String>,
}

impl Survey {
    /// Looks at everything.
    ///
    /// # Errors
    /// One of the interfaces is not there or is no Ethernet interface, or the kernel does not tell.
    pub(super) async fn take(
        net: &Netlink,
        files: &Files,
        nic: &str,
        host_if: &str,
    ) -> Result<Self, HostError> {
        let links = net.links().await.map_err(HostError::kernel("listing interfaces"))?;
        let find = |name: &str| {
            let link = links.iter().find(|link| link.name == name).cloned();
            link.ok_or_else(|| HostError::Refused(format!("there is no interface {name}")))
        };
        let (nic, host_if) = (find(nic)?, find(host_if)?);
        let listed = net.routes(None).await.map_err(HostError::kernel("listing routes"))?;
        let unfit = listed.iter().filter(|listed| listed.is_by(nic.index));
        let unfit_routes =
            unfit.filter_map(|l| l.route.as_ref().err().map(|why| (l.text.clone(), *why))).collect();
        let nic_side = side(net, files, &nic, &listed).await?;
        let host_if_side = side(net, files, &host_if, &listed).await?;
        let rules = net.rules_naming(&nic.name).await.map_err(HostError::kernel("listing policy rules"))?;
        let device = Path::new("/sys/class/net").join(&nic.name);
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Ok(Self {
            wireless: device.join("phy80211").exists() || device.join("wireless").exists(),
            network_root: network_root(&text("/proc/mounts"), &text("/proc/cmdline"), &root_device_path()),
            managers: managers(Path::new("/run"), &nic),
            nic,
            host_if,
            links,
            nic_side,
            host_if_side,
            unfit_routes,
            rules,
        })
    }

    /// Why the move would do harm; `None` if it may be done.
    pub(super) fn refusal(&self) -> Option<String> {
        let nic = &self.nic.name;
        let name = |index: u32| {
            let link = self.links.iter().find(|link| link.index == index);
            link.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
        };
        if self.nic.index == self.host_if.index {
            return Some(format!("{nic} is the host interface itself"));
        }
        if self.nic.loopback {
            return Some(format!("{nic} is the loopback"));
        }
        if !self.nic.ethernet || self.nic.mac.is_none() {
            return Some(format!("{nic} is not an Ethernet interface"));
        }
        if self.wireless {
            return Some(format!(
                "{nic} is wireless: an access point does not accept frames from the addresses of guests"
            ));
        }
        if let Some(master) = self.nic.master {
            return Some(format!(
                "{nic} belongs to {}: it has no addresses of its own to move, and its frames go there",
                name(master)
            ));
        }
        if !self.host_if.ethernet || self.host_if.mac.is_none() {
            return Some(format!("{} is not an Ethernet interface", self.host_if.name));
        }
        if let Some(master) = self.host_if.master {
            return Some(format!("{} belongs to {}", self.host_if.name, name(master)));
        }
        if let Some(why) = &self.network_root {
            return Some(format!(
                "the root file system comes by the network ({why}): it could be lost for good"
            ));
        }
        if !self.nic.up {
            return Some(format!("{nic} is down: set it up first"));
        }
        if !self.nic.arp {
            return Some(format!("{nic} has ARP turned off already: something else manages it"));
        }
        let on_it: Vec<&str> = self
            .links
            .iter()
            .filter(|l| l.lower == Some(self.nic.index) && !PAIRED.contains(&l.kind.as_str()))
            .map(|link| link.name.as_str())
            .collect();
        if !on_it.is_empty() {
            return Some(format!("{} is made on {nic}, and would lose its frames", on_it.join(", ")));
        }
        if !self.rules.is_empty() {
            let rules: Vec<String> = self.rules.iter().map(u32::to_string).collect();
            return Some(format!(
                "policy rules name {nic} (priority {}): they would not follow",
                rules.join(", ")
            ));
        }
        self.unfit_routes
            .first()
            .map(|(route, why)| format!("the route {route} by {nic} cannot be put elsewhere: {why}"))
    }
}

async fn side(net: &Netlink, files: &Files, link: &Link, listed: &[Listed]) -> Result<Side, HostError> {
    let what = |of: &str| format!("listing the {of} of {}", link.name);
    let addresses = net.addresses(link.index, &link.name).await;
    let neighbours = net.neighbours(link.index).await;
    let mut sysctls = Vec::new();
    for name in SYSCTLS {
        if let Some(value) = files.read(&sysctl_path(&link.name, name))? {
            sysctls.push((name, value));
        }
    }
    let mac = link.mac.unwrap_or_default().0;
    let routes = listed.iter().filter(|listed| listed.is_by(link.index));
    Ok(Side {
        identity: Identity { name: link.name.clone(), index: link.index, mac },
        up: link.up,
        arp: link.arp,
        addresses: addresses.map_err(HostError::kernel(what("addresses")))?,
        routes: routes.filter_map(|listed| listed.route.clone().ok()).collect(),
        neighbours: neighbours.map_err(HostError::kernel(what("neighbours")))?,
        sysctls,
    })
}

/// Where sysfs has the device of the root file system; empty if it has none.
fn root_device_path() -> String {
    let device = rustix::fs::stat("/").map(|stat| stat.st_dev).unwrap_or_default();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
    link.to_string_lossy().into_owned()
}

/// Why the root file system is one of the network's: out of `/proc/mounts`, the kernel's command line, and where its
/// device stands in sysfs. An address from the command line (`ip=`) alone says nothing: small virtual machines with a
/// local disk have one, too.
pub(super) fn network_root(mounts: &str, cmdline: &str, device: &str) -> Option<String> {
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (source, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
        if target != "/" {
            continue;
        }
        if NETWORK_FILE_SYSTEMS.contains(&kind) {
            return Some(format!("/ is {kind} from {source}"));
        }
        if ["/dev/nbd", "/dev/rbd", "/dev/drbd"].iter().any(|block| source.starts_with(block)) {
            return Some(format!("/ is on {source}"));
        }
    }
    // An iSCSI disk stands below its session: …/session1/target…
    let below = |part: &str, what: &str| part.strip_prefix(what).is_some_and(|n| n.parse::<u32>().is_ok());
    if device.split('/').any(|part| below(part, "session")) {
        return Some("/ is on an iSCSI disk".into());
    }
    if device.split('/').any(|part| below(part, "nbd") || below(part, "rbd")) {
        return Some("/ is on a network block device".into());
    }
    let starts =
        ["nfsroot=", "netroot=", "root=/dev/nfs", "root=nfs", "root=iscsi:", "root=nbd:", "root=cifs"];
    let word = cmdline.split_whitespace().find(|word| starts.iter().any(|start| word.starts_with(start)));
    word.map(|word| format!("the kernel was started with {word}"))
}

/// Who else changes the NIC's addresses, by what they leave below `/run`.
pub(super) fn managers(run: &Path, nic: &Link) -> Vec<String> {
    let read = |path: String| fs::read_to_string(run.join(path)).unwrap_or_default();
    let mut found = Vec::new();
    let state = read(format!("NetworkManager/devices/{}", nic.index));
    if state.lines().any(|line| line.starts_with("managed=") && !line.ends_with("unmanaged")) {
        found.push(format!(
            "NetworkManager manages {0} and may configure it again: nmcli device set {0} managed no",
            nic.name
        ));
    }
    let state = read(format!("systemd/netif/links/{}", nic.index));
    if state.lines().any(|line| {
        line.strip_prefix("ADMIN_STATE=").is_some_and(|state| !matches!(state, "unmanaged" | "linger"))
    }) {
        found.push(format!(
            "systemd-networkd manages {0} and may configure it again: give {0} a .network file with Unmanaged=yes",
            nic.name
        ));
    }
    found
}
