//! The configuration file: applied whole at the start, and by its differences afterwards.

use std::path::Path;

use ctl::config::{Change, Model, diff};
use ctl::protocol::Refusal;
use tracing::{error, info};

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
    }
}
