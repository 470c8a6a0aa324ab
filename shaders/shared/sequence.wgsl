// What the kernels that run all steps of a level have in common.
//
// A workgroup of THREADS invocations owns TILE sequences of a lane from their first step to their last; a
// sequence needs none of another. In every step
//   1. an invocation computes some of the G x H sums of every sequence, over H terms each: of h before
//      the step with the weights of a gate's unit, or back of a gate's gradients in the step after
//      with those of the gate for a unit;
//   2. after a barrier, an invocation takes the sums of a unit of a sequence through the gates, always
//      of the same ones, so that what a unit keeps for itself (c, h for the update gate) passes through
//      storage without a barrier, and leaves the terms of the next step in workgroup memory.
//
// With KEPT_TERMS an invocation keeps the weights of its KEPT_ROWS sums in registers: variables with
// names of their own, since an array that is indexed at run time would be spilled; with HALF two to a
// register. A step then reads
// from storage only what belongs to it. Without, the weights are read in every step.
//
// Weights are packed as [blocks, H, G, UNITS], back as [blocks, G, H, UNITS]: neighbouring invocations
// read neighbouring words.
//
// A cell that imports this declares them as `weight_blocks` and `weight_blocks_back`.
#import step
#import half

const THREADS: u32 = 64u;
const TILE: u32 = 1u;
// H; its size makes addresses in workgroup memory constants.
const HIDDEN: u32 = 1u;
// Units of a block of weights.
const UNITS: u32 = 16u;
// Vectors of four weights that are kept of a row, and rows; or 0.
const KEPT_TERMS: u32 = 0u;
const KEPT_ROWS: u32 = 0u;
// The terms of TILE sequences, then the sums.
const WORKGROUP_FLOATS: u32 = 1u;

// From one row of terms to the next.
const TERMS_ROW: u32 = (HIDDEN + 3u) / 4u * 4u;
// H with the last block filled.
const PADDED: u32 = (HIDDEN + UNITS - 1u) / UNITS * UNITS;

var<workgroup> memory: array<f32, WORKGROUP_FLOATS>;

// How many of the sequences from `first` on are in a step.
fn rows_of(first: u32, count: u32) -> u32 {
    return min(max(count, first) - first, TILE);
}

// The first weight of a sum of a cell with G gates; from one term to the next are G * UNITS.
fn weights_of(row: u32, gates: u32) -> u32 {
    let width = gates * UNITS;
    return weights_start() + row / width * HIDDEN * width + row % width;
}

// The first weight of a sum back; from one term to the next are UNITS.
fn weights_back(row: u32) -> u32 {
    return weights_start() + row / UNITS * HIDDEN * UNITS + row % UNITS;
}

fn block_weight(at: u32) -> f32 {
    return one_weight(weight_blocks[weight_place(at)], at);
}

fn block_weight_back(at: u32) -> f32 {
    return one_weight(weight_blocks_back[weight_place(at)], at);
}

// Four weights with weight `at` as the i-th, which was 0.
fn with_block_weight(four: FourWeights, i: u32, at: u32) -> FourWeights {
    return with_weight(four, i, weight_blocks[weight_place(at)], at);
}

fn with_block_weight_back(four: FourWeights, i: u32, at: u32) -> FourWeights {
    return with_weight(four, i, weight_blocks_back[weight_place(at)], at);
}

// The place of a unit's sum of a gate among those of a sequence.
fn sum_of(gate: u32, gates: u32, unit: u32) -> u32 {
    return (unit / UNITS * gates + gate) * UNITS + unit % UNITS;
}

// Four terms.
fn terms_at(at: u32) -> vec4f {
    return vec4f(memory[at], memory[at + 1u], memory[at + 2u], memory[at + 3u]);
}

fn sum_up(v: vec4f) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}
