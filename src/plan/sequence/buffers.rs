//! The buffers of a layer in a plan: weights, states, and what is kept between the passes.

use super::form::{Way, packing};
use super::lanes::{lane_of, weight_lanes};
use super::run::Run;
use super::spec::{LayerSpec, Level, Precision};
use super::strategy::{UNITS, choose};
use crate::kernels::pack::Blocks;
use crate::kernels::simd::pack::Packing;
use crate::plan::{BufferId, Builder, DeviceKind, Role, Target};

/// The buffers of one level's weights, in PyTorch's layout and gate order.
#[derive(Debug, Clone, Copy)]
pub struct LevelWeights {
    /// Which of the parts of the buffers that several levels share is this one's, and of how many.
    pub lane: usize,
    #[allow(missing_docs, reason = "see above")]
    pub lanes: usize,
    /// `[G·H, I]`
    pub weight_ih: BufferId,
    /// `[G·H, P]`
    pub weight_hh: BufferId,
    /// `[G·H]`, if the layer has biases.
    pub bias_ih: Option<BufferId>,
    /// `[G·H]`; zeros in a layer without biases.
    pub bias_hh: BufferId,
    /// `[P, H]`, for cells with a projection.
    pub weight_hr: Option<BufferId>,
    /// `[diagonal, H]`, for cells with such weights.
    pub weight_p: Option<BufferId>,
    /// Packed by [`prepare`](super::prepare): `[P, G·H]`, or `[blocks, P, G, U]` as
    /// [`Weights::packed`] says; one behind another where levels run side by side.
    pub weight_hh_t: BufferId,
    /// `[lanes, G·H]`, likewise: b_hh of the levels that run side by side.
    pub biases: Option<BufferId>,
    /// `[lanes, diagonal, H]`, likewise.
    pub diagonals: Option<BufferId>,
    /// `[H, P]`, likewise.
    pub weight_hr_t: Option<BufferId>,
    /// `[G·H, I]`, likewise: W_ih as 16-bit floats, in that precision, with zeros behind it to a whole word.
    pub weight_ih_half: Option<BufferId>,
    /// `[G·H]`, likewise: b_ih as floats that are rounded to 16-bit floats.
    pub bias_ih_rounded: Option<BufferId>,
}

impl LevelWeights {
    /// What [`prepare`](super::prepare) packs, and from which weights.
    fn packed(&self) -> impl Iterator<Item = (BufferId, BufferId)> {
        let pairs = [
            (Some(self.weight_hh_t), Some(self.weight_hh)),
            (self.biases, Some(self.bias_hh)),
            (self.diagonals, self.weight_p),
            (self.weight_hr_t, self.weight_hr),
            (self.weight_ih_half, Some(self.weight_ih)),
            (self.bias_ih_rounded, self.bias_ih),
        ];
        pairs
            .into_iter()
            .filter_map(|(packed, source)| packed.zip(source))
    }
}

/// The buffers of a layer's weights.
#[derive(Debug, Clone)]
pub struct Weights {
    /// What the kernels read.
    pub precision: Precision,
    /// How the recurrent weights are packed, unless they are only transposed.
    pub packed: Option<Blocks>,
    /// How many levels have their packed weights in the same buffers.
    pub lanes: usize,
    /// For each level.
    pub levels: Vec<LevelWeights>,
    /// The weights that training changes, in the order of [`LayerSpec::weight_shapes`].
    pub trained: Vec<BufferId>,
    /// Every buffer with its name: those, and what is packed of them.
    pub named: Vec<(String, BufferId)>,
}

