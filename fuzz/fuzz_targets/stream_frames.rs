//! A stream of frames after their lengths, written in any pieces: whatever the pieces, the frames are those that a plain
//! reading of all the bytes finds.
//!
//! Input: pieces, each with a byte before it: below 128, how many bytes of the input the piece is; from 128 on, a piece of
//! 512 to 65,536 bytes that all have the value of the next byte.
#![no_main]

use datapath::stream::fuzzing::{Received, receive};
use libfuzzer_sys::fuzz_target;
use switch_core::head::FRAME_MAX;

/// The longest length that is one of a frame which is too long, and not of a broken stream.
const LENGTH_MAX: usize = 69_632;
/// Bytes that one run writes at most.
const BYTES_MAX: usize = 400_000;

fn pieces(mut data: &[u8]) -> Vec<Vec<u8>> {
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    while let [op, rest @ ..] = data {
        let (piece, after) = if *op < 128 {
            let (piece, after) = rest.split_at(rest.len().min(usize::from(*op)));
            (piece.to_vec(), after)
        } else {
            let (value, after) = rest.split_first().map_or((0, rest), |(v, after)| (*v, after));
            (vec![value; (usize::from(*op) - 127) * 512], after)
        };
        data = after;
        bytes += piece.len();
        if bytes > BYTES_MAX {
            break;
        }
        pieces.push(piece);
    }
    pieces
}

fn expected(mut bytes: &[u8]) -> Received {
    let mut all = Received::default();
    while let Some((prefix, rest)) = bytes.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > LENGTH_MAX {
            all.broken = true;
            break;
        }
        let Some((frame, rest)) = rest.split_at_checked(len) else { break };
        if len > FRAME_MAX {
            all.oversize += 1;
        } else {
            all.frames.push(frame.to_vec());
        }
        bytes = rest;
    }
    all
}

fuzz_target!(|data: &[u8]| {
    let pieces = pieces(data);
    let got = receive(pieces.iter().map(Vec::as_slice)).expect("a socket pair");
    assert_eq!(got, expected(&pieces.concat()));
});
