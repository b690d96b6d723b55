//! The names of a network: its guests, its gateway, what the configuration says, over UDP and TCP.

use anyhow::{Context, Result, ensure};
use harness::{DhcpProgram, Need, Suite, eventually};

use crate::lan::{GATEWAY, LAN, LIMIT, Lan, Mode, Station};

pub(crate) const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Dig];

pub(crate) fn register(suite: &mut Suite) {
    for mode in Mode::ALL {
        let name = format!("guests_find_each_other_by_name_on_a_{}_network", mode.name());
        suite.add(name, NEEDS, move || guests(mode));
    }
    suite.add("configured_names_and_kept_ones_are_answered", NEEDS, configured);
    suite.add("a_guest_cannot_take_anothers_name", NEEDS, taken);
}

/// What `dig` was told: the status, whether the answer was cut, and the data of its answer section, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) truncated: bool,
    pub(crate) data: Vec<String>,
}

impl Answer {
    pub(crate) fn status(status: &str) -> Self {
        Answer { status: status.into(), truncated: false, data: Vec::new() }
    }
}

impl Station {
    /// Gets an address by DHCP under a name, and asks the gateway for names from then on. The address.
    pub(crate) fn join(&self, hostname: &str) -> Result<String> {
        let told = self.client(DhcpProgram::Udhcpc, hostname)?.obtain(&self.namespace)?;
        self.namespace.set_resolver(&format!("nameserver {}\nsearch {}\n", told.dns, told.domain))?;
        Ok(told.address)
    }

