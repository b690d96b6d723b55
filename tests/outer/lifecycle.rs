//! The daemon's own life: start, end, a second one, a stale socket, its configuration file, and a hostile ctl client.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, DaemonOptions, Need, Netns, Suite, eventually, process};
use rustix::process::Signal;

const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn register(suite: &mut Suite) {
    suite.add("daemon_sigterm_ends_cleanly_and_leaves_no_sockets", &[], sigterm_leaves_no_sockets);
    suite.add("daemon_sigterm_takes_its_taps_away", &[Need::Namespaces], sigterm_takes_its_taps_away);
    suite.add("daemon_second_on_a_live_socket_is_refused", &[], second_on_a_live_socket_is_refused);
    suite.add("daemon_second_on_a_live_state_directory_is_refused", &[], second_on_a_live_state_is_refused);
    suite.add("daemon_replaces_stale_sockets_after_a_crash", &[], replaces_stale_sockets);
    suite.add("daemon_refuses_to_remove_what_is_no_socket", &[], refuses_to_remove_what_is_no_socket);
    suite.add("daemon_socket_is_closed_to_others", &[], socket_is_closed_to_others);
    suite.add("daemon_reads_its_configuration", &[], reads_its_configuration);
    suite.add("daemon_refuses_a_wrong_configuration_whole", &[], refuses_a_wrong_configuration);
    suite.add("daemon_sighup_changes_only_what_changed", &[], sighup_changes_only_what_changed);
    suite.add("daemon_sighup_with_a_wrong_file_changes_nothing", &[], sighup_with_a_wrong_file);
    suite.add("daemon_tells_systemd_when_it_is_ready", &[], tells_systemd);
    suite.add("ctl_socket_survives_hostile_clients", &[], survives_hostile_clients);
}

fn sigterm_leaves_no_sockets() -> Result<()> {
    let mut daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    daemon.ok(&format!("port add n p vhost-user:{}", daemon.path("p.sock").display()))?;
    ensure!(daemon.path("p.sock").exists() && daemon.socket().exists(), "a socket is missing");
    let code = daemon.terminate()?;
    ensure!(code == 0, "exit status {code} after SIGTERM");
    for left in [daemon.path("p.sock"), daemon.socket()] {
        ensure!(!left.exists(), "{} is still there", left.display());
    }
    Ok(())
}

fn sigterm_takes_its_taps_away() -> Result<()> {
    let host = Netns::new("host")?;
    let mut daemon = Daemon::start_in(&host)?;
    daemon.ok("net add n mode=bridge host-if=on")?;
    daemon.ok("port add n t0 tap:wefttap0")?;
    let there = host.interfaces()?;
    ensure!(there.contains(&"wefttap0".to_string()) && there.contains(&"n".to_string()), "{there:?}");
    ensure!(daemon.terminate()? == 0, "not a clean end");
    let left = host.interfaces()?;
    ensure!(left == ["lo"], "left behind: {left:?}");
    Ok(())
}

/// `weft daemon` that must end by itself with status 1 and one line of explanation.
fn refused_daemon(args: &[&std::ffi::OsStr]) -> Result<String> {
    let output = process::run(Command::new(harness::binary()?).arg("daemon").args(args), LIMIT)?;
    ensure!(output.code == 1, "{output:?}");
    Ok(output.stderr)
}

fn second_on_a_live_socket_is_refused() -> Result<()> {
    let daemon = Daemon::start()?;
    let (socket, state) = (daemon.socket(), daemon.path("other-state"));
    let told =
        refused_daemon(&["--socket".as_ref(), socket.as_ref(), "--state-dir".as_ref(), state.as_ref()])?;
    ensure!(told.contains("ctl.sock"), "it does not say which socket: {told}");
    daemon.ok("status")?;
    Ok(())
}

fn second_on_a_live_state_is_refused() -> Result<()> {
    let daemon = Daemon::start()?;
    let (socket, state) = (daemon.path("other.sock"), daemon.state_dir());
    let told =
        refused_daemon(&["--socket".as_ref(), socket.as_ref(), "--state-dir".as_ref(), state.as_ref()])?;
    ensure!(told.contains("state"), "it does not say which directory: {told}");
    ensure!(!socket.exists(), "the refused daemon left its socket");
    daemon.ok("status")?;
    Ok(())
}