/// Adds the buffers of a layer's weights, with PyTorch's names. For weights larger than any, which
/// [`LayerSpec::check`] refuses, nothing is chosen, and whatever takes the buffers refuses them too.
pub fn weights(b: &mut Builder, spec: &LayerSpec) -> Weights {
    let (lanes, packed) = match spec.check_weights() {
        Ok(()) => {
            let (strategy, why) = choose(spec, b.target());
            b.chose("steps of the layer", strategy.name(), &why);
            let lanes = weight_lanes(spec, b.target());
            (lanes, packing(spec, b.target(), Way::Forward))
        }
        Err(_) => (1, None),
    };
    let mut named: Vec<(String, BufferId)> = Vec::new();
    let mut stored = |precision, name: String, shape: &[usize]| {
        let id = b.stored(precision, &name, shape, Role::Weight);
        named.push((name, id));
        id
    };
    let (width, hidden, output) = (spec.width(), spec.hidden_size, spec.output_size());
    let shape = packed.map_or(vec![output, width], |blocks| vec![blocks.len()]);
    let mut trained = Vec::new();
    let mut levels: Vec<LevelWeights> = Vec::new();
    let precision = spec.precision;
    let zeros = (!spec.bias).then(|| stored(Precision::F32, "zero_bias".to_owned(), &[width]));
    for level in spec.levels() {
        let mut add = |name, shape: &[usize]| stored(Precision::F32, name, shape);
        let suffix = level.suffix();
        let of_level: Vec<(&str, BufferId)> = spec
            .level_shapes(&level)
            .into_iter()
            .map(|(name, shape)| (name, add(format!("{name}_{suffix}"), &shape)))
            .collect();
        trained.extend(of_level.iter().map(|(_, id)| *id));
        let find = |name: &str| of_level.iter().find(|(n, _)| *n == name).map(|(_, id)| *id);
        // The first two are always there.
        let (weight_ih, weight_hh) = (of_level[0].1, of_level[1].1);
        let weight_hr_t =
            find("weight_hr").map(|_| add(format!("weight_hr_t_{suffix}"), &[hidden, output]));
        let half = precision == Precision::F16;
        let bias_ih_rounded = find("bias_ih").filter(|_| half).map(|_| {
            let name = format!("bias_ih_rounded_{suffix}");
            add(name, &[Blocks::copy(width).len()])
        });
        // Levels side by side have one buffer, which the first of them adds.
        let lane = lane_of(spec, &level, lanes);
        let first = levels.last().filter(|_| lane > 0).copied();
        let all = |shape: &[usize]| match lanes {
            1 => shape.to_vec(),
            lanes => [&[lanes], shape].concat(),
        };
        let beside = |on: bool| on && lanes > 1 && first.is_none();
        let biases =
            beside(spec.bias).then(|| add(format!("bias_hh_lanes_{suffix}"), &all(&[width])));
        let diagonals = beside(!spec.cell.diagonal.is_empty()).then(|| {
            let of_lane = [spec.cell.diagonal.len(), hidden];
            add(format!("weight_p_lanes_{suffix}"), &all(&of_lane))
        });
        let mut add =
            |name: &str, len: &[usize]| stored(precision, format!("{name}_{suffix}"), len);
        levels.push(LevelWeights {
            lane,
            lanes,
            weight_ih,
            weight_hh,
            bias_ih: find("bias_ih"),
            bias_hh: find("bias_hh").or(zeros).unwrap_or(weight_hh),
            weight_hr: find("weight_hr"),
            weight_p: find("weight_p"),
            weight_hh_t: match first {
                Some(first) => first.weight_hh_t,
                None => add("weight_hh_t", &all(&shape)),
            },
            biases: first.map_or(biases, |first| first.biases),
            diagonals: first.map_or(diagonals, |first| first.diagonals),
            weight_hr_t,
            bias_ih_rounded,
            weight_ih_half: half.then(|| {
                let len = Blocks::copy(width.saturating_mul(level.input_size)).len();
                add("weight_ih_half", &[len])
            }),
        });
    }
    for level in &levels {
        for (packed, source) in level.packed() {
            b.packs(packed, source);
        }
    }
    Weights {
        precision,
        packed,
        lanes,
        levels,
        trained,
        named,
    }
}

/// How W_hh is packed for a kernel that runs all steps.
pub(super) fn blocks_forward(spec: &LayerSpec, target: &Target) -> Blocks {
    let [gates, hidden, output] = sizes(spec);
    let block = match target.kind {
        DeviceKind::Cpu => Packing::forward(gates, hidden, output).block,
        _ => UNITS,
    };
    Blocks::forward(sizes(spec), block)
}

/// How it is packed for one that runs them back.
pub(super) fn blocks_back(spec: &LayerSpec, target: &Target) -> Blocks {
    let [gates, hidden, output] = sizes(spec);
    let block = match target.kind {
        DeviceKind::Cpu => Packing::backward(gates, hidden, output).block,
        _ => UNITS,
    };
    Blocks::backward(sizes(spec), block)
}

pub(super) fn sizes(spec: &LayerSpec) -> [usize; 3] {
    [spec.cell.gates, spec.hidden_size, spec.output_size()]
}

/// What a forward pass of one level writes; its rows are those of a segment. Levels that run side by side
/// have the same buffers, in which the gates, h and c of one stand behind those of the one before.
#[derive(Debug, Clone, Copy)]
pub struct LevelStates {
    /// `[rows, S, H]`; in inference of layers that run side by side of so many rows as are projected at once.
    pub gates: BufferId,
    /// `[N + rows, P]`: states after the last step, then those before each. In inference
    /// `[3 N, P]`, the latter by turns.
    pub h: BufferId,
    /// `[N + rows, H]`, for cells that have c. In inference `[N, H]`, changed in place.
    pub c: Option<BufferId>,
    /// `[rows, H]`, for cells whose kernels hand something on. In inference `[N, H]`.
    pub inner: Option<BufferId>,
    /// `[segments, N, P]` and `[segments, N, H]`: the states before each segment, if there are several.
    pub kept: Option<[Option<BufferId>; 2]>,
}

