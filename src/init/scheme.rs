//! How the values of one weight are drawn.

use super::orthogonal::orthonormal;
use super::{Block, OP, Weight};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// The largest magnitude of a number in a scheme: far from where a draw times it overflows.
pub(super) const MAX_VALUE: f32 = 1e30;

/// Where values come from. Those that say "matrix" have no meaning for biases and peepholes; fans are
/// those of one gate's block.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Scheme {
    /// This value everywhere.
    Constant(f32),
    /// Uniform in ±`bound`.
    Uniform {
        /// At least 0.
        bound: f32,
    },
    /// Normal with mean 0.
    Normal {
        /// The standard deviation, at least 0.
        std: f32,
    },
    /// Uniform in ±1/√H, whatever the weight.
    PyTorch,
    /// Matrix: uniform in ±√(6 / (fan_in + fan_out)). X. Glorot, Y. Bengio, *Understanding the difficulty
    /// of training deep feedforward neural networks*, 2010.
    XavierUniform,
    /// Matrix: normal with standard deviation √(2 / (fan_in + fan_out)), from the same source.
    XavierNormal,
    /// Matrix: `gain` times a random matrix with orthonormal columns, or rows where it has fewer of these.
    Orthogonal {
        /// The length of each column or row.
        gain: f32,
    },
    /// Square `weight_hh` of a cell with one gate: `scale` times the identity.
    Identity {
        /// The value on the diagonal.
        scale: f32,
    },
}

impl Scheme {
    /// 0 everywhere.
    pub const ZERO: Self = Self::Constant(0.0);

    /// Draws all values of a weight, which are as many as `values` has.
    ///
    /// # Errors
    /// [`Error::Value`] if a number means nothing or the weight cannot have this scheme.
    pub(super) fn fill(self, weight: &Weight<'_>, values: &mut [f32], rng: &mut Rng) -> Result<()> {
        match (self, weight.block) {
            (Self::Constant(value), _) => {
                check_number("a constant", value, -MAX_VALUE)?;
                values.fill(value);
            }
            (Self::Uniform { bound }, _) => {
                check_number("bound", bound, 0.0)?;
                uniform(values, bound, rng);
            }
            (Self::Normal { std }, _) => {
                check_number("std", std, 0.0)?;
                normal(values, std, rng);
            }
            (Self::PyTorch, _) => {
                let hidden = weight.layout.hidden_size as f32;
                uniform(values, 1.0 / hidden.sqrt(), rng);
            }
            (Self::XavierUniform, Some(block)) => {
                uniform(values, (6.0 / block.fans()).sqrt() as f32, rng);
            }
            (Self::XavierNormal, Some(block)) => {
                normal(values, (2.0 / block.fans()).sqrt() as f32, rng);
            }
            (Self::Orthogonal { gain }, Some(block)) => {
                check_number("gain", gain, -MAX_VALUE)?;
                // `max`, as there are no chunks of size 0.
                for values in values.chunks_exact_mut(block.len().max(1)) {
                    orthogonal(values, block, gain, rng)?;
                }
            }
            (Self::Identity { scale }, Some(block)) if weight.is_square_recurrence() => {
                check_number("scale", scale, -MAX_VALUE)?;
                values.fill(0.0);
                let diagonal = values.iter_mut().step_by(block.columns + 1);
                diagonal.for_each(|value| *value = scale);
            }
            (Self::Identity { .. }, _) => {
                let expected = "other than Identity, which is for a square weight_hh of one gate";
                return Err(self.refused(weight, expected));
            }
            (Self::XavierUniform | Self::XavierNormal | Self::Orthogonal { .. }, None) => {
                let expected = "one for vectors: Constant, Uniform, Normal or PyTorch";
                return Err(self.refused(weight, expected));
            }
        }
        Ok(())
    }

    fn refused(self, weight: &Weight<'_>, expected: &str) -> Error {
        let arg = format!("the scheme of {}", weight.name);
        Error::value(OP, arg, expected, format!("{self:?}"))
    }
}

fn orthogonal(values: &mut [f32], block: Block, gain: f32, rng: &mut Rng) -> Result<()> {
    let Block { rows, columns } = block;
    let vectors = orthonormal(rows, columns, rng)?;
    for (k, value) in values.iter_mut().enumerate() {
        let at = if rows > columns {
            k % columns * rows + k / columns
        } else {
            k
        };
        *value = (f64::from(gain) * vectors[at]) as f32;
    }
    Ok(())
}

fn uniform(values: &mut [f32], bound: f32, rng: &mut Rng) {
    values.fill_with(|| rng.uniform(-bound, bound));
}

fn normal(values: &mut [f32], std: f32, rng: &mut Rng) {
    values.fill_with(|| std * rng.normal());
}

/// That a number is from `least` to [`MAX_VALUE`], and so not NaN.
pub(super) fn check_number(arg: &str, value: f32, least: f32) -> Result<()> {
    if (least..=MAX_VALUE).contains(&value) {
        return Ok(());
    }
    let expected = format!("{least:e} to {MAX_VALUE:e}");
    Err(Error::value(OP, arg, expected, value))
}
