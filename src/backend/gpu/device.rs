//! A wgpu device with the pipelines that were built on it.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::lost::Health;
use super::{cooperative, driver};
use crate::error::{Error, Result};
use crate::kernel::{Access, Constant, Kernel, compose};
use crate::kernels::step::LANES;
use crate::plan::{Cooperative, DISPATCH_STEPS, Denied, DeviceKind, Force, GROUPS, Target};

/// A device, its queue and its pipelines.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) health: Health,
    /// Bytes written since the latest submission of ours.
    pub(super) pending: AtomicU64,
    /// Whether the queue is the device's; asked once.
    pub(super) pair: OnceLock<bool>,
    limits: wgpu::Limits,
    /// Whether its shaders can unpack 16-bit floats; asked once.
    unpacks: OnceLock<bool>,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    /// The cooperative matrices that it was opened with.
    cooperative: Option<Cooperative>,
}

/// Where the kernel stands, as a host's kernels may share a name with ours or with each other, and
/// its constants.
type PipelineKey = (usize, Vec<Constant>);

/// A pipeline and the layout of its only bind group.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// The instance of this process. NVIDIA's driver for Linux can crash where several threads make one at a time
/// (<https://github.com/gfx-rs/wgpu/issues/5930>); a host that makes its own has to see to that for both.
#[cfg(not(target_family = "wasm"))]
fn instance() -> wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE.get_or_init(new_instance).clone()
}

/// A browser has one thread, and values that stay in it.
#[cfg(target_family = "wasm")]
fn instance() -> wgpu::Instance {
    new_instance()
}

fn new_instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

impl Gpu {
    /// A device and queue of the host's.
    pub(crate) fn of_host(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        Self {
            health: Health::of_host(&device),
            pending: AtomicU64::new(0),
            pair: OnceLock::new(),
            limits: device.limits(),
            unpacks: OnceLock::new(),
            device,
            queue,
            pipelines: Mutex::default(),
            cooperative: None,
        }
    }

    pub(crate) async fn adapters() -> Vec<wgpu::Adapter> {
        let instance = instance();
        let mut adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
        // A browser lists none; there, asking is the only way.
        if adapters.is_empty()
            && let Ok(adapter) = instance
                .request_adapter(&wgpu::RequestAdapterOptions::default())
                .await
        {
            adapters.push(adapter);
        }
        // Compute shaders are missing from the oldest GL drivers.
        adapters.retain(|a| a.limits().max_compute_invocations_per_workgroup > 0);
        adapters.sort_by_key(|a| rank(&a.get_info()));
        adapters
    }

    pub(crate) async fn open(name: &str) -> Result<Self> {
        let adapters = Self::adapters().await;
        let wanted = name.to_lowercase();
        let fits = |info: &wgpu::AdapterInfo| match name {
            "gpu" => info.device_type != wgpu::DeviceType::Cpu,
            // Software is used only when named, and nothing is no name.
            "" => false,
            _ => describe(info).to_lowercase().contains(&wanted),
        };
        match adapters.iter().find(|a| fits(&a.get_info())) {
            Some(adapter) => Self::from_adapter(adapter).await,
            None => Err(Error::NoAdapter {
                asked: name.to_owned(),
                available: adapters.iter().map(|a| describe(&a.get_info())).collect(),
            }),
        }
    }

