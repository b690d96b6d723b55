//! Which outside port an inside endpoint gets: RFC 4787 (REQ-1, 3, 4, 6, 9), RFC 5382 (REQ-1, 7, 8), RFC 6888 (REQ-4),
//! RFC 7857 (5, 9).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::eventually;
use serde_json::Value;

use super::rig::Rig;

super::tests![
    rfc4787_req1_two_remotes_see_one_outside_port,
    rfc4787_req3_guests_with_the_same_port_share_none,
    rfc4787_req4_udp_ports_keep_their_parity,
    rfc4787_req6_what_goes_out_refreshes,
    rfc4787_req9_guests_meet_by_hole_punching_at_the_outside_address,
    rfc5382_req8_tcp_is_hairpinned_by_a_forward,
    rfc6888_req4_a_guest_at_its_quota_is_alone_with_it,
    rfc7857_9_outside_ports_are_spread,
];

fn rfc4787_req1_two_remotes_see_one_outside_port(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        for kind, fields in ((UDP, {}), (TCP, {'flags': 'S'})):
            outside = set()
            for remote, port in ((R, 7000), (R, 7001), (S, 7000), (NH, 7000)):
                send(a, IP(src=A, dst=remote) / kind(sport=4000, dport=port, **fields) / b'x')
                seen = want(u, kind, src=X, dst=remote, dport=port)
                outside.add(seen[kind].sport)
            same(len(outside), 1)
        ",
    )?;
    // UDP's mapping and TCP's are apart (RFC 7857, 5), each with four sessions.
    for protocol in ["udp", "tcp"] {
        let sessions = rig.sessions(protocol)?;
        ensure!(sessions.len() == 4, "{protocol}: {sessions:?}");
        let outside = |session: &Value| session["outside"].clone();
        ensure!(sessions.iter().all(|s| outside(s) == outside(&sessions[0])), "{protocol}: {sessions:?}");
        ensure!(sessions.iter().all(|s| s["inside"] == "10.0.0.10:4000"), "{protocol}: {sessions:?}");
    }
    Ok(())
}

fn rfc4787_req3_guests_with_the_same_port_share_none(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        for kind, fields in ((UDP, {}), (TCP, {'flags': 'S'})):
            owner = {}
            for sport in range(4000, 4100):
                for port, guest in ((a, A), (b, B)):
                    send(port, IP(src=guest, dst=R) / kind(sport=sport, dport=7000, **fields) / guest.encode())
                    seen = want(u, kind, src=X, dst=R)
                    same(payload(seen), guest.encode())
                    true(seen[kind].sport not in owner, 'a port of two endpoints')
                    true(seen[kind].sport >= 1024, 'a port of its own system')
                    owner[seen[kind].sport] = (port, guest, sport)
            if kind is UDP:
                # And what comes back finds the one whose port it is.
                for outside, (port, guest, sport) in owner.items():
                    send(u, IP(src=R, dst=X) / UDP(sport=7000, dport=outside) / b'back')
                    want(port, UDP, dst=guest, dport=sport)
        silence()
        ",
    )?;
    Ok(())
}

fn rfc4787_req4_udp_ports_keep_their_parity(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        for sport in range(4000, 4060):
            send(a, IP(src=A, dst=R) / UDP(sport=sport, dport=7000))
            same(want(u, UDP)[UDP].sport % 2, sport % 2)
        ",
    )?;
    Ok(())
}

/// The seconds that the only session of UDP has been idle.
fn idle(rig: &Rig) -> Result<u64> {
    let sessions = rig.sessions("udp")?;
    ensure!(sessions.len() == 1, "{sessions:?}");
    sessions[0]["idle_s"].as_u64().with_context(|| format!("no number idle_s in {sessions:?}"))
}

fn rfc4787_req6_what_goes_out_refreshes(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000))
        want(u, UDP)
        ",
    )?;
    eventually("a session that idles", Duration::from_secs(20), || {
        let idle = idle(rig)?;
        Ok(if idle >= 2 { Ok(()) } else { Err(format!("idle for {idle} s")) })
    })?;
    rig.play(
        "
        send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000))
        want(u, UDP)
        ",
    )?;
    let now = idle(rig)?;
    ensure!(now <= 1, "after a packet from inside the session is idle for {now} s");
    Ok(())
}

