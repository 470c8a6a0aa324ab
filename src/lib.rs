//! wgrnn
mod backend;
pub mod cell;
pub mod check;
pub mod context;
pub mod error;
pub mod kernel;
pub mod kernels;
pub mod plan;
pub mod program;
pub mod real;
pub mod rng;
pub mod tensor;

pub use context::{Context, Dtype};
pub use error::{Error, Result};
pub use program::Program;
pub use tensor::Tensor;
