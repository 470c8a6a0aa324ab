//! Signals that end a training: the first lets it save, a second one ends it at once.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use wgrnn::{Error, Result};

/// Each signal with the status that a shell gives a process which it ended.
const SIGNALS: [(i32, u8); 2] = [(SIGINT, 130), (SIGTERM, 143)];

/// Listens for signals from its making on.
pub(super) struct Interrupt {
    /// The status to end with; 0 while there was no signal.
    status: Arc<AtomicUsize>,
    at_once: Arc<AtomicBool>,
}

impl Interrupt {
    /// # Errors
    /// If the system does not let signals be caught.
    pub(super) fn listen() -> Result<Self> {
        let refused = |source: std::io::Error| Error::Device {
            op: "catching signals".to_owned(),
            reason: source.to_string(),
        };
        let (status, at_once) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        for (signal, code) in SIGNALS {
            // In this order: the first signal finds the flag unset and sets it for the second.
            let flag = || Arc::clone(&at_once);
            flag::register_conditional_shutdown(signal, i32::from(code), flag())
                .map_err(refused)?;
            flag::register(signal, flag()).map_err(refused)?;
            let status = Arc::clone(&status);
            flag::register_usize(signal, status, usize::from(code)).map_err(refused)?;
        }
        Ok(Self { status, at_once })
    }

    /// The status to end with, if there was a signal.
    pub(super) fn status(&self) -> Option<ExitCode> {
        let status = u8::try_from(self.status.load(Ordering::SeqCst)).ok()?;
        (status != 0).then(|| ExitCode::from(status))
    }

    /// Lets any signal from here on end the process at once, and says whether there was one before.
    pub(super) fn ended(&self) -> Option<ExitCode> {
        self.at_once.store(true, Ordering::SeqCst);
        self.status()
    }
}
