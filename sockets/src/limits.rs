//! How much there may be of everything that grows by what guests say.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bounds, all of them above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections in all, each with a descriptor.
    pub tcp: u32,
    /// TCP connections of one inside address.
    pub tcp_each: u32,
    /// TCP connections in all that nobody has accepted yet.
    pub tcp_opening: u32,
    /// The same, of one inside address.
    pub tcp_opening_each: u32,
    /// UDP mappings in all, each with a descriptor.
    pub udp: u32,
    /// UDP mappings of one inside address.
    pub udp_each: u32,
    /// Ping sockets in all.
    pub echo: u32,
    /// Ping sockets of one inside address.
    pub echo_each: u32,
    /// Ports that are listened on for guests.
    pub listeners: u32,
}

/// Descriptors that are left to everything else in the process.
const SPARE_FILES: u64 = 256;

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp: 16_384,
            tcp_each: 4096,
            tcp_opening: 2048,
            tcp_opening_each: 512,
            udp: 8192,
            udp_each: 2048,
            echo: 512,
            echo_each: 64,
            listeners: 1024,
        }
    }
}

impl Limits {
    /// These bounds, reduced in proportion so that all of their sockets together fit into `files` descriptors.
    #[must_use]
    pub fn within(self, files: u64) -> Self {
        let most = files.saturating_sub(SPARE_FILES).max(16);
        let wanted = u64::from(self.tcp) + u64::from(self.udp) + u64::from(self.echo);
        if wanted + u64::from(self.listeners) <= most {
            return self;
        }
        let listeners = self.listeners.min(u32::try_from(most / 8).unwrap_or(u32::MAX));
        let most = most - u64::from(listeners);
        let wanted = wanted.max(most);
        // At most `n`, as most <= wanted.
        let part = |n: u32| u32::try_from((u64::from(n) * most / wanted).max(1)).unwrap_or(n);
        let (tcp, udp, echo) = (part(self.tcp), part(self.udp), part(self.echo));
        Self {
            tcp,
            tcp_each: self.tcp_each.min((tcp / 2).max(1)),
            tcp_opening: self.tcp_opening.min((tcp / 2).max(1)),
            tcp_opening_each: self.tcp_opening_each.min((tcp / 4).max(1)),
            udp,
            udp_each: self.udp_each.min((udp / 2).max(1)),
            echo,
            echo_each: self.echo_each.min((echo / 2).max(1)),
            listeners,
        }
    }
}

/// Raises the process's soft limit of descriptors to its hard limit; what it is then.
///
/// # Errors
/// The kernel refused, and the limit is what it was.
pub fn raise_files() -> io::Result<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(maximum.unwrap_or(u64::MAX))
}

/// The descriptors that the process may have now.
pub fn files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_fit_stay_and_others_shrink_in_proportion() {
        let limits = Limits::default();
        assert_eq!(limits.within(1 << 20), limits);
        for files in [0, 100, 300, 1024, 4096, 20_000] {
            let less = limits.within(files);
            let all =
                u64::from(less.tcp) + u64::from(less.udp) + u64::from(less.echo) + u64::from(less.listeners);
            assert!(all <= files.saturating_sub(SPARE_FILES).max(16), "{files}: {less:?}");
            assert!(less.tcp > less.udp && less.udp_each >= 1 && less.echo >= 1, "{files}: {less:?}");
            assert!(less.tcp_each <= less.tcp && less.tcp_opening_each <= less.tcp_opening.max(1));
        }
    }
}
