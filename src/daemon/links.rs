//! Watches the host's interfaces, by the kernel's link messages (rtnetlink(7)).

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use rtnetlink::MulticastGroup;
use tracing::warn;

/// Tells when an interface came, went or changed.
pub(super) struct Watch {
    messages: BoxStream<'static, ()>,
}

impl Watch {
    /// Starts watching. Where the kernel does not let us, says so once and never tells of a change.
    pub(super) fn start() -> Self {
        match rtnetlink::new_multicast_connection(&[MulticastGroup::Link]) {
            Ok((connection, _handle, messages)) => {
                tokio::spawn(connection);
                Self { messages: messages.map(drop).boxed() }
            }
            Err(error) => {
                warn!(%error, "interfaces that come back will not be noticed: no rtnetlink socket");
                Self { messages: futures_util::stream::pending().boxed() }
            }
        }
    }

    /// Returns when something changed; several changes at once are one.
    pub(super) async fn changed(&mut self) {
        if self.messages.next().await.is_none() {
            // The connection ended: there is nothing more to hear.
            self.messages = futures_util::stream::pending().boxed();
            return;
        }
        while let std::task::Poll::Ready(Some(())) = futures_util::poll!(self.messages.next()) {}
    }
}
