//! Where work runs: a device of the host's, one of our own, or the CPU.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::plan::{DISPATCH_STEPS, Denied, DeviceKind, Force, Target};

#[cfg(feature = "gpu")]
pub(crate) use crate::backend::gpu::Gpu;

/// A device to run on. Cheap to clone; clones share the pipelines that were built.
#[derive(Clone, Debug)]
pub struct Context {
    device: Arc<Device>,
    planned: Option<DeviceKind>,
    force: Force,
    dispatch_steps: usize,
    denied: Denied,
    loop_rounds: u64,
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
            denied: Denied::NONE,
            loop_rounds: u64::MAX,
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

    /// Whether its identity says what drives it: not on an adapter of which the API says nothing.
    pub(crate) fn has_known_driver(&self) -> bool {
        match self.device() {
            Device::Cpu(_) => true,
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.driver().is_some(),
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

    /// The same device, for which plans have none of these kernels, and no loop of more rounds.
    pub(crate) fn without(&self, denied: Denied, loop_rounds: u64) -> Self {
        Self {
            denied: self.denied.union(denied),
            loop_rounds: self.loop_rounds.min(loop_rounds),
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
            denied: self.denied,
            loop_rounds: self.loop_rounds.min(own.loop_rounds),
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
                gpu.wait("Context::wait")
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

    /// Why the device was lost or destroyed, if it was: every call on it fails with this reason from then on. What was
    /// on it is gone. The CPU is never lost.
    ///
    /// On a GPU the device is asked, whoever lost it, on whichever thread. In a browser it is not known before the
    /// browser has said so.
    ///
    /// To go on, open a context, build the layer with its [`spec`](crate::Layer::spec) on it, and load weights that
    /// were kept ([`Layer::to_archive`](crate::Layer::to_archive)); sequences, streams and tensors of the lost device
    /// are made anew.
    ///
    /// ```
    /// # use wgrnn::{Context, Layer, Lstm};
    /// # fn main() -> wgrnn::Result<()> {
    /// # let mut layer = Lstm::new(2, 3).build(&Context::cpu())?;
    /// let kept = layer.to_archive()?; // from time to time
    /// if let Some(reason) = layer.context().lost() {
    ///     eprintln!("{reason}");
    ///     layer = Layer::new(&Context::open("auto")?, *layer.spec(), 0)?;
    ///     layer.load(&kept)?;
    /// }
    /// # let _ = layer;
    /// # Ok(())
    /// # }
    /// ```
    pub fn lost(&self) -> Option<String> {
        match self.device() {
            Device::Cpu(_) => None,
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.health.lost().map(str::to_owned),
        }
    }

    /// Calls back once with the reason when the device is known to be lost, at once if it is already.
    ///
    /// A device that this crate opened says so as soon as wgpu does: when it fails, or, if it was destroyed, when it
    /// is next polled or used. A host's device has one place for a callback, which is the host's: there, it is known
    /// when a call of this crate fails for it, when [`Self::lost`] is asked, or from [`Self::lost_handler`].
    ///
    /// The callback runs on the thread on which that becomes known, in the middle of a call that may hold locks: let
    /// it set a flag or send a message, and go on elsewhere.
    pub fn on_lost(&self, callback: impl FnOnce(&str) + Send + 'static) {
        match self.device() {
            Device::Cpu(_) => drop(callback),
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.health.known().on_lost(Box::new(callback)),
        }
    }

    /// True if both are the same device, so that one can use the other's tensors: one is a clone of the other. Two
    /// contexts that were opened or wrapped one by one are not.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.device, &other.device)
            || matches!((self.device(), other.device()), (Device::Cpu(a), Device::Cpu(b)) if a == b)
    }

    /// What is expected and what came, where a tensor is in another context's memory.
    pub(crate) fn beside(&self, other: &Self) -> [String; 2] {
        let (name, of_other) = (self.name(), other.name());
        match name == of_other {
            false => [format!("on {name}"), of_other],
            true => [
                format!("on the device of this context, {name}"),
                "one in another context of such an adapter: clone one context for both".to_owned(),
            ],
        }
    }
}

#[cfg(feature = "gpu")]
impl Context {
    /// A device and queue that the host owns. They keep their limits and features; the host goes
    /// on submitting and polling as it likes.
    ///
    /// Their callbacks stay the host's: neither [`wgpu::Device::set_device_lost_callback`] nor
    /// [`wgpu::Device::on_uncaptured_error`] is called. What wgpu says against a call of this crate is that call's
    /// error and does not reach the host's handler; what it says against commands that were recorded into the host's
    /// encoder arrives where the host finishes or submits that. A queue of another device is refused by the first call
    /// that needs memory; to see it, that call waits for the device once.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        Self::new(Device::Gpu(Gpu::of_host(device, queue)))
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

    /// What [`wgpu::Device::set_device_lost_callback`] of a host's device may be given, or what a host's own callback
    /// may pass its arguments on to, so that [`Self::on_lost`] calls back at once and [`Self::lost`] has wgpu's
    /// reason. It does not keep the device alive. wgpu drops a callback that was set before without calling it.
    ///
    /// ```no_run
    /// # fn host(device: wgrnn::wgpu::Device, queue: wgrnn::wgpu::Queue) {
    /// let context = wgrnn::Context::from_wgpu(device.clone(), queue);
    /// device.set_device_lost_callback(context.lost_handler());
    /// # }
    /// ```
    pub fn lost_handler(&self) -> impl Fn(wgpu::DeviceLostReason, String) + Send + 'static + use<> {
        let known = match self.device() {
            Device::Cpu(_) => Default::default(),
            Device::Gpu(gpu) => gpu.health.known().clone(),
        };
        known.handler()
    }

    /// The device and queue, unless this is the CPU. A callback that is set on a device which this crate opened
    /// ([`wgpu::Device::set_device_lost_callback`]) takes the place of the crate's own: see [`Self::lost_handler`].
    pub fn wgpu(&self) -> Option<(&wgpu::Device, &wgpu::Queue)> {
        match self.device() {
            Device::Cpu(_) => None,
            Device::Gpu(gpu) => Some((&gpu.device, &gpu.queue)),
        }
    }
}
