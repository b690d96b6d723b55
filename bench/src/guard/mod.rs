//! What a benchmark starts and makes on the machine, each thing with a guard that stops or removes it, also when the
//! benchmark fails or is interrupted. All of it belongs to the main thread.

mod hugepages;
pub(crate) mod interrupt;
mod job;
mod netns;

pub(crate) use hugepages::Hugepages;
pub(crate) use job::{Job, Line, own_wait, run};
pub(crate) use netns::Netns;
