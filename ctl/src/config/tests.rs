//! Texts of files, and what is made or said of them.

use super::*;

fn read(text: &str) -> Result<Model, String> {
    parse(Path::new("weft.toml"), text).map_err(|e| e.to_string())
}

#[test]
fn the_manuals_example() {
    let text = r#"
[network.xenbr0]
mode = "bridge"
uplink = "eth0"
host-if = true
mtu = 9000

[port."vif1.0"]
network = "xenbr0"
kind = "vhost-user:/run/weft/vif1.0.sock"
mac = "00:16:3e:01:02:03"
ip = ["10.0.0.2", "fd00::2"]
isolated = "on"
queues = "4"

[port.tap0]
network = "xenbr0"
kind = "tap:tap0"
"#;
    let model = read(text).unwrap();
    let network = &model.networks["xenbr0"];
    assert_eq!((network.uplink.as_deref(), network.host_if, network.mtu), (Some("eth0"), true, Some(9000)));
    let port = &model.ports["vif1.0"];
    assert_eq!((port.network.as_str(), port.queues, port.ip.len(), port.isolated), ("xenbr0", 4, 2, true));
    assert_eq!(model.ports.len(), 2);
    assert_eq!(read("").unwrap(), Model::default());
}

#[test]
fn what_is_refused_and_on_which_line() {
    let net = "[network.lan]\n";
    for (text, line, why) in [
        ("x = 1", 1, "neither [network.NAME]"),
        ("\n[networks.lan]", 2, "'networks' is neither"),
        ("\n\n[network\n", 3, ""),
        ("network = 1", 1, "as tables"),
        ("[network]\nlan = 1", 2, "as tables"),
        ("[[network]]\n", 1, "as tables"),
        ("[network.\"a b\"]", 1, "only letters"),
        ("[network.lan]\nmtu = 1500\ncolour = \"red\"", 3, "no such key"),
        ("[network.lan]\nmtu = 1500\nmtu = 1500", 3, "duplicate key"),
        ("[network.lan]\nmtu = 9", 2, "from 68 to 65535"),
        ("[network.lan]\nmtu = 0x5dc", 2, "type integer is not possible"),
        ("[network.lan]\nmtu = 1500.0", 2, "type float is not possible"),
        ("[network.lan]\nmtu = []", 2, "type array is not possible"),
        ("[network.lan]\nmtu = [1]", 2, "type array is not possible"),
        ("[network.lan]\n[network.lan.x]\na=1", 2, "type table is not possible"),
        ("[network.lan]\nmode = \"nat\"", 1, "mode=nat needs the subnet"),
        ("[network.lan]\nsubnet = \"10.0.0.0/8\"", 1, "subnet= does not go with mode=bridge"),
        ("[network.lan]\negress = \"user\"", 1, "egress= does not go with mode=bridge"),
        ("[network.sixteen-bytes-ab]\nhost-if = true", 1, "16 bytes"),
        (&*format!("{net}[port.p]\nkind = \"tap\""), 2, "network is missing"),
        (&*format!("{net}[port.p]\nnetwork = \"lan\""), 2, "kind is missing"),
        (&*format!("{net}[port.p]\nkind = \"tap\"\nnetwork = \"wan\""), 4, "there is no network 'wan'"),
        (&*format!("{net}[port.p]\nnetwork = \"lan\"\nkind = \"vhost-user:a\""), 4, "not absolute"),
        (
            &*format!("{net}[port.p]\nnetwork = \"lan\"\nkind = \"tap\"\nrole = \"server\""),
            2,
            "does not go with",
        ),
        (&*format!("{net}[port.p]\nnetwork = \"lan\"\nkind = \"tap\"\nvlan = 0"), 5, "from 1 to 4094"),
        (&*format!("{net}[port.p]\nnetwork = \"lan\"\nkind = \"tap\"\nuplink = \"x\""), 5, "no such key"),
    ] {
        let message = read(text).unwrap_err();
        assert!(message.starts_with(&format!("weft.toml:{line}: ")), "{text:?}: {message}");
        assert!(message.contains(why) && !message.contains('\n'), "{text:?}: {message}");
    }
}

