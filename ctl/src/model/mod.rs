//! What an operator may say of networks and ports, typed and checked.
//!
//! The command line, the configuration file and the ctl protocol use the same words (`key=value`), and all of them
//! come through [`NetworkDraft`] and [`PortDraft`]: what they build has been checked for everything that can be
//! checked without looking at the host. Nothing here does I/O or knows the state of a switch.

mod error;
mod forward;
mod lease;
mod names;
mod network;
mod port;
mod value;
mod vif;
mod words;

pub use error::ModelError;
pub use forward::{ForwardSpec, PortRun, Protocol};
pub use lease::{HostRecord, LeaseKey, LeaseSpec};
pub use names::{check_interface, check_name, check_socket_path};
pub use network::{
    DHCP_MAX, Dhcp, Egress, FDB_MAX_DEFAULT, Filtering, HostAddress, LEASE_TIME_S_DEFAULT, Mode,
    NetworkDraft, NetworkSpec, OutboundRule, OutboundTarget, QUOTA_DEFAULT, StaticRoute,
};
pub use port::{Kind, PortDraft, PortSpec, Role};
pub use value::{MTU_DEFAULT, MTU_MAX, MTU_MIN, Rate, parse_mac, parse_vlan};
pub use vif::VifSpec;
pub use words::{Claim, NetworkChanges, PortChanges, split_words};

pub(crate) use error::{one_line, shown};
pub(crate) use value::parse_number;
pub(crate) use vif::{DOMID_MAX, xen_mac};
