//! The configuration file: a TOML text of the same words as the command line, turned into a whole, checked model.
//!
//! ```toml
//! [network.xenbr0]
//! uplink = "eth0"
//!
//! [port."vif1.0"]
//! network = "xenbr0"
//! kind = "vhost-user:/run/weft/vif1.0.sock"
//! mac = "00:16:3e:01:02:03"
//!
//! [network.virbr0]
//! mode = "nat"
//! subnet = "192.168.122.0/24"
//! egress = "host"
//! forward = ["tcp 8080 192.168.122.10:80"]
//! lease = ["52:54:00:00:00:01 192.168.122.10 web"]
//! host = ["printer 192.168.122.5"]
//! ```
//!
//! A file is taken whole or not at all: nothing is returned when anything in it is wrong. Switches may be written as
//! `"on"`, `"off"` or TOML's booleans, numbers with or without quotes, a
//! list with commas as a string or an array of strings. `forward`, `lease` and `host` are always arrays.

mod diff;
mod taken;
#[cfg(test)]
mod tests;
mod told;

pub use diff::{Change, diff};
pub use told::Told;

use taken::Taken;

use crate::model::{ModelError, NetworkDraft, NetworkSpec, PortDraft, PortSpec, one_line, shown};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// All networks and ports of a host, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// The networks.
    pub networks: BTreeMap<String, NetworkSpec>,
    /// The ports; each one's network is among `networks`.
    pub ports: BTreeMap<String, PortSpec>,
    /// The lists of those networks that have any.
    pub told: BTreeMap<String, Told>,
}

/// A configuration file was refused: one line, `FILE:LINE: REASON`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    line: Option<usize>,
    reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.file.display().to_string()))?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for ConfigError {}

/// Reads and checks the file at `path`.
///
/// # Errors
/// The file cannot be read, is not TOML, or [`parse`] refuses what it says.
pub fn load(path: &Path) -> Result<Model, ConfigError> {
    let error = |reason: String| ConfigError { file: path.to_owned(), line: None, reason };
    let cannot = |e: std::io::Error| error(format!("cannot read the configuration: {e}"));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > FILE_MAX {
        return Err(error(format!("the configuration is larger than {} MiB", FILE_MAX >> 20)));
    }
    parse(path, &text)
}

/// Checks the text of a file; `path` is only for messages.
///
/// # Errors
/// The text is not TOML; a table, key or value is not possible; a port names a network that is not there, or does not
/// fit it; or two things take what only one can have.
pub fn parse(path: &Path, text: &str) -> Result<Model, ConfigError> {
    let reader = Reader { path, text };
    let root = DeTable::parse(text).map_err(|e| ConfigError {
        file: path.to_owned(),
        line: e.span().map(|span| reader.line(&span)),
        reason: one_line(e.message()),
    })?;

    let mut model = Model::default();
    let mut taken = Taken::default();
    let root = root.into_inner();
    if let Some((key, _)) = root.iter().find(|(key, _)| !matches!(&**key.get_ref(), "network" | "port")) {
        let why = format!("{} is neither [network.NAME] nor [port.\"NAME\"]", shown(key.get_ref()));
        return Err(reader.error(&key.span(), why));
    }
    for (name, table) in reader.tables(&root, "network")? {
        let at = |e: ModelError| reader.error(&name.span(), e.to_string());
        let spec = reader.network(name, table)?;
        taken.network(&spec, &model.networks).map_err(at)?;
        let told = reader.told(&spec, table, &mut taken)?;
        if !told.is_empty() {
            model.told.insert(spec.name.clone(), told);
        }
        model.networks.insert(spec.name.clone(), spec);
    }
    for (name, table) in reader.tables(&root, "port")? {
        let at = |e: ModelError| reader.error(&name.span(), e.to_string());
        let spec = reader.port(name, table, &model)?;
        if let Some(network) = model.networks.get(&spec.network) {
            spec.fits(network).map_err(at)?;
            taken.port(&spec, network, &model.ports).map_err(at)?;
        }
        model.ports.insert(spec.name.clone(), spec);
    }
    Ok(model)
}

type Name<'t, 'i> = &'t Spanned<std::borrow::Cow<'i, str>>;

