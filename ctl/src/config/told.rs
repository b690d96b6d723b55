//! What a file tells a network's gateway beside its keys: the lists `forward`, `lease` and `host` of its table.

use crate::model::{ForwardSpec, HostRecord, LeaseSpec, ModelError, NetworkSpec};

/// The most entries of one list.
const ENTRIES_MAX: usize = 4096;

/// The lists of one network, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// `forward = ["PROTO LISTEN TARGET", …]`.
    pub forwards: Vec<ForwardSpec>,
    /// `lease = ["MAC IP [HOSTNAME]", …]`: addresses kept for guests.
    pub leases: Vec<LeaseSpec>,
    /// `host = ["NAME ADDR", …]`: names that the network's DNS answers for.
    pub hosts: Vec<HostRecord>,
}

/// Whether a key of a network's table is a list.
pub(super) fn is_list(key: &str) -> bool {
    matches!(key, "forward" | "lease" | "host")
}

impl Told {
    pub(super) fn is_empty(&self) -> bool {
        self.forwards.is_empty() && self.leases.is_empty() && self.hosts.is_empty()
    }

    /// Adds one entry of the list `key`, checked with its network and with those before it.
    pub(super) fn push(&mut self, network: &NetworkSpec, key: &str, text: &str) -> Result<(), ModelError> {
        match key {
            "forward" => {
                let spec = ForwardSpec::from_text(&network.name, text)?;
                spec.fits(network)?;
                let taken = self.forwards.iter().find_map(|other| {
                    let port = spec.conflicts(other)?;
                    Some(format!("forward {spec}: port {port} is listened on for {other} already"))
                });
                push(&mut self.forwards, spec, taken)
            }
            "lease" => {
                let spec = LeaseSpec::from_text(&network.name, text)?;
                spec.fits(network)?;
                let taken = self.leases.iter().find_map(|other| spec.conflicts(other));
                let taken = taken.map(|why| format!("lease of {}: {why}", spec.mac));
                push(&mut self.leases, spec, taken)
            }
            _ => {
                let record = HostRecord::from_text(&network.name, text)?;
                record.fits(network)?;
                let twice = self.hosts.contains(&record).then(|| format!("host {record} is given twice"));
                push(&mut self.hosts, record, twice)
            }
        }
    }
}

fn push<T>(list: &mut Vec<T>, entry: T, taken: Option<String>) -> Result<(), ModelError> {
    if let Some(why) = taken {
        return Err(ModelError::new(why));
    }
    if list.len() == ENTRIES_MAX {
        return Err(ModelError::new(format!("a list has at most {ENTRIES_MAX} entries")));
    }
    list.push(entry);
    Ok(())
}
