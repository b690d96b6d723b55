//! Call: the eventfd through which the device wakes the driver. Kick, the other way, is an [`Event`] alone.
//!
//! The descriptors come from the front-end, which can do to them what it likes: see [`datapath::event`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

pub(crate) use datapath::event::Event;

/// Where a ring's used buffers are announced. The front-end replaces it while the ring runs (an interrupt
/// vector that is masked and unmasked), so it is behind a lock that is taken only to notify or to replace.
#[derive(Debug, Default)]
pub(crate) struct Call {
    there: AtomicBool,
    event: Mutex<Option<Event>>,
}

impl Call {
    /// Replaces the descriptor; `None` means that the driver polls.
    pub(crate) fn set(&self, event: Option<Event>) {
        let mut slot = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        self.there.store(event.is_some(), Ordering::Relaxed);
        *slot = event;
    }

    /// False if nobody would hear a notification.
    #[inline]
    pub(crate) fn is_set(&self) -> bool {
        self.there.load(Ordering::Relaxed)
    }

    /// Notifies the driver.
    #[cold]
    pub(crate) fn signal(&self) {
        if let Some(event) = &*self.event.lock().unwrap_or_else(PoisonError::into_inner) {
            event.signal();
        }
    }
}
