//! The command line against a fake switch: exit statuses, lines on standard error, and the JSON that scripts rely on.

mod common;
#[path = "common/shell.rs"]
mod shell;

use common::Daemon;
use ctl::cli::{DaemonOptions, DemoOptions, Environment, Poll};
use serde_json::{Value, json};
use shell::{Asked, Shell, environment, run_in};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(|key| &**key).collect()
}

#[test]
fn networks_and_ports_come_change_and_go() {
    let shell = Shell::new();
    assert_eq!(shell.weft("--json net list").json(), json!([]));
    assert_eq!(shell.weft("net list").ok(), "");
    shell.weft("net add lan mode=bridge uplink=eth0 mtu=9000").ok();
    shell.weft("net add lan").failed(1, "network lan exists already");
    shell.weft("net add --may-exist lan").failed(1, "exists already");
    shell.weft("net add --may-exist lan uplink=eth0 mtu=9000 host-if=off ageing=300").ok();
    shell.weft("net add --may-exist -- lan uplink=eth0 mtu=9000").ok();
    assert_eq!(shell.weft("--json net add wan").json(), json!({}));
    shell.weft("net set lan mtu= ageing=60").ok();
    shell.weft("net set lan mode=nat").failed(1, "and add it again");
    shell.weft("net set none mtu=1500").failed(4, "there is no network 'none'");

    shell
        .weft("port add lan vif1.0 vhost-user:vif1.sock mac=00:16:3E:01:02:03 ip=10.0.0.2,fd00::2 queues=2")
        .ok();
    shell.weft("port add lan tap0 tap:t0 isolated=on vlan=7 rate=1MB/s@20ms").ok();
    shell.weft("port add none tap1 tap:t1").failed(4, "there is no network 'none'");
    shell.weft("port add wan tap1 tap:t0").failed(1, "interface t0 is taken");
    shell.weft("port add lan tap0 tap:t0").failed(1, "port tap0 exists already");
    shell.weft("port add --may-exist lan tap0 tap:t0 isolated=on vlan=7 rate=8Mb/s@20ms").ok();
    shell.weft("port add --may-exist lan tap0 tap:t0 isolated=on vlan=8").failed(1, "exists already");

    assert_eq!(
        shell.weft("--json port list").json(),
        json!([
            { "name": "tap0", "network": "lan", "kind": "tap:t0", "mac": null, "ip": [], "state": "error",
              "reason": "the tap is gone", "mtu": 1500, "queues": 1 },
            { "name": "vif1.0", "network": "lan", "kind": "vhost-user:/the/cwd/vif1.sock",
              "mac": "00:16:3e:01:02:03", "ip": ["10.0.0.2", "fd00::2"], "state": "waiting", "mtu": 1500, "queues": 2 },
        ])
    );
    assert_eq!(shell.weft("--json port list wan").json(), json!([]));
    shell.weft("port list none").failed(4, "there is no network 'none'");
    let table = shell.weft("port list lan").out;
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("NAME    NETWORK  KIND"), "{table}");
    assert!(lines[1].contains("error (the tap is gone)") && lines.len() == 3, "{table}");

    let list = shell.weft("--json net list").json();
    assert_eq!(list[0]["name"], "lan");
    assert_eq!(
        (&list[0]["mode"], &list[0]["ports"], &list[0]["state"]),
        (&json!("bridge"), &json!(2), &json!("up"))
    );
    let show = shell.weft("--json net show lan").json();
    for key in keys(&list[0]) {
        assert_eq!(show[key], list[0][key], "{key}");
    }
    assert_eq!(show["members"], json!(["tap0", "vif1.0"]));
    assert_eq!(
        (&show["ageing_s"], &show["fdb_max"], &show["fdb_entries"]),
        (&json!(60), &json!(8192), &json!(0))
    );
    assert!(shell.weft("net show lan").ok().contains("fdb:           0 of 8192\n"));
    shell.weft("net show none").failed(4, "there is no network");

    let list = shell.weft("--json port list").json();
    let show = shell.weft("--json port show tap0").json();
    for key in keys(&list[0]) {
        assert_eq!(show[key], list[0][key], "{key}");
    }
    assert_eq!(
        (&show["vlan"], &show["rate"], &show["isolated"]),
        (&json!(7), &json!("8Mb/s@20ms"), &json!(true))
    );
    assert_eq!(show["rings"], json!([{ "index": 0, "size": 256, "state": "enabled" }]));
    assert!(shell.weft("port show tap0").ok().contains("vlan:       7\n"));
    shell.weft("port show none").failed(4, "there is no port 'none'");

    shell.weft("port set tap0 vlan= isolated=off").ok();
    shell.weft("port set tap0 antispoof=on").failed(1, "give mac= or ip= too");
    shell.weft("port set tap0 queues=2").failed(1, "and add it again");
    shell.weft("port set none vlan=1").failed(4, "there is no port");

    shell.weft("net del lan").failed(1, "has ports");
    shell.weft("net del --if-exists lan").failed(1, "has ports");
    shell.weft("port del tap0").ok();
    shell.weft("port del tap0").failed(4, "there is no port 'tap0'");
    shell.weft("port del --if-exists tap0").ok();
    shell.weft("port del vif1.0").ok();
    shell.weft("net del lan").ok();
    shell.weft("net del lan").failed(4, "there is no network 'lan'");
    assert_eq!(shell.weft("--json net del --if-exists lan").json(), json!({}));
    shell.daemon.stop();
}