fn rfc4787_req9_guests_meet_by_hole_punching_at_the_outside_address(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        # Each learns of the other's outside port by a server, sends there, and is heard: from the outside address.
        outside = {}
        for port, guest, sport in ((a, A, 4000), (b, B, 5000)):
            send(port, IP(src=guest, dst=R) / UDP(sport=sport, dport=7000))
            outside[guest] = want(u, UDP)[UDP].sport
        send(a, IP(src=A, dst=X) / UDP(sport=4000, dport=outside[B]) / b'too early')
        none(b, UDP)
        for _ in range(3):
            send(b, IP(src=B, dst=X) / UDP(sport=5000, dport=outside[A]) / b'from b')
            got = want(a, UDP, src=X, sport=outside[B], dst=A, dport=4000)
            same((payload(got), got[IP].ttl, got.src), (b'from b', 63, a.router))
            send(a, IP(src=A, dst=X) / UDP(sport=4000, dport=outside[B]) / b'from a')
            got = want(b, UDP, src=X, sport=outside[A], dst=B, dport=5000)
            same((payload(got), got[IP].ttl, got.src), (b'from a', 63, b.router))
        silence()
        ",
    )?;
    Ok(())
}

fn rfc5382_req8_tcp_is_hairpinned_by_a_forward(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.daemon.ok("forward add n tcp 8080 10.0.0.11:80")?;
    rig.play(
        "
        send(a, IP(src=A, dst=X) / TCP(sport=4000, dport=8080, flags='S', seq=100))
        syn = want(b, TCP, src=X, dst=B, dport=80, flags='S')
        back = syn[TCP].sport
        send(b, IP(src=B, dst=X) / TCP(sport=80, dport=back, flags='SA', seq=900, ack=101))
        want(a, TCP, src=X, dst=A, sport=8080, dport=4000, flags='SA', ack=101)
        send(a, IP(src=A, dst=X) / TCP(sport=4000, dport=8080, flags='PA', seq=101, ack=901) / b'question')
        same(payload(want(b, TCP, src=X, sport=back, flags='PA')), b'question')
        send(b, IP(src=B, dst=X) / TCP(sport=80, dport=back, flags='PA', seq=901, ack=109) / b'answer')
        same(payload(want(a, TCP, src=X, sport=8080, flags='PA')), b'answer')
        silence()
        ",
    )?;
    Ok(())
}

fn rfc6888_req4_a_guest_at_its_quota_is_alone_with_it(rig: &mut Rig) -> Result<()> {
    rig.network("quota=16")?;
    rig.play(
        "
        for sport in range(4000, 4040):
            send(a, IP(src=A, dst=R) / UDP(sport=sport, dport=7000))
        settle()
        same(len(heard(u, UDP)), 16)
        # The other one has its own sixteen, and what the first one has goes on.
        for sport in range(4000, 4016):
            send(b, IP(src=B, dst=R) / UDP(sport=sport, dport=7000))
            want(u, UDP)
        send(a, IP(src=A, dst=R) / UDP(sport=4000, dport=7000))
        want(u, UDP)
        silence()
        ",
    )?;
    let dropped = rig.dropped("a", "nat_quota")?;
    ensure!(dropped == 24, "{dropped} frames were dropped for the quota, not 24");
    Ok(())
}

fn rfc7857_9_outside_ports_are_spread(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        # Of neighbouring inside ports, and as they come.
        got = []
        for sport in range(10000, 10512):
            send(a, IP(src=A, dst=R) / TCP(sport=sport, dport=7000, flags='S'))
            got.append(want(u, TCP)[TCP].sport)
        same(len(set(got)), 512)
        same(sum(port == sport for port, sport in zip(got, range(10000, 10512))) < 8, True)
        # Eight parts of the range have 64 each, give or take five standard deviations.
        parts = [0] * 8
        for port in got:
            parts[(port - 1024) * 8 // 64512] += 1
        true(all(27 <= part <= 101 for part in parts), parts)
        # From one to the next it goes up as often as down, and hardly ever by one.
        steps = [after - before for before, after in zip(got, got[1:])]
        true(200 < sum(step > 0 for step in steps) < 312, steps)
        true(sum(abs(step) == 1 for step in steps) < 4, steps)
        ",
    )?;
    Ok(())
}
