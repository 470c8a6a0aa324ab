// One step of a GRU with the reset gate before the product, as in the original paper and ONNX's
// default. All of r must be there before the product, so a step takes two kernels.
//   reset_gate   r = s(W_ir x + b_ir + W_hr h + b_hr)     z = s(W_iz x + b_iz + W_hz h + b_hz)
//                inner = r h
//   update       n = a(W_in x + b_in + W_hn inner + b_hn)        h' = (1 - z) n + z h
//
// reset_gate writes z, and with SAVE r, into `gates`; update reads z there and, with SAVE, writes
// n. With STREAM, where `gates` holds x, z stands behind `inner`.
#import step
#import gates

// [rows, 3, H], on entry W_ih x + b_ih; or with STREAM x [streams, I]
@group(0) @binding(2) var<storage, read_write> gates: array<f32>;
// [H, 3, H]: W_hh transposed; with STREAM behind W_ih and b_ih transposed
@group(0) @binding(3) var<storage, read> weight_hh_t: array<f32>;
// [3, H]
@group(0) @binding(4) var<storage, read> bias_hh: array<f32>;
@group(0) @binding(5) var<storage, read_write> h: array<f32>;
// [rows, H]; with STREAM [streams, 2, H], z second
@group(0) @binding(6) var<storage, read_write> inner: array<f32>;

fn store_reset(row: u32, j: u32, streamed: vec2f, product: vec2f) {
    if row >= row_count() {
        return;
    }
    let to = step.inner_start + row * step.inner_row + j;
    if !live(row) {
        inner[to] = 0.0;
        return;
    }
    let hidden = step.hidden;
    let at = step.gates_start + row * step.gates_row + j;
    var input = streamed;
    if STREAM == 0u {
        input = vec2f(gates[at], gates[at + hidden]);
    }
    let pre_r = input.x + product.x + bias_hh[j];
    let pre_z = input.y + product.y + bias_hh[hidden + j];
    let r = gate(ACTIVATION_0, p0(), pre_r);
    inner[to] = r * h[h_before(row) + j];
    let z = kept(pre_z, gate(ACTIVATION_0, p0(), pre_z));
    if STREAM != 0u {
        inner[to + hidden] = z;
    } else {
        gates[at + hidden] = z;
    }
    if SAVE != 0u {
        gates[at] = kept(pre_r, r);
    }
}

@compute @workgroup_size(WORKGROUP)
fn reset_gate(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let hidden = step.hidden;
    let j = id.x;
    let first = id.y * ROWS;
    if j >= hidden || first >= row_count() {
        return;
    }
    var xr = vec4f();
    var xz = vec4f();
    if STREAM != 0u {
        let x = four_inputs(first);
        for (var k = 0u; k < step.input; k++) {
            let v = vec4f(gates[x.x + k], gates[x.y + k], gates[x.z + k], gates[x.w + k]);
            let w = k * 3u * hidden + j;
            xr += v * weight_hh_t[w];
            xz += v * weight_hh_t[w + hidden];
        }
        let bias = step.input * 3u * hidden + j;
        xr += weight_hh_t[bias];
        xz += weight_hh_t[bias + hidden];
    }
    let row = four_h(first);
    let weights = recurrent_start(3u) + j;
    var r = vec4f();
    var z = vec4f();
    for (var k = 0u; k < hidden; k++) {
        let x = vec4f(h[row.x + k], h[row.y + k], h[row.z + k], h[row.w + k]);
        let w = weights + k * 3u * hidden;
        r += x * weight_hh_t[w];
        z += x * weight_hh_t[w + hidden];
    }
    store_reset(first, j, vec2f(xr.x, xz.x), vec2f(r.x, z.x));
    store_reset(first + 1u, j, vec2f(xr.y, xz.y), vec2f(r.y, z.y));
    store_reset(first + 2u, j, vec2f(xr.z, xz.z), vec2f(r.z, z.z));
    store_reset(first + 3u, j, vec2f(xr.w, xz.w), vec2f(r.w, z.w));
}

@group(0) @binding(7) var<storage, read_write> y: array<f32>;

fn store_update(row: u32, j: u32, streamed: f32, product: f32) {
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
    var kept_z: f32;
    if STREAM != 0u {
        kept_z = inner[step.inner_start + row * step.inner_row + hidden + j];
    } else {
        input = gates[at + 2u * hidden];
        kept_z = gates[at + hidden];
    }
    let z = gate_value(ACTIVATION_0, p0(), kept_z);
    let pre = input + product + bias_hh[2u * hidden + j];
    let n = gate(ACTIVATION_1, p1(), pre);
    store_state(row, j, (1.0 - z) * n + z * h[h_before(row) + j]);
    if SAVE != 0u {
        gates[at + 2u * hidden] = kept(pre, n);
    }
}

