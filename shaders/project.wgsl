// The projection of an LSTM's output (H. Sak et al., 2014), the second kernel of a step:
//   h' = W_hr m,   m = o b(c') from lstm.forward
//
// Reads m of its sequences and the weights of its unit; writes h' and y.
#import step

// [rows, H]
@group(0) @binding(2) var<storage, read> inner: array<f32>;
// [H, P]: W_hr transposed
@group(0) @binding(3) var<storage, read> weight_hr_t: array<f32>;
@group(0) @binding(4) var<storage, read_write> h: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

fn store_forward(n: u32, j: u32, value: f32) {
    if n >= row_count() {
        return;
    }
    if live(n) {
        store_state(n, j, value);
    } else {
        hold_state(n, j);
    }
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let j = id.x;
    let n = id.y * ROWS;
    if j >= step.output || n >= row_count() {
        return;
    }
    let row = step.inner_start + four_rows(n) * step.inner_row;
    var sum = vec4f();
    for (var k = 0u; k < step.hidden; k++) {
        let m = vec4f(inner[row.x + k], inner[row.y + k], inner[row.z + k], inner[row.w + k]);
        sum += m * weight_hr_t[k * step.output + j];
    }
    store_forward(n, j, sum.x);
    store_forward(n + 1u, j, sum.y);
    store_forward(n + 2u, j, sum.z);
    store_forward(n + 3u, j, sum.w);
}

// The first kernel of a step back:
//   dh = dstate.h + dy[t] + dgates[t + 1] W_hh       dstate.h = 0
// dh goes to `outer`, for lstm.backward and for the gradient of W_hr.

// [rows, 4, H]
@group(0) @binding(2) var<storage, read> dgates: array<f32>;
// [4, H, P]: W_hh as PyTorch has it
@group(0) @binding(3) var<storage, read> weight_hh: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
// [N, P] and [N, H]: gradients of h and c
@group(0) @binding(5) var<storage, read_write> dstate: array<f32>;
// [rows, P]
@group(0) @binding(6) var<storage, read_write> outer: array<f32>;

fn store_backward(n: u32, j: u32, product: f32) {
    if n >= step.count {
        return;
    }
    let dh = state_gradient(n, j, product);
    let goes = live(n);
    outer[step.outer_start + n * step.outer_row + j] = select(0.0, dh, goes);
    dstate[n * step.output + j] = select(dh, 0.0, goes);
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let j = id.x;
    let n = id.y * ROWS;
    if j >= step.output {
        return;
    }
    var dh = vec4f();
    if step.next_count > 0u {
        let row = four_next(n);
        for (var k = 0u; k < 4u * step.hidden; k++) {
            let d = vec4f(dgates[row.x + k], dgates[row.y + k], dgates[row.z + k], dgates[row.w + k]);
            dh += d * weight_hh[k * step.output + j];
        }
        dh = with_next(n, dh);
    }
    store_backward(n, j, dh.x);
    store_backward(n + 1u, j, dh.y);
    store_backward(n + 2u, j, dh.z);
    store_backward(n + 3u, j, dh.w);
}
