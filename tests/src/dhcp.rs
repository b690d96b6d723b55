//! DHCP clients of other projects in a namespace, and what the script that they run was told.
//!
//! Both programs run one script, which writes down its environment and gives the interface the address. A lease is as
//! long as the server says; dhclient alone can be told to renew and rebind sooner, so it renews every [`RENEWAL_S`].

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{Netns, Program, eventually, process};

/// How long a client may take for anything, on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);
/// Seconds after which dhclient renews, and asks all servers a second later.
pub const RENEWAL_S: u32 = 2;

/// The program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DhcpProgram {
    /// busybox's.
    Udhcpc,
    /// ISC's.
    Dhclient,
}

/// What a client's script was told at one time, in the same words for both programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// `bound`, `renew`, `nak`, `deconfig`… in small letters, as the program calls it.
    pub event: String,
    /// The client's address.
    pub address: String,
    /// Its netmask.
    pub mask: String,
    /// The default router.
    pub router: String,
    /// Name servers.
    pub dns: String,
    /// The domain.
    pub domain: String,
    /// The MTU.
    pub mtu: String,
    /// The client's name, as the server says it.
    pub hostname: String,
    /// Classless routes, each destination before its router.
    pub routes: String,
    /// The server's address.
    pub server: String,
    /// For how long, in seconds.
    pub lease_s: u32,
}

/// A client on one interface. Dropped, it is killed, and releases nothing.
#[derive(Debug)]
pub struct DhcpClient {
    kind: DhcpProgram,
    namespace: String,
    interface: String,
    hostname: String,
    dir: TempDir,
    running: Option<Program>,
    /// Events that were read.
    read: usize,
}

impl DhcpClient {
    /// A client that remembers nothing and does not run yet.
    ///
    /// # Errors
    /// Its files cannot be written.
    pub fn new(kind: DhcpProgram, namespace: &Netns, interface: &str, hostname: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-dhcp-").tempdir()?;
        let client = DhcpClient {
            kind,
            namespace: namespace.name().to_string(),
            interface: interface.to_string(),
            hostname: hostname.to_string(),
            dir,
            running: None,
            read: 0,
        };
        fs::create_dir(client.path("events"))?;
        fs::write(client.path("script"), script(&client.path("")))?;
        fs::set_permissions(client.path("script"), fs::Permissions::from_mode(0o755))?;
        // dhclient wants the file to be there, empty or not.
        fs::write(client.path("leases"), "")?;
        fs::write(client.path("conf"), conf(hostname))?;
        Ok(client)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Starts the program: dhclient with what it remembers, udhcpc asking for `address` if there is one.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self, namespace: &Netns, address: Option<&str>) -> Result<()> {
        ensure!(namespace.name() == self.namespace, "the client belongs to {}", self.namespace);
        self.running = None;
        let script = self.text("script");
        let program = match self.kind {
            DhcpProgram::Udhcpc => {
                let name = format!("hostname:{}", self.hostname);
                let mut args = vec!["udhcpc", "-f", "-i", &self.interface, "-s", &script, "-x", &name];
                args.extend(["-t", "20", "-T", "1", "-A", "1", "-O", "mtu", "-O", "staticroutes"]);
                args.extend(address.iter().flat_map(|address| ["-r", *address]));
                Program::start(namespace, "busybox", &args)?
            }
            DhcpProgram::Dhclient => {
                let files = self.dhclient_files();
                let mut args = vec!["-4", "-v", "-d"];
                args.extend(files.iter().map(String::as_str));
                args.push(&self.interface);
                Program::start(namespace, "dhclient", &args)?
            }
        };
        self.running = Some(program);
        Ok(())
    }

    fn dhclient_files(&self) -> Vec<String> {
        let pairs = [("-cf", "conf"), ("-lf", "leases"), ("-pf", "pid"), ("-sf", "script")];
        pairs.iter().flat_map(|(option, file)| [(*option).to_string(), self.text(file)]).collect()
    }

    /// Starts the program, and waits for what it is told with its address.
    ///
    /// # Errors
    /// It gets none within 40 s.
    pub fn obtain(&mut self, namespace: &Netns) -> Result<Told> {
        self.start(namespace, None)?;
        self.await_event(&["bound", "reboot"])
    }

