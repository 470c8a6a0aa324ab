// A step of many sequences on a GPU: a tile of sums in registers, their operands in workgroup memory.
//
// A workgroup of 256 invocations owns TILE_QUADS quads of 4 * SEQUENCES sequences, an invocation one of
// the quads of SEQUENCES neighbouring sequences. There are fewer such pairs than invocations, and fewer
// workgroups than would fill a GPU if each had its own: so the workgroup is cut into SLICES, each of
// which takes every SLICES-th term, and their sums meet at the end.
//
// All invocations stage DEPTH terms at a time, weights as they stand and of the operands four
// sequences in a vec4, while the next ones are on their way in registers. Per term an invocation then
// reads a vec4 of weights and SEQUENCES / 4 of operands from workgroup memory and multiplies
// 4 * SEQUENCES times: 16 or 32 multiplications to 2 or 3 loads. Weights are read once for every
// 4 * SEQUENCES sequences. The fewer workgroups there are, the deeper they stage, so that enough is on its
// way at once.
//
// What lies past the last term, quad or sequence is loaded as the last of them, and what is behind the last term is zeroed
// when it is staged: loads under no condition are all on their way at once. The three gates of a GRU are multiplied as
// three.
//
// On an NVIDIA H200 a step of GRU 2816 x 32 took 147 us with four sums of a quad, 111 with three, and 98 with such loads.
// With these LSTM 1024 x 32 back takes 32 instead of 50, LSTM 2048 x 64 113 instead of 133, but back 144 instead
// of 123. Before them, two quads of an invocation, which take less of workgroup memory's time, were slower (LSTM
// 2048 182), and so was a second tile to stage in while the first is multiplied (170).
//
// `place` exchanges the vec4s of a term by its number, so that neighbouring terms, as they are
// written, and all quads of a term, as they are read, stand in different banks.
#import quads

// 4 or 8, and a fourth of it: the vec4s of operands of a term that an invocation reads.
const SEQUENCES: u32 = 8u;
const FOURS: u32 = 2u;
// 1: the fourth sum of a quad is empty.
const THREE: u32 = 0u;
// 2, 4 or 8
const TILE_QUADS: u32 = 8u;
// 64, 128 or 256
const DEPTH: u32 = 64u;
// The vec4s of weights that an invocation stages, at least one, and of operands.
const STAGED: u32 = 2u;
const OPERANDS: u32 = 2u;
const THREADS: u32 = 256u;
// THREADS / 4 / TILE_QUADS, and DEPTH / SLICES.
const SLICES: u32 = 8u;
const TERMS: u32 = 8u;
// What is staged, or the sums of half of the slices.
const WORKGROUP_FLOATS: u32 = 4096u;

// Sequences of a workgroup, invocations of a slice, and vec4s of weights that are staged.
const ROWS_OF_TILE: u32 = 4u * SEQUENCES;
const SLICE: u32 = 4u * TILE_QUADS;
const WEIGHTS: u32 = DEPTH * TILE_QUADS;
// Sums that a workgroup owns, as vec4s.
const OWNED: u32 = SLICE * SEQUENCES;

var<workgroup> tile: array<vec4f, WORKGROUP_FLOATS / 4u>;

// The sums of a quad.
#if THREE
alias Sums = vec3f;

fn sums_of(four: vec4f) -> Sums {
    return four.xyz;
}

fn four_of(sums: Sums) -> vec4f {
    return vec4f(sums, 0.0);
}
#else
alias Sums = vec4f;

fn sums_of(four: vec4f) -> Sums {
    return four;
}

fn four_of(sums: Sums) -> vec4f {
    return sums;
}
#end

// Where vec4 `at` of the `width` of a term stands.
fn place(term: u32, at: u32, width: u32) -> u32 {
    return term * width + (at ^ (term & (width - 1u)));
}

// The weights of vec4 `i` of those that are staged from a term on.
fn staged_weights(i: u32, start: u32, quad: u32) -> vec4f {
    let term = min(start + i % DEPTH, term_count() - 1u);
    let own = min(quad + i / DEPTH, quad_count() - 1u);
    return weights_at(own * term_count() + term);
}

