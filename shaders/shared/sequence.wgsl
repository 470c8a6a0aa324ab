// All steps of a level in one dispatch.
//
// A workgroup owns TILE sequences of a lane from their first step to their last; a sequence needs none of
// another. As in `quads` a quad is four sums that are taken together: those of the gates of a unit, or where
// there is one gate of four neighbouring units; back, those of four neighbouring units. The sums run over
// H terms (h before the step), back over G * H (the gates' gradients in the step after).
//
// An invocation sums a part of the terms, CHUNK of them, of QUADS quads: COLUMNS invocations side by side have
// all quads, and PARTS such rows of invocations all terms. In every step
//   1. it multiplies its weights with its terms, which the invocations beside it read too, so that workgroup
//      memory serves them all with one access, and each access 4 * QUADS multiplications; and leaves the sums
//      of its part;
//   2. after a barrier, an invocation takes the sums of a unit of a sequence through the gates, always of the
//      same ones, so that what a unit keeps for itself (c, h for the update gate) stays in a register, and
//      leaves the terms of the next step in workgroup memory.
// That is two barriers. Where there is one part, with ALONE, an invocation takes its own sums through the gates,
// and with a second place for the terms of the next step one barrier is enough. Back, a quad is then a unit, whose
// sums are those over the gradients of each gate, and a term has the gradients of all gates of a unit.
//
// What the gates need of storage is loaded a step ahead, and where it stands two steps: a load takes about as long
// as a step of a small layer. Nothing is computed with it before, which would be to wait for it. Where the text has one
// step, to copy it to the variables of the next is to wait for it as well. So the text of tiny layers with one sequence to
// a workgroup, where registers are many, has four steps, each with variables of its own in a ring, in which nothing is
// copied: what the gates need is loaded two steps ahead, and where it stands three. Four steps of larger layers are too
// long a text: they were up to 1.5 times slower so.
//
// On a GPU the first KEPT of its terms' weights stay in registers: variables with names of their own, since an array that
// is indexed at run time would be spilled; with HALF two to a register. A multiprocessor of a large GPU has
// 65,536 registers, so that 256 invocations have 255 each. Those of the next NEAR terms are in workgroup memory,
// and what is left is read in every step, from the cache nearest to the multiprocessor as long as it is little.
//
// On an adapter that runs shaders on a CPU, which loads lane by lane, the weights of a quad stay in an array of the
// invocation's own, a vector load away, and the SUBGROUP_SIZE invocations of a subgroup load a term each, which they hand
// around.
//
// Measured on an NVIDIA H200, microseconds a step of one sequence: LSTM 16 0.86 with two barriers, 0.65 with one, 0.46
// with loads that far ahead; LSTM 128 2.65 with every weight in 512 invocations' registers (which spills) and terms
// read for one sum each, 1.88 with 24 of 32 terms' weights in 256 invocations' registers and the others read in
// every step, 1.52 with four of these eight in workgroup memory, 1.19 with 28 in registers, 0.92 with loads
// ahead. cuDNN takes 0.29 to 0.41 and 1.7 to 2.0. With RING steps in the text LSTM 16 takes 0.35 and GRU 24 0.39 instead
// of 0.51. Back, LSTM 24 took 1.01 in parts of the terms, and takes 0.41 with ALONE; LSTM 32 0.90 and 0.40, GRU 24
// 0.97 and 0.33. LSTM 16 with terms handed around by a subgroup instead of workgroup memory took 0.46.
//
// Weights are packed as [blocks, H, G, UNITS], back as [blocks, G, H, UNITS].
//
// A cell that imports this declares what `quads` asks for, the weights as `weight_blocks` and `weight_blocks_back`, and
//   forward   `Input` and `input_of`, what a unit needs of storage; `Own`, `own_of` and `own_after`, what it keeps for
//             itself; `bias_of`; `finish_forward`
//   back      `Saved` and `saved_of`; `OwnBack`, `own_back_of` and `own_after_back`; `handed_back`, the gradients of
//             the gates; `finish_backward`

