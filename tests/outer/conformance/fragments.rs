//! Fragments: RFC 4787 (REQ-14).

use anyhow::{Context, Result, ensure};

use super::rig::Rig;

super::tests![
    rfc4787_req14_fragments_pass_in_any_order,
    rfc4787_req14_fragments_of_strangers_do_not,
    rfc4787_req14_a_flood_of_fragments_is_bounded,
];

fn rfc4787_req14_fragments_pass_in_any_order(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        load = bytes(index * 7 % 256 for index in range(4000))
        orders = {'in order': lambda l: l, 'reversed': lambda l: l[::-1], 'first in the middle': lambda l: l[1:] + l[:1]}
        number = 100
        for order in orders.values():
            number += 1
            out = fragment(IP(src=A, dst=R, id=number) / UDP(sport=4000, dport=7000) / load, 1200)
            true(len(out) >= 3)
            send(a, order(out))
            pieces = [want(u, IP, src=X, dst=R, id=number) for _ in out]
            datagram = joined(pieces)
            same(datagram[8:], load)
            true(all(piece[IP].ttl == 63 for piece in pieces))
            x = int.from_bytes(datagram[:2], 'big')
            # The checksum of the whole is right at the other end.
            pseudo = IP(src=X, dst=R).src and socket.inet_aton(X) + socket.inet_aton(R)
            same(total(pseudo + struct.pack('!2H', 17, len(datagram)) + datagram), 0xFFFF)

            back = fragment(IP(src=R, dst=X, id=number) / UDP(sport=7000, dport=x) / load, 1200)
            send(u, order(back))
            pieces = [want(a, IP, src=R, dst=A, id=number) for _ in back]
            datagram = joined(pieces)
            same((datagram[2:4], datagram[8:]), ((4000).to_bytes(2, 'big'), load))
            pseudo = socket.inet_aton(R) + socket.inet_aton(A)
            same(total(pseudo + struct.pack('!2H', 17, len(datagram)) + datagram), 0xFFFF)
        silence()
        # Echo requests may be as long.
        send(a, fragment(IP(src=A, dst=R, id=200) / ICMP(id=77, seq=1) / load, 1200))
        pieces = [want(u, IP, src=X, dst=R, id=200) for _ in range(4)]
        same(joined(pieces)[8:], load)
        same(total(joined(pieces)), 0xFFFF)
        ",
    )?;
    Ok(())
}

fn rfc4787_req14_fragments_of_strangers_do_not(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000))
        x = want(u, UDP)[UDP].sport
        # The first one is filtered: so are those after it, and those before it.
        pieces = fragment(IP(src=S, dst=X, id=7) / UDP(sport=7000, dport=x) / bytes(3000), 1200)
        send(u, pieces)
        send(u, fragment(IP(src=S, dst=X, id=8) / UDP(sport=7000, dport=x) / bytes(3000), 1200)[::-1])
        # Nor do a stranger's get by on the identification of somebody who is let in.
        send(u, pieces[1:])
        silence()
        ",
    )?;
    Ok(())
}

/// Kibibytes of memory that the daemon has resident.
fn resident(rig: &Rig) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", rig.daemon.pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

fn rfc4787_req14_a_flood_of_fragments_is_bounded(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play("send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000))\nx = want(u, UDP)[UDP].sport")?;
    let before = resident(rig)?;
    rig.play(
        "
        # Later fragments without a first one, from a guest and from outside: 12 MB of each.
        for number in range(10000):
            send(a, IP(src=A, dst=R, id=number, frag=9, proto=17) / bytes(1200))
            send(u, IP(src=S, dst=X, id=number, frag=9, proto=17) / bytes(1200))
        # The other guest's are not lost by it, reversed as they are.
        out = fragment(IP(src=B, dst=R, id=60000) / UDP(sport=4000, dport=7000) / bytes(3000), 1200)
        send(b, out[::-1])
        same(len(joined([want(u, IP, id=60000) for _ in out])), 3008)
        # Nor the flooding one's own that follow.
        out = fragment(IP(src=A, dst=R, id=60001) / UDP(sport=4000, dport=7000) / bytes(3000), 1200)
        send(a, out[::-1])
        same(len(joined([want(u, IP, id=60001) for _ in out])), 3008)
        silence()
        ",
    )?;
    let after = resident(rig)?;
    ensure!(after < before + 6 * 1024, "the daemon had {before} KiB, and has {after} KiB");
    Ok(())
}
