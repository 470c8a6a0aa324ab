//! What the step kernels of all cells share: parameters, the products in their twins, samples.

use bytemuck::{Pod, Zeroable};

use super::gemm::{Strided, StridedMut, product};
use crate::cell::{Blocks, Cell};
use crate::error::Result;
use crate::kernel::{Data, Element, Sample};
use crate::plan::Builder;
use crate::plan::sequence::{self, Call, LayerSpec, Mode, Size};
use crate::real::Real;
use crate::rng::Rng;

/// Sequences that one invocation serves.
pub(crate) const ROWS: usize = 4;
/// Hidden units, and invocations, of one workgroup.
pub(crate) const WORKGROUP: usize = 64;

/// `Step` in `shaders/shared/step.wgsl`; offsets and strides count elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct StepParams {
    /// N
    pub batch: u32,
    /// H
    pub hidden: u32,
    /// Where step t starts in `gates` and `dgates`.
    pub gates_start: u32,
    /// From one sequence to the next there.
    pub gates_row: u32,
    /// Where step t + 1 starts in `dgates`.
    pub next_start: u32,
    /// 0 in the last step, which has no such gradients.
    pub has_next: u32,
    /// The h that the step reads.
    pub h_from: u32,
    /// The h that it writes.
    pub h_to: u32,
    /// The c that it reads.
    pub c_from: u32,
    /// The c that it writes.
    pub c_to: u32,
    /// Where step t starts in `dy`.
    pub dy_start: u32,
    /// From one sequence to the next there.
    pub dy_row: u32,
}

/// h W_hhᵀ for all sequences: `[N, width]` with width = G·H.
pub(crate) fn recurrent_product<R: Real>(
    p: &StepParams,
    h: &[R],
    weight_hh_t: &[R],
    gates: usize,
) -> Result<Vec<R>> {
    let (batch, hidden) = (p.batch as usize, p.hidden as usize);
    let width = gates * hidden;
    let mut out = vec![R::ZERO; batch * width];
    product(
        Strided::new(h, [p.h_from, p.hidden, 1], [batch, hidden]),
        Strided::new(weight_hh_t, [0, width as u32, 1], [hidden, width]),
        StridedMut::new(&mut out, [0, width as u32, 1], [batch, width]),
        R::ONE,
        R::ZERO,
    )?;
    Ok(out)
}

/// The gradient that reaches h through the gates of step t + 1: dgates W_hh, `[N, H]`.
pub(crate) fn gradient_product<R: Real>(
    p: &StepParams,
    dgates: &[R],
    weight_hh: &[R],
    blocks: &[Blocks],
) -> Result<Vec<R>> {
    let (batch, hidden) = (p.batch as usize, p.hidden as usize);
    let mut out = vec![R::ZERO; batch * hidden];
    if p.has_next == 0 {
        return Ok(out);
    }
    for b in blocks {
        let start = p.next_start + b.slot as u32 * p.hidden;
        let width = b.count * hidden;
        let weight_start = b.gate as u32 * p.hidden * p.hidden;
        product(
            Strided::new(dgates, [start, p.gates_row, 1], [batch, width]),
            Strided::new(weight_hh, [weight_start, p.hidden, 1], [width, hidden]),
            StridedMut::new(&mut out, [0, p.hidden, 1], [batch, hidden]),
            R::ONE,
            R::ONE,
        )?;
    }
    Ok(out)
}

/// One forward step, the second of two, in training or inference by turns.
pub(crate) fn forward_sample(
    cell: &'static Cell,
    [batch, hidden, variant]: [usize; 3],
    rng: &mut Rng,
) -> Result<Sample> {
    let mode = [Mode::Training, Mode::Inference][variant % 2];
    let call = two_steps(cell, batch, hidden, mode);
    let mut b = Builder::new(cell.name);
    let weights = sequence::weights(&mut b, &call.layer, "l0");
    let states = sequence::states(&mut b, &call);
    sequence::forward_step(&mut b, &call, &weights, &states, 1)?;
    Ok(filled(b, rng))
}

/// One backward step of two: the last one, or the one before it.
pub(crate) fn backward_sample(
    cell: &'static Cell,
    [batch, hidden, variant]: [usize; 3],
    rng: &mut Rng,
) -> Result<Sample> {
    let call = two_steps(cell, batch, hidden, Mode::Training);
    let mut b = Builder::new(cell.name);
    let weights = sequence::weights(&mut b, &call.layer, "l0");
    let states = sequence::states(&mut b, &call);
    let gradients = sequence::gradients(&mut b, &call);
    let dy = sequence::output_gradient(&mut b, &call);
    let t = variant % 2;
    sequence::backward_step(&mut b, &call, &weights, &states, &gradients, dy, t)?;
    Ok(filled(b, rng))
}

fn two_steps(cell: &'static Cell, batch: usize, hidden: usize, mode: Mode) -> Call {
    Call {
        layer: LayerSpec {
            cell,
            input_size: 1,
            hidden_size: hidden,
            bias: true,
        },
        size: Size { steps: 2, batch },
        mode,
    }
}

/// Random contents for every buffer of floats.
fn filled(b: Builder, rng: &mut Rng) -> Sample {
    let plan = b.finish();
    let mut data = Vec::new();
    for (id, buffer) in plan.ids() {
        if buffer.element == Element::Float {
            data.push((id, Data::Float(rng.uniforms(buffer.len(), -1.0, 1.0))));
        }
    }
    Sample { plan, data }
}
