//! Several workers at once: what holds for one holds for all.

use super::*;

#[test]
fn workers_agree_on_mappings_and_a_removed_forward_is_gone_for_all() {
    let settings = Settings { mappings_per_host: 60_000, ..Settings::new([1, 2]) };
    let rig = Rig::with(settings, &[1]);
    let napt = &rig.napt;
    let outsides = std::thread::scope(|scope| {
        let worker = |_| {
            scope.spawn(move || {
                let mut view = View::new(Arc::clone(napt));
                (0..20_000_u16)
                    .map(|port| {
                        let (local, remote) = (guest(1, port), remote(port as u8, 53));
                        let flow = Flow { protocol: Udp, local, remote, flags: NONE };
                        view.outbound(at(1), &flow).expect("room for all")
                    })
                    .collect::<Vec<_>>()
            })
        };
        let workers: Vec<_> = (0..3).map(worker).collect();
        // Meanwhile forwards come and go, and sessions end.
        for i in 0..200 {
            let forward = forward(Tcp, 30_000 + i, 5, guest(5, 80));
            napt.add_forward(at(1), &forward).unwrap();
            assert!(napt.remove_forward(at(1), &forward));
            napt.expire(at(1), 100);
        }
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert_eq!(outsides[0], outsides[1]);
    assert_eq!(outsides[0], outsides[2]);
    assert_eq!(outsides[0].iter().collect::<HashSet<_>>().len(), 20_000);
    assert_eq!(napt.session_count(), 20_000);
    assert_eq!(napt.sessions(at(1), usize::MAX).len(), 20_000);
    rig.expire(400);
    rig.expire(600);
    for i in 0..16 {
        rig.expire(601 + i);
    }
    assert!(napt.is_idle(), "every count returns to zero");
}
