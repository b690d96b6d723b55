//! End-to-end tests: the real daemon between real namespaces, guests and front-ends.

mod bridge;
mod cli;
mod conformance;
mod dhcp;
mod dhcp_guests;
mod dhcp_kept;
mod dhcp_many;
mod dns;
mod dns_outside;
mod guests;
mod internal;
mod ipv6;
mod kernel;
mod killed;
mod lan;
mod lifecycle;
mod machine;
mod nat;
mod outside;
mod refusals;
mod relocate;
mod restart;
mod routed;
mod stream;
mod testpmd;
mod user;
mod user_families;
mod user_forwards;
mod user_guests;
mod user_limits;
mod xen;

use std::process::ExitCode;

use harness::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    cli::register(&mut suite);
    lifecycle::register(&mut suite);
    bridge::register(&mut suite);
    kernel::register(&mut suite);
    guests::register(&mut suite);
    stream::register(&mut suite);
    testpmd::register(&mut suite);
    restart::register(&mut suite);
    xen::register(&mut suite);
    conformance::register(&mut suite);
    dhcp::register(&mut suite);
    dhcp_guests::register(&mut suite);
    dhcp_kept::register(&mut suite);
    dhcp_many::register(&mut suite);
    dns::register(&mut suite);
    dns_outside::register(&mut suite);
    ipv6::register(&mut suite);
    nat::register(&mut suite);
    routed::register(&mut suite);
    refusals::register(&mut suite);
    internal::register(&mut suite);
    relocate::register(&mut suite);
    user::register(&mut suite);
    user_families::register(&mut suite);
    user_limits::register(&mut suite);
    user_forwards::register(&mut suite);
    user_guests::register(&mut suite);
    killed::register(&mut suite);
    suite.run()
}
