//! What the gateway tells its guests: DHCP (RFC 2131, RFC 2132) and router advertisements (RFC 4861, RFC 8106).

use anyhow::Result;

use super::rig::Rig;

super::tests![
    rfc2131_a_client_is_given_an_address_and_renews_it,
    rfc2131_answers_go_where_a_client_hears_them,
    rfc2131_init_reboot_is_acknowledged_refused_or_not_answered,
    rfc2131_decline_release_and_inform,
    rfc4861_routers_are_advertised,
];

/// A client: `ask(port, type, ...)` sends a message, `reply(port, type)` waits for its answer. What clients say to
/// all, the other guest hears too.
const CLIENT: &str = "
    SERVER = ('server_id', G)
    def ask(port, kind, *options, ciaddr='0.0.0.0', flags=0, to='255.255.255.255', mac=None, xid=0x5EED):
        mac = mac or port.mac
        chaddr = bytes.fromhex(mac.replace(':', ''))
        link = Ether(src=mac, dst=port.router if to != '255.255.255.255' else 'ff:ff:ff:ff:ff:ff')
        wanted = ('param_req_list', [1, 3, 6, 15, 26, 28, 51, 54, 58, 59])
        body = BOOTP(chaddr=chaddr, xid=xid, flags=flags, ciaddr=ciaddr)
        body = body / DHCP(options=[('message-type', kind), *options, wanted, 'end'])
        send(port, link / IP(src=ciaddr, dst=to) / UDP(sport=68, dport=67) / body)
    def options(packet):
        return {option[0]: option[1] for option in packet[DHCP].options if isinstance(option, tuple)}
    def reply(port, kind, xid=0x5EED):
        packet = want(port, DHCP, where=lambda p: p[BOOTP].op == 2 and p[BOOTP].xid == xid)
        same(options(packet)['message-type'], {'offer': 2, 'ack': 5, 'nak': 6}[kind])
        return packet
    def no_reply(port):
        none(port, DHCP, where=lambda p: p[BOOTP].op == 2)
    def lease(port, *more, **fields):
        ask(port, 'discover', *more, **fields)
        offered = reply(port, 'offer')[BOOTP].yiaddr
        ask(port, 'request', ('requested_addr', offered), SERVER, *more, **fields)
        given = reply(port, 'ack')
        same(given[BOOTP].yiaddr, offered)
        return given
";

fn rfc2131_a_client_is_given_an_address_and_renews_it(rig: &mut Rig) -> Result<()> {
    rig.network("mtu=1400 lease-time=1200 domain=lan.example dns-servers=198.51.100.53")?;
    rig.play(CLIENT)?;
    rig.play(
        "
        # It asks for an address that is free (option 50), and gets that one.
        ask(a, 'discover', ('requested_addr', '10.0.0.105'))
        offer = reply(a, 'offer')
        same(offer[BOOTP].yiaddr, '10.0.0.105')
        ask(a, 'request', ('requested_addr', '10.0.0.105'), SERVER)
        ack = reply(a, 'ack')
        told = options(ack)
        same(ack[BOOTP].yiaddr, '10.0.0.105')
        same((told['subnet_mask'], told['router'], told['server_id']), ('255.255.255.0', G, G))
        same((told['lease_time'], told['renewal_time'], told['rebinding_time']), (1200, 600, 1050))
        same(told['interface-mtu'], 1400)
        same((told['name_server'], told['domain']), ('198.51.100.53', b'lan.example'))
        # Renewing, to the server; rebinding, to all.
        ask(a, 'request', ciaddr='10.0.0.105', to=G)
        same(reply(a, 'ack')[BOOTP].yiaddr, '10.0.0.105')
        ask(a, 'request', ciaddr='10.0.0.105')
        same(reply(a, 'ack')[BOOTP].yiaddr, '10.0.0.105')
        # The identifier is the client (option 61): with another one, the same interface gets another address.
        other = lease(a, ('client_id', b'\\x00another'))
        true(other[BOOTP].yiaddr != '10.0.0.105', other[BOOTP].yiaddr)
        # The guest next to it is another client, even when it asks for the same.
        ask(b, 'discover', ('requested_addr', '10.0.0.105'))
        true(reply(b, 'offer')[BOOTP].yiaddr != '10.0.0.105')
        # A request to another server (option 54) is not for this one.
        ask(b, 'request', ('requested_addr', '10.0.0.109'), ('server_id', '10.0.0.77'))
        no_reply(b)
        ",
    )?;
    Ok(())
}

