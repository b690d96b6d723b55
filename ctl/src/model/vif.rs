//! A Xen vif as xl writes it (xl-network-configuration(5)): `mac=…,bridge=xenbr0,…`, as a port of ours.
//!
//! What has no meaning to a switch in user space is taken and not used, so that a line of a domain's configuration can
//! stand as it is; whoever reads it is told. As Xen's scripts do it, `ip=` also holds the guest to those addresses.

use super::{ModelError, check_interface, parse_mac, shown};
use switch_core::MacAddr;

/// The network of a vif that names none, as xl has it.
const BRIDGE_DEFAULT: &str = "xenbr0";
/// Keys of xl that are about the back-end of its own.
const UNUSED: &[&str] = &["type", "model", "script", "backend", "gatewaydev"];
/// The highest domain that Xen gives to a guest (`DOMID_FIRST_RESERVED` less one).
pub(crate) const DOMID_MAX: u32 = 0x7fef;
/// More than Xen's virtual buses have devices.
const DEVID_MAX: u32 = 65_535;

/// A vif's specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VifSpec {
    /// `bridge=`: the network.
    pub network: String,
    /// `vifname=`: the port.
    pub name: Option<String>,
    /// `devid=`: which of its domain's vifs it is.
    pub devid: u32,
    /// `mac=`: the guest's address; without it one of Xen's range is made.
    pub mac: Option<MacAddr>,
    /// Further keys of the port, as they are given to `port add`.
    pub words: Vec<(&'static str, String)>,
    /// Keys that were given and have no meaning here.
    pub unused: Vec<&'static str>,
}

impl VifSpec {
    /// A vif from xl's text.
    ///
    /// # Errors
    /// A word is not of the form `key=value`, a key is not xl's or comes twice, or a value is not possible.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        let mut spec = Self {
            network: BRIDGE_DEFAULT.to_owned(),
            name: None,
            devid: 0,
            mac: None,
            words: Vec::new(),
            unused: Vec::new(),
        };
        let mut seen: Vec<&str> = Vec::new();
        // An empty specification is a vif with every default.
        let words = text.split(',').map(str::trim).filter(|_| !text.trim().is_empty());
        for word in words {
            let form = || ModelError::new(format!("vif: {} is not of the form key=value", shown(word)));
            let (key, value) = word.split_once('=').map(|(k, v)| (k.trim(), v.trim())).ok_or_else(form)?;
            if seen.contains(&key) {
                return Err(ModelError::new(format!("vif: the key {}= is given twice", shown(key))));
            }
            seen.push(key);
            spec.set(key, value).map_err(|e| e.of(format_args!("vif: {}=", key)))?;
        }
        Ok(spec)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), ModelError> {
        if let Some(unused) = UNUSED.iter().find(|unused| **unused == key) {
            self.unused.push(unused);
            return Ok(());
        }
        match key {
            "mac" => self.mac = Some(parse_mac(value)?),
            "bridge" => {
                super::check_name("network", value)?;
                self.network = value.to_owned();
            }
            "vifname" => {
                check_interface(value)?;
                self.name = Some(value.to_owned());
            }
            "devid" => self.devid = super::value::parse_number(value, 0..=DEVID_MAX)?,
            "ip" => {
                // xl has spaces between several.
                let ips: Vec<_> = value.split_ascii_whitespace().collect();
                self.words.push(("ip", ips.join(",")));
                self.words.push(("antispoof", "on".to_owned()));
            }
            "rate" => self.words.push(("rate", value.to_owned())),
            "mtu" => self.words.push(("mtu", value.to_owned())),
            _ => return Err(ModelError::new("a vif has no such key; see weft help vif attach")),
        }
        Ok(())
    }

    /// The name of the port of a domain: `vifname=`, or `vif<domid>.<devid>`.
    pub fn name_in(&self, domid: u32) -> String {
        self.name.clone().unwrap_or_else(|| format!("vif{domid}.{}", self.devid))
    }
}

/// An address of Xen's range from three random bytes: 00:16:3e:00:00:00 to 00:16:3e:7f:ff:ff, as xl makes them.
pub(crate) fn xen_mac([a, b, c]: [u8; 3]) -> MacAddr {
    MacAddr([0x00, 0x16, 0x3e, a & 0x7f, b, c])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_xl_writes_them() {
        let spec = VifSpec::parse(
            "mac=00:16:3E:01:02:03, bridge=br0 ,ip=10.0.0.2 fd00::2,rate=10Mb/s,mtu=9000,devid=1,\
             script=vif-bridge,type=vif,model=e1000,backend=0,gatewaydev=eth0",
        )
        .unwrap();
        assert_eq!((&*spec.network, &spec.name, spec.devid), ("br0", &None, 1));
        assert_eq!(spec.mac.unwrap().to_string(), "00:16:3e:01:02:03");
        let words: Vec<_> = spec.words.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(words, ["ip=10.0.0.2,fd00::2", "antispoof=on", "rate=10Mb/s", "mtu=9000"]);
        assert_eq!(spec.unused, ["script", "type", "model", "backend", "gatewaydev"]);
        assert_eq!(spec.name_in(7), "vif7.1");
        assert_eq!(VifSpec::parse("vifname=web").unwrap().name_in(7), "web");
        let empty = VifSpec::parse(" ").unwrap();
        assert_eq!((&*empty.network, empty.mac, empty.name_in(1)), ("xenbr0", None, "vif1.0".to_owned()));
        assert_eq!(xen_mac([0xff, 0xfe, 0xfd]).to_string(), "00:16:3e:7f:fe:fd");
    }

    #[test]
    fn what_is_refused_and_how() {
        for (text, why) in [
            ("bridge", "'bridge' is not of the form key=value"),
            ("bridge=a,", "'' is not of the form"),
            ("colour=red", "vif: colour=: a vif has no such key"),
            ("vlan=1", "vif: vlan=: a vif has no such key"),
            ("mac=00:16:3e:00:00:01,mac=00:16:3e:00:00:01", "given twice"),
            ("mac=ff:ff:ff:ff:ff:ff", "group address"),
            ("bridge=a/b", "only letters"),
            ("vifname=sixteen-bytes-ab", "16 bytes"),
            ("devid=x", "not a number from 0"),
        ] {
            let message = VifSpec::parse(text).unwrap_err().to_string();
            assert!(message.starts_with("vif: ") && message.contains(why), "{text}: {message}");
        }
    }
}
