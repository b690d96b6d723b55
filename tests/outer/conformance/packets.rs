//! What is not changed, and what is not let through: RFC 4787 (REQ-10), RFC 5382 (REQ-6), RFC 2827, broken packets,
//! and IPv6 the same as IPv4.

use anyhow::{Result, ensure};

use super::rig::Rig;

super::tests![
    rfc4787_req10_there_are_no_gateways_of_applications,
    options_of_tcp_are_not_touched,
    rfc768_a_datagram_without_a_checksum_stays_without,
    rfc2827_only_the_subnet_has_a_way_out,
    nothing_is_bridged_between_inside_and_outside,
    broken_packets_do_no_harm,
    what_cannot_be_translated_is_dropped_and_counted,
    ipv6_is_translated_by_the_same_rules,
    ipv6_errors_and_hop_limits_are_translated,
];

fn rfc4787_req10_there_are_no_gateways_of_applications(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        def say(kind, dport, load):
            send(a, IP(src=A, dst=R) / kind / load)
            got = want(u, type(kind), dst=R, dport=dport)
            same(bytes(got[type(kind)].payload), load)
            return got
        # Addresses of the inside in what applications say to each other, at the ports where that is usual.
        port = b'PORT 10,0,0,10,15,160\\r\\n'
        for dport, load in (
            (21, port),
            (6667, b'PRIVMSG x :\\x01DCC SEND file 167772170 4001 100\\x01\\r\\n'),
            (5060, b'INVITE sip:x@203.0.113.9 SIP/2.0\\r\\nVia: SIP/2.0/TCP 10.0.0.10:5060\\r\\n'),
            (1723, bytes(range(60))),
        ):
            say(TCP(sport=4000, dport=dport, flags='S', seq=1), dport, b'')
            say(TCP(sport=4000, dport=dport, flags='PA', seq=2, ack=1), dport, load)
        for dport, load in ((5060, b'SIP/2.0 200 OK\\r\\nContact: <sip:10.0.0.10:5060>\\r\\n'), (69, b'\\0\\1file\\0octet\\0')):
            say(UDP(sport=4000, dport=dport), dport, load)
        # Nor is anybody let in for what was said.
        for dport in (4000, 4001, 5060):
            send(u, IP(src=R, dst=X) / TCP(sport=20, dport=dport, flags='A'))
        silence()
        ",
    )?;
    Ok(())
}

fn options_of_tcp_are_not_touched(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        syn = [('MSS', 8960), ('SAckOK', b''), ('Timestamp', (77, 0)), ('NOP', None), ('WScale', 7)]
        packet = TCP(sport=4000, dport=7000, flags='SEC', seq=7, window=64240, options=syn)
        send(a, IP(src=A, dst=R, tos=3) / packet)
        got = want(u, TCP)
        x = got[TCP].sport
        same((got[TCP].options, got[TCP].flags, got[TCP].window, got[IP].tos), (syn, 'SEC', 64240, 3))
        back = [('NOP', None)] * 4 + [('SAck', (500, 600, 700, 800)), ('Timestamp', (5, 77))]
        send(u, IP(src=R, dst=X) / TCP(sport=7000, dport=x, flags='SAE', seq=9, ack=8, urgptr=3, options=back))
        got = want(a, TCP)
        same((got[TCP].options, got[TCP].flags, got[TCP].urgptr), (back, 'SAE', 3))
        ",
    )?;
    Ok(())
}

fn rfc768_a_datagram_without_a_checksum_stays_without(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        # The first goes by the slow path, which knows no neighbour yet; the second does not.
        for _ in range(2):
            send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000, chksum=0) / b'x')
            got = want(u, UDP)
            same(got[UDP].chksum, 0)
            send(u, IP(src=R, dst=X) / UDP(sport=7000, dport=got[UDP].sport, chksum=0) / b'y')
            same(want(a, UDP)[UDP].chksum, 0)
        # A sum that comes out as zero is written as its other zero.
        for number in range(40):
            send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000) / struct.pack('!H', 0xFFFF - number * 1601))
            true(want(u, UDP)[UDP].chksum != 0)
        ",
    )?;
    Ok(())
}