    pub(crate) async fn from_adapter(adapter: &wgpu::Adapter) -> Result<Self> {
        let mut wanted =
            wgpu::Features::SUBGROUP | wgpu::Features::SHADER_F16 | wgpu::Features::TIMESTAMP_QUERY;
        let cooperative = cooperative::matrices(adapter);
        if cooperative.is_some() {
            wanted |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        }
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("wgrnn"),
                required_features: adapter.features() & wanted,
                required_limits: adapter.limits(),
                experimental_features: cooperative::token(cooperative),
                ..Default::default()
            })
            .await
            .map_err(|e| Error::Device {
                op: format!("opening {}", describe(&adapter.get_info())),
                reason: e.to_string(),
            })?;
        Ok(Self {
            cooperative,
            health: Health::of_own(&device),
            pair: OnceLock::from(true),
            ..Self::of_host(device, queue)
        })
    }

    pub(crate) fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }

    pub(crate) fn identity(&self) -> String {
        let driver = self.driver();
        let driver = driver.as_deref().unwrap_or("unknown driver");
        format!("{}, {driver}", self.name())
    }

    /// What drives it, as far as that can be known.
    pub(crate) fn driver(&self) -> Option<String> {
        let info = self.device.adapter_info();
        driver::named(&info.driver, &info.driver_info)
    }

    pub(crate) fn target(&self) -> Target {
        let limits = &self.limits;
        let [subgroup_size, subgroup_most] = self.subgroup_sizes();
        let kind = match self.device.adapter_info().device_type {
            wgpu::DeviceType::Cpu => DeviceKind::Software,
            _ => DeviceKind::Gpu,
        };
        Target {
            kind,
            invocations: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x),
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            buffer_bytes: self.most_bytes(),
            subgroup_size,
            subgroup_most,
            f16: self.device.features().contains(wgpu::Features::SHADER_F16),
            cooperative: self.cooperative,
            groups: GROUPS,
            dispatch_steps: DISPATCH_STEPS,
            loop_rounds: kind.loop_rounds(),
            denied: Denied::NONE,
            force: Force::default(),
        }
    }

    /// The fewest and the most invocations of a subgroup, or 0 where shaders may not use them. Browsers want a
    /// directive in the text for that, which wgpu does not accept elsewhere.
    fn subgroup_sizes(&self) -> [u32; 2] {
        let usable = self.device.features().contains(wgpu::Features::SUBGROUP);
        let info = self.device.adapter_info();
        match usable && !cfg!(target_family = "wasm") {
            true => [info.subgroup_min_size, info.subgroup_max_size],
            false => [0; 2],
        }
    }

    pub(crate) fn name(&self) -> String {
        describe(&self.device.adapter_info())
    }

    pub(crate) fn most_bytes(&self) -> u64 {
        let limits = &self.limits;
        let of_binding = limits.max_storage_buffer_binding_size;
        of_binding.min(limits.max_buffer_size)
    }

    /// A zeroed storage buffer of so many bytes. An empty tensor still needs a buffer to bind.
    pub(crate) fn buffer(&self, bytes: usize) -> Result<wgpu::Buffer> {
        self.check_pair()?;
        let size = bytes.max(16) as u64;
        let available = self.most_bytes();
        if size > available {
            return Err(Error::Limit {
                what: "bytes of one buffer".to_owned(),
                needed: size,
                available,
            });
        }
        self.checked("allocating a buffer", || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("wgrnn tensor"),
                size,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })
    }

    /// A uniform buffer with these contents.
    pub(crate) fn uniforms(&self, contents: &[u8]) -> Result<wgpu::Buffer> {
        let needed = contents.len() as u64;
        if needed > self.limits.max_buffer_size {
            return Err(Error::Limit {
                what: "bytes of a plan's parameters".to_owned(),
                needed,
                available: self.limits.max_buffer_size,
            });
        }
        self.checked("allocating a buffer", || {
            let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("wgrnn parameters"),
                size: needed.max(16).next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT),
                usage: wgpu::BufferUsages::UNIFORM,
                mapped_at_creation: true,
            });
            // It has no range if it could not be made, which is an error by itself.
            if let Ok(mut view) = buffer.get_mapped_range_mut(..) {
                view.slice(..contents.len()).copy_from_slice(contents);
            }
            buffer.unmap();
            buffer
        })
    }

    /// The pipeline of a kernel with these constants, built on first use.
    pub(crate) fn pipeline(
        &self,
        kernel: &'static Kernel,
        constants: &[Constant],
    ) -> Result<Arc<Pipeline>> {
        let key = (std::ptr::from_ref(kernel).addr(), constants.to_vec());
        let mut pipelines = self
            .pipelines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = pipelines.get(&key) {
            return Ok(found.clone());
        }
        // A browser's clock is another.
        #[cfg(not(target_family = "wasm"))]
        let start = std::time::Instant::now();
        let built = Arc::new(self.build(kernel, constants)?);
        // A driver may compile as late as the first dispatch, as Mesa's llvmpipe does.
        #[cfg(not(target_family = "wasm"))]
        log::debug!(
            "{} {constants:?} built in {:?}",
            kernel.name,
            start.elapsed()
        );
        pipelines.insert(key, built.clone());
        Ok(built)
    }

    fn build(&self, kernel: &'static Kernel, constants: &[Constant]) -> Result<Pipeline> {
        self.check(kernel, constants)?;
        let text = compose(kernel.name, kernel.wgsl, constants)?;
        let mut entries = vec![entry(
            0,
            wgpu::BufferBindingType::Uniform,
            true,
            kernel.params_size,
        )];
        for (i, binding) in kernel.bindings.iter().enumerate() {
            let read_only = binding.access == Access::Read;
            let ty = wgpu::BufferBindingType::Storage { read_only };
            // Whether elements are bound singly or as vec4s is the shader's affair.
            entries.push(entry(i as u32 + 1, ty, false, 0));
        }
        let label = Some(kernel.name);
        self.checked(kernel.name, || {
            let layout = self
                .device
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                    label,
                    entries: &entries,
                });
            let pipeline_layout =
                self.device
                    .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                        label,
                        bind_group_layouts: &[Some(&layout)],
                        immediate_size: 0,
                    });
            let module = self
                .device
                .create_shader_module(wgpu::ShaderModuleDescriptor {
                    label,
                    source: wgpu::ShaderSource::Wgsl(text.into()),
                });
            let pipeline = self
                .device
                .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label,
                    layout: Some(&pipeline_layout),
                    module: &module,
                    entry_point: Some(kernel.entry),
                    compilation_options: Default::default(),
                    cache: None,
                });
            Pipeline { pipeline, layout }
        })
    }

    fn check_cooperative(&self, kernel: &Kernel, constants: &[Constant]) -> Result<()> {
        if !kernel.uses_cooperative_matrices() {
            return Ok(());
        }
        let side = |size: u32| 32 / size.max(1);
        let asked = constants.iter().find(|(name, _)| *name == "SIDE");
        let asked = asked.map(|(_, value)| side(*value));
        let needs = match (self.cooperative, asked) {
            (Some(_), None) => return Ok(()),
            (Some(c), Some(size)) if c.size == size => return Ok(()),
            (_, Some(size)) => format!("cooperative matrices of {size} x {size}"),
            (None, None) => "cooperative matrices".to_owned(),
        };
        Err(Error::Unsupported {
            op: kernel.name,
            needs,
        })
    }

    fn check_subgroups(&self, kernel: &Kernel, constants: &[Constant]) -> Result<()> {
        let [fewest, most] = self.subgroup_sizes();
        // The lanes that a form of a step has all in one subgroup.
        let lanes = match constants.contains(&("SUBGROUPS", 1)) {
            true => LANES as u32,
            false => u32::from(kernel.uses_subgroups()),
        };
        // Those of each of several subgroups, no more.
        let exact = constants.iter().find(|(name, _)| *name == "SUBGROUP_SIZE");
        let exact = exact.map_or(0, |(_, value)| *value);
        let needs = match () {
            () if fewest < lanes => format!("{lanes} invocations or more"),
            () if exact > 0 && [fewest, most] != [exact; 2] => format!("{exact} invocations"),
            () => return Ok(()),
        };
        Err(Error::Unsupported {
            op: kernel.name,
            needs: format!("a device whose subgroups have {needs}"),
        })
    }

    /// Refuses a kernel that asks for more than the device has, before wgpu would.
    pub(crate) fn check(&self, kernel: &Kernel, constants: &[Constant]) -> Result<()> {
        self.check_subgroups(kernel, constants)?;
        self.check_cooperative(kernel, constants)?;
        let mut halves = kernel
            .bindings
            .iter()
            .filter_map(|b| b.half.filter(|_| !b.f16));
        if halves.any(|name| constants.contains(&(name, 1))) && !self.unpacks()? {
            return Err(Error::Unsupported {
                op: kernel.name,
                needs: "a device whose shaders can unpack 16-bit floats".to_owned(),
            });
        }
        let mut stored = kernel.bindings.iter().filter(|b| b.f16);
        let f16 = self.device.features().contains(wgpu::Features::SHADER_F16);
        if !f16 && stored.any(|b| b.half.is_some_and(|name| constants.contains(&(name, 1)))) {
            return Err(Error::Unsupported {
                op: kernel.name,
                needs: "a device with 16-bit floats in shaders".to_owned(),
            });
        }
        let limits = &self.limits;
        let needs = [
            (
                "invocations per workgroup",
                kernel.threads(constants),
                limits
                    .max_compute_invocations_per_workgroup
                    .min(limits.max_compute_workgroup_size_x),
            ),
            (
                "bytes of workgroup memory",
                kernel.shared_bytes(constants),
                limits.max_compute_workgroup_storage_size,
            ),
            (
                "storage buffers per stage",
                kernel.bindings.len() as u32,
                limits.max_storage_buffers_per_shader_stage,
            ),
        ];
        for (what, needed, available) in needs {
            if needed > available {
                return Err(Error::Limit {
                    what: format!("{}: {what}", kernel.name),
                    needed: u64::from(needed),
                    available: u64::from(available),
                });
            }
        }
        Ok(())
    }

    /// A device of a host's does not say: wgpu takes it from its adapter. Every WebGPU device can, and
    /// of Mesa's Vulkan drivers those that have 16-bit floats as such.
    fn unpacks(&self) -> Result<bool> {
        const TEXT: &str = "fn unpack(x: u32) -> vec2f { return unpack2x16float(x); }";
        const OP: &str = "16-bit floats";
        if let Some(known) = self.unpacks.get() {
            return Ok(*known);
        }
        let probe = self.checked(OP, || {
            self.device
                .create_shader_module(wgpu::ShaderModuleDescriptor {
                    label: Some("wgrnn probe"),
                    source: wgpu::ShaderSource::Wgsl(TEXT.into()),
                })
        });
        // What a lost device says is no answer.
        self.health.check(OP)?;
        Ok(*self.unpacks.get_or_init(|| probe.is_ok()))
    }
}

pub(super) fn entry(
    binding: u32,
    ty: wgpu::BufferBindingType,
    has_dynamic_offset: bool,
    size: usize,
) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty,
            has_dynamic_offset,
            min_binding_size: wgpu::BufferSize::new(size as u64),
        },
        count: None,
    }
}

/// The name by which an adapter is listed and found.
pub(crate) fn describe(info: &wgpu::AdapterInfo) -> String {
    // A browser does not say.
    let name = if info.name.is_empty() {
        "unnamed adapter"
    } else {
        &info.name
    };
    format!("{name} ({})", info.backend)
}

/// Hardware before software; the native interfaces before GL.
fn rank(info: &wgpu::AdapterInfo) -> (u8, u8) {
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    (kind, u8::from(info.backend == wgpu::Backend::Gl))
}