// 1: the steps back.
const BACK: u32 = 0u;
const THREADS: u32 = 64u;
const TILE: u32 = 1u;
// H; its size makes addresses in workgroup memory constants.
const HIDDEN: u32 = 1u;
// Units of a block of weights.
const UNITS: u32 = 16u;
// What an invocation sums, and how invocations share the sums.
const QUADS: u32 = 1u;
const COLUMNS: u32 = 1u;
const PARTS: u32 = 1u;
const ALONE: u32 = 0u;
// Places for terms: two with ALONE.
const SIDES: u32 = 1u;
const CHUNK: u32 = 4u;
// Steps in the text; and the same where they are four, else 0.
const STEPS: u32 = 1u;
const RING: u32 = 0u;
// Multiples of four, like CHUNK.
const KEPT: u32 = 0u;
const NEAR: u32 = 0u;
// Invocations of a subgroup where they hand terms around, else 0; then KEPT is SUBGROUP_SIZE times LINES.
const SUBGROUP_SIZE: u32 = 0u;
const LINES: u32 = 0u;
// Units of sequences that an invocation takes through the gates.
const OWNED: u32 = 1u;
// What the terms, the sums of the parts and the weights in workgroup memory take; for the plan alone.
const WORKGROUP_FLOATS: u32 = 8u;

#if BACK
#if ALONE
alias Term = vec4f;
const TERMS: u32 = HIDDEN;
const UNITS_OF_QUAD: u32 = 1u;
const SUMS: u32 = GATES;
#else
alias Term = f32;
const TERMS: u32 = GATES * HIDDEN;
const UNITS_OF_QUAD: u32 = 4u;
const SUMS: u32 = 4u;
#end
#else
alias Term = f32;
const TERMS: u32 = HIDDEN;
const UNITS_OF_QUAD: u32 = QUAD_UNITS;
const SUMS: u32 = GATES * QUAD_UNITS;
#end
const ALL_QUADS: u32 = (HIDDEN + UNITS_OF_QUAD - 1u) / UNITS_OF_QUAD;

// Arrays of arrays: a number that is known needs no check at run time, and that of a part is checked once.
// Behind the last term are zeros, as in all at first.
var<workgroup> terms: array<array<array<array<Term, CHUNK>, PARTS>, TILE>, SIDES>;
#if ALONE
#else
var<workgroup> sums: array<array<array<vec4f, ALL_QUADS>, TILE>, PARTS>;
#end
#if NEAR
var<workgroup> near: array<array<array<FourWeights, THREADS>, QUADS>, NEAR>;
#end

// The weights of a quad for a term; 0 behind the last of either.
fn quad_weights(quad: u32, term: u32) -> FourWeights {
    var w = FourWeights();
    if quad < ALL_QUADS && term < TERMS {
#unroll i 0..4
        if {i}u < SUMS {
            let unit = quad * UNITS_OF_QUAD + {i}u % UNITS_OF_QUAD;
            let gate = {i}u / UNITS_OF_QUAD;
#if BACK
            // Without ALONE there is no other gate than the first, and a term has its own.
            let row = unit / UNITS * GATES * HIDDEN + gate * HIDDEN + term;
#else
            let row = (unit / UNITS * HIDDEN + term) * GATES + gate;
#end
            let at = weights_start() + row * UNITS + unit % UNITS;
#if BACK
            w = with_weight(w, {i}u, weight_blocks_back[weight_place(at)], at);
#else
            w = with_weight(w, {i}u, weight_blocks[weight_place(at)], at);
#end
        }
#end
    }
    return w;
}

// How many of the sequences from `first` on are in a step.
fn rows_of(first: u32, count: u32) -> u32 {
    return min(max(count, first) - first, TILE);
}

#if ALONE
#else
// The sums of a unit of a sequence over all parts.
fn sums_of(n: u32, unit: u32) -> vec4f {
    let quad = unit / UNITS_OF_QUAD;
    var all = vec4f();
#unroll p 0..PARTS
    all += sums[{p}][n][quad];
#end
    return all;
}
#end

// A term of the nth step.
fn set_term(nth: u32, n: u32, term: u32, value: Term) {
    terms[nth % SIDES][n][term / CHUNK][term % CHUNK] = value;
}

// What the gates of a unit need of storage.
#if BACK
alias Given = Saved;

fn given_of(n: u32, j: u32) -> Given {
    return saved_of(n, j);
}
#else
alias Given = Input;

fn given_of(n: u32, j: u32) -> Given {
    return input_of(n, j);
}
#end

