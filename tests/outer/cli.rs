//! The command line's contract: exit statuses, JSON, and refusals that change nothing.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, Suite, counters, process};
use serde_json::Value;

pub(crate) fn register(suite: &mut Suite) {
    suite.add("cli_usage_errors_exit_with_2", &[], usage_errors_exit_with_2);
    suite.add("cli_without_a_daemon_exits_with_3", &[], without_a_daemon_exits_with_3);
    suite.add("cli_what_does_not_exist_exits_with_4", &[], what_does_not_exist_exits_with_4);
    suite.add("cli_may_exist_accepts_only_the_same_values", &[], may_exist_accepts_only_the_same_values);
    suite.add("cli_if_exists_makes_del_idempotent", &[], if_exists_makes_del_idempotent);
    suite.add("cli_names_too_long_are_refused_before_anything_is_made", &[], names_too_long_are_refused);
    suite.add("cli_json_has_the_keys_of_the_contract", &[], json_has_the_keys_of_the_contract);
    suite.add("cli_double_dash_ends_options", &[], double_dash_ends_options);
}

fn usage_errors_exit_with_2() -> Result<()> {
    let daemon = Daemon::start()?;
    let cases: [&[&str]; 7] = [
        &["frobnicate"],
        &["net"],
        &["net", "add"],
        &["port", "add", "n"],
        &["--no-such-flag", "status"],
        &["--timeout", "soon", "status"],
        &["fdb", "add", "n", "p"],
    ];
    for case in cases {
        daemon.refused(2, case)?;
    }
    Ok(())
}

fn without_a_daemon_exits_with_3() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("ctl.sock");
    for verb in [vec!["status"], vec!["net", "list"], vec!["--json", "port", "stats"]] {
        let mut command = Command::new(harness::binary()?);
        let output = process::run(command.arg("--socket").arg(&socket).args(&verb), Duration::from_secs(10))?;
        ensure!(output.code == 3, "{verb:?}: {output:?}");
        ensure!(output.stdout.is_empty() && output.stderr.trim_end().lines().count() == 1, "{output:?}");
        ensure!(output.stderr.contains("ctl.sock"), "it does not say which socket: {output:?}");
    }
    Ok(())
}

fn what_does_not_exist_exits_with_4() -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    let cases: [&[&str]; 11] = [
        &["net", "show", "ghost"],
        &["net", "del", "ghost"],
        &["net", "set", "ghost", "ageing=60"],
        &["port", "add", "ghost", "p", "vhost-user:/tmp/weft-ghost.sock"],
        &["port", "list", "ghost"],
        &["port", "show", "ghost"],
        &["port", "stats", "ghost"],
        &["port", "set", "ghost", "isolated=on"],
        &["port", "del", "ghost"],
        &["fdb", "show", "ghost"],
        &["fdb", "add", "n", "ghost", "02:00:00:00:00:01"],
    ];
    for case in cases {
        let line = daemon.refused(4, case)?;
        ensure!(line.contains("ghost"), "{case:?} does not name it: {line}");
    }
    Ok(())
}

fn may_exist_accepts_only_the_same_values() -> Result<()> {
    let daemon = Daemon::start()?;
    let socket = daemon.path("p.sock");
    let kind = format!("vhost-user:{}", socket.display());
    daemon.ok("net add n mode=bridge ageing=60")?;
    daemon.ok(&format!("port add n p {kind} isolated=on"))?;

    daemon.refused(1, &["net", "add", "n", "mode=bridge", "ageing=60"])?;
    daemon.refused(1, &["port", "add", "n", "p", &kind, "isolated=on"])?;
    daemon.ok("net add --may-exist n mode=bridge ageing=60")?;
    daemon.ok(&format!("port add --may-exist n p {kind} isolated=on"))?;
    daemon.refused(1, &["net", "add", "--may-exist", "n", "mode=bridge", "ageing=61"])?;
    daemon.refused(1, &["port", "add", "--may-exist", "n", "p", &kind, "isolated=off"])?;
    daemon.refused(1, &["port", "add", "--may-exist", "n", "p", "vhost-user:/tmp/weft-other.sock"])?;

    let ports = daemon.json("port list")?;
    ensure!(ports.as_array().is_some_and(|list| list.len() == 1), "{ports}");
    Ok(())
}

