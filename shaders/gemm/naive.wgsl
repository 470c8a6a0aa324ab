// A product with an invocation for each element of C: for those too small to share
// anything, and for devices that lack what the other forms need. A workgroup of 8 x 8
// owns as many elements.
#import gemm

@compute @workgroup_size(8, 8)
fn gemm(@builtin(global_invocation_id) id: vec3u) {
    let row = id.y;
    let col = id.x;
    if row >= product.m || col >= product.n {
        return;
    }
    let end = end_of(id.z);
    var sum = 0.0;
    for (var k = id.z * product.chunk; k < end; k++) {
        sum += a_buffer[a_place(row, k)] * b_at(b_place(k, col));
    }
    store_one(row, col, id.z, sum);
}
