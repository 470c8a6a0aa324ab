//! The backward pass of a layer as steps of a plan.

use super::{
    Backward, BackwardArgs, BufferId, Builder, Call, Matrix, Mode, Role, States, Weights,
    backward_step, check_rows, gradients,
};
use crate::cell::Blocks;
use crate::error::{Error, Result};
use crate::kernels::copy::{copy, fill};
use crate::kernels::gemm::Gemm;
use crate::kernels::reduce::columns;

/// Adds the backward pass of a [`forward`](super::forward()) in training mode.
///
/// # Errors
/// If a matrix has another shape than the layer and the size ask for.
pub fn backward(
    b: &mut Builder,
    call: &Call,
    weights: &Weights,
    states: &States,
    args: BackwardArgs,
) -> Result<Backward> {
    let Call { layer, size, mode } = call;
    layer.check(*size)?;
    if *mode != Mode::Training {
        return Err(Error::value(
            "layer",
            "mode",
            "Training",
            format!("{mode:?}"),
        ));
    }
    let (cell, hidden, width) = (layer.cell, layer.hidden_size, layer.width());
    let rows = call.rows();
    check_rows("x", args.x, rows, layer.input_size)?;
    check_rows("dy", args.dy, rows, hidden)?;

    let work = gradients(b, call);
    match args.final_gradient {
        None => fill(b, work.dstate, 0.0)?,
        Some(given) => {
            let len = b.buffer(work.dstate).len();
            copy(b, (given, 0), (work.dstate, 0), len)?;
        }
    }
    for t in (0..size.steps).rev() {
        backward_step(b, call, weights, states, &work, args.dy, t)?;
    }

    // What is left for the initial h: the gates of the first step.
    let dgates = |blocks: &Blocks| {
        let all = Matrix::dense(work.dgates, rows, cell.slots * hidden);
        all.col_range(blocks.slot * hidden..(blocks.slot + blocks.count) * hidden)
    };
    let gate_rows = |m: Matrix, blocks: &Blocks| {
        m.row_range(blocks.gate * hidden..(blocks.gate + blocks.count) * hidden)
    };
    for blocks in cell.recurrent_gradient {
        let weight = Matrix::dense(weights.weight_hh, width, hidden);
        Gemm {
            beta: 1.0,
            ..Gemm::new(
                dgates(blocks).row_range(0..size.batch),
                gate_rows(weight, blocks),
                Matrix::dense(work.dstate, size.batch, hidden),
            )
        }
        .push(b)?;
    }

    let weight_ih = b.float("dweight_ih", &[width, layer.input_size], Role::Gradient);
    for blocks in cell.input_gradient {
        let dw = Matrix::dense(weight_ih, width, layer.input_size);
        Gemm::new(dgates(blocks).t(), args.x, gate_rows(dw, blocks)).push(b)?;
    }
    let weight_hh = b.float("dweight_hh", &[width, hidden], Role::Gradient);
    let h_before = Matrix::dense(states.h, rows, hidden);
    for blocks in cell.recurrent_gradient {
        let dw = Matrix::dense(weight_hh, width, hidden);
        Gemm::new(dgates(blocks).t(), h_before, gate_rows(dw, blocks)).push(b)?;
    }

    let biases = if layer.bias {
        let sums = b.float("dgate sums", &[cell.slots, hidden], Role::Scratch);
        columns(
            b,
            Matrix::dense(work.dgates, rows, cell.slots * hidden),
            sums,
        )?;
        let bias = |b: &mut Builder, name, from: &[Blocks]| -> Result<BufferId> {
            let id = b.float(name, &[width], Role::Gradient);
            for blocks in from {
                let (slot, gate) = (blocks.slot * hidden, blocks.gate * hidden);
                copy(b, (sums, slot), (id, gate), blocks.count * hidden)?;
            }
            Ok(id)
        };
        Some([
            bias(b, "dbias_ih", cell.input_gradient)?,
            bias(b, "dbias_hh", cell.recurrent_gradient)?,
        ])
    } else {
        None
    };

    let x = if args.dx {
        let dx = b.float(
            "dx",
            &[size.steps, size.batch, layer.input_size],
            Role::Gradient,
        );
        for (i, blocks) in cell.input_gradient.iter().enumerate() {
            let weight = Matrix::dense(weights.weight_ih, width, layer.input_size);
            Gemm {
                beta: if i == 0 { 0.0 } else { 1.0 },
                ..Gemm::new(
                    dgates(blocks),
                    gate_rows(weight, blocks),
                    Matrix::dense(dx, rows, layer.input_size),
                )
            }
            .push(b)?;
        }
        Some(dx)
    } else {
        None
    };
    Ok(Backward {
        weight_ih,
        weight_hh,
        biases,
        x,
        dstate: work.dstate,
    })
}
