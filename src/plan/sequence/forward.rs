//! The forward pass of a layer as steps of a plan.

use super::{Builder, Call, Matrix, States, Weights, check_rows, forward_step};
use crate::error::Result;
use crate::kernels::gemm::Gemm;

/// Adds the forward pass over `x` `[T·N, I]`. The initial h and c stand in the first step of their
/// buffers; [`prepare`](super::prepare) must have run.
///
/// # Errors
/// If a size is 0 or `x` has another shape.
pub fn forward(
    b: &mut Builder,
    call: &Call,
    x: Matrix,
    weights: &Weights,
    states: &States,
) -> Result<()> {
    let Call { layer, size, .. } = call;
    layer.check(*size)?;
    let rows = call.rows();
    check_rows("x", x, rows, layer.input_size)?;
    let (width, hidden) = (layer.width(), layer.hidden_size);
    let input = Matrix {
        row_stride: call.slots() * hidden,
        ..Matrix::dense(states.gates, rows, width)
    };
    Gemm {
        bias: layer.bias.then_some(weights.bias_ih),
        ..Gemm::new(
            x,
            Matrix::dense(weights.weight_ih, width, layer.input_size).t(),
            input,
        )
    }
    .push(b)?;
    for t in 0..size.steps {
        forward_step(b, call, weights, states, t)?;
    }
    Ok(())
}