// That of the nth step in the order that they are run in.
fn nth_moment(nth: u32) -> Moment {
    let run = min(nth, params.steps - 1u);
#if BACK
    return moment_at(params.steps - 1u - run);
#else
    return moment_at(run);
#end
}

#if BACK
@compute @workgroup_size(THREADS)
fn sequence_backward(
#else
@compute @workgroup_size(THREADS)
fn sequence_forward(
#end
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
#if SUBGROUP_SIZE
    // Which invocations a subgroup has is not defined; each has SUBGROUP_SIZE of them.
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) place: u32,
#else
    @builtin(local_invocation_index) local: u32,
#end
) {
#if SUBGROUP_SIZE
    let local = subgroup * SUBGROUP_SIZE + place;
#end
    begin_lane(group.z);
    // Folded, since there may be more than a dimension has.
    let first = (group.y * groups.x + group.x) * TILE;
    let part = local / COLUMNS;
    let start = part * CHUNK;
#unroll q 0..QUADS
    let quad{q} = local % COLUMNS + {q}u * COLUMNS;
#if SUBGROUP_SIZE
    var w{q}: array<FourWeights, KEPT>;
    for (var k = 0u; k < KEPT; k++) {
        w{q}[k] = quad_weights(quad{q}, start + k);
    }
#else
#unroll k 0..KEPT
    let w{q}_{k} = quad_weights(quad{q}, start + {k}u);
#end
#end
#unroll k 0..NEAR
    near[{k}][{q}][local] = quad_weights(quad{q}, start + KEPT + {k}u);
#end
#end
#if RING
    var moments: array<Moment, RING>;
#unroll r 0..3
    moments[{r}] = nth_moment({r}u);
#end
    enter(moments[0]);
#else
    var now = nth_moment(0u);
    var then = nth_moment(1u);
    enter(now);
#end
#if BACK
    // The gradients of the step after the last one, where there is one.
    let after = rows_of(first, step.next_count);
    for (var i = local; i < after * TERMS; i += THREADS) {
        let source = step.dgates_next + (first + i / TERMS) * step.dgates_row;
#if ALONE
        var term = vec4f();
#unroll g 0..GATES
        term[{g}] = dgates[source + gradient_of({g}u * HIDDEN + i % TERMS)];
#end
        set_term(0u, i / TERMS, i % TERMS, term);
#else
        set_term(0u, i / TERMS, i % TERMS, dgates[source + gradient_of(i % TERMS)]);
#end
    }
#end
#unroll m 0..OWNED
#if ALONE
    let n{m} = {m}u;
    let j{m} = local;
#else
    let n{m} = (local + {m}u * THREADS) / HIDDEN;
    let j{m} = (local + {m}u * THREADS) % HIDDEN;
#end
#if BACK
    var own{m} = OwnBack();
#else
    let bias{m} = bias_of(j{m});
    var own{m} = Own();
#end
#if RING
    var coming{m}: array<Given, RING>;
#else
    var given{m} = Given();
    if n{m} < rows_of(first, step.count) {
        given{m} = given_of(first + n{m}, j{m});
    }
#end
#end
#if RING
#unroll r 0..2
    enter(moments[{r}]);
#unroll m 0..OWNED
    if n{m} < rows_of(first, step.count) {
        coming{m}[{r}] = given_of(first + n{m}, j{m});
    }
#end
#end
    enter(moments[0]);
#end
    var held = 0u;
#if RING
    for (var round = 0u; round < params.steps; round += STEPS) {
#else
    for (var nth = 0u; nth < params.steps; nth++) {
#end
#unroll r 0..STEPS
#if RING
        if round + {r}u < params.steps {
        let nth = round + {r}u;
        moments[({r}u + 3u) % RING] = nth_moment(nth + 3u);
        enter(moments[{r}]);
#else
        {
#end
        let rows = rows_of(first, step.count);
        // Sequences that begin here.
#unroll m 0..OWNED
        if n{m} >= held && n{m} < rows {
#if BACK
            own{m} = own_back_of(first + n{m}, j{m});
#else
            own{m} = own_of(first + n{m}, j{m});
            set_term(nth, n{m}, j{m}, h[h_before(first + n{m}) + j{m}]);
#end
        }
#end
        held = rows;
        workgroupBarrier();

        let side = nth % SIDES;
#if RING
        // What the gates of the step after the next need is on its way from here.
        enter(moments[({r}u + 2u) % RING]);
#unroll m 0..OWNED
        if n{m} < rows_of(first, step.count) {
            coming{m}[({r}u + 2u) % RING] = given_of(first + n{m}, j{m});
        }
#end
        enter(moments[{r}]);
#else
        let later = nth_moment(nth + 2u);
#end
#unroll q 0..QUADS
#unroll n 0..TILE
        var sum{q}_{n} = vec4f();
#end
#end
#if SUBGROUP_SIZE
#unroll l 0..LINES
#unroll n 0..TILE
        let line{n}_{l} = terms[side][{n}][part][{l}u * SUBGROUP_SIZE + place];
#end
#unroll i 0..SUBGROUP_SIZE
#unroll n 0..TILE
        let x{n}_{l}_{i} = subgroupBroadcast(line{n}_{l}, {i}u);
#unroll q 0..QUADS
        sum{q}_{n} += x{n}_{l}_{i} * four_weights(w{q}[{l}u * SUBGROUP_SIZE + {i}u]);
#end
#end
#end
#end
#else
#unroll k 0..KEPT
#unroll n 0..TILE
        let x{n}_{k} = terms[side][{n}][part][{k}];
#unroll q 0..QUADS
        sum{q}_{n} += x{n}_{k} * four_weights(w{q}_{k});
#end
#end
#end
#end
#unroll k 0..NEAR
#unroll n 0..TILE
        let xn{n}_{k} = terms[side][{n}][part][KEPT + {k}u];
#unroll q 0..QUADS
        sum{q}_{n} += xn{n}_{k} * four_weights(near[{k}][{q}][local]);
#end
#end
#end
        for (var k = KEPT + NEAR; k < CHUNK; k += 4u) {
#unroll q 0..QUADS
#unroll i 0..4
            let v{q}_{i} = quad_weights(quad{q}, start + k + {i}u);
#end
#end
#unroll i 0..4
#unroll n 0..TILE
            let x{n}_{i} = terms[side][{n}][part][k + {i}u];
#unroll q 0..QUADS
            sum{q}_{n} += x{n}_{i} * four_weights(v{q}_{i});
#end
#end
#end
        }
#if RING
#else
        // What the gates of the next step need is on its way from here.
        enter(then);
#unroll m 0..OWNED
        var next{m} = given{m};
        if n{m} < rows_of(first, step.count) {
            next{m} = given_of(first + n{m}, j{m});
        }
#end
        enter(now);
#end
#if ALONE
#else
#unroll q 0..QUADS
        if quad{q} < ALL_QUADS {
#unroll n 0..TILE
            sums[part][{n}][quad{q}] =
                vec4f(sum{q}_{n}.xyz, select(0.0, sum{q}_{n}.w, SUMS > 3u));
#end
        }
#end
        workgroupBarrier();
#end

#unroll m 0..OWNED
        if n{m} < rows {
#if RING
            let given{m} = coming{m}[{r}];
#end
#if ALONE
            let all{m} = vec4f(sum0_{m}.xyz, select(0.0, sum0_{m}.w, SUMS > 3u));
#else
            let all{m} = sums_of(n{m}, j{m});
#end
#if BACK
            // The terms of a sequence that has no next step are still zeros, in both places.
#if ALONE
            let product = all{m}.x + all{m}.y + (all{m}.z + all{m}.w);
            finish_backward(first + n{m}, j{m}, given{m}, own{m}, product);
            set_term(nth + 1u, n{m}, j{m}, handed_back);
#else
            finish_backward(first + n{m}, j{m}, given{m}, own{m}, all{m}[j{m} % 4u]);
#unroll g 0..GATES
            set_term(nth + 1u, n{m}, {g}u * HIDDEN + j{m}, handed_back[{g}]);
#end
#end
            own{m} = own_after_back;
#else
            finish_forward(first + n{m}, j{m}, given{m}, own{m}, all{m} + bias{m});
            own{m} = own_after;
            set_term(nth + 1u, n{m}, j{m}, handed);
#end
        }
#if RING
#else
        given{m} = next{m};
#end
#end
#if RING
#else
        now = then;
        then = later;
        enter(now);
#end
        }
#end
    }
}
