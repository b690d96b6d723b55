//! Starting other programs: always in the workspace's root, always with the command line shown.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), Path::to_path_buf)
}

/// A program to be started.
pub(crate) struct Program(Command);

/// `name`, found by PATH, in the workspace's root.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Program {
    let mut command = Command::new(name);
    command.current_dir(root()).stdin(Stdio::null());
    Program(command)
}

/// The cargo that runs this task.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Program {
    // Inside `cargo run`, CARGO is the toolchain's own binary: `+nightly` needs rustup's, see `toolchain_cargo`.
    program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(args)
}

/// rustup's `cargo +TOOLCHAIN`, free of what the outer cargo left in the environment.
pub(crate) fn toolchain_cargo(toolchain: Option<&str>) -> Program {
    match toolchain {
        None => cargo([]),
        Some(name) => {
            let mut started = program("cargo");
            for key in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
                started.0.env_remove(key);
            }
            started.arg(format!("+{name}"))
        }
    }
}

impl Program {
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.0.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(key, value);
        self
    }

    pub(crate) fn dir(mut self, dir: &str) -> Self {
        self.0.current_dir(root().join(dir));
        self
    }

    fn line(&self) -> String {
        let words = std::iter::once(self.0.get_program()).chain(self.0.get_args());
        let mut line = String::new();
        for word in words {
            let word = word.to_string_lossy();
            line.push(' ');
            // The compiler's and shell's absolute paths say nothing to a reader: the last part does.
            let short = if line.len() == 1 { word.rsplit('/').next().unwrap_or(&word) } else { &word };
            line.push_str(short);
        }
        line
    }

    /// Runs it; true if it exits with 0.
    pub(crate) fn passes(mut self) -> Result<bool> {
        let line = self.line();
        eprintln!("+{line}");
        let status = self.0.status().with_context(|| format!("cannot start{line}"))?;
        Ok(status.success())
    }

    /// Runs it; an error unless it exits with 0.
    pub(crate) fn succeed(self) -> Result<()> {
        let line = self.line();
        if !self.passes()? {
            bail!("failed:{line}");
        }
        Ok(())
    }

    /// Runs it silently; what it printed, or `None` if it could not be started or failed.
    pub(crate) fn quiet_output(mut self) -> Option<String> {
        let output = self.0.stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it; what it printed on standard output, an error unless it exits with 0.
    pub(crate) fn output(mut self) -> Result<String> {
        let line = self.line();
        let output =
            self.0.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start{line}"))?;
        if !output.status.success() {
            bail!("failed:{line}");
        }
        String::from_utf8(output.stdout).with_context(|| format!("not UTF-8: the output of{line}"))
    }
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    // The owner of this process in /proc is its effective uid: no `unsafe` call is needed for it.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}
