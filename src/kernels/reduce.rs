//! `reduce`: sums of columns and of whole buffers, in a fixed order.
//!
//! A sum over many rows is taken in two dispatches, groups of rows first, so that it does not run
//! in one invocation; the grouping depends on the size alone, which keeps the order fixed.

use bytemuck::{Pod, Zeroable};

use super::{index, times};
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample};
use crate::plan::sequence::Precision;
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
    bindings: &[
        Binding::read("a"),
        Binding::update("output"),
        Binding::read("b").or_f16("B_HALF"),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: 0,
    // Over the rows of a group.
    rounds: |told| {
        let params: Params = told.params()?;
        Ok(u64::from(params.group.min(params.rows)) + 1)
    },
    twin: twin!(columns_twin),
    sample: |[rows, cols, extra], rng| {
        let mut b = Builder::new("columns");
        let stride = cols + extra % 3;
        let a = b.float("a", &[rows, stride], Role::Input);
        let precision = Precision::ALL[usize::from(extra % 6 == 1)];
        let factor = b.stored(precision, "b", &[rows, cols + 1], Role::Input);
        let to = extra % 4;
        let output = b.float("output", &[to + cols + 1], Role::Output);
        let matrix = |buffer, row_stride| Matrix {
            row_stride,
            ..Matrix::dense(buffer, rows, cols)
        };
        let args = Columns {
            a: matrix(a, stride),
            b: (extra % 3 == 1).then(|| matrix(factor, cols + 1)),
            output: (output, to),
            beta: if extra.is_multiple_of(2) { 0.0 } else { 0.5 },
        };
        args.push_once(&mut b, rows.max(1))?;
        let data = [
            (a, rows * stride),
            (factor, rows * (cols + 1)),
            (output, to + cols + 1),
        ]
        .map(|(id, len)| (id, floats(rng, len)))
        .to_vec();
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
    // Over every 64th element of a group, and over the tree's levels.
    rounds: |told| {
        let params: Params = told.params()?;
        let group = u64::from(params.group.min(params.rows));
        Ok((group.div_ceil(WORKGROUP as u64) + 1) + (WORKGROUP.ilog2() as u64 + 2))
    },
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
    b_start: u32,
    b_row_stride: u32,
}

/// The arguments of a sum over rows, `output[to + j] = β output[to + j] + Σ a[row, j] b[row, j]`.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// What is summed; its columns are dense.
    pub a: Matrix,
    /// The other factor; 1 without.
    pub b: Option<Matrix>,
    /// Where the sums go, and from which element on.
    pub output: (BufferId, usize),
    /// The factor of the old output.
    pub beta: f32,
}

/// Adds `output[to + j] = Σ a[row, j]`, the gradient of a bias.
///
/// # Errors
/// As [`Columns::push`].
pub fn columns(b: &mut Builder, a: Matrix, output: (BufferId, usize)) -> Result<()> {
    Columns {
        a,
        b: None,
        output,
        beta: 0.0,
    }
    .push(b)
}

impl Columns {
    /// Adds the sum to a plan.
    ///
    /// # Errors
    /// If a matrix has other than dense columns or leaves its buffer, if the two differ in size, or
    /// the sums do not fit the output.
    pub fn push(self, b: &mut Builder) -> Result<()> {
        let rows = self.a.rows;
        if rows <= GROUP_ROWS {
            return self.push_once(b, rows.max(1));
        }
        // About the square root of the rows, so that both sums are short.
        let group = rows.isqrt().max(GROUP_ROWS);
        let groups = rows.div_ceil(group);
        let cols = self.a.cols;
        let sums = b.float("column sums", &[groups, cols], Role::Scratch);
        let first = Self {
            output: (sums, 0),
            beta: 0.0,
            ..self
        };
        first.push_once(b, group)?;
        let second = Self {
            a: Matrix::dense(sums, groups, cols),
            b: None,
            ..self
        };
        second.push_once(b, groups)
    }

