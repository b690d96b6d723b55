//! The kernel's bridge between two veth pairs. It has no thread to pin: the kernel forwards a frame on the processor
//! that sent it.

use anyhow::Result;

use super::{ADDRESSES, TapSwitch, namespaces, tell};
use crate::guard::Line;

pub(super) fn start() -> Result<TapSwitch> {
    let (ends, middle) = namespaces()?;
    let mut commands = Vec::new();
    let mut ip =
        |words: &str| tell(&Line::new("ip").arg("-n").arg(middle.name()).words(words), &mut commands);
    ip("link add br0 type bridge")?;
    ip("link set br0 up")?;
    for (number, (end, address)) in ends.iter().zip(ADDRESSES).enumerate() {
        let (port, peer) = (format!("veth{number}"), format!("tap{number}"));
        ip(&format!("link add {port} type veth peer name {peer} netns {}", end.name()))?;
        ip(&format!("link set {port} master br0 up"))?;
        end.ip(&format!("address add {address} dev {peer}"))?;
        end.ip(&format!("link set {peer} up"))?;
    }
    Ok(TapSwitch { commands, _jobs: Vec::new(), ends, _middle: middle })
}