#[test]
fn counters() {
    let shell = Shell::new();
    shell.weft("net add lan").ok();
    shell.weft("port add lan a tap").ok();
    shell.weft("port add lan b tap").ok();
    let one = json!({
        "name": "a", "rx_frames": 5, "rx_bytes": 500, "tx_frames": 0, "tx_bytes": 0,
        "drops": { "bad_source": 0, "tx_ring_full": 2 }, "copies": 0, "forwarded": 0, "offered": 0,
        "rx_bursts": 2, "cycles": 1234, "polls_idle": 0, "wakeups": 1,
    });
    assert_eq!(shell.weft("--json port stats a").json(), one);
    let all = shell.weft("--json port stats").json();
    assert_eq!((&all[0], &all[1]["name"], all.as_array().unwrap().len()), (&one, &json!("b"), 2));
    shell.weft("port stats none").failed(4, "there is no port");
    let shown = shell.weft("port stats a");
    let shown = shown.ok();
    assert!(shown.ends_with("drops:           2\n  tx_ring_full:  2\n"));
    for line in ["frames/burst:    2.5\n", "cycles/frame:    246.8\n", "wake-ups:        1\n"] {
        assert!(shown.contains(line), "no {line} in {shown}");
    }
    let table = shell.weft("port stats");
    let table = table.ok();
    assert_eq!(table.lines().count(), 3);
    assert!(table.lines().nth(1).is_some_and(|line| line.ends_with("2.5         246.8")), "{table}");
}

#[test]
fn addresses() {
    let shell = Shell::new();
    shell.weft("net add lan").ok();
    shell.weft("net add wan").ok();
    shell.weft("port add lan a tap").ok();
    shell.weft("fdb add lan a 02:00:00:00:00:01").ok();
    shell.weft("fdb add lan a 02:00:00:00:00:01 vlan=7").ok();
    shell.weft("fdb add lan a 02:00:00:00:00:01").failed(1, "already");
    shell.weft("fdb add --may-exist lan a 02:00:00:00:00:01").ok();
    assert_eq!(
        shell.weft("--json fdb show lan").json(),
        json!([
            { "mac": "02:00:00:00:00:01", "vlan": 0, "port": "a", "age_s": 0, "static": true },
            { "mac": "02:00:00:00:00:01", "vlan": 7, "port": "a", "age_s": 0, "static": true },
        ])
    );
    assert_eq!(
        shell.weft("fdb show lan").ok().lines().next(),
        Some("MAC                VLAN  PORT  AGE  KIND")
    );
    shell.weft("fdb add wan a 02:00:00:00:00:01").failed(1, "not on network wan");
    shell.weft("fdb add none a 02:00:00:00:00:01").failed(4, "there is no network");
    shell.weft("fdb add lan none 02:00:00:00:00:01").failed(4, "there is no port");
    shell.weft("fdb add lan a ff:ff:ff:ff:ff:ff").failed(1, "group address");
    shell.weft("fdb add lan a 02:00:00:00:00:02 vlan=0").failed(1, "from 1 to 4094");
    shell.weft("fdb add lan a 02:00:00:00:00:02 tag=1").failed(1, "only vlan= is");
    shell.weft("fdb del lan 02:00:00:00:00:01").ok();
    shell.weft("fdb del lan 02:00:00:00:00:01").failed(1, "has no address 02:00:00:00:00:01");
    shell.weft("fdb del --if-exists lan 02:00:00:00:00:01").ok();
    shell.weft("fdb del none 02:00:00:00:00:01").failed(4, "there is no network");
    shell.weft("fdb del --if-exists none 02:00:00:00:00:01").ok();
    shell.weft("fdb del lan 02:00:00:00:00:01 vlan=7").ok();
    shell.weft("fdb flush lan").ok();
    shell.weft("fdb flush none").failed(4, "there is no network");
    assert_eq!(shell.weft("--json fdb show lan").json(), json!([]));
}

