// C = activation(alpha * A * B + beta * C + bias), accumulated in f32.
//
// A is m x k, B is k x n, C is m x n; each has an offset and two strides, so that
// transposes and parts of larger buffers need no copy. With beta = 0 the old C is
// not read. The bias has one value per column.
//
// A workgroup of 16 x 16 owns a 64 x 64 tile of C; an invocation holds a 4 x 4
// block of it in registers. Eight values of k at a time are staged in workgroup
// memory as vec4s: 64 rows of A, then 64 columns of B. The inner loop is written
// out, so that its bounds need no check at run time.
#import activations

const HAS_BIAS: u32 = 1u;
// 0 none, 1 sigmoid, 2 tanh, 3 relu
const ACTIVATION: u32 = 0u;

const TILE: u32 = 64u;
const DEPTH: u32 = 8u;

struct Params {
    m: u32,
    n: u32,
    k: u32,
    a_start: u32,
    a_row: u32,
    a_col: u32,
    b_start: u32,
    b_row: u32,
    b_col: u32,
    c_start: u32,
    c_row: u32,
    c_col: u32,
    alpha: f32,
    beta: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a_buffer: array<f32>;
@group(0) @binding(2) var<storage, read> b_buffer: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c_buffer: array<f32>;

var<workgroup> a_tile: array<vec4f, 128>;
var<workgroup> b_tile: array<vec4f, 128>;

fn a_at(row: u32, k: u32) -> f32 {
    if row < params.m && k < params.k {
        return a_buffer[params.a_start + row * params.a_row + k * params.a_col];
    }
    return 0.0;
}

fn b_at(k: u32, col: u32) -> f32 {
    if k < params.k && col < params.n {
        return b_buffer[params.b_start + k * params.b_row + col * params.b_col];
    }
    return 0.0;
}

// Four neighbouring rows of A at one k.
fn a_block(row: u32, k: u32) -> vec4f {
    return vec4f(a_at(row, k), a_at(row + 1u, k), a_at(row + 2u, k), a_at(row + 3u, k));
}

// Four neighbouring columns of B at one k.
fn b_block(k: u32, col: u32) -> vec4f {
    return vec4f(b_at(k, col), b_at(k, col + 1u), b_at(k, col + 2u), b_at(k, col + 3u));
}

fn activate(x: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return sigmoid(x); }
        case 2u: { return tanh_safe(x); }
        case 3u: { return relu(x); }
        default: { return x; }
    }
}

fn store(row: u32, col: u32, sum: f32) {
    if row >= params.m || col >= params.n {
        return;
    }
    let at = params.c_start + row * params.c_row + col * params.c_col;
    var value = params.alpha * sum;
    if params.beta != 0.0 {
        value += params.beta * c_buffer[at];
    }
    if HAS_BIAS != 0u {
        value += bias[col];
    }
    c_buffer[at] = activate(value);
}

fn store_row(row: u32, col: u32, sums: vec4f) {
    store(row, col, sums.x);
    store(row, col + 1u, sums.y);
    store(row, col + 2u, sums.z);
    store(row, col + 3u, sums.w);
}

@compute @workgroup_size(16, 16)
fn gemm(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let tx = local % 16u;
    let ty = local / 16u;
    let row = group.y * TILE;
    let col = group.x * TILE;

    // The first 128 invocations stage A and the others B. Neighbours read along
    // whichever axis of the matrix is dense.
    let part = local % 128u;
    let stages_a = local < 128u;
    let along_k = select(params.b_row == 1u, params.a_col == 1u, stages_a);
    let k_local = select(part / 16u, part % DEPTH, along_k);
    let block = select(part % 16u, part / DEPTH, along_k);

    var c0 = vec4f();
    var c1 = vec4f();
    var c2 = vec4f();
    var c3 = vec4f();
    var a: vec4f;
    var b: vec4f;
    for (var k = 0u; k < params.k; k += DEPTH) {
        if stages_a {
            a_tile[k_local * 16u + block] = a_block(row + block * 4u, k + k_local);
        } else {
            b_tile[k_local * 16u + block] = b_block(k + k_local, col + block * 4u);
        }
        workgroupBarrier();
        a = a_tile[0u + ty];
        b = b_tile[0u + tx];
        c0 += a.x * b;
        c1 += a.y * b;
        c2 += a.z * b;
        c3 += a.w * b;
        a = a_tile[16u + ty];
        b = b_tile[16u + tx];
        c0 += a.x * b;
        c1 += a.y * b;
        c2 += a.z * b;
        c3 += a.w * b;
        a = a_tile[32u + ty];
        b = b_tile[32u + tx];
        c0 += a.x * b;
        c1 += a.y * b;
        c2 += a.z * b;
        c3 += a.w * b;
        a = a_tile[48u + ty];
        b = b_tile[48u + tx];
        c0 += a.x * b;
        c1 += a.y * b;
        c2 += a.z * b;
        c3 += a.w * b;
        a = a_tile[64u + ty];
        b = b_tile[64u + tx];
        c0 += a.x * b;
        c1 += a.y * b;
        c2 += a.z * b;
        c3 += a.w * b;
        a = a_tile[80u + ty];
        b = b_tile[80u + tx];
        c0 += a.x * b;
        c1 += a.y * b;
        c2 += a.z * b;
        c3 += a.w * b;
        a = a_tile[96u + ty];
        b = b_tile[96u + tx];
        c0 += a.x * b;
        c1 += a.y * b;
        c2 += a.z * b;
        c3 += a.w * b;
        a = a_tile[112u + ty];
        b = b_tile[112u + tx];
        c0 += a.x * b;
        c1 += a.y * b;
        c2 += a.z * b;
        c3 += a.w * b;
        workgroupBarrier();
    }

    let r = row + ty * 4u;
    let c = col + tx * 4u;
    store_row(r, c, c0);
    store_row(r + 1u, c, c1);
    store_row(r + 2u, c, c2);
    store_row(r + 3u, c, c3);
}
