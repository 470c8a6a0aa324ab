//! Whether what a host hands over belongs to the device that it is to be used on.
//!
//! wgpu compares the devices of one instance, and says so in the error scopes of the device that is asked. Between two
//! instances it compares nothing: it looks a number up, finds another object or panics. What is told apart here, is told
//! by where an answer arrives.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use super::device::{Gpu, entry};
use crate::error::{Error, Result};

impl Gpu {
    /// # Errors
    /// [`Error::Value`] if the host gave a queue of another device.
    pub(super) fn check_pair(&self) -> Result<()> {
        let asked = self.pair.get().copied();
        // A callback of the host's, which asking may call, may ask as well.
        let known = asked.unwrap_or_else(|| self.is_pair());
        match *self.pair.get_or_init(|| known) {
            true => Ok(()),
            false => Err(Error::value(
                "Context::from_wgpu",
                "queue",
                "the queue of the device",
                "one of another device",
            )),
        }
    }

    /// Refuses a buffer that is mapped, destroyed, or not this device's.
    ///
    /// # Errors
    /// [`Error::Value`] if it is so, [`Error::Device`] if the device is lost.
    pub(crate) fn check_buffer(&self, op: &'static str, buffer: &wgpu::Buffer) -> Result<()> {
        self.check_pair()?;
        // A range of no bytes is in nobody's way.
        if !cfg!(target_family = "wasm") && buffer.get_mapped_range(0..0).is_ok() {
            return Err(Error::value(op, "buffer", "unmapped", "one that is mapped"));
        }
        self.health.check(op)?;
        let refused = self.stranger(op, buffer);
        // What a lost device says is no answer.
        self.health.check(op)?;
        let Some(reason) = refused else {
            return Ok(());
        };
        let expected = format!("one that works on the context's device, {}", self.name());
        Err(Error::value(op, "buffer", expected, reason))
    }

    /// A device's poll calls back what its own queue has done. A browser polls by itself.
    fn is_pair(&self) -> bool {
        if cfg!(target_family = "wasm") {
            return true;
        }
        let (here, elsewhere) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        // Another thread that polls may be faster.
        for _ in 0..8 {
            let (here_too, elsewhere_too) = (here.clone(), elsewhere.clone());
            let asks = thread::current().id();
            self.queue.on_submitted_work_done(move || {
                let by_us = thread::current().id() == asks;
                if by_us { here_too } else { elsewhere_too }.store(true, SeqCst);
            });
            if self.wait("Context::from_wgpu").is_err() || here.load(SeqCst) {
                // A lost device has an error of its own.
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        elsewhere.load(SeqCst)
    }

    /// Why a buffer, which is not mapped, cannot be bound on this device; a browser does not say so at once.
    fn stranger(&self, op: &'static str, buffer: &wgpu::Buffer) -> Option<String> {
        const ELSEWHERE: &str = "a buffer of another device";
        if cfg!(target_family = "wasm") {
            return None;
        }
        // Another instance may not have this buffer's number, or have it for another buffer.
        let bound = catch_unwind(AssertUnwindSafe(|| self.bind_alone(op, buffer)));
        match bound {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Some(reason),
            Err(_) => return Some(ELSEWHERE.to_owned()),
        }
        let mappable = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE;
        if buffer.usage().intersects(mappable) {
            return None;
        }
        // That it is not mapped is said against unmapping it, to whom it belongs: to our scope, or to a handler of
        // the other device, which panics if it is wgpu's own.
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let unmapped = catch_unwind(AssertUnwindSafe(|| buffer.unmap()));
        let ours = pollster::block_on(scope.pop()).is_some();
        (unmapped.is_err() || !ours).then(|| ELSEWHERE.to_owned())
    }

    /// Makes a bind group of nothing else; the text is wgpu's.
    fn bind_alone(&self, op: &'static str, buffer: &wgpu::Buffer) -> Result<(), String> {
        let most = self.limits().max_storage_buffer_binding_size;
        let size = buffer.size().min(most) / 4 * 4;
        let ty = wgpu::BufferBindingType::Storage { read_only: true };
        let label = Some("wgrnn probe");
        let bound = self.checked(op, || {
            let layout = self
                .device
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                    label,
                    entries: &[entry(0, ty, false, 0)],
                });
            drop(self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label,
                layout: &layout,
                entries: &[wgpu::BindGroupEntry {
                    binding: 0,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer,
                        offset: 0,
                        size: wgpu::BufferSize::new(size),
                    }),
                }],
            }));
        });
        bound.map_err(|e| match e {
            Error::Device { reason, .. } => reason,
            other => other.to_string(),
        })
    }
}
