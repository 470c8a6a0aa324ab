// Counts the training steps on the device, so that what is recorded once draws other dropout masks and corrects other
// biases each time it runs.
//   advance   clock[0] += by, wrapping at 2^32
//   take      advance, and then taken[0] = clock[0]

struct Params {
    by: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> clock: array<u32>;
@group(0) @binding(2) var<storage, read_write> taken: array<u32>;

@compute @workgroup_size(1)
fn advance() {
    clock[0] += params.by;
}

@compute @workgroup_size(1)
fn take() {
    let now = clock[0] + params.by;
    clock[0] = now;
    taken[0] = now;
}
