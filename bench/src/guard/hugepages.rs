//! Huge pages of 2 MiB, which DPDK's programs need: reserved for the time of the benchmark.

use std::fs;

use anyhow::{Context, Result, bail};

const COUNT: &str = "/proc/sys/vm/nr_hugepages";
const MOUNT: &str = "/dev/hugepages";

/// A reservation. Dropped, the machine has as many huge pages as before.
#[derive(Debug)]
pub(crate) struct Hugepages {
    before: Option<u64>,
}

impl Hugepages {
    /// Sees to it that `pages` are free.
    ///
    /// # Errors
    /// Not root, or the kernel does not find as much contiguous memory.
    pub(crate) fn reserve(pages: u64) -> Result<Self> {
        if !fs::metadata(MOUNT).is_ok_and(|meta| meta.is_dir()) {
            bail!("{MOUNT} is not there: mount a hugetlbfs on it");
        }
        let free = free()?;
        if free >= pages {
            return Ok(Hugepages { before: None });
        }
        let before: u64 = fs::read_to_string(COUNT)?.trim().parse().context(COUNT)?;
        let guard = Hugepages { before: Some(before) };
        fs::write(COUNT, (before + pages - free).to_string())
            .with_context(|| format!("cannot reserve huge pages in {COUNT}"))?;
        let got = self::free()?;
        if got < pages {
            bail!("{pages} free huge pages of 2 MiB are needed, and the kernel finds memory for {got} only");
        }
        Ok(guard)
    }
}

fn free() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    line.context("no HugePages_Free in /proc/meminfo")?.trim().parse().context("HugePages_Free")
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = fs::write(COUNT, before.to_string())
        {
            eprintln!("bench: cannot give the huge pages back ({COUNT}): {error}");
        }
    }
}
