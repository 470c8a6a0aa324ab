//! The kernels, one file per shader: descriptor, parameters, CPU twin, test inputs.
//!
//! Each file has a function (or an argument struct with `push`) that checks shapes and adds the
//! kernel's dispatch to a [`crate::plan::Builder`]. [`ALL`] lists the descriptors; validation,
//! parity tests and benchmarks run over it, so a new kernel is a `.wgsl`, an `.rs` and a line here.

pub mod adam;
pub mod clip;
pub mod clock;
pub mod copy;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod forms;
pub mod gates;
pub mod gemm;
pub mod gru;
pub mod gru_before;
pub mod lstm;
pub mod mask;
pub mod pack;
pub mod project;
pub mod reduce;
pub mod rnn;
pub mod sample;
pub mod sgd;
pub(crate) mod simd;
pub mod state;
pub mod step;
pub mod transpose;

use crate::error::{Error, Result};
use crate::kernel::Kernel;

/// Every kernel of this crate.
pub static ALL: &[&Kernel] = &[
    &copy::COPY,
    &copy::FILL,
    &transpose::TRANSPOSE,
    &pack::PACK,
    &gemm::GEMM,
    &gemm::TILE32,
    &gemm::TILE64,
    &gemm::TILE128,
    &gemm::ALONG_K,
    &gemm::ALONG_K_SUBGROUPS,
    &gemm::ACROSS_K,
    &gemm::SUM,
    &gemm::BLOCKS,
    &gemm::COOPERATIVE,
    &reduce::COLUMNS,
    &reduce::TOTAL,
    &mask::MAKE,
    &mask::CLEAR,
    &state::LOAD,
    &state::UNSET,
    &rnn::FORWARD,
    &rnn::BACKWARD,
    &forms::RNN_FORWARD_BLOCKS,
    &forms::RNN_FORWARD_FEW,
    &forms::RNN_FORWARD_TILE,
    &forms::RNN_BACKWARD_BLOCKS,
    &forms::RNN_BACKWARD_FEW,
    &forms::RNN_BACKWARD_TILE,
    &rnn::SEQUENCE_FORWARD,
    &rnn::SEQUENCE_BACKWARD,
    &lstm::FORWARD,
    &lstm::BACKWARD,
    &forms::LSTM_FORWARD_BLOCKS,
    &forms::LSTM_FORWARD_FEW,
    &forms::LSTM_FORWARD_TILE,
    &forms::LSTM_BACKWARD_BLOCKS,
    &forms::LSTM_BACKWARD_FEW,
    &forms::LSTM_BACKWARD_TILE,
    &lstm::SEQUENCE_FORWARD,
    &lstm::SEQUENCE_BACKWARD,
    &gru::FORWARD,
    &gru::BACKWARD,
    &forms::GRU_FORWARD_BLOCKS,
    &forms::GRU_FORWARD_FEW,
    &forms::GRU_FORWARD_TILE,
    &forms::GRU_BACKWARD_BLOCKS,
    &forms::GRU_BACKWARD_FEW,
    &forms::GRU_BACKWARD_TILE,
    &gru::SEQUENCE_FORWARD,
    &gru::SEQUENCE_BACKWARD,
    &gru_before::RESET_GATE,
    &gru_before::UPDATE,
    &gru_before::BACK_UPDATE,
    &gru_before::BACK_RESET,
    &project::FORWARD,
    &project::BACKWARD,
    &embedding::GATHER,
    &embedding::SCATTER,
    &dropout::APPLY,
    &cross_entropy::COUNT,
    &cross_entropy::ROWS,
    &clip::FACTOR,
    &clip::SCALE,
    &clock::ADVANCE,
    &clock::TAKE,
    &sgd::STEP,
    &adam::STEP,
];

/// A number of operations or bytes, for a [`Cost`](crate::plan::Cost); the largest there is where it is more.
pub(crate) fn times(factors: &[usize]) -> u64 {
    let all = factors.iter();
    all.fold(1, |product: u64, &factor| {
        product.saturating_mul(factor as u64)
    })
}

/// A size or an offset as a shader's 32-bit parameter.
pub(crate) fn index(op: &'static str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Limit {
        what: format!("{op}: a 32-bit index or size"),
        needed: value as u64,
        available: u64::from(u32::MAX),
    })
}
