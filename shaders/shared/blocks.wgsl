// A step in registers alone: no workgroup memory, no barrier. For adapters that run shaders
// on a CPU.
//
// An invocation owns a quad of SEQUENCES sequences, a workgroup eight quads: eight lanes of a
// vector register. Such an adapter loads lane by lane, which takes as long as many
// multiplications, so that the speed follows from how many of them there are to a load:
// 4 * SEQUENCES to four weights and SEQUENCES operands. The latter are the same in all lanes;
// with SUBGROUPS each lane loads another one of eight, and they hand them around.
#import quads

const SEQUENCES: u32 = 4u;
// 1: the eight invocations are one subgroup.
const SUBGROUPS: u32 = 0u;
const LANES: u32 = 8u;

#if BACK
@compute @workgroup_size(LANES)
fn backward_blocks(
#else
@compute @workgroup_size(LANES)
fn forward_blocks(
#end
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
#if SUBGROUPS
    @builtin(subgroup_invocation_id) lane: u32,
#end
) {
    begin(group.z);
    let quad = group.x * LANES + local;
    let first = group.y * SEQUENCES;
    if first >= sequence_count() {
        return;
    }
    let terms = term_count();
    let weights = min(quad, quad_count() - 1u) * terms;
#unroll r 0..SEQUENCES
    var sum{r} = vec4f();
#end
    if operand_count() > 0u {
        let last = max(own_operand_count(), 1u) - 1u;
#unroll r 0..SEQUENCES
        let n{r} = min(first + {r}u, last);
        let row{r} = operand_row(n{r});
#end
        var k = 0u;
#if SUBGROUPS
        for (; k + LANES <= terms; k += LANES) {
#unroll r 0..SEQUENCES
            let x{r} = operand(n{r}, row{r}, k + lane);
#end
#unroll q 0..8
            let w{q} = weights_at(weights + k + {q}u);
#unroll r 0..SEQUENCES
            sum{r} += subgroupBroadcast(x{r}, {q}u) * w{q};
#end
#end
        }
#else
        for (; k + 4u <= terms; k += 4u) {
#unroll q 0..4
            let w{q} = weights_at(weights + k + {q}u);
#end
#unroll r 0..SEQUENCES
#unroll q 0..4
            sum{r} += operand(n{r}, row{r}, k + {q}u) * w{q};
#end
#end
        }
#end
        for (; k < terms; k++) {
            let w = weights_at(weights + k);
#unroll r 0..SEQUENCES
            sum{r} += operand(n{r}, row{r}, k) * w;
#end
        }
    }
    if quad < quad_count() {
        // Not written out: what follows the sums is long.
        let sequences = min(sequence_count() - first, SEQUENCES);
        let units = min(unit_count() - quad * UNITS_OF_QUAD, UNITS_OF_QUAD);
        for (var i = 0u; i < sequences * units; i++) {
            let r = i / units;
            var sums = vec4f();
#unroll r 0..SEQUENCES
            sums = select(sums, sum{r}, r == {r}u);
#end
            finish(first + r, quad * UNITS_OF_QUAD + i % units, sums);
        }
    }
}
