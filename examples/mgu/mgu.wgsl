// One step of a minimal gated unit with the gate after the recurrent product:
//   f = s(W_if x + b_if + W_hf h + b_hf)
//   q = W_hn h + b_hn                         n = a(W_in x + b_in + f q)
//   h' = (1 - f) h + f n
//
// `step` has the parameters, finds the rows of a sequence, and knows masks and streams; `gates`
// has the activations s and a. A workgroup owns 64 units of four sequences: an invocation sums
// the products of one unit for all four, so that a weight is loaded once, and then finishes one
// sequence after the other. It reads the previous h of its sequences and the weights of its unit;
// it writes h', y and, with SAVE, what the backward pass needs: f, n and q.
#import step
#import gates

// [rows, S, H], on entry W_ih x + b_ih in two blocks; or with STREAM x [streams, I]
@group(0) @binding(2) var<storage, read_write> gates: array<f32>;
// [H, 2, H]: W_hh transposed; with STREAM behind W_ih and b_ih transposed
@group(0) @binding(3) var<storage, read> weight_hh_t: array<f32>;
// [2, H]
@group(0) @binding(4) var<storage, read> bias_hh: array<f32>;
@group(0) @binding(5) var<storage, read_write> h: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

fn store_forward(row: u32, j: u32, streamed: vec2f, product: vec2f) {
    if row >= row_count() {
        return;
    }
    if !live(row) {
        hold_state(row, j);
        return;
    }
    let hidden = step.hidden;
    let at = step.gates_start + row * step.gates_row + j;
    var input = streamed;
    if STREAM == 0u {
        input = vec2f(gates[at], gates[at + hidden]);
    }
    let pre_f = input.x + product.x + bias_hh[j];
    let q = product.y + bias_hh[hidden + j];
    let f = gate(ACTIVATION_0, p0(), pre_f);
    let pre_n = input.y + f * q;
    let n = gate(ACTIVATION_1, p1(), pre_n);
    store_state(row, j, (1.0 - f) * h[h_before(row) + j] + f * n);
    if SAVE != 0u {
        gates[at] = kept(pre_f, f);
        gates[at + hidden] = kept(pre_n, n);
        gates[at + 2u * hidden] = q;
    }
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let hidden = step.hidden;
    let j = id.x;
    let first = id.y * ROWS;
    if j >= hidden || first >= row_count() {
        return;
    }
    var xf = vec4f();
    var xn = vec4f();
    if STREAM != 0u {
        let x = four_inputs(first);
        for (var k = 0u; k < step.input; k++) {
            let v = vec4f(gates[x.x + k], gates[x.y + k], gates[x.z + k], gates[x.w + k]);
            let w = k * 2u * hidden + j;
            xf += v * weight_hh_t[w];
            xn += v * weight_hh_t[w + hidden];
        }
        let bias = step.input * 2u * hidden + j;
        xf += weight_hh_t[bias];
        xn += weight_hh_t[bias + hidden];
    }
    let row = four_h(first);
    let weights = recurrent_start(2u) + j;
    var f = vec4f();
    var n = vec4f();
    for (var k = 0u; k < hidden; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        let w = weights + k * 2u * hidden;
        f += x * weight_hh_t[w];
        n += x * weight_hh_t[w + hidden];
    }
    store_forward(first, j, vec2f(xf.x, xn.x), vec2f(f.x, n.x));
    store_forward(first + 1u, j, vec2f(xf.y, xn.y), vec2f(f.y, n.y));
    store_forward(first + 2u, j, vec2f(xf.z, xn.z), vec2f(f.z, n.z));
    store_forward(first + 3u, j, vec2f(xf.w, xn.w), vec2f(f.w, n.w));
}

// One step of back-propagation through time:
//   dh = dstate + dy[t] + (df, dq)[t + 1] W_hh
//   dn = dh f a'      dq = dn f      df = (dh (n - h) + dn q) s'
//   dstate = dh (1 - f), the part that does not pass through the gates
// It reads the gradients of step t + 1 of its sequences and writes those of step t for its unit.

// [rows, 3, H]: f, n, q
@group(0) @binding(2) var<storage, read> saved_gates: array<f32>;
@group(0) @binding(3) var<storage, read> saved_h: array<f32>;
// [2, H, H]: W_hh as PyTorch would have it
@group(0) @binding(4) var<storage, read> weight_hh: array<f32>;
@group(0) @binding(5) var<storage, read> dy: array<f32>;
// [rows, 3, H]: df, dn, dq
@group(0) @binding(6) var<storage, read_write> dgates: array<f32>;
// [N, H]
@group(0) @binding(7) var<storage, read_write> dstate: array<f32>;

fn store_backward(row: u32, j: u32, product: f32) {
    if row >= step.count {
        return;
    }
    let hidden = step.hidden;
    let unit = row * hidden + j;
    let to = step.dgates_start + row * step.dgates_row + j;
    let dh = state_gradient(row, j, product);
    if !live(row) {
        for (var slot = 0u; slot < 3u; slot++) {
            dgates[to + slot * hidden] = 0.0;
        }
        dstate[unit] = dh;
        return;
    }
    let at = step.gates_start + row * step.gates_row + j;
    let kept_f = saved_gates[at];
    let kept_n = saved_gates[at + hidden];
    let q = saved_gates[at + 2u * hidden];
    let f = gate_value(ACTIVATION_0, p0(), kept_f);
    let n = gate_value(ACTIVATION_1, p1(), kept_n);
    let dn = dh * f * gate_slope(ACTIVATION_1, p1(), kept_n, n);
    dgates[to] = (dh * (n - saved_h[h_before(row) + j]) + dn * q)
        * gate_slope(ACTIVATION_0, p0(), kept_f, f);
    dgates[to + hidden] = dn;
    dgates[to + 2u * hidden] = dn * f;
    dstate[unit] = dh * (1.0 - f);
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let hidden = step.hidden;
    let j = id.x;
    let first = id.y * ROWS;
    if j >= hidden {
        return;
    }
    var dh = vec4f();
    if step.next_count > 0u {
        let row = four_next(first);
        for (var k = 0u; k < 2u * hidden; k++) {
            // The second block of W_hh meets dq, which stands behind dn.
            let d = row + select(k, k + hidden, k >= hidden);
            let x = vec4f(dgates[d.x], dgates[d.y], dgates[d.z], dgates[d.w]);
            dh += x * weight_hh[k * hidden + j];
        }
        dh = with_next(first, dh);
    }
    store_backward(first, j, dh.x);
    store_backward(first + 1u, j, dh.y);
    store_backward(first + 2u, j, dh.z);
    store_backward(first + 3u, j, dh.w);
}
