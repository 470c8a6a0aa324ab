//! How much two results may differ, from the length of the sums behind them.
//!
//! Rounding errors of a sum of L terms behave like a random walk: the expected relative error is
//! about √L · u with the unit roundoff u (N. Higham, *Accuracy and stability of numerical
//! algorithms*, 2002, § 4.2, as opposed to the worst case L · u). An activation adds a few u, since
//! WGSL allows `exp` an error of 3 + 2|x| units in the last place.

use crate::context::Dtype;

/// Unit roundoff of `f32`, 2⁻²⁴.
pub const UNIT: f64 = 5.960_464_477_539_063e-8;

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
    }
}
