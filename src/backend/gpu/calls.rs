//! What is asked of a device, so that whatever it says against it is an error: wgpu's own way is to panic, or to call
//! a handler that belongs to the host.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

use super::device::Gpu;
use crate::error::Result;
use crate::host::zeroed;

/// Bytes written since the latest submission after which the next is made for their sake: wgpu keeps a copy of
/// each write until then.
const FLUSH: u64 = 16 << 20;

impl Gpu {
    /// Runs `call` and turns what the device says against it into an error, as it does that the device is lost. In a
    /// browser the device reports later, through its own handler.
    pub(super) fn checked<T>(&self, op: &str, call: impl FnOnce() -> T) -> Result<T> {
        #[cfg(target_family = "wasm")]
        {
            self.health.check(op)?;
            Ok(call())
        }
        #[cfg(not(target_family = "wasm"))]
        {
            use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};

            // What fails for want of memory, or in the driver, makes what follows invalid.
            let first = self.device.push_error_scope(OutOfMemory);
            let second = self.device.push_error_scope(Internal);
            let third = self.device.push_error_scope(Validation);
            let made = call();
            let [third, second, first] =
                [third, second, first].map(|scope| pollster::block_on(scope.pop()));
            self.health.check(op)?;
            match first.or(second).or(third) {
                None => Ok(made),
                Some(e) => Err(self.health.error(op, e)),
            }
        }
    }

    /// Submits what `record` records.
    pub(crate) fn submit(
        &self,
        op: &str,
        record: impl FnOnce(&mut wgpu::CommandEncoder),
    ) -> Result<()> {
        self.checked(op, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            record(&mut encoder);
            self.pending.store(0, Ordering::Relaxed);
            self.queue.submit([encoder.finish()]);
        })
    }

    /// Writes before everything that is submitted from here on.
    pub(crate) fn write(
        &self,
        op: &str,
        buffer: &wgpu::Buffer,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        self.checked(op, || {
            self.queue.write_buffer(buffer, offset, bytes);
            let len = bytes.len() as u64;
            if self.pending.fetch_add(len, Ordering::Relaxed) + len > FLUSH {
                self.pending.store(0, Ordering::Relaxed);
                self.queue.submit([]);
            }
        })
    }

    /// Submits a copy of part of a buffer, in bytes of whole words, at once; the future resolves when
    /// the device was polled past it.
    pub(crate) fn download(
        &self,
        op: &'static str,
        buffer: &wgpu::Buffer,
        offset: u64,
        size: u64,
    ) -> Result<impl Future<Output = Result<Vec<u32>>> + use<>> {
        let (sender, receiver) = futures_intrusive::channel::shared::oneshot_channel();
        let staging = self.checked(op, || {
            let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("wgrnn readback"),
                size: size.max(4),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let mut encoder = self.device.create_command_encoder(&Default::default());
            if size > 0 {
                encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, size);
            }
            self.pending.store(0, Ordering::Relaxed);
            self.queue.submit([encoder.finish()]);
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                // The receiver is gone only if the caller dropped the future.
                let _ = sender.send(result);
            });
            staging
        })?;
        let health = self.health.clone();
        Ok(async move {
            match receiver.receive().await {
                Some(Ok(())) => {}
                Some(Err(e)) => return Err(health.error(op, e)),
                None => return Err(health.error(op, "the device was dropped")),
            }
            let view = staging.get_mapped_range(..size);
            let view = view.map_err(|e| health.error(op, e))?;
            let mut words: Vec<u32> = zeroed(size as usize / 4)?;
            bytemuck::cast_slice_mut(&mut words).copy_from_slice(&view);
            Ok(words)
        })
    }

    /// Waits until everything that was submitted is done.
    pub(crate) fn wait(&self, op: &str) -> Result<()> {
        self.poll(op, wgpu::PollType::wait_indefinitely())?;
        self.health.check(op)
    }

    /// Where a driver says that its device is lost, wgpu's poll panics: that one panic is an error here. Those of the
    /// host's own callbacks, which it calls, go on.
    fn poll(&self, op: &str, how: wgpu::PollType) -> Result<()> {
        match catch_unwind(AssertUnwindSafe(|| self.device.poll(how))) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(self.health.error(op, e)),
            Err(panic) => match of_poll(&*panic) {
                Some(text) => Err(self.health.error(op, text)),
                None => resume_unwind(panic),
            },
        }
    }
}

/// The text of the panic by which wgpu's poll ends.
fn of_poll(panic: &dyn Any) -> Option<&str> {
    let text = panic.downcast_ref::<String>()?;
    text.starts_with("Error in Device::poll").then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_panic_of_a_poll_is_an_error() {
        // As wgpu does it; what it formats is not known at compile time.
        let fatal = |operation: &str| {
            let caught = catch_unwind(|| panic!("Error in {operation}: Parent device is lost"));
            caught.unwrap_err()
        };
        let text = "Error in Device::poll: Parent device is lost";
        assert_eq!(of_poll(&*fatal("Device::poll")), Some(text));
        assert_eq!(of_poll(&*fatal("a callback")), None);
        let other = catch_unwind(|| panic!("a callback")).unwrap_err();
        assert_eq!(of_poll(&*other), None);
    }
}
