//! One change as one line of text, with a checksum in front.
//!
//! ```text
//! CRC32 set ADDRESS MAC CLIENT EXPIRES SECONDS NAME
//! CRC32 del ADDRESS
//! ```
//! The checksum (CRC-32 of IEEE 802.3, eight hexadecimal digits) is over everything behind the space that follows it,
//! without the newline. CLIENT is in hexadecimal, NAME is `-` if there is none. A line that was cut anywhere, the
//! newline included, is none.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::{ClientKey, Record};

/// A change that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Set(Record),
    Remove(Ipv4Addr),
}

/// The line of a record, with its newline.
pub(super) fn set(record: &Record) -> String {
    let mut text = format!("set {} {} ", record.ip, record.mac);
    for byte in record.client.as_bytes() {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    let name = record.hostname.as_deref().unwrap_or("-");
    let _ = write!(text, " {} {} {name}", record.expires_unix, record.lease_secs);
    sealed(&text)
}

/// The line of an address that is forgotten, with its newline.
pub(super) fn remove(ip: Ipv4Addr) -> String {
    sealed(&format!("del {ip}"))
}

fn sealed(text: &str) -> String {
    format!("{:08x} {text}\n", crc32(text.as_bytes()))
}

/// Reads a line (without its newline). `None` if it is not whole.
pub(super) fn parse(line: &[u8]) -> Option<Line> {
    let line = std::str::from_utf8(line).ok()?;
    let (sum, text) = line.split_once(' ')?;
    if sum.len() != 8 || u32::from_str_radix(sum, 16).ok()? != crc32(text.as_bytes()) {
        return None;
    }
    let mut words = text.split(' ');
    let verb = words.next()?;
    let ip = words.next()?.parse().ok()?;
    let change = match verb {
        "set" => {
            let mac = words.next()?.parse().ok()?;
            let client = ClientKey::identifier(&hex(words.next()?)?)?;
            let expires_unix = words.next()?.parse().ok()?;
            let lease_secs = words.next()?.parse().ok()?;
            let name = words.next()?;
            let hostname = (name != "-").then(|| name.to_owned());
            Line::Set(Record { ip, mac, client, hostname, expires_unix, lease_secs })
        }
        "del" => Line::Remove(ip),
        _ => return None,
    };
    words.next().is_none().then_some(change)
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

/// CRC-32 of IEEE 802.3: reflected, polynomial EDB88320, all ones before and after.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_ethernet() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926, "the check value of CRC-32/ISO-HDLC");
        assert_eq!(crc32(b""), 0);
    }
}
