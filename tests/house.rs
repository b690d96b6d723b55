//! The order of the house: who may use whom, who may be unsafe, who may name what. A rule that only a document states
//! does not last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// For each package, the packages of this workspace that its shipped code may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("switch-core", &[]),
    ("datapath", &["switch-core"]),
    ("vhost-user", &["datapath", "switch-core"]),
    ("sockets", &["datapath", "switch-core"]),
    ("modes", &["switch-core"]),
    ("ctl", &["switch-core"]),
    // The driver's side shares no code with the device's side that it tests.
    ("frontend", &[]),
    ("weft", &["switch-core", "datapath", "vhost-user", "sockets", "modes", "ctl", "frontend"]),
    ("tests", &["frontend"]),
    ("bench", &["switch-core", "datapath", "vhost-user", "sockets", "modes", "ctl", "frontend", "tests"]),
    ("guard", &["switch-core", "datapath", "vhost-user", "sockets", "modes", "frontend"]),
    ("xtask", &[]),
];

/// Roots of the crates that hold no unsafe code.
const SAFE: &[&str] = &[
    "switch-core/src/lib.rs",
    "sockets/src/lib.rs",
    "modes/src/lib.rs",
    "ctl/src/lib.rs",
    "src/main.rs",
    "tests/src/lib.rs",
];

/// Words that the code of a directory may not hold, and why.
const MAY_NOT_NAME: &[(&str, &[&str], &str)] = &[
    ("modes/src", &["vhost", "tap", "netdev", "datapath"], "a mode knows no port kind"),
    ("datapath/src", &["bridge", "routed", "nat", "modes"], "the datapath knows no mode"),
    ("vhost-user/src", &["bridge", "routed", "nat", "modes", "fdb"], "a port knows no forwarding policy"),
    ("sockets/src", &["bridge", "routed", "nat", "modes", "fdb"], "a port knows no forwarding policy"),
];

/// Paths of the standard library that a pure crate does not touch.
const PURE: &[(&str, &[&str])] = &[(
    "switch-core/src",
    &[
        "std::fs",
        "std::io",
        "std::net::Tcp",
        "std::net::Udp",
        "std::os",
        "std::thread",
        "Instant::now",
        "SystemTime",
    ],
)];

fn workspace() -> PathBuf {
    harness::workspace()
}

/// Of each package of the workspace, the packages of the workspace that it uses outside its tests.
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(workspace())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let names: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    let uses = |package: &Value| -> BTreeSet<String> {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        dependencies
            .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|name| names.contains(name))
            .map(str::to_string)
            .collect()
    };
    packages.iter().map(|package| (package["name"].as_str().unwrap().to_string(), uses(package))).collect()
}

#[test]
fn packages_use_only_what_the_design_lets_them_use() {
    let edges = edges();
    let rules: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let known: BTreeSet<&str> = rules.keys().copied().collect();
    let there: BTreeSet<&str> = edges.keys().map(String::as_str).collect();
    assert_eq!(there, known, "every package has its rule, and every rule its package");
    for (package, used) in &edges {
        for name in used {
            assert!(rules[package.as_str()].contains(&name.as_str()), "{package} may not use {name}");
        }
    }
}

#[test]
fn the_rules_themselves_allow_no_cycle() {
    // Repeatedly taking away what uses nothing that is left must take everything.
    let mut left: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    while let Some(name) =
        left.iter().find(|(_, uses)| uses.iter().all(|used| !left.contains_key(used))).map(|(name, _)| *name)
    {
        left.remove(name);
    }
    assert!(left.is_empty(), "a cycle among {:?}", left.keys());
}

#[test]
fn safe_crates_forbid_unsafe_code() {
    for root in SAFE {
        let text =
            fs::read_to_string(workspace().join(root)).unwrap_or_else(|error| panic!("{root}: {error}"));
        assert!(text.contains("#![forbid(unsafe_code)]"), "{root} does not forbid unsafe code");
    }
}

#[test]
fn crates_do_not_name_what_they_must_not_know() {
    let mut offences = Vec::new();
    for (dir, words, why) in MAY_NOT_NAME {
        each_code_line(&workspace().join(dir), &mut |file, number, line| {
            let named = |word: &&&str| {
                line.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part.eq_ignore_ascii_case(word))
            };
            if let Some(word) = words.iter().find(named) {
                offences.push(format!("{}:{number}: '{word}': {why}", file.display()));
            }
        });
    }
    for (dir, paths) in PURE {
        each_code_line(&workspace().join(dir), &mut |file, number, line| {
            if let Some(path) = paths.iter().find(|path| line.contains(**path)) {
                offences.push(format!("{}:{number}: '{path}' in a pure crate", file.display()));
            }
        });
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

/// Calls `see` for each line of code under `dir`: comments, and tests (at a file's end, in a `tests.rs` or in a folder
/// `tests`), may name anything.
fn each_code_line(dir: &Path, see: &mut dyn FnMut(&Path, usize, &str)) {
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() && path.ends_with("tests") {
            continue;
        }
        if path.is_dir() {
            each_code_line(&path, see);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
            for (index, line) in code.enumerate() {
                let line = line.split("//").next().unwrap_or_default();
                see(&path, index + 1, line);
            }
        }
    }
}

/// The table of what is required of translation, and where the tests are that it names.
const CONFORMANCE: &str = "docs/conformance.md";
const CONFORMANCE_TESTS: &str = "tests/outer/conformance";

#[test]
fn the_table_of_requirements_names_tests_that_exist_and_all_of_the_wires() {
    let mut inner = BTreeSet::new();
    for dir in ["switch-core/src", "modes/src"] {
        each_test(&workspace().join(dir), &mut inner);
    }
    let mut wire = BTreeSet::new();
    for entry in fs::read_dir(workspace().join(CONFORMANCE_TESTS)).expect("the folder of the tests") {
        let text = fs::read_to_string(entry.expect("a directory entry").path()).expect("a source file");
        // Each file lists its own, and the compiler complains of one that is not listed.
        let list = text.split_once("super::tests![").and_then(|(_, rest)| rest.split_once(']'));
        let names = list.into_iter().flat_map(|(list, _)| list.split(',').map(str::trim));
        wire.extend(names.filter(|name| !name.is_empty()).map(str::to_string));
    }
    assert!(wire.len() > 20 && inner.len() > 100, "{} and {} tests", wire.len(), inner.len());
    let table = fs::read_to_string(workspace().join(CONFORMANCE)).expect("the table");
    let rows = table.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 2);
    let mut named = BTreeSet::new();
    for row in rows.filter(|row| !row.starts_with("| requirement ")) {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{CONFORMANCE}: no test shows this: {row}");
        for name in names {
            assert!(inner.contains(name) || wire.contains(name), "{CONFORMANCE}: there is no test {name}");
            named.insert(name.to_string());
        }
    }
    let forgotten: Vec<&String> = wire.difference(&named).collect();
    assert!(forgotten.is_empty(), "{CONFORMANCE} does not name {forgotten:?}");
}

/// Adds the names of the test functions under `dir`.
fn each_test(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            each_test(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let after =
                text.lines().zip(text.lines().skip(1)).filter(|(line, _)| line.trim_start() == "#[test]");
            let heads = after.filter_map(|(_, next)| next.trim_start().strip_prefix("fn "));
            names.extend(heads.filter_map(|head| head.split('(').next()).map(str::to_string));
        }
    }
}
