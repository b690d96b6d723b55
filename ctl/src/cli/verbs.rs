//! Verbs that talk to the daemon: words checked, a call, its reply printed.

use super::args::{FdbVerb, ForwardArgs, ForwardVerb, LeaseVerb, NatVerb, NetVerb, PortVerb, Verb};
use super::render::Render;
use super::{Environment, Failure, Output};
use crate::client::Client;
use crate::model::{
    ForwardSpec, LeaseKey, LeaseSpec, NetworkChanges, NetworkSpec, PortChanges, PortSpec, parse_mac,
    parse_number, parse_vlan, shown, split_words,
};
use crate::protocol::{
    Counters, FdbEntries, Forwards, Leases, NatSessionList, Networks, OneNetwork, OnePort, Ports,
    SESSIONS_DEFAULT, SESSIONS_MAX, Status,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;

/// One command on its way to the daemon.
pub(super) struct Caller<'a> {
    pub(super) environment: &'a Environment,
    pub(super) socket: Option<&'a Path>,
    pub(super) timeout: Duration,
    pub(super) json: bool,
}

impl Caller<'_> {
    /// Checks the words, calls, and returns what to print. Words that can be seen to be wrong fail before there is a
    /// daemon to ask.
    pub(super) fn call(&self, verb: Verb) -> Result<Output, Failure> {
        Ok(match verb {
            Verb::Status => self.show("Status", json!({}), |reply: Status| reply)?.into(),
            Verb::Net(verb) => self.net(verb)?.into(),
            Verb::Port(verb) => self.port(verb)?.into(),
            Verb::Fdb(verb) => self.fdb(verb)?.into(),
            Verb::Lease(verb) => self.lease(verb)?.into(),
            Verb::Nat(NatVerb::Sessions { network, words }) => self.sessions(&network, &words)?,
            Verb::Forward(verb) => self.forward(verb)?.into(),
            Verb::Vif(verb) => self.vif(verb)?,
            Verb::Daemon(_) | Verb::Demo(_) | Verb::Completions { .. } => Output::default(),
        })
    }

    fn net(&self, verb: NetVerb) -> Result<String, Failure> {
        match verb {
            NetVerb::Add { may_exist, name, words } => {
                let words = split(&words)?;
                NetworkSpec::from_words(&name, words.iter().copied())?;
                self.change("NetAdd", json!({ "name": name, "keys": keys(&words), "may_exist": may_exist }))
            }
            NetVerb::Set { name, words } => {
                let words = split(&words)?;
                NetworkChanges::from_words(&name, &words)?;
                self.change("NetSet", json!({ "name": name, "keys": keys(&words) }))
            }
            NetVerb::Del { if_exists, name } => {
                self.change("NetDel", json!({ "name": name, "if_exists": if_exists }))
            }
            NetVerb::List => self.show("NetList", json!({}), |reply: Networks| reply.networks),
            NetVerb::Show { name } => {
                self.show("NetShow", json!({ "name": name }), |reply: OneNetwork| reply.network)
            }
        }
    }

    fn port(&self, verb: PortVerb) -> Result<String, Failure> {
        match verb {
            PortVerb::Add { may_exist, network, port, kind, words } => {
                let remote = self.absolute_remote(&words);
                let mut words = split(&words)?;
                if let Some((_, value)) = words.iter_mut().find(|(key, _)| *key == "remote") {
                    *value = remote.as_deref().unwrap_or(value);
                }
                let kind = self.absolute_kind(&kind);
                PortSpec::from_words(&network, &port, &kind, words.iter().copied())?;
                let parameters = json!({
                    "network": network, "name": port, "kind": kind, "keys": keys(&words), "may_exist": may_exist,
                });
                self.change("PortAdd", parameters)
            }
            PortVerb::Set { port, words } => {
                let words = split(&words)?;
                PortChanges::from_words(&port, &words)?;
                self.change("PortSet", json!({ "name": port, "keys": keys(&words) }))
            }
            PortVerb::Del { if_exists, port } => {
                self.change("PortDel", json!({ "name": port, "if_exists": if_exists }))
            }
            PortVerb::List { network } => {
                self.show("PortList", json!({ "network": network }), |reply: Ports| reply.ports)
            }
            PortVerb::Show { port } => {
                self.show("PortShow", json!({ "name": port }), |reply: OnePort| reply.port)
            }
            PortVerb::Stats { port: None } => {
                self.show("PortStats", json!({}), |reply: Counters| reply.counters)
            }
            PortVerb::Stats { port: Some(port) } => {
                let reply: Counters = self.ask("PortStats", json!({ "name": port }))?;
                let counters = reply.counters.into_iter().find(|counters| counters.name == port);
                let counters = counters.ok_or_else(|| {
                    Failure::Refused(format!("the daemon gave no counters of port {}", shown(&port)))
                })?;
                Ok(self.print(&counters))
            }
        }
    }

    fn fdb(&self, verb: FdbVerb) -> Result<String, Failure> {
        match verb {
            FdbVerb::Show { network } => {
                self.show("FdbShow", json!({ "network": network }), |reply: FdbEntries| reply.entries)
            }
            FdbVerb::Add { may_exist, network, port, mac, words } => {
                parse_mac(&mac)?;
                let vlan = vlan(&words)?;
                let parameters = json!({ "network": network, "port": port, "mac": mac, "vlan": vlan, "may_exist": may_exist });
                self.change("FdbAdd", parameters)
            }
            FdbVerb::Del { if_exists, network, mac, words } => {
                parse_mac(&mac)?;
                let vlan = vlan(&words)?;
                self.change(
                    "FdbDel",
                    json!({ "network": network, "mac": mac, "vlan": vlan, "if_exists": if_exists }),
                )
            }
            FdbVerb::Flush { network } => self.change("FdbFlush", json!({ "network": network })),
        }
    }

    fn lease(&self, verb: LeaseVerb) -> Result<String, Failure> {
        match verb {
            LeaseVerb::List { network } => {
                self.show("LeaseList", json!({ "network": network }), |reply: Leases| reply.leases)
            }
            LeaseVerb::Add { may_exist, network, mac, ip, hostname } => {
                LeaseSpec::from_words(&network, &mac, &ip, hostname.as_deref())?;
                let parameters = json!({
                    "network": network, "mac": mac, "ip": ip, "hostname": hostname, "may_exist": may_exist,
                });
                self.change("LeaseAdd", parameters)
            }
            LeaseVerb::Del { if_exists, network, which } => {
                LeaseKey::parse(&which)?;
                self.change("LeaseDel", json!({ "network": network, "which": which, "if_exists": if_exists }))
            }
        }
    }

    fn sessions(&self, network: &str, words: &[String]) -> Result<Output, Failure> {
        let mut limit = SESSIONS_DEFAULT;
        for (key, value) in split(words)? {
            if key != "limit" {
                return Err(Failure::Refused(format!(
                    "{}= is no key of sessions, only limit= is",
                    shown(key)
                )));
            }
            limit = parse_number(value, 1..=SESSIONS_MAX).map_err(|e| e.of("limit="))?;
        }
        let reply: NatSessionList = self.ask("NatSessions", json!({ "network": network, "limit": limit }))?;
        let told = reply.sessions.len() as u64;
        let notes = (told < reply.total && told >= limit).then(|| {
            format!(
                "{told} of {} sessions of network {network} are shown: ask for more with limit=N",
                reply.total
            )
        });
        Ok(Output { text: self.print(&reply.sessions), notes: notes.into_iter().collect() })
    }

    fn forward(&self, verb: ForwardVerb) -> Result<String, Failure> {
        let parameters = |forward: &ForwardArgs, source: Option<&str>, flag: &str, on: bool| {
            let ForwardArgs { network, proto, listen, target } = forward;
            ForwardSpec::from_words(network, proto, listen, target)?.with_source(source)?;
            Ok::<_, Failure>(json!({
                "network": network, "proto": proto, "listen": listen, "target": target, "source": source, flag: on,
            }))
        };
        match verb {
            ForwardVerb::Add { may_exist, forward, keys } => {
                let mut source = None;
                for (key, value) in split(&keys)? {
                    if key != "source" {
                        let why = format!("{}= is no key of forwards, only source= is", shown(key));
                        return Err(Failure::Refused(why));
                    }
                    source = Some(value);
                }
                self.change("ForwardAdd", parameters(&forward, source, "may_exist", may_exist)?)
            }
            ForwardVerb::Del { if_exists, forward } => {
                self.change("ForwardDel", parameters(&forward, None, "if_exists", if_exists)?)
            }
            ForwardVerb::List { network } => {
                self.show("ForwardList", json!({ "network": network }), |reply: Forwards| reply.forwards)
            }
        }
    }

    pub(super) fn ask<R: DeserializeOwned>(&self, method: &str, mut parameters: Value) -> Result<R, Failure> {
        // What was not said is left out, not sent as null.
        if let Some(parameters) = parameters.as_object_mut() {
            parameters.retain(|_, value| !value.is_null());
        }
        let sockets = self.environment.sockets(self.socket);
        Ok(Client::connect(&sockets, self.timeout)?.call(method, &parameters)?)
    }

    pub(super) fn change(&self, method: &str, parameters: Value) -> Result<String, Failure> {
        let _: Map<String, Value> = self.ask(method, parameters)?;
        Ok(if self.json { "{}\n".to_owned() } else { String::new() })
    }

    fn show<R: DeserializeOwned, T: Render + Serialize>(
        &self,
        method: &str,
        parameters: Value,
        what: impl FnOnce(R) -> T,
    ) -> Result<String, Failure> {
        self.ask(method, parameters).map(|reply| self.print(&what(reply)))
    }

    pub(super) fn print<T: Render + Serialize>(&self, what: &T) -> String {
        match self.json {
            // Our replies are structs with string keys, which always serialize.
            true => serde_json::to_string(what).unwrap_or_else(|_| "null".to_owned()) + "\n",
            false => what.render(),
        }
    }

    /// A kind whose socket path is absolute: the daemon has another working directory.
    pub(super) fn absolute_kind(&self, kind: &str) -> String {
        match kind.split_once(':') {
            Some((word @ ("vhost-user" | "stream" | "dgram"), path)) if !path.is_empty() => {
                match self.environment.absolute(Path::new(path)).to_str() {
                    Some(path) => format!("{word}:{path}"),
                    // The daemon will say what is wrong with it.
                    None => kind.to_owned(),
                }
            }
            _ => kind.to_owned(),
        }
    }

    /// The value of the word `remote=`, absolute, if there is one that can be.
    fn absolute_remote(&self, words: &[String]) -> Option<String> {
        let path =
            words.iter().find_map(|word| word.strip_prefix("remote=")).filter(|path| !path.is_empty())?;
        self.environment.absolute(Path::new(path)).to_str().map(str::to_owned)
    }
}

/// `key=value` words; what is not of that form is a mistake in usage.
fn split(words: &[String]) -> Result<Vec<(&str, &str)>, Failure> {
    split_words(words).map_err(|e| Failure::Usage(e.to_string()))
}

pub(super) fn keys(words: &[(&str, &str)]) -> Map<String, Value> {
    words.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect()
}

/// The one key that FDB verbs take.
fn vlan(words: &[String]) -> Result<Option<u16>, Failure> {
    let mut vlan = None;
    for (key, value) in split(words)? {
        if key != "vlan" {
            return Err(Failure::Refused(format!("{}= is no key of an address, only vlan= is", shown(key))));
        }
        vlan = Some(parse_vlan(value).map_err(|e| e.of("vlan="))?.get());
    }
    Ok(vlan)
}
