// The second pass of a product whose k was split: C from the partial sums of its
// parts, in their order, so that the same input gives the same bits.
//
// Here A holds one m x n matrix for each part on top of the next, and k is the number
// of parts. An invocation owns four columns of a row.
#import gemm
#import flat

const WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP)
fn sum(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = flat_index(group, groups, local, WORKGROUP);
    let fours = (product.n + 3u) / 4u;
    let row = index / fours;
    let col = index % fours * 4u;
    if row >= product.m {
        return;
    }
    var sums = vec4f();
    for (var part = 0u; part < product.k; part++) {
        sums += a_fours(part * product.m + row, col, product.n);
    }
    store(row, col, 0u, sums);
}
