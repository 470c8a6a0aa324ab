//! The devices that benchmarks run on.

use wgrnn::Context;

/// The CPU backend and every adapter that opens.
pub(crate) fn contexts() -> Vec<Context> {
    let mut all = vec![Context::cpu()];
    for adapter in pollster::block_on(Context::adapters()) {
        match pollster::block_on(Context::from_adapter(&adapter)) {
            Ok(context) => all.push(context),
            Err(e) => eprintln!("skipped: {e}"),
        }
    }
    all
}
