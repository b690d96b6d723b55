//! Runs the tests: one at a time, with their needs probed first and what programs logged printed beside a failure.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{Need, logs};

/// Environment variable: `all` makes an unmet need a failure.
const REQUIRE: &str = "WEFT_TEST_REQUIRE";

/// What a test does: `Err` or a panic fails it.
type Body = Box<dyn FnOnce() -> Result<()> + Send>;

struct Test {
    name: String,
    needs: &'static [Need],
    body: Body,
}

/// The tests of one program.
#[derive(Default)]
pub struct Suite {
    tests: Vec<Test>,
}

impl Suite {
    /// Adds a test that runs where `needs` are met. `name` says what the test proves.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        needs: &'static [Need],
        body: impl FnOnce() -> Result<()> + Send + 'static,
    ) {
        self.tests.push(Test { name: name.into(), needs, body: Box::new(body) });
    }

    /// Runs what the command line asks for, as libtest does.
    pub fn run(self) -> ExitCode {
        let mut args = Arguments::from_args();
        // The tests share the machine's CPUs and count what the daemon does with them.
        args.test_threads = Some(1);
        let required = std::env::var(REQUIRE).is_ok_and(|value| value == "all");
        if !args.list {
            tell_left_out(&self.tests, required);
        }
        let trials = self
            .tests
            .into_iter()
            .map(|Test { name, needs, body }| {
                Trial::ignorable_test(name, move || match unmet(needs) {
                    Some(why) if required => Err(Failed::from(format!("cannot run here: {why}"))),
                    Some(why) => Ok(Completion::ignored_with(why)),
                    None => judge(body).map(|()| Completion::Completed),
                })
            })
            .collect();
        libtest_mimic::run(&args, trials).exit_code()
    }
}

fn unmet(needs: &[Need]) -> Option<&'static str> {
    needs.iter().find_map(|need| need.unmet())
}

/// Before the first test: how many are left out, by reason.
fn tell_left_out(tests: &[Test], required: bool) {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for test in tests {
        if let Some(why) = unmet(test.needs) {
            *reasons.entry(why).or_default() += 1;
        }
    }
    let verdict = if required { "cannot run, and all are required" } else { "left out" };
    for (why, count) in reasons {
        println!("{count} of {} tests {verdict}: {why}", tests.len());
    }
}

fn judge(body: Body) -> std::result::Result<(), Failed> {
    logs::take();
    let outcome = catch_unwind(AssertUnwindSafe(body));
    let (faults, kept) = logs::take();
    let mut report = match outcome {
        Ok(Ok(())) if faults.is_empty() => return Ok(()),
        Ok(Ok(())) => String::new(),
        Ok(Err(error)) => format!("{error:#}\n"),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            format!("panicked: {}\n", text.unwrap_or_default())
        }
    };
    for fault in faults {
        report.push_str(&format!("{fault}\n"));
    }
    for (name, tail) in kept {
        report.push_str(&format!("--- end of the log of {name}\n{tail}\n"));
    }
    Err(Failed::from(report))
}
