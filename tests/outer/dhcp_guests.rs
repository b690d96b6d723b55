//! DHCP clients in real guests: over vhost-user, with another kernel's stack, and across an end of the daemon.

use anyhow::{Context, Result, ensure};
use harness::{DaemonOptions, Guest, GuestOptions, Need, Netns, Role, Suite, eventually};

use crate::lan::{GATEWAY, LAN, LIMIT, Lan, Mode, ensure_in_range};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Guests];

/// What both programs run: it gives the NIC the address and says what it was told.
pub(crate) const SCRIPT: &str = r#"cat >/tmp/script <<'END'
#!/bin/sh
event=$1$reason
case $event in
  bound|renew) address=$ip/$mask;;
  BOUND|RENEW|REBIND|REBOOT) address=$new_ip_address/24;;
  deconfig|RELEASE) ip -4 address flush dev $interface;;
esac
if [ "$address" ]; then
  ip -4 address flush dev $interface
  ip address add $address dev $interface
  ip route replace default via $router$new_routers dev $interface
fi
echo "$address $router$new_routers $dns$new_domain_name_servers $domain$new_domain_name $mtu$new_interface_mtu" >/tmp/$event
END
chmod 755 /tmp/script
: >/tmp/leases; echo 'request subnet-mask, routers, domain-name, domain-name-servers, interface-mtu;' >/tmp/conf
"#;

pub(crate) const UDHCPC: &str =
    "udhcpc -i eth0 -b -p /tmp/pid -s /tmp/script -x hostname:$NAME -O mtu -t 20 -T 1 >/dev/null 2>&1";
const DHCLIENT: &str =
    "dhclient -4 -1 -cf /tmp/conf -lf /tmp/leases -pf /tmp/pid -sf /tmp/script eth0 >/dev/null 2>&1";

/// The guests: name, MAC address, and how each asks.
const GUESTS: [(&str, &str, &str); 2] =
    [("vm0", "52:54:00:00:00:20", UDHCPC), ("vm1", "52:54:00:00:00:21", DHCLIENT)];

pub(crate) fn register(suite: &mut Suite) {
    for mode in [Mode::Routed, Mode::Nat] {
        let name =
            format!("guests_lease_renew_and_release_on_a_{}_network_across_the_daemons_end", mode.name());
        suite.add(name, NEEDS, move || whole_life(mode));
    }
}

/// Waits for an event that the guest's script wrote, and takes it.
pub(crate) fn await_told(guest: &mut Guest, event: &str) -> Result<String> {
    eventually(&format!("{event} in the guest"), LIMIT, || {
        let told = guest.try_run(&format!("cat /tmp/{event} && rm /tmp/{event}"))?;
        Ok(if told.code == 0 { Ok(told.stdout.trim().to_string()) } else { Err(told.stdout) })
    })
}

fn whole_life(mode: Mode) -> Result<()> {
    let sockets = tempfile::tempdir()?;
    let host = Netns::new("host")?;
    let kind = if mode == Mode::Nat { "mode = \"nat\"\negress = \"host\"" } else { "mode = \"routed\"" };
    let mut config = format!(
        "[network.{LAN}]\n{kind}\nsubnet = \"10.9.0.0/24\"\ndhcp = \"10.9.0.50-10.9.0.99\"\ndns = true\n\
         domain = \"lab.test\"\nlease-time = 120\nmtu = 1400\n"
    );
    for (name, mac, _) in GUESTS {
        let socket = sockets.path().join(name);
        config.push_str(&format!(
            "\n[port.{name}]\nnetwork = \"{LAN}\"\nkind = \"vhost-user:{}\"\nmac = \"{mac}\"\n",
            socket.display()
        ));
    }
    let daemon = DaemonOptions::default().netns(&host).config(config).start()?;
    let mut lan = Lan { host, daemon };
    let mut guests = Vec::new();
    let options = GuestOptions { role: Role::Reconnecting, ..GuestOptions::default() };
    for (name, mac, _) in GUESTS {
        guests.push(Guest::boot(&sockets.path().join(name), mac, &options)?);
    }
    let mut addresses = Vec::new();
    for (guest, (name, mac, ask)) in guests.iter_mut().zip(GUESTS) {
        guest.run(&format!("{SCRIPT}\nNAME={name}\n{ask}")).context("asking for a lease")?;
        let told = await_told(guest, if ask == UDHCPC { "bound" } else { "BOUND" })?;
        let [address, rest] = &told.splitn(2, ' ').collect::<Vec<_>>()[..] else { anyhow::bail!("{told}") };
        ensure!(*rest == format!("{GATEWAY} {GATEWAY} lab.test 1400"), "{name} was told {told}");
        let address = address.strip_suffix("/24").with_context(|| told.clone())?.to_string();
        ensure_in_range(&address, 50, 99)?;
        let lease = lan.lease_of(mac)?.context("no lease is listed")?;
        ensure!(lease.ip == address, "{lease:?}, and {name} has {address}");
        addresses.push(address);
    }
    let [vm0, vm1] = &mut guests[..] else { anyhow::bail!("two guests") };
    vm0.run(&format!("ping -c 2 -W 5 {}; ping -c 2 -W 5 {GATEWAY}", addresses[1]))?;
    let found = vm1.run(&format!("nslookup vm0.lab.test {GATEWAY}"))?;
    ensure!(found.contains(&addresses[0]), "vm1 does not find vm0: {found}");

    lan.daemon.kill();
    lan.daemon.restart()?;
    for (name, mac, _) in GUESTS {
        lan.daemon.await_port(name, "up")?;
        ensure!(lan.lease_of(mac)?.is_some(), "the lease of {name} is lost: {:?}", lan.leases()?);
    }
    vm0.run("kill -USR1 $(cat /tmp/pid)")?;
    let told = await_told(vm0, "renew")?;
    ensure!(told.starts_with(&format!("{}/24 ", addresses[0])), "vm0 renewed to {told}");
    // The other one ends without a word, starts again and remembers.
    vm1.run(&format!("kill -9 $(cat /tmp/pid)\n{DHCLIENT}"))?;
    let told = await_told(vm1, "REBOOT")?;
    ensure!(told.starts_with(&format!("{}/24 ", addresses[1])), "vm1 came back to {told}");
    vm0.run(&format!("ping -c 2 -W 5 {}", addresses[1]))?;

    vm0.run("kill -USR2 $(cat /tmp/pid)")?;
    vm1.run(
        "dhclient -4 -r -cf /tmp/conf -lf /tmp/leases -pf /tmp/pid -sf /tmp/script eth0 >/dev/null 2>&1",
    )?;
    eventually("the leases gone", LIMIT, || {
        let leases = lan.leases()?;
        Ok(if leases.is_empty() { Ok(()) } else { Err(format!("{leases:?}")) })
    })
}