/// A text being read, for the lines of its errors.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        1 + before.iter().filter(|b| **b == b'\n').count()
    }

    fn error(&self, span: &Range<usize>, reason: String) -> ConfigError {
        ConfigError { file: self.path.to_owned(), line: Some(self.line(span)), reason: one_line(&reason) }
    }

    /// The tables `[KIND.NAME]`, in the order of their names.
    fn tables<'t, 'i>(
        &self,
        root: &'t DeTable<'i>,
        kind: &str,
    ) -> Result<Vec<(Name<'t, 'i>, &'t DeTable<'i>)>, ConfigError> {
        let Some((key, all)) = root.iter().find(|(key, _)| key.get_ref() == kind) else {
            return Ok(Vec::new());
        };
        let wrong =
            |span: &Range<usize>| self.error(span, format!("write {kind}s as tables: [{kind}.\"NAME\"]"));
        let all = all.get_ref().as_table().ok_or_else(|| wrong(&key.span()))?;
        let tables = all.iter().map(|(name, table)| {
            let table = table.get_ref().as_table().ok_or_else(|| wrong(&name.span()))?;
            Ok((name, table))
        });
        tables.collect()
    }

    fn network(&self, name: Name<'_, '_>, table: &DeTable<'_>) -> Result<NetworkSpec, ConfigError> {
        let at = |span: Range<usize>| move |e: ModelError| self.error(&span, e.to_string());
        let mut draft = NetworkDraft::new(name.get_ref()).map_err(at(name.span()))?;
        let context = format!("network {}", name.get_ref());
        for (key, value) in table.iter().filter(|(key, _)| !told::is_list(key.get_ref())) {
            let word = self.word(&context, key, value)?;
            draft.set(key.get_ref(), &word).map_err(|e| e.of(&context)).map_err(at(key.span()))?;
        }
        draft.build().map_err(at(name.span()))
    }

    /// The lists of a network's table, checked with the network.
    fn told(
        &self,
        network: &NetworkSpec,
        table: &DeTable<'_>,
        taken: &mut Taken,
    ) -> Result<Told, ConfigError> {
        let mut told = Told::default();
        for (key, value) in table.iter().filter(|(key, _)| told::is_list(key.get_ref())) {
            let context = format!("network {}", network.name);
            let items = value.get_ref().as_array().ok_or_else(|| self.not_a_word(&context, key, value))?;
            for item in items.iter() {
                let at = |e: ModelError| self.error(&item.span(), e.of(&context).to_string());
                let text = item.get_ref().as_str().ok_or_else(|| self.not_a_word(&context, key, item))?;
                told.push(network, key.get_ref(), text).map_err(at)?;
                if let Some(forward) = told.forwards.last().filter(|_| key.get_ref() == "forward") {
                    taken.forward(forward, network).map_err(at)?;
                }
            }
        }
        Ok(told)
    }

    fn port(&self, name: Name<'_, '_>, table: &DeTable<'_>, model: &Model) -> Result<PortSpec, ConfigError> {
        let at = |span: Range<usize>| move |e: ModelError| self.error(&span, e.to_string());
        let context = format!("port {}", shown(name.get_ref()));
        let need = |wanted: &str| {
            let (key, value) = table.iter().find(|(key, _)| key.get_ref() == wanted).ok_or_else(|| {
                self.error(
                    &name.span(),
                    format!("{context}: {wanted} is missing: a port needs network and kind"),
                )
            })?;
            Ok((key.span(), self.word(&context, key, value)?))
        };
        let (network_span, network) = need("network")?;
        let (kind_span, kind) = need("kind")?;
        let mut draft = PortDraft::new(&network, name.get_ref(), &kind).map_err(at(kind_span))?;
        if !model.networks.contains_key(&network) {
            let why = format!("{context}: there is no network {} in this file", shown(&network));
            return Err(self.error(&network_span, why));
        }
        for (key, value) in table {
            if matches!(&**key.get_ref(), "network" | "kind") {
                continue;
            }
            let word = self.word(&context, key, value)?;
            draft.set(key.get_ref(), &word).map_err(|e| e.of(&context)).map_err(at(key.span()))?;
        }
        draft.build().map_err(at(name.span()))
    }

    /// A TOML value as the word that the command line would have.
    fn word(
        &self,
        context: &str,
        key: Name<'_, '_>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<String, ConfigError> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            DeValue::Boolean(on) => Ok(if *on { "on" } else { "off" }.to_owned()),
            DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
            DeValue::Array(items) => {
                let items = items.iter().map(|item| item.get_ref().as_str());
                let items = items.collect::<Option<Vec<_>>>().filter(|items| !items.is_empty());
                items.map(|items| items.join(","))
            }
            .ok_or_else(|| self.not_a_word(context, key, value)),
            _ => Err(self.not_a_word(context, key, value)),
        }
    }

    fn not_a_word(&self, context: &str, key: Name<'_, '_>, value: &Spanned<DeValue<'_>>) -> ConfigError {
        let why = format!(
            "{context}: {}: a value of type {} is not possible",
            key.get_ref(),
            value.get_ref().type_str()
        );
        self.error(&value.span(), why)
    }
}
