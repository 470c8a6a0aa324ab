// values[i] = values[i] / (1 - p) where unit(word[i]) >= p, else 0
//
// word[i] is component i % 4 of philox(seed, (i / 4, stream, clock, 0)), so that the backward pass,
// which reads the same clock, draws the same mask again. A NaN that is dropped becomes 0.
// One invocation per block of four values; of the array, which starts anywhere in the buffer, some values
// are dropped and the others stay.
#import flat
#import philox

const WORKGROUP: u32 = 64u;

struct Params {
    // Where the array starts in the buffer.
    start: u32,
    // The first value, and the one behind the last.
    first: u32,
    end: u32,
    // Blocks of four values, the first and the last perhaps not full.
    blocks: u32,
    seed_low: u32,
    seed_high: u32,
    stream: u32,
    p: f32,
    // 1 - p
    keep: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> clock: array<u32>;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;

fn drop(i: u32, word: u32) {
    if i >= params.first && i < params.end {
        let at = params.start + i;
        values[at] = select(0.0, values[at] / params.keep, unit(word) >= params.p);
    }
}

@compute @workgroup_size(WORKGROUP)
fn apply(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let nth = flat_index(group, groups, local, WORKGROUP);
    if nth >= params.blocks {
        return;
    }
    let block = params.first / 4u + nth;
    let key = vec2u(params.seed_low, params.seed_high);
    let words = philox(key, vec4u(block, params.stream, clock[0], 0u));
    let i = block * 4u;
    drop(i, words.x);
    drop(i + 1u, words.y);
    drop(i + 2u, words.z);
    drop(i + 3u, words.w);
}
