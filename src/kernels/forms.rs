//! The kernels of single steps over quads of sums, forward and back, for the cells that have them: the
//! shader of a cell with one of the pieces `blocks`, `few` and `tile`, which say what each form does.

use super::sample;
use super::step::{LANES, rounds};
use super::{gru, lstm, rnn};
use crate::cell::{Cell, GRU, RNN_RELU, RNN_TANH};
use crate::kernel::Kernel;
use crate::plan::sequence::StepForm;

const GRUS: &[&Cell] = &[&GRU];
const RNNS: &[&Cell] = &[&RNN_TANH, &RNN_RELU];

/// A kernel for each form: from what the cell's step has, the shader's name, the entry point, the test input, and the gates
/// whose gradients are a sum's terms on the way back.
macro_rules! forms {
    ($stem:literal, $way:literal, $base:path, $sample:path, $cells:expr, $gates:literal, [$blocks:ident, $few:ident, $tile:ident]) => {
        forms!(@ $blocks, $stem, $way, "blocks", Blocks, LANES as u32, rounds::of_blocks, $gates, $base, $sample, $cells);
        forms!(@ $few, $stem, $way, "few", Few, 128, rounds::of_few, $gates, $base, $sample, $cells);
        forms!(@ $tile, $stem, $way, "tile", Tile, 256, rounds::of_tile, $gates, $base, $sample, $cells);
    };
    (@ $name:ident, $stem:literal, $way:literal, $piece:literal, $form:ident, $size:expr, $rounds:path, $gates:literal, $base:path, $sample:path, $cells:expr) => {
        #[doc = concat!("`", $stem, ".", $way, "_", $piece, "`")]
        pub static $name: Kernel = Kernel {
            name: concat!($stem, ".", $way, "_", $piece),
            wgsl: concat!(
                include_str!(concat!("../../shaders/", $stem, ".wgsl")),
                "#import ",
                $piece,
                "\n"
            ),
            entry: concat!($way, "_", $piece),
            workgroup_size: $size,
            rounds: |told| $rounds(told, |p| $gates * u64::from(p.hidden)),
            sample: |size, rng| $sample(StepForm::$form, $cells, size, rng),
            ..$base
        };
    };
}

forms!(
    "lstm",
    "forward",
    lstm::FORWARD_IN_QUADS,
    sample::forward_as,
    lstm::CELLS,
    4,
    [LSTM_FORWARD_BLOCKS, LSTM_FORWARD_FEW, LSTM_FORWARD_TILE]
);
forms!(
    "lstm",
    "backward",
    lstm::BACKWARD_IN_QUADS,
    sample::backward_as,
    lstm::STEPS,
    4,
    [LSTM_BACKWARD_BLOCKS, LSTM_BACKWARD_FEW, LSTM_BACKWARD_TILE]
);
forms!(
    "gru",
    "forward",
    gru::FORWARD_IN_QUADS,
    sample::forward_as,
    GRUS,
    3,
    [GRU_FORWARD_BLOCKS, GRU_FORWARD_FEW, GRU_FORWARD_TILE]
);
forms!(
    "gru",
    "backward",
    gru::BACKWARD_IN_QUADS,
    sample::backward_as,
    GRUS,
    3,
    [GRU_BACKWARD_BLOCKS, GRU_BACKWARD_FEW, GRU_BACKWARD_TILE]
);
forms!(
    "rnn",
    "forward",
    rnn::FORWARD_IN_QUADS,
    sample::forward_as,
    RNNS,
    1,
    [RNN_FORWARD_BLOCKS, RNN_FORWARD_FEW, RNN_FORWARD_TILE]
);
forms!(
    "rnn",
    "backward",
    rnn::BACKWARD_IN_QUADS,
    sample::backward_as,
    RNNS,
    1,
    [RNN_BACKWARD_BLOCKS, RNN_BACKWARD_FEW, RNN_BACKWARD_TILE]
);
