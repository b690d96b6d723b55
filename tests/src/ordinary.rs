//! An ordinary user, whoever runs the suite: tests of what needs no privilege are run by one.
//!
//! Such a test has a process of its own: user `nobody` where the suite is root's, and the suite's user elsewhere. That user
//! makes itself a user namespace, as the kernel lets every user, and in it namespaces of network and mounts: there the
//! test's outside is made. What is under test has not even the rights of that namespace (`words`).

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::mount::{MountFlags, mount};
use tempfile::TempDir;

use crate::suite::REQUIRE;
use crate::{binary, needs, netns, process};

/// Environment variable: this process runs a test as an ordinary user, and its files are in this directory.
const HOME: &str = "WEFT_TEST_ORDINARY";
/// Whom root runs such tests as: `nobody`.
const NOBODY: u32 = 65_534;
/// How long a test may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Whether this process is the ordinary user's.
pub fn inside() -> bool {
    std::env::var_os(HOME).is_some()
}

/// Where the guest's image is for an ordinary user.
pub(crate) fn guest_image() -> Option<PathBuf> {
    std::env::var_os(HOME).map(|home| Path::new(&home).join("image"))
}

/// What stands before a program that is under test: it has no capability, in no namespace, and gets none.
pub(crate) fn words() -> Vec<OsString> {
    let words =
        ["setpriv", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs"];
    if inside() { words.map(Into::into).to_vec() } else { Vec::new() }
}

/// Makes room for what belongs to the namespaces alone. Nothing is done outside of them.
///
/// # Errors
/// The kernel does not let this user.
pub(crate) fn enter() -> Result<()> {
    if !inside() {
        return Ok(());
    }
    for dir in ["/run", netns::ETC] {
        if Path::new(dir).is_dir() {
            let none = MountFlags::empty();
            mount("tmpfs", dir, "tmpfs", none, None).with_context(|| format!("cannot mount {dir}"))?;
        }
    }
    Ok(())
}

/// A program of an ordinary user's, in namespaces of its own.
fn command(program: &Path) -> Command {
    let unshare = ["unshare", "--user", "--map-current-user", "--keep-caps", "--net", "--mount"];
    let mut words: Vec<String> = Vec::new();
    if rustix::process::geteuid().is_root() {
        let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        words.extend(["setpriv".to_string(), "--clear-groups".to_string()].into_iter().chain(user));
    }
    words.extend(unshare.map(str::to_string));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(program);
    command
}

/// Why no test can be run so.
pub(crate) fn probe() -> Result<(), String> {
    if inside() {
        return Ok(());
    }
    let output = command(Path::new("true")).output().map_err(|error| format!("setpriv, unshare: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    let why = told.lines().next().unwrap_or("unshare failed");
    if output.status.success() { Ok(()) } else { Err(format!("a user may have no user namespace: {why}")) }
}

/// What such tests run, where anybody may read it; made once.
fn home() -> Result<&'static Path> {
    static HOME: OnceLock<Result<TempDir, String>> = OnceLock::new();
    let made = HOME.get_or_init(|| make_home().map_err(|error| format!("{error:#}")));
    made.as_ref().map(TempDir::path).map_err(|why| anyhow!("{why}"))
}

fn make_home() -> Result<TempDir> {
    let home = tempfile::Builder::new().prefix("weft-ordinary-").tempdir()?;
    let at = |name: &str| home.path().join(name);
    for dir in ["", "deps", "image", "tmp"] {
        fs::create_dir_all(at(dir))?;
        fs::set_permissions(at(dir), fs::Permissions::from_mode(0o755))?;
    }
    // As cargo has them. This program may have been built anew since it was started.
    fs::copy("/proc/self/exe", at("deps/outer"))?;
    fs::copy(binary()?, at("weft"))?;
    if let Ok(image) = needs::guest_image() {
        for file in ["vmlinuz", "initrd.gz"] {
            fs::copy(image.join(file), at("image").join(file))?;
            fs::set_permissions(at("image").join(file), fs::Permissions::from_mode(0o644))?;
        }
    }
    if rustix::process::geteuid().is_root() {
        // Root alone can make it, and the namespaces have it empty.
        fs::create_dir_all(netns::ETC)?;
        chown(at("tmp"), Some(NOBODY), Some(NOBODY))?;
    }
    Ok(home)
}

/// Runs the test `name` of this suite.
///
/// # Errors
/// What it reports.
pub(crate) fn run(name: &str) -> Result<()> {
    let home = home()?;
    let mut command = command(&home.join("deps/outer"));
    command.args(["--exact", name, "--color=never"]).env(HOME, home).env("TMPDIR", home.join("tmp"));
    // What is missing was looked for: here nothing is left out.
    let output = process::run(command.env(REQUIRE, "all"), LIMIT)?;
    ensure!(
        output.code == 0,
        "as an ordinary user, exit status {}:\n{}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    ensure!(output.stdout.contains("1 passed"), "no such test: {}", output.stdout);
    Ok(())
}
