// Weights that are stored as f32 or, with HALF, as 16-bit floats, two to a word with the
// first in its lower half. A sum reads them, widens them exactly, and goes on in f32.
//
// They are unpacked by `unpack2x16float`, which every WebGPU device has, rather than declared
// as `f16`, for which it needs a feature: four weights are one load of 8 bytes either way.

// 1: the weights are 16-bit floats.
const HALF: u32 = 0u;

#if HALF
// What holds one weight, and four neighbours.
alias Weight = u32;
alias FourWeights = vec2u;

fn four_weights(stored: FourWeights) -> vec4f {
    return vec4f(unpack2x16float(stored.x), unpack2x16float(stored.y));
}

// The place of what holds weight `at`.
fn weight_place(at: u32) -> u32 {
    return at / 2u;
}

// Four weights with weight `at` as the i-th, which was 0.
fn with_weight(four: FourWeights, i: u32, stored: Weight, at: u32) -> FourWeights {
    var changed = four;
    changed[i / 2u] |= ((stored >> (16u * (at % 2u))) & 0xffffu) << (16u * (i % 2u));
    return changed;
}
#else
alias Weight = f32;
alias FourWeights = vec4f;

fn four_weights(stored: FourWeights) -> vec4f {
    return stored;
}

fn weight_place(at: u32) -> u32 {
    return at;
}

fn with_weight(four: FourWeights, i: u32, stored: Weight, at: u32) -> FourWeights {
    var changed = four;
    changed[i] = stored;
    return changed;
}
#end
