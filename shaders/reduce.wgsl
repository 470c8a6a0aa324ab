// Sums in a fixed order, so that the same input gives the same bits.
//   columns  output[y, j] = sum of a[row, j] over the y-th group of rows; with PRODUCT of
//            a[row, j] b[row, j]
//   total    output[to + x] = sum of a[i], or of a[i]^2, over the x-th group of elements
// Long sums take two dispatches: the groups first, then their sums.

const WORKGROUP: u32 = 64u;
// 1: total sums squares.
const SQUARE: u32 = 0u;
// 1: columns sums products of two matrices.
const PRODUCT: u32 = 0u;
// 1: the second of them holds 16-bit floats.
const B_HALF: u32 = 0u;
#if B_HALF
enable f16;
alias Factor = f16;
#else
alias Factor = f32;
#end

struct Params {
    // Rows, or elements for total.
    rows: u32,
    cols: u32,
    start: u32,
    row_stride: u32,
    // Rows, or elements, in one group.
    group: u32,
    // columns: keep this much of the old output.
    beta: f32,
    // Where the sums start in the output.
    to: u32,
    // columns: the second factor.
    b_start: u32,
    b_row_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<Factor>;

// A workgroup owns 64 columns of one group of rows.
@compute @workgroup_size(WORKGROUP)
fn columns(@builtin(global_invocation_id) id: vec3u) {
    let j = id.x;
    if j >= params.cols {
        return;
    }
    let last = min((id.y + 1u) * params.group, params.rows);
    var sum = 0.0;
    for (var row = id.y * params.group; row < last; row++) {
        var value = a[params.start + row * params.row_stride + j];
        if PRODUCT != 0u {
            value *= f32(b[params.b_start + row * params.b_row_stride + j]);
        }
        sum += value;
    }
    let at = params.to + id.y * params.cols + j;
    if params.beta != 0.0 {
        sum += params.beta * output[at];
    }
    output[at] = sum;
}

var<workgroup> partial: array<f32, WORKGROUP>;

// A workgroup owns one group of elements: each invocation sums every 64th, then a
// tree joins them.
@compute @workgroup_size(WORKGROUP)
fn total(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let last = min((group.x + 1u) * params.group, params.rows);
    var sum = 0.0;
    for (var i = group.x * params.group + local; i < last; i += WORKGROUP) {
        let value = a[params.start + i];
        sum += select(value, value * value, SQUARE != 0u);
    }
    partial[local] = sum;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if local < half {
            partial[local] += partial[local + half];
        }
        workgroupBarrier();
    }
    if local == 0u {
        output[params.to + group.x] = partial[0];
    }
}
