//! Inputs for tests and benchmarks of the kernels.

use super::params::Product;
use super::{Activation, Form, Gemm, kernels};
use crate::error::Result;
use crate::kernel::{Constant, Data, Kernel, Sample};
use crate::plan::sequence::Precision;
use crate::plan::{
    BufferId, Builder, Cooperative, Cost, Dispatch, Force, Grid, Matrix, Plan, Role, Step, Target,
};
use crate::rng::Rng;

/// A product in one form, of about this size: of all kinds (NN, NT, TN, TT), with and without bias, α, β
/// and activation, in buffers that are larger than the matrices, often in whole vec4s.
pub(super) fn sample(form: Form, [m, n, k]: [usize; 3], rng: &mut Rng) -> Result<Sample> {
    let transposed = [rng.below(2) == 1, rng.below(2) == 1];
    // There must be parts.
    let k = if form == Form::SplitK { k + 5 } else { k };
    any(form, [m, n, k], transposed, rng)
}

/// The same for [`Form::Rows`] and [`Form::RowsSubgroups`], with neighbours along k in the larger matrix
/// or without.
pub(super) fn few(
    form: Form,
    along_k: bool,
    [m, n, k]: [usize; 3],
    rng: &mut Rng,
) -> Result<Sample> {
    let (few, many) = (1 + rng.below(8) as usize, m.max(n).max(9));
    let other = rng.below(2) == 1;
    if rng.below(2) == 1 {
        any(form, [few, many, k], [other, along_k], rng)
    } else {
        any(form, [many, few, k], [!along_k, other], rng)
    }
}

fn any(form: Form, size: [usize; 3], transposed: [bool; 2], rng: &mut Rng) -> Result<Sample> {
    let unit = if rng.below(2) == 1 { 4 } else { 1 };
    let [m, n, k] = match form {
        // Whole vec4s need no whole fours of the few.
        Form::Rows | Form::RowsSubgroups => {
            size.map(|v| if v > 8 { v.next_multiple_of(unit) } else { v })
        }
        _ => size.map(|v| v.next_multiple_of(unit)),
    };
    let mut b = Builder::on(
        "gemm",
        Target {
            subgroup_size: 4,
            f16: true,
            cooperative: (form == Form::Cooperative).then(|| Cooperative {
                size: [8, 16][rng.clone().below(2) as usize],
                // No device has larger subgroups.
                threads: 128,
            }),
            force: Force {
                gemm: Some(form),
                ..Force::default()
            },
            ..Target::default()
        },
    );
    let (pad, extra) = (unit * rng.below(3) as usize, unit * rng.below(2) as usize);
    // Columns that are few come as rows, and so B as A.
    let turned = matches!(form, Form::Rows | Form::RowsSubgroups) && m > n;
    // From further on, so that everything else is as it is without.
    let mut further = rng.clone();
    further.uniforms(64, 0.0, 1.0);
    let of_b = match !turned && further.below(3) == 0 {
        true => Precision::F16,
        false => Precision::F32,
    };
    let of_c = match further.below(4) {
        0 => Precision::F16,
        _ => Precision::F32,
    };
    let mut matrix = |name, rows: usize, cols: usize, transposed: bool, role| {
        let precision = match name {
            "b" => of_b,
            "c" => of_c,
            _ => Precision::F32,
        };
        let (r, c) = if transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        let buffer = b.stored(precision, name, &[r * (c + pad) + extra], role);
        let dense = Matrix {
            offset: extra,
            row_stride: c + pad,
            ..Matrix::dense(buffer, r, c)
        };
        if transposed { dense.t() } else { dense }
    };
    let a = matrix("a", m, k, transposed[0], Role::Input);
    let w = matrix("b", k, n, transposed[1], Role::Input);
    let c = matrix("c", m, n, false, Role::Output);
    let bias = (rng.below(2) == 1).then(|| b.float("bias", &[n], Role::Input));
    let beta = if rng.below(4) == 0 { -0.5 } else { 0.0 };
    Gemm {
        a,
        b: w,
        c,
        bias,
        alpha: if rng.below(4) == 0 { 2.0 } else { 1.0 },
        beta,
        activation: Activation::ALL[rng.below(4) as usize],
    }
    .push(&mut b)?;
    // Sums of order 1: activations flatten large ones, and what is left of them would be all rounding.
    let bound = (k as f32).sqrt().recip();
    // What lies between the rows is not to be read: NaN would show.
    let mut data: Vec<_> = [(a, bound), (w, 1.0)]
        .into_iter()
        .map(|(matrix, bound)| -> Result<(BufferId, Data)> {
            let mut values = vec![f32::NAN; b.buffer(matrix.buffer)?.len()];
            for i in 0..matrix.rows {
                for j in 0..matrix.cols {
                    let at = matrix.offset + i * matrix.row_stride + j * matrix.col_stride;
                    values[at] = rng.uniform(-bound, bound);
                }
            }
            Ok((matrix.buffer, Data::Float(values)))
        })
        .collect::<Result<_>>()?;
    // Where C is larger than the product, what lies between must stay; NaN could not show it.
    let old_c = (beta != 0.0 || pad + extra > 0).then_some(c.buffer);
    for id in [bias, old_c].into_iter().flatten() {
        let len = b.buffer(id)?.len();
        data.push((id, Data::Float(rng.uniforms(len, -1.0, 1.0))));
    }
    Ok(Sample {
        plan: b.finish(),
        data,
    })
}

