//! Where frames into the network are written: a worker's burst, and the pool that their payload is read into.

use std::mem::MaybeUninit;

use datapath::buffers::Buffers;
use datapath::{Burst, Segment};
use switch_core::head::HEAD_LEN;
use switch_core::virtio_net::VnetHeader;

/// See the module's text. For one burst.
#[derive(Debug)]
pub(crate) struct Fill<'a> {
    burst: &'a mut Burst,
    pool: &'a mut Buffers,
}

impl<'a> Fill<'a> {
    pub(crate) fn new(burst: &'a mut Burst, pool: &'a mut Buffers) -> Self {
        Self { burst, pool }
    }

    /// True if one more frame, of any length, can be pushed.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.burst.room() > 0 && !self.pool.is_full()
    }

    /// Where the next frame's payload may be read to: 64 KB and more, if there is room.
    #[inline]
    pub(crate) fn slot(&mut self) -> &mut [MaybeUninit<u8>] {
        self.pool.slot()
    }

    /// Takes in a frame: its headers, at most [`HEAD_MAX`](switch_core::head::HEAD_MAX) bytes, and the first `payload` bytes of
    /// [`Fill::slot`]. False if it does not fit.
    #[inline]
    pub(crate) fn push(&mut self, headers: &[u8], vnet: VnetHeader, payload: usize) -> bool {
        let Some(head) = self.burst.next_head() else { return false };
        head.vnet = vnet;
        let bytes = head.begin((headers.len() + payload) as u32, headers.len());
        if bytes.len() != headers.len() {
            return false;
        }
        bytes.copy_from_slice(headers);
        let tail: &[Segment] = if payload == 0 { &[] } else { &[self.pool.take(payload)] };
        self.burst.push(tail).is_ok()
    }

    /// Takes in a frame that is whole and asks for nothing. False if it does not fit.
    pub(crate) fn push_whole(&mut self, frame: &[u8]) -> bool {
        let head = &frame[..frame.len().min(HEAD_LEN)];
        let rest = &frame[head.len()..];
        let Some(slot) = self.slot().get_mut(..rest.len()) else { return false };
        for (to, &byte) in slot.iter_mut().zip(rest) {
            to.write(byte);
        }
        self.push(head, VnetHeader::default(), rest.len())
    }
}
