// Which steps of which sequences count:
//   mask[start + row(t, n)] = 1 where t >= lengths[n], plus 2 where resets[row(t, n)] is not 0
// row(t, n) = t * row_t + n * row_n. One invocation per row.
#import flat

const WORKGROUP: u32 = 64u;
// 1: there are lengths; 1: there are resets.
const LENGTHS: u32 = 1u;
const RESETS: u32 = 1u;

struct Params {
    rows: u32,
    batch: u32,
    row_t: u32,
    row_n: u32,
    start: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> lengths: array<u32>;
@group(0) @binding(2) var<storage, read> resets: array<u32>;
@group(0) @binding(3) var<storage, read_write> mask: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn make(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(group, groups, local, WORKGROUP);
    if i >= params.rows {
        return;
    }
    let t = i / params.batch;
    let n = i % params.batch;
    let row = t * params.row_t + n * params.row_n;
    var bits = 0u;
    if LENGTHS != 0u {
        bits |= select(0u, 1u, t >= lengths[n]);
    }
    if RESETS != 0u {
        bits |= select(0u, 2u, resets[row] != 0u);
    }
    mask[params.start + row] = bits;
}

//   clear   destination[to + i * cols + j] = source[from + i * row_stride + j * col_stride], 0 where the
//           row's mask says past the length: selected, since what stands there may be NaN
// One invocation per element.

// 1: the source holds 16-bit floats.
const SOURCE_HALF: u32 = 0u;
#if SOURCE_HALF
enable f16;
alias Source = f16;
#else
alias Source = f32;
#end

struct ClearParams {
    rows: u32,
    cols: u32,
    from_start: u32,
    row_stride: u32,
    col_stride: u32,
    mask_start: u32,
    to: u32,
}

@group(0) @binding(0) var<uniform> clear_params: ClearParams;
@group(0) @binding(1) var<storage, read> made: array<u32>;
@group(0) @binding(2) var<storage, read> source: array<Source>;
@group(0) @binding(3) var<storage, read_write> destination: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn clear(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let at = flat_index(group, groups, local, WORKGROUP);
    if at >= clear_params.rows * clear_params.cols {
        return;
    }
    let i = at / clear_params.cols;
    let j = at % clear_params.cols;
    let place = clear_params.from_start + i * clear_params.row_stride + j * clear_params.col_stride;
    let past = (made[clear_params.mask_start + i] & 1u) != 0u;
    destination[clear_params.to + at] = select(f32(source[place]), 0.0, past);
}