fn if_exists_makes_del_idempotent() -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    daemon.ok(&format!("port add n p vhost-user:{}", daemon.path("p.sock").display()))?;
    ensure!(daemon.path("p.sock").exists(), "the port has no socket");
    daemon.ok("port del p")?;
    ensure!(!daemon.path("p.sock").exists(), "the deleted port's socket is still there");
    daemon.refused(4, &["port", "del", "p"])?;
    daemon.ok("port del --if-exists p")?;
    daemon.ok("net del n")?;
    daemon.refused(4, &["net", "del", "n"])?;
    daemon.ok("net del --if-exists n")?;
    Ok(())
}

fn names_too_long_are_refused() -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    let long_path = format!("vhost-user:/tmp/{}.sock", "x".repeat(107));
    for kind in ["tap:sixteen-bytes-xx", "netdev:sixteen-bytes-xx", &long_path] {
        daemon.refused(1, &["port", "add", "n", "p", kind])?;
        let ports = daemon.json("port list")?;
        ensure!(ports == Value::Array(Vec::new()), "something was made: {ports}");
    }
    // A host interface has the network's name, which must fit an interface then.
    daemon.refused(1, &["net", "add", "sixteen-bytes-xx", "mode=bridge", "host-if=on"])?;
    let networks = daemon.json("net list")?;
    ensure!(networks.as_array().is_some_and(|list| list.len() == 1), "something was made: {networks}");
    Ok(())
}

fn keys(value: &Value, wanted: &[&str]) -> Result<()> {
    let object = value.as_object().with_context(|| format!("no object: {value}"))?;
    for key in wanted {
        ensure!(object.contains_key(*key), "no key '{key}' in {value}");
    }
    Ok(())
}

fn only(value: &Value) -> Result<&Value> {
    match value.as_array().map(Vec::as_slice) {
        Some([one]) => Ok(one),
        _ => anyhow::bail!("expected an array of one: {value}"),
    }
}

fn json_has_the_keys_of_the_contract() -> Result<()> {
    let daemon = Daemon::start()?;
    ensure!(daemon.json("net list")? == Value::Array(Vec::new()), "a fresh daemon has networks");
    ensure!(daemon.json("status")?.is_object(), "status is no object");
    daemon.ok("net add n mode=bridge")?;
    daemon
        .ok(&format!("port add n p vhost-user:{} mac=02:00:00:00:00:aa", daemon.path("p.sock").display()))?;
    daemon.ok("fdb add n p 02:00:00:00:00:01")?;

    let networks = daemon.json("net list")?;
    let network = only(&networks)?;
    keys(network, &["name", "mode", "ports", "state"])?;
    ensure!(network["name"] == "n" && network["mode"] == "bridge", "{network}");
    ensure!(daemon.json("net show n")?["name"] == "n", "net show");

    let ports = daemon.json("port list n")?;
    let port = only(&ports)?;
    keys(port, &["name", "network", "kind", "mac", "ip", "state", "mtu", "queues"])?;
    ensure!(port["name"] == "p" && port["network"] == "n" && port["state"] == "waiting", "{port}");
    ensure!(port["mac"] == "02:00:00:00:00:aa" && port["ip"].is_array(), "{port}");
    ensure!(daemon.json("port show p")?["name"] == "p", "port show");

    ensure!(daemon.json("port stats p")?.is_object(), "port stats PORT is no object");
    ensure!(daemon.json("port stats")?.is_array(), "port stats is no array");
    let counted = counters(&daemon, "p")?;
    ensure!(counted.rx_frames == 0 && counted.tx_frames == 0, "{counted:?}");

    let table = daemon.json("fdb show n")?;
    let entries = table.as_array().context("fdb show is no array")?;
    let entry =
        entries.iter().find(|entry| entry["mac"] == "02:00:00:00:00:01").context("no static entry")?;
    keys(entry, &["mac", "vlan", "port", "age_s", "static"])?;
    ensure!(entry["port"] == "p" && entry["static"] == true, "{entry}");
    Ok(())
}

fn double_dash_ends_options() -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.ok("net add --may-exist -- n mode=bridge")?;
    daemon.ok("net del --if-exists -- n")?;
    Ok(())
}
