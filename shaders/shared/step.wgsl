// What the step kernels of all cells have in common: their parameters, where the rows of a
// sequence stand, masks, streams, and how a step hands on its state.
//
// A workgroup owns 64 units of four sequences; an invocation owns one unit with all its
// gates, for all four, so that a weight is loaded once. Where fewer sequences are left, the
// last one is computed again and not stored. Nothing is shared within the workgroup.
//
// A shader that imports this declares `h` and `y` (forward) and `dstate` and `dy` (backward);
// see store_state and state_gradient. Its entry points begin with `step = params;`, or with
// `begin(group.z)` where several levels may run side by side.
//
// Lanes. Levels of the same size that need nothing of each other in a step, such as the two directions
// of a layer, or the layers of a stack at different steps, may have their values in the same buffers,
// one behind another: each is a lane. With BESIDE a dispatch runs a step of several of them, as many
// workgroups in z; what of a step is a lane's own then stands in a table in `mask`. The parameters are
// those of the first lane, but for the counts: they are the largest of any lane.

const WORKGROUP: u32 = 64u;
const ROWS: u32 = 4u;

// 1: the forward step keeps what the backward step needs.
const SAVE: u32 = 1u;
// 1: the mask says which steps lie past a sequence's length, and which start from zeros.
const MASKED: u32 = 0u;
// 1: the rows are streams, which `mask` lists, and `gates` holds their inputs.
const STREAM: u32 = 0u;
// 1: levels run side by side.
const BESIDE: u32 = 0u;

// Starts and distances count elements.
struct Step {
    // alpha and beta of the cell's activations, then its bounds; behind each number what double
    // precision has beyond it.
    activation_0: vec4f,
    activation_1: vec4f,
    activation_2: vec4f,
    clip: vec2f,
    cell_clip: vec2f,
    // Sequences that have this step; they are the first ones of the batch.
    count: u32,
    hidden: u32,
    // Units of h: the projection's, or hidden.
    output: u32,
    // How many of the sequences go on to another step in the same buffers.
    next_count: u32,
    // This step's row of the first sequence, and from one sequence to the next.
    gates_start: u32,
    gates_row: u32,
    dgates_start: u32,
    dgates_row: u32,
    // The next step's rows in `dgates`.
    dgates_next: u32,
    // The states before the step, and after it where the sequence goes on; where it does not
    // they go to the front of the lane (dense).
    h_from: u32,
    h_next: u32,
    h_row: u32,
    c_from: u32,
    c_next: u32,
    c_row: u32,
    // The output, or its gradient.
    y_start: u32,
    y_row: u32,
    // The mask of this step and of the next.
    mask_start: u32,
    mask_next: u32,
    mask_row: u32,
    // What passes from one kernel of a step to another: rows of hidden units, and rows of
    // output units.
    inner_start: u32,
    inner_row: u32,
    outer_start: u32,
    outer_row: u32,
    // Where the gradients of c start in the lane's part of `dstate`.
    dc_start: u32,
    // Streams: how many there are, and the size of an input.
    streams: u32,
    input: u32,
    // Kernels that run all steps, or several lanes: where their table stands in `mask`; and how many
    // steps they run.
    table: u32,
    steps: u32,
    // The lane, and the distances to the next in `mask`, `h`, `c`, `dstate`, the recurrent weights,
    // `bias_hh` and `weight_p`.
    lane: u32,
    lane_table: u32,
    lane_h: u32,
    lane_c: u32,
    lane_dstate: u32,
    lane_weights: u32,
    lane_bias: u32,
    lane_diagonal: u32,
    // How many lanes run.
    lanes: u32,
}

@group(0) @binding(0) var<uniform> params: Step;
// The parameters of the step at hand.
var<private> step: Step;
// What `store_state` handed on last.
var<private> handed: f32;

// A mask's row: 1 the step lies past the sequence's length, 2 the state is zeroed before the
// step. Or with STREAM: how many streams, then for each 2 * its number + which of the two
// halves of `h` has its state.
@group(0) @binding(1) var<storage, read> mask: array<u32>;

// What differs from step to step.
struct Moment {
    count: u32,
    next_count: u32,
    gates_start: u32,
    dgates_start: u32,
    dgates_next: u32,
    h_from: u32,
    h_next: u32,
    c_from: u32,
    c_next: u32,
    y_start: u32,
    mask_start: u32,
    mask_next: u32,
}

// Entry `nth` of the lane's table.
fn moment_at(nth: u32) -> Moment {
    let at = step.table + nth * 12u;
    return Moment(
        mask[at],
        mask[at + 1u],
        mask[at + 2u],
        mask[at + 3u],
        mask[at + 4u],
        mask[at + 5u],
        mask[at + 6u],
        mask[at + 7u],
        mask[at + 8u],
        mask[at + 9u],
        mask[at + 10u],
        mask[at + 11u],
    );
}

// Makes it the moment of the step at hand.
fn enter(moment: Moment) {
    step.count = moment.count;
    step.next_count = moment.next_count;
    step.gates_start = moment.gates_start;
    step.dgates_start = moment.dgates_start;
    step.dgates_next = moment.dgates_next;
    step.h_from = moment.h_from;
    step.h_next = moment.h_next;
    step.c_from = moment.c_from;
    step.c_next = moment.c_next;
    step.y_start = moment.y_start;
    step.mask_start = moment.mask_start;
    step.mask_next = moment.mask_next;
}

