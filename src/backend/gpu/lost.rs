//! Whether a device is lost, why, and whom to tell.
//!
//! wgpu ignores what is asked of a lost device, without an error: what it makes then is invalid, and only the use of that
//! is an error. So a call asks whether the device still works after it has done its part.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::{Error, Result};

type Callback = Box<dyn FnOnce(&str) + Send>;

/// What is known of a device's loss. It outlives the device.
#[derive(Default)]
pub(crate) struct Lost {
    reason: OnceLock<String>,
    waiting: Mutex<Vec<Callback>>,
}

impl std::fmt::Debug for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lost")
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

impl Lost {
    /// Why the device was lost, if that is known.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Keeps the first reason and tells who waits for it.
    pub(crate) fn note(&self, reason: String) {
        if self.reason.set(reason).is_ok() {
            let waiting = std::mem::take(&mut *self.waiting());
            self.tell(waiting);
        }
    }

    /// Calls back once it is lost, at once if it is.
    pub(crate) fn on_lost(&self, callback: Callback) {
        let mut waiting = self.waiting();
        if self.reason.get().is_none() {
            waiting.push(callback);
            return;
        }
        drop(waiting);
        self.tell(vec![callback]);
    }

    fn tell(&self, waiting: Vec<Callback>) {
        let reason = self.reason().unwrap_or_default();
        for callback in waiting {
            callback(reason);
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Callback>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What wgpu calls.
    pub(crate) fn handler(
        self: &Arc<Self>,
    ) -> impl Fn(wgpu::DeviceLostReason, String) + Send + use<> {
        let lost = self.clone();
        move |reason, message| {
            let what = match reason {
                wgpu::DeviceLostReason::Destroyed => "it was destroyed",
                wgpu::DeviceLostReason::Unknown => "it was lost",
            };
            lost.note(match message.is_empty() {
                true => what.to_owned(),
                false => format!("{what}: {message}"),
            });
        }
    }
}

/// A device that can be asked whether it works. Clones know the same.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    device: wgpu::Device,
    lost: Arc<Lost>,
    /// Whether wgpu tells us first, as the device is not a host's.
    own: bool,
}

impl Health {
    pub(super) fn of_host(device: &wgpu::Device) -> Self {
        Self {
            device: device.clone(),
            lost: Arc::default(),
            own: false,
        }
    }

    /// Of a device that nobody else has: its place for a callback is ours.
    pub(super) fn of_own(device: &wgpu::Device) -> Self {
        let lost = Arc::<Lost>::default();
        device.set_device_lost_callback(lost.handler());
        Self {
            device: device.clone(),
            lost,
            own: true,
        }
    }

    pub(crate) fn known(&self) -> &Arc<Lost> {
        &self.lost
    }

    /// Why the device was lost, after asking it whether it is.
    pub(crate) fn lost(&self) -> Option<&str> {
        if self.lost.reason().is_none() && !self.works() {
            // wgpu calls back at once when a device fails, but after a destruction not before it is polled.
            let reason = match self.own {
                true => "it was destroyed",
                false => "it was lost or destroyed",
            };
            self.lost.note(reason.to_owned());
        }
        self.lost.reason()
    }

    /// A device that works refuses a buffer without a use; one that is lost says nothing. A browser does not answer at
    /// once; it calls back.
    fn works(&self) -> bool {
        if cfg!(target_family = "wasm") {
            return true;
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        drop(self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4,
            usage: wgpu::BufferUsages::empty(),
            mapped_at_creation: false,
        }));
        pollster::block_on(scope.pop()).is_some()
    }

    /// # Errors
    /// [`Error::Device`] if it is lost.
    pub(crate) fn check(&self, op: &str) -> Result<()> {
        match self.lost() {
            None => Ok(()),
            Some(reason) => Err(failed(op, reason)),
        }
    }

    /// [`Self::check`] without asking the device, which takes no time.
    ///
    /// # Errors
    /// [`Error::Device`] if it is known to be lost.
    pub(crate) fn check_known(&self, op: &str) -> Result<()> {
        match self.lost.reason() {
            None => Ok(()),
            Some(reason) => Err(failed(op, reason)),
        }
    }

    /// What failed: the device, if it is lost, or else what wgpu says.
    pub(super) fn error(&self, op: &str, reason: impl std::fmt::Display) -> Error {
        self.check(op).err().unwrap_or_else(|| failed(op, reason))
    }
}

fn failed(op: &str, reason: impl std::fmt::Display) -> Error {
    Error::Device {
        op: op.to_owned(),
        // wgpu's messages run over several lines.
        reason: reason
            .to_string()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_is_told_the_first_reason_once() {
        let lost = Arc::new(Lost::default());
        let told = Arc::new(Mutex::new(Vec::new()));
        let listen = || {
            let told = told.clone();
            lost.on_lost(Box::new(move |reason| {
                told.lock().unwrap().push(reason.to_owned());
            }));
        };
        listen();
        listen();
        assert_eq!(lost.reason(), None);
        let handler = lost.handler();
        handler(wgpu::DeviceLostReason::Unknown, "a reset".to_owned());
        handler(wgpu::DeviceLostReason::Destroyed, String::new());
        lost.note("another".to_owned());
        listen();
        assert_eq!(lost.reason(), Some("it was lost: a reset"));
        assert_eq!(*told.lock().unwrap(), ["it was lost: a reset"; 3]);
    }
}
