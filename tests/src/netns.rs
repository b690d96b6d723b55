//! Network namespaces of a test's own, and the interfaces in them.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::LinkNameSpaceType;

use crate::process::{self, Output};

/// Files here take the place of those in `/etc` for what `ip netns exec` starts.
pub(crate) const ETC: &str = "/etc/netns";
/// Where `ip netns` keeps its namespaces.
pub(crate) const RUN: &str = "/run/netns";

/// A network namespace. Its interfaces and files go with it when it is dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace; `role` becomes part of its name, which no other test has.
    ///
    /// # Errors
    /// Not permitted, or no `ip`.
    pub fn new(role: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weft-{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        process::sh(&format!("ip netns add {name}"))?;
        let namespace = Netns { name };
        namespace.run("ip link set lo up")?;
        // Frames that nobody asked for (router solicitations, MLD) would blur exact counts.
        namespace.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1 2>/dev/null || echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")?;
        Ok(namespace)
    }

    /// The name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets the namespace have IPv6: on the interfaces that it gets from now on.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn enable_ipv6(&self) -> Result<()> {
        // An address is to be had at once, not after a second of looking for others that have it.
        self.run("cd /proc/sys/net/ipv6/conf; echo 0 >default/disable_ipv6; echo 0 >default/accept_dad")?;
        Ok(())
    }

    /// Writes the `resolv.conf` of the programs in the namespace. What runs already sees a change of it, if there was
    /// one when it started.
    ///
    /// # Errors
    /// Not permitted.
    pub fn set_resolver(&self, text: &str) -> Result<()> {
        let dir = Path::new(ETC).join(&self.name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // Written in place: a program has this very file mounted.
        fs::write(dir.join("resolv.conf"), text).with_context(|| format!("cannot write to {}", dir.display()))
    }

    /// A command that will run in the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a shell script in the namespace; its standard output.
    ///
    /// # Errors
    /// It fails, or has not ended within 60 s.
    pub fn run(&self, script: &str) -> Result<String> {
        let output = self.try_run(script)?;
        output.ok().with_context(|| format!("in {}: {script}", self.name))
    }

    /// Runs a shell script in the namespace, however it ends.
    ///
    /// # Errors
    /// It cannot be started, or has not ended within 60 s.
    pub fn try_run(&self, script: &str) -> Result<Output> {
        process::run(self.command("sh").args(["-ec", script]), Duration::from_secs(60))
    }

    /// Runs `task` on a thread that is in the namespace; sockets it makes stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let path = format!("{RUN}/{}", self.name);
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        Ok(thread::spawn(move || {
            rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .context("cannot enter the namespace")?;
            task()
        }))
    }

    /// Takes interface `interface` out of namespace `from`, gives it `address` (with prefix length) and sets it up.
    ///
    /// # Errors
    /// No such interface, or the address is not one.
    pub fn adopt(&self, from: &Netns, interface: &str, address: &str) -> Result<()> {
        from.run(&format!("ip link set {interface} netns {}", self.name))?;
        self.run(&format!("ip address add {address} dev {interface}; ip link set {interface} up"))?;
        Ok(())
    }

    /// Makes a veth pair: `interface` here, set up without an address, and `peer_interface` in `peer`, up with `address`.
    ///
    /// # Errors
    /// A name is taken, or the address is not one.
    pub fn veth(&self, interface: &str, peer: &Netns, peer_interface: &str, address: &str) -> Result<()> {
        self.run(&format!(
            "ip link add {interface} type veth peer name {peer_interface} netns {}; ip link set {interface} up",
            peer.name
        ))?;
        peer.run(&format!("ip address add {address} dev {peer_interface}; ip link set {peer_interface} up"))?;
        Ok(())
    }

    /// The names of the interfaces in the namespace.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let list = self.run("ls /sys/class/net")?;
        Ok(list.split_whitespace().map(str::to_string).collect())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A namespace that cannot be removed is left for `ip netns` to show; a test's verdict does not hang on it.
        let _ = process::sh(&format!("ip netns del {}", self.name));
        // There is none for most.
        let _ = fs::remove_dir_all(Path::new(ETC).join(&self.name));
    }
}
