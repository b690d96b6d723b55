//! Networks that translate addresses, with the traffic that guests have.

mod dhcp;
mod forwards;
mod host;
mod rig;
mod scale;
mod talk;
mod twins;
mod uplink;

use harness::Suite;

pub(crate) fn register(suite: &mut Suite) {
    uplink::register(suite);
    forwards::register(suite);
    dhcp::register(suite);
    host::register(suite);
    twins::register(suite);
    scale::register(suite);
}
