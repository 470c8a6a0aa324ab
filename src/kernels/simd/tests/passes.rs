//! The passes of every cell against the plain twins in `f64`, for every kind of vectors and every
//! way to divide the work. However it is divided, the bits are the same.

use pulp::Arch;

use super::{Buffers, SPLITS, Shape, everywhere, shapes};
use crate::activation::Function;
use crate::kernel::Kernel;
use crate::kernels::simd::backward::BackwardArgs;
use crate::kernels::simd::forward::ForwardArgs;
use crate::kernels::simd::lstm::{LstmArgs, LstmBackwardArgs};
use crate::kernels::simd::pack::{Packing, pack_backward, pack_forward};
use crate::kernels::simd::run::{Manner, Steps};
use crate::kernels::simd::split::Split;
use crate::kernels::simd::{gru, lstm, rnn};
use crate::kernels::step::StepParams;
use crate::kernels::{self, lstm::Options};
use crate::rng::Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Backward,
}

fn kernel(shape: &Shape, pass: Pass) -> &'static Kernel {
    match (shape.gates, pass) {
        (4, Pass::Forward) => &kernels::lstm::FORWARD,
        (4, Pass::Backward) => &kernels::lstm::BACKWARD,
        (3, Pass::Forward) => &kernels::gru::FORWARD,
        (3, Pass::Backward) => &kernels::gru::BACKWARD,
        (_, Pass::Forward) => &kernels::rnn::FORWARD,
        (_, Pass::Backward) => &kernels::rnn::BACKWARD,
    }
}

fn options(shape: &Shape) -> Options<f32> {
    Options {
        peephole: shape.peephole,
        coupled: shape.coupled,
        projected: false,
        cell_clip: shape.cell_clip,
    }
}

fn forward(shape: &Shape, steps: &[StepParams], buffers: &mut Buffers, manner: Manner) -> Split {
    let packing = Packing::forward(shape.gates, shape.hidden, shape.hidden);
    let mut weight = vec![f32::NAN; packing.len()];
    pack_forward(&packing, &buffers.weight_hh, &mut weight);
    let args = ForwardArgs {
        steps: Steps {
            steps,
            mask: &buffers.mask,
            masked: shape.masked,
            stream: false,
        },
        save: shape.training,
        act: shape.act(kernel(shape, Pass::Forward)),
        weight: &weight,
        bias_hh: &buffers.bias_hh,
        gates: &mut buffers.gates,
        h: &mut buffers.h,
        y: &mut buffers.y,
        input: None,
    };
    match shape.gates {
        4 => {
            let own = LstmArgs {
                options: options(shape),
                weight_p: &buffers.weight_p,
                c: &mut buffers.c,
            };
            lstm::forward_as(args, own, manner)
        }
        3 => gru::forward_as(args, manner),
        _ => rnn::forward_as(args, manner),
    }
}

fn backward(shape: &Shape, steps: &[StepParams], buffers: &mut Buffers, manner: Manner) -> Split {
    let packing = Packing::backward(shape.gates, shape.hidden, shape.hidden);
    let mut weight = vec![f32::NAN; packing.len()];
    pack_backward(&packing, &buffers.weight_hh, &mut weight);
    let args = BackwardArgs {
        steps: Steps {
            steps,
            mask: &buffers.mask,
            masked: shape.masked,
            stream: false,
        },
        act: shape.act(kernel(shape, Pass::Backward)),
        weight: &weight,
        saved_gates: &buffers.gates,
        dy: &buffers.y,
        dgates: &mut buffers.dgates,
        dstate: &mut buffers.dstate,
    };
    match shape.gates {
        4 => {
            let own = LstmBackwardArgs {
                options: options(shape),
                weight_p: &buffers.weight_p,
                saved_c: &buffers.c,
            };
            lstm::backward_as(args, own, manner)
        }
        3 => gru::backward_as(args, &buffers.h, manner),
        _ => rnn::backward_as(args, manner),
    }
}

fn run(
    shape: &Shape,
    steps: &[StepParams],
    buffers: &mut Buffers,
    pass: Pass,
    manner: Manner,
) -> Split {
    match pass {
        Pass::Forward => forward(shape, steps, buffers, manner),
        Pass::Backward => backward(shape, steps, buffers, manner),
    }
}

