//! `cargo xtask test`: the three rings of tests.
//!
//! Inner and middle (unit tests, properties, simulations) live in the crates and need nothing. Outer (real namespaces,
//! guests, front-ends) is the package `tests`, which probes for what each of its tests needs and reports the ones that
//! cannot run as ignored. It runs last, so that its result is the last line.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::{packages, run};

/// Environment variable that makes an unmet need a failure; read by the `tests` package.
const REQUIRE: &str = "WEFT_TEST_REQUIRE";

#[derive(Args)]
pub(crate) struct Options {
    /// Fail, instead of leaving out, what cannot run here
    #[arg(long)]
    pub(crate) require_all: bool,
    /// Run only one ring
    #[arg(long)]
    pub(crate) ring: Option<Ring>,
    /// Run only tests whose name contains this
    pub(crate) filter: Option<String>,
}

impl Options {
    /// What the tests are told about unmet needs.
    fn required(&self) -> &'static str {
        if self.require_all { "all" } else { "" }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ring {
    /// Unit tests, properties and simulations of the crates
    Inner,
    /// End-to-end tests
    Outer,
}

/// Runs the tests; false if one failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let mut passed = true;
    let wanted = |ring| options.ring.is_none_or(|only| only == ring);
    // The ports' own tests need some of them, too.
    let missing = packages::install(packages::TESTS)?;
    missing.tell();
    if options.require_all && !missing.is_none() {
        bail!("--require-all: the packages above are needed");
    }
    if wanted(Ring::Inner) {
        passed &= inner(options)?;
    }
    if wanted(Ring::Outer) {
        passed &= outer(options)?;
    }
    if !passed {
        eprintln!("xtask: some tests failed");
    }
    Ok(passed)
}

fn inner(options: &Options) -> Result<bool> {
    let filter = options.filter.as_deref();
    // The harness's own tests and the house rules are of this ring; the end-to-end tests are not.
    let (tests, docs);
    if has_nextest() {
        tests = run::cargo(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests=pass"])
            .args(["--status-level=fail", "--final-status-level=skip", "--show-progress=none"])
            .args(["--filterset", "not binary(=outer)"])
            .args(filter)
            .env(REQUIRE, options.required())
            .passes()?;
        // nextest does not run the examples in documentation.
        docs = run::cargo(["test", "--quiet", "--workspace", "--doc"]).args(filter).passes()?;
    } else {
        eprintln!("xtask: cargo-nextest is not installed, so cargo test runs the crates' tests");
        tests = run::cargo(["test", "--workspace", "--exclude", "tests", "--no-fail-fast"])
            .args(filter)
            .env(REQUIRE, options.required())
            .passes()?;
        docs =
            run::cargo(["test", "--package", "tests", "--lib", "--test", "house"]).args(filter).passes()?;
    }
    Ok(tests && docs)
}

fn outer(options: &Options) -> Result<bool> {
    // `--workspace` although one package is tested: the same feature selection as everywhere else, so nothing is built twice.
    run::cargo(["build", "--workspace", "--bins"]).succeed()?;
    run::cargo(["test", "--workspace", "--test", "outer", "--", "--test-threads=1"])
        .args(options.filter.as_deref())
        .env(REQUIRE, options.required())
        .passes()
}

fn has_nextest() -> bool {
    run::cargo(["nextest", "--version"]).quiet_output().is_some()
}
