//! The activation functions that a cell's gates may have: ONNX's, with their parameters α and β.
//!
//! | name | value | slope |
//! |---|---|---|
//! | `sigmoid` | 1 / (1 + e⁻ˣ) | y (1 − y) |
//! | `tanh` | tanh x | 1 − y² |
//! | `relu` | max(x, 0) | 1 where x > 0 |
//! | `affine` | α x + β | α |
//! | `softsign` | x / (1 + \|x\|) | 1 / (1 + \|x\|)² |
//! | `softplus` | ln(1 + eˣ) | 1 / (1 + e⁻ˣ) |
//! | `elu` | x where x > 0, else α (eˣ − 1) | 1, else α eˣ |
//! | `leakyrelu` | x where x ≥ 0, else α x | 1, else α |
//! | `thresholdedrelu` | x where x > α, else 0 | 1, else 0 |
//! | `scaledtanh` | α tanh(β x) | α β (1 − tanh²(β x)) |
//! | `hardsigmoid` | α x + β, limited to 0 … 1 | α inside the limits, else 0 |
//!
//! At 0 the slope of the ReLU is 0 and that of its leaky kinds α, as in PyTorch.

use crate::error::{Error, Result};
use crate::real::Real;

/// Which function. Its number is the one in `shaders/shared/gates.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the table of the module says what they are")]
pub enum Function {
    Sigmoid,
    Tanh,
    Relu,
    Affine,
    Softsign,
    Softplus,
    Elu,
    LeakyRelu,
    ThresholdedRelu,
    ScaledTanh,
    HardSigmoid,
}

use Function as F;

impl Function {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        F::Sigmoid,
        F::Tanh,
        F::Relu,
        F::Affine,
        F::Softsign,
        F::Softplus,
        F::Elu,
        F::LeakyRelu,
        F::ThresholdedRelu,
        F::ScaledTanh,
        F::HardSigmoid,
    ];

    /// Its name in lower case, as files and tools write it.
    pub fn name(self) -> &'static str {
        match self {
            F::Sigmoid => "sigmoid",
            F::Tanh => "tanh",
            F::Relu => "relu",
            F::Affine => "affine",
            F::Softsign => "softsign",
            F::Softplus => "softplus",
            F::Elu => "elu",
            F::LeakyRelu => "leakyrelu",
            F::ThresholdedRelu => "thresholdedrelu",
            F::ScaledTanh => "scaledtanh",
            F::HardSigmoid => "hardsigmoid",
        }
    }

    /// The function of this name; ONNX's names in any case are among them.
    pub fn named(name: &str) -> Option<Self> {
        let is = |f: &Self| f.name().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(is)
    }

    /// True if the slope follows from the value alone.
    fn slope_from_value(self) -> bool {
        matches!(self, F::Sigmoid | F::Tanh | F::Relu)
    }
}

/// A function with its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    /// Which function.
    pub function: Function,
    /// α, where the function has one.
    pub alpha: f64,
    /// β, where the function has one.
    pub beta: f64,
}

impl Activation {
    /// 1 / (1 + e⁻ˣ)
    pub const SIGMOID: Self = Self::new(F::Sigmoid);
    /// tanh x
    pub const TANH: Self = Self::new(F::Tanh);
    /// max(x, 0)
    pub const RELU: Self = Self::new(F::Relu);

    /// The function with the parameters that ONNX gives it: α 1 and β 0, but α 0.01 for the leaky
    /// ReLU, α 0.2 and β 0.5 for the hard sigmoid, and α 1 and β 1 for the scaled tanh.
    pub const fn new(function: Function) -> Self {
        let (alpha, beta) = match function {
            F::LeakyRelu => (0.01, 0.0),
            F::HardSigmoid => (0.2, 0.5),
            F::ScaledTanh => (1.0, 1.0),
            _ => (1.0, 0.0),
        };
        Self {
            function,
            alpha,
            beta,
        }
    }

    /// Another α.
    #[must_use]
    pub const fn alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }

    /// Another β.
    #[must_use]
    pub const fn beta(mut self, beta: f64) -> Self {
        self.beta = beta;
        self
    }

    /// True if the backward pass can do with the value, so that it need not keep what the function was
    /// applied to.
    pub(crate) fn slope_from_value(&self) -> bool {
        self.function.slope_from_value()
    }

    /// Refuses parameters that are no numbers.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        for (arg, value) in [("alpha", self.alpha), ("beta", self.beta)] {
            if !(value as f32).is_finite() {
                let arg = format!("{arg} of {}", self.function.name());
                return Err(Error::value(op, arg, "a finite f32", value));
            }
        }
        Ok(())
    }

    /// The value at x.
    pub fn apply<R: Real>(&self, x: R) -> R {
        let (alpha, beta) = (R::from_f64(self.alpha), R::from_f64(self.beta));
        apply(self.function, alpha, beta, x)
    }

    /// The slope at x.
    pub fn slope<R: Real>(&self, x: R) -> R {
        let (alpha, beta) = (R::from_f64(self.alpha), R::from_f64(self.beta));
        slope(self.function, alpha, beta, x, self.apply(x))
    }
}

