//! End-to-end tests: the real daemon between real namespaces, guests and front-ends.

use std::process::ExitCode;

use harness::Suite;

fn main() -> ExitCode {
    let suite = Suite::default();
    suite.run()
}
