//! Networks of every mode at the command line: their keys, leases, forwards and sessions, and vifs in xl's words.

mod common;
#[path = "common/shell.rs"]
mod shell;

use common::SESSIONS;
use serde_json::{Value, json};
use shell::{Asked, Shell, environment, run_in};

const NAT: &str = "net add virbr0 mode=nat subnet=192.168.122.0/24 egress=host";

fn names(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect()
}

#[test]
fn networks_of_every_mode() {
    let shell = Shell::new();
    shell.weft(NAT).ok();
    shell.weft("net add --may-exist virbr0 mode=nat subnet=192.168.122.0/24 egress=host dns=on gateway=192.168.122.1").ok();
    shell
        .weft("net add --may-exist virbr0 mode=nat subnet=192.168.122.0/24 egress=host dns=off")
        .failed(1, "exists");
    shell.weft("net add isle mode=internal subnet=192.168.122.0/24 dns=on").ok();
    shell.weft("net add rt mode=routed uplink=eth1").ok();
    shell
        .weft("net add other mode=routed subnet=192.168.122.128/25")
        .failed(1, "overlaps 192.168.122.0/24 of network virbr0");
    shell
        .weft("net add own mode=nat subnet=192.168.122.0/24 egress=uplink:eth1")
        .failed(1, "interface eth1 is taken");
    shell.weft("net add own mode=nat subnet=192.168.122.0/24 egress=uplink:eth2").ok();
    assert_eq!(names(&shell.weft("--json net list").json()), ["isle", "own", "rt", "virbr0"]);
    assert_eq!(shell.weft("--json net list").json()[1]["uplink"], "eth2");

    let show = shell.weft("--json net show virbr0").json();
    assert_eq!(show["keys"], json!({ "mode": "nat", "subnet": "192.168.122.0/24", "egress": "host" }));
    assert_eq!(
        show["resolved"],
        json!({ "gateway": "192.168.122.1", "dhcp": "192.168.122.2-192.168.122.254", "dns": true, "dns_servers": [],
                "egress": "host", "leases_used": 1, "leases_free": 2 })
    );
    assert_eq!((&show["host_if"], &show["state"]), (&json!(true), &json!("up")));
    let text = shell.weft("net show virbr0").out;
    for line in [
        "gateway:       192.168.122.1\n",
        "dhcp:          192.168.122.2-192.168.122.254\n",
        "leases:        1 used, 2 free\n",
        "dns:           on\n",
        "egress:        host\n",
        "keys:          egress=host mode=nat subnet=192.168.122.0/24\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    let routed = shell.weft("--json net show rt").json();
    assert_eq!((&routed["ageing_s"], &routed["resolved"]["dns"]), (&Value::Null, &json!(false)));
    shell.weft("net add lan").ok();
    assert_eq!(shell.weft("--json net show lan").json()["resolved"], Value::Null);

    shell.weft("net set virbr0 dns-servers=9.9.9.9 lease-time=600").ok();
    assert_eq!(shell.weft("--json net show virbr0").json()["keys"]["lease-time"], "600");
    shell.weft("net set virbr0 dns-servers= lease-time=").ok();
    assert_eq!(shell.weft("--json net show virbr0").json()["keys"], show["keys"]);
    shell.weft("net set virbr0 subnet=10.0.0.0/24").failed(1, "delete the network and add it again");
    shell.weft("net set rt uplink=eth9").failed(1, "uplink= of a routed network cannot change");
    shell.weft("net set lan domain=x.y").failed(1, "domain= does not go with mode=bridge");
    shell.daemon.stop();
}

#[test]
fn ports_of_every_mode() {
    let shell = Shell::new();
    shell.weft(NAT).ok();
    shell.weft("net add rt mode=routed").ok();
    shell.weft("port add virbr0 a tap vlan=7").failed(1, "it has no VLANs");
    shell.weft("port add virbr0 a tap ip=10.0.0.2").failed(1, "is not in 192.168.122.0/24");
    shell.weft("port add virbr0 a tap ip=192.168.122.1").failed(1, "is the gateway of network virbr0");
    shell
        .weft("port add virbr0 a tap routes=10.8.0.0/16 ip=192.168.122.2")
        .failed(1, "only a routed one has them");
    shell.weft("port add rt vif1.0 tap:a ip=192.0.2.2,2001:db8::2 routes=10.8.0.0/16,2001:db8:8::/48").ok();
    let show = shell.weft("--json port show vif1.0").json();
    assert_eq!(show["routes"], json!(["10.8.0.0/16", "2001:db8:8::/48"]));
    assert!(shell.weft("port show vif1.0").ok().contains("routes:     10.8.0.0/16, 2001:db8:8::/48\n"));
    shell.weft("port set vif1.0 routes=").ok();
    assert_eq!(shell.weft("--json port show vif1.0").json()["routes"], Value::Null);
}

#[test]
fn leases() {
    let shell = Shell::new();
    shell.weft(NAT).ok();
    shell.weft("net add lan").ok();
    shell.weft("lease add virbr0 52:54:00:00:00:01 192.168.122.10 Web").ok();
    shell.weft("lease add virbr0 52:54:00:00:00:02 192.168.122.11").ok();
    shell
        .weft("lease add virbr0 52:54:00:00:00:01 192.168.122.10 web")
        .failed(1, "is kept for 52:54:00:00:00:01 already");
    shell.weft("lease add --may-exist virbr0 52:54:00:00:00:01 192.168.122.10 web").ok();
    shell.weft("lease add --may-exist virbr0 52:54:00:00:00:01 192.168.122.12 web").failed(1, "is kept for");
    shell
        .weft("lease add virbr0 52:54:00:00:00:03 192.168.122.10")
        .failed(1, "is the address of 52:54:00:00:00:01");
    shell
        .weft("lease add virbr0 52:54:00:00:00:03 192.168.122.1")
        .failed(1, "is the gateway of network virbr0");
    shell.weft("lease add virbr0 52:54:00:00:00:03 10.0.0.1").failed(1, "is not in 192.168.122.0/24");
    shell.weft("lease add virbr0 52:54:00:00:00:03 fd00::1").failed(1, "it gives no IPv6 leases");
    shell.weft("lease add virbr0 web 192.168.122.12").failed(1, "is not a MAC address");
    shell
        .weft("lease add lan 52:54:00:00:00:03 10.0.0.1")
        .failed(1, "network lan is a bridge: it gives no leases");
    shell.weft("lease add none 52:54:00:00:00:03 10.0.0.1").failed(4, "there is no network");
    let web = json!({ "network": "virbr0", "mac": "52:54:00:00:00:01", "ip": "192.168.122.10", "hostname": "web",
                      "expires_s": 0, "state": "reserved", "static": true });
    assert_eq!(shell.weft("--json lease list virbr0").json()[0], web);
    assert_eq!(
        shell.weft("lease list").ok().lines().nth(1),
        Some("virbr0   52:54:00:00:00:01  192.168.122.10  web             -  reserved  static")
    );
    shell.weft("lease del virbr0 52:54:00:00:00:02").ok();
    shell
        .weft("lease del virbr0 52:54:00:00:00:02")
        .failed(1, "has no lease of 52:54:00:00:00:02: see weft lease list");
    shell.weft("lease del --if-exists virbr0 52:54:00:00:00:02").ok();
    shell.weft("lease del virbr0 192.168.122.10").ok();
    shell.weft("lease del virbr0 web").failed(1, "neither a MAC nor an IP address");
    shell.weft("lease del lan 10.0.0.1").failed(1, "it has no leases");
    assert_eq!(shell.weft("--json lease list").json(), json!([]));
}

#[test]
fn forwards() {
    let shell = Shell::new();
    shell.weft(NAT).ok();
    shell.weft("net add rt mode=routed").ok();
    shell.weft("forward add virbr0 tcp 8080 192.168.122.10:80").ok();
    shell.weft("forward add virbr0 tcp 8080 192.168.122.10:80").failed(1, "port 8080 is listened on");
    shell.weft("forward add --may-exist virbr0 tcp :8080 192.168.122.10:80").ok();
    shell.weft("forward add virbr0 tcp 8000-8100 192.168.122.10").failed(1, "port 8080 is listened on");
    shell.weft("forward add virbr0 tcp 443,80 192.168.122.10 source=keep").ok();
    shell.weft("forward add virbr0 udp 5000-5009 192.168.122.11:6000-6009").ok();
    shell
        .weft("forward add virbr0 udp 5010-5019 192.168.122.11:6000")
        .failed(1, "10 ports of 5010-5019 cannot go to 1");
    shell.weft("forward add virbr0 sctp 1 192.168.122.11:1").failed(1, "neither tcp nor udp");
    shell.weft("forward add virbr0 tcp 1 10.0.0.1:1").failed(1, "is not in 192.168.122.0/24");
    shell
        .weft("forward add rt tcp 1 10.0.0.1:1")
        .failed(1, "network rt is a routed network: it has no port forwards");
    shell
        .weft("forward add virbr0 tcp 1 192.168.122.10:1 source=drop")
        .failed(1, "source='drop' is not source=keep");
    shell.weft("forward add virbr0 tcp 1 192.168.122.10:1 from=keep").failed(1, "only source= is");
    let row = |proto: &str, listen: &str, target: &str, source: &str| json!({ "network": "virbr0", "proto": proto, "listen": listen, "target": target, "source": source });
    let list = shell.weft("--json forward list virbr0").json();
    assert_eq!(
        list,
        json!([
            row("tcp", "8080", "192.168.122.10:80", "gateway"),
            row("tcp", "80,443", "192.168.122.10:80,443", "keep"),
            row("udp", "5000-5009", "192.168.122.11:6000-6009", "gateway"),
        ])
    );
    // What a list prints is what deletes it.
    for forward in list.as_array().unwrap() {
        let words = ["proto", "listen", "target"].map(|key| forward[key].as_str().unwrap());
        shell.weft(&format!("forward del virbr0 {}", words.join(" "))).ok();
    }
    shell.weft("forward del virbr0 tcp 80,443 192.168.122.10").failed(1, "there is no forward tcp 80,443");
    shell.weft("forward del --if-exists virbr0 tcp 80,443 192.168.122.10").ok();
    assert_eq!(shell.weft("--json forward list").json(), json!([]));
}

#[test]
fn sessions_have_a_limit_and_say_so() {
    let shell = Shell::new();
    shell.weft(NAT).ok();
    shell.weft("net add rt mode=routed").ok();
    let count = |line: &str| {
        let ran = shell.weft(line);
        let list: Value = serde_json::from_str(&ran.out).unwrap();
        (list.as_array().unwrap().len() as u64, ran.err)
    };
    let (told, note) = count("--json nat sessions virbr0");
    assert_eq!(
        (told, &*note),
        (65_536, "weft: 65536 of 100000 sessions of network virbr0 are shown: ask for more with limit=N\n")
    );
    assert_eq!(count("--json nat sessions virbr0 limit=10").0, 10);
    assert_eq!(count("--json nat sessions virbr0 limit=1000000"), (SESSIONS, String::new()));
    shell.weft("nat sessions virbr0 limit=0").failed(1, "limit=: '0' is not a number from 1 to 1000000");
    shell.weft("nat sessions virbr0 pages=1").failed(1, "only limit= is");
    shell.weft("nat sessions virbr0 10").failed(2, "not of the form key=value");
    shell.weft("nat sessions rt").failed(1, "network rt is a routed network: it has no address translation");
    shell.weft("nat sessions none").failed(4, "there is no network");
}

#[test]
fn vifs_in_the_words_of_xl() {
    let shell = Shell::new();
    shell.weft("net add xenbr0").ok();
    shell.weft("net add br1").ok();
    let spec = "mac=00:16:3E:01:02:03,bridge=xenbr0,ip=10.0.0.2 fd00::2,rate=10Mb/s";
    let attached = shell.words(&["--json", "vif", "attach", "--domid", "3", spec]).json();
    assert_eq!(
        attached,
        json!({ "name": "vif3.0", "network": "xenbr0", "kind": "netdev:vif3.0", "mac": "00:16:3e:01:02:03" })
    );
    let port = shell.weft("--json port show vif3.0").json();
    assert_eq!(
        (&port["ip"], &port["antispoof"], &port["rate"], &port["mac"]),
        (&json!(["10.0.0.2", "fd00::2"]), &json!(true), &json!("10Mb/s"), &json!("00:16:3e:01:02:03"))
    );
    shell.words(&["vif", "attach", "--domid", "3", spec]).failed(1, "port vif3.0 exists already");
    shell.words(&["vif", "attach", "--may-exist", "--domid", "3", spec]).ok();

    // What is not said: the network, a name that is free, an address.
    let first = shell.words(&["--json", "vif", "attach", "", "vhost-user:a.sock"]).json();
    assert_eq!((&first["name"], &first["network"]), (&json!("vif1.0"), &json!("xenbr0")));
    assert_eq!(first["kind"], "vhost-user:/the/cwd/a.sock");
    assert!(first["mac"].as_str().unwrap().starts_with("00:16:3e:"), "{first}");
    let second = shell.words(&["--json", "vif", "attach", "", "vhost-user:b.sock"]).json();
    assert_eq!(second["name"], "vif2.0");
    assert_ne!(first["mac"], second["mac"], "three random bytes");
    let other = shell.words(&["--json", "vif", "attach", "devid=1,bridge=br1", "tap:t1"]).json();
    assert_eq!((&other["name"], &other["network"]), (&json!("vif1.1"), &json!("br1")));
    assert!(shell.words(&["vif", "attach", "vifname=web0"]).ok().contains("kind:     netdev:web0\n"));

    let ran = shell.words(&["vif", "attach", "--domid", "9", "script=vif-bridge,type=vif"]);
    assert!(ran.out.contains("name:     vif9.0\n"), "{}", ran.out);
    assert_eq!(ran.err, "weft: vif: script=, type= of xl has no meaning here and was not used\n");

    shell.weft("vif detach vif3.0").ok();
    shell.weft("vif detach vif3.0").failed(4, "there is no port 'vif3.0'");
    shell.weft("vif detach --if-exists vif3.0").ok();
}

#[test]
fn vifs_that_are_refused_need_no_daemon() {
    let run = |words: &[&str]| {
        let words: Vec<_> = ["vif", "attach"].iter().chain(words).copied().collect();
        run_in(&environment(), &Asked::default(), &words)
    };
    run(&["bridge=xenbr0"]).failed(1, "give --domid N, vifname=, or KIND:ARG");
    run(&["--may-exist", "", "tap:t"]).failed(1, "give --domid N or vifname=, and mac=");
    run(&["--may-exist", "--domid", "1", ""]).failed(1, "and mac=");
    run(&["--domid", "1", "vlan=5"]).failed(1, "vif: vlan=: a vif has no such key");
    run(&["--domid", "1", "rate=fast"]).failed(1, "write it as 10Mb/s");
    run(&["--domid", "1", "ip="]).failed(1, "'' is not an IP address");
    run(&["--domid", "1", "ip=10.0.0.1/24"]).failed(1, "is not an IP address");
    run(&["--domid", "1", "mac=00:16:3e:00:00:01", "dgram:/a"]).failed(1, "give remote=PATH");
    run(&["vifname=web0"]).failed(3, "no daemon at");
}

#[test]
fn every_key_has_its_help() {
    let help = run_in(&environment(), &Asked::default(), &["net", "add", "--help"]);
    for key in [
        "mode",
        "uplink",
        "host-address",
        "host-if",
        "subnet",
        "subnet6",
        "gateway",
        "dhcp",
        "dns",
        "domain",
        "egress",
        "address",
        "next-hop",
        "address6",
        "next-hop6",
        "ip-forward",
        "lease-time",
        "dns-servers",
        "static-routes",
        "boot-file",
        "boot-server",
        "outbound",
        "host-loopback",
        "filtering",
        "quota",
        "mtu",
        "ageing",
        "fdb-max",
    ] {
        assert!(help.ok().contains(&format!("  {key}=")), "{key}= is missing:\n{}", help.out);
    }
    for verb in ["net add", "net set", "port add", "lease add", "forward add", "vif attach"] {
        let words: Vec<_> = verb.split(' ').chain(["--help"]).collect();
        let help = run_in(&environment(), &Asked::default(), &words);
        assert!(help.ok().lines().all(|line| line.chars().count() <= 80), "{verb}:\n{}", help.out);
    }
}