fn rfc2827_only_the_subnet_has_a_way_out(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000))
        x = want(u, UDP)[UDP].sport
        # Addresses of other networks, ours, the gateway's, and none of a host.
        sources = ['10.0.1.10', '198.51.100.7', X, R, G, '10.0.0.0', '10.0.0.255', '0.0.0.0', '127.0.0.1', '224.0.0.1']
        for source in sources:
            send(a, IP(src=source, dst=R) / UDP(sport=4000, dport=7000))
        # Outside nobody is a guest.
        for source in (A, B, '10.0.0.77', G):
            send(u, IP(src=source, dst=X) / UDP(sport=7000, dport=x))
        silence()
        V = len(sources)
        ",
    )?;
    let (a, u) = (rig.dropped("a", "rpf")?, rig.dropped("up0", "rpf")?);
    ensure!((a, u) == (10, 4), "dropped for their sources: {a} of the guest's, {u} of the outside's");
    Ok(())
}

fn nothing_is_bridged_between_inside_and_outside(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        everybody = 'ff:ff:ff:ff:ff:ff'
        body = UDP(sport=7000, dport=7001) / b'x'
        for frame in (
            Ether(dst=everybody) / IP(src=NH, dst='255.255.255.255') / body,
            Ether(dst=everybody) / IP(src=NH, dst='192.0.2.255') / body,
            Ether(dst='01:00:5e:00:00:fb') / IP(src=NH, dst='224.0.0.251') / body,
            Ether(dst='33:33:00:00:00:01') / IPv6(src=NH6, dst='ff02::1') / body,
            Ether(dst=a.mac) / IP(src=R, dst=A) / body,
            Ether(dst=u.router) / IP(src=R, dst=A) / body,
            Ether(dst=u.router) / IP(src=R, dst=G) / body,
            Ether(dst=a.mac) / IP(src=R, dst=X) / body,
            Ether(dst=everybody) / ARP(hwsrc=u.mac, psrc=NH, pdst=A),
            Ether(dst=everybody, type=0x88B5) / Raw(b'of an experiment'),
            Ether(dst=everybody) / IP(src='0.0.0.0', dst='255.255.255.255') / UDP(sport=68, dport=67) / bytes(240),
        ):
            frame.src = u.mac
            send(u, frame)
        none(a)
        none(b)
        none(u, ARP, op=2)
        # A guest's broadcasts stay with the guests.
        for frame in (
            Ether(dst=everybody) / IP(src=A, dst='255.255.255.255') / body,
            Ether(dst='01:00:5e:00:00:fb') / IP(src=A, dst='224.0.0.251') / body,
            Ether(dst='33:33:00:00:00:01') / IPv6(src=A6, dst='ff02::1') / body,
            Ether(dst=everybody, type=0x88B5) / Raw(b'of an experiment'),
            Ether(dst=u.mac) / IP(src=A, dst=NH) / body,
        ):
            frame.src = a.mac
            send(a, frame)
            want(b, where=lambda p: p.src == a.mac and p.dst == frame.dst)
        none(u)
        ",
    )?;
    Ok(())
}