@compute @workgroup_size(WORKGROUP)
fn update(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let hidden = step.hidden;
    let j = id.x;
    let first = id.y * ROWS;
    if j >= hidden || first >= row_count() {
        return;
    }
    var input = vec4f();
    if STREAM != 0u {
        let x = four_inputs(first);
        for (var k = 0u; k < step.input; k++) {
            let v = vec4f(gates[x.x + k], gates[x.y + k], gates[x.z + k], gates[x.w + k]);
            input += v * weight_hh_t[(k * 3u + 2u) * hidden + j];
        }
        input += weight_hh_t[(step.input * 3u + 2u) * hidden + j];
    }
    let row = step.inner_start + four_rows(first) * step.inner_row;
    let weights = recurrent_start(3u) + 2u * hidden + j;
    var n = vec4f();
    for (var k = 0u; k < hidden; k++) {
        let x = vec4f(inner[row.x + k], inner[row.y + k], inner[row.z + k], inner[row.w + k]);
        n += x * weight_hh_t[weights + k * 3u * hidden];
    }
    store_update(first, j, input.x, n.x);
    store_update(first + 1u, j, input.y, n.y);
    store_update(first + 2u, j, input.z, n.z);
    store_update(first + 3u, j, input.w, n.w);
}

// One step of back-propagation through time, in two kernels as well:
//   back_update   dh = dstate + dy[t] + (dr, dz)[t + 1] (W_hr, W_hz)
//                 dz = dh (h - n) s'      dn = dh (1 - z) a'      dstate = dh
//   back_reset    dinner = dn W_hn        dr = dinner h s'        dstate = dstate z + dinner r
// back_update reads the gradients of step t + 1 of its sequences, back_reset dn of step t.

// [rows, 3, H]: r, z, n
@group(0) @binding(2) var<storage, read> saved_gates: array<f32>;
@group(0) @binding(3) var<storage, read> saved_h: array<f32>;
// [3, H, H]: W_hh as PyTorch has it
@group(0) @binding(4) var<storage, read> weight_hh: array<f32>;
// [rows, 3, H]: dr, dz, dn
@group(0) @binding(5) var<storage, read_write> dgates: array<f32>;
// [N, H]
@group(0) @binding(6) var<storage, read_write> dstate: array<f32>;
@group(0) @binding(7) var<storage, read> dy: array<f32>;

fn store_back_update(row: u32, j: u32, product: f32) {
    if row >= step.count {
        return;
    }
    let hidden = step.hidden;
    let to = step.dgates_start + row * step.dgates_row + j;
    let dh = state_gradient(row, j, product);
    dstate[row * hidden + j] = dh;
    if !live(row) {
        dgates[to + hidden] = 0.0;
        dgates[to + 2u * hidden] = 0.0;
        return;
    }
    let at = step.gates_start + row * step.gates_row + j;
    let kept_z = saved_gates[at + hidden];
    let kept_n = saved_gates[at + 2u * hidden];
    let z = gate_value(ACTIVATION_0, p0(), kept_z);
    let n = gate_value(ACTIVATION_1, p1(), kept_n);
    dgates[to + hidden] = dh * (saved_h[h_before(row) + j] - n)
        * gate_slope(ACTIVATION_0, p0(), kept_z, z);
    dgates[to + 2u * hidden] = dh * (1.0 - z) * gate_slope(ACTIVATION_1, p1(), kept_n, n);
}

@compute @workgroup_size(WORKGROUP)
fn back_update(@builtin(global_invocation_id) id: vec3u) {
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
            let d = vec4f(dgates[row.x + k], dgates[row.y + k], dgates[row.z + k], dgates[row.w + k]);
            dh += d * weight_hh[k * hidden + j];
        }
        dh = with_next(first, dh);
    }
    store_back_update(first, j, dh.x);
    store_back_update(first + 1u, j, dh.y);
    store_back_update(first + 2u, j, dh.z);
    store_back_update(first + 3u, j, dh.w);
}

fn store_back_reset(row: u32, j: u32, dinner: f32) {
    if row >= step.count {
        return;
    }
    let hidden = step.hidden;
    let to = step.dgates_start + row * step.dgates_row + j;
    if !live(row) {
        dgates[to] = 0.0;
        return;
    }
    let at = step.gates_start + row * step.gates_row + j;
    let kept_r = saved_gates[at];
    let r = gate_value(ACTIVATION_0, p0(), kept_r);
    let z = gate_value(ACTIVATION_0, p0(), saved_gates[at + hidden]);
    let unit = row * hidden + j;
    dgates[to] = dinner * saved_h[h_before(row) + j] * gate_slope(ACTIVATION_0, p0(), kept_r, r);
    dstate[unit] = dstate[unit] * z + dinner * r;
}

@compute @workgroup_size(WORKGROUP)
fn back_reset(@builtin(global_invocation_id) id: vec3u) {
    step = params;
    let hidden = step.hidden;
    let j = id.x;
    let first = id.y * ROWS;
    if j >= hidden {
        return;
    }
    let row = step.dgates_start + four_rows(first) * step.dgates_row + 2u * hidden;
    var dinner = vec4f();
    for (var k = 0u; k < hidden; k++) {
        let d = vec4f(dgates[row.x + k], dgates[row.y + k], dgates[row.z + k], dgates[row.w + k]);
        dinner += d * weight_hh[(2u * hidden + k) * hidden + j];
    }
    store_back_reset(first, j, dinner.x);
    store_back_reset(first + 1u, j, dinner.y);
    store_back_reset(first + 2u, j, dinner.z);
    store_back_reset(first + 3u, j, dinner.w);
}
