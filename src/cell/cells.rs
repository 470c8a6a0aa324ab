//! The cells of this crate.

use super::{Blocks, Cell, CellOption, Diagonal, Forms, Pass, Recurrent, Units};
use crate::activation::Activation;
use crate::kernel::{Constant, Kernel};
use crate::kernels::{forms, gru, gru_before, lstm, project, rnn};

/// Every cell of this crate.
pub static ALL: &[&Cell] = &[
    &LSTM,
    &LSTM_PEEPHOLE,
    &LSTM_PROJECTED,
    &LSTM_PEEPHOLE_PROJECTED,
    &GRU,
    &GRU_BEFORE,
    &RNN_TANH,
    &RNN_RELU,
];

const LSTM_ACTIVATIONS: &[Activation] = &[Activation::SIGMOID, Activation::TANH, Activation::TANH];
const ONE_GATE: &[Blocks] = &[Blocks::new(0, 0, 1)];
const ONE_GATE_OF_STATE: &[Recurrent] = &[Blocks::new(0, 0, 1).of_state()];
const THREE_GATES: &[Blocks] = &[Blocks::new(0, 0, 3)];
const FOUR_GATES: &[Blocks] = &[Blocks::new(0, 0, 4)];
const FOUR_GATES_OF_STATE: &[Recurrent] = &[Blocks::new(0, 0, 4).of_state()];
/// Gates i and f see c before the step, o sees it after; the kernel keeps both behind the gates.
const PEEPHOLES: &[Diagonal] = &[
    Diagonal {
        gradient: 0,
        kept: 5,
    },
    Diagonal {
        gradient: 1,
        kept: 5,
    },
    Diagonal {
        gradient: 3,
        kept: 4,
    },
];

const fn lstm_pass(kernel: &'static Kernel, constants: &'static [Constant]) -> Pass {
    Pass {
        constants,
        ..Pass::new(kernel)
    }
}

const fn lstm_sequence(constants: &'static [Constant]) -> [Pass; 2] {
    [
        lstm_pass(&lstm::SEQUENCE_FORWARD, constants),
        lstm_pass(&lstm::SEQUENCE_BACKWARD, constants),
    ]
}

const fn project_pass(kernel: &'static Kernel) -> Pass {
    Pass {
        units: Units::Output,
        gates: false,
        ..Pass::new(kernel)
    }
}

const LSTM_FORMS: Forms = Forms {
    blocks: &forms::LSTM_FORWARD_BLOCKS,
    few: &forms::LSTM_FORWARD_FEW,
    tile: &forms::LSTM_FORWARD_TILE,
};
const LSTM_FORMS_BACK: Forms = Forms {
    blocks: &forms::LSTM_BACKWARD_BLOCKS,
    few: &forms::LSTM_BACKWARD_FEW,
    tile: &forms::LSTM_BACKWARD_TILE,
};
const GRU_FORMS: Forms = Forms {
    blocks: &forms::GRU_FORWARD_BLOCKS,
    few: &forms::GRU_FORWARD_FEW,
    tile: &forms::GRU_FORWARD_TILE,
};
const GRU_FORMS_BACK: Forms = Forms {
    blocks: &forms::GRU_BACKWARD_BLOCKS,
    few: &forms::GRU_BACKWARD_FEW,
    tile: &forms::GRU_BACKWARD_TILE,
};
const RNN_FORMS: Forms = Forms {
    blocks: &forms::RNN_FORWARD_BLOCKS,
    few: &forms::RNN_FORWARD_FEW,
    tile: &forms::RNN_FORWARD_TILE,
};
const RNN_FORMS_BACK: Forms = Forms {
    blocks: &forms::RNN_BACKWARD_BLOCKS,
    few: &forms::RNN_BACKWARD_FEW,
    tile: &forms::RNN_BACKWARD_TILE,
};

const PLAIN: &[Constant] = &[("PEEPHOLE", 0), ("PROJECTED", 0)];
const PEEPHOLE: &[Constant] = &[("PEEPHOLE", 1), ("PROJECTED", 0)];
const PROJECTED: &[Constant] = &[("PEEPHOLE", 0), ("PROJECTED", 1)];
const PEEPHOLE_PROJECTED: &[Constant] = &[("PEEPHOLE", 1), ("PROJECTED", 1)];

const fn projected_forward(constants: &'static [Constant]) -> [Pass; 2] {
    let cell = Pass {
        renamed: &[("y", "inner")],
        ..lstm_pass(&lstm::FORWARD, constants)
    };
    [cell, project_pass(&project::FORWARD)]
}

const fn projected_backward(constants: &'static [Constant]) -> [Pass; 2] {
    let cell = Pass {
        renamed: &[("weight_hh", "weight_hr"), ("dy", "outer")],
        ..lstm_pass(&lstm::BACKWARD, constants)
    };
    [project_pass(&project::BACKWARD), cell]
}

