// Activations that neither overflow nor lose a NaN. WGSL lets an implementation
// compute tanh as a quotient of sums of exponentials, which overflows to NaN, and
// min() and max() may drop a NaN; the forms below use exp() of a negative number
// and select() on comparisons.

// 1 / (1 + exp(-x))
fn sigmoid(x: f32) -> f32 {
    let e = exp(-abs(x));
    let p = 1.0 / (1.0 + e);
    return select(p, e * p, x < 0.0);
}

// Near 0 the odd minimax polynomial of Cephes' tanhf (S. Moshier), elsewhere
// 1 - 2 / (exp(2|x|) + 1) in the form that uses exp(-2|x|).
fn tanh_safe(x: f32) -> f32 {
    let s = x * x;
    var p = -5.70498872745e-3;
    p = p * s + 2.06390887954e-2;
    p = p * s - 5.37397155531e-2;
    p = p * s + 1.33314422036e-1;
    p = p * s - 3.33332819422e-1;
    let small = p * s * x + x;
    let e = exp(-2.0 * abs(x));
    let large = (1.0 - e) / (1.0 + e);
    return select(small, select(large, -large, x < 0.0), abs(x) > 0.625);
}

// x where positive, else 0; NaN stays NaN.
fn relu(x: f32) -> f32 {
    return select(x, 0.0, x < 0.0);
}