/// The buffers that a forward pass works in.
#[derive(Debug, Clone)]
pub struct States {
    /// `[L·D, N, P]`: the initial h.
    pub h0: BufferId,
    /// `[L·D, N, H]`: the initial c, for cells that have it.
    pub c0: Option<BufferId>,
    /// `[L·D, N, P]`: h after each sequence's last step.
    pub hn: BufferId,
    /// `[L·D, N, H]`: c likewise.
    pub cn: Option<BufferId>,
    /// `[N]`, if the call has lengths.
    pub lengths: Option<BufferId>,
    /// In the order of the input, if the call has resets.
    pub resets: Option<BufferId>,
    /// The tables of the kernels that run all steps or several levels, and the mask that follows from lengths
    /// and resets; where there is neither, one number that is not read.
    pub mask: BufferId,
    /// For each level.
    pub levels: Vec<LevelStates>,
    /// The output of each layer but the last, `[rows, D·P]` in the order of the input; where the layers run
    /// side by side of all, one behind another, in inference of those below the last one chunk.
    pub outputs: Vec<Part>,
}

/// A part of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The buffer.
    pub buffer: BufferId,
    /// Its first element.
    pub start: usize,
}

/// The outputs of the layers of a stack, or their gradients, one behind another in a buffer.
pub(super) fn of_layers(b: &mut Builder, run: &Run, name: &str, role: Role) -> Vec<Part> {
    let (layers, features) = (run.spec().num_layers, run.spec().features());
    let below = run.output_rows_below();
    let rows = (layers - 1) * below + run.rows();
    let buffer = b.float(name, &[rows, features], role);
    let part = |layer| Part {
        buffer,
        start: layer * below * features,
    };
    (0..layers).map(part).collect()
}

/// Adds the buffers of a forward pass.
pub fn states(b: &mut Builder, run: &Run) -> States {
    let spec = run.spec();
    let (batch, hidden, output) = (run.batch(), spec.hidden_size, spec.output_size());
    let all = spec.num_layers * spec.directions();
    let with_c = spec.cell.cell_state;
    let h0 = b.float("h0", &[all, batch, output], Role::State);
    let c0 = with_c.then(|| b.float("c0", &[all, batch, hidden], Role::State));
    let hn = b.float("hn", &[all, batch, output], Role::State);
    let cn = with_c.then(|| b.float("cn", &[all, batch, hidden], Role::State));
    let call = run.call();
    let lengths = call
        .lengths
        .then(|| b.uint("lengths", &[batch], Role::Input));
    let resets = call.resets.then(|| {
        let mut shape = run.shape(call.input, 1);
        shape.pop();
        b.uint("resets", &shape, Role::Input)
    });
    let mask = match (run.table_words(), run.masked()) {
        (0, false) => b.uint("no mask", &[1], Role::Input),
        (words, true) => b.uint("mask", &[words + run.rows()], Role::Saved),
        (words, false) => b.uint("steps", &[words], Role::Input),
    };
    let mut levels: Vec<LevelStates> = Vec::new();
    for level in spec.levels() {
        let beside = levels.last().filter(|_| run.lane(&level, 1) > 0).copied();
        levels.push(level_states(b, run, &level, beside));
    }
    let kept = if run.training() {
        Role::Saved
    } else {
        Role::Scratch
    };
    let shape = [run.rows(), spec.features()];
    let outputs = if run.lag() > 0 {
        of_layers(b, run, "y of layers", kept)
    } else {
        let between = (1..spec.num_layers).map(|k| Part {
            buffer: b.float(&format!("y_l{}", k - 1), &shape, kept),
            start: 0,
        });
        between.collect()
    };
    States {
        h0,
        c0,
        hn,
        cn,
        lengths,
        resets,
        mask,
        levels,
        outputs,
    }
}

/// `beside` is what a level has that this one shares its buffers with.
fn level_states(
    b: &mut Builder,
    run: &Run,
    level: &Level,
    beside: Option<LevelStates>,
) -> LevelStates {
    let spec = run.spec();
    let (batch, hidden, output) = (run.batch(), spec.hidden_size, spec.output_size());
    let suffix = level.suffix();
    let rows = run.most_rows();
    let (role, inner_rows) = if run.training() {
        (Role::Saved, rows)
    } else {
        (Role::Scratch, batch)
    };
    let (h_rows, c_rows) = run.state_rows();
    let mut float = |name: &str, shape: &[usize]| b.float(&format!("{name}_{suffix}"), shape, role);
    let segments = run.segments(level.reverse).len();
    let with_c = spec.cell.cell_state;
    let kept = (segments > 1).then(|| {
        [
            Some(float("kept_h", &[segments, batch, output])),
            with_c.then(|| float("kept_c", &[segments, batch, hidden])),
        ]
    });
    if let Some(beside) = beside {
        return LevelStates { kept, ..beside };
    }
    let lanes = run.lanes();
    let shape = [lanes * run.gate_rows(), run.slots(), hidden];
    let gates = b.stored(
        run.call().activations,
        &format!("gates_{suffix}"),
        &shape,
        role,
    );
    let mut float = |name: &str, shape: &[usize]| b.float(&format!("{name}_{suffix}"), shape, role);
    LevelStates {
        gates,
        h: float("h", &[lanes * h_rows, output]),
        c: with_c.then(|| float("c", &[lanes * c_rows, hidden])),
        inner: spec
            .cell
            .hands_on()
            .then(|| float("inner", &[inner_rows, hidden])),
        kept,
    }
}
