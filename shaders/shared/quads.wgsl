// What the forms of a step over quads have in common. A quad is four sums that are taken
// together: those of the gates of a unit, or where there is one gate of four neighbouring
// units; back, those of four neighbouring units.
//
//   forward   sums over P terms: h before the step, with weights packed as [quads, P, 4]
//   back      sums over G * H terms: the gates' gradients in the step after, with weights packed as
//             [quads, G * H, 4]
//   streams   sums over I + 1 + P terms: x, 1 for b_ih, h
//
// So a quad's weights stand in one piece and in the order of the sum, and are loaded four at once.
//
// A cell that imports this declares `weight_quads` and `weight_quads_back`, GATES, QUAD_UNITS,
// `finish_unit`, which takes the sums of a quad through the gates of one of its units, and
// `gradient_of`, the place of a term in a row of `dgates`.

// 1: the step back.
const BACK: u32 = 0u;

// Counts are read from `params`, which is the same for all invocations; of `step` no compiler sees that.
// With BESIDE they are the most of any lane, and `own` ones those of the lane at hand.
#if BACK
const UNITS_OF_QUAD: u32 = 4u;

fn unit_count() -> u32 {
    return params.output;
}

fn term_count() -> u32 {
    return GATES * params.hidden;
}

// How many sequences there are to be finished, and how many of them have operands.
fn sequence_count() -> u32 {
    return params.count;
}

fn operand_count() -> u32 {
    return min(params.next_count, params.count);
}

fn own_operand_count() -> u32 {
    return min(step.next_count, step.count);
}

fn operand_row(n: u32) -> u32 {
    return step.dgates_next + n * step.dgates_row;
}

// A term of sequence n, whose row starts at `row`.
fn operand(n: u32, row: u32, term: u32) -> f32 {
    return dgates[row + gradient_of(term)];
}

fn weights_at(at: u32) -> vec4f {
    return four_weights(weight_quads_back[weights_start() / 4u + at]);
}

fn finish(n: u32, unit: u32, sums: vec4f) {
    store_backward(n, unit, select(0.0, sums[unit % 4u], n < step.next_count));
}
#else
const UNITS_OF_QUAD: u32 = QUAD_UNITS;

fn unit_count() -> u32 {
    return params.hidden;
}

#if STREAM
fn term_count() -> u32 {
    return params.input + 1u + params.output;
}

fn sequence_count() -> u32 {
    return min(mask[params.mask_start], params.count);
}

fn operand(n: u32, row: u32, term: u32) -> f32 {
    let input = params.input;
    if term < input {
        return f32(gates[n * input + term]);
    }
    if term == input {
        return 1.0;
    }
    return h[row + term - input - 1u];
}
#else
fn term_count() -> u32 {
    return params.output;
}

fn sequence_count() -> u32 {
    return params.count;
}

fn operand(n: u32, row: u32, term: u32) -> f32 {
    return h[row + term];
}
#end

fn operand_count() -> u32 {
    return sequence_count();
}

fn own_operand_count() -> u32 {
    return row_count();
}

fn operand_row(n: u32) -> u32 {
    return h_before(n);
}

fn weights_at(at: u32) -> vec4f {
    return four_weights(weight_quads[weights_start() / 4u + at]);
}

fn finish(n: u32, unit: u32, sums: vec4f) {
    finish_unit(n, unit, sums);
}
#end

fn quad_count() -> u32 {
    return (unit_count() + UNITS_OF_QUAD - 1u) / UNITS_OF_QUAD;
}
