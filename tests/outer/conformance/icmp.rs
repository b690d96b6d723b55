//! ICMP queries, errors of others, and the translator's own errors: RFC 5508, RFC 4787 (REQ-12, 13), RFC 5382 (REQ-9),
//! RFC 1812 (4.3.2, 5.3.1).

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::eventually;
use serde_json::json;

use super::rig::Rig;

super::tests![
    rfc5508_req1_queries_are_mapped_by_their_identifiers,
    rfc5508_req3_errors_with_wrong_checksums_are_dropped,
    rfc5508_req4_errors_from_outside_show_what_the_guest_sent,
    rfc5508_req4_errors_of_no_session_are_dropped,
    rfc5508_req5_errors_from_guests_show_the_outside_address,
    rfc5508_req6_errors_end_no_session,
    rfc5508_req7_errors_are_hairpinned,
    rfc1812_the_hop_limit_counts_and_its_end_is_told,
    rfc1812_no_error_is_about_what_deserves_none,
    rfc1812_errors_are_limited_in_rate,
    rfc4787_req13_too_big_for_the_outside_is_told_or_cut,
    rfc4787_req13_too_big_for_a_guest_is_told_or_cut,
];

fn rfc5508_req1_queries_are_mapped_by_their_identifiers(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        outside = {}
        for port, guest in ((a, A), (b, B)):
            seen = set()
            for remote in (R, S):
                send(port, IP(src=guest, dst=remote) / ICMP(id=77, seq=5) / b'ping')
                got = want(u, ICMP, src=X, dst=remote, type=8, seq=5)
                seen.add(got[ICMP].id)
            same(len(seen), 1)
            outside[guest] = seen.pop()
        true(outside[A] != outside[B], 'an identifier of two guests')
        for port, guest in ((a, A), (b, B)):
            send(u, IP(src=R, dst=X) / ICMP(type=0, id=outside[guest], seq=5) / b'pong')
            same(payload(want(port, ICMP, src=R, dst=guest, type=0, id=77, seq=5)), b'pong')
        # Nobody was asked there.
        send(u, IP(src=NH, dst=X) / ICMP(type=0, id=outside[A], seq=5))
        silence()
        # Timestamps are queries, too.
        send(a, IP(src=A, dst=R) / ICMP(type=13, id=78, seq=1))
        x = want(u, ICMP, type=13)[ICMP].id
        send(u, IP(src=R, dst=X) / ICMP(type=14, id=x, seq=1))
        want(a, ICMP, type=14, id=78)
        ",
    )?;
    Ok(())
}

/// What errors are about: a packet of each protocol, as A sent it, and as it was seen outside.
const SENT: &str = "
    sent = {}
    for name, body in (
        ('udp', UDP(sport=4000, dport=7000) / b'payload of a datagram'),
        ('tcp', TCP(sport=4000, dport=7000, flags='S', seq=1000, options=[('MSS', 1460)])),
        ('icmp', ICMP(id=77, seq=3) / b'payload of a query'),
    ):
        packet = IP(bytes(IP(src=A, dst=R, id=4711, ttl=64) / body))
        send(a, packet)
        sent[name] = (packet, want(u, where=lambda p: IP in p and p[IP].dst == R))
    def header(packet, **fields):
        # The IP header, and all after it, as it is with other fields.
        changed = packet.copy()
        for name, value in fields.items():
            setattr(changed, name, value)
        del changed.chksum
        return bytes(changed)
";

fn rfc5508_req4_errors_from_outside_show_what_the_guest_sent(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(SENT)?;
    rig.play(
        "
        # Types 3 (all of RFC 5382, REQ-9), 11, 12; with as little as must be quoted, some more, and everything.
        for name, (inner, outer) in sent.items():
            for kind, code, mtu in ((3, 0, 0), (3, 1, 0), (3, 3, 0), (3, 4, 1300), (11, 0, 0), (12, 0, 0)):
                for keep in (28, 36, 1500):
                    told = error4(outer, kind, code, mtu, keep)
                    send(u, told)
                    got = want(a, ICMP, src=HOP, dst=A, type=kind, code=code)
                    same(got[IP].ttl, 63)
                    same(got[ICMP].nexthopmtu if code == 4 else 0, mtu)
                    # It had its hop limit decremented on the way out; all else, its checksums too, is as it was.
                    wanted = header(inner, ttl=63)[:keep]
                    quote = bytes(got[ICMP])[8:]
                    if name == 'icmp' and keep < len(wanted):
                        same(quote, wanted)
                    same(quote, wanted)
        silence()
        ",
    )?;
    Ok(())
}

