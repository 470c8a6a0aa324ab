//! Tests that ran on no adapter, as there was none: noted for `tests/without_adapter.rs`, which says so when all test
//! programs are done, and said once by each program itself, past the output that is kept from passing tests.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Once;
use std::thread;

/// What each program adds to, a line for each test.
pub(crate) fn path() -> PathBuf {
    let folder = option_env!("CARGO_TARGET_TMPDIR").map(PathBuf::from);
    // The library's own tests are told of none; they lie in `deps` of a profile.
    let of_program = || {
        Some(
            std::env::current_exe()
                .ok()?
                .ancestors()
                .nth(3)?
                .join("tmp"),
        )
    };
    let folder = folder.or_else(of_program).unwrap_or_default();
    folder.join("ran on no adapter")
}

/// The process that runs the test programs, one after another: notes of another are not of this run.
pub(crate) fn run() -> String {
    #[cfg(unix)]
    let parent = std::os::unix::process::parent_id().to_string();
    #[cfg(not(unix))]
    let parent = "all".to_owned();
    parent
}

/// The test that this thread runs.
pub(crate) fn test() -> String {
    thread::current().name().unwrap_or("a test").to_owned()
}

/// Notes that this test runs on no adapter. A note that cannot be kept is still said.
pub(crate) fn note(reason: &str) {
    static SAID: Once = Once::new();
    let program = env!("CARGO_CRATE_NAME");
    SAID.call_once(|| {
        let mut stderr = std::io::stderr();
        let said = format!("{program}: {reason}, so its GPU tests run on none\n");
        let _ = stderr.write_all(said.as_bytes());
    });
    // One write, so that lines of tests that run at the same time stay whole.
    let line = format!("{}\t{program}\t{}\t{reason}\n", run(), test());
    let file = OpenOptions::new().create(true).append(true).open(path());
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}