    fn push_once(self, b: &mut Builder, group: usize) -> Result<()> {
        let name = COLUMNS.name;
        let (rows, cols) = (self.a.rows, self.a.cols);
        let groups = rows.div_ceil(group).max(1);
        // Without a second factor the binding is not read; the first stands in.
        let factor = self.b.unwrap_or(self.a);
        for (arg, m) in [("a", self.a), ("b", factor)] {
            let fits = m.col_stride == 1 && m.reach() <= b.buffer(m.buffer)?.len();
            if !fits || (m.rows, m.cols) != (rows, cols) {
                let expected = format!("{rows} x {cols}, dense columns inside its buffer");
                return Err(Error::shape(name, arg, expected, m));
            }
        }
        let (output, to) = self.output;
        let end = to.saturating_add(groups.saturating_mul(cols));
        if b.buffer(output)?.len() < end {
            let expected = format!("at least {end} elements");
            let got = format!("{:?}", b.buffer(output)?.shape);
            return Err(Error::value(name, "output", expected, got));
        }
        let [start, row_stride, _] = self.a.indices(name)?;
        let [b_start, b_row_stride, _] = factor.indices(name)?;
        let product = self.b.is_some();
        let factors = 1 + usize::from(product);
        b.push(Dispatch {
            kernel: &COLUMNS,
            constants: &[("PRODUCT", u32::from(product))],
            bindings: &[self.a.buffer, output, factor.buffer],
            params: Params {
                rows: index(name, rows)?,
                cols: index(name, cols)?,
                start,
                row_stride,
                group: index(name, group)?,
                beta: self.beta,
                to: index(name, to)?,
                b_start,
                b_row_stride,
            },
            grid: Grid::Groups([cols.div_ceil(WORKGROUP), groups, 1]),
            cost: Cost {
                flops: times(&[rows, cols, factors]),
                bytes: times(&[4, rows, cols, factors]).saturating_add(times(&[4, groups, cols])),
                length: group,
            },
        })?;
        if self.beta != 0.0 {
            b.changed(output);
        }
        Ok(())
    }
}

/// Adds `output[0] = Σ a[i]`, or `Σ a[i]²` with `square`.
///
/// # Errors
/// If `output` has not one element.
pub fn total(b: &mut Builder, a: BufferId, output: BufferId, square: bool) -> Result<()> {
    if b.buffer(output)?.len() != 1 {
        let got = &b.buffer(output)?.shape;
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
    let len = b.buffer(a)?.len();
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
    let len = b.buffer(a)?.len();
    let groups = len.div_ceil(group).max(1);
    let end = to.saturating_add(groups);
    if b.buffer(output)?.len() < end {
        let expected = format!("at least {end} elements");
        let got = format!("{:?}", b.buffer(output)?.shape);
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
            b_start: 0,
            b_row_stride: 0,
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
    let product = args.constant("PRODUCT")? != 0;
    let (a, output, b) = (args.read(0)?, args.write(1)?, args.read(2)?);
    let [rows, cols, group, to] = [p.rows, p.cols, p.group, p.to].map(|v| v as usize);
    let row_of = |start: u32, stride: u32, row: usize| {
        let at = start as usize + row * stride as usize;
        at..at + cols
    };
    for y in 0..rows.div_ceil(group).max(1) {
        let sums = &mut output[to + y * cols..to + (y + 1) * cols];
        let beta = R::from_f32(p.beta);
        for s in sums.iter_mut() {
            *s = if p.beta == 0.0 { R::ZERO } else { beta * *s };
        }
        for row in y * group..((y + 1) * group).min(rows) {
            let values = &a[row_of(p.start, p.row_stride, row)];
            if product {
                let factors = &b[row_of(p.b_start, p.b_row_stride, row)];
                for ((s, &v), &f) in sums.iter_mut().zip(values).zip(factors) {
                    *s += v * f;
                }
            } else {
                for (s, &v) in sums.iter_mut().zip(values) {
                    *s += v;
                }
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
