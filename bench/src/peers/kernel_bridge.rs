//! The kernel's bridge. It has no thread to pin: the kernel forwards a frame on the processor that sent it.

use anyhow::Result;

use super::{TapSwitch, namespaces, tell, veths};
use crate::guard::{Line, Netns};

/// Between two veth pairs.
pub(super) fn start() -> Result<TapSwitch> {
    let (ends, middle) = namespaces()?;
    let mut commands = make(&middle)?;
    let interfaces = veths(&ends, &middle, &mut commands)?;
    for interface in interfaces {
        tell(&enslave(&middle, interface), &mut commands)?;
    }
    Ok(TapSwitch { commands, _jobs: Vec::new(), ends, _middle: middle })
}

/// A bridge without ports; the commands.
pub(super) fn make(netns: &Netns) -> Result<Vec<String>> {
    let mut commands = Vec::new();
    let ip = |words: &str| Line::new("ip").arg("-n").arg(netns.name()).words(words);
    tell(&ip("link add br0 type bridge"), &mut commands)?;
    tell(&ip("link set br0 up"), &mut commands)?;
    Ok(commands)
}

/// Makes an interface a port.
pub(super) fn enslave(netns: &Netns, interface: &str) -> Line {
    Line::new("ip").arg("-n").arg(netns.name()).words(&format!("link set {interface} master br0 up"))
}
