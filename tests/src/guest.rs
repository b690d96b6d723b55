//! A real Linux guest under QEMU's software emulation, whose NIC is a vhost-user socket, a tap, or what QEMU has besides,
//! and a shell in it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process::Output;
use crate::{logs, needs, ordinary, process};

/// A guest boots in 3 s on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// QEMU's side of the vhost-user socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// QEMU connects, the switch listens.
    #[default]
    Client,
    /// QEMU connects, and connects again when the switch comes back.
    Reconnecting,
    /// QEMU listens, the switch connects.
    Server,
}

/// How to start a guest.
#[derive(Clone, Debug, Default)]
pub struct GuestOptions {
    /// QEMU's side of the socket.
    pub role: Role,
    /// Properties of the virtio-net device, as QEMU takes them (`mrg_rxbuf=off,indirect_desc=off`).
    pub device: String,
    /// Queue pairs; 0 is taken as 1. The guest has as many CPUs.
    pub queues: u8,
}

/// A running guest. Dropped, it is killed.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    dir: TempDir,
    /// QEMU connects here at its start, so that nothing the guest says is lost.
    listener: UnixListener,
    agent: Option<BufReader<UnixStream>>,
    name: String,
}

impl Guest {
    /// Starts a guest whose NIC has MAC `mac` and is on the vhost-user socket `socket`; it boots while the caller goes on.
    ///
    /// # Errors
    /// There is no QEMU, or no image for it.
    pub fn boot(socket: &Path, mac: &str, options: &GuestOptions) -> Result<Self> {
        let queues = options.queues.max(1);
        let listen = match options.role {
            Role::Client => "",
            Role::Reconnecting => ",reconnect=1",
            Role::Server => ",server=on,wait=off",
        };
        let network = [
            "-chardev".to_string(),
            format!("socket,id=c0,path={}{listen}", socket.display()),
            "-netdev".to_string(),
            format!("vhost-user,id=n0,chardev=c0,queues={queues}"),
        ];
        Self::start(None, &network, mac, options)
    }

    /// Starts a guest whose NIC is the tap `interface`, which QEMU makes in network namespace `netns` and serves by
    /// itself. The tap goes with it.
    ///
    /// # Errors
    /// There is no QEMU, or no image for it.
    pub fn boot_on_tap(netns: &str, interface: &str, mac: &str, options: &GuestOptions) -> Result<Self> {
        let network = [
            "-netdev".to_string(),
            format!("tap,id=n0,ifname={interface},script=no,downscript=no,vhost=off"),
        ];
        Self::start(Some(netns), &network, mac, options)
    }

    /// Starts a guest whose NIC is `netdev`, in QEMU's words (`stream,addr.type=unix,addr.path=…`).
    ///
    /// # Errors
    /// There is no QEMU, or no image for it.
    pub fn boot_on(netdev: &str, mac: &str, options: &GuestOptions) -> Result<Self> {
        Self::start(None, &["-netdev".to_string(), format!("{netdev},id=n0")], mac, options)
    }

