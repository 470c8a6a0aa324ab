//! `copy` and `fill`: moving data inside a plan.

use bytemuck::{Pod, Zeroable};

use super::index;
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample, no_loops};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/copy.wgsl");

/// `copy.copy`: one buffer to another.
pub static COPY: Kernel = Kernel {
    name: "copy.copy",
    wgsl: WGSL,
    entry: "copy",
    bindings: &[Binding::read("source"), Binding::update("destination")],
    params_size: size_of::<Params>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(copy_twin),
    sample: |[m, n, _], rng| {
        let len = m * n;
        let mut b = Builder::new("copy");
        let source = b.float("source", &[len + 1], Role::Input);
        let destination = b.float("destination", &[len], Role::Output);
        copy(&mut b, (source, 1), (destination, 0), len)?;
        Ok(sample(b, source, rng.uniforms(len + 1, -1.0, 1.0)))
    },
};

/// `copy.fill`: one value everywhere.
pub static FILL: Kernel = Kernel {
    name: "copy.fill",
    wgsl: WGSL,
    entry: "fill",
    bindings: &[Binding::write("buffer")],
    params_size: size_of::<Params>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(fill_twin),
    sample: |[m, n, _], rng| {
        let mut b = Builder::new("fill");
        let buffer = b.float("buffer", &[m * n], Role::Output);
        fill(&mut b, buffer, rng.uniform(-1.0, 1.0))?;
        Ok(Sample {
            plan: b.finish(),
            data: Vec::new(),
        })
    },
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    len: u32,
    from_start: u32,
    to_start: u32,
    value: f32,
}

/// Adds `destination[to + i] = source[from + i]` for `i < len`; each place is a buffer and a start.
///
/// # Errors
/// If a range leaves its buffer, or both buffers are the same.
pub fn copy(
    b: &mut Builder,
    (source, from): (BufferId, usize),
    (destination, to): (BufferId, usize),
    len: usize,
) -> Result<()> {
    for (arg, id, end) in [
        ("source", source, from.saturating_add(len)),
        ("destination", destination, to.saturating_add(len)),
    ] {
        if b.buffer(id)?.len() < end {
            return Err(Error::shape(
                COPY.name,
                format!("end in {arg}"),
                b.buffer(id)?.len(),
                end,
            ));
        }
    }
    push(b, &COPY, &[source, destination], len, [from, to], 0.0, 2)
}

/// Adds `buffer[i] = value` for the whole buffer.
///
/// # Errors
/// If the buffer does not hold floats.
pub fn fill(b: &mut Builder, buffer: BufferId, value: f32) -> Result<()> {
    let len = b.buffer(buffer)?.len();
    push(b, &FILL, &[buffer], len, [0, 0], value, 1)
}

fn push(
    b: &mut Builder,
    kernel: &'static Kernel,
    bindings: &[BufferId],
    len: usize,
    [from, to]: [usize; 2],
    value: f32,
    touches: u64,
) -> Result<()> {
    b.push(Dispatch {
        kernel,
        constants: &[],
        bindings,
        params: Params {
            len: index(kernel.name, len)?,
            from_start: index(kernel.name, from)?,
            to_start: index(kernel.name, to)?,
            value,
        },
        grid: Grid::Flat(len),
        cost: Cost {
            flops: 0,
            bytes: 4 * touches * len as u64,
            length: 1,
        },
    })
}

fn sample(b: Builder, buffer: BufferId, values: Vec<f32>) -> Sample {
    Sample {
        plan: b.finish(),
        data: vec![(buffer, Data::Float(values))],
    }
}

fn copy_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (source, destination) = (args.read(0)?, args.write(1)?);
    let [len, from, to] = [p.len, p.from_start, p.to_start].map(|v| v as usize);
    destination[to..to + len].copy_from_slice(&source[from..from + len]);
    Ok(())
}

fn fill_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    args.write(0)?[..p.len as usize].fill(R::from_f32(p.value));
    Ok(())
}
