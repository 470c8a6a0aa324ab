// What the kernels that run all steps of a level have in common.
//
// A workgroup of THREADS invocations owns TILE sequences from their first step to their last; a
// sequence needs none of another. In every step
//   1. each invocation computes some of the TILE x G x H sums over K = H terms: of h before the step
//      with the weights of a gate's unit, or back of a gate's gradients in the step after with those
//      of the gate for a unit;
//   2. after a barrier, an invocation takes the sums of a unit of a sequence through the gates, always
//      of the same ones, so that what a unit keeps for itself (c, h for the update gate) passes through
//      storage without a barrier, and leaves the terms of the next step in workgroup memory.
// Weights are packed as [blocks, K, G, UNITS]: neighbouring invocations read neighbouring words.
#import step

const THREADS: u32 = 64u;
const TILE: u32 = 1u;
// Units of a block of weights.
const UNITS: u32 = 16u;
// The terms of TILE sequences, then the sums.
const WORKGROUP_FLOATS: u32 = 1u;

var<workgroup> memory: array<f32, WORKGROUP_FLOATS>;

// The values of the step that is at hand; see Step.
fn enter(nth: u32) {
    let at = params.table + nth * 12u;
    step.count = mask[at];
    step.next_count = mask[at + 1u];
    step.gates_start = mask[at + 2u];
    step.dgates_start = mask[at + 3u];
    step.dgates_next = mask[at + 4u];
    step.h_from = mask[at + 5u];
    step.h_next = mask[at + 6u];
    step.c_from = mask[at + 7u];
    step.c_next = mask[at + 8u];
    step.y_start = mask[at + 9u];
    step.mask_start = mask[at + 10u];
    step.mask_next = mask[at + 11u];
}

// How many of the sequences from `first` on are in a step.
fn rows_of(first: u32, count: u32) -> u32 {
    return min(max(count, first) - first, TILE);
}

// From one gate's terms of a sequence to the next.
fn terms_row() -> u32 {
    return (params.hidden + 3u) & ~3u;
}

// Where the sums of a sequence start; `operands` rows of terms stand in front for each.
fn sums_start(n: u32, operands: u32, gates: u32) -> u32 {
    return TILE * operands * terms_row() + n * gates * padded_units();
}

fn padded_units() -> u32 {
    return (params.hidden + UNITS - 1u) / UNITS * UNITS;
}

// The place of a unit's sum of a gate among those of a sequence.
fn sum_of(gate: u32, gates: u32, unit: u32) -> u32 {
    return (unit / UNITS * gates + gate) * UNITS + unit % UNITS;
}