/// A product like that of a step of a plan, in the same specialisation, over fewer rows, columns and k, and where k is split
/// in two parts; `None` for a step that multiplies nothing.
///
/// # Errors
/// If the step's parameters are not those of a product.
pub(crate) fn like(plan: &Plan, step: &Step, rng: &mut Rng) -> Result<Option<Sample>> {
    let Some(tile) = tile_of(step) else {
        return Ok(None);
    };
    let own: Product = plan.told(step).params()?;
    // What vec4s and remainders depend on stays.
    let fewer = |size: u32| match size {
        0..=MOST => size,
        _ => MOST - 8 + size % 8,
    };
    let [m, n, chunk] = [own.m, own.n, own.k.min(own.chunk)].map(fewer);
    // The last part is no longer than the others.
    let rest = match own.c_part {
        0 => 0,
        _ => match fewer((own.k - 1) % own.chunk.max(1) + 1) {
            rest if rest > chunk => rest - 8,
            rest => rest,
        },
    };
    let (k, parts) = (chunk + rest, 1 + usize::from(rest > 0));
    let place = |[start, row, col]: [u32; 3]| [start % 4, row, col];
    let [a, b, c] = [own.a, own.b, own.c].map(place);
    let mut builder = Builder::on("product", Target::default());
    let half = |name| {
        let found = step.constants.contains(&(name, 1));
        Precision::ALL[usize::from(found)]
    };
    let end = |[start, row, col]: [u32; 3], [rows, cols]: [u32; 2]| {
        let last = |count: u32, stride: u32| count.saturating_sub(1) as usize * stride as usize;
        // Whole vec4s.
        (start as usize + last(rows, row) + last(cols, col) + 1).next_multiple_of(4)
    };
    let mut data = Vec::new();
    let mut matrices =
        |name, precision, at: [u32; 3], [rows, cols]: [u32; 2], count, bound: f32| {
            let len = end(at, [rows, cols]);
            let id = builder.stored(precision, name, &[count * len], Role::Input);
            let mut values = match name {
                // What lies between the rows of C stays, which NaN could not show.
                "c" => rng.uniforms(count * len, -bound, bound),
                // What lies between those of the others is not to be read: NaN would show.
                _ => vec![f32::NAN; count * len],
            };
            for values in values.chunks_mut(len.max(1)) {
                for i in 0..rows as usize {
                    for j in 0..cols as usize {
                        let [start, row, col] = at.map(|v| v as usize);
                        values[start + i * row + j * col] = rng.uniform(-bound, bound);
                    }
                }
            }
            data.push((id, Data::Float(values)));
            id
        };
    let bound = (k as f32).sqrt().recip();
    let of_a = matrices("a", Precision::F32, a, [m, k], 1, bound);
    let of_b = matrices("b", half("B_HALF"), b, [k, n], 1, 1.0);
    let of_c = matrices("c", half("C_HALF"), c, [m, n], parts, 1.0);
    let bias = matrices("bias", Precision::F32, [0, 0, 1], [1, m.max(n)], 1, 1.0);
    let [x, y] = [n.div_ceil(tile[1]), m.div_ceil(tile[0])].map(|v| v as usize);
    let constants: Vec<Constant> = step
        .constants
        .iter()
        .filter(|(name, _)| !["B_HALF", "C_HALF"].contains(name))
        .copied()
        .collect();
    builder.push(Dispatch {
        kernel: step.kernel,
        constants: &constants,
        bindings: &[of_a, bias, of_c, of_b],
        params: Product {
            m,
            n,
            k,
            a,
            b,
            c,
            chunk,
            c_part: if parts > 1 { end(c, [m, n]) as u32 } else { 0 },
            ..own
        },
        grid: Grid::Groups([x, y, parts]),
        cost: Cost {
            flops: 2 * u64::from(m) * u64::from(n) * u64::from(k),
            bytes: 0,
            length: chunk as usize,
        },
    })?;
    let plan = builder.finish();
    Ok(Some(Sample { plan, data }))
}

/// The most rows, columns and k of a product that is like another.
const MOST: u32 = 136;

/// Rows and columns that a workgroup of a product's kernel owns.
fn tile_of(step: &Step) -> Option<[u32; 2]> {
    let is = |kernel: &'static Kernel| std::ptr::eq(step.kernel, kernel);
    let of = |name| {
        let found = step.constants.iter().find(|(n, _)| *n == name);
        found.map_or(1, |(_, value)| *value)
    };
    // One row of workgroups has all columns.
    let few = |cols: u32| Some([u32::MAX, cols]);
    match () {
        () if is(&kernels::GEMM) => Some([8, 8]),
        () if is(&kernels::TILE32) || is(&kernels::COOPERATIVE) => Some([32, 32]),
        () if is(&kernels::TILE64) => Some([64, 64]),
        () if is(&kernels::TILE128) => Some([128, 128]),
        // Whatever the width, neither side is longer: past the end nothing is stored.
        () if is(&kernels::BLOCKS) => Some([4 * of("ROWS"), 4 * of("COLS")]),
        () if is(&kernels::ALONG_K) || is(&kernels::ALONG_K_SUBGROUPS) => few(4),
        () if is(&kernels::ACROSS_K) => few(32),
        () => None,
    }
}
