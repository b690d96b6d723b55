//! The program `nft`: run with a time limit, on a thread that may wait for it.

use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nftables::schema::Nftables;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::host::error::HostError;

/// How long it may take. A table is put in place in some hundredths of a second.
const TIME: Duration = Duration::from_secs(10);
/// Characters of what it says that are passed on.
const TOLD_MAX: usize = 400;

/// Has a transaction done, whole or not at all.
pub(in crate::host) async fn apply(ruleset: &Nftables<'_>, what: &str) -> Result<(), HostError> {
    let text = serde_json::to_string(ruleset)
        .map_err(|error| HostError::Nft { what: what.to_owned(), told: error.to_string() })?;
    run(&["-j", "-f", "-"], text, what).await.map(drop)
}

/// A table as the kernel has it, without handles; `None` if there is none of that name.
pub(in crate::host) async fn list(table: &str) -> Result<Option<Value>, HostError> {
    let what = format!("list table inet {table}");
    let told = match run(&["-j", "list", "table", "inet", table], String::new(), &what).await {
        Ok(told) => told,
        Err(HostError::Nft { told, .. }) if told.contains("No such file or directory") => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut value: Value =
        serde_json::from_slice(&told).map_err(|error| HostError::Nft { what, told: error.to_string() })?;
    without_handles(&mut value);
    Ok(Some(value))
}

/// Removes a table, if it is there.
pub(in crate::host) async fn delete(table: &str) -> Result<(), HostError> {
    let what = format!("remove table inet {table}");
    // In one transaction: made if it is not there, and removed.
    let text = format!("add table inet {table}\ndelete table inet {table}\n");
    run(&["-f", "-"], text, &what).await.map(drop)
}

fn without_handles(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.remove("handle");
            object.remove("metainfo");
            object.values_mut().for_each(without_handles);
        }
        Value::Array(list) => list.iter_mut().for_each(without_handles),
        _ => {}
    }
}

async fn run(arguments: &[&str], input: String, what: &str) -> Result<Vec<u8>, HostError> {
    let failed = |told: String| HostError::Nft { what: what.to_owned(), told };
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Started by this thread, and so in its network namespace.
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(HostError::NftMissing),
        Err(error) => return Err(failed(error.to_string())),
    };
    let id = child.id();
    let wait = tokio::task::spawn_blocking(move || -> io::Result<Output> {
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends early says why on its standard error.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output()
    });
    let output = match tokio::time::timeout(TIME, wait).await {
        Ok(Ok(Ok(output))) => output,
        Ok(Ok(Err(error))) => return Err(failed(error.to_string())),
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => {
            // Nobody has waited for it yet, so the number is still its own.
            if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            return Err(failed(format!("no answer for {} s", TIME.as_secs())));
        }
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let told: String = told.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(TOLD_MAX).collect();
    Err(failed(if told.is_empty() { output.status.to_string() } else { told }))
}
