//! Who may send to an inside endpoint from outside: RFC 4787 (REQ-8), RFC 5382 (REQ-3).

use anyhow::{Result, ensure};

use super::rig::Rig;

super::tests![
    rfc4787_req8_filtering_by_address_is_the_default,
    rfc4787_req8_filtering_by_address_and_port,
    rfc4787_req8_filtering_by_nothing,
    rfc5382_req3_connections_from_outside_are_filtered_alike,
    rfc4787_req8_a_forward_is_open_to_all,
];

/// Who of (R, 7000), (R, 7001) and (S, 7000) reaches an endpoint that has sent to the first of them.
fn datagrams(rig: &mut Rig, keys: &str, reach: &str) -> Result<()> {
    rig.network(keys)?;
    rig.play(&format!(
        "
        send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000))
        x = want(u, UDP)[UDP].sport
        for number, (remote, port) in enumerate(((R, 7000), (R, 7001), (S, 7000))):
            send(u, IP(src=remote, dst=X) / UDP(sport=port, dport=x) / bytes([number]))
        got = heard(a, UDP, dst=A, dport=4000)
        same(sorted(payload(packet)[0] for packet in got), {reach})
        silence()
        "
    ))?;
    Ok(())
}

fn rfc4787_req8_filtering_by_address_is_the_default(rig: &mut Rig) -> Result<()> {
    datagrams(rig, "", "[0, 1]")?;
    ensure!(rig.dropped("up0", "nat_filtered")? == 1, "one is dropped, and counted");
    datagrams(rig, "filtering=address-dependent", "[0, 1]")
}

fn rfc4787_req8_filtering_by_address_and_port(rig: &mut Rig) -> Result<()> {
    datagrams(rig, "filtering=address-and-port-dependent", "[0]")?;
    ensure!(rig.dropped("up0", "nat_filtered")? == 2, "two are dropped, and counted");
    Ok(())
}

fn rfc4787_req8_filtering_by_nothing(rig: &mut Rig) -> Result<()> {
    datagrams(rig, "filtering=endpoint-independent", "[0, 1, 2]")?;
    ensure!(rig.dropped("up0", "nat_filtered")? == 0, "nothing is filtered");
    Ok(())
}

fn rfc5382_req3_connections_from_outside_are_filtered_alike(rig: &mut Rig) -> Result<()> {
    let cases = [
        ("address-and-port-dependent", "[]"),
        ("address-dependent", "[1]"),
        ("endpoint-independent", "[1, 2]"),
    ];
    for (filtering, reach) in cases {
        rig.network(&format!("filtering={filtering}"))?;
        rig.play(&format!(
            "
            send(a, IP(src=A, dst=R) / TCP(sport=4000, dport=7000, flags='S'))
            x = want(u, TCP)[TCP].sport
            for number, (remote, port) in ((1, (R, 7001)), (2, (S, 7000))):
                send(u, IP(src=remote, dst=X) / TCP(sport=port, dport=x, flags='S', seq=number))
                # Without a connection, nothing but a request is let in.
                send(u, IP(src=remote, dst=X) / TCP(sport=port + 10, dport=x, flags='A', seq=8))
            got = heard(a, TCP, dst=A, dport=4000)
            same(sorted(packet[TCP].seq for packet in got), {reach})
            silence()
            "
        ))?;
    }
    Ok(())
}

fn rfc4787_req8_a_forward_is_open_to_all(rig: &mut Rig) -> Result<()> {
    rig.network("filtering=address-and-port-dependent")?;
    rig.daemon.ok("forward add n udp 8080 10.0.0.10:80")?;
    rig.play(
        "
        for remote, port in ((R, 7000), (S, 7001)):
            send(u, IP(src=remote, dst=X) / UDP(sport=port, dport=8080) / b'in')
            got = want(a, UDP, src=remote, sport=port, dst=A, dport=80)
            send(a, IP(src=A, dst=remote) / UDP(sport=80, dport=port) / b'out')
            want(u, UDP, src=X, sport=8080, dst=remote, dport=port)
        silence()
        ",
    )?;
    Ok(())
}
