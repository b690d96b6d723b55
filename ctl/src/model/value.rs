//! Values of keys: numbers with bounds, switches, MAC addresses, VLANs, rates.

use super::{ModelError, shown};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use switch_core::{MacAddr, Vid};

/// The smallest MTU, in bytes: what every IPv4 link must carry (RFC 791, 3.1).
pub const MTU_MIN: u16 = 68;
/// The MTU of a network when `mtu=` does not say, in bytes.
pub const MTU_DEFAULT: u16 = 1500;
/// The largest MTU, in bytes.
pub const MTU_MAX: u16 = u16::MAX;

/// A MAC address that a station may have: neither zero nor a group.
///
/// # Errors
/// The text is no MAC address, or is zero, multicast or broadcast.
pub fn parse_mac(text: &str) -> Result<MacAddr, ModelError> {
    let mac = MacAddr::from_str(text).map_err(|_| {
        ModelError::new(format!("{} is not a MAC address: write it as 00:16:3e:01:02:03", shown(text)))
    })?;
    if mac.is_zero() {
        return Err(ModelError::new(format!("{mac} is the zero address, no station has it")));
    }
    if mac.is_group() {
        return Err(ModelError::new(format!("{mac} is a group address, a station needs a unicast one")));
    }
    Ok(mac)
}

/// A VLAN identifier, 1 to 4094 (IEEE 802.1Q, 9.6).
///
/// # Errors
/// The text is not such a number.
pub fn parse_vlan(text: &str) -> Result<Vid, ModelError> {
    let number: u16 = parse_number(text, 1..=4094)?;
    Vid::new(number).ok_or_else(|| out_of_range(text, 1, 4094))
}

/// A decimal number within `range`. Only digits: no sign, no spaces.
pub(crate) fn parse_number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, ModelError>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<T>().ok()).flatten();
    number.filter(|n| range.contains(n)).ok_or_else(|| out_of_range(text, range.start(), range.end()))
}

fn out_of_range(text: &str, low: impl fmt::Display, high: impl fmt::Display) -> ModelError {
    ModelError::new(format!("{} is not a number from {low} to {high}", shown(text)))
}

/// `on` or `off`.
pub(super) fn parse_switch(text: &str) -> Result<bool, ModelError> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(ModelError::new(format!("{} is neither 'on' nor 'off'", shown(text)))),
    }
}

/// The word for a switch.
pub(super) fn switch_word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// One of a few words.
pub(super) fn parse_choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, ModelError> {
    choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        ModelError::new(format!("{} is not one of {}", shown(text), words.join(", ")))
    })
}

/// A port's bandwidth limit on what the guest sends, as `rate=` of xl's vif configuration (xl-network-configuration(5)):
/// so many bytes in each window. Bytes and windows without fractions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    bytes_per_s: u64,
    window_us: u32,
}

impl Rate {
    /// The window when none is given, in microseconds.
    pub const WINDOW_US_DEFAULT: u32 = 50_000;

    /// Bytes per second.
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// The length of a window, in microseconds; not zero.
    pub fn window_us(&self) -> u32 {
        self.window_us
    }

    /// The credit of one window, in bytes; from 1 to `u32::MAX`.
    pub fn window_bytes(&self) -> u32 {
        // The parser has made sure that it fits.
        u32::try_from(self.credit()).unwrap_or(u32::MAX)
    }

    fn credit(&self) -> u128 {
        u128::from(self.bytes_per_s) * u128::from(self.window_us) / 1_000_000
    }
}

impl FromStr for Rate {
    type Err = ModelError;

    /// `NUMBER[G|M|K](B|b)/s[@NUMBER(s|ms|us)]`: `B` is bytes, `b` bits, the prefixes are powers of 1000.
    fn from_str(text: &str) -> Result<Self, ModelError> {
        let error = |why: &str| ModelError::new(format!("rate {}: {why}", shown(text)));
        let shape = || error("write it as 10Mb/s or 1MB/s@20ms");
        let (rate, window) = match text.split_once('@') {
            Some((rate, window)) => (rate, Some(window)),
            None => (text, None),
        };
        let rate = rate.strip_suffix("/s").ok_or_else(shape)?;
        let (rate, bits) = match (rate.strip_suffix('B'), rate.strip_suffix('b')) {
            (Some(rate), _) => (rate, false),
            (_, Some(rate)) => (rate, true),
            _ => return Err(shape()),
        };
        let (digits, scale) = split_number(rate).ok_or_else(shape)?;
        let scale: u64 = match scale {
            "" => 1,
            "K" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            _ => return Err(shape()),
        };
        let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale));
        let number = number.ok_or_else(|| error("the number is too large"))?;
        let bytes_per_s = if bits { number / 8 } else { number };

        let window_us = match window {
            None => Self::WINDOW_US_DEFAULT,
            Some(window) => {
                let (digits, unit) = split_number(window).ok_or_else(shape)?;
                let unit: u32 = match unit {
                    "s" => 1_000_000,
                    "ms" => 1_000,
                    "us" => 1,
                    _ => return Err(shape()),
                };
                let window_us = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit));
                window_us.ok_or_else(|| error("the window is too long"))?
            }
        };

        let rate = Self { bytes_per_s, window_us };
        match rate.credit() {
            0 => Err(error("comes to no byte in a window")),
            n if n > u128::from(u32::MAX) => {
                Err(error("is more than 4 GiB in a window, take a shorter window"))
            }
            _ => Ok(rate),
        }
    }
}