#[test]
fn what_a_bridge_has_not() {
    let shell = Shell::new();
    shell.weft("net add lan").ok();
    for empty in ["lease list", "forward list"] {
        assert_eq!(shell.weft(&format!("--json {empty}")).json(), json!([]));
        shell.weft(&format!("{empty} none")).failed(4, "there is no network");
    }
    shell.weft("lease list lan").failed(1, "network lan is a bridge: it has no leases");
    shell.weft("forward list lan").failed(1, "network lan is a bridge: it has no port forwards");
    shell.weft("nat sessions lan").failed(1, "network lan is a bridge: it has no address translation");
    shell.weft("nat sessions none").failed(4, "there is no network");
    shell.weft("forward add lan tcp 8080 10.0.0.2:80").failed(1, "it has no port forwards");
    shell.weft("forward del lan tcp 8080 10.0.0.2:80").failed(1, "it has no port forwards");
    shell.weft("forward add none tcp 8080 10.0.0.2:80").failed(4, "there is no network");
    shell.weft("forward add lan tcp eighty 10.0.0.2:80").failed(1, "not [ADDR:]PORT");
}

#[test]
fn status() {
    let shell = Shell::new();
    assert_eq!(
        shell.weft("--json status").json(),
        json!({
            "version": "9.9", "pid": 42, "uptime_s": 7, "networks": 0, "ports": 0,
            "cycles": 0, "cycles_per_s": 0,
            "workers": [{ "cpu": 2, "queues": 3, "polls": 4_294_967_296_u64, "polls_idle": 0, "frames": 1000,
                          "bursts": 0, "sleeps": 0, "wakeups": 0, "cycles_busy": 345_678, "cycles_asleep": 0,
                          "busy_permille": 73 }],
        })
    );
    let shown = shell.weft("status");
    let shown = shown.ok();
    assert!(shown.starts_with("version:   9.9\npid:       42\n"));
    let worker: Vec<_> = shown.lines().next_back().unwrap_or_default().split_whitespace().collect();
    assert_eq!(worker, ["2", "3", "7.3", "%", "1000", "345.7", "-", "4294967296", "0", "0", "0"]);
}

#[test]
fn usage_is_status_2() {
    let shell = Shell::new();
    for line in [
        "",
        "frobnicate",
        "net",
        "net add",
        "net frobnicate",
        "net set lan",
        "port add lan p",
        "port list a b",
        "net list --json",
        "--timeout soon status",
        "--timeout 0 status",
        "net add --frob lan",
        "fdb add lan a",
        "nat sessions",
        "forward add lan tcp 80",
        "lease add lan",
        "lease del lan",
        "vif attach",
        "vif attach --domid 40000 mac=00:16:3e:00:00:01",
        "vif detach",
        "daemon --cpus 1,1",
        "daemon --poll lazy",
        "completions cmd.com",
    ] {
        let ran = shell.weft(line);
        ran.failed(2, "");
        assert!(!ran.err.is_empty(), "{line}");
    }
    shell.weft("net add lan mtu").failed(2, "'mtu' is not of the form key=value");
    shell.weft("net add lan mtu=1 mtu=2").failed(2, "given twice");
    shell.weft("port set p =1").failed(2, "key=value");
}

#[test]
fn what_can_be_seen_to_be_wrong_needs_no_daemon() {
    let run = |line: &str| run_in(&environment(), &Asked::default(), &line.split(' ').collect::<Vec<_>>());
    run("net add a/b").failed(1, "only letters");
    run("net add -- -lan").failed(1, "must not start with '-'");
    run("net add lan mode=nat").failed(1, "mode=nat needs the subnet");
    run("net add lan colour=red").failed(1, "no such key");
    run("net add sixteen-bytes-ab host-if=on").failed(1, "16 bytes");
    run("port add lan p tap:sixteen_bytes___").failed(1, "16 bytes");
    run("port add lan p stream:").failed(1, "is empty");
    run("port add lan p dgram:a.sock").failed(1, "give remote=PATH");
    run("port add lan p dgram:a.sock remote=a.sock").failed(1, "remote= is the port's own socket");
    run(&format!("port add lan p vhost-user:{}", "x".repeat(99))).failed(1, "108 bytes");
    run("port add lan p vhost-user:").failed(1, "is empty");
}

