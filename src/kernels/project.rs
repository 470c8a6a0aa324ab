//! `project`: the projection of an LSTM's output, forward and back, beside `lstm` in every step.
//! Equations in `shaders/project.wgsl`.
//!
//! H. Sak et al., *Long short-term memory recurrent neural network architectures for large scale
//! acoustic modeling*, 2014; as `proj_size` in PyTorch.

use super::gemm::{Strided, StridedMut, product};
use super::sample;
use super::step::{self, Rows, gradient_product};
use crate::cell::{Cell, LSTM_PEEPHOLE_PROJECTED, LSTM_PROJECTED};
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel};
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/project.wgsl");
const CELLS: &[&Cell] = &[&LSTM_PROJECTED, &LSTM_PEEPHOLE_PROJECTED];

/// `project.forward`
pub static FORWARD: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| u64::from(p.hidden)),
    ..step::kernel(
        "project.forward",
        WGSL,
        &[
            step::MASK,
            Binding::read("inner"),
            Binding::read("weight_hr_t"),
            Binding::update("h"),
            Binding::update("y"),
        ],
        twin!(forward),
        |size, rng| sample::forward(CELLS, 1, size, rng),
    )
};

/// `project.backward`
pub static BACKWARD: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| 4 * u64::from(p.hidden)),
    ..step::kernel(
        "project.backward",
        WGSL,
        &[
            step::MASK,
            Binding::read("dgates"),
            Binding::read("weight_hh"),
            Binding::read("dy"),
            Binding::update("dstate"),
            Binding::update("outer"),
        ],
        twin!(backward),
        |size, rng| sample::backward(CELLS, 0, size, rng),
    )
};

fn forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let (inner, weight_hr_t) = (args.read(1)?, args.read(2)?);
    let (h, y) = (args.write(3)?, args.write(4)?);
    let p = &rows.p;
    let (count, hidden, output) = (rows.count(), p.hidden as usize, p.output as usize);
    let mut sums = vec![R::ZERO; count * output];
    product(
        Strided::new(inner, [p.inner_start, p.inner_row, 1], [count, hidden]),
        Strided::new(weight_hr_t, [0, p.output, 1], [hidden, output]),
        StridedMut::new(&mut sums, [0, p.output, 1], [count, output]),
        R::ONE,
        R::ZERO,
    )?;
    for n in 0..count {
        if !rows.live(n) {
            rows.hold_state(h, y, n);
            continue;
        }
        let to = rows.hand_on(n);
        for j in 0..output {
            to.store(h, y, j, sums[n * output + j]);
        }
    }
    Ok(())
}

fn backward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let (dgates, weight_hh, dy) = (args.read(1)?, args.read(2)?, args.read(3)?);
    let (dstate, outer) = (args.write(4)?, args.write(5)?);
    let output = rows.p.output as usize;
    let blocks = LSTM_PROJECTED.recurrent_blocks();
    let product = gradient_product(&rows, dgates, weight_hh, blocks)?;
    for n in 0..rows.count() {
        let (to, live) = (rows.outer(n), rows.live(n));
        let gradient = rows.state_gradient(n);
        for j in 0..output {
            let unit = n * output + j;
            let dh = gradient.of(dstate, dy, j, product[unit]);
            let (goes, stays) = if live { (dh, R::ZERO) } else { (R::ZERO, dh) };
            outer[to + j] = goes;
            dstate[unit] = stays;
        }
    }
    Ok(())
}
