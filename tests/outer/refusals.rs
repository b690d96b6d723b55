//! Wrong networks, ports, forwards and leases: each is refused in one line that names what is wrong, and nothing has
//! changed, neither in the switch nor on the host. The same in a configuration file: the daemon does not start.

mod cases;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Daemon, DaemonOptions, Need, Netns, Suite, process};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("nft")];

pub(crate) fn register(suite: &mut Suite) {
    suite.add("refusals_of_networks_name_the_thing_and_change_nothing", NEEDS, || refused(cases::NETWORKS));
    suite.add("refusals_of_changes_name_the_thing_and_change_nothing", NEEDS, || refused(cases::CHANGES));
    suite.add("refusals_of_ports_name_the_thing_and_change_nothing", NEEDS, || refused(cases::PORTS));
    suite.add("refusals_of_forwards_name_the_thing_and_change_nothing", NEEDS, || refused(cases::FORWARDS));
    suite.add("refusals_of_leases_name_the_thing_and_change_nothing", NEEDS, || refused(cases::LEASES));
    suite.add("refusals_of_configuration_files_leave_nothing", NEEDS, files);
    suite.add("refusals_of_a_file_after_a_crash_put_the_host_back", NEEDS, after_a_crash);
    suite.add("refusals_of_files_read_again_change_nothing", NEEDS, read_again);
}

/// What is there, of every mode, before something wrong is said.
const PRESENT: &str = r#"
[network.br]
mode = "bridge"
uplink = "eth1"

[network.r1]
mode = "routed"
subnet = "10.7.0.0/24"
subnet6 = "fd00:7::/64"
dhcp = "10.7.0.100-10.7.0.110"
lease = ["02:00:00:00:00:99 10.7.0.99"]

[network.n1]
mode = "nat"
subnet = "192.168.122.0/24"
egress = "host"
forward = ["tcp 8080 192.168.122.10:80"]

[network.i1]
mode = "internal"
subnet = "10.8.0.0/24"

[port.p1]
network = "br"
kind = "tap:tp1"
mac = "02:00:00:00:00:01"

[port.g1]
network = "r1"
kind = "tap:tg1"
ip = "10.7.0.10,fd00:7::10"
routes = "172.16.0.0/24"
"#;

/// A host with interfaces: `eth1` to `eth3` are free, `eth4` is a bridge's.
fn host() -> Result<Netns> {
    let host = Netns::new("host")?;
    host.enable_ipv6()?;
    // What the networks' own routers say to taps that no guest took would change the host by and by.
    host.run(
        "echo 0 >/proc/sys/net/ipv6/conf/default/accept_ra
         for n in 1 2 3 4; do
           ip link add eth$n type veth peer name peer$n
           ip link set eth$n up; ip link set peer$n up
         done
         ip link add br9 type bridge; ip link set eth4 master br9
         ip address add 198.51.100.1/24 dev eth3; ip route add default via 198.51.100.254",
    )?;
    Ok(host)
}

/// The host, as it is shown: interfaces without what changes by itself, addresses, routes, rules.
fn shown(host: &Netns) -> Result<String> {
    host.run(
        "ip -o link | sed 's/ state [A-Z]*//'; ip -o address | grep -v ' fe80:'; ip route show table all
         ip -6 route show table all | grep -v fe80; ip rule; nft list ruleset
         cd /proc/sys/net; cat ipv4/ip_forward ipv6/conf/all/forwarding; ls ipv4/conf",
    )
}

/// The switch, as it is shown.
fn described(daemon: &Daemon) -> Result<String> {
    let mut all = Vec::new();
    for verb in ["net list", "port list", "forward list", "lease list", "fdb show br"] {
        let mut value = daemon.json(verb)?;
        forget_what_changes(&mut value);
        all.push(format!("{verb}: {value}"));
    }
    let status = daemon.json("status")?;
    for key in ["networks", "ports", "pid"] {
        all.push(format!("{key}: {}", status[key]));
    }
    Ok(all.join("\n"))
}

/// Leaves out how old things are, and addresses that were learned.
fn forget_what_changes(value: &mut Value) {
    match value {
        Value::Array(values) => {
            values.retain(|value| value.get("static") != Some(&Value::Bool(false)));
            values.iter_mut().for_each(forget_what_changes);
        }
        Value::Object(map) => {
            map.retain(|key, _| !matches!(key.as_str(), "age_s" | "expires_s"));
            map.values_mut().for_each(forget_what_changes);
        }
        _ => {}
    }
}

fn same(before: &str, after: &str) -> Result<()> {
    let lost: Vec<&str> = before.lines().filter(|line| !after.lines().any(|other| other == *line)).collect();
    let new: Vec<&str> = after.lines().filter(|line| !before.lines().any(|other| other == *line)).collect();
    ensure!(before == after, "something changed: {lost:#?} became {new:#?}");
    Ok(())
}

