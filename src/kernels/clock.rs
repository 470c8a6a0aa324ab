//! `clock`: counts training steps in the device's memory.
//!
//! A plan is recorded once and does the same every time but for what it reads from buffers. The
//! clock is such a buffer: dropout draws another mask for every value of it, and Adam corrects its
//! biases by it.

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};
use crate::kernel::{Access, Args, Binding, Data, Kernel, Sample, no_loops};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::twin;

/// `clock.advance`: `clock[0] += 1`.
pub static ADVANCE: Kernel = Kernel {
    name: "clock.advance",
    wgsl: include_str!("../../shaders/clock.wgsl"),
    entry: "advance",
    bindings: &[Binding {
        access: Access::ReadWrite,
        ..Binding::read("clock").uint()
    }],
    params_size: size_of::<Params>(),
    workgroup_size: 1,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(twin),
    sample: |_, rng| {
        let mut b = Builder::new("clock");
        let clock = b.uint("clock", &[1], Role::State);
        advance(&mut b, clock)?;
        let now = [0, 41, u32::MAX][rng.below(3) as usize];
        Ok(Sample {
            plan: b.finish(),
            data: vec![(clock, Data::Uint(vec![now]))],
        })
    },
};

/// `clock.take`: `clock[0] += 1`, then `taken[0] = clock[0]`.
pub static TAKE: Kernel = Kernel {
    name: "clock.take",
    wgsl: include_str!("../../shaders/clock.wgsl"),
    entry: "take",
    bindings: &[
        Binding {
            access: Access::ReadWrite,
            ..Binding::read("clock").uint()
        },
        Binding::write("taken").uint(),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: 1,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(take_twin),
    sample: |_, rng| {
        let mut b = Builder::new("clock");
        let clock = b.uint("clock", &[1], Role::State);
        let taken = b.uint("taken", &[1], Role::Saved);
        take(&mut b, clock, taken)?;
        let now = [0, 41, u32::MAX][rng.below(3) as usize];
        Ok(Sample {
            plan: b.finish(),
            data: vec![(clock, Data::Uint(vec![now]))],
        })
    },
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    by: u32,
}

/// Adds `clock[0] += 1` for a buffer of one integer; it wraps from 2³² − 1 to 0.
///
/// # Errors
/// If `clock` has not one element, or holds floats.
pub fn advance(b: &mut Builder, clock: BufferId) -> Result<()> {
    check(b, ADVANCE.name, "clock", clock)?;
    b.push(Dispatch {
        kernel: &ADVANCE,
        constants: &[],
        bindings: &[clock],
        params: Params { by: 1 },
        grid: Grid::Groups([1, 1, 1]),
        cost: Cost {
            flops: 0,
            bytes: 8,
            length: 1,
        },
    })
}

/// Adds `clock[0] += 1` and `taken[0] = clock[0]`: a number of its own for each of several passes that share a clock.
///
/// # Errors
/// If either has not one element, or holds floats.
pub fn take(b: &mut Builder, clock: BufferId, taken: BufferId) -> Result<()> {
    check(b, TAKE.name, "clock", clock)?;
    check(b, TAKE.name, "taken", taken)?;
    b.push(Dispatch {
        kernel: &TAKE,
        constants: &[],
        bindings: &[clock, taken],
        params: Params { by: 1 },
        grid: Grid::Groups([1, 1, 1]),
        cost: Cost {
            flops: 0,
            bytes: 12,
            length: 1,
        },
    })
}

/// Refuses a buffer that is not the single number a kernel reads.
pub(super) fn check(
    b: &Builder,
    op: &'static str,
    arg: &'static str,
    number: BufferId,
) -> Result<()> {
    match b.buffer(number)?.len() {
        1 => Ok(()),
        _ => Err(Error::shape(op, arg, [1], &b.buffer(number)?.shape)),
    }
}

fn twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let clock = args.write_uint(0)?;
    clock[0] = clock[0].wrapping_add(p.by);
    Ok(())
}

fn take_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (clock, taken) = (args.write_uint(0)?, args.write_uint(1)?);
    clock[0] = clock[0].wrapping_add(p.by);
    taken[0] = clock[0];
    Ok(())
}