fn rfc5508_req4_errors_of_no_session_are_dropped(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(SENT)?;
    rig.play(
        "
        inner, outer = sent['udp']
        stray = outer.copy()
        # Another port of ours, another remote, and none of our addresses.
        for fields in ({'sport': outer[UDP].sport ^ 1}, {'dport': 7001}):
            stray = outer.copy()
            for name, value in fields.items():
                setattr(stray[UDP], name, value)
            send(u, error4(stray))
        stray = outer.copy()
        stray[IP].src = A
        send(u, IP(src=HOP, dst=X) / ICMP(type=3, code=1) / Raw(bytes(stray[IP])[:28]))
        stray[IP].src = S
        send(u, IP(src=HOP, dst=X) / ICMP(type=3, code=1) / Raw(bytes(stray[IP])[:28]))
        # Quotes of nothing, and of less than ports.
        for keep in (0, 8, 20, 22):
            send(u, error4(outer, keep=keep))
        silence()
        ",
    )?;
    Ok(())
}

fn rfc5508_req3_errors_with_wrong_checksums_are_dropped(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(SENT)?;
    rig.play(
        "
        inner, outer = sent['udp']
        # The message's own checksum, and that of the quoted header.
        bad = bytearray(bytes(error4(outer)))
        bad[22] ^= 1
        send(u, IP(bytes(bad)))
        quote = bytearray(bytes(outer[IP])[:28])
        quote[10] ^= 1
        send(u, IP(src=HOP, dst=X) / ICMP(type=3, code=1) / Raw(bytes(quote)))
        silence()
        # The quoted datagram's checksum is not looked at.
        quote = bytearray(bytes(outer[IP])[:28])
        quote[26] ^= 1
        send(u, IP(src=HOP, dst=X) / ICMP(type=3, code=1) / Raw(bytes(quote)))
        want(a, ICMP, src=HOP, type=3)
        ",
    )?;
    Ok(())
}

fn rfc5508_req5_errors_from_guests_show_the_outside_address(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.daemon.ok("forward add n udp 8080 10.0.0.10:80")?;
    rig.daemon.ok("forward add n tcp 8080 10.0.0.10:80")?;
    rig.play(SENT)?;
    rig.play(
        "
        for body in (UDP(sport=9, dport=8080) / b'anybody?', TCP(sport=9, dport=8080, flags='S', seq=7)):
            packet = IP(bytes(IP(src=R, dst=X, id=99, ttl=50) / body))
            send(u, packet)
            got = want(a, where=lambda p: IP in p and p[IP].id == 99)
            for keep in (28, 1500):
                send(a, IP(src=A, dst=R) / ICMP(type=3, code=3) / Raw(bytes(got[IP])[:keep]))
                told = want(u, ICMP, src=X, dst=R, type=3, code=3)
                same(bytes(told[ICMP])[8:], header(packet, ttl=49)[:keep])
        silence()
        ",
    )?;
    Ok(())
}

fn rfc5508_req6_errors_end_no_session(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(SENT)?;
    rig.play(
        "
        for name, (inner, outer) in sent.items():
            for code in (0, 1, 2, 3, 4, 9, 13):
                send(u, error4(outer, 3, code, 1300 if code == 4 else 0))
                want(a, ICMP, type=3, code=code)
        outer = sent['udp'][1]
        send(u, IP(src=R, dst=X) / UDP(sport=7000, dport=outer[UDP].sport) / b'alive')
        want(a, UDP, dst=A, dport=4000)
        outer = sent['tcp'][1]
        send(u, IP(src=R, dst=X) / TCP(sport=7000, dport=outer[TCP].sport, flags='SA', ack=1001))
        want(a, TCP, dst=A, dport=4000, flags='SA')
        outer = sent['icmp'][1]
        send(u, IP(src=R, dst=X) / ICMP(type=0, id=outer[ICMP].id, seq=3) / b'alive')
        want(a, ICMP, dst=A, type=0, id=77)
        ",
    )?;
    for protocol in ["udp", "tcp"] {
        ensure!(rig.sessions(protocol)?.len() == 1, "{protocol}: {:?}", rig.sessions(protocol)?);
    }
    Ok(())
}