// The operands of four sequences likewise; where there are none those of the last that has some, for
// sums that nobody asks for.
fn staged_operands(i: u32, start: u32, first: u32) -> vec4f {
    let term = min(start + i % DEPTH, term_count() - 1u);
    let n = min(first + i / DEPTH * 4u + vec4u(0u, 1u, 2u, 3u), vec4u(max(own_operand_count(), 1u) - 1u));
    return vec4f(
        operand(n.x, operand_row(n.x), term),
        operand(n.y, operand_row(n.y), term),
        operand(n.z, operand_row(n.z), term),
        operand(n.w, operand_row(n.w), term),
    );
}

#if BACK
@compute @workgroup_size(THREADS)
fn backward_tile(
#else
@compute @workgroup_size(THREADS)
fn forward_tile(
#end
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    begin(group.z);
    let quad = group.x * TILE_QUADS;
    let first = group.y * ROWS_OF_TILE;
    let own_row = local % 4u;
    let own_quad = local % SLICE / 4u;
    let slice = local / SLICE;
    // Sequences without operands have sums of no terms.
    let terms = select(0u, term_count(), first < operand_count());
#unroll g 0..FOURS
#unroll i 0..4
    var sum{g}{i} = Sums();
#end
#end
#unroll o 0..OPERANDS
    var x{o} = vec4f();
#end
#unroll s 0..STAGED
    var w{s} = vec4f();
#end
    if terms > 0u {
#unroll s 0..STAGED
        w{s} = staged_weights(local + {s}u * THREADS, 0u, quad);
#end
#unroll o 0..OPERANDS
        x{o} = staged_operands(local + {o}u * THREADS, 0u, first);
#end
    }
    // The term that this invocation stages, whose number is the same for all.
    let staged = local % DEPTH;
    for (var start = 0u; start < terms; start += DEPTH) {
        let inside = start + staged < terms;
#unroll s 0..STAGED
        if local + {s}u * THREADS < WEIGHTS {
            tile[place(staged, (local + {s}u * THREADS) / DEPTH, TILE_QUADS)] = select(vec4f(), w{s}, inside);
        }
#end
#unroll o 0..OPERANDS
        tile[WEIGHTS + place(staged, (local + {o}u * THREADS) / DEPTH, SEQUENCES)] = select(vec4f(), x{o}, inside);
#end
        workgroupBarrier();
        if start + DEPTH < terms {
#unroll s 0..STAGED
            w{s} = staged_weights(local + {s}u * THREADS, start + DEPTH, quad);
#end
#unroll o 0..OPERANDS
            x{o} = staged_operands(local + {o}u * THREADS, start + DEPTH, first);
#end
        }
#unroll d 0..TERMS
        {
            let w = sums_of(tile[place({d}u * SLICES + slice, own_quad, TILE_QUADS)]);
#unroll g 0..FOURS
            let v{g} = tile[WEIGHTS + place({d}u * SLICES + slice, own_row * FOURS + {g}u, SEQUENCES)];
#unroll i 0..4
            sum{g}{i} += v{g}[{i}] * w;
#end
#end
        }
#end
        workgroupBarrier();
    }
    // The second half of the slices hands its sums to the first, which then leaves them for all.
    let parts = SLICES / 2u;
    let own = slice % parts * OWNED + local % SLICE;
    if slice >= parts {
#unroll g 0..FOURS
#unroll i 0..4
        tile[own + (4u * {g}u + {i}u) * SLICE] = four_of(sum{g}{i});
#end
#end
    }
    workgroupBarrier();
    if slice < parts {
#unroll g 0..FOURS
#unroll i 0..4
        sum{g}{i} += sums_of(tile[own + (4u * {g}u + {i}u) * SLICE]);
#end
#end
    }
    workgroupBarrier();
    if slice < parts {
#unroll g 0..FOURS
#unroll i 0..4
        tile[own + (4u * {g}u + {i}u) * SLICE] = four_of(sum{g}{i});
#end
#end
    }
    workgroupBarrier();
    let units = TILE_QUADS * UNITS_OF_QUAD;
    for (var i = local; i < ROWS_OF_TILE * units; i += THREADS) {
        let row = i / units;
        let n = first + row;
        let unit = quad * UNITS_OF_QUAD + i % units;
        if n < sequence_count() && unit < unit_count() {
            let at = row % SEQUENCES * SLICE + i % units / UNITS_OF_QUAD * 4u + row / SEQUENCES;
            var sums = vec4f();
            for (var part = 0u; part < parts; part++) {
                sums += tile[part * OWNED + at];
            }
            finish(n, unit, sums);
        }
    }
}
