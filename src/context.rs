//! Where work runs: a device of the host's, one of our own, or the CPU.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::plan::{DISPATCH_STEPS, DeviceKind, Force, Target};

#[cfg(feature = "gpu")]
pub(crate) use crate::backend::gpu::Gpu;

/// A device to run on. Cheap to clone; clones share the pipelines that were built.
#[derive(Clone, Debug)]
pub struct Context {
    device: Arc<Device>,
    planned: Option<DeviceKind>,
    force: Force,
    dispatch_steps: usize,
}

#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one per context, on the heap as it is"
)]
pub(crate) enum Device {
    Cpu(Dtype),
    #[cfg(feature = "gpu")]
    Gpu(Gpu),
}

/// The type of the numbers that a context computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floats: GPUs and the CPU backend.
    F32,
    /// 64-bit floats: the CPU oracle.
    F64,
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

impl Context {
    /// The CPU backend in single precision.
    pub fn cpu() -> Self {
        Self::new(Device::Cpu(Dtype::F32))
    }

    /// The CPU backend in double precision: the oracle that other results are compared with.
    pub fn cpu_f64() -> Self {
        Self::new(Device::Cpu(Dtype::F64))
    }

    pub(crate) fn new(device: Device) -> Self {
        Self {
            device: Arc::new(device),
            planned: None,
            force: Force::default(),
            dispatch_steps: DISPATCH_STEPS,
        }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The device that a name stands for, waiting for it to open.
    ///
    /// | name | device |
    /// |---|---|
    /// | `auto` | a hardware GPU if there is one, else the CPU backend |
    /// | `cpu` | the CPU backend in f32 |
    /// | `gpu` | a hardware GPU |
    /// | anything else | the first adapter whose name or backend contains it, software adapters included |
    ///
    /// # Errors
    /// [`Error::NoAdapter`] if no adapter fits, [`Error::Device`] if it does not open.
    #[cfg(feature = "gpu")]
    pub fn open(name: &str) -> Result<Self> {
        if name == "cpu" {
            return Ok(Self::cpu());
        }
        Self::can_block("Context::open", "Context::open_async")?;
        pollster::block_on(Self::open_async(name))
    }

    /// [`Self::open`] without a GPU backend in this build: `auto` and `cpu` are the CPU.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] for every other name.
    #[cfg(not(feature = "gpu"))]
    pub fn open(name: &str) -> Result<Self> {
        match name {
            "auto" | "cpu" => Ok(Self::cpu()),
            _ => Err(Error::NoAdapter {
                asked: name.to_owned(),
                available: Vec::new(),
            }),
        }
    }

    /// Everything that a result can be compared on: the CPU backend, then each adapter of this machine,
    /// software adapters included.
    ///
    /// # Errors
    /// [`Error::Device`] if an adapter does not open; [`Error::Unsupported`] in a browser, where
    /// nothing may block.
    pub fn all() -> Result<Vec<Self>> {
        #[cfg(feature = "gpu")]
        let on_adapters = Self::on_adapters()?;
        #[cfg(not(feature = "gpu"))]
        let on_adapters = Vec::new();
        Ok([vec![Self::cpu()], on_adapters].concat())
    }

    #[cfg(feature = "gpu")]
    fn on_adapters() -> Result<Vec<Self>> {
        Self::can_block(
            "Context::all",
            "Context::adapters and Context::from_adapter",
        )?;
        pollster::block_on(async {
            let mut contexts = Vec::new();
            for adapter in Self::adapters().await {
                contexts.push(Self::from_adapter(&adapter).await?);
            }
            Ok(contexts)
        })
    }

    /// A one-line name: the adapter and its backend, or the CPU and its precision, and whose rules plans
    /// for it follow where those are another kind's.
    pub fn name(&self) -> String {
        let name = match self.device() {
            Device::Cpu(dtype) => format!("CPU {dtype}"),
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.name(),
        };
        name + &self.rules()
    }

    /// What follows its name where plans are made by the rules for another kind of device.
    fn rules(&self) -> String {
        match self.planned {
            Some(kind) if kind != self.kind() => format!(", planned for {kind}"),
            _ => String::new(),
        }
    }

    /// The device and what drives it, as far as its speed goes: what measured results are filed under.
    pub fn identity(&self) -> String {
        match self.device() {
            Device::Cpu(_) => {
                let threads = std::thread::available_parallelism().map_or(1, usize::from);
                let arch = std::env::consts::ARCH;
                format!("{}, {arch}, {threads} threads", self.name())
            }
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.identity() + &self.rules(),
        }
    }

    /// The type of the numbers it computes with.
    pub fn dtype(&self) -> Dtype {
        match self.device() {
            Device::Cpu(dtype) => *dtype,
            #[cfg(feature = "gpu")]
            Device::Gpu(_) => Dtype::F32,
        }
    }

    /// True if work runs on a GPU adapter, be it hardware or software.
    pub fn is_gpu(&self) -> bool {
        !matches!(self.device(), Device::Cpu(_))
    }

    /// Refuses a kernel that asks for more than the device has; the CPU runs every kernel. Building a
    /// [`Program`](crate::Program) asks this of all its kernels.
    ///
    /// # Errors
    /// [`Error::Limit`] with the first limit that is too low, [`Error::Unsupported`] if a feature is missing.
    pub fn check_kernel(&self, kernel: &Kernel) -> Result<()> {
        match self.device() {
            Device::Cpu(_) => {
                let _ = kernel;
                Ok(())
            }
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.check(kernel, &[]),
        }
    }

    /// The same device, for which plans are made with these choices. Its tensors are those of every
    /// other context of the device.
    #[must_use]
    pub fn forcing(&self, force: Force) -> Self {
        Self {
            force,
            ..self.clone()
        }
    }

    /// The same device, for which plans are made by the rules for a device of this kind: a software
    /// adapter, or the CPU backend, runs what a hardware GPU of its limits and features would run. A layer
    /// must be built on it, since its weights are packed for its rules.
    ///
    /// # Errors
    /// [`Error::Value`] for the CPU's rules on an adapter, whose limits they do not ask for.
    pub fn planning_for(&self, kind: DeviceKind) -> Result<Self> {
        if self.is_gpu() && kind == DeviceKind::Cpu {
            return Err(Error::value(
                "Context::planning_for",
                "kind",
                "software or gpu, for an adapter",
                kind,
            ));
        }
        Ok(Self {
            planned: Some(kind),
            ..self.clone()
        })
    }

    /// The same device, for which plans are made with at most so many steps of a layer in one dispatch:
    /// fewer where a host's frames must not wait for long, or a driver has a short time-out.
    #[must_use]
    pub fn dispatching(&self, steps: usize) -> Self {
        Self {
            dispatch_steps: steps.max(1),
            ..self.clone()
        }
    }

    /// What kind of device it is, whatever rules plans for it follow.
    pub fn kind(&self) -> DeviceKind {
        self.own_target().kind
    }

    /// What plans for this device are made for.
    pub fn target(&self) -> Target {
        let own = self.own_target();
        Target {
            kind: self.planned.unwrap_or(own.kind),
            force: self.force,
            dispatch_steps: self.dispatch_steps,
            ..own
        }
    }

    /// What they are made for without the caller's choices.
    fn own_target(&self) -> Target {
        match self.device() {
            Device::Cpu(_) => Target::portable(DeviceKind::Cpu),
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.target(),
        }
    }

    /// Waits until everything submitted to the device is done; on the CPU there is nothing to wait for.
    ///
    /// # Errors
    /// [`Error::Device`] if the device was lost; [`Error::Unsupported`] for a GPU in a browser, where
    /// nothing may block.
    pub fn wait(&self) -> Result<()> {
        match self.device() {
            Device::Cpu(_) => Ok(()),
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => {
                Self::can_block("waiting for a GPU", "read_async")?;
                gpu.wait()
            }
        }
    }

    /// Refuses to block where that is not possible.
    #[cfg(feature = "gpu")]
    pub(crate) fn can_block(op: &'static str, instead: &str) -> Result<()> {
        if cfg!(target_arch = "wasm32") {
            let needs = format!("blocking, which a browser forbids: use {instead}");
            return Err(Error::Unsupported { op, needs });
        }
        Ok(())
    }

    /// True if both are the same device, so that one can use the other's tensors.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.device, &other.device)
            || matches!((self.device(), other.device()), (Device::Cpu(a), Device::Cpu(b)) if a == b)
    }
}

