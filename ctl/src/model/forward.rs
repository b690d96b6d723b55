//! A port forward as an operator describes it: `PROTO LISTEN TARGET`.

use super::value::parse_number;
use super::{ModelError, check_name, shown};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The protocol of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Connections to `listen` go to `target`, a guest of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardSpec {
    /// The network of the target.
    pub network: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The address to listen on; `None` is every address.
    pub address: Option<IpAddr>,
    /// The port to listen on, not zero.
    pub port: u16,
    /// Where they go; the port is not zero.
    pub target: SocketAddr,
}

impl ForwardSpec {
    /// A forward from its words.
    ///
    /// # Errors
    /// A word is not possible.
    pub fn from_words(network: &str, protocol: &str, listen: &str, target: &str) -> Result<Self, ModelError> {
        check_name("network", network)?;
        let error = |why: String| ModelError::new(format!("forward on {network}: {why}"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(error(format!("{} is neither tcp nor udp", shown(protocol)))),
        };
        let (address, port) = match listen.parse::<SocketAddr>() {
            Ok(listen) => (Some(listen.ip()), listen.port()),
            Err(_) => {
                (None, parse_number(listen.strip_prefix(':').unwrap_or(listen), 1..=u16::MAX).unwrap_or(0))
            }
        };
        if port == 0 {
            return Err(error(format!("{} is not [ADDR:]PORT", shown(listen))));
        }
        match target.parse::<SocketAddr>() {
            Ok(target) if target.port() != 0 && !target.ip().is_unspecified() => {
                Ok(Self { network: network.to_owned(), protocol, address, port, target })
            }
            _ => Err(error(format!("{} is not ADDR:PORT", shown(target)))),
        }
    }

    /// The listening end as it is written.
    pub fn listen(&self) -> String {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).to_string(),
            None => self.port.to_string(),
        }
    }
}

impl fmt::Display for ForwardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} to {} on {}", self.protocol.as_str(), self.listen(), self.target, self.network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards() {
        let parse = ForwardSpec::from_words;
        let spec = parse("virbr0", "tcp", "8080", "192.168.122.10:80").unwrap();
        assert_eq!((spec.address, spec.port, spec.listen()), (None, 8080, "8080".to_owned()));
        assert_eq!(spec.to_string(), "tcp 8080 to 192.168.122.10:80 on virbr0");
        assert_eq!(parse("n", "udp", "127.0.0.1:53", "10.0.0.1:53").unwrap().listen(), "127.0.0.1:53");
        assert_eq!(parse("n", "udp", "[::1]:53", "[fd00::1]:53").unwrap().listen(), "[::1]:53");
        for (proto, listen, target, why) in [
            ("sctp", "1", "10.0.0.1:1", "neither tcp nor udp"),
            ("tcp", "0", "10.0.0.1:1", "not [ADDR:]PORT"),
            ("tcp", "host:1", "10.0.0.1:1", "not [ADDR:]PORT"),
            ("tcp", "65536", "10.0.0.1:1", "not [ADDR:]PORT"),
            ("tcp", "1", "10.0.0.1", "not ADDR:PORT"),
            ("tcp", "1", "10.0.0.1:0", "not ADDR:PORT"),
            ("tcp", "1", "0.0.0.0:1", "not ADDR:PORT"),
        ] {
            let message = parse("n", proto, listen, target).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
    }
}
