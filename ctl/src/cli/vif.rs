//! `weft vif`: a port in xl's words. It is `port add` and `port del` for the daemon, which knows of no vifs.

use super::args::VifVerb;
use super::render::Render;
use super::table::pairs;
use super::verbs::{Caller, keys};
use super::{Failure, Output};
use crate::model::{DOMID_MAX, PortSpec, VifSpec, xen_mac};
use crate::protocol::Ports;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::io::Read;
use switch_core::MacAddr;

/// What was made of a vif: what whoever starts the guest has to know.
#[derive(Serialize)]
struct Attached {
    name: String,
    network: String,
    kind: String,
    mac: String,
}

impl Render for Attached {
    fn render(&self) -> String {
        pairs(&[
            ("name", self.name.clone()),
            ("network", self.network.clone()),
            ("kind", self.kind.clone()),
            ("mac", self.mac.clone()),
        ])
    }
}

impl Caller<'_> {
    pub(super) fn vif(&self, verb: VifVerb) -> Result<Output, Failure> {
        match verb {
            VifVerb::Attach { may_exist, domid, spec, kind } => {
                self.attach(&VifSpec::parse(&spec)?, domid, kind.as_deref(), may_exist)
            }
            VifVerb::Detach { if_exists, name } => {
                Ok(self.change("PortDel", json!({ "name": name, "if_exists": if_exists }))?.into())
            }
        }
    }

    fn attach(
        &self,
        vif: &VifSpec,
        domid: Option<u32>,
        kind: Option<&str>,
        may_exist: bool,
    ) -> Result<Output, Failure> {
        let named = vif.name.is_some() || domid.is_some();
        if !named && kind.is_none() {
            return Err(Failure::Refused(
                "vif: which interface of the host it is, is not said: give --domid N, vifname=, or KIND:ARG"
                    .to_owned(),
            ));
        }
        if may_exist && (!named || vif.mac.is_none()) {
            return Err(Failure::Refused(
                "vif: --may-exist compares it with the port that is there: give --domid N or vifname=, and mac=".to_owned(),
            ));
        }
        let mac = match vif.mac {
            Some(mac) => mac,
            None => random_mac()?,
        };
        let mac_text = mac.to_string();
        let mut words = vec![("mac", &*mac_text)];
        words.extend(vif.words.iter().map(|(key, value)| (*key, &**value)));
        let check = |name: &str| {
            let kind = kind.map_or_else(|| format!("netdev:{name}"), |kind| self.absolute_kind(kind));
            PortSpec::from_words(&vif.network, name, &kind, words.iter().copied())?;
            Ok::<_, Failure>(kind)
        };
        // Words that can be seen to be wrong fail before there is a daemon to ask for a free name.
        check(&vif.name_in(domid.unwrap_or(1)))?;
        let domid = match domid {
            Some(domid) => domid,
            None if named => 0,
            None => self.free_domid(vif)?,
        };
        let name = vif.name_in(domid);
        let kind = check(&name)?;
        let parameters = json!({
            "network": vif.network, "name": name, "kind": kind, "keys": keys(&words), "may_exist": may_exist,
        });
        let _: Map<String, Value> = self.ask("PortAdd", parameters)?;
        let attached = Attached { name, network: vif.network.clone(), kind, mac: mac_text };
        let note = (!vif.unused.is_empty()).then(|| {
            format!("vif: {} of xl has no meaning here and was not used", vif.unused.join("=, ") + "=")
        });
        Ok(Output { text: self.print(&attached), notes: note.into_iter().collect() })
    }

    /// The first domain from 1 on of which no port has the name.
    fn free_domid(&self, vif: &VifSpec) -> Result<u32, Failure> {
        let reply: Ports = self.ask("PortList", json!({}))?;
        let taken: BTreeSet<String> = reply.ports.into_iter().map(|port| port.name).collect();
        (1..=DOMID_MAX).find(|domid| !taken.contains(&vif.name_in(*domid))).ok_or_else(|| {
            Failure::Refused("vif: every name of a vif is taken: give --domid N or vifname=".to_owned())
        })
    }
}

/// A random address of Xen's range.
fn random_mac() -> Result<MacAddr, Failure> {
    let mut bytes = [0; 3];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|e| Failure::Refused(format!("vif: cannot make an address: /dev/urandom: {e}: give mac=")))?;
    Ok(xen_mac(bytes))
}