#[test]
fn no_daemon_is_status_3() {
    let dir = tempfile::tempdir().unwrap();
    let stale = dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for path in [dir.path().join("none/ctl.sock"), stale] {
        let path = path.to_str().unwrap();
        run_in(&environment(), &Asked::default(), &["--socket", path, "status"]).failed(3, "no daemon at");
    }
    // Where the environment says.
    let socket = Some(dir.path().join("env.sock").into());
    run_in(&Environment { socket, ..environment() }, &Asked::default(), &["net", "list"])
        .failed(3, "env.sock");
}

#[test]
fn the_socket_is_found_below_the_runtime_directory() {
    let daemon = Daemon::start();
    let runtime_dir = daemon.dir().join("xdg");
    std::fs::create_dir_all(runtime_dir.join("weft")).unwrap();
    std::os::unix::fs::symlink(&daemon.path, runtime_dir.join("weft/ctl.sock")).unwrap();
    let environment = Environment { runtime_dir: Some(runtime_dir.into()), ..environment() };
    assert_eq!(run_in(&environment, &Asked::default(), &["--json", "net", "list"]).json(), json!([]));
}

#[test]
fn a_daemon_that_does_not_answer_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mute.sock");
    let _mute = UnixListener::bind(&path).unwrap();
    let start = Instant::now();
    let words = ["--socket", path.to_str().unwrap(), "--timeout", "0.2", "status"];
    run_in(&environment(), &Asked::default(), &words).failed(1, "does not answer in time");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(150) && waited < Duration::from_secs(5), "{waited:?}");
}

#[test]
fn daemon_and_demo_are_handed_over() {
    let asked = Asked::default();
    let line =
        "daemon --config weft.toml --socket ctl.sock --state-dir /var/lib/weft --cpus 0,2-3 --poll busy";
    let ran = run_in(&environment(), &asked, &line.split(' ').collect::<Vec<_>>());
    assert_eq!((ran.code, &*ran.err), (ExitCode::from(77), ""));
    assert_eq!(
        asked.daemon.take(),
        Some(DaemonOptions {
            config: Some("/the/cwd/weft.toml".into()),
            socket: "/the/cwd/ctl.sock".into(),
            state_dir: Some("/var/lib/weft".into()),
            cpus: Some(vec![0, 2, 3]),
            poll: Poll::Busy,
        })
    );
    run_in(&environment(), &asked, &["--socket", "/a.sock", "daemon"]);
    let options = asked.daemon.take().unwrap();
    assert_eq!((options.socket, options.cpus, options.poll), ("/a.sock".into(), None, Poll::Adaptive));
    run_in(&environment(), &asked, &["daemon"]).failed(1, "$XDG_RUNTIME_DIR is not set");
    run_in(&Environment { root: true, ..environment() }, &asked, &["daemon"]);
    assert_eq!(asked.daemon.take().unwrap().socket, Path::new("/the/run/ctl.sock"));

    assert_eq!(run_in(&environment(), &asked, &["demo", "--keep"]).code, ExitCode::from(78));
    assert_eq!(asked.demo.take(), Some(DemoOptions { json: false, keep: true }));
    for words in [&["--json", "demo"][..], &["demo", "--json"]] {
        run_in(&environment(), &asked, words);
        assert_eq!(asked.demo.take(), Some(DemoOptions { json: true, keep: false }));
    }
}

#[test]
fn help_and_completions() {
    let run = |words: &[&str]| run_in(&environment(), &Asked::default(), words);
    assert!(run(&["help"]).ok().contains("Usage: weft"));
    assert!(run(&["--help"]).ok().contains("Exit status"));
    assert!(run(&["help", "port", "add"]).ok().contains("antispoof=on|off"));
    assert!(run(&["help", "vif", "attach"]).ok().contains("bridge=NETWORK"));
    assert!(run(&["forward", "add", "--help"]).ok().contains("8000-8010"));
    assert!(run(&["--version"]).ok().starts_with("weft "));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completions", shell]).ok().contains("weft"), "{shell}");
    }
}
