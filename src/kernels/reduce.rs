//! `reduce`: sums of columns and of whole buffers, in a fixed order.
//!
//! A sum over many rows is taken in two dispatches, groups of rows first, so that it does not run
//! in one invocation; the grouping depends on the size alone, which keeps the order fixed.

use bytemuck::{Pod, Zeroable};

use super::index;
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Matrix, Role};
use crate::real::Real;
use crate::rng::Rng;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/reduce.wgsl");
const WORKGROUP: usize = 64;
/// The most rows that one invocation sums, and the most groups of a total.
const GROUP_ROWS: usize = 64;
const GROUPS: usize = 64;

/// `reduce.columns`: the sum of each column over groups of rows.
pub static COLUMNS: Kernel = Kernel {
    name: "reduce.columns",
    wgsl: WGSL,
    entry: "columns",
    bindings: &[Binding::read("a"), Binding::update("output")],
    params_size: size_of::<Params>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: 0,
    twin: twin!(columns_twin),
    sample: |[rows, cols, extra], rng| {
        let mut b = Builder::new("columns");
        let stride = cols + extra % 3;
        let a = b.float("a", &[rows, stride], Role::Input);
        let output = b.float("output", &[cols], Role::Output);
        let matrix = Matrix {
            row_stride: stride,
            ..Matrix::dense(a, rows, cols)
        };
        let beta = if extra.is_multiple_of(2) { 0.0 } else { 0.5 };
        columns_once(&mut b, matrix, output, rows.max(1), beta)?;
        let mut data = vec![(a, floats(rng, rows * stride))];
        if beta != 0.0 {
            data.push((output, floats(rng, cols)));
        }
        Ok(Sample {
            plan: b.finish(),
            data,
        })
    },
};

/// `reduce.total`: the sum of all elements, or of their squares, over groups of elements.
pub static TOTAL: Kernel = Kernel {
    name: "reduce.total",
    wgsl: WGSL,
    entry: "total",
    bindings: &[Binding::read("a"), Binding::update("output")],
    params_size: size_of::<Params>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: (WORKGROUP * 4) as u32,
    twin: twin!(total_twin),
    sample: |[m, n, variant], rng| {
        let len = m * n;
        let mut b = Builder::new("total");
        let a = b.float("a", &[len], Role::Input);
        let group = len.div_ceil(3).max(1);
        // Cells before and behind the sums must keep their values.
        let to = variant % 3;
        let cells = to + len.div_ceil(group).max(1) + 1;
        let output = b.float("output", &[cells], Role::Output);
        total_once(&mut b, a, (output, to), group, variant % 2 == 1)?;
        Ok(Sample {
            plan: b.finish(),
            data: vec![(a, floats(rng, len)), (output, floats(rng, cells))],
        })
    },
};

fn floats(rng: &mut Rng, n: usize) -> Data {
    Data::Float(rng.uniforms(n, -1.0, 1.0))
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    start: u32,
    row_stride: u32,
    group: u32,
    beta: f32,
    to: u32,
}

/// Adds `output[j] = Σ a[row, j]`, the gradient of a bias.
///
/// # Errors
/// If `a` has other than dense columns, or `output` another length.
pub fn columns(b: &mut Builder, a: Matrix, output: BufferId) -> Result<()> {
    if a.rows <= GROUP_ROWS {
        return columns_once(b, a, output, a.rows.max(1), 0.0);
    }
    // About the square root of the rows, so that both sums are short.
    let group = a.rows.isqrt().max(GROUP_ROWS);
    let groups = a.rows.div_ceil(group);
    let sums = b.float("column sums", &[groups, a.cols], Role::Scratch);
    columns_once(b, a, sums, group, 0.0)?;
    columns_once(b, Matrix::dense(sums, groups, a.cols), output, groups, 0.0)
}

fn columns_once(
    b: &mut Builder,
    a: Matrix,
    output: BufferId,
    group: usize,
    beta: f32,
) -> Result<()> {
    let name = COLUMNS.name;
    let groups = a.rows.div_ceil(group).max(1);
    if a.col_stride != 1 || a.reach() > b.buffer(a.buffer).len() {
        return Err(Error::shape(
            name,
            "a",
            "dense columns inside its buffer",
            a,
        ));
    }
    if b.buffer(output).len() != groups * a.cols {
        return Err(Error::shape(
            name,
            "output",
            [groups, a.cols],
            &b.buffer(output).shape,
        ));
    }
    let [start, row_stride, _] = a.indices(name)?;
    b.push(Dispatch {
        kernel: &COLUMNS,
        constants: &[],
        bindings: &[a.buffer, output],
        params: Params {
            rows: index(name, a.rows)?,
            cols: index(name, a.cols)?,
            start,
            row_stride,
            group: index(name, group)?,
            beta,
            to: 0,
        },
        grid: Grid::Groups([a.cols.div_ceil(WORKGROUP), groups, 1]),
        cost: Cost {
            flops: (a.rows * a.cols) as u64,
            bytes: 4 * (a.rows * a.cols + groups * a.cols) as u64,
            length: group,
        },
    })
}