fn broken_packets_do_no_harm(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        # A packet whose header is wrong, or that is cut short, comes out nowhere.
        good = bytes(IP(src=A, dst=R, id=9) / UDP(sport=4000, dport=7000) / b'sixteen bytes ok')
        link = bytes(Ether(src=a.mac, dst=a.router, type=0x800))
        def raw(packet):
            send(a, Raw(link + bytes(packet)))
        def changed(at, value):
            packet = bytearray(good)
            packet[at] = value
            return packet
        raw(changed(10, good[10] ^ 1))
        raw(changed(0, 0x44))
        raw(changed(0, 0x4F))
        raw(changed(0, 0x65))
        raw(changed(3, 255))
        for length in range(0, len(good)):
            raw(good[:length])
        # Less of a transport header than there are ports.
        for proto in (1, 6, 17):
            for length in (0, 1, 3, 7):
                send(a, IP(src=A, dst=R, proto=proto) / Raw(bytes(length)))
        send(a, IP(src=A, dst=R, proto=6) / Raw(bytes(12) + b'\\x10' + bytes(7)))
        send(a, IP(src=A, dst=R, proto=6) / Raw(bytes(12) + b'\\xF0' + bytes(7)))
        for length in range(0, 60):
            send(a, Raw((bytes(Ether(src=a.mac, dst=a.router, type=0x86DD)) + bytes([0x60]) + bytes(59))[:14 + length]))
        silence()
        # And then all goes on.
        send(a, IP(good))
        want(u, UDP, src=X, dst=R)
        ",
    )?;
    // A wrong transport checksum stays wrong: it is not ours to mend, nor is the packet let in as a sound one.
    rig.play(
        "
        send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000, chksum=0x1234) / b'wrong')
        pump(1)
        settle()
        wrong = [p for p in heard(u, UDP) if payload(p) == b'wrong']
        same((len(wrong), len(faults)), (len(wrong), len(wrong)))
        faults.clear()
        ",
    )?;
    Ok(())
}

fn what_cannot_be_translated_is_dropped_and_counted(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000))
        want(u, UDP)
        send(a, IP(src=A, dst=R, proto=47) / bytes(20))
        send(a, IP(src=A, dst=R, proto=50) / bytes(20))
        send(a, IP(src=A, dst=R, proto=132) / bytes(20))
        send(a, IP(src=A, dst=R) / ICMP(type=0, id=1))
        send(a, IP(src=A, dst=R) / TCP(sport=4000, dport=7000, flags='A'))
        send(a, IP(src=A, dst='240.0.0.1') / UDP(sport=4000, dport=7000))
        silence()
        ",
    )?;
    for (reason, wanted) in [("nat_unsupported", 4), ("nat_no_mapping", 1), ("not_routed", 1)] {
        let dropped = rig.dropped("a", reason)?;
        ensure!(dropped == wanted, "{reason}: {dropped}, not {wanted}");
    }
    Ok(())
}

fn ipv6_is_translated_by_the_same_rules(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        # Mapping and filtering, of all three protocols.
        for kind, fields in ((UDP, {}), (TCP, {'flags': 'S'})):
            outside = set()
            for remote, port in ((R6, 7000), (R6, 7001), (S6, 7000)):
                send(a, IPv6(src=A6, dst=remote, hlim=64) / kind(sport=4000, dport=port, **fields) / b'x')
                got = want(u, kind, src=X6, dst=remote, dport=port, hlim=63)
                outside.add(got[kind].sport)
            same(len(outside), 1)
        send(b, IPv6(src=B6, dst=R6) / UDP(sport=4000, dport=7000))
        other = want(u, UDP, src=X6)[UDP].sport
        send(a, IPv6(src=A6, dst=R6) / UDP(sport=4001, dport=7000))
        x = want(u, UDP, src=X6)[UDP].sport
        true(other != x)
        for number, (remote, port) in enumerate(((R6, 7000), (R6, 7005), (S6, 7000))):
            send(u, IPv6(src=remote, dst=X6) / UDP(sport=port, dport=x) / bytes([number]))
        same(sorted(payload(p)[0] for p in heard(a, UDP, dst=A6, dport=4001)), [0, 1])
        send(a, IPv6(src=A6, dst=R6) / ICMPv6EchoRequest(id=77, seq=5, data=b'ping'))
        got = want(u, ICMPv6EchoRequest, src=X6, dst=R6, seq=5)
        send(u, IPv6(src=R6, dst=X6) / ICMPv6EchoReply(id=got[ICMPv6EchoRequest].id, seq=5, data=b'pong'))
        same(want(a, ICMPv6EchoReply, src=R6, dst=A6, id=77)[ICMPv6EchoReply].data, b'pong')
        # Hairpin, and our outside address answers.
        send(b, IPv6(src=B6, dst=X6) / UDP(sport=4000, dport=x) / b'punch')
        # It is filtered: the other way has not been opened yet.
        none(a, UDP)
        send(a, IPv6(src=A6, dst=X6) / UDP(sport=4001, dport=other) / b'hairpin')
        same(payload(want(b, UDP, src=X6, sport=x, dst=B6, dport=4000)), b'hairpin')
        send(u, IPv6(src=R6, dst=X6) / ICMPv6EchoRequest(id=1, seq=2, data=b'ping'))
        want(u, ICMPv6EchoReply, src=X6, dst=R6, id=1)
        # Only the subnet has a way out.
        for source in ('fd01::a', '2001:db8::77', 'fe80::5054:ff:fe00:a', '::', 'ff02::1'):
            send(a, IPv6(src=source, dst=R6) / UDP(sport=4000, dport=7000))
        silence()
        ",
    )?;
    Ok(())
}

