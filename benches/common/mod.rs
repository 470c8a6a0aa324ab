//! The devices that benchmarks run on.
#![allow(dead_code, reason = "each benchmark uses its own part")]

use wgrnn::Context;

/// The CPU backend and every adapter that opens.
pub(crate) fn contexts() -> Vec<Context> {
    [vec![Context::cpu()], adapters()].concat()
}

/// Every adapter that opens.
pub(crate) fn adapters() -> Vec<Context> {
    let mut all = Vec::new();
    for adapter in pollster::block_on(Context::adapters()) {
        match pollster::block_on(Context::from_adapter(&adapter)) {
            Ok(context) => all.push(context),
            Err(e) => eprintln!("skipped: {e}"),
        }
    }
    all
}
