//! `transpose`: packs recurrent weights so that neighbouring units read neighbouring words.

use bytemuck::{Pod, Zeroable};

use super::{index, times};
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample, no_loops};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::twin;

const TILE: usize = 16;

/// `transpose`: `destination[c, r] = source[r, c]`.
pub static TRANSPOSE: Kernel = Kernel {
    name: "transpose",
    wgsl: include_str!("../../shaders/transpose.wgsl"),
    entry: "transpose",
    bindings: &[Binding::read("source"), Binding::update("destination")],
    params_size: size_of::<Params>(),
    workgroup_size: (TILE * TILE) as u32,
    workgroup_memory: (TILE * (TILE + 1) * 4) as u32,
    rounds: no_loops,
    twin: twin!(twin),
    sample: |[rows, cols, extra], rng| {
        let mut b = Builder::new("transpose");
        let source = b.float("source", &[rows, cols], Role::Input);
        let to = extra % 3;
        let destination = b.float("destination", &[to + cols * rows], Role::Output);
        transpose_to(&mut b, source, (destination, to))?;
        let data = [(source, rows * cols), (destination, to + cols * rows)]
            .map(|(id, len)| (id, Data::Float(rng.uniforms(len, -1.0, 1.0))));
        Ok(Sample {
            plan: b.finish(),
            data: data.to_vec(),
        })
    },
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    to: u32,
}

/// Adds the transposition of a whole buffer `[rows, cols]` into another `[cols, rows]`.
///
/// # Errors
/// If the shapes are not each other's transpose.
pub fn transpose(b: &mut Builder, source: BufferId, destination: BufferId) -> Result<()> {
    let (from, to) = (&b.buffer(source)?.shape, &b.buffer(destination)?.shape);
    let (&[rows, cols], true) = (from.as_slice(), from.iter().rev().eq(to)) else {
        let expected = format!("the transpose of a matrix, here of {from:?}");
        let got = format!("{to:?}");
        return Err(Error::value(TRANSPOSE.name, "destination", expected, got));
    };
    push(b, source, (destination, 0), [rows, cols])
}

/// Adds the transposition of a buffer `[rows, cols]` to a part of another, dense from an element on.
///
/// # Errors
/// If the source is no matrix, or the part leaves its buffer.
pub fn transpose_to(
    b: &mut Builder,
    source: BufferId,
    (destination, to): (BufferId, usize),
) -> Result<()> {
    let from = &b.buffer(source)?.shape;
    let &[rows, cols] = from.as_slice() else {
        return Err(Error::shape(TRANSPOSE.name, "source", "[rows, cols]", from));
    };
    let end = to.saturating_add(rows.saturating_mul(cols));
    let have = b.buffer(destination)?.len();
    if have < end {
        return Err(Error::shape(
            TRANSPOSE.name,
            "end in destination",
            have,
            end,
        ));
    }
    push(b, source, (destination, to), [rows, cols])
}

fn push(
    b: &mut Builder,
    source: BufferId,
    (destination, to): (BufferId, usize),
    [rows, cols]: [usize; 2],
) -> Result<()> {
    b.push(Dispatch {
        kernel: &TRANSPOSE,
        constants: &[],
        bindings: &[source, destination],
        params: Params {
            rows: index(TRANSPOSE.name, rows)?,
            cols: index(TRANSPOSE.name, cols)?,
            to: index(TRANSPOSE.name, to)?,
        },
        grid: Grid::Groups([cols.div_ceil(TILE), rows.div_ceil(TILE), 1]),
        cost: Cost {
            flops: 0,
            bytes: times(&[8, rows, cols]),
            length: 1,
        },
    })
}

fn twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (source, destination) = (args.read(0)?, args.write(1)?);
    let (rows, cols) = (p.rows as usize, p.cols as usize);
    let destination = &mut destination[p.to as usize..];
    // Squares small enough for both sides to stay in the cache.
    for r0 in (0..rows).step_by(TILE) {
        for c0 in (0..cols).step_by(TILE) {
            for r in r0..(r0 + TILE).min(rows) {
                for c in c0..(c0 + TILE).min(cols) {
                    destination[c * rows + r] = source[r * cols + c];
                }
            }
        }
    }
    Ok(())
}
