//! The configuration file: applied whole at the start, and by its differences afterwards.

use std::path::Path;

use ctl::config::{Change, Model, diff};
use ctl::model::LeaseKey;
use ctl::protocol::Refusal;
use tracing::{error, info};

use super::gateways;
use super::switch::Host;

/// Does everything that a model says, on a switch without networks. Stops at the first refusal.
pub(super) fn apply_all(host: &Host, model: &Model) -> Result<(), Refusal> {
    diff(&Model::default(), model).into_iter().try_for_each(|change| apply(host, change))
}

/// Reads the file again and does what changed in it; `model` is what it said last. A file that is not right
/// changes nothing. What networks and ports were told by ctl is left alone, unless the file now says it.
pub(super) fn reload(host: &Host, file: &Path, model: &mut Model) {
    let new = match ctl::config::load(file) {
        Ok(new) => new,
        Err(error) => {
            error!(%error, "the configuration was not read again: nothing has changed");
            return;
        }
    };
    let changes = diff(model, &new);
    let total = changes.len();
    let mut failed = 0;
    for change in changes {
        let what = describe(&change);
        if let Err(refusal) = apply(host, change) {
            failed += 1;
            error!(change = %what, error = %refusal, "a change in the configuration was refused");
        }
    }
    info!(file = %file.display(), changes = total, refused = failed, "configuration read again");
    *model = new;
}

fn describe(change: &Change) -> String {
    match change {
        Change::PortDel(name) => format!("delete port {name}"),
        Change::NetDel(name) => format!("delete network {name}"),
        Change::NetSet(name, _) => format!("set network {name}"),
        Change::PortSet(name, _) => format!("set port {name}"),
        Change::NetAdd(spec) => format!("add network {}", spec.name),
        Change::PortAdd(spec) => format!("add port {}", spec.name),
        Change::ForwardDel(spec) => format!("delete forward {spec}"),
        Change::ForwardAdd(spec) => format!("add forward {spec}"),
        Change::LeaseDel(spec) => format!("delete lease {spec} on {}", spec.network),
        Change::LeaseAdd(spec) => format!("add lease {spec} on {}", spec.network),
        Change::HostDel(record) => format!("delete host {record} on {}", record.network),
        Change::HostAdd(record) => format!("add host {record} on {}", record.network),
    }
}

fn apply(host: &Host, change: Change) -> Result<(), Refusal> {
    match change {
        Change::PortDel(name) => host.delete_port(&name, true),
        Change::NetDel(name) => host.delete_network(&name, true),
        Change::NetSet(name, changes) => host.change_network(&name, |old| Ok(changes.apply(old)?)),
        Change::PortSet(name, changes) => host.change_port(&name, |old| Ok(changes.apply(old)?)),
        Change::NetAdd(spec) => host.add_network(spec, true),
        Change::PortAdd(spec) => host.add_port(spec, true),
        // What ctl has taken away already needs no taking away.
        Change::ForwardDel(spec) => gateways::forward_del(host, &spec).map(drop),
        Change::ForwardAdd(spec) => gateways::forward_add(host, &spec, true),
        Change::LeaseDel(spec) => gateways::lease_del(host, &spec.network, LeaseKey::Mac(spec.mac)).map(drop),
        Change::LeaseAdd(spec) => gateways::lease_add(host, &spec, true),
        Change::HostDel(record) => gateways::record_del(host, &record).map(drop),
        Change::HostAdd(record) => gateways::record_add(host, &record),
    }
}