fn check(shape: &Shape, pass: Pass, seed: u64) {
    let mut rng = Rng::new(seed);
    let (mut before, mut steps) = (shape.buffers(&mut rng), shape.steps());
    let depth = match pass {
        Pass::Forward => shape.hidden,
        Pass::Backward => {
            before = before.saved(&mut rng);
            steps.reverse();
            shape.gates * shape.hidden
        }
    };
    let kernel = kernel(shape, pass);
    let want = before.plain(shape, &steps, kernel, kernel.twin.f64);
    everywhere(|arch: Arch| {
        let mut alone = None;
        for split in SPLITS {
            let mut after = before.clone();
            let manner = Manner {
                arch: Some(arch),
                split: Some(split),
            };
            let what = format!("{pass:?} {arch:?} {split:?} {shape:?}");
            assert_eq!(
                run(shape, &steps, &mut after, pass, manner),
                split,
                "{what}"
            );
            after.compare(&want, depth, steps.len(), &what);
            let bits = after.bits();
            let first = alone.get_or_insert_with(|| bits.clone());
            assert!(*first == bits, "{what}: other bits than alone");
        }
    });
}

/// A cell's own slots, in training or not.
fn of_cell(gates: usize, mut shape: Shape) -> Shape {
    if gates == 3 {
        shape.slots = [if shape.training { 4 } else { 3 }, 4];
    }
    shape
}

fn every_size(gates: usize) {
    for (seed, shape) in shapes(gates).into_iter().enumerate() {
        let shape = of_cell(gates, shape);
        check(&shape, Pass::Forward, seed as u64);
        if shape.training {
            check(&shape, Pass::Backward, seed as u64);
        }
    }
}

#[test]
fn lstm_of_every_size() {
    every_size(4);
}

#[test]
fn gru_of_every_size() {
    every_size(3);
}

#[test]
fn rnn_of_every_size() {
    every_size(1);
}

/// Runs a change of a usual shape with and without a mask.
fn with(gates: usize, change: impl Fn(&mut Shape)) {
    for (hidden, masked) in [(7, false), (32, false), (32, true), (20, true)] {
        let mut shape = Shape::new(gates, hidden, &[5, 5, 3]);
        shape.masked = masked;
        change(&mut shape);
        let shape = of_cell(gates, shape);
        check(&shape, Pass::Forward, 3);
        if shape.training {
            check(&shape, Pass::Backward, 4);
        }
    }
}

#[test]
fn other_activations() {
    use Function::{Elu, HardSigmoid, Relu, ScaledTanh, Sigmoid, Softsign, Tanh};
    for gates in [1, 3, 4] {
        for functions in [
            [Sigmoid, Tanh, Relu],
            [HardSigmoid, Elu, Softsign],
            [Relu, Sigmoid, Tanh],
            [Tanh, ScaledTanh, Tanh],
        ] {
            with(gates, |shape| shape.functions = functions);
        }
        with(gates, |shape| shape.clip = Some(0.4));
    }
    with(1, |shape| shape.functions = [Tanh; 3]);
    with(1, |shape| shape.functions = [Relu; 3]);
}

#[test]
fn options_of_an_lstm() {
    with(4, |shape| shape.cell_clip = Some(0.3));
    with(4, |shape| shape.coupled = true);
    with(4, |shape| {
        shape.peephole = true;
        shape.slots = [6, 4];
    });
    with(4, |shape| {
        shape.peephole = true;
        shape.training = false;
    });
}

/// Sums that are so long, and weights that are so many, that they are taken in parts.
#[test]
fn long_sums() {
    check(&Shape::new(4, 300, &[9, 9]), Pass::Backward, 1);
    check(&Shape::new(1, 1100, &[8, 8]), Pass::Forward, 2);
    check(&Shape::new(1, 1100, &[2, 1]), Pass::Forward, 3);
}

#[test]
fn no_steps() {
    let shape = Shape::new(4, 3, &[2]);
    let mut buffers = shape.buffers(&mut Rng::new(1));
    let before = buffers.bits();
    run(&shape, &[], &mut buffers, Pass::Forward, Manner::default());
    assert!(buffers.bits() == before);
}

/// Rows that two sequences share are not given to two workers.
#[test]
fn rows_that_meet() {
    for pass in [Pass::Forward, Pass::Backward] {
        let shape = Shape::new(4, 5, &[4, 4]);
        let mut buffers = shape.buffers(&mut Rng::new(1)).saved(&mut Rng::new(2));
        let mut steps = shape.steps();
        match pass {
            Pass::Forward => steps[1].gates_start -= 4,
            Pass::Backward => steps[1].dgates_row -= 4,
        }
        let manner = Manner {
            arch: None,
            split: Some(SPLITS[1]),
        };
        let split = run(&shape, &steps, &mut buffers, pass, manner);
        assert_eq!(split, Split::ALONE);
    }
}