fn rfc5508_req7_errors_are_hairpinned(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.daemon.ok("forward add n udp 8080 10.0.0.11:80")?;
    rig.play(SENT)?;
    rig.play(
        "
        packet = IP(bytes(IP(src=A, dst=X, id=99, ttl=50) / UDP(sport=4000, dport=8080) / b'anybody?'))
        send(a, packet)
        got = want(b, UDP, src=X, dst=B, dport=80)
        send(b, IP(src=B, dst=X) / ICMP(type=3, code=3) / Raw(bytes(got[IP])))
        told = want(a, ICMP, src=X, dst=A, type=3, code=3)
        same(bytes(told[ICMP])[8:], header(packet, ttl=49))
        # And an echo request to the outside address is answered from there, by whoever has it: the translator.
        send(a, IP(src=A, dst=X) / ICMP(id=5, seq=6) / b'ping')
        same(payload(want(a, ICMP, src=X, dst=A, type=0, id=5, seq=6)), b'ping')
        silence()
        ",
    )?;
    Ok(())
}

fn rfc1812_the_hop_limit_counts_and_its_end_is_told(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(SENT)?;
    rig.play(
        "
        x = sent['udp'][1][UDP].sport
        for ttl in (255, 64, 3, 2):
            send(a, IP(src=A, dst=R, ttl=ttl) / UDP(sport=4000, dport=7000))
            same(want(u, UDP)[IP].ttl, ttl - 1)
            send(u, IP(src=R, dst=X, ttl=ttl) / UDP(sport=7000, dport=x))
            same(want(a, UDP)[IP].ttl, ttl - 1)
        for ttl in (1, 0):
            packet = IP(bytes(IP(src=A, dst=R, ttl=ttl) / UDP(sport=4000, dport=7000) / b'too far'))
            send(a, packet)
            told = want(a, ICMP, src=G, dst=A, type=11, code=0)
            same(bytes(told[ICMP])[8:], bytes(packet))
            packet = IP(bytes(IP(src=R, dst=X, ttl=ttl) / UDP(sport=7000, dport=x) / b'too far'))
            send(u, packet)
            told = want(u, ICMP, src=X, dst=R, type=11, code=0)
            same(bytes(told[ICMP])[8:], bytes(packet))
        silence()
        ",
    )?;
    Ok(())
}

fn rfc1812_no_error_is_about_what_deserves_none(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(SENT)?;
    rig.play(
        "
        inner, outer = sent['udp']
        x = outer[UDP].sport
        last = {'ttl': 1}
        body = UDP(sport=4000, dport=7000) / b'x'
        # Errors, redirects, later fragments; what goes to many; what is from many, from nobody, from others.
        for packet in (
            IP(src=A, dst=R, **last) / ICMP(type=3, code=3) / Raw(bytes(inner)[:28]),
            IP(src=A, dst=R, **last) / ICMP(type=11) / Raw(bytes(inner)[:28]),
            IP(src=A, dst=R, **last) / ICMP(type=5, code=1) / Raw(bytes(inner)[:28]),
            IP(src=A, dst=R, frag=9, proto=17, **last) / b'later',
            IP(src=A, dst='224.0.0.251', **last) / body,
            IP(src=A, dst='255.255.255.255', **last) / body,
            IP(src=A, dst='10.0.0.255', **last) / body,
            IP(src='224.0.0.1', dst=R, **last) / body,
            IP(src='255.255.255.255', dst=R, **last) / body,
            IP(src='0.0.0.0', dst=R, **last) / body,
            IP(src='127.0.0.1', dst=R, **last) / body,
            IP(src='10.0.0.255', dst=R, **last) / body,
            IP(src='198.51.100.7', dst=R, **last) / body,
        ):
            send(a, packet)
        # Sent to all on the link.
        everybody = Ether(src=a.mac, dst='ff:ff:ff:ff:ff:ff')
        send(a, everybody / IP(src=A, dst=R, **last) / body)
        for packet in (
            IP(src=R, dst=X, **last) / ICMP(type=3, code=3) / Raw(bytes(outer[IP])[:28]),
            IP(src=R, dst=X, frag=9, proto=17, **last) / b'later',
            IP(src='224.0.0.1', dst=X, **last) / UDP(sport=7000, dport=x),
            IP(src='0.0.0.0', dst=X, **last) / UDP(sport=7000, dport=x),
            IP(src='255.255.255.255', dst=X, **last) / UDP(sport=7000, dport=x),
        ):
            send(u, packet)
        send(u, Ether(src=u.mac, dst='ff:ff:ff:ff:ff:ff') / IP(src=R, dst=X, **last) / UDP(sport=7000, dport=x))
        none(a, ICMP)
        none(u)
        ",
    )?;
    Ok(())
}

