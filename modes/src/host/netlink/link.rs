//! Interfaces.

use std::io;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, State};
use switch_core::MacAddr;

use super::Netlink;

/// An interface, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::host) struct Link {
    pub(in crate::host) index: u32,
    pub(in crate::host) name: String,
    pub(in crate::host) mac: Option<MacAddr>,
    pub(in crate::host) ethernet: bool,
    pub(in crate::host) loopback: bool,
    pub(in crate::host) up: bool,
    /// It is up, and there is somebody at the other end.
    pub(in crate::host) carrier: bool,
    pub(in crate::host) arp: bool,
    /// The bridge, bond or VRF that it belongs to.
    pub(in crate::host) master: Option<u32>,
    /// The interface that it is made on (a VLAN's trunk, a tunnel's underlay).
    pub(in crate::host) lower: Option<u32>,
    /// The kernel's word for what it is; empty for hardware.
    pub(in crate::host) kind: String,
}

impl Link {
    fn parse(message: &LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            loopback: flags.contains(LinkFlags::Loopback),
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            arp: !flags.contains(LinkFlags::Noarp),
            master: None,
            lower: None,
            kind: String::new(),
        };
        let mut elsewhere = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) if bytes.len() == 6 => link.mac = MacAddr::from_slice(bytes),
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::Link(index) if *index != 0 => link.lower = Some(*index),
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::OperState(State::Down | State::LowerLayerDown | State::Dormant) => {
                    link.carrier = false;
                }
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        if elsewhere {
            // The index is one of another namespace.
            link.lower = None;
        }
        (!link.name.is_empty()).then_some(link)
    }
}

/// A change of one interface.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::host) struct LinkChange {
    pub(in crate::host) up: Option<bool>,
    pub(in crate::host) arp: Option<bool>,
    pub(in crate::host) mac: Option<MacAddr>,
}

impl Netlink {
    /// All interfaces of the namespace.
    pub(in crate::host) async fn links(&self) -> io::Result<Vec<Link>> {
        let list = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
        Ok(list
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Link::parse(link),
                _ => None,
            })
            .collect())
    }

    /// One of them.
    pub(in crate::host) async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        Ok(self.links().await?.into_iter().find(|link| link.name == name))
    }

    /// Changes one.
    pub(in crate::host) async fn set_link(&self, index: u32, change: LinkChange) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let mut flag = |flag: LinkFlags, on: Option<bool>| {
            if let Some(on) = on {
                message.header.change_mask |= flag;
                message.header.flags.set(flag, on);
            }
        };
        flag(LinkFlags::Up, change.up);
        flag(LinkFlags::Noarp, change.arp.map(|arp| !arp));
        if let Some(mac) = change.mac {
            message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        }
        self.change(RouteNetlinkMessage::SetLink(message), 0).await
    }
}
