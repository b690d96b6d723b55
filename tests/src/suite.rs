//! Runs the tests: one at a time, with their needs probed first and what programs logged printed beside a failure.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Need, logs, ordinary, sweep};

/// Environment variable: `all` makes an unmet need a failure.
pub(crate) const REQUIRE: &str = "WEFT_TEST_REQUIRE";

/// What a test does: `Err` or a panic fails it.
type Body = Box<dyn FnOnce() -> anyhow::Result<()> + Send>;

struct Test {
    name: String,
    needs: &'static [Need],
    /// It is run by an ordinary user.
    ordinary: bool,
    body: Body,
}

impl Test {
    fn unmet(&self) -> Option<&'static str> {
        let apart = self.ordinary && !ordinary::inside();
        let of_user = apart.then_some(Need::OrdinaryUser);
        // In a namespace of its own, a user may have others.
        let needs = self.needs.iter().copied().filter(|need| !apart || *need != Need::Namespaces);
        of_user.into_iter().chain(needs).find_map(Need::unmet)
    }

    fn run(self) -> Result<(), Failed> {
        let Self { name, ordinary, body, .. } = self;
        if ordinary && !ordinary::inside() {
            judge(Box::new(move || ordinary::run(&name)))
        } else {
            judge(body)
        }
    }
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
        body: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) {
        self.tests.push(Test { name: name.into(), needs, ordinary: false, body: Box::new(body) });
    }

    /// The same of a test that an ordinary user runs, also where root runs the suite: see [`ordinary`].
    pub fn add_ordinary(
        &mut self,
        name: impl Into<String>,
        needs: &'static [Need],
        body: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) {
        self.tests.push(Test { name: name.into(), needs, ordinary: true, body: Box::new(body) });
    }

    /// Runs what the command line asks for, as libtest does.
    pub fn run(self) -> ExitCode {
        if let Err(error) = sweep::own().and_then(|()| ordinary::enter()) {
            eprintln!("the tests cannot run: {error:#}");
            return ExitCode::FAILURE;
        }
        raise_files();
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
            .map(|test| {
                Trial::ignorable_test(test.name.clone(), move || match test.unmet() {
                    Some(why) if required => Err(Failed::from(format!("cannot run here: {why}"))),
                    Some(why) => Ok(Completion::ignored_with(why)),
                    None => timed(|| test.run()).map(|()| Completion::Completed),
                })
            })
            .collect();
        libtest_mimic::run(&args, trials).exit_code()
    }
}

/// Lets this process have as many descriptors as it may: servers of tests have a thousand connections. If it may not,
/// those tests say so.
fn raise_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Runs a test, and says on its line how long it took.
fn timed<T>(run: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let outcome = run();
    print!("{:.1} s, ", started.elapsed().as_secs_f64());
    outcome
}

/// Before the first test: how many are left out, by reason.
fn tell_left_out(tests: &[Test], required: bool) {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for test in tests {
        if let Some(why) = test.unmet() {
            *reasons.entry(why).or_default() += 1;
        }
    }
    let verdict = if required { "cannot run, and all are required" } else { "left out" };
    for (why, count) in reasons {
        println!("{count} of {} tests {verdict}: {why}", tests.len());
    }
}

fn judge(body: Body) -> Result<(), Failed> {
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
