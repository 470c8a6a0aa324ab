//! The numbers a CPU twin computes with: `f32`, which the CPU backend serves, and `f64`, the oracle.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

use half::f16;

/// A floating-point number of the CPU backend. Implemented by `f32` and `f64` alone.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + Sum
    + bytemuck::Pod
    + sealed::Sealed
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞, the neutral element of a maximum.
    const NEG_INFINITY: Self;

    /// Exact: every `f32` is a `Real`.
    fn from_f32(v: f32) -> Self;
    /// Rounds to the nearest where `Self` is narrower.
    fn from_f64(v: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// Rounds to the nearest where `Self` is wider.
    fn to_f32(self) -> f32;
    /// Rounds to the nearest 16-bit float, ties to even, by way of `f32` as a GPU does.
    fn to_half(self) -> Self;
    /// eˣ.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// eˣ − 1, accurate near 0.
    fn exp_m1(self) -> Self;
    /// ln(1 + x), accurate near 0.
    fn ln_1p(self) -> Self;
    /// |x|
    fn abs(self) -> Self;
    /// True for NaN.
    fn is_nan(self) -> bool;

    /// 1 / (1 + e⁻ˣ), from the exponential of −|x| so that nothing overflows.
    fn sigmoid(self) -> Self {
        if self < Self::ZERO {
            let e = self.exp();
            e / (Self::ONE + e)
        } else {
            Self::ONE / (Self::ONE + (-self).exp())
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

macro_rules! real {
    ($t:ident, $tanh:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;

            fn from_f32(v: f32) -> Self {
                $t::from(v)
            }
            fn from_f64(v: f64) -> Self {
                v as $t
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn to_f32(self) -> f32 {
                self as f32
            }
            fn to_half(self) -> Self {
                $t::from(f16::from_f32(self as f32).to_f32())
            }
            fn exp(self) -> Self {
                $t::exp(self)
            }
            fn ln(self) -> Self {
                $t::ln(self)
            }
            fn tanh(self) -> Self {
                $tanh(self)
            }
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            fn exp_m1(self) -> Self {
                $t::exp_m1(self)
            }
            fn ln_1p(self) -> Self {
                $t::ln_1p(self)
            }
            fn abs(self) -> Self {
                $t::abs(self)
            }
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
        }
    };
}

real!(f32, tanh);
real!(f64, f64::tanh);

/// The form of `tanh_safe` in `shaders/shared/activations.wgsl`: near 0 the odd polynomial of Cephes'
/// `tanhf` (S. Moshier), elsewhere (1 − e⁻²ˣ) / (1 + e⁻²ˣ). Half the time of the system's.
fn tanh(x: f32) -> f32 {
    if x.abs() > 0.625 {
        let e = (-2.0 * x.abs()).exp();
        ((1.0 - e) / (1.0 + e)).copysign(x)
    } else {
        let s = x * x;
        let p = -5.704_988_7e-3;
        let p = p * s + 2.063_909e-2;
        let p = p * s - 5.373_971_6e-2;
        let p = p * s + 1.333_144_2e-1;
        let p = p * s - 0.333_332_8;
        p * s * x + x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units in the last place between `f32` results and the `f64` function, over both signs.
    fn worst_ulp(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0.0f64;
        for bits in (0..0x42c8_0000u32).step_by(997) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let want = exact(f64::from(x));
                let ulp = f64::from((want as f32).abs().next_up()) - f64::from((want as f32).abs());
                worst = worst.max((f64::from(f(x)) - want).abs() / ulp);
            }
        }
        worst
    }

    #[test]
    fn activations_are_accurate() {
        assert!(worst_ulp(tanh, f64::tanh) <= 4.0);
        // Where the result is subnormal its last place is fixed, so relative accuracy ends.
        let exact = |x: f64| 1.0 / (1.0 + (-x).exp());
        let normal = |x: f32| {
            if x < -87.0 {
                exact(f64::from(x)) as f32
            } else {
                x.sigmoid()
            }
        };
        assert!(worst_ulp(normal, exact) <= 4.0);
    }

    #[test]
    fn extremes() {
        for (x, want) in [(f32::INFINITY, 1.0), (f32::NEG_INFINITY, -1.0), (0.0, 0.0)] {
            assert_eq!(Real::tanh(x), want);
        }
        assert_eq!(f32::INFINITY.sigmoid(), 1.0);
        assert_eq!(f32::NEG_INFINITY.sigmoid(), 0.0);
        assert!(Real::tanh(f32::NAN).is_nan() && f32::NAN.sigmoid().is_nan());
    }
}
