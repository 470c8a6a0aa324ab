// The activations of a cell's gates, with their parameters alpha and beta, and what
// the backward pass needs of them. Names and definitions are those of ONNX.
//
// A gate is kept either activated (its slope then follows from the value, as it does
// for sigmoid, tanh and relu) or, with RAW, as its pre-activation.
#import activations

// Which function a gate has: 0 sigmoid, 1 tanh, 2 relu, 3 affine, 4 softsign,
// 5 softplus, 6 elu, 7 leaky relu, 8 thresholded relu, 9 scaled tanh, 10 hard sigmoid.
const ACTIVATION_0: u32 = 0u;
const ACTIVATION_1: u32 = 1u;
const ACTIVATION_2: u32 = 1u;
// 1: pre-activations are kept.
const RAW: u32 = 0u;
// 1: pre-activations are limited to +-step.clip.
const CLIP: u32 = 0u;
// 1: `gates` and `saved_gates` hold 16-bit floats.
const GATES_HALF: u32 = 0u;
#if GATES_HALF
enable f16;
alias Gate = f16;
#else
alias Gate = f32;
#end

// p has alpha and beta.
fn activate(kind: u32, p: vec2f, x: f32) -> f32 {
    switch kind {
        case 0u: { return sigmoid(x); }
        case 1u: { return tanh_safe(x); }
        case 2u: { return relu(x); }
        case 3u: { return p.x * x + p.y; }
        case 4u: { return x / (1.0 + abs(x)); }
        case 5u: { return relu(x) + log(1.0 + exp(-abs(x))); }
        case 6u: { return select(x, p.x * (exp(x) - 1.0), x <= 0.0); }
        case 7u: { return select(x, p.x * x, x < 0.0); }
        case 8u: { return select(x, 0.0, x <= p.x); }
        case 9u: { return p.x * tanh_safe(p.y * x); }
        default: { return limit(p.x * x + p.y, 0.0, 1.0); }
    }
}

// The slope at x, where the value is y. The first three need y alone.
fn slope(kind: u32, p: vec2f, x: f32, y: f32) -> f32 {
    switch kind {
        case 0u: { return y * (1.0 - y); }
        case 1u: { return 1.0 - y * y; }
        case 2u: { return select(1.0, 0.0, y <= 0.0); }
        case 3u: { return p.x; }
        case 4u: {
            let d = 1.0 + abs(x);
            return 1.0 / (d * d);
        }
        case 5u: { return sigmoid(x); }
        case 6u: { return select(1.0, p.x * exp(x), x <= 0.0); }
        case 7u: { return select(1.0, p.x, x <= 0.0); }
        case 8u: { return select(1.0, 0.0, x <= p.x); }
        case 9u: {
            let t = tanh_safe(p.y * x);
            return p.x * p.y * (1.0 - t * t);
        }
        default: {
            let v = p.x * x + p.y;
            return select(p.x, 0.0, v < 0.0 || v > 1.0);
        }
    }
}

// x, or the bound that it exceeds; NaN stays NaN.
fn limit(x: f32, low: f32, high: f32) -> f32 {
    return select(select(x, high, x > high), low, x < low);
}

fn clipped(pre: f32) -> f32 {
    if CLIP != 0u {
        return limit(pre, -step.clip.x, step.clip.x);
    }
    return pre;
}

// A gate's value from its pre-activation.
fn gate(kind: u32, p: vec2f, pre: f32) -> f32 {
    return activate(kind, p, clipped(pre));
}

// What is kept of a gate.
fn kept(pre: f32, value: f32) -> f32 {
    if RAW != 0u {
        return pre;
    }
    return value;
}

// A gate's value from what was kept of it.
fn gate_value(kind: u32, p: vec2f, kept: f32) -> f32 {
    if RAW != 0u {
        return gate(kind, p, kept);
    }
    return kept;
}

// The slope of a gate in its pre-activation, from what was kept and its value. It is
// 0 where the pre-activation was clipped.
fn gate_slope(kind: u32, p: vec2f, kept: f32, value: f32) -> f32 {
    if CLIP != 0u {
        let inside = slope(kind, p, kept, value);
        return select(inside, 0.0, abs(kept) > step.clip.x);
    }
    return slope(kind, p, kept, value);
}

// alpha and beta of the three activations. The second half of each number is what
// double precision has beyond the first.
fn p0() -> vec2f {
    return step.activation_0.xz;
}

fn p1() -> vec2f {
    return step.activation_1.xz;
}

fn p2() -> vec2f {
    return step.activation_2.xz;
}
