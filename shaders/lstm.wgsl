// One step of an LSTM, the recurrent product fused with gates and state update.
//   i, f, g, o = pre-activations: gates (W_ih x + b_ih) + W_hh h + b_hh
//   c' = sigmoid(f) c + sigmoid(i) tanh(g)        h' = sigmoid(o) tanh(c')
//
// Reads the previous h of its sequences and the weights of its unit; writes h', c'
// and, with SAVE, the activated gates.
#import activations
#import step

// 1: the gates are kept for the backward pass.
const SAVE: u32 = 1u;

// [T, N, 4, H]
@group(0) @binding(1) var<storage, read_write> gates: array<f32>;
// [H, 4, H]: W_hh transposed
@group(0) @binding(2) var<storage, read> weight_hh_t: array<f32>;
// [4, H]
@group(0) @binding(3) var<storage, read> bias_hh: array<f32>;
// [T + 1, N, H]
@group(0) @binding(4) var<storage, read_write> h: array<f32>;
// [T + 1, N, H], or [2, N, H]: the first and the latest, updated in place
@group(0) @binding(5) var<storage, read_write> c: array<f32>;

fn store_forward(n: u32, j: u32, product: vec4f) {
    let hidden = step.hidden;
    let at = step.gates_start + n * step.gates_row + j;
    let bias = vec4f(
        bias_hh[j],
        bias_hh[hidden + j],
        bias_hh[2u * hidden + j],
        bias_hh[3u * hidden + j],
    );
    let input = vec4f(
        gates[at],
        gates[at + hidden],
        gates[at + 2u * hidden],
        gates[at + 3u * hidden],
    );
    let pre = input + product + bias;
    let i = sigmoid(pre.x);
    let f = sigmoid(pre.y);
    let g = tanh_safe(pre.z);
    let o = sigmoid(pre.w);
    let unit = n * hidden + j;
    let c_new = f * c[step.c_from + unit] + i * g;
    c[step.c_to + unit] = c_new;
    h[step.h_to + unit] = o * tanh_safe(c_new);
    if SAVE != 0u {
        gates[at] = i;
        gates[at + hidden] = f;
        gates[at + 2u * hidden] = g;
        gates[at + 3u * hidden] = o;
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
    var i = vec4f();
    var f = vec4f();
    var g = vec4f();
    var o = vec4f();
    for (var k = 0u; k < hidden; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        let w = k * 4u * hidden + j;
        i += x * weight_hh_t[w];
        f += x * weight_hh_t[w + hidden];
        g += x * weight_hh_t[w + 2u * hidden];
        o += x * weight_hh_t[w + 3u * hidden];
    }
    store_forward(n, j, vec4f(i.x, f.x, g.x, o.x));
    if n + 1u < step.batch {
        store_forward(n + 1u, j, vec4f(i.y, f.y, g.y, o.y));
    }
    if n + 2u < step.batch {
        store_forward(n + 2u, j, vec4f(i.z, f.z, g.z, o.z));
    }
    if n + 3u < step.batch {
        store_forward(n + 3u, j, vec4f(i.w, f.w, g.w, o.w));
    }
}

// One step of back-propagation through time:
//   dh = dstate.h + dy[t] + dgates[t + 1] W_hh
//   do = dh tanh(c') o (1 - o)           dc = dstate.c + dh o (1 - tanh(c')^2)
//   di = dc g i (1 - i)   df = dc c f (1 - f)   dg = dc i (1 - g^2)
//   dstate.c = dc f       dstate.h = 0, since all of dh flows through the gates
// It reads the gates' gradients of step t + 1 of its sequences and writes those of
// step t for its unit.

// [T, N, 4, H], activated
@group(0) @binding(1) var<storage, read> saved_gates: array<f32>;
// [T + 1, N, H]
@group(0) @binding(2) var<storage, read> saved_c: array<f32>;
// [4, H, H]: W_hh as PyTorch has it
@group(0) @binding(3) var<storage, read> weight_hh: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
// [T, N, 4, H]
@group(0) @binding(5) var<storage, read_write> dgates: array<f32>;
// [2, N, H]: gradients of h and c
@group(0) @binding(6) var<storage, read_write> dstate: array<f32>;

fn store_backward(n: u32, j: u32, product: f32) {
    let hidden = step.hidden;
    let unit = n * hidden + j;
    let at = step.gates_start + n * step.gates_row + j;
    let i = saved_gates[at];
    let f = saved_gates[at + hidden];
    let g = saved_gates[at + 2u * hidden];
    let o = saved_gates[at + 3u * hidden];
    let c_state = step.batch * hidden + unit;
    let tanh_c = tanh_safe(saved_c[step.c_to + unit]);
    let dh = dstate[unit] + dy[step.dy_start + n * step.dy_row + j] + product;
    let dc = dstate[c_state] + dh * o * (1.0 - tanh_c * tanh_c);
    dgates[at] = dc * g * i * (1.0 - i);
    dgates[at + hidden] = dc * saved_c[step.c_from + unit] * f * (1.0 - f);
    dgates[at + 2u * hidden] = dc * i * (1.0 - g * g);
    dgates[at + 3u * hidden] = dh * tanh_c * o * (1.0 - o);
    dstate[unit] = 0.0;
    dstate[c_state] = dc * f;
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
        for (var k = 0u; k < 4u * hidden; k++) {
            let d = vec4f(dgates[row.x + k], dgates[row.y + k], dgates[row.z + k], dgates[row.w + k]);
            dh += d * weight_hh[k * hidden + j];
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
