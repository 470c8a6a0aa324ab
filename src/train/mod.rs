//! Training a language model: text to tokens, a model around a recurrent layer, a training step
//! that runs on the device as one plan, and sampling.
//!
//! ```text
//! ids → embedding → dropout → recurrent layer → dropout → linear → softmax cross-entropy
//! ```

pub mod batches;
pub mod checkpoint;
pub mod evaluate;
mod feed;
pub mod model;
pub mod ngram;
pub mod sampler;
pub mod text;
pub mod trainer;

pub use batches::Batches;
pub use evaluate::Evaluator;
pub use model::{LanguageModel, ModelSpec};
pub use sampler::Sampler;
pub use trainer::{Optimizer, Trainer, TrainerSpec};