#[cfg(feature = "gpu")]
impl Context {
    /// A device and queue that the host owns. They keep their limits and features; the host goes
    /// on submitting and polling as it likes.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        Self::new(Device::Gpu(Gpu::new(device, queue)))
    }

    /// [`Self::open`] where blocking is not possible, as in a browser.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_async(name: &str) -> Result<Self> {
        match name {
            "cpu" => Ok(Self::cpu()),
            "auto" => match Gpu::open("gpu").await {
                Ok(gpu) => Ok(Self::new(Device::Gpu(gpu))),
                Err(Error::NoAdapter { .. }) => Ok(Self::cpu()),
                Err(e) => {
                    log::warn!("{e}; using the CPU");
                    Ok(Self::cpu())
                }
            },
            _ => Gpu::open(name).await.map(|gpu| Self::new(Device::Gpu(gpu))),
        }
    }

    /// Every adapter of this machine, hardware first. A process asks one instance for them, which threads may share.
    pub async fn adapters() -> Vec<wgpu::Adapter> {
        Gpu::adapters().await
    }

    /// The one-line name that a context on this adapter has, and by which [`Self::open`] finds it.
    pub fn adapter_name(adapter: &wgpu::Adapter) -> String {
        crate::backend::gpu::describe(&adapter.get_info())
    }

    /// Opens an adapter with all the limits it offers and the features that the kernels can use.
    ///
    /// # Errors
    /// [`Error::Device`] if it does not open.
    pub async fn from_adapter(adapter: &wgpu::Adapter) -> Result<Self> {
        Ok(Self::new(Device::Gpu(Gpu::from_adapter(adapter).await?)))
    }

    /// The device and queue, unless this is the CPU.
    pub fn wgpu(&self) -> Option<(&wgpu::Device, &wgpu::Queue)> {
        match self.device() {
            Device::Cpu(_) => None,
            Device::Gpu(gpu) => Some((&gpu.device, &gpu.queue)),
        }
    }
}
