//! What is followed of TCP: RFC 5382 (REQ-2, 4), RFC 7857 (2).

use anyhow::{Result, ensure};

use super::rig::Rig;

super::tests![
    rfc5382_req2_a_connection_from_inside_lives_and_ends,
    rfc5382_req2_both_sides_may_open_at_once,
    rfc5382_req4_an_unsolicited_request_is_not_answered_for_six_seconds,
    rfc7857_2_a_reset_ends_nothing_at_once,
];

/// The state of the only session of TCP.
fn state(rig: &Rig) -> Result<String> {
    let sessions = rig.sessions("tcp")?;
    ensure!(sessions.len() == 1, "{sessions:?}");
    Ok(sessions[0]["state"].as_str().unwrap_or_default().to_string())
}

fn await_state(rig: &Rig, told: &str, wanted: &str) -> Result<()> {
    let state = state(rig)?;
    ensure!(state == wanted, "{told}: the session is {state}, not {wanted}");
    Ok(())
}

/// Opens a connection from A, port 4000, to R, port 7000.
const OPEN: &str = "
    def out(flags, seq, ack=0, load=b''):
        send(a, IP(src=A, dst=R) / TCP(sport=4000, dport=7000, flags=flags, seq=seq, ack=ack) / load)
        return want(u, TCP, src=X, dst=R, dport=7000, flags=flags, seq=seq)
    def back(flags, seq, ack=0, load=b''):
        send(u, IP(src=R, dst=X) / TCP(sport=7000, dport=x, flags=flags, seq=seq, ack=ack) / load)
        return want(a, TCP, src=R, dst=A, sport=7000, dport=4000, flags=flags, seq=seq)
    x = out('S', 100)[TCP].sport
    back('SA', 500, 101)
    out('A', 101, 501)
";

fn rfc5382_req2_a_connection_from_inside_lives_and_ends(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play("send(a, IP(src=A, dst=R) / TCP(sport=4000, dport=7000, flags='S', seq=100))\nwant(u, TCP)")?;
    await_state(rig, "half open", "transitory")?;
    rig.play(OPEN)?;
    await_state(rig, "open", "established")?;
    rig.play(
        "
        same(payload(out('PA', 101, 501, b'question')), b'question')
        same(payload(back('PA', 501, 109, b'answer')), b'answer')
        out('FA', 109, 507)
        back('A', 507, 110)
        # Half closed, the other way still carries.
        same(payload(back('PA', 507, 110, b'more')), b'more')
        ",
    )?;
    await_state(rig, "half closed", "established")?;
    rig.play(
        "
        back('FA', 511, 110)
        out('A', 110, 512)
        ",
    )?;
    await_state(rig, "closed", "transitory")
}

fn rfc5382_req2_both_sides_may_open_at_once(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        send(a, IP(src=A, dst=R) / TCP(sport=4000, dport=7000, flags='S', seq=100))
        x = want(u, TCP, flags='S')[TCP].sport
        send(u, IP(src=R, dst=X) / TCP(sport=7000, dport=x, flags='S', seq=500))
        want(a, TCP, src=R, dst=A, sport=7000, dport=4000, flags='S', seq=500)
        send(a, IP(src=A, dst=R) / TCP(sport=4000, dport=7000, flags='SA', seq=100, ack=501))
        want(u, TCP, sport=x, flags='SA')
        send(u, IP(src=R, dst=X) / TCP(sport=7000, dport=x, flags='SA', seq=500, ack=101))
        want(a, TCP, flags='SA')
        send(a, IP(src=A, dst=R) / TCP(sport=4000, dport=7000, flags='PA', seq=101, ack=501) / b'both')
        same(payload(want(u, TCP, sport=x, flags='PA')), b'both')
        silence()
        ",
    )?;
    await_state(rig, "open", "established")
}

fn rfc5382_req4_an_unsolicited_request_is_not_answered_for_six_seconds(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(
        "
        # To a port that is nobody's, to one that is filtered, and to one that its guest is going to ask from.
        send(a, IP(src=A, dst=S) / TCP(sport=4000, dport=7000, flags='S'))
        x = want(u, TCP)[TCP].sport
        begun = time.monotonic()
        free = next(port for port in range(2000, 2010) if port != x)
        send(u, IP(src=R, dst=X) / TCP(sport=6001, dport=free, flags='S'))
        send(u, IP(src=R, dst=X) / TCP(sport=6002, dport=x, flags='S'))
        send(u, IP(src=R, dst=X) / TCP(sport=6003, dport=x, flags='S'))
        # Datagrams and segments of no connection are not answered at all.
        send(u, IP(src=R, dst=X) / UDP(sport=6004, dport=free))
        send(u, IP(src=R, dst=X) / TCP(sport=6005, dport=free, flags='A'))
        silence()
        send(a, IP(src=A, dst=R) / TCP(sport=4000, dport=6003, flags='S'))
        same(want(u, TCP, dport=6003)[TCP].sport, x)
        told = {}
        for _ in range(2):
            error = want(u, ICMP, src=X, dst=R, type=3, code=3)
            true(time.monotonic() - begun >= 6, 'an answer before the time')
            told[error[TCPerror].sport] = error[TCPerror].dport
        same(told, {6001: free, 6002: x})
        none(u, ICMP, type=3)
        silence()
        ",
    )?;
    Ok(())
}

fn rfc7857_2_a_reset_ends_nothing_at_once(rig: &mut Rig) -> Result<()> {
    rig.network("")?;
    rig.play(OPEN)?;
    rig.play("back('R', 501)")?;
    await_state(rig, "after a reset", "transitory")?;
    // Whoever guessed the reset's addresses has not ended the connection.
    rig.play(
        "
        same(payload(back('PA', 501, 101, b'alive')), b'alive')
        same(payload(out('PA', 101, 506, b'so am I')), b'so am I')
        ",
    )?;
    await_state(rig, "after more data", "established")
}
