// Philox-4x32-10: four random words for one counter under one key.
// J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.

// The upper 32 bits of a * b, from products of 16-bit halves.
fn mul_high(a: u32, b: u32) -> u32 {
    let al = a & 0xffffu;
    let ah = a >> 16u;
    let bl = b & 0xffffu;
    let bh = b >> 16u;
    let low = al * bl;
    let mid = ah * bl + (low >> 16u);
    let mid2 = al * bh + (mid & 0xffffu);
    return ah * bh + (mid >> 16u) + (mid2 >> 16u);
}

fn philox(key: vec2u, counter: vec4u) -> vec4u {
    var k = key;
    var c = counter;
    for (var round = 0u; round < 10u; round++) {
        let h0 = mul_high(0xD2511F53u, c.x);
        let l0 = 0xD2511F53u * c.x;
        let h1 = mul_high(0xCD9E8D57u, c.z);
        let l1 = 0xCD9E8D57u * c.z;
        c = vec4u(h1 ^ c.y ^ k.x, l1, h0 ^ c.w ^ k.y, l0);
        k += vec2u(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// A word as a number in [0, 1): its upper 24 bits.
fn unit(word: u32) -> f32 {
    return f32(word >> 8u) * (1.0 / 16777216.0);
}