/// Adds `output[0] = Σ a[i]`, or `Σ a[i]²` with `square`.
///
/// # Errors
/// If `output` has not one element.
pub fn total(b: &mut Builder, a: BufferId, output: BufferId, square: bool) -> Result<()> {
    if b.buffer(output).len() != 1 {
        let got = &b.buffer(output).shape;
        return Err(Error::shape(TOTAL.name, "output", [1], got));
    }
    total_at(b, a, (output, 0), square)
}

/// Adds `output[to] = Σ a[i]`, or `Σ a[i]²` with `square`; the rest of `output` stays.
///
/// # Errors
/// If `output` has no such position.
pub fn total_at(
    b: &mut Builder,
    a: BufferId,
    (output, to): (BufferId, usize),
    square: bool,
) -> Result<()> {
    let len = b.buffer(a).len();
    let group = len.div_ceil(GROUPS).max(4 * WORKGROUP);
    if len <= group {
        return total_once(b, a, (output, to), group, square);
    }
    let groups = len.div_ceil(group);
    let sums = b.float("partial sums", &[groups], Role::Scratch);
    total_once(b, a, (sums, 0), group, square)?;
    total_once(b, sums, (output, to), groups, false)
}

fn total_once(
    b: &mut Builder,
    a: BufferId,
    (output, to): (BufferId, usize),
    group: usize,
    square: bool,
) -> Result<()> {
    let name = TOTAL.name;
    let len = b.buffer(a).len();
    let groups = len.div_ceil(group).max(1);
    if b.buffer(output).len() < to + groups {
        let expected = format!("at least {} elements", to + groups);
        let got = format!("{:?}", b.buffer(output).shape);
        return Err(Error::value(name, "output", expected, got));
    }
    b.push(Dispatch {
        kernel: &TOTAL,
        constants: &[("SQUARE", u32::from(square))],
        bindings: &[a, output],
        params: Params {
            rows: index(name, len)?,
            cols: 1,
            start: 0,
            row_stride: 1,
            group: index(name, group)?,
            beta: 0.0,
            to: index(name, to)?,
        },
        grid: Grid::Groups([groups, 1, 1]),
        cost: Cost {
            flops: len as u64 * if square { 2 } else { 1 },
            bytes: 4 * (len + groups) as u64,
            length: group,
        },
    })
}

fn columns_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (a, output) = (args.read(0)?, args.write(1)?);
    let [rows, cols, start, stride, group] =
        [p.rows, p.cols, p.start, p.row_stride, p.group].map(|v| v as usize);
    for y in 0..rows.div_ceil(group).max(1) {
        let sums = &mut output[y * cols..(y + 1) * cols];
        let beta = R::from_f32(p.beta);
        for s in sums.iter_mut() {
            *s = if p.beta == 0.0 { R::ZERO } else { beta * *s };
        }
        for row in y * group..((y + 1) * group).min(rows) {
            let at = start + row * stride;
            for (s, &v) in sums.iter_mut().zip(&a[at..at + cols]) {
                *s += v;
            }
        }
    }
    Ok(())
}

fn total_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let square = args.constant("SQUARE")? != 0;
    let (a, output) = (args.read(0)?, args.write(1)?);
    let [len, group, to] = [p.rows, p.group, p.to].map(|v| v as usize);
    let groups = len.div_ceil(group).max(1);
    for (x, out) in output[to..to + groups].iter_mut().enumerate() {
        let part = &a[(x * group).min(len)..((x + 1) * group).min(len)];
        // Pairwise by halves, as the shader's tree: the error grows with the logarithm.
        *out = pairwise(part, &|v| if square { v * v } else { v });
    }
    Ok(())
}

fn pairwise<R: Real>(values: &[R], f: &impl Fn(R) -> R) -> R {
    if values.len() <= WORKGROUP {
        return values.iter().map(|&v| f(v)).sum();
    }
    let (left, right) = values.split_at(values.len() / 2);
    pairwise(left, f) + pairwise(right, f)
}