    /// Every event so far, and those that were read, too.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn events(&self) -> Result<Vec<Told>> {
        let mut names: Vec<_> =
            fs::read_dir(self.path("events"))?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
        names.sort();
        names.iter().map(|path| self.parse(&fs::read_to_string(path)?)).collect()
    }

    /// Forgets the events so far: those that come are waited for.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn skip_events(&mut self) -> Result<()> {
        self.read = self.events()?.len();
        Ok(())
    }

    /// Waits for an event of one of these names after those that were waited for.
    ///
    /// # Errors
    /// There is none within 40 s.
    pub fn await_event(&mut self, names: &[&str]) -> Result<Told> {
        let mut read = self.read;
        let told = eventually(&format!("{:?} told of {names:?}", self.kind), LIMIT, || {
            for told in self.events()?.into_iter().skip(read) {
                read += 1;
                if names.contains(&told.event.as_str()) {
                    return Ok(Ok(told));
                }
            }
            Ok(Err(format!("{:?}; {}", self.events()?, self.log())))
        })?;
        self.read = read;
        Ok(told)
    }

    /// What the program has printed since it was started.
    pub fn log(&self) -> String {
        self.running.as_ref().map(Program::log).unwrap_or_default()
    }

    /// Has the program renew, and waits for what it is told. dhclient does by itself.
    ///
    /// # Errors
    /// It is not answered within 40 s.
    pub fn renew(&mut self) -> Result<Told> {
        self.skip_events()?;
        self.hurry()?;
        self.await_event(&["renew"])
    }

    /// Has the program renew, whatever comes of it. dhclient does by itself.
    ///
    /// # Errors
    /// It does not run.
    pub fn hurry(&self) -> Result<()> {
        match self.kind {
            DhcpProgram::Udhcpc => self.running()?.signal(Signal::USR1),
            DhcpProgram::Dhclient => Ok(()),
        }
    }

    /// Has the program give its address back.
    ///
    /// # Errors
    /// It does not run, or fails.
    pub fn release(&mut self, namespace: &Netns) -> Result<()> {
        match self.kind {
            DhcpProgram::Udhcpc => {
                self.skip_events()?;
                self.running()?.signal(Signal::USR2)?;
                self.await_event(&["deconfig"])?;
            }
            DhcpProgram::Dhclient => {
                let mut command = namespace.command("dhclient");
                command.args(["-4", "-r"]).args(self.dhclient_files()).arg(&self.interface);
                process::run(&mut command, LIMIT)?.ok().context("dhclient -r")?;
            }
        }
        Ok(())
    }

    /// Ends the program without a word to the server.
    pub fn kill(&mut self) {
        self.running = None;
    }

    fn running(&self) -> Result<&Program> {
        self.running.as_ref().context("the DHCP client does not run")
    }

    fn parse(&self, text: &str) -> Result<Told> {
        let mut values: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let mut take = |udhcpc: &str, dhclient: &str| {
            let name = if self.kind == DhcpProgram::Udhcpc { udhcpc } else { dhclient };
            values.remove(name).unwrap_or_default().trim().to_string()
        };
        let mut told = Told {
            event: take("event", "reason").to_ascii_lowercase(),
            address: take("ip", "new_ip_address"),
            mask: take("subnet", "new_subnet_mask"),
            router: take("router", "new_routers"),
            dns: take("dns", "new_domain_name_servers"),
            domain: take("domain", "new_domain_name"),
            mtu: take("mtu", "new_interface_mtu"),
            hostname: take("hostname", "new_host_name"),
            routes: take("staticroutes", "new_rfc3442_classless_static_routes"),
            server: take("serverid", "new_dhcp_server_identifier"),
            lease_s: take("lease", "new_dhcp_lease_time").parse().unwrap_or(0),
        };
        if self.kind == DhcpProgram::Dhclient {
            told.routes = routes(&told.routes)?;
        }
        Ok(told)
    }
}

/// The script that both programs run: busybox says what happened in its first argument, dhclient in `reason`.
///
/// The event is written down when the interface is as it says, beside its place and then moved there, so that nobody
/// reads half of it.
fn script(dir: &std::path::Path) -> String {
    let dir = dir.display();
    format!(
        "#!/bin/sh\n\
         cd {dir}\n\
         address=\n\
         case \"$1$reason\" in\n\
           bound|renew) address=$ip/$mask;;\n\
           BOUND|RENEW|REBIND|REBOOT) address=$new_ip_address/24;;\n\
           PREINIT) ip link set \"$interface\" up;;\n\
           deconfig|EXPIRE|FAIL|RELEASE|STOP) ip -4 address flush dev \"$interface\";;\n\
         esac\n\
         if [ \"$address\" ]; then\n\
           ip -4 address flush dev \"$interface\"\n\
           ip address add $address dev \"$interface\"\n\
           case \"$router$new_routers\" in\n\
             ?*) ip route replace default via $router$new_routers dev \"$interface\" onlink;;\n\
           esac\n\
         fi\n\
         new=$(ls events | wc -l)\n\
         {{ echo \"event=$1\"; env; }} >now; mv now events/$(printf %04d $new)\n"
    )
}

/// Times are shortened by the client, because no server gives a lease of seconds.
fn conf(hostname: &str) -> String {
    let rebinding = RENEWAL_S + 1;
    format!(
        "option rfc3442-classless-static-routes code 121 = array of unsigned integer 8;\n\
         send host-name \"{hostname}\";\n\
         request subnet-mask, routers, domain-name, domain-name-servers, interface-mtu, host-name,\n\
           rfc3442-classless-static-routes;\n\
         initial-interval 1; backoff-cutoff 2; reboot 3; retry 1;\n\
         supersede dhcp-renewal-time {RENEWAL_S}; supersede dhcp-rebinding-time {rebinding};\n"
    )
}

/// Reads RFC 3442 octets in decimal, and writes them as busybox does.
fn routes(octets: &str) -> Result<String> {
    let octets: Vec<u8> = octets.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let mut rest = octets.as_slice();
    let mut routes = Vec::new();
    while let [length, after @ ..] = rest {
        let significant = usize::from(length.div_ceil(8));
        let Some((destination, after)) = after.split_at_checked(significant) else {
            bail!("{octets:?} are no classless routes");
        };
        let Some((router, after)) = after.split_at_checked(4) else {
            bail!("{octets:?} are no classless routes");
        };
        let mut whole = [0u8; 4];
        whole.iter_mut().zip(destination).for_each(|(to, from)| *to = *from);
        let dotted = |octets: &[u8]| octets.iter().map(u8::to_string).collect::<Vec<_>>().join(".");
        routes.push(format!("{}/{length} {}", dotted(&whole), dotted(router)));
        rest = after;
    }
    Ok(routes.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_read_as_busybox_writes_them() {
        assert_eq!(
            routes("16 10 77 10 9 0 9 0 10 9 0 1").unwrap(),
            "10.77.0.0/16 10.9.0.9 0.0.0.0/0 10.9.0.1"
        );
        assert_eq!(routes("").unwrap(), "");
        assert!(routes("24 10 77").is_err());
        assert!(routes("0 10 9").is_err());
    }
}
