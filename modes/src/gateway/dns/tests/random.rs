//! Random octets and random histories.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// A port asks for one of few names.
    Ask {
        port: usize,
        name: u8,
        id: u16,
        tcp: bool,
    },
    /// The outside answers the question that was asked so many before the last.
    Answer {
        which: usize,
        code: u8,
        ttl: u32,
    },
    Fail {
        which: usize,
    },
    Wait {
        millis: u64,
    },
    Forget {
        port: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_usize, 0..12_u8, 0..6_u16, any::<bool>())
            .prop_map(|(port, name, id, tcp)| Step::Ask { port, name, id, tcp }),
        4 => (0..5_usize, 0..4_u8, 0..5_u32).prop_map(|(which, code, ttl)| Step::Answer { which, code, ttl }),
        1 => (0..5_usize).prop_map(|which| Step::Fail { which }),
        2 => (0..4000_u64).prop_map(|millis| Step::Wait { millis }),
        1 => (0..4_usize).prop_map(|port| Step::Forget { port }),
    ]
}

proptest! {
    #[test]
    fn octets_of_guests_and_of_the_outside_do_no_harm(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..20),
        flags in any::<bool>(),
    ) {
        let mut dns = dns();
        for mut message in messages {
            if flags && message.len() > 12 {
                message[2] &= 0x07;
                message[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
            }
            dns.receive(secs(0), client(ports(1)[0], 1), &message);
            for action in actions(&mut dns) {
                match action {
                    Action::Ask { id, .. } => dns.answered(secs(0), id, Ok(message.clone())),
                    Action::Answer { message, .. } => prop_assert!(Message::from_vec(&message).is_ok()),
                }
            }
            actions(&mut dns);
        }
    }

    /// Every query that is taken is answered exactly once, to who asked it and with its id, whatever happens; and
    /// nothing is left when all is answered.
    #[test]
    fn every_query_is_answered_once(steps in proptest::collection::vec(step(), 1..200)) {
        let limits = Limits {
            rate: 1_000_000,
            burst: 1_000_000,
            in_flight: 5,
            waiting: 12,
            asked: 2,
            cache_entries: 4,
            cache_bytes: 1500,
        };
        let mut dns = Dns::new(Settings { limits, ..settings() }, zone());
        let ports = ports(4);
        let mut now = secs(1);
        let mut open: HashMap<(Client, u16, Name), usize> = HashMap::new();
        let mut questions: Vec<(QueryId, Message)> = Vec::new();
        for step in steps {
            match step {
                Step::Ask { port, name: n, id, tcp } => {
                    let transport = if tcp { Transport::Tcp(3) } else { Transport::Udp };
                    let client = Client { transport, ..client(ports[port], 1) };
                    let text = if n == 0 { "web.".into() } else { format!("n{n}.example.com.") };
                    let before = dns.counters();
                    dns.receive(now, client, &bytes(&query(id, &text, RecordType::A)));
                    if dns.counters().repeated == before.repeated {
                        *open.entry((client, id, name(&text))).or_default() += 1;
                    }
                }
                Step::Answer { which, code, ttl } if which < questions.len() => {
                    let (id, question) = questions.swap_remove(which);
                    let owner = question.queries[0].name().to_ascii();
                    let code = ResponseCode::from_low(code);
                    let said = outside(&question, code, vec![a(&owner, ttl, [1; 4])], vec![]);
                    dns.answered(now, id, Ok(said));
                }
                Step::Fail { which } if which < questions.len() => {
                    dns.answered(now, questions.swap_remove(which).0, Err(Unanswered));
                }
                Step::Answer { .. } | Step::Fail { .. } => {}
                Step::Wait { millis } => {
                    now = now + Duration::from_millis(millis);
                    dns.poll(now);
                }
                Step::Forget { port } => {
                    dns.forget(ports[port]);
                    // What waited is answered never; what was answered already is taken out below.
                    for action in actions(&mut dns) {
                        prop_assert!(matches!(action, Action::Ask { .. }), "forgetting answers nothing");
                    }
                    open.retain(|(client, ..), _| client.port != ports[port]);
                }
            }
            for action in actions(&mut dns) {
                match action {
                    Action::Ask { id, message } => {
                        questions.push((id, Message::from_vec(&message).expect("a question")));
                    }
                    Action::Answer { to, message } => {
                        let answer = Message::from_vec(&message).expect("an answer");
                        let key = (to, answer.metadata.id, answer.queries[0].name().clone());
                        let count = open.get_mut(&key);
                        prop_assert!(count.is_some(), "nobody asked: {key:?}");
                        let count = count.expect("somebody asked");
                        *count -= 1;
                        if *count == 0 {
                            open.remove(&key);
                        }
                    }
                }
            }
            prop_assert_eq!(dns.waiting, open.values().sum::<usize>());
            prop_assert!(dns.waiting <= 12 && dns.asked <= 2);
            prop_assert_eq!(dns.by_key.len(), dns.pending.len());
            prop_assert_eq!(dns.deadlines.len(), dns.pending.len());
            for guest in dns.guests.values() {
                prop_assert!(guest.in_flight <= 5 && guest.queue.len() <= guest.in_flight);
                prop_assert!(guest.in_turn || guest.queue.is_empty());
            }
            let (entries, octets) = dns.cache.size();
            prop_assert!(entries <= 4 && octets <= 1500);
        }
        dns.poll(now + ASK_TIMEOUT + ASK_TIMEOUT);
        for action in actions(&mut dns) {
            if let Action::Answer { to, message } = action {
                let answer = Message::from_vec(&message).expect("an answer");
                let key = (to, answer.metadata.id, answer.queries[0].name().clone());
                prop_assert!(open.remove(&key).is_some());
            }
        }
        prop_assert!(open.is_empty());
        prop_assert_eq!((dns.waiting, dns.asked, dns.pending.len()), (0, 0, 0));
    }
}
