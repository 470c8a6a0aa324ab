//! Comparing results: every kernel with its f64 twin, layers with solved cases, a GPU with the CPU
//! step by step.
//!
//! Two results agree if the largest difference, relative to the largest expected value of the
//! tensor, is within a [`tolerance`] that follows from the length of the sums behind it. NaN
//! agrees with nothing.

pub mod cases;
mod compare;
pub mod kernels;
mod lockstep;
pub mod tolerance;

pub use compare::{Difference, compare};
pub(crate) use lockstep::each_step;
pub use lockstep::{Lockstep, StepError, lockstep};

use crate::context::{Context, Dtype};

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The kernel and its size, or the case's name.
    pub case: String,
    /// `cpu` or `gpu`.
    pub backend: &'static str,
    /// The device's name.
    pub adapter: String,
    /// The type it computed with.
    pub dtype: Dtype,
    /// The tensor compared.
    pub tensor: String,
    /// The largest relative difference; infinite where something is NaN.
    pub error: f64,
    /// The largest that is allowed.
    pub tolerance: f64,
    /// What came of it.
    pub status: Status,
}

/// What came of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Within the tolerance.
    Pass,
    /// Outside it.
    Fail,
    /// Not run, since an option is not supported.
    Unsupported,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Unsupported => "unsupported",
        })
    }
}

impl Outcome {
    /// The outcome of a comparison on a device.
    pub fn new(
        context: &Context,
        case: impl Into<String>,
        tensor: impl Into<String>,
        error: f64,
        tolerance: f64,
    ) -> Self {
        Self {
            case: case.into(),
            backend: if context.is_gpu() { "gpu" } else { "cpu" },
            adapter: context.name(),
            dtype: context.dtype(),
            tensor: tensor.into(),
            error,
            tolerance,
            // NaN fails this comparison, as it should.
            status: if error <= tolerance {
                Status::Pass
            } else {
                Status::Fail
            },
        }
    }

    /// A case that was not run since `options` of it are not supported; they stand in the place of
    /// the tensor's name. Its error and tolerance are 0.
    pub fn unsupported(
        context: &Context,
        case: impl Into<String>,
        options: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Unsupported,
            ..Self::new(context, case, options, 0.0, 0.0)
        }
    }
}