// Takes the parameters of the lane that is `lane` behind the first.
fn begin_lane(lane: u32) {
    step = params;
    if BESIDE != 0u {
        step.lane += lane;
        step.table += lane * step.lane_table;
    }
}

// And those of its only step.
fn begin(lane: u32) {
    begin_lane(lane);
    if BESIDE != 0u {
        enter(moment_at(0u));
    }
}

// Where the lane's part starts.
fn dstate_start() -> u32 {
    return step.lane * step.lane_dstate;
}

fn weights_start() -> u32 {
    return step.lane * step.lane_weights;
}

fn bias_start() -> u32 {
    return step.lane * step.lane_bias;
}

fn row_count() -> u32 {
    if STREAM != 0u {
        return min(mask[step.mask_start], step.count);
    }
    return step.count;
}

// The four sequences from `first` on.
fn four_rows(first: u32) -> vec4u {
    return min(vec4u(first, first + 1u, first + 2u, first + 3u), vec4u(row_count() - 1u));
}

// False where the step lies past the sequence's length.
fn live(n: u32) -> bool {
    if MASKED != 0u {
        return (mask[step.mask_start + n * step.mask_row] & 1u) == 0u;
    }
    return true;
}

// True where the state is zeroed before this step.
fn reset(n: u32) -> bool {
    if MASKED != 0u {
        return (mask[step.mask_start + n * step.mask_row] & 2u) != 0u;
    }
    return false;
}

// True where the state is zeroed before the next step.
fn reset_next(n: u32) -> bool {
    if MASKED != 0u {
        if n < step.next_count {
            return (mask[step.mask_next + n * step.mask_row] & 2u) != 0u;
        }
    }
    return false;
}

// Where a sequence's h before the step stands. Resets were done when it was written.
fn h_before(n: u32) -> u32 {
    if STREAM != 0u {
        let stream = mask[step.mask_start + n + 1u];
        return ((stream & 1u) * step.streams + (stream >> 1u)) * step.output;
    }
    return step.h_from + n * step.h_row;
}

// Where h after the step goes.
fn h_after(n: u32) -> u32 {
    if STREAM != 0u {
        let stream = mask[step.mask_start + n + 1u];
        return ((1u - (stream & 1u)) * step.streams + (stream >> 1u)) * step.output;
    }
    if n < step.next_count {
        return step.h_next + n * step.h_row;
    }
    return step.lane * step.lane_h + n * step.output;
}

// Where c before the step stands; a reset is still to be done.
fn c_before(n: u32) -> u32 {
    if STREAM != 0u {
        return (mask[step.mask_start + n + 1u] >> 1u) * step.hidden;
    }
    return step.c_from + n * step.c_row;
}

fn c_after(n: u32) -> u32 {
    if STREAM != 0u {
        return (mask[step.mask_start + n + 1u] >> 1u) * step.hidden;
    }
    if n < step.next_count {
        return step.c_next + n * step.c_row;
    }
    return step.lane * step.lane_c + n * step.hidden;
}

// Four sequences' h before the step.
fn four_h(first: u32) -> vec4u {
    let n = four_rows(first);
    return vec4u(h_before(n.x), h_before(n.y), h_before(n.z), h_before(n.w));
}

// Streams: four inputs.
fn four_inputs(first: u32) -> vec4u {
    return four_rows(first) * step.input;
}

// The first of the recurrent weights: behind those of the inputs and their biases for streams.
fn recurrent_start(gates: u32) -> u32 {
    if STREAM != 0u {
        return (step.input + 1u) * gates * step.hidden;
    }
    return 0u;
}

// Hands on h of a unit to the next step and to the output.
fn store_state(n: u32, unit: u32, value: f32) {
    handed = select(value, 0.0, reset_next(n));
    h[h_after(n) + unit] = handed;
    y[step.y_start + n * step.y_row + unit] = select(0.0, value, live(n));
}

// Past its length a sequence keeps its state and puts out zeros.
fn hold_state(n: u32, unit: u32) {
    store_state(n, unit, h[h_before(n) + unit]);
}

// The gradient of h after this step: what comes through the gates of the next step
// (`product`), past them, and from the output.
fn state_gradient(n: u32, unit: u32, product: f32) -> f32 {
    return sum_gradients(n, past_gates(n, unit), output_gradient(n, unit), product);
}

fn past_gates(n: u32, unit: u32) -> f32 {
    return dstate[dstate_start() + n * step.output + unit];
}

fn output_gradient(n: u32, unit: u32) -> f32 {
    return dy[step.y_start + n * step.y_row + unit];
}

fn sum_gradients(n: u32, past: f32, of_output: f32, product: f32) -> f32 {
    var dh = past + product;
    if reset_next(n) {
        dh = 0.0;
    }
    if live(n) {
        dh += of_output;
    }
    return dh;
}

// Four sequences' gates in the next step.
fn four_next(first: u32) -> vec4u {
    let n = vec4u(first, first + 1u, first + 2u, first + 3u);
    return step.dgates_next + min(n, vec4u(step.next_count - 1u)) * step.dgates_row;
}

// `product`, and 0 for those of the four sequences that have no next step.
fn with_next(first: u32, product: vec4f) -> vec4f {
    let n = vec4u(first, first + 1u, first + 2u, first + 3u);
    return select(vec4f(), product, n < vec4u(step.next_count));
}