    fn start(netns: Option<&str>, network: &[String], mac: &str, options: &GuestOptions) -> Result<Self> {
        let image = needs::guest_image().as_ref().map_err(|why| anyhow::anyhow!("no guest image: {why}"))?;
        let dir = tempfile::Builder::new().prefix("weft-guest-").tempdir()?;
        let agent = dir.path().join("agent");
        let listener = UnixListener::bind(&agent)?;
        listener.set_nonblocking(true)?;
        let queues = options.queues.max(1);
        let separator = if options.device.is_empty() { "" } else { "," };
        let multiqueue = if queues > 1 { ",mq=on" } else { "" };
        let mut words: Vec<OsString> = Vec::new();
        if let Some(netns) = netns {
            words.extend(["ip", "netns", "exec", netns].map(Into::into));
        }
        words.extend(ordinary::words());
        words.push("qemu-system-x86_64".into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", &queues.to_string(), "-m", "256"])
            .args(["-object", "memory-backend-memfd,id=m0,size=256M,share=on", "-numa", "node,memdev=m0"])
            .args(["-display", "none", "-vga", "none", "-monitor", "none", "-no-reboot", "-nodefaults"])
            .args(["-serial", &format!("file:{}", dir.path().join("console").display())])
            .args(["-chardev", &format!("socket,id=agent,path={}", agent.display())])
            .args(["-serial", "chardev:agent"])
            .args(network)
            // vectors=0: with vhost-user under software emulation QEMU 7.2 crashes on MSI-X, and works with INTx.
            .args([
                "-device",
                &format!(
                    "virtio-net-pci,netdev=n0,mac={mac},romfile=,vectors=0{multiqueue}{separator}{}",
                    options.device
                ),
            ])
            .arg("-kernel")
            .arg(image.join("vmlinuz"))
            .arg("-initrd")
            .arg(image.join("initrd.gz"))
            .args(["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"]);
        let log = File::create(dir.path().join("qemu.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().context("cannot start QEMU")?;
        Ok(Guest { child, dir, listener, agent: None, name: format!("the guest {mac}") })
    }

    /// Waits until the guest takes commands.
    ///
    /// # Errors
    /// QEMU ended, or the guest is not up within a minute.
    pub fn ready(&mut self) -> Result<()> {
        if self.agent.is_some() {
            return Ok(());
        }
        let deadline = Instant::now() + BOOT_LIMIT;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => self.still_runs(deadline).with_context(|| error.to_string())?,
            }
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut agent = BufReader::new(stream);
        let greeting = self.read_line(&mut agent, deadline)?;
        if greeting.trim() != "ready" {
            bail!("{} greets with '{greeting}'", self.name);
        }
        self.agent = Some(agent);
        Ok(())
    }

    fn still_runs(&mut self, deadline: Instant) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("QEMU ended ({status})");
        }
        if Instant::now() >= deadline {
            bail!("{} does not answer", self.name);
        }
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    fn read_line(&mut self, agent: &mut BufReader<UnixStream>, deadline: Instant) -> Result<String> {
        let mut line = Vec::new();
        loop {
            match agent.read_until(b'\n', &mut line) {
                Ok(0) => bail!("{} hung up", self.name),
                Ok(_) if line.ends_with(b"\n") => {
                    return Ok(String::from_utf8_lossy(&line).trim().to_string());
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.still_runs(deadline)?;
                }
                Err(error) => return Err(error).context("the guest's serial port"),
            }
        }
    }

    /// Runs a shell script in the guest, however it ends. Standard error is in `stdout` too, in order.
    ///
    /// # Errors
    /// The guest has ended, or the script has not within a minute.
    pub fn try_run(&mut self, script: &str) -> Result<Output> {
        self.ready()?;
        let mut agent = self.agent.take().context("the guest hung up")?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let encoded = base64(script.as_bytes());
        agent.get_mut().write_all(format!("{encoded}\n").as_bytes())?;
        let answer =
            self.read_line(&mut agent, deadline).with_context(|| format!("in the guest: {script}"))?;
        let status = self.read_line(&mut agent, deadline)?;
        self.agent = Some(agent);
        let code = status.parse().with_context(|| format!("the guest's exit status '{status}'"))?;
        Ok(Output { code, stdout: unbase64(&answer)?, stderr: String::new() })
    }

    /// Runs a shell script in the guest; what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&mut self, script: &str) -> Result<String> {
        let name = self.name.clone();
        self.try_run(script)?.ok().with_context(|| format!("in {name}: {script}"))
    }

    /// SIGKILL, as a host that is out of memory gives it.
    pub fn kill(&mut self) {
        process::kill(&mut self.child);
        self.agent = None;
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
        logs::keep(&format!("{}: QEMU", self.name), &self.dir.path().join("qemu.log"));
        logs::keep(&format!("{}: console", self.name), &self.dir.path().join("console"));
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = (group >> (18 - 6 * digit)) & 63;
            text.push(if digit > chunk.len() { '=' } else { char::from(ALPHABET[value as usize]) });
        }
    }
    text
}

fn unbase64(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut group, mut bits) = (0u32, 0u32);
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        let value =
            ALPHABET.iter().position(|known| *known == digit).context("the guest's answer is not base64")?;
        group = group << 6 | u32::try_from(value)?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(group >> bits & 0xff)?);
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_rfc_4648() {
        // The vectors of RFC 4648 section 10.
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
            assert_eq!(unbase64(encoded).unwrap(), plain);
        }
        assert!(unbase64("a b").is_err());
    }
}