fn replaces_stale_sockets() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let kind = format!("vhost-user:{}", daemon.path("p.sock").display());
    daemon.ok("net add --may-exist n mode=bridge")?;
    daemon.ok(&format!("port add --may-exist n p {kind}"))?;
    daemon.kill();
    ensure!(daemon.socket().exists() && daemon.path("p.sock").exists(), "no stale socket to replace");
    daemon.restart()?;
    daemon.ok("net add --may-exist n mode=bridge")?;
    daemon.ok(&format!("port add --may-exist n p {kind}"))?;
    let connected = UnixStream::connect(daemon.path("p.sock"));
    ensure!(connected.is_ok(), "nobody listens on the port's socket: {connected:?}");
    Ok(())
}

fn refuses_to_remove_what_is_no_socket() -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    let precious = daemon.path("precious");
    fs::write(&precious, "data")?;
    let port = format!("vhost-user:{}", precious.display());
    let outcome = daemon.weft(&["port", "add", "n", "p", &port])?;
    // It may refuse the port, or keep it in error; it may not touch the file.
    if outcome.code == 0 {
        ensure!(daemon.port("p")?["state"] == "error", "{}", daemon.port("p")?);
    }
    ensure!(fs::read_to_string(&precious)? == "data", "the file was replaced");
    Ok(())
}

fn socket_is_closed_to_others() -> Result<()> {
    let daemon = Daemon::start()?;
    let meta = fs::metadata(daemon.socket())?;
    ensure!(meta.file_type().is_socket(), "the ctl socket is no socket");
    let mode = meta.permissions().mode() & 0o777;
    ensure!(mode & 0o007 == 0, "the ctl socket's mode is {mode:o}");
    let state = fs::metadata(daemon.state_dir())?.permissions().mode() & 0o777;
    ensure!(state & 0o022 == 0, "the state directory's mode is {state:o}");
    Ok(())
}

fn configuration(dir: &std::path::Path, ports: &[(&str, &str)]) -> String {
    let mut text = String::from("[network.n]\nmode = \"bridge\"\nageing = 60\n");
    for (name, more) in ports {
        text.push_str(&format!(
            "\n[port.\"{name}\"]\nnetwork = \"n\"\nkind = \"vhost-user:{}/{name}.sock\"\n{more}\n",
            dir.display()
        ));
    }
    text
}

fn names(daemon: &Daemon) -> Result<Vec<String>> {
    let list = daemon.json("port list")?;
    let mut names: Vec<String> = list
        .as_array()
        .context("port list")?
        .iter()
        .filter_map(|port| port["name"].as_str().map(str::to_string))
        .collect();
    names.sort();
    Ok(names)
}

fn reads_its_configuration() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let text = configuration(dir.path(), &[("vif1.0", "mac = \"00:16:3e:01:02:03\""), ("vif2.0", "")]);
    let daemon = DaemonOptions::default().config(text).start()?;
    ensure!(names(&daemon)? == ["vif1.0", "vif2.0"], "{}", daemon.json("port list")?);
    ensure!(daemon.port("vif1.0")?["mac"] == "00:16:3e:01:02:03", "{}", daemon.port("vif1.0")?);
    ensure!(dir.path().join("vif1.0.sock").exists(), "the configured port has no socket");
    Ok(())
}

fn refuses_a_wrong_configuration() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("weft.toml");
    let good = configuration(dir.path(), &[("p", "")]);
    let cases = [
        (format!("{good}colour = \"red\"\n"), "colour"),
        (good.replace("network = \"n\"", "network = \"ghost\""), "ghost"),
        (good.replace("\"bridge\"", "\"bridgee\""), "bridgee"),
        (format!("{good}]["), "weft.toml"),
    ];
    for (text, word) in cases {
        fs::write(&file, &text)?;
        let socket = dir.path().join("ctl.sock");
        let state = dir.path().join("state");
        let told = refused_daemon(&[
            "--config".as_ref(),
            file.as_ref(),
            "--socket".as_ref(),
            socket.as_ref(),
            "--state-dir".as_ref(),
            state.as_ref(),
        ])?;
        ensure!(told.contains(word), "it does not name '{word}': {told}");
        ensure!(!dir.path().join("p.sock").exists(), "half of a wrong configuration was made");
    }
    Ok(())
}

