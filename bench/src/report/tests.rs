//! Reports of results that were made up, against files that are kept. With `WEFT_BENCH_GOLDEN=1` in the environment the
//! files are written anew: look at what changed.

use std::path::Path;

use super::write;
use crate::generators::Measured;
use crate::machine::Machine;
use crate::measures::{LOSS, P50, P99, RATE};
use crate::peers::WEFT;
use crate::results::{Cell, Record, Scenario};

/// Two cells: one of bars with a failed run and a ceiling, one of lines over a number of ports.
fn record() -> Record {
    let mut bars = Cell::new("64 B, split", &[RATE, LOSS, P50, P99])
        .peers(&[WEFT, "ovs", "reflector"])
        .ceiling("reflector");
    let mut lines = Cell::new("2 active ports", &[RATE]).variants(
        "ports",
        &[("2".to_string(), Some(2.0)), ("64".to_string(), Some(64.0)), ("1000".to_string(), Some(1000.0))],
        &[WEFT, "ovs"],
    );
    lines.remarks.push("Open vSwitch gets no further than 64 ports < 1000 & more.".into());
    for round in [1.0, 0.8, 1.1] {
        bars.begin_round();
        for (index, rate) in [20e6, 9e6, 21e6].iter().enumerate() {
            bars.note(index, Some(&Measured::new().with(&RATE, rate * round).with(&LOSS, 0.0)));
        }
        bars.note(0, Some(&Measured::new().with(&P50, 4_000.0 / round).with(&P99, 9_000.0)));
        let latency = Measured::new().with(&P50, 6_250.0).with(&P99, 12_500.0);
        bars.note(1, (round != 0.8).then_some(&latency));
        lines.begin_round();
        for (index, rate) in [20e6, 9e6, 19.5e6, 8e6, 18e6].iter().enumerate() {
            let disturbed = Some(if index == 4 { 0.2 } else { 0.0 });
            let measured = Measured { disturbed, ..Measured::new().with(&RATE, rate * round) };
            lines.note(index, Some(&measured));
        }
        lines.note(5, None);
    }
    bars.sum_up();
    lines.sum_up();
    let commands = [
        ("switch weft".to_string(), vec!["target/release/weft daemon --socket DIR/ctl.sock".to_string()]),
        ("generator traffic".to_string(), vec!["taskset -c 0 target/release/bench generate".to_string()]),
    ];
    Record {
        machine: Machine {
            processor: "A processor".into(),
            cpus: 2,
            memory_gib: 24.0,
            system: "Linux 6.18".into(),
            date: "2026-11-21 20:00 UTC".into(),
            versions: vec![("weft".into(), "0.1.0".into()), ("Open vSwitch".into(), "3.1.0".into())],
        },
        command: "cargo xtask bench golden --report".into(),
        scenario: Scenario {
            name: "golden",
            about: "What it is about.".into(),
            pairs: 3,
            seconds: 5,
            commands: commands.into(),
            cells: vec![bars, lines],
            remarks: vec!["A remark on all of it.".into()],
        },
    }
}

#[test]
fn a_report_is_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), &record()).expect("a report");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for ending in ["json", "md", "svg"] {
        let name = format!("golden.{ending}");
        let text = std::fs::read_to_string(dir.path().join(&name)).expect("written");
        if std::env::var_os("WEFT_BENCH_GOLDEN").is_some() {
            std::fs::create_dir_all(&golden).expect("a directory");
            std::fs::write(golden.join(&name), &text).expect("written");
        }
        let kept = std::fs::read_to_string(golden.join(&name)).expect("kept");
        assert!(text == kept, "{name} is not as it was:\n{text}");
    }
}

#[test]
fn a_plot_is_well_formed_whatever_names_say() {
    let mut record = record();
    record.scenario.cells[0].name = "a <b> & \"c\"".into();
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), &record).expect("a report");
    let text = std::fs::read_to_string(dir.path().join("golden.svg")).expect("written");
    assert!(text.contains("a &lt;b&gt; &amp; \"c\""));
    assert_eq!(text.matches("<text").count(), text.matches("</text>").count());
}

#[test]
fn a_scenario_in_which_everything_failed_has_a_report() {
    let mut cell = Cell::new("64 B", &[RATE]).variants("ports", &[("2".into(), Some(2.0))], &[WEFT, "ovs"]);
    cell.begin_round();
    cell.note(0, None);
    cell.note(1, None);
    cell.sum_up();
    let mut record = record();
    record.scenario.cells = vec![cell];
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), &record).expect("a report");
    let page = std::fs::read_to_string(dir.path().join("golden.md")).expect("written");
    assert!(page.contains("Runs that failed and are left out: weft, 2 1, ovs, 2 1."));
    for ending in ["svg", "md"] {
        let text = std::fs::read_to_string(dir.path().join(format!("golden.{ending}"))).expect("written");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