#[test]
fn nothing_is_claimed_twice() {
    let port = |name: &str, kind: &str| format!("[port.{name}]\nnetwork = \"lan\"\nkind = \"{kind}\"\n");
    for (text, why) in [
        (port("a", "tap:t") + &port("b", "netdev:t"), "weft.toml:4: port b: interface t is taken by port a"),
        (port("a", "vhost-user:/s") + &port("b", "vhost-user:/s"), "socket /s is taken by port a"),
        (port("a", "tap:lan"), "interface lan is taken by network lan"),
        (port("a", "netdev:eth0"), "interface eth0 is taken by network lan"),
        ("[network.wan]\nuplink = \"eth0\"".to_owned(), "interface eth0 is taken by network lan"),
    ] {
        let text = text + "\n[network.lan]\nhost-if = \"on\"\nuplink = \"eth0\"\n";
        let message = read(&text).unwrap_err();
        assert!(message.contains(why), "{message}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let message = load(&dir.path().join("none.toml")).unwrap_err().to_string();
    assert!(message.contains("none.toml: cannot read the configuration"), "{message}");
    let binary = dir.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert!(load(&binary).unwrap_err().to_string().contains("cannot read"));
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "(\\[(network|port)\\.[a-z\"]{1,3}\\]\n([a-z]{1,7} = [\\PC\n]{0,8}\n){0,3}){0,4}") {
        let _ = read(&text);
    }
}

/// A network that has all the lists, and the lines before its own.
const NAT: &str = "[network.n]\nmode = \"nat\"\nsubnet = \"10.0.0.0/24\"\negress = \"host\"\n";

#[test]
fn lists_of_a_network() {
    let text = r#"
[network.virbr0]
mode = "nat"
subnet = "192.168.122.0/24"
egress = "host"
dns-servers = ["9.9.9.9", "149.112.112.112"]
lease-time = 600
forward = ["tcp 8080 192.168.122.10:80", "udp 5000-5010 192.168.122.10"]
lease = ["52:54:00:00:00:01 192.168.122.10 web"]
host = ["printer 192.168.122.5", "printer fd00::5"]
[network.isle]
mode = "internal"
forward = []
"#;
    let model = read(text).unwrap();
    let told = &model.told["virbr0"];
    assert_eq!(told.forwards[1].to_string(), "udp 5000-5010 to 192.168.122.10:5000-5010 on virbr0");
    assert_eq!((told.forwards.len(), told.leases.len(), told.hosts.len()), (2, 1, 2));
    assert_eq!(told.leases[0].hostname.as_deref(), Some("web"));
    assert_eq!(model.networks["virbr0"].dns_servers.len(), 2);
    assert_eq!(model.told.len(), 1, "an empty list is none");
}

#[test]
fn lists_that_are_refused_and_on_which_line() {
    for (text, line, why) in [
        (
            format!("{NAT}forward = \"tcp 1 10.0.0.2:1\""),
            5,
            "forward: a value of type string is not possible",
        ),
        (format!("{NAT}forward = [1]"), 5, "forward: a value of type integer is not possible"),
        (format!("{NAT}forward = [\"tcp 1\"]"), 5, "is not PROTO LISTEN TARGET"),
        (
            format!("{NAT}forward = [\n\"tcp 1 10.0.0.2:1\",\n\"tcp 1 10.0.0.3:1\"]"),
            7,
            "port 1 is listened on for",
        ),
        (format!("{NAT}forward = [\"tcp 1 10.0.1.2:1\"]"), 5, "is not in 10.0.0.0/24"),
        (format!("{NAT}lease = [\"52:54:00:00:00:01 10.0.0.1\"]"), 5, "is the gateway of network n"),
        (
            format!("{NAT}lease = [\"52:54:00:00:00:01 10.0.0.3\",\n\"52:54:00:00:00:01 10.0.0.4\"]"),
            6,
            "10.0.0.3 is kept for 52:54:00:00:00:01 already",
        ),
        (format!("{NAT}host = [\"a 10.0.0.3\", \"A 10.0.0.3\"]"), 5, "host a 10.0.0.3 is given twice"),
        (format!("{NAT}dns = false\nhost = [\"a 10.0.0.3\"]"), 6, "it answers no DNS"),
        (
            "[network.b]\nforward = [\"tcp 1 10.0.0.2:1\"]".to_owned(),
            2,
            "network b is a bridge: it has no port forwards",
        ),
        ("[network.b]\nlease = [\"52:54:00:00:00:01 10.0.0.3\"]".to_owned(), 2, "it gives no leases"),
        (
            format!(
                "{NAT}forward = [\"tcp 1-9 10.0.0.2\"]\n[network.o]\nmode = \"nat\"\nsubnet = \"10.0.1.0/24\"\n\
                 egress = \"host\"\nforward = [\"tcp 5 10.0.1.2:1\"]"
            ),
            10,
            "the host listens on port 5 for tcp 1-9 to 10.0.0.2:1-9 on n already",
        ),
    ] {
        let message = read(&text).unwrap_err();
        assert!(message.starts_with(&format!("weft.toml:{line}: ")), "{text:?}: {message}");
        assert!(message.contains(why) && !message.contains('\n'), "{text:?}: {message}");
    }
    let own = |name: &str, uplink: &str| {
        format!(
            "[network.{name}]\nmode = \"nat\"\nsubnet = \"10.0.0.0/24\"\negress = \"uplink:{uplink}\"\n\
             forward = [\"tcp 5 10.0.0.2:1\"]\n"
        )
    };
    assert!(read(&(own("a", "eth0") + &own("b", "eth1"))).is_ok(), "each has an outside of its own");
}

#[test]
fn networks_that_the_host_routes_do_not_overlap() {
    let routed =
        |name: &str, subnet: &str| format!("[network.{name}]\nmode = \"routed\"\nsubnet = \"{subnet}\"\n");
    for (a, b, clash) in [
        ("10.0.0.0/24", "10.0.1.0/24", false),
        ("10.0.0.0/24", "10.0.0.0/24", true),
        ("10.0.0.0/16", "10.0.7.0/24", true),
        ("10.0.7.0/24", "10.0.0.0/16", true),
        ("10.0.7.0/24", "10.0.8.0/21", false),
    ] {
        let far = routed("f1", "9.0.0.0/8") + &routed("f2", "11.0.0.0/8") + &routed("f3", "10.9.0.0/24");
        let read = read(&(far + &routed("n1", a) + &routed("n2", b)));
        match clash {
            false => assert!(read.is_ok(), "{a} and {b}: {read:?}"),
            true => {
                let message = read.unwrap_err();
                assert!(
                    message.contains(&format!("network n2: its subnet {b} overlaps {a} of network n1")),
                    "{message}"
                );
            }
        }
    }
}

#[test]
fn ports_fit_their_network_and_each_other() {
    let port = |name: &str, more: &str| format!("[port.{name}]\nnetwork = \"n\"\nkind = \"tap\"\n{more}\n");
    for (more, why) in [
        ("vlan = 2", "it has no VLANs"),
        ("ip = \"10.1.0.2\"", "is not in 10.0.0.0/24"),
        ("routes = [\"10.8.0.0/16\"]\nip = \"10.0.0.2\"", "only a routed one has them"),
    ] {
        let message = read(&(NAT.to_owned() + &port("p", more))).unwrap_err();
        assert!(message.starts_with("weft.toml:5: port p: ") && message.contains(why), "{message}");
    }
    let same = port("p", "ip = \"10.0.0.2\"") + &port("q", "ip = \"10.0.0.2\"");
    let message = read(&(NAT.to_owned() + &same)).unwrap_err();
    assert!(message.contains("port q: ip=10.0.0.2 is port p's on network n"), "{message}");
    assert!(read(&("[network.n]\n".to_owned() + &same)).is_ok(), "a bridge does not look at addresses");
}
