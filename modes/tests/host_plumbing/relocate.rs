//! `host-address=move`: a veth for the NIC, another for the host interface, and between them what the switch would
//! do: what the NIC receives is copied to the host interface, and the other way it is passed on.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use modes::host::{Event, FailAt, Failure, HostError, JOURNAL_NAME, Moved, Options, Plumber};
use tempfile::TempDir;

use crate::Body;
use crate::world::{Namespace, is_clean, plumber, set_sysctl, sh, state_dir, sysctl, until};

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("move_and_back", move_and_back),
    ("move_loses_no_ping", move_loses_no_ping),
    ("move_killed_at_each_step_is_recovered", killed_at_each_step),
    ("move_failing_at_each_step_is_put_back", failing_at_each_step),
    ("move_that_cuts_the_host_off_is_undone", cut_off),
    ("move_to_a_link_that_stays_down_is_undone", link_down),
    ("move_keeps_lifetimes", keeps_lifetimes),
    ("move_is_undone_without_the_host_interface", without_the_host_interface),
    ("move_is_undone_without_the_nic", without_the_nic),
    ("move_of_another_boot_is_discarded", another_boot),
    ("move_leaves_what_others_changed", others_changed),
    ("move_refusals", refusals),
];

const VICTIM: &str = "WEFT_TEST_HOST_VICTIM";

/// True in a process that a test has started to be killed.
pub(crate) fn is_victim() -> bool {
    std::env::var_os(VICTIM).is_some()
}

/// Begins a move, and does not live to see its end; or does, and waits.
pub(crate) fn victim() {
    let state = std::env::var(VICTIM).expect("a directory");
    let options = Options::new(state);
    let moves = options.fail_at.is_some();
    let plumber = Plumber::start(options, drop).expect("a plumber");
    if moves {
        plumber.move_addresses("nic0", "xenbr0").expect("a move");
    } else {
        match plumber.set_masquerade(crate::masquerade::wanted(vec![])) {
            Err(error @ HostError::NftMissing) => return println!("{error}"),
            done => done.expect("a table"),
        }
    }
    println!("it was done");
    thread::sleep(Duration::from_secs(20));
}

