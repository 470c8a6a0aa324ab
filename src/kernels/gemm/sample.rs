//! Inputs for tests and benchmarks of the kernels.

use super::{Activation, Form, Gemm};
use crate::error::Result;
use crate::kernel::{Data, Sample};
use crate::plan::{Builder, Force, Matrix, Role, Target};
use crate::rng::Rng;

/// A product in one form: three kinds in turn (NN, NT, TN), with and without bias, β and activation,
/// in buffers that are larger than the matrices; for some sizes all of it in whole vec4s.
pub(super) fn sample(form: Form, size: [usize; 3], rng: &mut Rng) -> Result<Sample> {
    // Not the generator, whose draws could miss a combination; the tests see that none is missed.
    let [m, n, k] = size;
    let variant = m + n + 3 * k;
    let fours = variant.is_multiple_of(2);
    let [m, n, k] = size.map(|v| if fours { v.next_multiple_of(4) } else { v });
    let unit = if fours { 4 } else { 1 };
    let mut b = Builder::on(
        "gemm",
        Target {
            force: Force {
                gemm: Some(form),
                ..Force::default()
            },
            ..Target::default()
        },
    );
    let (pad, extra) = (unit * rng.below(3) as usize, unit * rng.below(2) as usize);
    let mut matrix = |name, rows: usize, cols: usize, transposed: bool, role| {
        let (r, c) = if transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        let buffer = b.float(name, &[r * (c + pad) + extra], role);
        let dense = Matrix {
            offset: extra,
            row_stride: c + pad,
            ..Matrix::dense(buffer, r, c)
        };
        if transposed { dense.t() } else { dense }
    };
    let a = matrix("a", m, k, variant % 3 == 2, Role::Input);
    let w = matrix("b", k, n, variant % 3 == 1, Role::Input);
    let c = matrix("c", m, n, false, Role::Output);
    let bias = ((variant / 3) % 2 == 1).then(|| b.float("bias", &[n], Role::Input));
    let beta = if variant.is_multiple_of(5) { -0.5 } else { 0.0 };
    Gemm {
        a,
        b: w,
        c,
        bias,
        alpha: if variant % 7 == 3 { 2.0 } else { 1.0 },
        beta,
        activation: Activation::ALL[(variant / 6) % 4],
    }
    .push(&mut b)?;
    // What lies between the rows is not to be read: NaN would show.
    let mut data: Vec<_> = [a, w]
        .into_iter()
        .map(|matrix| {
            let mut values = vec![f32::NAN; b.buffer(matrix.buffer).len()];
            for i in 0..matrix.rows {
                for j in 0..matrix.cols {
                    let at = matrix.offset + i * matrix.row_stride + j * matrix.col_stride;
                    values[at] = rng.uniform(-1.0, 1.0);
                }
            }
            (matrix.buffer, Data::Float(values))
        })
        .collect();
    // Where C is larger than the product, what lies between must stay; NaN could not show it.
    let old_c = (beta != 0.0 || pad + extra > 0).then_some(c.buffer);
    for id in [bias, old_c].into_iter().flatten() {
        let len = b.buffer(id).len();
        data.push((id, Data::Float(rng.uniforms(len, -1.0, 1.0))));
    }
    Ok(Sample {
        plan: b.finish(),
        data,
    })
}