/// One wrong call, and what its one line must name.
type Case = (&'static str, &'static [&'static str]);

/// The one line of a refusal names each of `names`.
fn check_line(line: &str, names: &[&str]) -> Result<()> {
    for name in names {
        ensure!(line.contains(name), "it does not name '{name}': {line}");
    }
    Ok(())
}

/// A host, and the daemon on it with what is there.
fn begin() -> Result<(Netns, Daemon, String, String)> {
    let host = host()?;
    let daemon = DaemonOptions::default().netns(&host).config(PRESENT).start()?;
    let before = (described(&daemon)?, shown(&host)?);
    Ok((host, daemon, before.0, before.1))
}

fn refused(cases: &[Case]) -> Result<()> {
    let (mut host, mut daemon, mut switch, mut around) = begin()?;
    let mut wrong = Vec::new();
    for (call, names) in cases {
        let words: Vec<&str> = call.split_whitespace().collect();
        let checked = daemon.refused(1, &words).and_then(|line| check_line(&line, names)).and_then(|()| {
            same(&switch, &described(&daemon)?)?;
            same(&around, &shown(&host)?)
        });
        if let Err(error) = checked {
            wrong.push(format!("weft {call}: {error:#}"));
            // The next one is wrong by itself.
            (host, daemon, switch, around) = begin()?;
        }
    }
    ensure!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    Ok(())
}

/// Starts a daemon that must not start; the one line that says why.
fn does_not_start(host: &Netns, dir: &TempDir, config: &str) -> Result<String> {
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("weft.toml"), config)?;
    let mut command: Command = host.command(harness::binary()?);
    command.env("WEFT_LOG", "error").arg("daemon").arg("--socket").arg(path("ctl.sock"));
    command.arg("--state-dir").arg(path("state")).arg("--config").arg(path("weft.toml"));
    let output = process::run(&mut command, Duration::from_secs(20)).context("it started");
    if output.is_err() {
        // It was killed: what it leaves is not at fault.
        let _ = std::fs::remove_file(path("ctl.sock"));
    }
    let output = output?;
    ensure!(output.code == 1, "exit status {}: {output:?}", output.code);
    ensure!(output.stdout.is_empty() && output.stderr.trim_end().lines().count() == 1, "{output:?}");
    ensure!(!path("ctl.sock").exists(), "its socket is left");
    let journal = std::fs::read_to_string(path("state").join("host.journal")).unwrap_or_default();
    ensure!(journal.is_empty(), "its journal is left: {journal}");
    Ok(output.stderr)
}

/// A host that a crash left half changed is put back also by a daemon that its file keeps from starting.
fn after_a_crash() -> Result<()> {
    let host = host()?;
    let before = shown(&host)?;
    let mut daemon = DaemonOptions::default().netns(&host).config(PRESENT).start()?;
    ensure!(shown(&host)? != before, "nothing was changed");
    daemon.kill();
    let left = shown(&host)?;
    ensure!(left.contains("weft"), "nothing is left of the masquerade table: {left}");
    std::fs::write(daemon.config_path(), "[network.x]\nmode = \"magic\"\n")?;
    ensure!(daemon.restart().is_err(), "it started");
    ensure!(daemon.log().contains("magic"), "{}", daemon.log());
    // The test asked for this end.
    std::fs::write(daemon.config_path(), PRESENT)?;
    same(&before, &shown(&host)?)?;
    daemon.restart()
}

fn files() -> Result<()> {
    let host = host()?;
    let dir = tempfile::tempdir()?;
    let before = shown(&host)?;
    let mut wrong = Vec::new();
    for (text, names) in cases::FILES {
        // What is right in the file is done first, and must be undone.
        let config = format!("{PRESENT}\n{text}");
        let checked = does_not_start(&host, &dir, &config)
            .and_then(|line| check_line(&line, names))
            .and_then(|()| same(&before, &shown(&host)?));
        if let Err(error) = checked {
            wrong.push(format!("{text}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases::FILES.len(), wrong.join("\n"));
    // The same file without them starts.
    let daemon = DaemonOptions::default().netns(&host).config(PRESENT).start()?;
    let networks = daemon.json("net list")?;
    match networks.as_array() {
        Some(list) if list.len() == 4 => Ok(()),
        _ => bail!("{networks}"),
    }
}

fn read_again() -> Result<()> {
    let (host, daemon, switch, around) = begin()?;
    for (text, names) in cases::FILES {
        let from = daemon.log().len();
        std::fs::write(daemon.config_path(), format!("{PRESENT}\n{text}"))?;
        daemon.signal(Signal::HUP)?;
        harness::eventually("the file read again", Duration::from_secs(20), || {
            let log = daemon.log();
            let new = log.get(from..).unwrap_or_default();
            let done = new.contains("was not read again") || new.contains("configuration read again");
            Ok(if done { Ok(()) } else { Err(new.to_string()) })
        })?;
        let log = daemon.log();
        let new = log.get(from..).unwrap_or_default();
        let line = new.lines().find(|line| line.contains("ERROR")).unwrap_or_default();
        check_line(line, names).with_context(|| text.to_string())?;
        same(&switch, &described(&daemon)?).with_context(|| text.to_string())?;
        same(&around, &shown(&host)?).with_context(|| text.to_string())?;
    }
    Ok(())
}