/// The host with `nic0` and `xenbr0`, and a router beyond the NIC's link.
fn host() -> Namespace {
    let far = Namespace::new();
    far.veth("gw0", "nic0");
    far.sh("ip addr add 192.0.2.1/24 dev gw0; ip addr add fd00:2::1/64 dev gw0 nodad; ip link set gw0 up
        ip addr add 198.51.100.77/32 dev lo; ip route add 10.9.0.0/24 via 192.0.2.10");
    sh("ip link add xenbr0 type veth peer name sw0
        echo 1 >/proc/sys/net/ipv6/conf/sw0/disable_ipv6
        ip link set sw0 up; ip link set xenbr0 up; ip link set nic0 up
        ip addr add 192.0.2.10/24 brd + dev nic0
        ip addr add 192.0.2.11/24 dev nic0 label nic0:1
        ip addr add 10.9.0.1/24 dev nic0 noprefixroute
        ip addr add fd00:2::10/64 dev nic0
        ip addr add fd00:2::11/64 dev nic0 nodad
        ip route add 10.9.0.0/24 dev nic0 proto kernel scope link src 10.9.0.1 metric 100
        ip route add default via 192.0.2.1 dev nic0 src 192.0.2.10 proto static metric 50
        ip route add 203.0.113.0/24 via 192.0.2.1 dev nic0 mtu 1400
        ip route add 203.0.113.0/24 via 192.0.2.1 dev nic0 metric 9 table 77
        ip route add 198.18.0.0/15 via 198.51.100.1 dev nic0 onlink
        ip -6 route add default via fd00:2::1 dev nic0 metric 60
        ip -6 route add fd00:99::/48 via fd00:2::1 dev nic0
        ip -6 route add fd00:98::/48 dev nic0 metric 5
        ip -6 route add fd00:97::/48 via fd00:2::1 dev nic0 table 77
        ip neigh add 192.0.2.200 lladdr 02:00:00:00:02:00 dev nic0 nud permanent
        ip neigh add fd00:2::200 lladdr 02:00:00:00:02:01 dev nic0 nud permanent");
    until("the link-local addresses are good", || !sh("ip addr").contains("tentative"));
    far
}

/// What the switch would do between the two, when it works.
fn switch() {
    sh(r#"nft -f - <<X
table netdev sw {
  chain in { type filter hook ingress device nic0 priority 0; dup to sw0; }
  chain out { type filter hook ingress device sw0 priority 0; fwd to nic0; }
}
X"#);
}

/// All that a move must put back, as text.
fn picture(interface: &str) -> String {
    let mut text = sh(&format!(
        "ip -o link show dev {interface}
         ip -o addr show dev {interface}
         for t in main 77; do ip -o route show table $t dev {interface}; ip -o -6 route show table $t dev {interface}; done
         ip neigh show dev {interface} nud permanent"
    ));
    // The kernel says who made an address only of its own.
    text = text.replace(" proto kernel_ll", "");
    // A pair's other end tells of itself here.
    for word in ["qlen 1000", " promiscuity 0"] {
        text = text.replace(word, "");
    }
    for name in ["ipv4/conf/IF/rp_filter", "ipv6/conf/IF/disable_ipv6", "ipv6/conf/IF/accept_ra"] {
        let path = name.replace("IF", interface);
        text.push_str(&format!("{path}={}\n", sysctl(&path)));
    }
    text
}

/// Waits until the two interfaces are as they were.
fn is_as_before(before: &(String, String), context: &str) {
    let now = || (picture("nic0"), picture("xenbr0"));
    // The kernel checks for a moment whether a link-local address that it made again is somebody else's.
    until("no address is tentative", || !now().0.contains("tentative"));
    let now = now();
    assert_eq!(now.0, before.0, "{context}");
    assert_eq!(now.1, before.1, "{context}");
}

fn both() -> (String, String) {
    until("no address is tentative", || !sh("ip addr").contains("tentative"));
    (picture("nic0"), picture("xenbr0"))
}

fn move_and_back() {
    let far = host();
    switch();
    let before = both();
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let moved = t.plumber.move_addresses("nic0", "xenbr0").unwrap();
    assert!(moved.notes.is_empty(), "{moved:?}");
    let nic =
        sh("ip addr show dev nic0; ip route show table all dev nic0; ip -6 route show table all dev nic0");
    assert!(!nic.contains("inet"), "{nic}");
    assert!(nic.contains("NOARP") && nic.contains(",UP"), "{nic}");
    assert!(!nic.contains("via"), "{nic}");
    let moved_to = picture("xenbr0");
    let mac = |text: &str| text.split("link/ether ").nth(1).and_then(|t| t.get(..17)).map(str::to_owned);
    assert_eq!(mac(&moved_to), mac(&before.0));
    for line in [
        "inet 192.0.2.10/24 brd 192.0.2.255 scope global xenbr0",
        "inet 192.0.2.11/24 scope global secondary xenbr0:1",
        "inet 10.9.0.1/24 scope global noprefixroute xenbr0",
        "inet6 fd00:2::10/64 scope global",
        "default via 192.0.2.1 proto static src 192.0.2.10 metric 50",
        "10.9.0.0/24 proto kernel scope link src 10.9.0.1 metric 100",
        "203.0.113.0/24 via 192.0.2.1 mtu 1400",
        "203.0.113.0/24 via 192.0.2.1 metric 9",
        "198.18.0.0/15 via 198.51.100.1 onlink",
        "default via fd00:2::1 metric 60",
        "fd00:98::/48 metric 5",
        "fd00:97::/48 via fd00:2::1 metric 1024",
        "192.0.2.200 lladdr 02:00:00:00:02:00 PERMANENT",
        "fd00:2::200 lladdr 02:00:00:00:02:01 PERMANENT",
    ] {
        assert!(moved_to.contains(line), "{line} in\n{moved_to}");
    }
    let confirmed = Event::MoveConfirmed { nic: "nic0".into(), host_if: "xenbr0".into() };
    assert_eq!(t.event(), confirmed);
    // Both ways, both families, each datagram once.
    for to in ["192.0.2.10", "192.0.2.11", "10.9.0.1", "fd00:2::10", "fd00:2::11"] {
        let told = far.sh(&format!("ping -c 3 -i 0.05 -W 1 {to}"));
        assert!(told.contains("3 received") && !told.contains("DUP"), "{told}");
    }
    for to in ["192.0.2.1", "198.51.100.77", "fd00:2::1"] {
        let told = sh(&format!("ping -c 2 -i 0.05 -W 1 {to}"));
        assert!(told.contains("2 received") && !told.contains("DUP"), "{told}");
    }
    // A second move of either is refused.
    let error = t.plumber.move_addresses("nic0", "xenbr0").unwrap_err().to_string();
    assert!(error.contains("already"), "{error}");
    let report = t.plumber.move_back("nic0").unwrap();
    assert!(report.is_clean() && report.notes.is_empty(), "{report}");
    is_as_before(&before, "moved back");
    assert!(is_clean(&state));
    // And again, undone by the end.
    t.plumber.move_addresses("nic0", "xenbr0").unwrap();
    let report = t.plumber.shutdown().unwrap();
    assert!(report.is_clean(), "{report}");
    is_as_before(&before, "shut down");
    let told = far.sh("ping -c 2 -i 0.05 -W 1 192.0.2.10");
    assert!(told.contains("2 received") && !told.contains("DUP"), "{told}");
    assert!(is_clean(&state));
}

fn move_loses_no_ping() {
    let far = host();
    switch();
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let pings = ["192.0.2.10", "fd00:2::10"].map(|to| {
        far.run(|| {
            Command::new("ping")
                .args(["-c", "150", "-i", "0.02", "-W", "1", to])
                .stdout(Stdio::piped())
                .spawn()
                .expect("ping")
        })
    });
    thread::sleep(Duration::from_millis(800));
    t.plumber.move_addresses("nic0", "xenbr0").unwrap();
    thread::sleep(Duration::from_millis(800));
    assert!(t.plumber.move_back("nic0").unwrap().is_clean());
    for ping in pings {
        let told = String::from_utf8(ping.wait_with_output().expect("ping").stdout).unwrap();
        let received = told.split(" received").next().and_then(|t| t.rsplit(' ').next());
        let received: u32 = received.and_then(|n| n.parse().ok()).expect("a count");
        // A second would be fifty of them. None is lost, as a rule; a busy machine delays one or the other.
        assert!(received >= 145, "{told}");
    }
}

/// Runs a move in a process that kills itself at a step; true if it did.
fn kill_at(state: &TempDir, step: &str) -> bool {
    kill_process(state, Some(step))
}

/// Runs a process that moves addresses and kills itself at a step, or puts a table in place and is killed then; true
/// if it killed itself.
pub(crate) fn kill_process(state: &TempDir, step: Option<&str>) -> bool {
    let mut child = Command::new(std::env::current_exe().expect("the test's own program"))
        .env(VICTIM, state.path())
        .envs(step.map(|step| (FailAt::VARIABLE, step)))
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut done = false;
    if let Some(out) = child.stdout.take() {
        use std::io::Read as _;
        // It says something if it was not killed; else its end of the pipe closes.
        done = std::io::BufReader::new(out).bytes().next().is_some();
    }
    let _ = child.kill();
    let status = child.wait().expect("its end");
    assert!(!status.success());
    !done
}

/// What a process says that has to do without `nft`.
pub(crate) fn without_nft(state: &TempDir) -> String {
    let program = std::env::current_exe().expect("the test's own program");
    let told = Command::new(program).env(VICTIM, state.path()).env("PATH", state.path()).output();
    String::from_utf8(told.expect("a process").stdout).expect("text")
}

/// How many steps the move of [`host`] has.
fn count_steps() -> usize {
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let Moved { steps, .. } = t.plumber.move_addresses("nic0", "xenbr0").expect("a move");
    assert!(t.plumber.shutdown().expect("its end").is_clean());
    steps
}

fn killed_at_each_step() {
    let far = host();
    switch();
    let before = both();
    let steps = count_steps();
    is_as_before(&before, "moved and back");
    assert!(steps > 20, "{steps}");
    for step in 0..steps {
        for when in ["", "+"] {
            let at = format!("{step}{when}");
            let state = state_dir();
            assert!(kill_at(&state, &at), "killed at {at} of {steps}");
            assert!(!is_clean(&state), "{at}");
            let report = Plumber::recover(state.path()).unwrap();
            assert!(report.is_clean() && report.notes.is_empty(), "{at}: {report}");
            is_as_before(&before, &format!("recovered from step {at} of {steps}"));
            assert!(is_clean(&state), "{at}");
        }
    }
    let told = far.sh("ping -c 2 -i 0.05 -W 1 192.0.2.10");
    assert!(told.contains("2 received"), "{told}");
    // After the last step, and recovered twice: the second time there is nothing to do.
    let state = state_dir();
    assert!(!kill_at(&state, &steps.to_string()));
    assert!(Plumber::recover(state.path()).unwrap().is_clean());
    assert!(Plumber::recover(state.path()).unwrap().is_clean());
    is_as_before(&before, "recovered twice");
}

fn failing_at_each_step() {
    let _far = host();
    switch();
    let before = both();
    let steps = count_steps();
    for step in 0..steps {
        for after in [false, true] {
            let state = state_dir();
            let how = Failure::Error;
            let t = plumber(&state, |options| options.fail_at = Some(FailAt { step, after, how }));
            match t.plumber.move_addresses("nic0", "xenbr0") {
                Err(HostError::PutBack { reason, report }) => {
                    assert!(reason.contains(&format!("step {step}")), "{reason}");
                    assert!(report.is_clean(), "{report}");
                }
                other => panic!("{step}: {other:?}"),
            }
            is_as_before(&before, &format!("put back after step {step} of {steps}"));
            assert!(is_clean(&state));
        }
    }
}

fn cut_off() {
    let _far = host();
    // No switch: the host interface leads nowhere.
    let before = both();
    let state = state_dir();
    let t = plumber(&state, |options| options.watch_for = Duration::from_millis(1500));
    t.plumber.move_addresses("nic0", "xenbr0").unwrap();
    match t.event() {
        Event::MoveUndone { nic, host_if, reason, report } => {
            assert_eq!((nic.as_str(), host_if.as_str()), ("nic0", "xenbr0"));
            assert!(reason.contains("gateway"), "{reason}");
            assert!(report.is_clean(), "{report}");
        }
        other => panic!("{other:?}"),
    }
    is_as_before(&before, "the watchdog put it back");
    assert!(is_clean(&state));
    // With the switch at work, it stays.
    switch();
    t.plumber.move_addresses("nic0", "xenbr0").unwrap();
    assert!(matches!(t.event(), Event::MoveConfirmed { .. }));
    thread::sleep(Duration::from_secs(2));
    assert!(t.events.try_recv().is_err());
}

fn link_down() {
    let _far = host();
    switch();
    sh("ip link set sw0 down");
    let before = both();
    let state = state_dir();
    let t = plumber(&state, |options| options.watch_for = Duration::from_millis(700));
    t.plumber.move_addresses("nic0", "xenbr0").unwrap();
    match t.event() {
        Event::MoveUndone { reason, report, .. } => {
            assert!(reason.contains("link of xenbr0"), "{reason}");
            assert!(report.is_clean(), "{report}");
        }
        other => panic!("{other:?}"),
    }
    is_as_before(&before, "the watchdog put it back");
}

fn keeps_lifetimes() {
    let _far = host();
    switch();
    sh("ip addr add 192.0.2.77/32 dev nic0 valid_lft 1000 preferred_lft 500
        ip -6 route add fd00:96::/48 via fd00:2::1 dev nic0 expires 600");
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let moved = t.plumber.move_addresses("nic0", "xenbr0").unwrap();
    assert!(
        moved.notes.iter().any(|note| note.contains("192.0.2.77") && note.contains("lease")),
        "{moved:?}"
    );
    let text = sh("ip addr show dev xenbr0");
    assert!(text.contains("valid_lft 1000sec") || text.contains("valid_lft 99"), "{text}");
    let route = |interface: &str| sh(&format!("ip -6 route show dev {interface} fd00:96::/48"));
    assert!(route("xenbr0").contains("expires 600sec") || route("xenbr0").contains("expires 59"));
    // Renewed there, it goes back with what it has.
    sh("ip addr change 192.0.2.77/32 dev xenbr0 valid_lft 5000 preferred_lft 4000");
    assert!(t.plumber.move_back("nic0").unwrap().is_clean());
    let text = sh("ip addr show dev nic0");
    assert!(text.contains("valid_lft 5000sec") || text.contains("valid_lft 499"), "{text}");
    assert!(route("nic0").contains("expires 600sec") || route("nic0").contains("expires 59"));
}

fn without_the_host_interface() {
    let _far = host();
    switch();
    let before = both().0;
    let state = state_dir();
    let steps = count_steps();
    assert!(!kill_at(&state, &steps.to_string()));
    // As a daemon's own interface goes with the daemon.
    sh("nft delete table netdev sw; ip link del xenbr0");
    let report = Plumber::recover(state.path()).unwrap();
    assert!(report.is_clean(), "{report}");
    until("no address is tentative", || !picture("nic0").contains("tentative"));
    assert_eq!(picture("nic0"), before);
    assert!(is_clean(&state));
}

fn without_the_nic() {
    let _far = host();
    switch();
    let state = state_dir();
    let steps = count_steps();
    let before = picture("xenbr0");
    assert!(!kill_at(&state, &steps.to_string()));
    sh("nft delete table netdev sw; ip link del nic0");
    let report = Plumber::recover(state.path()).unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(report.notes.iter().any(|note| note.contains("nic0 is gone")), "{report}");
    assert_eq!(picture("xenbr0"), before);
    assert!(is_clean(&state));
}

fn another_boot() {
    let _far = host();
    switch();
    let state = state_dir();
    let steps = count_steps();
    assert!(!kill_at(&state, &steps.to_string()));
    let file = state.path().join(JOURNAL_NAME);
    let text = std::fs::read_to_string(&file).unwrap();
    // Without its first line, nothing says which boot it is of.
    std::fs::write(&file, text.split_once('\n').unwrap().1).unwrap();
    let before = (picture("nic0"), picture("xenbr0"));
    let report = Plumber::recover(state.path()).unwrap();
    assert!(report.is_clean() && report.notes.iter().any(|note| note.contains("restarted")), "{report}");
    assert_eq!((picture("nic0"), picture("xenbr0")), before, "nothing was touched");
    assert!(is_clean(&state));
}

fn others_changed() {
    let _far = host();
    switch();
    sh("ip link add other0 type veth peer name other1; ip link set other0 up; ip link set other1 up
        ip addr add 172.16.0.2/24 dev other0");
    let state = state_dir();
    let t = plumber(&state, |_| {});
    t.plumber.move_addresses("nic0", "xenbr0").unwrap();
    sh("ip route replace default via 172.16.0.1 dev other0 metric 50");
    set_sysctl("ipv4/conf/nic0/rp_filter", "2");
    let report = t.plumber.move_back("nic0").unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.notes.len(), 2, "{report}");
    assert_eq!(sysctl("ipv4/conf/nic0/rp_filter"), "2");
    let text = sh("ip route show default");
    assert!(text.contains("other0") && !text.contains("nic0"), "{text}");
    assert!(sh("ip addr show dev nic0").contains("192.0.2.10/24"));
}

fn refusals() {
    let _far = host();
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let mut count = 0;
    let mut refused = |nic: &str, reason: &str| {
        let before = both();
        match t.plumber.move_addresses(nic, "xenbr0") {
            Err(HostError::Refused(text)) => assert!(text.contains(reason), "{nic}: {text}"),
            other => panic!("{nic}: {reason}: {other:?}"),
        }
        assert_eq!(both(), before, "{reason}");
        assert!(is_clean(&state));
        count += 1;
    };
    refused("no0", "no interface no0");
    refused("lo", "loopback");
    refused("xenbr0", "host interface itself");
    sh("ip tuntap add p2p0 mode tun; ip link set p2p0 up");
    refused("p2p0", "not an Ethernet interface");
    sh("ip link add br0 type bridge; ip link set nic0 master br0");
    refused("nic0", "belongs to br0");
    sh("ip link set nic0 nomaster; ip link add link nic0 name mv0 type macvlan");
    refused("nic0", "mv0 is made on nic0");
    sh("ip link del mv0; ip rule add iif nic0 table 77 priority 1234");
    refused("nic0", "1234");
    sh("ip rule del priority 1234
        ip route add 10.77.0.0/16 nexthop via 192.0.2.1 dev nic0 nexthop via 192.0.2.2 dev nic0");
    refused("nic0", "several next hops");
    sh(
        "ip route del 10.77.0.0/16; ip nexthop add id 5 via 192.0.2.1 dev nic0; ip route add 10.77.0.0/16 nhid 5",
    );
    refused("nic0", "next hop object");
    sh("ip route del 10.77.0.0/16; ip nexthop del id 5; ip link set nic0 arp off");
    refused("nic0", "ARP");
    sh("ip link set nic0 arp on; ip link set nic0 down");
    refused("nic0", "down");
    assert_eq!(count, 11);
}