    /// Asks by `dig`, with its options and question in one line. Fails only where no answer comes.
    pub(crate) fn dig(&self, question: &str) -> Result<Answer> {
        let told = self.run(&format!("dig +tries=3 +time=5 +noall +comments +answer {question}"))?;
        let header = told.lines().find(|line| line.contains("status: ")).with_context(|| told.clone())?;
        let status = header.split_once("status: ").and_then(|(_, rest)| rest.split(',').next());
        let flags = told.lines().find(|line| line.starts_with(";; flags:")).with_context(|| told.clone())?;
        let flags = flags.split(';').nth(2).unwrap_or_default();
        let records = told.lines().filter(|line| !line.starts_with(';') && !line.trim().is_empty());
        let mut data: Vec<String> =
            records.map(|line| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ")).collect();
        data.sort();
        Ok(Answer {
            status: status.unwrap_or_default().to_string(),
            truncated: flags.split_whitespace().any(|flag| flag == "tc"),
            data,
        })
    }

    /// Asks for one thing, which must be known.
    pub(crate) fn resolves(&self, question: &str, expected: &[&str]) -> Result<()> {
        let answer = self.dig(question)?;
        ensure!(
            answer.status == "NOERROR" && answer.data == expected,
            "dig {question}: {answer:?}, not {expected:?}"
        );
        Ok(())
    }
}

fn guests(mode: Mode) -> Result<()> {
    let lan = Lan::new(&format!("{} dhcp=10.9.0.50-10.9.0.99 dns=on domain=lab.test", mode.words()))?;
    let (a, b) = (lan.station("t0", "")?, lan.station("t1", "")?);
    let mut client = a.client(DhcpProgram::Udhcpc, "alpha")?;
    let alpha = client.obtain(&a.namespace)?.address;
    let beta = b.join("beta")?;
    for over in ["", "+tcp"] {
        b.resolves(&format!("{over} alpha.lab.test A"), &[&alpha])?;
        b.resolves(&format!("{over} ALPHA.Lab.Test A"), &[&alpha])?;
        b.resolves(&format!("{over} alpha A"), &[&alpha])?;
        b.resolves(&format!("{over} beta.lab.test A"), &[&beta])?;
        b.resolves(&format!("{over} gateway.lab.test A"), &[GATEWAY])?;
        b.resolves(&format!("{over} -x {alpha}"), &["alpha.lab.test."])?;
        // The name is there, with no address of this family.
        b.resolves(&format!("{over} alpha.lab.test AAAA"), &[])?;
        let nobody = b.dig(&format!("{over} nobody.lab.test A"))?;
        ensure!(nobody == Answer::status("NXDOMAIN"), "{nobody:?}");
        let nobody = b.dig(&format!("{over} -x 10.9.0.98"))?;
        ensure!(nobody == Answer::status("NXDOMAIN"), "{nobody:?}");
    }
    // By the C library, as programs ask.
    for name in ["alpha", "alpha.lab.test"] {
        let told = b.run(&format!("getent ahostsv4 {name}"))?;
        ensure!(told.starts_with(&alpha), "getent of {name}: {told}");
    }
    let told = b.run(&format!("getent hosts {alpha}"))?;
    ensure!(told.contains("alpha.lab.test"), "{told}");
    b.run("ping -c 1 -W 5 alpha")?;
    ensure!(b.namespace.try_run("getent hosts nobody")?.code == 2, "nobody was found");

    // A client says that it goes and is gone: what it says is not to wait for the gateway's Ethernet address.
    a.await_reach(GATEWAY)?;
    client.release(&a.namespace)?;
    eventually("the name gone with its lease", LIMIT, || {
        let answer = b.dig("alpha.lab.test A")?;
        Ok(if answer == Answer::status("NXDOMAIN") { Ok(()) } else { Err(format!("{answer:?}")) })
    })
}

fn configured() -> Result<()> {
    let config = "[network.lan0]\nmode = \"nat\"\negress = \"host\"\nsubnet = \"10.9.0.0/24\"\n\
         subnet6 = \"fd00:9::/64\"\ndhcp = \"10.9.0.50-10.9.0.99\"\ndomain = \"lab.test\"\n\
         lease = [\"52:54:00:00:00:11 10.9.0.30 web\"]\n\
         host = [\"printer 10.9.0.5\", \"printer fd00:9::5\"]\n\n\
         [port.v0]\nnetwork = \"lan0\"\nkind = \"netdev:v0\"\n\n\
         [port.v1]\nnetwork = \"lan0\"\nkind = \"netdev:v1\"\n";
    let mut stations = Vec::new();
    let lan = Lan::configured(config, |host| {
        host.enable_ipv6()?;
        for name in ["v0", "v1"] {
            stations.push(Station::veth(host, name)?);
        }
        stations[0].run("ip link set eth0 address 52:54:00:00:00:11")?;
        Ok(())
    })?;
    lan.daemon.await_port("v0", "up")?;
    lan.daemon.await_port("v1", "up")?;
    let [web, b] = &stations[..] else { anyhow::bail!("two stations") };
    // What it calls itself does not count.
    web.join("mail")?;
    b.join("beta")?;
    b.resolves("web.lab.test A", &["10.9.0.30"])?;
    b.resolves("-x 10.9.0.30", &["web.lab.test."])?;
    ensure!(b.dig("mail.lab.test A")?.status == "NXDOMAIN", "{:?}", b.dig("mail.lab.test A")?);
    for name in ["printer.lab.test", "printer"] {
        b.resolves(&format!("{name} A"), &["10.9.0.5"])?;
        b.resolves(&format!("{name} AAAA"), &["fd00:9::5"])?;
    }
    b.resolves("-x 10.9.0.5", &["printer.lab.test."])?;
    b.resolves("-x fd00:9::5", &["printer.lab.test."])?;
    b.resolves("gateway.lab.test AAAA", &["fd00:9::1"])?;
    Ok(())
}

fn taken() -> Result<()> {
    let lan =
        Lan::new(&format!("{} dhcp=10.9.0.50-10.9.0.99 dns=on domain=lab.test", Mode::Internal.words()))?;
    let stations = ["t0", "t1", "t2"].map(|port| lan.station(port, ""));
    let [a, b, c] = stations;
    let (a, b, c) = (a?, b?, c?);
    let alpha = a.join("alpha")?;
    b.join("alpha")?;
    c.join("gateway")?;
    c.resolves("alpha.lab.test A", &[&alpha])?;
    c.resolves("gateway.lab.test A", &[GATEWAY])?;
    // An address without a name of its own has none.
    let listed = lan.daemon.json(&format!("lease list {LAN}"))?;
    let named =
        listed.as_array().context("an array")?.iter().filter(|lease| lease["hostname"] == "alpha").count();
    ensure!(named == 1, "{listed}");
    Ok(())
}
