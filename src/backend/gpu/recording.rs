//! A plan on a GPU: pipelines, bind groups and the parameter table, made once; recording only
//! sets and dispatches them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::device::{Gpu, Pipeline};
use crate::error::{Error, Result};
use crate::plan::{BufferId, Plan, Step};
use crate::tensor::{Storage, Tensor};

/// Everything that a plan's commands refer to.
#[derive(Debug)]
pub(crate) struct Recording {
    steps: Vec<Dispatch>,
    bind_groups: Vec<wgpu::BindGroup>,
}

#[derive(Debug)]
struct Dispatch {
    pipeline: Arc<Pipeline>,
    bind_group: usize,
    offset: u32,
    grid: [u32; 3],
}

impl Recording {
    /// Builds the pipelines and bind groups for `plan` over `tensors`, one for each of its buffers.
    pub(crate) fn new(gpu: &Gpu, plan: &Plan, tensors: &[Tensor]) -> Result<Self> {
        let table = gpu.uniforms(&plan.params)?;
        let mut bound = Vec::new();
        let mut known: HashMap<(*const Pipeline, &[BufferId]), usize> = HashMap::new();
        let mut steps = Vec::with_capacity(plan.steps.len());
        // The plan may be for another device, and then bounded otherwise.
        let rounds = gpu.target().loop_rounds;
        for step in &plan.steps {
            plan.told(step).check_rounds(rounds)?;
            let pipeline = gpu.pipeline(step.kernel, &step.constants)?;
            let key = (Arc::as_ptr(&pipeline), step.bindings.as_slice());
            let bind_group = match known.get(&key) {
                Some(&index) => index,
                None => {
                    known.insert(key, bound.len());
                    bound.push((pipeline.clone(), step));
                    bound.len() - 1
                }
            };
            let offset = u32::try_from(step.params.start).map_err(|_| Error::Limit {
                what: "bytes of a plan's parameters".to_owned(),
                needed: step.params.start as u64,
                available: u64::from(u32::MAX),
            })?;
            let available = gpu.limits().max_compute_workgroups_per_dimension;
            if let Some(&groups) = step.grid.iter().find(|&&g| g > available) {
                return Err(Error::Limit {
                    what: format!("{}: workgroups per dimension", step.kernel.name),
                    needed: u64::from(groups),
                    available: u64::from(available),
                });
            }
            steps.push(Dispatch {
                pipeline,
                bind_group,
                offset,
                grid: step.grid,
            });
        }
        let make = |(pipeline, step): &(Arc<Pipeline>, &Step)| {
            let bound: Vec<_> = step.bindings.iter().map(|id| &tensors[id.0]).collect();
            bind(gpu, pipeline, step.kernel, &table, &bound)
        };
        let bind_groups = gpu.checked("binding a plan's memory", || {
            bound.iter().map(make).collect::<Result<_>>()
        })??;
        Ok(Self { steps, bind_groups })
    }

    /// Records some steps as one compute pass, which may write when it began and ended.
    pub(crate) fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        label: &str,
        steps: Range<usize>,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(label),
            timestamp_writes,
        });
        let mut current: *const Pipeline = std::ptr::null();
        for step in &self.steps[steps] {
            if current != Arc::as_ptr(&step.pipeline) {
                current = Arc::as_ptr(&step.pipeline);
                pass.set_pipeline(&step.pipeline.pipeline);
            }
            pass.set_bind_group(0, &self.bind_groups[step.bind_group], &[step.offset]);
            let [x, y, z] = step.grid;
            pass.dispatch_workgroups(x, y, z);
        }
    }
}

fn bind(
    gpu: &Gpu,
    pipeline: &Pipeline,
    kernel: &crate::kernel::Kernel,
    table: &wgpu::Buffer,
    tensors: &[&Tensor],
) -> Result<wgpu::BindGroup> {
    let mut entries = vec![wgpu::BindGroupEntry {
        binding: 0,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: table,
            offset: 0,
            size: wgpu::BufferSize::new(kernel.params_size as u64),
        }),
    }];
    for (i, tensor) in tensors.iter().enumerate() {
        let Storage::Gpu(buffer) = tensor.storage() else {
            return Err(Error::value(
                kernel.name,
                kernel.bindings[i].name,
                "on the GPU",
                "CPU",
            ));
        };
        // An empty tensor is bound as the whole buffer: a binding of no bytes is not possible.
        let range = if tensor.is_empty() {
            0..0
        } else {
            tensor.range()
        };
        let bytes = |len: usize| tensor.element().bytes(len) as u64;
        let (offset, bytes) = (bytes(range.start), bytes(range.len()));
        let align = u64::from(gpu.limits().min_storage_buffer_offset_alignment);
        if !offset.is_multiple_of(align) {
            return Err(Error::Value {
                op: kernel.name,
                arg: kernel.bindings[i].name.to_owned(),
                expected: format!("to start at a multiple of {align} bytes of its buffer"),
                got: offset.to_string(),
            });
        }
        let available = gpu.limits().max_storage_buffer_binding_size;
        if bytes > available {
            return Err(Error::Limit {
                what: format!(
                    "{}: bytes bound as {}",
                    kernel.name, kernel.bindings[i].name
                ),
                needed: bytes,
                available,
            });
        }
        entries.push(wgpu::BindGroupEntry {
            binding: i as u32 + 1,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(bytes),
            }),
        });
    }
    Ok(gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(kernel.name),
        layout: &pipeline.layout,
        entries: &entries,
    }))
}
