//! `gru_before`: one step of a GRU with the reset gate before the product, in two kernels forward
//! and two back. Equations in `shaders/gru_before.wgsl`.
//!
//! K. Cho et al., *Learning phrase representations using RNN encoder–decoder*, 2014; ONNX with
//! `linear_before_reset` 0. Gate order r, z, n.

use super::gates::Gates;
use super::gemm::{Strided, StridedMut, product};
use super::sample;
use super::step::{self, Forward, Rows, gradient_product};
use crate::cell::GRU_BEFORE;
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel};
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/gru_before.wgsl");

/// `gru_before.reset_gate`
pub static RESET_GATE: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| u64::from(p.hidden)),
    ..step::kernel(
        "gru_before.reset_gate",
        WGSL,
        &[
            step::MASK,
            Binding::update("gates"),
            Binding::read("weight_hh_t"),
            Binding::read("bias_hh"),
            Binding::update("h"),
            Binding::update("inner"),
        ],
        twin!(reset_gate),
        |size, rng| sample::forward(&[&GRU_BEFORE], 0, size, rng),
    )
};

/// `gru_before.update`
pub static UPDATE: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| u64::from(p.hidden)),
    ..step::kernel(
        "gru_before.update",
        WGSL,
        &[
            step::MASK,
            Binding::update("gates"),
            Binding::read("weight_hh_t"),
            Binding::read("bias_hh"),
            Binding::update("h"),
            Binding::update("inner"),
            Binding::update("y"),
        ],
        twin!(update),
        |size, rng| sample::forward(&[&GRU_BEFORE], 1, size, rng),
    )
};

/// `gru_before.back_update`
pub static BACK_UPDATE: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| 2 * u64::from(p.hidden)),
    ..step::kernel(
        "gru_before.back_update",
        WGSL,
        &[
            step::MASK,
            Binding::read("saved_gates"),
            Binding::read("saved_h"),
            Binding::read("weight_hh"),
            Binding::update("dgates"),
            Binding::update("dstate"),
            Binding::read("dy"),
        ],
        twin!(back_update),
        |size, rng| sample::backward(&[&GRU_BEFORE], 0, size, rng),
    )
};

/// `gru_before.back_reset`
pub static BACK_RESET: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| u64::from(p.hidden)),
    ..step::kernel(
        "gru_before.back_reset",
        WGSL,
        &[
            step::MASK,
            Binding::read("saved_gates"),
            Binding::read("saved_h"),
            Binding::read("weight_hh"),
            Binding::update("dgates"),
            Binding::update("dstate"),
        ],
        twin!(back_reset),
        |size, rng| sample::backward(&[&GRU_BEFORE], 1, size, rng),
    )
};

fn reset_gate<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let act = Gates::new(args, &rows.p)?;
    let save = args.constant("SAVE")? != 0;
    let (gates, weight_hh_t, bias_hh) = (args.write(1)?, args.read(2)?, args.read(3)?);
    let (h, inner) = (args.write(4)?, args.write(5)?);
    let hidden = rows.p.hidden as usize;
    let products = Forward {
        gates,
        weight_hh_t,
        operand: h,
        size: hidden,
        of_gates: 3,
        wanted: 0..2,
    }
    .products(&rows, |n| rows.h_before(n))?;
    for row in 0..rows.count() {
        let (at, to, before) = (rows.gates(row), rows.inner(row), rows.h_before(row));
        if !rows.live(row) {
            inner[to..to + hidden].fill(R::ZERO);
            continue;
        }
        for j in 0..hidden {
            let pre = |gate: usize| {
                let unit = gate * hidden + j;
                let input = products.input(row, gate, j, || gates[at + unit]);
                input + products.recurrent(row, gate, j) + bias_hh[unit]
            };
            let (pre_r, pre_z) = (pre(0), pre(1));
            let r = act.gate(0, pre_r);
            inner[to + j] = r * h[before + j];
            let z = act.kept(pre_z, act.gate(0, pre_z));
            if rows.stream() {
                inner[to + hidden + j] = z;
            } else {
                gates[at + hidden + j] = z;
            }
            if save {
                gates[at + j] = act.kept(pre_r, r);
            }
        }
    }
    Ok(())
}