fn ipv6_errors_and_hop_limits_are_translated(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        packet = IPv6(bytes(IPv6(src=A6, dst=R6, hlim=64) / UDP(sport=4000, dport=7000) / b'payload'))
        send(a, packet)
        got = want(u, UDP, src=X6)
        for told in (ICMPv6DestUnreach(code=0), ICMPv6PacketTooBig(mtu=1280), ICMPv6TimeExceeded(code=0)):
            send(u, IPv6(src=HOP6, dst=X6) / told / Raw(bytes(got[IPv6])))
            seen = want(a, type(told), src=HOP6, dst=A6)
            wanted = packet.copy()
            wanted.hlim = 63
            same(bytes(seen[type(told)])[8:], bytes(wanted))
        # A guest's error shows the outside address.
        back = IPv6(bytes(IPv6(src=R6, dst=X6, hlim=50) / UDP(sport=7000, dport=got[UDP].sport) / b'back'))
        send(u, back)
        seen = want(a, UDP, src=R6, dst=A6, dport=4000, hlim=49)
        send(a, IPv6(src=A6, dst=R6) / ICMPv6DestUnreach(code=4) / Raw(bytes(seen[IPv6])))
        told = want(u, ICMPv6DestUnreach, src=X6, dst=R6, code=4)
        wanted = back.copy()
        wanted.hlim = 49
        same(bytes(told[ICMPv6DestUnreach])[8:], bytes(wanted))
        # Hop limits that end, on either side, and of whom nobody is told.
        send(a, IPv6(src=A6, dst=R6, hlim=1) / UDP(sport=4000, dport=7000))
        want(a, ICMPv6TimeExceeded, src=G6, dst=A6)
        send(u, IPv6(src=R6, dst=X6, hlim=1) / UDP(sport=7000, dport=got[UDP].sport))
        want(u, ICMPv6TimeExceeded, src=X6, dst=R6)
        send(a, IPv6(src=A6, dst=R6, hlim=1) / ICMPv6DestUnreach(code=4) / Raw(bytes(seen[IPv6])))
        send(a, IPv6(src='ff02::1', dst=R6, hlim=1) / UDP(sport=4000, dport=7000))
        # Fragments, in order and reversed.
        load = bytes(index * 7 % 256 for index in range(3000))
        for order in (1, -1):
            whole = IPv6(src=A6, dst=R6) / IPv6ExtHdrFragment(id=5 + order) / UDP(sport=4000, dport=7000) / load
            out = fragment6(whole, 1280)
            send(a, out[::order])
            pieces = [want(u, IPv6ExtHdrFragment, src=X6, dst=R6) for _ in out]
            pieces.sort(key=lambda p: p[IPv6ExtHdrFragment].offset)
            datagram = b''.join(bytes(p[IPv6ExtHdrFragment].payload) for p in pieces)
            same(datagram[8:], load)
            pseudo = socket.inet_pton(socket.AF_INET6, X6) + socket.inet_pton(socket.AF_INET6, R6)
            same(total(pseudo + struct.pack('!2H', 17, len(datagram)) + datagram), 0xFFFF)
        silence()
        ",
    )?;
    Ok(())
}
