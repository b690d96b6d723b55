//! Messages on the ctl socket, and the configuration file.
//!
//! Input: its first byte's lowest bit tells what the rest is: a configuration file, or messages with a NUL after each,
//! which one switch answers one after the other.
#![no_main]

#[path = "../../ctl/tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::rc::Rc;

use ctl::server::Switch;
use libfuzzer_sys::fuzz_target;

const MESSAGES_MAX: usize = 32;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    // The switch in memory panics and claims a huge table for these names, as its own tests ask it to.
    let has = |word: &str| rest.windows(word.len()).any(|w| w == word.as_bytes());
    if has(common::PANIC) || has(common::HUGE.0) || has("\\u") {
        return;
    }
    if kind & 1 == 1 {
        if let Ok(text) = std::str::from_utf8(rest)
            && let Ok(model) = ctl::config::parse(Path::new("weft.toml"), text)
        {
            // What was read describes itself in words that are read as the same.
            for (name, spec) in &model.networks {
                let words = spec.words();
                let again = words.iter().map(|(key, value)| (*key, value.as_str()));
                let again = ctl::model::NetworkSpec::from_words(name, again);
                assert_eq!(again.as_ref(), Ok(spec));
            }
            assert!(ctl::config::diff(&model, &model).is_empty());
        }
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let switch: Rc<dyn Switch> = Rc::new(common::Fake::default());
    runtime.block_on(async {
        for message in rest.split(|&b| b == 0).take(MESSAGES_MAX) {
            let Some(reply) = ctl::server::fuzzing::answer(Rc::clone(&switch), message).await else { return };
            if let Some((end, value)) = reply.split_last() {
                assert_eq!(*end, 0, "a reply ends with a NUL");
                let value: serde_json::Value = serde_json::from_slice(value).expect("a reply is JSON");
                assert!(value.is_object());
            }
        }
    });
});