fn sighup_changes_only_what_changed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let text = configuration(dir.path(), &[("kept", ""), ("gone", "")]);
    let daemon = DaemonOptions::default().config(text).start()?;
    let inode = |name: &str| -> Result<u64> { Ok(fs::metadata(dir.path().join(name))?.ino()) };
    let before = inode("kept.sock")?;

    let text = configuration(dir.path(), &[("kept", ""), ("new", "isolated = true")]);
    fs::write(daemon.config_path(), text)?;
    daemon.signal(Signal::HUP)?;
    eventually("the changed configuration", LIMIT, || {
        let ports = names(&daemon)?;
        Ok(if ports == ["kept", "new"] { Ok(()) } else { Err(format!("{ports:?}")) })
    })?;
    ensure!(inode("kept.sock")? == before, "the port that did not change was made anew");
    ensure!(!dir.path().join("gone.sock").exists(), "the removed port's socket is still there");
    ensure!(dir.path().join("new.sock").exists(), "the new port has no socket");
    Ok(())
}

fn sighup_with_a_wrong_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let text = configuration(dir.path(), &[("kept", "")]);
    let mut daemon = DaemonOptions::default().config(text).start()?;
    let logged = daemon.log().len();
    fs::write(daemon.config_path(), configuration(dir.path(), &[("new", "colour = \"red\"")]))?;
    daemon.signal(Signal::HUP)?;
    eventually("a line in the log", LIMIT, || {
        let log = daemon.log();
        let new = log.get(logged..).unwrap_or_default();
        Ok(if new.contains("colour") { Ok(()) } else { Err(new.to_string()) })
    })?;
    ensure!(daemon.runs()?, "a wrong file ended the daemon");
    ensure!(names(&daemon)? == ["kept"], "{:?}", names(&daemon)?);
    Ok(())
}

fn tells_systemd() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("notify");
    let notified = UnixDatagram::bind(&path)?;
    notified.set_read_timeout(Some(LIMIT))?;
    let mut daemon = DaemonOptions::default().env("NOTIFY_SOCKET", path.display().to_string()).start()?;
    let await_message = |wanted: &str| -> Result<()> {
        let mut buffer = [0u8; 1024];
        loop {
            let length = notified.recv(&mut buffer).with_context(|| format!("no {wanted}"))?;
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == wanted) {
                return Ok(());
            }
        }
    };
    await_message("READY=1")?;
    ensure!(daemon.terminate()? == 0, "not a clean end");
    await_message("STOPPING=1")
}

fn survives_hostile_clients() -> Result<()> {
    let daemon = Daemon::start()?;
    let connect = || -> Result<UnixStream> {
        let stream = UnixStream::connect(daemon.socket())?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(stream)
    };
    // Held open, silent or in the middle of a message, for the whole test.
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut stream = connect()?;
        stream.write_all(b"{\"method\":\"")?;
        held.push(stream);
        held.push(connect()?);
    }
    let pid = daemon.pid();
    let resident = || -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
    };
    let before = resident()?;
    let messages: [Vec<u8>; 7] = [
        vec![0],
        vec![0; 4096],
        b"{}\0".to_vec(),
        b"[[[[[[[[[[[[[[[[[[[[[[\0".to_vec(),
        [vec![b'['; 200_000], vec![0]].concat(),
        b"{\"method\":\"no.such.Method\",\"parameters\":{\"x\":1e999}}\0".to_vec(),
        (0..=255).cycle().take(65_536).collect(),
    ];
    for message in &messages {
        let mut stream = connect()?;
        // The daemon may hang up in the middle: that is its right.
        let _ = stream.write_all(message);
        let _ = stream.read(&mut [0; 4096]);
        daemon.ok("status")?;
    }
    // A message without an end, 64 MiB of it: refused or ignored, not collected.
    let mut stream = connect()?;
    let block = [b'x'; 65_536];
    for _ in 0..1024 {
        if stream.write_all(&block).is_err() {
            break;
        }
    }
    daemon.ok("status")?;
    let grown = resident()?.saturating_sub(before);
    ensure!(grown < 32 * 1024, "the daemon has grown by {grown} KiB");
    drop(held);
    daemon.ok("status")?;
    Ok(())
}