fn rfc1812_errors_are_limited_in_rate(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        packet = IP(src=A, dst=R, ttl=1) / UDP(sport=4000, dport=7000)
        begun = time.monotonic()
        send(a, packet, count=600)
        # What the other guest is told does not hang on that.
        send(b, IP(src=B, dst=R, ttl=1) / UDP(sport=4000, dport=7000))
        want(b, ICMP, src=G, type=11)
        told = len(heard(a, ICMP, type=11))
        passed = time.monotonic() - begun
        true(1 <= told <= 11 + 100 * passed, '%d errors in %.2f s' % (told, passed))
        ",
    )?;
    Ok(())
}

fn rfc4787_req13_too_big_for_the_outside_is_told_or_cut(rig: &mut Rig) -> Result<()> {
    rig.host.run("ip link set up0 mtu 1400")?;
    let told = too_big_for_the_outside(rig);
    rig.host.run("ip link set up0 mtu 1500")?;
    told
}

fn too_big_for_the_outside(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        packet = IP(bytes(IP(src=A, dst=R, flags='DF', id=99) / UDP(sport=4000, dport=7000) / bytes(1400)))
        send(a, packet)
        told = want(a, ICMP, src=G, dst=A, type=3, code=4)
        same(told[ICMP].nexthopmtu, 1400)
        same(bytes(told[ICMP])[8:], bytes(packet)[:len(bytes(told[ICMP])) - 8])
        # What fits goes, and what may be cut goes in pieces that fit.
        send(a, IP(src=A, dst=R, flags='DF') / UDP(sport=4000, dport=7000) / bytes(1372))
        same(want(u, UDP)[IP].len, 1400)
        load = bytes(index * 7 % 256 for index in range(1460))
        send(a, IP(src=A, dst=R, id=100) / UDP(sport=4000, dport=7000) / load)
        pieces = [want(u, IP, id=100) for _ in range(2)]
        true(all(piece[IP].len <= 1400 for piece in pieces))
        same(joined(pieces)[8:], load)
        # IPv6 is never cut.
        send(a, IPv6(src=A6, dst=R6) / UDP(sport=4000, dport=7000) / bytes(1400))
        told = want(a, ICMPv6PacketTooBig, src=G6, dst=A6)
        same(told[ICMPv6PacketTooBig].mtu, 1400)
        silence()
        ",
    )?;
    // What the interface takes may change.
    rig.host.run("ip link set up0 mtu 1320")?;
    let script = "
        send(a, IP(src=A, dst=R, flags='DF') / UDP(sport=4000, dport=7000) / bytes(1360))
        settle()
        V = [packet[ICMP].nexthopmtu for packet in heard(a, ICMP, type=3, code=4)]
    ";
    eventually("the interface's new MTU", Duration::from_secs(20), || {
        let told = rig.play(script)?;
        Ok(if told == json!([1320]) { Ok(()) } else { Err(format!("told of {told}")) })
    })
}

fn rfc4787_req13_too_big_for_a_guest_is_told_or_cut(rig: &mut Rig) -> Result<()> {
    rig.network_with("", "mtu=1300", "")?;
    rig.play(
        "
        send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000))
        x = want(u, UDP)[UDP].sport
        packet = IP(bytes(IP(src=R, dst=X, flags='DF', id=99) / UDP(sport=7000, dport=x) / bytes(1400)))
        send(u, packet)
        told = want(u, ICMP, src=X, dst=R, type=3, code=4)
        same(told[ICMP].nexthopmtu, 1300)
        same(bytes(told[ICMP])[8:], bytes(packet)[:len(bytes(told[ICMP])) - 8])
        load = bytes(index * 7 % 256 for index in range(1400))
        send(u, IP(src=R, dst=X, id=100) / UDP(sport=7000, dport=x) / load)
        pieces = [want(a, IP, id=100) for _ in range(2)]
        true(all(piece[IP].len <= 1300 for piece in pieces))
        same(joined(pieces)[8:], load)
        send(a, IPv6(src=A6, dst=R6) / UDP(sport=4000, dport=7000))
        x = want(u, UDP, src=X6)[UDP].sport
        send(u, IPv6(src=R6, dst=X6) / UDP(sport=7000, dport=x) / bytes(1400))
        told = want(u, ICMPv6PacketTooBig, src=X6, dst=R6)
        same(told[ICMPv6PacketTooBig].mtu, 1300)
        silence()
        ",
    )?;
    Ok(())
}
