//! `cargo xtask fuzz`: libFuzzer over the targets of `fuzz/`, a workspace of its own.
//!
//! Coverage instrumentation works with a stable compiler, AddressSanitizer needs a nightly one: with a nightly toolchain
//! the targets run under AddressSanitizer, otherwise without, and the task says so. The flags are those that cargo-fuzz
//! passes, so that the corpus and the findings serve both.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::run;

const HOST: &str = "x86_64-unknown-linux-gnu";

const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1";

#[derive(Args)]
pub(crate) struct Options {
    /// One target; without it, each in turn
    target: Option<String>,
    /// Seconds per target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    bin: Vec<Bin>,
}

#[derive(Deserialize)]
struct Bin {
    name: String,
}

/// The fuzz targets that `fuzz/Cargo.toml` names.
fn targets() -> Result<Vec<String>> {
    let path = run::root().join("fuzz/Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest =
        toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    if manifest.bin.is_empty() {
        bail!("{} names no [[bin]]", path.display());
    }
    Ok(manifest.bin.into_iter().map(|bin| bin.name).collect())
}

/// Compiles every target, as CI does; false if one does not compile.
pub(crate) fn check() -> Result<bool> {
    targets()?;
    run::cargo(["check", "--bins"]).dir("fuzz").passes()
}

/// Runs the targets; false if one found something.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let mut names = targets()?;
    if let Some(only) = &options.target {
        if !names.contains(only) {
            bail!("no fuzz target '{only}': there are {}", names.join(", "));
        }
        names = vec![only.clone()];
    }
    let nightly = run::toolchain_cargo(Some("nightly")).arg("--version").quiet_output().is_some();
    let (toolchain, flags) = if nightly {
        (Some("nightly"), format!("{COVERAGE} -Zsanitizer=address"))
    } else {
        eprintln!("xtask: no nightly toolchain, so the targets run without AddressSanitizer");
        (None, COVERAGE.to_string())
    };
    let build = run::toolchain_cargo(toolchain).args(["build", "--release", "--target", HOST]);
    let build = names.iter().fold(build, |build, name| build.args(["--bin", name]));
    build.env("RUSTFLAGS", &flags).dir("fuzz").succeed()?;

    let mut clean = true;
    for name in &names {
        let binary: PathBuf = run::root().join("fuzz/target").join(HOST).join("release").join(name);
        let corpus = run::root().join("fuzz/corpus").join(name);
        // What a run adds stays out of the tree; the corpus in the tree is the seed.
        let grown = run::root().join("fuzz/target/corpus").join(name);
        let artifacts = run::root().join("fuzz/artifacts").join(name);
        for dir in [&corpus, &grown, &artifacts] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        clean &= run::program(&binary)
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args(["-rss_limit_mb=2048", "-timeout=10", "-print_final_stats=1"])
            .args([&grown, &corpus])
            .dir("fuzz")
            .passes()?;
    }
    Ok(clean)
}