fn rfc2131_answers_go_where_a_client_hears_them(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(CLIENT)?;
    rig.play(
        "
        # To the hardware address; to all, for who sets the broadcast flag; to the address, for who has one.
        ask(a, 'discover')
        offer = reply(a, 'offer')
        same((offer.dst, offer[IP].dst), (a.mac, offer[BOOTP].yiaddr))
        ask(a, 'discover', flags=0x8000)
        offer = reply(a, 'offer')
        same((offer.dst, offer[IP].dst, offer[BOOTP].flags), ('ff:ff:ff:ff:ff:ff', '255.255.255.255', 0x8000))
        # But to no other guest's port, ever.
        no_reply(b)
        given = lease(a)[BOOTP].yiaddr
        ask(a, 'request', ciaddr=given, to=G)
        ack = reply(a, 'ack')
        same((ack.dst, ack[IP].dst, ack[IP].src), (a.mac, given, G))
        ",
    )?;
    Ok(())
}

fn rfc2131_init_reboot_is_acknowledged_refused_or_not_answered(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(CLIENT)?;
    rig.play(
        "
        given = lease(a)[BOOTP].yiaddr
        ask(a, 'request', ('requested_addr', given))
        same(reply(a, 'ack')[BOOTP].yiaddr, given)
        # On the wrong network it is told so, to all on the link.
        ask(a, 'request', ('requested_addr', '172.16.0.9'))
        nak = reply(a, 'nak')
        same((nak.dst, nak[BOOTP].yiaddr), ('ff:ff:ff:ff:ff:ff', '0.0.0.0'))
        # Its own is another one.
        ask(a, 'request', ('requested_addr', '10.0.0.110' if given != '10.0.0.110' else '10.0.0.109'))
        reply(a, 'nak')
        # Of a client that is not known, nothing is known.
        ask(b, 'request', ('requested_addr', '10.0.0.103' if given != '10.0.0.103' else '10.0.0.104'))
        no_reply(b)
        ",
    )?;
    Ok(())
}

fn rfc2131_decline_release_and_inform(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(CLIENT)?;
    rig.play(
        "
        # An address that somebody has is set aside, and another one given.
        first = lease(a)[BOOTP].yiaddr
        ask(a, 'decline', ('requested_addr', first), SERVER)
        second = lease(a)[BOOTP].yiaddr
        true(second != first)
        ask(b, 'discover', ('requested_addr', first))
        true(reply(b, 'offer')[BOOTP].yiaddr != first)
        # One that was released is the next one's who asks for it.
        ask(a, 'release', SERVER, ciaddr=second, to=G)
        settle()
        other = {'mac': '52:54:00:00:00:0c', 'xid': 0xC0DE}
        ask(b, 'discover', ('requested_addr', second), **other)
        same(reply(b, 'offer', 0xC0DE)[BOOTP].yiaddr, second)
        # INFORM: all but an address and a time.
        ask(a, 'inform', ciaddr=A)
        ack = reply(a, 'ack')
        told = options(ack)
        same((ack[BOOTP].yiaddr, ack[IP].dst, told['router']), ('0.0.0.0', A, G))
        true(not {'lease_time', 'renewal_time', 'rebinding_time'} & set(told), told)
        ",
    )?;
    Ok(())
}

fn rfc4861_routers_are_advertised(rig: &mut Rig) -> Result<()> {
    rig.network("mtu=1400 dns-servers=2001:db8:5::53")?;
    rig.play(
        "
        link = Ether(src=a.mac, dst='33:33:00:00:00:02')
        own = 'fe80::5054:ff:fe00:a'
        question = IPv6(src=own, dst='ff02::2', hlim=255) / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=a.mac)
        # Who has no address yet asks from none.
        unnamed = IPv6(src='::', dst='ff02::2', hlim=255) / ICMPv6ND_RS()
        for asked in (question, unnamed):
            send(a, link / asked)
            got = want(a, ICMPv6ND_RA)
            same((got[IPv6].hlim, got[IPv6].dst in ('ff02::1', own)), (255, True))
            true(got[IPv6].src.startswith('fe80::'), got[IPv6].src)
            true(got[ICMPv6ND_RA].routerlifetime > 0)
            same(got[ICMPv6NDOptMTU].mtu, 1400)
            same((got[ICMPv6NDOptPrefixInfo].prefix, got[ICMPv6NDOptPrefixInfo].prefixlen), ('fd00::', 64))
            same(got[ICMPv6NDOptRDNSS].dns, ['2001:db8:5::53'])
            same(got[ICMPv6NDOptSrcLLAddr].lladdr, got.src)
        # Nobody outside is advertised to.
        none(u, ICMPv6ND_RA)
        ",
    )?;
    // What has travelled over a router (another hop limit), or is broken, is not answered.
    rig.play(
        "
        deadline = time.monotonic() + PATIENCE
        for bad in (
            IPv6(src=own, dst='ff02::2', hlim=254) / ICMPv6ND_RS(),
            IPv6(src=own, dst='ff02::2', hlim=255) / ICMPv6ND_RS(code=1),
            IPv6(src=own, dst='ff02::2', hlim=255) / ICMPv6ND_RS(cksum=0x1234),
            IPv6(src='::', dst='ff02::2', hlim=255) / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=a.mac),
        ):
            send(a, link / bad)
        none(a, ICMPv6ND_RA, dst=own)
        ",
    )?;
    Ok(())
}
