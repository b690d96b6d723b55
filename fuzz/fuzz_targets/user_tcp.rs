//! A guest's TCP connection that ends at a socket: any segments, any answers of the socket's, any time.
//!
//! Input: a byte whose lowest bit says who begins, four for the initial sequence number, two for the segments' size, a SYN's
//! operands; then operations, each a byte whose value modulo 8 tells what it is, and its operands:
//! - 0 to 3: a segment, see `said`; 0 and 1: it is gathered, the others give the socket at once all that was.
//! - 4: the socket takes what was gathered, but as many bytes as two bytes say.
//! - 5: two bytes: the socket would take as much, times 64; then the guest is sent what is due.
//! - 6: two bytes: time passes, as many steps of a millisecond, or of a minute if the first's lowest bit is set.
//! - 7: two bytes: from outside came as much, times 16; or if the first's two lowest bits are set, the end; or, if only the
//!   second of them, the acceptance. Then the guest is sent what is due.
//!
//! What holds is in `sockets::fuzzing`: sequence numbers in order, nothing taken that was not offered, nothing sent beyond the
//! guest's window, no deadline that stays.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sockets::fuzzing::{Connection, Said};

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (&first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(first)
    }

    fn word(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// A distance: one byte for how far, the lowest two bits for in which unit.
    fn distance(&mut self) -> Option<i32> {
        let [byte] = self.array()?;
        let far = i32::from(byte.cast_signed() >> 2);
        Some(far.wrapping_mul([1, 536, 1 << 16, 1 << 26][usize::from(byte & 3)]))
    }

    /// Flags, the two distances, window, length, and for a SYN a byte each for options.
    fn said(&mut self) -> Option<Said> {
        let [flags] = self.array()?;
        let (seq, ack) = (self.distance()?, self.distance()?);
        let (window, len) = (self.word()?, self.word()?);
        let mut said = Said { seq, ack, flags, window, len, mss: None, scale: None };
        if flags & 2 != 0 {
            let [mss, scale] = self.array()?;
            said.mss = (mss != 0).then_some(u16::from(mss) * 16);
            said.scale = scale.checked_sub(1);
        }
        Some(said)
    }
}

fuzz_target!(|data: &[u8]| {
    run(&mut Input(data));
});

fn run(input: &mut Input<'_>) -> Option<()> {
    let [who] = input.array()?;
    let iss = input.array().map(u32::from_le_bytes)?;
    let mss = input.word()?;
    let syn = Said { flags: 2, ..input.said()? };
    let mut connection = Connection::begin((who & 1 == 0).then_some(syn), iss, mss);
    loop {
        let [what] = input.array()?;
        let goes_on = match what % 8 {
            what @ 0..=3 => {
                let goes_on = connection.segment(&input.said()?);
                if goes_on && what > 1 {
                    connection.give(0);
                    connection.serve();
                }
                goes_on
            }
            4 => {
                connection.give(input.word()?.into());
                connection.serve();
                true
            }
            5 => {
                let space = u32::from(input.word()?) * 64;
                connection.give(0);
                connection.space(space);
                connection.serve();
                true
            }
            6 => {
                let steps = input.word()?;
                connection.give(0);
                let unit = Duration::from_millis(if steps & 1 == 0 { 1 } else { 60_000 });
                let goes_on = connection.pass(unit * u32::from(steps >> 1));
                connection.serve();
                goes_on
            }
            _ => {
                let n = input.word()?;
                connection.give(0);
                match n & 3 {
                    3 => connection.ended(),
                    2 => connection.connected(),
                    _ => connection.arrived(u32::from(n) * 16),
                }
                connection.serve();
                true
            }
        };
        if !goes_on {
            return None;
        }
    }
}
