// A product with FEW <= 8 rows: a matrix of weights, B, is read once for all of them.
// A product with few columns comes as its transpose. What is summed by 64 invocations
// is joined in a fixed order.
//
//   along_k   neighbours along k are neighbours in B: a workgroup of 64 owns four
//             columns, each invocation every 64th four of k
//   across_k  neighbours along the columns are: a workgroup of 8 x 8 owns 32 columns,
//             four for each invocation, and an eighth of k
//
// SUBGROUPS stands before this text: 1 joins the sums of along_k in subgroups first.
#import gemm

const FEW: u32 = 1u;
// 4 * 64 * FEW
const WORKGROUP_FLOATS: u32 = 256u;

// The sums of 64 invocations for each row.
var<workgroup> sums: array<vec4f, WORKGROUP_FLOATS / 4u>;

@compute @workgroup_size(64)
fn along_k(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
#if SUBGROUPS
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
#end
) {
    let col = (group.y * groups.x + group.x) * 4u;
    let end = end_of(group.z);
#unroll r FEW
    var sum{r} = vec4f();
#end
    for (var k = group.z * product.chunk + local * 4u; k < end; k += 256u) {
#unroll j 4
        let w{j} = b_fours(k, col + {j}u, end);
#end
#unroll r FEW
        let x{r} = a_fours({r}u, k, end);
        sum{r} += vec4f(dot(x{r}, w0), dot(x{r}, w1), dot(x{r}, w2), dot(x{r}, w3));
#end
    }

#if SUBGROUPS
#unroll r FEW
    let all{r} = subgroupAdd(sum{r});
    if lane == 0u {
        sums[{r}u * 64u + subgroup] = all{r};
    }
#end
    workgroupBarrier();
    if local < FEW {
        var sum = sums[local * 64u];
        for (var i = 1u; i < subgroups; i++) {
            sum += sums[local * 64u + i];
        }
        store(local, col, group.z, sum);
    }
#else
#unroll r FEW
    sums[{r}u * 64u + local] = sum{r};
#end
    workgroupBarrier();
    // Eight invocations for each row join eight sums each, then one of them these.
    let row = local / 8u;
    let first = local * 8u;
    if row < FEW {
        var sum = sums[first];
        for (var i = 1u; i < 8u; i++) {
            sum += sums[first + i];
        }
        sums[first] = sum;
    }
    workgroupBarrier();
    if row < FEW && local % 8u == 0u {
        var sum = sums[first];
        for (var i = 1u; i < 8u; i++) {
            sum += sums[first + i * 8u];
        }
        store(row, col, group.z, sum);
    }
#end
}

@compute @workgroup_size(64)
fn across_k(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let four = local % 8u;
    let slice = local / 8u;
    let col = (group.y * groups.x + group.x) * 32u + four * 4u;
    let end = end_of(group.z);
#unroll r FEW
    var sum{r} = vec4f();
#end
    var k = group.z * product.chunk + slice;
    // Four at a time, so that four reads are under way.
    for (; k + 24u < end; k += 32u) {
#unroll q 4
        let w{q} = b_cols(k + {q}u * 8u, col);
#end
#unroll q 4
#unroll r FEW
        sum{r} += a_buffer[a_place({r}u, k + {q}u * 8u)] * w{q};
#end
#end
    }
    for (; k < end; k += 8u) {
        let w = b_cols(k, col);
#unroll r FEW
        sum{r} += a_buffer[a_place({r}u, k)] * w;
#end
    }
#unroll r FEW
    sums[{r}u * 64u + local] = sum{r};
#end
    workgroupBarrier();
    // An invocation for each row and four columns joins the eighths of k.
    if slice < FEW {
        let first = slice * 64u + four;
        var sum = sums[first];
        for (var i = 1u; i < 8u; i++) {
            sum += sums[first + i * 8u];
        }
        store(slice, col, group.z, sum);
    }
}
