//! The keys and values that describe a network: what [`NetworkSpec::from_words`] reads as the same network.

use super::{
    AGEING_S_DEFAULT, Egress, FDB_MAX_DEFAULT, Filtering, HostAddress, LEASE_TIME_S_DEFAULT, NetworkSpec,
    QUOTA_DEFAULT,
};
use crate::model::value::switch_word;
use std::fmt::Display;

impl NetworkSpec {
    /// The keys and values that describe this network, in the order of the manual, defaults left out except `mode`.
    pub fn words(&self) -> Vec<(&'static str, String)> {
        let mut words = vec![("mode", self.mode.as_str().to_owned())];
        let mut push = |key, value: Option<String>| words.extend(value.map(|v| (key, v)));
        push("uplink", self.uplink.clone());
        push("host-address", (self.host_address == HostAddress::Move).then(|| "move".to_owned()));
        push(
            "host-if",
            (self.host_if != self.host_if_default()).then(|| switch_word(self.host_if).to_owned()),
        );
        push("subnet", text(self.subnet));
        push("subnet6", text(self.subnet6));
        push("gateway", text(self.gateway));
        push("dhcp", text(self.dhcp));
        push("dns", self.dns.map(|v| switch_word(v).to_owned()));
        push("domain", self.domain.clone());
        push("egress", text(self.egress.as_ref().filter(|egress| **egress != Egress::User)));
        push("address", text(self.address));
        push("next-hop", text(self.next_hop));
        push("address6", text(self.address6));
        push("next-hop6", text(self.next_hop6));
        push("ip-forward", self.ip_forward.map(|v| switch_word(v).to_owned()));
        push("lease-time", unless(self.lease_time_s, LEASE_TIME_S_DEFAULT));
        push("dns-servers", list(&self.dns_servers));
        push("static-routes", list(&self.static_routes));
        push("boot-file", self.boot_file.clone());
        push("boot-server", text(self.boot_server));
        push("outbound", list(&self.outbound));
        push("host-loopback", self.host_loopback.then(|| switch_word(true).to_owned()));
        push(
            "filtering",
            (self.filtering != Filtering::default()).then(|| self.filtering.as_str().to_owned()),
        );
        push("quota", unless(self.quota, QUOTA_DEFAULT));
        push("mtu", text(self.mtu));
        push("ageing", unless(self.ageing_s, AGEING_S_DEFAULT));
        push("fdb-max", unless(self.fdb_max, FDB_MAX_DEFAULT));
        words
    }
}

fn text(value: Option<impl Display>) -> Option<String> {
    value.map(|v| v.to_string())
}

fn unless(value: u32, default: u32) -> Option<String> {
    (value != default).then(|| value.to_string())
}

fn list(values: &[impl Display]) -> Option<String> {
    let values: Vec<_> = values.iter().map(ToString::to_string).collect();
    (!values.is_empty()).then(|| values.join(","))
}