const fn lstm_cell(
    name: &'static str,
    peephole: bool,
    projected: bool,
    forward: &'static [Pass],
    backward: &'static [Pass],
) -> Cell {
    Cell {
        name,
        gates: 4,
        slots: if peephole { 6 } else { 4 },
        gradient_slots: 4,
        cell_state: true,
        projected,
        forward,
        backward,
        sequence: match (projected, peephole) {
            (true, _) => None,
            (false, true) => Some(lstm_sequence(PEEPHOLE)),
            (false, false) => Some(lstm_sequence(PLAIN)),
        },
        forms: [
            Some(LSTM_FORMS),
            if projected {
                None
            } else {
                Some(LSTM_FORMS_BACK)
            },
        ],
        side_by_side: !projected,
        activations: LSTM_ACTIVATIONS,
        options: &[CellOption::Clip, CellOption::CellClip, CellOption::Coupled],
        input_gradient: FOUR_GATES,
        recurrent_gradient: FOUR_GATES_OF_STATE,
        diagonal: if peephole { PEEPHOLES } else { &[] },
        forget_gate: Some(1),
    }
}

/// Long short-term memory; gates i, f, g, o. Its activations are those of the gates, of g and of c.
pub static LSTM: Cell = lstm_cell(
    "lstm",
    false,
    false,
    &[lstm_pass(&lstm::FORWARD, PLAIN)],
    &[lstm_pass(&lstm::BACKWARD, PLAIN)],
);

/// [`LSTM`] whose gates see c.
pub static LSTM_PEEPHOLE: Cell = lstm_cell(
    "lstm_peephole",
    true,
    false,
    &[lstm_pass(&lstm::FORWARD, PEEPHOLE)],
    &[lstm_pass(&lstm::BACKWARD, PEEPHOLE)],
);

/// [`LSTM`] whose output is projected.
pub static LSTM_PROJECTED: Cell = lstm_cell(
    "lstm_projected",
    false,
    true,
    &projected_forward(PROJECTED),
    &projected_backward(PROJECTED),
);

/// [`LSTM`] with peepholes and projection.
pub static LSTM_PEEPHOLE_PROJECTED: Cell = lstm_cell(
    "lstm_peephole_projected",
    true,
    true,
    &projected_forward(PEEPHOLE_PROJECTED),
    &projected_backward(PEEPHOLE_PROJECTED),
);

const fn gru_cell(
    name: &'static str,
    forward: &'static [Pass],
    backward: &'static [Pass],
    sequence: Option<[Pass; 2]>,
    forms: [Option<Forms>; 2],
    gradient_slots: usize,
    recurrent_gradient: &'static [Recurrent],
) -> Cell {
    Cell {
        name,
        gates: 3,
        slots: gradient_slots,
        gradient_slots,
        cell_state: false,
        projected: false,
        forward,
        backward,
        side_by_side: sequence.is_some(),
        sequence,
        forms,
        activations: &[Activation::SIGMOID, Activation::TANH],
        options: &[CellOption::Clip],
        input_gradient: THREE_GATES,
        recurrent_gradient,
        diagonal: &[],
        forget_gate: None,
    }
}

/// Gated recurrent unit, reset after the product; gates r, z, n. It keeps r, z, n and q = R_n h + b.
pub static GRU: Cell = gru_cell(
    "gru",
    &[Pass::new(&gru::FORWARD)],
    &[Pass::new(&gru::BACKWARD)],
    Some([
        Pass::new(&gru::SEQUENCE_FORWARD),
        Pass::new(&gru::SEQUENCE_BACKWARD),
    ]),
    [Some(GRU_FORMS), Some(GRU_FORMS_BACK)],
    4,
    &[
        Blocks::new(0, 0, 2).of_state(),
        Blocks::new(3, 2, 1).of_state(),
    ],
);

/// Gated recurrent unit, reset before the product; gates r, z, n.
pub static GRU_BEFORE: Cell = gru_cell(
    "gru_before",
    &[
        Pass::new(&gru_before::RESET_GATE),
        Pass::new(&gru_before::UPDATE),
    ],
    &[
        Pass::new(&gru_before::BACK_UPDATE),
        Pass::new(&gru_before::BACK_RESET),
    ],
    None,
    [None, None],
    3,
    &[
        Blocks::new(0, 0, 2).of_state(),
        Blocks::new(2, 2, 1).of_inner(),
    ],
);

/// Plain recurrent network, with tanh unless a layer says otherwise.
pub static RNN_TANH: Cell = rnn_cell("rnn_tanh", &[Activation::TANH]);

/// Plain recurrent network with max(x, 0).
pub static RNN_RELU: Cell = rnn_cell("rnn_relu", &[Activation::RELU]);

const RNN_FORWARD: &[Pass] = &[Pass::new(&rnn::FORWARD)];
const RNN_BACKWARD: &[Pass] = &[Pass::new(&rnn::BACKWARD)];

const fn rnn_cell(name: &'static str, activations: &'static [Activation]) -> Cell {
    Cell {
        name,
        gates: 1,
        slots: 1,
        gradient_slots: 1,
        cell_state: false,
        projected: false,
        forward: RNN_FORWARD,
        backward: RNN_BACKWARD,
        sequence: Some([
            Pass::new(&rnn::SEQUENCE_FORWARD),
            Pass::new(&rnn::SEQUENCE_BACKWARD),
        ]),
        forms: [Some(RNN_FORMS), Some(RNN_FORMS_BACK)],
        side_by_side: true,
        activations,
        options: &[CellOption::Clip],
        input_gradient: ONE_GATE,
        recurrent_gradient: ONE_GATE_OF_STATE,
        diagonal: &[],
        forget_gate: None,
    }
}
