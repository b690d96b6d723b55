//! What programs logged, kept from the moment they end until the test's verdict is known.

use std::path::Path;
use std::sync::Mutex;

/// Lines kept of each log.
const TAIL_LINES: usize = 60;

static KEPT: Mutex<Kept> = Mutex::new(Kept { logs: Vec::new(), faults: Vec::new() });

struct Kept {
    logs: Vec<(String, String)>,
    faults: Vec<String>,
}

fn with<R>(change: impl FnOnce(&mut Kept) -> R) -> R {
    change(&mut KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Keeps the end of the log at `path`.
pub fn keep(name: &str, path: &Path) {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    with(|kept| kept.logs.push((name.to_string(), tail)));
}

/// Notes what must fail the running test although nothing that it asked for went wrong: a panic in a log, say.
pub fn fault(what: String) {
    with(|kept| kept.faults.push(what));
}

/// Takes the faults and logs since the last call.
pub fn take() -> (Vec<String>, Vec<(String, String)>) {
    with(|kept| (std::mem::take(&mut kept.faults), std::mem::take(&mut kept.logs)))
}
