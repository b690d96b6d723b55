//! For whom the router answers ARP and neighbour discovery, and for whom not.

use anyhow::{Context, Result, ensure};
use harness::{Need, Netns, Suite, eventually};

use super::{FAR4, HOST4, LIMIT, NET, ROUTER4, ROUTER6, Rig, reach};

const ARPING: &[Need] = &[Need::Namespaces, Need::Ping, Need::Program("arping")];
const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping];

pub(super) fn register(suite: &mut Suite) {
    suite.add("routed_guests_get_arp_answers_for_every_address_but_their_own", ARPING, answers_to_guests);
    suite.add("routed_the_host_gets_arp_answers_for_guests_only", ARPING, answers_to_the_host);
    suite.add("routed_guests_get_nd_answers_for_every_address", NEEDS, discovery);
    suite.add("routed_duplicate_address_detection_fails_for_others_addresses_only", NEEDS, duplicates);
}

/// The MAC address that answers for `address` on a link; `None` if nobody does.
pub(super) fn arping(from: &Netns, interface: &str, address: &str) -> Result<Option<String>> {
    let output = from.try_run(&format!("arping -c 2 -w 3 -I {interface} {address}"))?;
    let answer = output.stdout.lines().find(|line| line.contains("reply from"));
    let mac = answer.and_then(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_ascii_lowercase()));
    ensure!(mac.is_some() == (output.code == 0), "{output:?}");
    Ok(mac)
}

/// The MAC address that neighbour discovery finds for `address`; `None` if nobody answers. The address must be on
/// the link for the kernel.
pub(super) fn discovered(from: &Netns, interface: &str, address: &str) -> Result<Option<String>> {
    from.try_run(&format!("ip -6 neigh del {address} dev {interface}"))?;
    from.try_run(&format!("ping -c 1 -W 1 {address}"))?;
    // Three questions, a second apart, before the kernel gives up.
    eventually("neighbour discovery", LIMIT, || {
        let entry = from.run(&format!("ip -6 neigh show {address} dev {interface}"))?;
        let mut words = entry.split_whitespace().skip_while(|word| *word != "lladdr").skip(1);
        Ok(match words.next() {
            Some(mac) => Ok(Some(mac.to_string())),
            None if entry.trim().is_empty() || entry.contains("FAILED") => Ok(None),
            None => Err(entry),
        })
    })
}

fn answers_to_guests() -> Result<()> {
    let rig = Rig::new("")?;
    let (a, b) = (rig.guest(10, "")?, rig.guest(20, "")?);
    let router = rig.shown("gateway_mac")?;
    for address in [ROUTER4, &b.v4(), "10.7.0.77", HOST4, FAR4, "192.0.2.10", "203.0.113.5"] {
        let answer = arping(&a.namespace, "t10", address)?;
        ensure!(answer.as_deref() == Some(&*router), "{address}: {answer:?}, the router is {router}");
    }
    // Its own address is its own: asked for with it, and looked for with none.
    ensure!(arping(&a.namespace, "t10", &a.v4())?.is_none(), "the router answers for the guest itself");
    let looks_for = |address: &str| -> Result<bool> {
        Ok(a.namespace.try_run(&format!("arping -D -c 2 -w 2 -I t10 {address}"))?.code != 0)
    };
    ensure!(!looks_for(&a.v4())?, "a guest that looks for others with its address finds one");
    ensure!(!looks_for("10.7.0.77")?, "an address that nobody has is taken");
    ensure!(looks_for(&b.v4())?, "a guest that looks for another's address finds nobody");
    ensure!(looks_for(ROUTER4)?, "a guest that looks for the router's address finds nobody");
    Ok(())
}

fn answers_to_the_host() -> Result<()> {
    let rig = Rig::new("")?;
    let guest = rig.guest(10, "")?;
    let router = rig.shown("gateway_mac")?;
    for address in [guest.v4(), ROUTER4.to_string()] {
        let answer = arping(&rig.host, NET, &address)?;
        ensure!(answer.as_deref() == Some(&*router), "{address}: {answer:?}, the router is {router}");
    }
    for address in ["10.7.0.77", "192.0.2.10", FAR4] {
        let answer = arping(&rig.host, NET, address)?;
        ensure!(answer.is_none(), "{address} is no guest's, and {answer:?} answers");
    }
    rig.daemon.ok("port del t10")?;
    ensure!(arping(&rig.host, NET, &guest.v4())?.is_none(), "a guest that is gone is answered for");
    Ok(())
}

fn discovery() -> Result<()> {
    let rig = Rig::new("")?;
    let (a, b) = (rig.guest(10, "")?, rig.guest(20, "")?);
    let router = rig.shown("gateway_mac")?;
    // On the link, as far as these machines know.
    a.run("ip -6 route add fd00:7::/64 dev t10; ip -6 route add 2001:db8:5::/64 dev t10")?;
    for address in [ROUTER6, &b.v6(), "fd00:7::77", "2001:db8:5::5", "fd00:99::10"] {
        let answer = discovered(&a.namespace, "t10", address)?;
        ensure!(answer.as_deref() == Some(&*router), "{address}: {answer:?}, the router is {router}");
    }
    // To the host for guests only.
    rig.host.run(&format!("ip -6 route add fd00:7::/64 dev {NET}"))?;
    let answer = discovered(&rig.host, NET, &a.v6())?;
    ensure!(answer.as_deref() == Some(&*router), "{answer:?}, the router is {router}");
    let answer = discovered(&rig.host, NET, "fd00:7::77")?;
    ensure!(answer.is_none(), "fd00:7::77 is nobody's, and {answer:?} answers");
    reach(&a.namespace, &b.v6())
}

fn duplicates() -> Result<()> {
    let rig = Rig::new("")?;
    let (a, b) = (rig.guest(10, "")?, rig.guest(20, "")?);
    reach(&a.namespace, &b.v6())?;
    a.run("echo 1 >/proc/sys/net/ipv6/conf/t10/accept_dad; ip -6 address flush dev t10 scope global")?;
    // The kernel looks for others that have the address before it takes it.
    for (address, free) in
        [(a.v6(), true), ("fd00:7::77".to_string(), true), (b.v6(), false), (ROUTER6.to_string(), false)]
    {
        a.run(&format!("ip address add {address}/128 dev t10"))?;
        let shown = eventually("the end of duplicate address detection", LIMIT, || {
            let shown = a.run(&format!("ip -6 address show dev t10 to {address}"))?;
            let ended = shown.contains("dadfailed") || !shown.contains("tentative");
            Ok(if ended { Ok(shown) } else { Err(shown) })
        })?;
        ensure!(shown.contains(&address), "{address} is gone: {shown}");
        ensure!(shown.contains("dadfailed") != free, "{address}, free: {free}: {shown}");
        if !free {
            // The kernel heeds no answers of others for an address that it has, failed or not.
            a.run(&format!("ip address del {address}/128 dev t10"))?;
        }
    }
    reach(&a.namespace, &b.v6()).context("with an address that was looked for")
}
