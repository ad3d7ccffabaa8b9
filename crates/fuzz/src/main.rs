//! What libFuzzer drives: the target that `TESTUDO_FUZZ_TARGET` names.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use testudo_fuzz::{Target, target};

fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<&Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("TESTUDO_FUZZ_TARGET").unwrap_or_default();
        target(&name).unwrap_or_else(|| panic!("TESTUDO_FUZZ_TARGET={name:?} is no target"))
    })
}

fuzz_target!(|data: &[u8]| (chosen().run)(data));
