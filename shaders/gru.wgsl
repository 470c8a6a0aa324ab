// One step of a GRU with the reset gate after the product, as PyTorch and cuDNN have it:
//   r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)      z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
//   q = W_hn h + b_hn                               n = tanh(W_in x + b_in + r q)
//   h' = (1 - z) n + z h
//
// Reads the previous h of its sequences and the weights of its unit; writes h' and,
// with SAVE, r, z, n and q.
#import activations
#import step

// 1: r, z, n and q are kept for the backward pass.
const SAVE: u32 = 1u;

// [T, N, 4, H] with SAVE, else [T, N, 3, H]; on entry W_ih x + b_ih in the first three
@group(0) @binding(1) var<storage, read_write> gates: array<f32>;
// [H, 3, H]: W_hh transposed
@group(0) @binding(2) var<storage, read> weight_hh_t: array<f32>;
// [3, H]
@group(0) @binding(3) var<storage, read> bias_hh: array<f32>;
// [T + 1, N, H]
@group(0) @binding(4) var<storage, read_write> h: array<f32>;

fn store_forward(row: u32, j: u32, product: vec3f) {
    let hidden = step.hidden;
    let at = step.gates_start + row * step.gates_row + j;
    let r = sigmoid(gates[at] + product.x + bias_hh[j]);
    let z = sigmoid(gates[at + hidden] + product.y + bias_hh[hidden + j]);
    let q = product.z + bias_hh[2u * hidden + j];
    let n = tanh_safe(gates[at + 2u * hidden] + r * q);
    let unit = row * hidden + j;
    h[step.h_to + unit] = (1.0 - z) * n + z * h[step.h_from + unit];
    if SAVE != 0u {
        gates[at] = r;
        gates[at + hidden] = z;
        gates[at + 2u * hidden] = n;
        gates[at + 3u * hidden] = q;
    }
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(global_invocation_id) id: vec3u) {
    let hidden = step.hidden;
    let j = id.x;
    let first = id.y * ROWS;
    if j >= hidden {
        return;
    }
    let row = step.h_from + four_rows(first) * hidden;
    var r = vec4f();
    var z = vec4f();
    var n = vec4f();
    for (var k = 0u; k < hidden; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        let w = k * 3u * hidden + j;
        r += x * weight_hh_t[w];
        z += x * weight_hh_t[w + hidden];
        n += x * weight_hh_t[w + 2u * hidden];
    }
    store_forward(first, j, vec3f(r.x, z.x, n.x));
    if first + 1u < step.batch {
        store_forward(first + 1u, j, vec3f(r.y, z.y, n.y));
    }
    if first + 2u < step.batch {
        store_forward(first + 2u, j, vec3f(r.z, z.z, n.z));
    }
    if first + 3u < step.batch {
        store_forward(first + 3u, j, vec3f(r.w, z.w, n.w));
    }
}

// One step of back-propagation through time:
//   dh = dstate + dy[t] + (dr, dz, dq)[t + 1] W_hh
//   dz = dh (h - n) z (1 - z)      dn = dh (1 - z) (1 - n^2)
//   dr = dn q r (1 - r)            dq = dn r
//   dstate = dh z, the part that does not pass through the gates
// It reads the gradients of step t + 1 of its sequences and writes those of step t
// for its unit.

// [T, N, 4, H]: r, z, n, q
@group(0) @binding(1) var<storage, read> saved_gates: array<f32>;
// [T + 1, N, H]
@group(0) @binding(2) var<storage, read> saved_h: array<f32>;
// [3, H, H]: W_hh as PyTorch has it
@group(0) @binding(3) var<storage, read> weight_hh: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
// [T, N, 4, H]: dr, dz, dn, dq
@group(0) @binding(5) var<storage, read_write> dgates: array<f32>;
// [1, N, H]
@group(0) @binding(6) var<storage, read_write> dstate: array<f32>;

fn store_backward(row: u32, j: u32, product: f32) {
    let hidden = step.hidden;
    let unit = row * hidden + j;
    let at = step.gates_start + row * step.gates_row + j;
    let r = saved_gates[at];
    let z = saved_gates[at + hidden];
    let n = saved_gates[at + 2u * hidden];
    let q = saved_gates[at + 3u * hidden];
    let dh = dstate[unit] + dy[step.dy_start + row * step.dy_row + j] + product;
    let dn = dh * (1.0 - z) * (1.0 - n * n);
    dgates[at] = dn * q * r * (1.0 - r);
    dgates[at + hidden] = dh * (saved_h[step.h_from + unit] - n) * z * (1.0 - z);
    dgates[at + 2u * hidden] = dn;
    dgates[at + 3u * hidden] = dn * r;
    dstate[unit] = dh * z;
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(global_invocation_id) id: vec3u) {
    let hidden = step.hidden;
    let j = id.x;
    let first = id.y * ROWS;
    if j >= hidden {
        return;
    }
    var dh = vec4f();
    if step.has_next != 0u {
        let row = step.next_start + four_rows(first) * step.gates_row;
        for (var k = 0u; k < 3u * hidden; k++) {
            // The third block of W_hh meets dq, which stands behind dn.
            let d = row + select(k, k + hidden, k >= 2u * hidden);
            let x = vec4f(dgates[d.x], dgates[d.y], dgates[d.z], dgates[d.w]);
            dh += x * weight_hh[k * hidden + j];
        }
    }
    store_backward(first, j, dh.x);
    if first + 1u < step.batch {
        store_backward(first + 1u, j, dh.y);
    }
    if first + 2u < step.batch {
        store_backward(first + 2u, j, dh.z);
    }
    if first + 3u < step.batch {
        store_backward(first + 3u, j, dh.w);
    }
}
