//! The numbers a CPU twin computes with: `f32`, which the CPU backend serves, and `f64`, the oracle.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

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
    ($t:ident) => {
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
            fn exp(self) -> Self {
                $t::exp(self)
            }
            fn ln(self) -> Self {
                $t::ln(self)
            }
            fn tanh(self) -> Self {
                $t::tanh(self)
            }
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            fn exp_m1(self) -> Self {
                $t::exp_m1(self)
            }
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
        }
    };
}

real!(f32);
real!(f64);
