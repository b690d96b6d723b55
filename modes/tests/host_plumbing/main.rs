//! What is changed of the host, against a real kernel: interfaces in network namespaces of the tests' own.
//!
//! These tests need privileges and tools. What is missing is told as the reason of an ignored test; with
//! `WEFT_TEST_REQUIRE=all` in the environment it is a failure.

mod masquerade;
mod relocate;
mod small;
mod world;

use libtest_mimic::{Arguments, Failed, Trial};

/// A test's body. It panics to fail, and runs on a thread of its own.
type Body = fn();

fn main() {
    if relocate::is_victim() {
        relocate::victim();
        return;
    }
    let arguments = Arguments::from_args();
    let unmet = world::unmet_need();
    let require = std::env::var("WEFT_TEST_REQUIRE").is_ok_and(|v| v == "all");
    let trials = [small::TESTS, masquerade::TESTS, relocate::TESTS]
        .concat()
        .into_iter()
        .map(|(name, body)| trial(name, body, unmet.clone(), require));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn trial(name: &str, body: Body, unmet: Option<String>, require: bool) -> Trial {
    let Some(reason) = unmet else {
        return Trial::test(name, move || world::isolated(body));
    };
    let failure = reason.clone();
    Trial::test(name, move || Err(Failed::from(failure))).with_kind(reason).with_ignored_flag(!require)
}
