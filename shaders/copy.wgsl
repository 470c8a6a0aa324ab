// Moving data inside a plan.
//   copy   destination[to + i] = source[from + i]
//   fill   buffer[i] = value
// One invocation per element.
#import flat

const WORKGROUP: u32 = 64u;

struct Params {
    len: u32,
    from_start: u32,
    to_start: u32,
    value: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> destination: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn copy(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(group, groups, local, WORKGROUP);
    if i < params.len {
        destination[params.to_start + i] = source[params.from_start + i];
    }
}

@group(0) @binding(1) var<storage, read_write> buffer: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn fill(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(group, groups, local, WORKGROUP);
    if i < params.len {
        buffer[i] = params.value;
    }
}
