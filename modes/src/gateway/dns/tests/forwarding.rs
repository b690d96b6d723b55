//! What is asked outside: coalescing, the cache on a virtual clock, limits, turns, truncation.

use super::*;

const A: RecordType = RecordType::A;

/// What the outside says to a question.
type Say = Box<dyn Fn(&Message) -> Vec<u8>>;

/// Asks by port 0 what is not in the cache, and answers for the outside.
fn learn(
    dns: &mut Dns,
    now: Instant,
    text: &str,
    kind: RecordType,
    say: impl FnOnce(&Message) -> Vec<u8>,
) -> Message {
    dns.receive(now, client(ports(1)[0], 50), &bytes(&query(7, text, kind)));
    let (id, question) = asked(dns);
    dns.answered(now, id, Ok(say(&question)));
    answer(dns)
}

/// True if a question is answered without the outside.
fn is_known(dns: &mut Dns, now: Instant, text: &str, kind: RecordType) -> bool {
    dns.receive(now, client(ports(1)[0], 50), &bytes(&query(7, text, kind)));
    match actions(dns).as_slice() {
        [Action::Answer { .. }] => true,
        [Action::Ask { id, .. }] => {
            dns.answered(now, *id, Ok(Vec::new()));
            actions(dns);
            // The failure is forgotten before the next question.
            dns.cache = Cache::default();
            false
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_is_passed_on_and_remembered_until_its_ttl() {
    let mut dns = dns();
    let cname = Record::from_rdata(name("www.example.com."), 50, RData::CNAME(CNAME(name("a.example.com."))));
    let said = [cname, a("a.example.com.", 300, [1, 2, 3, 4])];
    let answer = learn(&mut dns, secs(100), "wWw.example.com.", A, |question| {
        assert_eq!(question.metadata.id, 0);
        assert!(question.metadata.recursion_desired);
        assert!(question.queries[0].name().eq_case(&name("www.example.com.")));
        outside(question, ResponseCode::NoError, said.to_vec(), vec![])
    });
    assert_eq!(answer.answers, said);
    assert!(answer.answers[0].name.eq_case(&name("wWw.example.com.")), "the client's own letters");
    assert_eq!(answer.metadata.id, 7);
    assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);

    dns.receive(secs(130), client(ports(1)[0], 50), &bytes(&query(9, "WWW.EXAMPLE.COM.", A)));
    let answer = super::answer(&mut dns);
    assert_eq!(answer.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [20, 270]);
    assert_eq!(answer.metadata.id, 9);
    assert!(is_known(&mut dns, secs(149), "www.example.com.", A));
    assert!(!is_known(&mut dns, secs(150), "www.example.com.", A), "the shortest TTL holds for all");
    // Another type of the same name is another question.
    learn(&mut dns, secs(200), "www.example.com.", A, |question| {
        outside(question, ResponseCode::NoError, said.to_vec(), vec![])
    });
    assert!(!is_known(&mut dns, secs(201), "www.example.com.", RecordType::AAAA));
}

#[test]
fn how_long_answers_are_remembered() {
    let q = "x.example.com.";
    let negative = || vec![soa("example.com.", 600, 60)];
    let cname = |ttl| Record::from_rdata(name(q), ttl, RData::CNAME(CNAME(name("y.example.com."))));
    let week = || a(q, 604_800, [1, 1, 1, 1]);
    use ResponseCode::{FormErr, NXDomain, NoError, Refused, ServFail};
    #[rustfmt::skip]
    let table = [
        ("data", NoError, vec![a(q, 30, [1, 1, 1, 1])], vec![], 30),
        ("ttl 0", NoError, vec![a(q, 0, [1, 1, 1, 1])], vec![], 0),
        ("a negative ttl", NoError, vec![a(q, 0x8000_0000, [1, 1, 1, 1])], vec![], 0),
        ("a week is a day", NoError, vec![week()], vec![], 86_400),
        ("no data", NoError, vec![], negative(), 60),
        ("no data, the SOA's ttl is less", NoError, vec![], vec![soa("example.com.", 5, 60)], 5),
        ("no data for days", NoError, vec![], vec![soa("example.com.", 99_999, 99_999)], 3600),
        ("no data without SOA", NoError, vec![], vec![], 0),
        ("no name", NXDomain, vec![], negative(), 60),
        ("no name without SOA", NXDomain, vec![], vec![], 0),
        ("an alias to nothing", NXDomain, vec![cname(10)], negative(), 10),
        ("an alias without data", NoError, vec![cname(300)], negative(), 60),
        ("an alias without data or SOA", NoError, vec![cname(300)], vec![], 0),
        ("failure", ServFail, vec![], negative(), 1),
        ("refusal", Refused, vec![], vec![], 1),
        ("something else", FormErr, vec![], vec![], 0),
    ];
    for (what, code, answers, authorities, ttl) in table {
        let say = |question: &Message| outside(question, code, answers, authorities);
        let mut dns = dns();
        let answer = learn(&mut dns, secs(1000), q, A, say);
        assert_eq!(answer.metadata.response_code, code, "{what}");
        let almost = Instant::from_nanos(secs(1000 + ttl).as_nanos() - 1);
        assert_eq!(is_known(&mut dns, almost, q, A), ttl > 0, "{what}");
        assert!(!is_known(&mut dns, secs(1000 + ttl), q, A), "{what}");
    }
}

#[test]
fn a_name_that_does_not_exist_has_no_type() {
    let mut dns = dns();
    let none = vec![soa("example.com.", 60, 60)];
    learn(&mut dns, secs(0), "x.example.com.", A, |q| {
        outside(q, ResponseCode::NXDomain, vec![], none.clone())
    });
    assert!(is_known(&mut dns, secs(1), "x.example.com.", RecordType::MX));
    learn(&mut dns, secs(0), "y.example.com.", A, |q| {
        outside(q, ResponseCode::NoError, vec![], none.clone())
    });
    assert!(!is_known(&mut dns, secs(1), "y.example.com.", RecordType::MX));
}

#[test]
fn what_is_no_answer_to_the_question_is_a_failure() {
    let good =
        |q: &Message| outside(q, ResponseCode::NoError, vec![a("x.example.com.", 9, [1, 1, 1, 1])], vec![]);
    let change = |at: usize, value: u8| {
        move |q: &Message| {
            let mut message = good(q);
            message[at] = value;
            message
        }
    };
    let table: [(&str, Say); 7] = [
        ("nothing", Box::new(|_| Vec::new())),
        ("a query", Box::new(change(2, 0x01))),
        ("another opcode", Box::new(change(2, 0xa8))),
        ("another name", Box::new(change(13, b'z'))),
        ("another type", Box::new(change(28, 2))),
        ("half an answer", Box::new(move |q| good(q)[..40].to_vec())),
        ("two questions", Box::new(change(5, 2))),
    ];
    for (what, say) in table {
        let mut dns = dns();
        let answer = learn(&mut dns, secs(0), "x.example.com.", A, say);
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{what}");
        assert_eq!(dns.counters().failed, 1, "{what}");
    }
    assert_eq!(learn(&mut dns(), secs(0), "x.example.com.", A, good).answers.len(), 1);
}

#[test]
fn one_question_for_all_who_ask_it() {
    let (mut dns, ports) = (dns(), ports(3));
    for (i, port) in ports.iter().enumerate() {
        dns.receive(secs(0), client(*port, i as u8), &bytes(&query(i as u16, "x.example.com.", A)));
        // A client that is impatient is not answered twice.
        dns.receive(secs(1), client(*port, i as u8), &bytes(&query(i as u16, "x.example.com.", A)));
    }
    // One who wants signatures asks another question.
    let mut signed = query(9, "x.example.com.", A);
    signed.edns = Some(Edns::new());
    signed.edns.as_mut().expect("EDNS").set_dnssec_ok(true);
    dns.receive(secs(1), client(ports[0], 9), &bytes(&signed));
    let [Action::Ask { id, message }, Action::Ask { message: other, .. }] = &actions(&mut dns)[..] else {
        panic!("two questions");
    };
    assert!(Message::from_vec(other).expect("a question").edns.expect("EDNS").flags().dnssec_ok);
    assert_eq!(dns.counters().repeated, 3);
    let question = Message::from_vec(message).expect("a question");
    let said = outside(&question, ResponseCode::NoError, vec![a("x.example.com.", 9, [1, 1, 1, 1])], vec![]);
    dns.answered(secs(1), *id, Ok(said.clone()));
    let answers = actions(&mut dns);
    assert_eq!(answers.len(), 3);
    for (i, action) in answers.iter().enumerate() {
        let Action::Answer { to, message } = action else { panic!("an answer") };
        assert_eq!(*to, client(ports[i], i as u8));
        assert_eq!(Message::from_vec(message).expect("an answer").metadata.id, i as u16);
    }
    // A second answer, and one to a question that never was, say nothing.
    dns.answered(secs(1), *id, Ok(said.clone()));
    dns.answered(secs(1), QueryId(1000), Ok(said));
    assert_eq!(actions(&mut dns), []);
}

#[test]
fn what_waits_too_long_fails() {
    let mut dns = dns();
    dns.receive(secs(10), client(ports(1)[0], 50), &bytes(&query(7, "x.example.com.", A)));
    let (id, question) = asked(&mut dns);
    let due = dns.poll_at().expect("a deadline");
    assert_eq!(due, secs(10) + ASK_TIMEOUT);
    dns.poll(Instant::from_nanos(due.as_nanos() - 1));
    assert_eq!(actions(&mut dns), []);
    dns.poll(due);
    assert_eq!(answer(&mut dns).metadata.response_code, ResponseCode::ServFail);
    assert_eq!((dns.poll_at(), dns.waiting, dns.asked), (None, 0, 0));
    dns.answered(due, id, Ok(outside(&question, ResponseCode::NoError, vec![], vec![])));
    assert_eq!(actions(&mut dns), []);
    dns.receive(due, client(ports(1)[0], 50), &bytes(&query(8, "y.example.com.", A)));
    let (id, _) = asked(&mut dns);
    dns.answered(due, id, Err(Unanswered));
    assert_eq!(answer(&mut dns).metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn who_does_not_want_recursion_gets_what_is_known() {
    let mut dns = dns();
    let mut message = query(7, "x.example.com.", A);
    message.metadata.recursion_desired = false;
    dns.receive(secs(0), client(ports(1)[0], 50), &bytes(&message));
    assert_eq!(answer(&mut dns).metadata.response_code, ResponseCode::Refused);
    learn(&mut dns, secs(0), "x.example.com.", A, |q| {
        outside(q, ResponseCode::NoError, vec![a("x.example.com.", 9, [1, 1, 1, 1])], vec![])
    });
    dns.receive(secs(0), client(ports(1)[0], 50), &bytes(&message));
    assert_eq!(answer(&mut dns).answers.len(), 1);
}

#[test]
fn a_ports_rate_is_limited_and_its_neighbours_is_not() {
    let limits = Limits { rate: 10, burst: 5, ..Limits::default() };
    let mut dns = Dns::new(Settings { limits, ..settings() }, zone());
    let ports = ports(2);
    let mut ask = |now, port, count: usize| {
        let mut answered = 0;
        for _ in 0..count {
            dns.receive(now, client(port, 1), &bytes(&query(1, "web.", A)));
            answered += actions(&mut dns).len();
        }
        answered
    };
    assert_eq!(ask(secs(1), ports[0], 20), 5);
    assert_eq!(ask(secs(1), ports[1], 20), 5);
    assert_eq!(ask(secs(1) + Duration::from_millis(300), ports[0], 20), 3);
    assert_eq!(ask(secs(100), ports[0], 20), 5);
    assert_eq!(dns.counters().over_rate, 80 - 18);
}

#[test]
fn what_a_port_has_in_flight_is_limited() {
    let limits = Limits { in_flight: 4, waiting: 16, ..Limits::default() };
    let mut dns = Dns::new(Settings { limits, ..settings() }, zone());
    let ports = ports(40);
    let mut taken = Vec::new();
    for (p, port) in ports.iter().enumerate() {
        taken.push(0);
        for i in 0..8 {
            let before = dns.waiting;
            dns.receive(secs(0), client(*port, 1), &bytes(&query(i, &format!("n{i}.p{p}.example.com."), A)));
            taken[p] += dns.waiting - before;
        }
        assert!(taken[p] <= 4);
    }
    let refused =
        actions(&mut dns).into_iter().filter(|action| matches!(action, Action::Answer { .. })).count();
    assert_eq!(refused as u64, dns.counters().over_share);
    assert_eq!(refused + dns.waiting, 8 * 40);
    assert_eq!((taken[0], taken[1]), (4, 3), "who comes later still finds room");
    assert!(dns.waiting <= 16 && taken[8] > 0);
    dns.poll(secs(6));
    assert_eq!(actions(&mut dns).len(), taken.iter().sum::<usize>());
    assert_eq!((dns.waiting, dns.asked, dns.turns.len()), (0, 0, 0));
    assert!(dns.guests.values().all(|guest| guest.in_flight == 0 && guest.queue.is_empty()));
}

#[test]
fn ports_take_turns_at_the_outside() {
    let limits = Limits { asked: 1, ..Limits::default() };
    let mut dns = Dns::new(Settings { limits, ..settings() }, zone());
    let ports = ports(3);
    let asks = [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "d"), (2, "e")];
    for (i, (port, label)) in asks.into_iter().enumerate() {
        let message = query(i as u16, &format!("{label}.example.com."), A);
        dns.receive(secs(0), client(ports[port], 1), &bytes(&message));
    }
    let mut order = Vec::new();
    let mut answers = 0;
    while let Some(action) = dns.pop() {
        match action {
            Action::Ask { id, message } => {
                assert_eq!(dns.asked, 1);
                let question = Message::from_vec(&message).expect("a question");
                order.push(question.queries[0].name().iter().next().expect("a label").to_vec());
                dns.answered(secs(0), id, Ok(outside(&question, ResponseCode::NXDomain, vec![], vec![])));
            }
            Action::Answer { .. } => answers += 1,
        }
    }
    assert_eq!(
        order,
        [b"a", b"b", b"d", b"e", b"c"],
        "b was port 0's turn, and port 1 need not ask it again"
    );
    assert_eq!(answers, asks.len());
}

#[test]
fn a_port_that_is_gone_is_not_answered() {
    let limits = Limits { asked: 1, ..Limits::default() };
    let mut dns = Dns::new(Settings { limits, ..settings() }, zone());
    let ports = ports(2);
    for (port, label) in [(0, "a"), (0, "b"), (1, "b"), (0, "c")] {
        dns.receive(secs(0), client(ports[port], 1), &bytes(&query(3, &format!("{label}.example.com."), A)));
    }
    let (id, question) = asked(&mut dns);
    dns.forget(ports[0]);
    assert_eq!((dns.waiting, dns.pending.len()), (1, 2));
    dns.answered(secs(0), id, Ok(outside(&question, ResponseCode::NXDomain, vec![], vec![])));
    let (id, question) = asked(&mut dns);
    assert_eq!(question.queries[0].name(), &name("b.example.com."));
    dns.answered(secs(0), id, Err(Unanswered));
    assert!(matches!(&actions(&mut dns)[..], [Action::Answer { to, .. }] if to.port == ports[1]));
    assert_eq!((dns.waiting, dns.asked, dns.pending.len(), dns.poll_at()), (0, 0, 0, None));
}

#[test]
fn what_does_not_fit_is_asked_for_again_by_tcp() {
    let text = |len: usize| {
        Record::from_rdata(name("t.example.com."), 60, RData::TXT(TXT::new(vec!["x".repeat(len)])))
    };
    let big = |count: usize| (0..count).map(|_| text(200)).collect::<Vec<_>>();
    // Records over which limits; whether a datagram of 512, one of the most, and a connection take the answer.
    for (count, fits) in [(2, [true, true, true]), (3, [false, true, true]), (6, [false, false, true])] {
        let mut dns = dns();
        let mut message = query(7, "t.example.com.", RecordType::TXT);
        dns.receive(secs(0), client(ports(1)[0], 50), &bytes(&message));
        let (id, question) = asked(&mut dns);
        dns.answered(secs(0), id, Ok(outside(&question, ResponseCode::NoError, big(count), vec![])));
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        let check = |bytes: Vec<u8>, max: usize, fits: bool| {
            assert!(bytes.len() <= max, "{} of {max}", bytes.len());
            let answer = Message::from_vec(&bytes).expect("an answer");
            assert_eq!(answer.metadata.truncation, !fits, "{count} {max}");
            assert_eq!(answer.answers.len(), if fits { count } else { 0 });
            assert_eq!(answer.queries.len(), 1);
        };
        let one = |dns: &mut Dns, max, fits| match &actions(dns)[..] {
            [Action::Answer { message, .. }] => check(message.clone(), max, fits),
            other => panic!("{other:?}"),
        };
        one(&mut dns, 512, fits[0]);
        message.edns = Some(edns);
        dns.receive(secs(0), client(ports(1)[0], 50), &bytes(&message));
        one(&mut dns, UDP_MAX, fits[1]);
        let stream = Client { transport: Transport::Tcp(1), ..client(ports(1)[0], 50) };
        dns.receive(secs(0), stream, &bytes(&message));
        one(&mut dns, TCP_MAX, fits[2]);
    }
}

#[test]
fn the_cache_is_bounded_and_who_fills_it_pushes_out_its_own() {
    let limits = Limits { cache_entries: 10, rate: 1_000_000, burst: 1_000_000, ..Limits::default() };
    let mut dns = Dns::new(Settings { limits, ..settings() }, zone());
    let ports = ports(3);
    let learn = |dns: &mut Dns, port: PortId, text: &str| {
        dns.receive(secs(0), client(port, 1), &bytes(&query(1, text, A)));
        let (id, question) = asked(dns);
        dns.answered(
            secs(0),
            id,
            Ok(outside(&question, ResponseCode::NoError, vec![a(text, 60, [1; 4])], vec![])),
        );
        actions(dns);
    };
    for i in 0..3 {
        learn(&mut dns, ports[0], &format!("a{i}.example.com."));
        learn(&mut dns, ports[1], &format!("b{i}.example.com."));
    }
    for i in 0..100 {
        learn(&mut dns, ports[2], &format!("c{i}.example.com."));
        assert!(dns.cache.size().0 <= 10);
    }
    for i in 0..3 {
        assert!(is_known(&mut dns, secs(1), &format!("a{i}.example.com."), A));
        assert!(is_known(&mut dns, secs(1), &format!("b{i}.example.com."), A));
    }
    assert!(is_known(&mut dns, secs(1), "c99.example.com.", A));
    assert_eq!(dns.cache.size().0, 10);

    let limits = Limits { cache_bytes: 3000, ..Limits::default() };
    let mut dns = Dns::new(Settings { limits, ..settings() }, zone());
    for i in 0..100 {
        learn(&mut dns, ports[0], &format!("a{i}.example.com."));
        assert!(dns.cache.size().1 <= 3000);
    }
    assert!(dns.cache.size().0 > 5);
}

#[test]
fn ports_that_were_heard_once_are_forgotten() {
    let mut dns = dns();
    let ports = ports(4 * GUESTS_MIN as u16);
    for (i, port) in ports.iter().enumerate() {
        dns.receive(secs(i as u64), client(*port, 1), &bytes(&query(1, "web.", A)));
        actions(&mut dns);
        assert!(dns.guests.len() <= GUESTS_MIN);
    }
}
