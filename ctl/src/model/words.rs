//! `key=value` words: split, and as changes of what exists.

use super::network::{FIXED, is_live, live_keys, takes};
use super::{ModelError, NetworkDraft, NetworkSpec, PortDraft, PortSpec, shown};
use std::fmt;
use std::path::PathBuf;

/// The most words that one network or port takes.
const WORDS_MAX: usize = 64;

/// Keys that change while the port forwards.
const PORT_LIVE: &[&str] = &["mac", "ip", "routes", "mtu", "vlan", "isolated", "antispoof", "rate"];
/// Keys, and what is not a key but may be taken for one, that are fixed when a port is added.
const PORT_FIXED: &[&str] = &["role", "remote", "queues", "kind", "network", "name"];

/// Something of the host that only one network or port may have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// A kernel interface, by name.
    Interface(String),
    /// A socket, by path.
    Socket(PathBuf),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "interface {name}"),
            Self::Socket(path) => write!(f, "socket {}", path.display()),
        }
    }
}

/// Splits `key=value` words at their first `=`.
///
/// # Errors
/// A word has no `=` or no key before it, or a key comes twice.
pub fn split_words(words: &[String]) -> Result<Vec<(&str, &str)>, ModelError> {
    let mut out: Vec<(&str, &str)> = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                if out.iter().any(|(k, _)| *k == key) {
                    return Err(ModelError::new(format!("the key {}= is given twice", shown(key))));
                }
                out.push((key, value));
            }
            _ => return Err(ModelError::new(format!("{} is not of the form key=value", shown(word)))),
        }
    }
    Ok(out)
}

type Word = (String, String);

