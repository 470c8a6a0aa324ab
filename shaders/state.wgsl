// States on their way into and out of the rows of a sequence.
//   load   state[to + n * to_row + u] = source[from + n * width + u], 0 where the mask says reset
//   unset  state[to + n * width + u] = 0 where the mask says reset: the gradient of that
// n counts the sequences of a call, u the units of a state. One invocation per element.
#import flat

const WORKGROUP: u32 = 64u;
// 1: the mask counts.
const MASKED: u32 = 1u;

struct Params {
    count: u32,
    width: u32,
    from_start: u32,
    to_start: u32,
    to_row: u32,
    mask_start: u32,
    mask_row: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> mask: array<u32>;
@group(0) @binding(2) var<storage, read> source: array<f32>;
@group(0) @binding(3) var<storage, read_write> state: array<f32>;

fn reset(n: u32) -> bool {
    if MASKED != 0u {
        return (mask[params.mask_start + n * params.mask_row] & 2u) != 0u;
    }
    return false;
}

@compute @workgroup_size(WORKGROUP)
fn load(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(group, groups, local, WORKGROUP);
    if i >= params.count * params.width {
        return;
    }
    let n = i / params.width;
    let to = params.to_start + n * params.to_row + i % params.width;
    state[to] = select(source[params.from_start + i], 0.0, reset(n));
}

@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn unset(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(group, groups, local, WORKGROUP);
    if i < params.count * params.width && reset(i / params.width) {
        gradient[params.to_start + i] = 0.0;
    }
}
