//! `cargo xtask deny`: the rules of `deny.toml` held against the resolved dependencies.
//!
//! cargo-deny reads the same file and checks more (advisories, duplicate versions), but takes minutes to build. Where it
//! is installed, it runs; where it is not, this module holds the parts that must never slip (licences, bans, sources), and
//! says what was left out.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::run;

#[derive(Deserialize)]
struct Config {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    #[serde(default)]
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

/// Checks the dependencies; false, with every offence printed, if a rule is broken.
pub(crate) fn check() -> Result<bool> {
    if run::cargo(["deny", "--version"]).quiet_output().is_some() {
        return run::cargo(["deny", "--workspace", "check", "bans", "licenses", "sources"]).passes();
    }
    eprintln!(
        "xtask: cargo-deny is not installed: licences, bans and sources are checked here, duplicates and advisories are not"
    );
    let path = run::root().join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: Config = toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    let metadata =
        run::cargo(["metadata", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"])
            .output()?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cannot parse cargo metadata")?;

    let offences = offences(&config, &metadata.packages);
    for offence in &offences {
        eprintln!("xtask: {offence}");
    }
    eprintln!("xtask: {} packages checked against deny.toml", metadata.packages.len());
    Ok(offences.is_empty())
}

fn offences(config: &Config, packages: &[Package]) -> Vec<String> {
    let mut offences = Vec::new();
    for package in packages {
        let id = format!("{} {}", package.name, package.version);
        match &package.license {
            None => offences.push(format!("{id} names no licence")),
            Some(text) if !allowed(text, &config.licenses.allow) => {
                offences.push(format!("{id}: its licence '{text}' is not allowed"));
            }
            Some(_) => {}
        }
        if let Some(source) = &package.source {
            let registry = source.strip_prefix("registry+").unwrap_or(source);
            if !config.sources.allow_registry.contains(registry) {
                offences.push(format!("{id} comes from {source}"));
            }
        }
        if let Some(ban) = config.bans.deny.iter().find(|ban| ban.name == package.name) {
            offences.push(format!("{id} is banned: {}", ban.reason));
        }
    }
    offences
}

/// Whether the SPDX expression can be met with allowed licences only. Lax parsing takes the old `MIT/Apache-2.0` form.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX)
        .is_ok_and(|parsed| parsed.evaluate(|requirement| allow.contains(&requirement.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, license: Option<&str>, source: &str) -> Package {
        Package {
            name: name.into(),
            version: "1.0.0".into(),
            license: license.map(Into::into),
            source: Some(source.into()),
        }
    }

    #[test]
    fn each_kind_of_offence_is_found() {
        let registry = "registry+https://github.com/rust-lang/crates.io-index";
        let config: Config = toml::from_str(
            r#"
            [licenses]
            allow = ["MIT", "Apache-2.0 WITH LLVM-exception"]
            [bans]
            deny = [{ crate = "evil", reason = "says so" }]
            [sources]
            allow-registry = ["https://github.com/rust-lang/crates.io-index"]
            "#,
        )
        .unwrap();
        let cases = [
            (package("a", Some("MIT"), registry), 0),
            (package("b", Some("MIT/Apache-2.0"), registry), 0),
            (package("c", Some("GPL-2.0-only OR MIT"), registry), 0),
            (package("d", Some("GPL-2.0-only AND MIT"), registry), 1),
            (package("e", Some("Apache-2.0 WITH LLVM-exception"), registry), 0),
            (package("f", Some("Apache-2.0"), registry), 1),
            (package("g", None, registry), 1),
            (package("h", Some("not a licence"), registry), 1),
            (package("i", Some("MIT"), "git+https://example.org/i"), 1),
            (package("evil", Some("MIT"), registry), 1),
        ];
        for (package, expected) in cases {
            let found = offences(&config, std::slice::from_ref(&package));
            assert_eq!(found.len(), expected, "{}: {found:?}", package.name);
        }
    }
}
