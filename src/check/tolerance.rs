//! How much two results may differ, from the length of the sums behind them.
//!
//! Rounding errors of a sum of L terms behave like a random walk: the expected relative error is
//! about √L · u with the unit roundoff u (N. Higham, *Accuracy and stability of numerical
//! algorithms*, 2002, § 4.2, as opposed to the worst case L · u). An activation adds a few u, since
//! WGSL allows `exp` an error of 3 + 2|x| units in the last place.
//!
//! Where states or gradients grow from step to step, so does every rounding error before them, and results in `f32` differ
//! between devices by more than any formula of a length, as PyTorch's in `f32` and `f64` do: a training that explodes is not
//! one that a driver gets wrong. What is compared here is a single kernel, or a layer with its `sensitivity`.

use crate::context::Dtype;

/// Unit roundoff of `f32`, 2⁻²⁴.
pub const UNIT: f64 = 5.960_464_477_539_063e-8;

/// Unit roundoff of 16-bit floats, 2⁻¹¹: what storing a number in one costs, relative to it.
pub const UNIT_F16: f64 = 4.882_812_5e-4;

/// Nothing may be further off than this, whatever its length.
const CAP: f64 = 1e-4;

/// For one kernel, relative to the largest value: 4 u (4 + √L).
pub fn kernel(dtype: Dtype, length: usize) -> f64 {
    match dtype {
        Dtype::F32 => (4.0 * UNIT * (4.0 + (length as f64).sqrt())).min(CAP),
        Dtype::F64 => F64,
    }
}

/// For a whole layer: 2 (4 + √L) max(u, κ). The best that an algorithm in `f32` can promise is the
/// result of slightly changed inputs (Higham, § 1.5), so the measure is `sensitivity` κ: how far the
/// exact result moves, relative to its largest value, when every input changes by a factor 1 ± u.
/// [`super::cases`] measures it; 0 stands for a well-conditioned layer.
pub fn layer(dtype: Dtype, length: usize, sensitivity: f64) -> f64 {
    match dtype {
        Dtype::F32 => {
            let error = UNIT.max(sensitivity);
            (2.0 * error * (4.0 + (length as f64).sqrt())).min(CAP)
        }
        Dtype::F64 => F64,
    }
}

/// How far a layer with its weights in 16-bit floats may be from one with the weights themselves:
/// 4 max(u₁₆, κ). Each weight is rounded once and all sums stay in `f32`, so the length of a sum plays
/// no part beyond the `sensitivity` κ: how far the exact result moves, relative to its largest value,
/// when every weight changes by a factor 1 ± u₁₆ with random signs. Roundings are at most that large, and 4
/// stands for their signs being others than those that κ was measured with. Two layers in 16-bit floats
/// round to the same weights: between them [`layer`] holds.
pub fn weights_f16(sensitivity: f64) -> f64 {
    (4.0 * UNIT_F16.max(sensitivity)).min(CAP_F16)
}

/// How far two layers may be from each other that both store activations in 16-bit floats, beside what
/// [`layer`] allows: 4 max(u₁₆, κ). Both round the same numbers; where these lie next to the middle between two
/// 16-bit floats, or on a device that does not round to the nearest, which WGSL allows, they may go up in one and
/// down in the other and then differ by 2 u₁₆. The `sensitivity` κ is how far the exact result moves, relative to
/// its largest value, when all are rounded, each by up to u₁₆.
pub fn activations_f16(sensitivity: f64) -> f64 {
    (4.0 * UNIT_F16.max(sensitivity)).min(CAP_F16)
}

/// A wrong weight or activation shows as more.
const CAP_F16: f64 = 2e-2;

/// The oracle against PyTorch's doubles, which sum in another order.
const F64: f64 = 1e-10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grow_with_the_length_and_stay_capped() {
        assert!(kernel(Dtype::F32, 64) < 3e-6);
        assert!(kernel(Dtype::F32, 1) < kernel(Dtype::F32, 64));
        assert_eq!(kernel(Dtype::F32, 1 << 40), CAP);
        assert!(layer(Dtype::F32, 64, 0.0) < 2e-6);
        assert_eq!(layer(Dtype::F32, 64, 1.0), CAP);
        assert_eq!(layer(Dtype::F64, 64, 1.0), F64);
        assert_eq!(weights_f16(0.0), 2f64.powi(-9));
        assert_eq!(weights_f16(1.0), CAP_F16);
    }
}
