//! The tap and netdev ports against the kernel: real interfaces, in network namespaces of the tests' own.
//!
//! These tests need privileges and tools. What is missing is told as the reason of an ignored test; with
//! `WEFT_TEST_REQUIRE=all` in the environment it is a failure.

mod frames;
mod netdev;
mod netns;
mod tap;
mod traffic;

use libtest_mimic::{Arguments, Failed, Trial};

/// A test's body. It panics to fail, and runs on a thread of its own.
type Body = fn();

fn main() {
    let arguments = Arguments::from_args();
    let unmet = netns::unmet_need();
    let require = std::env::var("WEFT_TEST_REQUIRE").is_ok_and(|v| v == "all");
    let trials = [tap::TESTS, netdev::TESTS]
        .concat()
        .into_iter()
        .map(|(name, body)| trial(name, body, unmet.clone(), require));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn trial(name: &str, body: Body, unmet: Option<String>, require: bool) -> Trial {
    let Some(reason) = unmet else {
        return Trial::test(name, move || netns::isolated(body));
    };
    let failure = reason.clone();
    Trial::test(name, move || Err(Failed::from(failure))).with_kind(reason).with_ignored_flag(!require)
}
