//! Policy routing rules: read only.

use std::io;

use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Netlink;

impl Netlink {
    /// The priorities of rules that name the interface.
    pub(in crate::host) async fn rules_naming(&self, interface: &str) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RuleMessage::default();
            request.header.family = family;
            for message in self.dump(RouteNetlinkMessage::GetRule(request)).await? {
                let RouteNetlinkMessage::NewRule(rule) = message else { continue };
                let names = rule.attributes.iter().any(|attribute| match attribute {
                    RuleAttribute::Iifname(name) | RuleAttribute::Oifname(name) => {
                        name.trim_end_matches('\0') == interface
                    }
                    _ => false,
                });
                if names {
                    let priority = rule.attributes.iter().find_map(|attribute| match attribute {
                        RuleAttribute::Priority(priority) => Some(*priority),
                        _ => None,
                    });
                    found.push(priority.unwrap_or(0));
                }
            }
        }
        Ok(found)
    }
}