/// `activate` in `shaders/shared/gates.wgsl`.
#[inline]
pub(crate) fn apply<R: Real>(function: Function, alpha: R, beta: R, x: R) -> R {
    let (zero, one) = (R::ZERO, R::ONE);
    match function {
        F::Sigmoid => x.sigmoid(),
        F::Tanh => x.tanh(),
        F::Relu if x < zero => zero,
        F::Relu => x,
        F::Affine => alpha * x + beta,
        F::Softsign => x / (one + x.abs()),
        F::Softplus => {
            let positive = if x < zero { zero } else { x };
            positive + (-x.abs()).exp().ln_1p()
        }
        F::Elu if x <= zero => alpha * x.exp_m1(),
        F::Elu => x,
        F::LeakyRelu if x < zero => alpha * x,
        F::LeakyRelu => x,
        F::ThresholdedRelu if x <= alpha => zero,
        F::ThresholdedRelu => x,
        F::ScaledTanh => alpha * (beta * x).tanh(),
        F::HardSigmoid => limit(alpha * x + beta, zero, one),
    }
}

/// `slope` there: at x, where the value is y. Where the slope follows from the value, x is not read.
#[inline]
pub(crate) fn slope<R: Real>(function: Function, alpha: R, beta: R, x: R, y: R) -> R {
    let (zero, one) = (R::ZERO, R::ONE);
    match function {
        F::Sigmoid => y * (one - y),
        F::Tanh => one - y * y,
        F::Relu if y <= zero => zero,
        F::Affine => alpha,
        F::Softsign => {
            let d = one + x.abs();
            one / (d * d)
        }
        F::Softplus => x.sigmoid(),
        F::Elu if x <= zero => alpha * x.exp(),
        F::LeakyRelu if x <= zero => alpha,
        F::ThresholdedRelu if x <= alpha => zero,
        F::ScaledTanh => {
            let t = (beta * x).tanh();
            alpha * beta * (one - t * t)
        }
        F::HardSigmoid => {
            let v = alpha * x + beta;
            if v < zero || v > one { zero } else { alpha }
        }
        F::Relu | F::Elu | F::LeakyRelu | F::ThresholdedRelu => one,
    }
}

/// x, or the bound that it exceeds; NaN stays NaN.
#[inline]
pub(crate) fn limit<R: Real>(x: R, low: R, high: R) -> R {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_values() {
        const STEP: f64 = 1.0 / (1 << 18) as f64;
        for function in Function::ALL {
            for (alpha, beta) in [(0.3, 0.4), (-0.7, 0.2), (1.5, -0.6)] {
                let a = Activation::new(function).alpha(alpha).beta(beta);
                // No kink of any of them stands on these points.
                for x in [-2.3, -0.81, -0.13, 0.17, 0.77, 2.9] {
                    let want = (a.apply(x + STEP) - a.apply(x - STEP)) / (2.0 * STEP);
                    let got: f64 = a.slope(x);
                    assert!((got - want).abs() < 1e-8, "{a:?} at {x}: {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn slopes_at_the_kink() {
        let at_zero = |f| Activation::new(f).alpha(0.3).slope(0.0f64);
        assert_eq!(at_zero(F::Relu), 0.0);
        assert_eq!(at_zero(F::LeakyRelu), 0.3);
        assert_eq!(at_zero(F::Elu), 0.3);
        assert_eq!(at_zero(F::ThresholdedRelu), 0.0);
    }

    #[test]
    fn names() {
        for function in Function::ALL {
            assert_eq!(Function::named(function.name()), Some(function));
        }
        assert_eq!(Function::named("HardSigmoid"), Some(F::HardSigmoid));
        assert_eq!(Function::named("swish"), None);
    }

    #[test]
    fn nan_is_seen() {
        for function in Function::ALL {
            let y: f32 = Activation::new(function).apply(f32::NAN);
            assert!(y.is_nan(), "{function:?}");
        }
    }
}