/// The digits in front, at least one, and what follows.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

impl fmt::Display for Rate {
    /// In bits and the largest units that need no fraction; the window only when it is not the default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u128::from(self.bytes_per_s) * 8;
        match bits {
            n if n % 1_000_000_000 == 0 => write!(f, "{}Gb/s", n / 1_000_000_000)?,
            n if n % 1_000_000 == 0 => write!(f, "{}Mb/s", n / 1_000_000)?,
            n if n % 1_000 == 0 => write!(f, "{}Kb/s", n / 1_000)?,
            // Bits could be too many for a number that the parser takes; bytes never are.
            _ => write!(f, "{}B/s", self.bytes_per_s)?,
        }
        match self.window_us {
            Self::WINDOW_US_DEFAULT => Ok(()),
            n if n % 1_000_000 == 0 => write!(f, "@{}s", n / 1_000_000),
            n if n % 1_000 == 0 => write!(f, "@{}ms", n / 1_000),
            n => write!(f, "@{n}us"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mac_addresses_of_stations_only() {
        assert_eq!(parse_mac("00:16:3E:01:02:03").unwrap().to_string(), "00:16:3e:01:02:03");
        for (bad, why) in [
            ("00:00:00:00:00:00", "zero address"),
            ("ff:ff:ff:ff:ff:ff", "group address"),
            ("01:00:5e:00:00:01", "group address"),
            ("00:16:3e:01:02", "not a MAC"),
            ("", "not a MAC"),
        ] {
            let message = parse_mac(bad).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn numbers_have_bounds_and_no_signs() {
        assert_eq!(parse_number::<u16>("68", 68..=65535), Ok(68));
        for bad in ["67", "65536", "+70", "-1", " 70", "0x50", "", "70.0", "99999999999999999999"] {
            assert!(parse_number::<u16>(bad, 68..=65535).is_err(), "{bad}");
        }
        assert!(parse_vlan("0").is_err());
        assert!(parse_vlan("4095").is_err());
        assert_eq!(parse_vlan("4094").unwrap().get(), 4094);
    }

    #[test]
    fn rates_as_in_xl() {
        // (text, bytes per second, window in microseconds, bytes in a window)
        for (text, bytes, window, credit) in [
            ("1MB/s@20ms", 1_000_000, 20_000, 20_000),
            ("10Mb/s", 1_250_000, 50_000, 62_500),
            ("250KB/s", 250_000, 50_000, 12_500),
            ("1GB/s@500us", 1_000_000_000, 500, 500_000),
            ("8000b/s@1s", 1_000, 1_000_000, 1_000),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(
                (rate.bytes_per_s(), rate.window_us(), rate.window_bytes()),
                (bytes, window, credit),
                "{text}"
            );
            assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate, "{text} printed as {rate}");
        }
        assert_eq!("10Mb/s".parse::<Rate>().unwrap().to_string(), "10Mb/s");
        assert_eq!("1MB/s@20ms".parse::<Rate>().unwrap().to_string(), "8Mb/s@20ms");
        for (bad, why) in [
            ("10Mb", "write it as"),
            ("Mb/s", "write it as"),
            ("10mb/s", "write it as"),
            ("10Mb/s@", "write it as"),
            ("10Mb/s@5", "write it as"),
            ("1.5Mb/s", "write it as"),
            ("0Mb/s", "no byte"),
            ("8b/s", "no byte"),
            ("99999999999999999999b/s", "too large"),
            ("18446744073709551615GB/s", "too large"),
            ("1MB/s@5000s", "too long"),
            ("18000000000GB/s@4000s", "4 GiB"),
            ("100GB/s", "4 GiB"),
        ] {
            let message = bad.parse::<Rate>().unwrap_err().to_string();
            assert!(message.contains(why), "{bad}: {message}");
        }
    }

    proptest! {
        #[test]
        fn a_rate_prints_as_what_it_parses_to(number in 1_u64..u64::MAX / 1_000_000_000, scale in "[GMK]?[Bb]", window in "(@[1-9][0-9]{0,3}[mu]?s)?") {
            if let Ok(rate) = format!("{number}{scale}/s{window}").parse::<Rate>() {
                prop_assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Rate>();
            let _ = parse_mac(&text);
            let _ = parse_vlan(&text);
        }
    }
}