fn update<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let act = Gates::new(args, &rows.p)?;
    let save = args.constant("SAVE")? != 0;
    let (gates, weight_hh_t, bias_hh) = (args.write(1)?, args.read(2)?, args.read(3)?);
    let (h, inner, y) = (args.write(4)?, args.write(5)?, args.write(6)?);
    let hidden = rows.p.hidden as usize;
    let products = Forward {
        gates,
        weight_hh_t,
        operand: inner,
        size: hidden,
        of_gates: 3,
        wanted: 2..3,
    }
    .products(&rows, |n| rows.inner(n))?;
    for row in 0..rows.count() {
        if !rows.live(row) {
            rows.hold_state(h, y, row);
            continue;
        }
        let (at, from, before) = (rows.gates(row), rows.inner(row), rows.h_before(row));
        let to = rows.hand_on(row);
        for j in 0..hidden {
            let unit = 2 * hidden + j;
            let kept_z = if rows.stream() {
                inner[from + hidden + j]
            } else {
                gates[at + hidden + j]
            };
            let z = act.value(0, kept_z);
            let input = products.input(row, 0, j, || gates[at + unit]);
            let pre = input + products.recurrent(row, 0, j) + bias_hh[unit];
            let n = act.gate(1, pre);
            let value = (R::ONE - z) * n + z * h[before + j];
            to.store(h, y, j, value);
            if save {
                gates[at + unit] = act.kept(pre, n);
            }
        }
    }
    Ok(())
}

fn back_update<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let act = Gates::new(args, &rows.p)?;
    let (saved_gates, saved_h, weight_hh) = (args.read(1)?, args.read(2)?, args.read(3)?);
    let (dgates, dstate, dy) = (args.write(4)?, args.write(5)?, args.read(6)?);
    let hidden = rows.p.hidden as usize;
    let product = gradient_product(&rows, dgates, weight_hh, GRU_BEFORE.recurrent_blocks())?;
    for row in 0..rows.count() {
        let (at, to) = (rows.gates(row), rows.dgates(row));
        let (live, before) = (rows.live(row), rows.h_before(row));
        let gradient = rows.state_gradient(row);
        for j in 0..hidden {
            let unit = row * hidden + j;
            let dh = gradient.of(dstate, dy, j, product[unit]);
            dstate[unit] = dh;
            let (mut dz, mut dn) = (R::ZERO, R::ZERO);
            if live {
                let (kept_z, kept_n) = (
                    saved_gates[at + hidden + j],
                    saved_gates[at + 2 * hidden + j],
                );
                let (z, n) = (act.value(0, kept_z), act.value(1, kept_n));
                dz = dh * (saved_h[before + j] - n) * act.gate_slope(0, kept_z, z);
                dn = dh * (R::ONE - z) * act.gate_slope(1, kept_n, n);
            }
            dgates[to + hidden + j] = dz;
            dgates[to + 2 * hidden + j] = dn;
        }
    }
    Ok(())
}

fn back_reset<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let act = Gates::new(args, &rows.p)?;
    let (saved_gates, saved_h, weight_hh) = (args.read(1)?, args.read(2)?, args.read(3)?);
    let (dgates, dstate) = (args.write(4)?, args.write(5)?);
    let p = &rows.p;
    let (count, hidden) = (rows.count(), p.hidden as usize);
    let mut dinner = vec![R::ZERO; count * hidden];
    product(
        Strided::new(
            dgates,
            [p.dgates_start + 2 * p.hidden, p.dgates_row, 1],
            [count, hidden],
        ),
        Strided::new(
            weight_hh,
            [2 * p.hidden * p.hidden, p.hidden, 1],
            [hidden, hidden],
        ),
        StridedMut::new(&mut dinner, [0, p.hidden, 1], [count, hidden]),
        R::ONE,
        R::ZERO,
    )?;
    for row in 0..count {
        let (at, to, before) = (rows.gates(row), rows.dgates(row), rows.h_before(row));
        let live = rows.live(row);
        for j in 0..hidden {
            if !live {
                dgates[to + j] = R::ZERO;
                continue;
            }
            let unit = row * hidden + j;
            let kept_r = saved_gates[at + j];
            let r = act.value(0, kept_r);
            let z = act.value(0, saved_gates[at + hidden + j]);
            let d = dinner[unit];
            dgates[to + j] = d * saved_h[before + j] * act.gate_slope(0, kept_r, r);
            dstate[unit] = dstate[unit] * z + d * r;
        }
    }
    Ok(())
}
