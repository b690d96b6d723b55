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
//! ```
//!
//! A file is taken whole or not at all: nothing is returned when anything in it is wrong. Switches may be written as
//! `"on"`, `"off"` or TOML's booleans, numbers with or without quotes, `ip` as a string or an array of strings.

mod diff;

pub use diff::{Change, diff};

use crate::model::{Claim, ModelError, NetworkDraft, NetworkSpec, PortDraft, PortSpec, one_line, shown};
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
/// The text is not TOML; a table, key or value is not possible; a port names a network that is not there; or two
/// things claim the same interface or socket.
pub fn parse(path: &Path, text: &str) -> Result<Model, ConfigError> {
    let reader = Reader { path, text };
    let root = DeTable::parse(text).map_err(|e| ConfigError {
        file: path.to_owned(),
        line: e.span().map(|span| reader.line(&span)),
        reason: one_line(e.message()),
    })?;

    let mut model = Model::default();
    let mut claims: BTreeMap<Claim, String> = BTreeMap::new();
    let mut claim = |owner: String, wanted: Vec<Claim>, span: &Range<usize>| {
        for claim in wanted {
            if let Some(other) = claims.get(&claim) {
                return Err(reader.error(span, format!("{owner}: {claim} is taken by {other} already")));
            }
            claims.insert(claim, owner.clone());
        }
        Ok(())
    };

    let root = root.into_inner();
    if let Some((key, _)) = root.iter().find(|(key, _)| !matches!(&**key.get_ref(), "network" | "port")) {
        let why = format!("{} is neither [network.NAME] nor [port.\"NAME\"]", shown(key.get_ref()));
        return Err(reader.error(&key.span(), why));
    }
    for (name, table) in reader.tables(&root, "network")? {
        let spec = reader.network(name, table)?;
        claim(format!("network {}", spec.name), spec.claims(), &name.span())?;
        model.networks.insert(spec.name.clone(), spec);
    }
    for (name, table) in reader.tables(&root, "port")? {
        let spec = reader.port(name, table, &model)?;
        claim(format!("port {}", spec.name), spec.claims(), &name.span())?;
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
        for (key, value) in table {
            let word = self.word(&context, key, value)?;
            draft.set(key.get_ref(), &word).map_err(|e| e.of(&context)).map_err(at(key.span()))?;
        }
        draft.build().map_err(at(name.span()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Model, String> {
        parse(Path::new("weft.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_manuals_example() {
        let text = r#"
[network.xenbr0]
mode = "bridge"
uplink = "eth0"
host-if = true
mtu = 9000

[port."vif1.0"]
network = "xenbr0"
kind = "vhost-user:/run/weft/vif1.0.sock"
mac = "00:16:3e:01:02:03"
ip = ["10.0.0.2", "fd00::2"]
isolated = "on"
queues = "4"

[port.tap0]
network = "xenbr0"
kind = "tap:tap0"
"#;
        let model = read(text).unwrap();
        let network = &model.networks["xenbr0"];
        assert_eq!(
            (network.uplink.as_deref(), network.host_if, network.mtu),
            (Some("eth0"), true, Some(9000))
        );
        let port = &model.ports["vif1.0"];
        assert_eq!(
            (port.network.as_str(), port.queues, port.ip.len(), port.isolated),
            ("xenbr0", 4, 2, true)
        );
        assert_eq!(model.ports.len(), 2);
        assert_eq!(read("").unwrap(), Model::default());
    }

    #[test]
    fn what_is_refused_and_on_which_line() {
        let net = "[network.lan]\n";
        for (text, line, why) in [
            ("x = 1", 1, "neither [network.NAME]"),
            ("\n[networks.lan]", 2, "'networks' is neither"),
            ("\n\n[network\n", 3, ""),
            ("network = 1", 1, "as tables"),
            ("[network]\nlan = 1", 2, "as tables"),
            ("[[network]]\n", 1, "as tables"),
            ("[network.\"a b\"]", 1, "only letters"),
            ("[network.lan]\nmtu = 1500\ncolour = \"red\"", 3, "no such key"),
            ("[network.lan]\nmtu = 1500\nmtu = 1500", 3, "duplicate key"),
            ("[network.lan]\nmtu = 9", 2, "from 68 to 65535"),
            ("[network.lan]\nmtu = 0x5dc", 2, "type integer is not possible"),
            ("[network.lan]\nmtu = 1500.0", 2, "type float is not possible"),
            ("[network.lan]\nmtu = []", 2, "type array is not possible"),
            ("[network.lan]\nmtu = [1]", 2, "type array is not possible"),
            ("[network.lan]\n[network.lan.x]\na=1", 2, "type table is not possible"),
            ("[network.lan]\nmode = \"nat\"", 2, "mode nat is not in this version"),
            ("[network.lan]\nsubnet = \"10.0.0.0/8\"", 2, "subnet= is not in this version"),
            ("[network.sixteen-bytes-ab]\nhost-if = true", 1, "16 bytes"),
            (&*format!("{net}[port.p]\nkind = \"tap\""), 2, "network is missing"),
            (&*format!("{net}[port.p]\nnetwork = \"lan\""), 2, "kind is missing"),
            (&*format!("{net}[port.p]\nkind = \"tap\"\nnetwork = \"wan\""), 4, "there is no network 'wan'"),
            (&*format!("{net}[port.p]\nnetwork = \"lan\"\nkind = \"vhost-user:a\""), 4, "not absolute"),
            (
                &*format!("{net}[port.p]\nnetwork = \"lan\"\nkind = \"tap\"\nrole = \"server\""),
                2,
                "does not go with",
            ),
            (&*format!("{net}[port.p]\nnetwork = \"lan\"\nkind = \"tap\"\nvlan = 0"), 5, "from 1 to 4094"),
            (&*format!("{net}[port.p]\nnetwork = \"lan\"\nkind = \"tap\"\nuplink = \"x\""), 5, "no such key"),
        ] {
            let message = read(text).unwrap_err();
            assert!(message.starts_with(&format!("weft.toml:{line}: ")), "{text:?}: {message}");
            assert!(message.contains(why) && !message.contains('\n'), "{text:?}: {message}");
        }
    }

    #[test]
    fn nothing_is_claimed_twice() {
        let port = |name: &str, kind: &str| format!("[port.{name}]\nnetwork = \"lan\"\nkind = \"{kind}\"\n");
        for (text, why) in [
            (
                port("a", "tap:t") + &port("b", "netdev:t"),
                "weft.toml:4: port b: interface t is taken by port a",
            ),
            (port("a", "vhost-user:/s") + &port("b", "vhost-user:/s"), "socket /s is taken by port a"),
            (port("a", "tap:lan"), "interface lan is taken by network lan"),
            (port("a", "netdev:eth0"), "interface eth0 is taken by network lan"),
            ("[network.wan]\nuplink = \"eth0\"".to_owned(), "interface eth0 is taken by network lan"),
        ] {
            let text = text + "\n[network.lan]\nhost-if = \"on\"\nuplink = \"eth0\"\n";
            let message = read(&text).unwrap_err();
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn files_that_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let message = load(&dir.path().join("none.toml")).unwrap_err().to_string();
        assert!(message.contains("none.toml: cannot read the configuration"), "{message}");
        let binary = dir.path().join("binary.toml");
        std::fs::write(&binary, [0xff, 0xfe]).unwrap();
        assert!(load(&binary).unwrap_err().to_string().contains("cannot read"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(\\[(network|port)\\.[a-z\"]{1,3}\\]\n([a-z]{1,7} = [\\PC\n]{0,8}\n){0,3}){0,4}") {
            let _ = read(&text);
        }
    }
}