fn check_changes(
    words: &[(&str, &str)],
    live: &[&str],
    fixed: &[&str],
    what: &str,
    name: &str,
) -> Result<Vec<Word>, ModelError> {
    let error = |why: String| Err(ModelError::new(format!("{what} {}: {why}", shown(name))));
    if words.is_empty() {
        return error("nothing to set: give key=value".to_owned());
    }
    if words.len() > WORDS_MAX {
        return error(format!("more than {WORDS_MAX} keys"));
    }
    for (key, _) in words {
        if fixed.contains(key) {
            return error(format!("{key}= cannot change while the {what} exists: {}", again(what)));
        }
        if !live.contains(key) {
            return error(format!("{}= cannot be set; keys that can: {}", shown(key), live.join(", ")));
        }
    }
    Ok(words.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

fn again(what: &str) -> String {
    format!("delete the {what} and add it again")
}

/// Changes of keys of a network that exists; an empty value sets a key back to its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkChanges {
    words: Vec<Word>,
}

impl NetworkChanges {
    /// Changes of the network `name`, each value checked by itself.
    ///
    /// # Errors
    /// There is nothing to change, a key cannot change while the network exists, or a value is not possible.
    pub fn from_words(name: &str, words: &[(&str, &str)]) -> Result<Self, ModelError> {
        let live: Vec<_> = live_keys().collect();
        let words = check_changes(words, &live, FIXED, "network", name)?;
        let changes = Self { words };
        changes.edit(&mut NetworkDraft::new(name)?).map_err(|e| e.of(format_args!("network {name}")))?;
        Ok(changes)
    }

    /// The network with these changes made, checked whole.
    ///
    /// # Errors
    /// A key does not change while a network of this mode exists, or the keys do not agree with each other any more.
    pub fn apply(&self, spec: &NetworkSpec) -> Result<NetworkSpec, ModelError> {
        // A key that the mode does not take is refused as that, when the network is built.
        let fixed = |key: &str| !is_live(key, spec.mode) && takes(key).contains(&spec.mode);
        if let Some(key) = self.keys().find(|key| fixed(key)) {
            return Err(ModelError::new(format!(
                "{}: {key}= of a {} network cannot change while it exists: {}",
                spec.what(),
                spec.mode.as_str(),
                again("network")
            )));
        }
        let mut draft = NetworkDraft::from(spec.clone());
        self.edit(&mut draft)?;
        draft.build()
    }

    /// The keys that these changes name.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.words.iter().map(|(key, _)| &**key)
    }

    fn edit(&self, draft: &mut NetworkDraft) -> Result<(), ModelError> {
        for (key, value) in &self.words {
            if value.is_empty() { draft.clear(key) } else { draft.set(key, value) }?;
        }
        Ok(())
    }

    /// What turns `old` into `new`, or `None` when a fixed key differs (or nothing does: then it is empty).
    pub(crate) fn between(old: &NetworkSpec, new: &NetworkSpec) -> Option<Self> {
        let live = |key: &str| old.mode == new.mode && is_live(key, old.mode);
        changed_words(&old.words(), &new.words(), live).map(|words| Self { words })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

/// Changes of keys of a port that exists; an empty value sets a key back to its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortChanges {
    words: Vec<Word>,
}

impl PortChanges {
    /// Changes of the port `name`, each value checked by itself.
    ///
    /// # Errors
    /// There is nothing to change, a key cannot change while the port exists, or a value is not possible.
    pub fn from_words(name: &str, words: &[(&str, &str)]) -> Result<Self, ModelError> {
        super::check_name("port", name)?;
        let words = check_changes(words, PORT_LIVE, PORT_FIXED, "port", name)?;
        let changes = Self { words };
        // Any port will do to check the values by themselves.
        changes
            .edit(&mut PortDraft::new("any", name, "tap:any")?)
            .map_err(|e| e.of(format_args!("port {name}")))?;
        Ok(changes)
    }

    /// The port with these changes made, checked whole.
    ///
    /// # Errors
    /// The keys do not agree with each other any more.
    pub fn apply(&self, spec: &PortSpec) -> Result<PortSpec, ModelError> {
        let mut draft = PortDraft::from(spec.clone());
        self.edit(&mut draft)?;
        draft.build()
    }

    /// The keys that these changes name.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.words.iter().map(|(key, _)| &**key)
    }

    fn edit(&self, draft: &mut PortDraft) -> Result<(), ModelError> {
        for (key, value) in &self.words {
            if value.is_empty() { draft.clear(key) } else { draft.set(key, value) }?;
        }
        Ok(())
    }

    /// What turns `old` into `new`, or `None` when something fixed differs (when nothing does, it is empty).
    pub(crate) fn between(old: &PortSpec, new: &PortSpec) -> Option<Self> {
        if old.network != new.network || old.kind != new.kind {
            return None;
        }
        changed_words(&old.words(), &new.words(), |key| PORT_LIVE.contains(&key)).map(|words| Self { words })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

/// The words that differ, with an empty value for those that are gone; `None` if one of them is not `live`.
fn changed_words(
    old: &[(&str, String)],
    new: &[(&str, String)],
    live: impl Fn(&str) -> bool,
) -> Option<Vec<Word>> {
    let gone = old.iter().filter(|(key, _)| !new.iter().any(|(k, _)| k == key)).map(|(key, _)| (*key, ""));
    let set = new.iter().filter(|word| !old.contains(word)).map(|(key, value)| (*key, &**value));
    let words: Vec<_> = gone.chain(set).collect();
    let all_live = words.iter().all(|(key, _)| live(key));
    all_live.then(|| words.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_split_at_the_first_equals_sign() {
        let words = ["a=b=c".to_owned(), "d=".to_owned()];
        assert_eq!(split_words(&words).unwrap(), [("a", "b=c"), ("d", "")]);
        for (bad, why) in [("plain", "form key=value"), ("=x", "form key=value"), ("", "form key=value")] {
            assert!(split_words(&[bad.to_owned()]).unwrap_err().to_string().contains(why));
        }
        let twice = ["a=1".to_owned(), "a=2".to_owned()];
        assert!(split_words(&twice).unwrap_err().to_string().contains("given twice"));
    }

    #[test]
    fn a_networks_changes() {
        let spec = NetworkSpec::from_words("lan", [("uplink", "eth0"), ("mtu", "9000")]).unwrap();
        let changes =
            NetworkChanges::from_words("lan", &[("mtu", ""), ("ageing", "60"), ("host-if", "on")]).unwrap();
        let new = changes.apply(&spec).unwrap();
        assert_eq!(
            (new.mtu, new.ageing_s, new.host_if, new.uplink.as_deref()),
            (None, 60, true, Some("eth0"))
        );
        assert_eq!(changes.keys().collect::<Vec<_>>(), ["mtu", "ageing", "host-if"]);
        for (words, why) in [
            (&[][..], "nothing to set"),
            (&[("mode", "bridge")], "delete the network and add it again"),
            (&[("host-address", "keep")], "delete the network and add it again"),
            (&[("dhcp", "off")], "delete the network and add it again"),
            (&[("colour", "red")], "cannot be set; keys that can: uplink, host-if"),
            (&[("mtu", "1")], "from 68 to 65535"),
        ] {
            let message = NetworkChanges::from_words("lan", words).unwrap_err().to_string();
            assert!(message.contains(why) && !message.contains('\n'), "{words:?}: {message}");
        }
        let long = NetworkSpec::from_words("sixteen-bytes-ab", []).unwrap();
        let changes = NetworkChanges { words: vec![("host-if".to_owned(), "on".to_owned())] };
        assert!(changes.apply(&long).unwrap_err().to_string().contains("16 bytes"));
    }

    #[test]
    fn a_ports_changes() {
        let spec =
            PortSpec::from_words("lan", "p", "tap:t", [("mac", "00:16:3e:00:00:01"), ("antispoof", "on")])
                .unwrap();
        let changes =
            PortChanges::from_words("p", &[("vlan", "7"), ("ip", "10.0.0.1"), ("mac", "")]).unwrap();
        let new = changes.apply(&spec).unwrap();
        assert_eq!((new.vlan.map(|v| v.get()), new.mac, new.antispoof), (Some(7), None, true));
        let refused =
            PortChanges::from_words("p", &[("mac", "")]).unwrap().apply(&spec).unwrap_err().to_string();
        assert!(refused.contains("antispoof=on has nothing"), "{refused}");
        for key in ["role", "remote", "queues", "kind", "network", "name"] {
            let message = PortChanges::from_words("p", &[(key, "1")]).unwrap_err().to_string();
            assert!(message.contains("delete the port and add it again"), "{message}");
        }
        for (words, why) in [
            (&[][..], "nothing to set"),
            (&[("rate", "x")], "write it as"),
            (&[("colour", "x")], "cannot be set; keys that can: mac, ip"),
        ] {
            let message = PortChanges::from_words("p", words).unwrap_err().to_string();
            assert!(message.contains(why) && !message.contains('\n'), "{words:?}: {message}");
        }
    }

    #[test]
    fn what_is_between_two_specs_turns_one_into_the_other() {
        let a = PortSpec::from_words("n", "p", "tap:t", [("mtu", "1400"), ("vlan", "2")]).unwrap();
        let b = PortSpec::from_words("n", "p", "tap:t", [("mtu", "1500"), ("isolated", "on")]).unwrap();
        assert_eq!(PortChanges::between(&a, &b).unwrap().apply(&a).unwrap(), b);
        assert!(PortChanges::between(&a, &a).unwrap().is_empty());
        let c = PortSpec::from_words("n", "p", "tap:t", [("queues", "2")]).unwrap();
        assert_eq!(PortChanges::between(&a, &c), None);
        let d = PortSpec::from_words("m", "p", "tap:t", []).unwrap();
        assert_eq!(PortChanges::between(&a, &d), None);
    }
}
