//! How much two results may differ, from the length of the sums behind them.
//!
//! Rounding errors of a sum of L terms behave like a random walk: the expected relative error is
//! about √L · u with the unit roundoff u (N. Higham, *Accuracy and stability of numerical
//! algorithms*, 2002, § 4.2, as opposed to the worst case L · u). An activation adds a few u, since
//! WGSL allows `exp` an error of 3 + 2|x| units in the last place.

use crate::context::Dtype;

/// Unit roundoff of `f32`.
const U32: f64 = 5.960_464_477_539_063e-8;

/// Nothing may be further off than this, whatever its length.
const CAP: f64 = 1e-4;

/// For one kernel, relative to the largest value: 4 u (4 + √L).
pub fn kernel(dtype: Dtype, length: usize) -> f64 {
    match dtype {
        Dtype::F32 => (4.0 * U32 * (4.0 + (length as f64).sqrt())).min(CAP),
        Dtype::F64 => F64,
    }
}

/// For a whole layer: the errors of `steps` kernels one after another, which gates damp rather than
/// amplify, so that they too add up like a random walk: the kernel's tolerance times √steps.
pub fn layer(dtype: Dtype, length: usize, steps: usize) -> f64 {
    match dtype {
        Dtype::F32 => (kernel(dtype, length) * (steps as f64).sqrt()).min(CAP),
        Dtype::F64 => F64,
    }
}

/// The oracle against PyTorch's doubles, which sum in another order.
const F64: f64 = 1e-10;
