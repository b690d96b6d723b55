//! The vhost-user back-end of virtio-net: sessions, guest memory, vrings, the port.
