// A step of a few sequences on a GPU, where the time is that of reading the weights.
//
// A workgroup owns a quad of SEQUENCES sequences (of all of them, unless there are more than eight).
// Its invocations share the terms: neighbours read neighbouring vec4s of the quad's weights, which
// stand in one piece, and neighbouring operands, which all workgroups read and so stand in caches. Of
// the weights four vec4s of an invocation are on their way at once, none of them twice: 64 bytes for
// each of the 2048 invocations that a multiprocessor of a large GPU holds are 128 KiB, several times
// what its share of the memory's bandwidth times latency asks for. The loads of operands are served by
// the cache nearest to the multiprocessor: 4 * SEQUENCES bytes for each 16 of weights.
//
// The partial sums of the invocations then meet in workgroup memory: each of the first invocations
// adds up sixteen, in a fixed order, and then one for each unit what these have. That is three barriers
// for a quad; sums over subgroups would save two and take 20 * SEQUENCES shuffles of all invocations
// instead, where this takes a store of all and sixteen loads of some.
//
// Measured on an NVIDIA H200, on the device: one step of a stream through two layers of LSTM 768, 38 MB of weights
// which its second cache holds, 19 to 22 us; LSTM 256 in both directions 4.4 us a step, two of which are the
// dispatch.
#import quads

const SEQUENCES: u32 = 1u;
const THREADS: u32 = 64u;
// A vec4 for each sequence and invocation.
const WORKGROUP_FLOATS: u32 = 256u;

// Partial sums that an invocation adds up, and how many such sums a sequence then has.
const ADDED: u32 = 16u;
const LEFT: u32 = (THREADS + ADDED - 1u) / ADDED;

var<workgroup> parts: array<vec4f, WORKGROUP_FLOATS / 4u>;

#if BACK
@compute @workgroup_size(THREADS)
fn backward_few(
#else
@compute @workgroup_size(THREADS)
fn forward_few(
#end
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    begin(group.z);
    let quad = group.x;
    let first = group.y * SEQUENCES;
    if first >= sequence_count() {
        return;
    }
    let terms = term_count();
    let weights = quad * terms;
#unroll r 0..SEQUENCES
    var sum{r} = vec4f();
#end
    if operand_count() > 0u {
        let last = max(own_operand_count(), 1u) - 1u;
#unroll r 0..SEQUENCES
        let n{r} = min(first + {r}u, last);
        let row{r} = operand_row(n{r});
#end
        var k = local;
        for (; k + 3u * THREADS < terms; k += 4u * THREADS) {
#unroll q 0..4
            let w{q} = weights_at(weights + k + {q}u * THREADS);
#end
#unroll q 0..4
#unroll r 0..SEQUENCES
            sum{r} += operand(n{r}, row{r}, k + {q}u * THREADS) * w{q};
#end
#end
        }
        for (; k < terms; k += THREADS) {
            let w = weights_at(weights + k);
#unroll r 0..SEQUENCES
            sum{r} += operand(n{r}, row{r}, k) * w;
#end
        }
    }
#unroll r 0..SEQUENCES
    parts[{r}u * THREADS + local] = sum{r};
#end
    workgroupBarrier();
    // Sequence r's partial sums local % LEFT, that + LEFT, ...
    var added = vec4f();
    if local < LEFT * SEQUENCES {
        let start = local / LEFT * THREADS + local % LEFT;
#unroll i 0..16
        if local % LEFT + {i}u * LEFT < THREADS {
            added += parts[start + {i}u * LEFT];
        }
#end
    }
    workgroupBarrier();
    if local < LEFT * SEQUENCES {
        parts[local] = added;
    }
    workgroupBarrier();
    if local < SEQUENCES * UNITS_OF_QUAD {
        let n = first + local / UNITS_OF_QUAD;
        let unit = quad * UNITS_OF_QUAD + local % UNITS_OF_QUAD;
        var sums = vec4f();
        for (var i = 0u; i < LEFT; i++) {
            sums += parts[local / UNITS_OF_QUAD * LEFT + i];
        }
        if n < sequence_count() && unit < unit_count() {
            finish(n, unit, sums);
        }
    }
}
