// One step of a plain recurrent network:
//   h' = a(W_ih x + b_ih + W_hh h + b_hh),   a = tanh or relu
//
// Reads the previous h of its sequences and the weights of its unit; writes h'. The
// backward pass needs nothing else, since both slopes follow from h'.
#import activations
#import step

// 0 tanh, 1 relu
const RELU: u32 = 0u;

// [T, N, 1, H]: W_ih x + b_ih
@group(0) @binding(1) var<storage, read> gates: array<f32>;
// [H, H]: W_hh transposed
@group(0) @binding(2) var<storage, read> weight_hh_t: array<f32>;
// [H]
@group(0) @binding(3) var<storage, read> bias_hh: array<f32>;
// [T + 1, N, H]
@group(0) @binding(4) var<storage, read_write> h: array<f32>;

fn store_forward(n: u32, j: u32, product: f32) {
    let pre = gates[step.gates_start + n * step.gates_row + j] + product + bias_hh[j];
    let at = step.h_to + n * step.hidden + j;
    if RELU != 0u {
        h[at] = relu(pre);
    } else {
        h[at] = tanh_safe(pre);
    }
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(global_invocation_id) id: vec3u) {
    let hidden = step.hidden;
    let j = id.x;
    let n = id.y * ROWS;
    if j >= hidden {
        return;
    }
    let row = step.h_from + four_rows(n) * hidden;
    var a = vec4f();
    for (var k = 0u; k < hidden; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        a += x * weight_hh_t[k * hidden + j];
    }
    store_forward(n, j, a.x);
    if n + 1u < step.batch {
        store_forward(n + 1u, j, a.y);
    }
    if n + 2u < step.batch {
        store_forward(n + 2u, j, a.z);
    }
    if n + 3u < step.batch {
        store_forward(n + 3u, j, a.w);
    }
}

// One step of back-propagation through time:
//   dh = dstate + dy[t] + da[t + 1] W_hh
//   da = dh (1 - h'^2), or for relu 0 where h' <= 0 and dh elsewhere (NaN stays seen)
//   dstate = 0
// It reads the gradients of step t + 1 of its sequences and writes that of step t
// for its unit.

// [T + 1, N, H]
@group(0) @binding(1) var<storage, read> saved_h: array<f32>;
// [H, H]: W_hh as PyTorch has it
@group(0) @binding(2) var<storage, read> weight_hh: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
// [T, N, 1, H]
@group(0) @binding(4) var<storage, read_write> dgates: array<f32>;
// [1, N, H]
@group(0) @binding(5) var<storage, read_write> dstate: array<f32>;

fn store_backward(n: u32, j: u32, product: f32) {
    let unit = n * step.hidden + j;
    let value = saved_h[step.h_to + unit];
    let dh = dstate[unit] + dy[step.dy_start + n * step.dy_row + j] + product;
    var slope = 1.0 - value * value;
    if RELU != 0u {
        slope = select(1.0, 0.0, value <= 0.0);
    }
    dgates[step.gates_start + n * step.gates_row + j] = dh * slope;
    dstate[unit] = 0.0;
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(global_invocation_id) id: vec3u) {
    let hidden = step.hidden;
    let j = id.x;
    let n = id.y * ROWS;
    if j >= hidden {
        return;
    }
    var dh = vec4f();
    if step.has_next != 0u {
        let row = step.next_start + four_rows(n) * step.gates_row;
        for (var k = 0u; k < hidden; k++) {
            let x = vec4f(dgates[row.x + k], dgates[row.y + k], dgates[row.z + k], dgates[row.w + k]);
            dh += x * weight_hh[k * hidden + j];
        }
    }
    store_backward(n, j, dh.x);
    if n + 1u < step.batch {
        store_backward(n + 1u, j, dh.y);
    }
    if n + 2u < step.batch {
        store_backward(n + 2u, j, dh.z);
    }
    if n + 3u < step.batch {
        store_backward(n + 3u, j, dh.w);
    }
}
