//! Sigmoid and tanh of vectors, to four units in the last place of `f32`.
//!
//! Both follow from e⁻ᵃ with a = |x| or 2 |x|, so that nothing overflows:
//!
//! ```text
//! -a = n ln 2 + r,  |r| ≤ ln 2 / 2        e⁻ᵃ - 1 = 2ⁿ p + (2ⁿ - 1),  p = eʳ - 1
//! sigmoid(x) = (1 or e⁻ᵃ) / (1 + e⁻ᵃ)     tanh |x| = -(e⁻ᵃ - 1) / (2 + (e⁻ᵃ - 1))
//! ```
//!
//! p is a polynomial of degree 6 whose error, relative to p, is a fifth of a unit in the last
//! place. As p keeps its relative accuracy near 0, tanh needs no case of its own there.
//!
//! NaN stays NaN, the limits at ±∞ are exact, and tanh of a subnormal number is that number. Where
//! e⁻ᵃ would be subnormal, below the 2⁻¹²⁶ of a = 87.3, it is 0 or as large as that.

use pulp::Simd;

/// The largest a: its n is −127, and there 2ⁿ is 0 instead of the subnormal number that it was.
const LARGEST: f32 = 88.0;

/// A number as a quotient whose denominator is from 1 to 2, so that several can be divided at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fraction<V> {
    above: V,
    below: V,
}

/// The longer half of a sigmoid or a tanh, which can be done for many numbers before the shorter
/// one: e⁻ᵃ or 1 − e⁻ᵃ with the sign of x.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decay<V>(pub(crate) V);

/// For 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid_decay<S: Simd>(simd: S, x: S::f32s) -> Decay<S::f32s> {
    let (power, p) = exponential(simd, at_most(simd, LARGEST, simd.abs_f32s(x)));
    Decay(with_sign(simd, simd.mul_add_e_f32s(power, p, power), x))
}

/// The sigmoid itself.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, decay: Decay<S::f32s>) -> Fraction<S::f32s> {
    let (e, one) = (simd.abs_f32s(decay.0), simd.splat_f32s(1.0));
    // The sign of a decay that is 0 counts as well.
    let bits = simd.transmute_i32s_f32s(decay.0);
    let below_0 = simd.less_than_i32s(bits, simd.splat_i32s(0));
    Fraction {
        above: simd.select_f32s(below_0, e, one),
        below: simd.add_f32s(one, e),
    }
}

/// For tanh x.
#[inline(always)]
pub(crate) fn tanh_decay<S: Simd>(simd: S, x: S::f32s) -> Decay<S::f32s> {
    // From x = 9.02 on tanh x is less than half of the last place from 1.
    let a = at_most(simd, 20.0, simd.abs_f32s(simd.add_f32s(x, x)));
    let (power, p) = exponential(simd, a);
    let one = simd.splat_f32s(1.0);
    let e = simd.mul_add_e_f32s(power, p, simd.sub_f32s(power, one));
    Decay(with_sign(simd, simd.abs_f32s(e), x))
}

/// The tanh itself.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, decay: Decay<S::f32s>) -> Fraction<S::f32s> {
    let below = simd.sub_f32s(simd.splat_f32s(2.0), simd.abs_f32s(decay.0));
    Fraction {
        above: decay.0,
        below,
    }
}

/// A number that is not negative with the sign of another.
#[inline(always)]
fn with_sign<S: Simd>(simd: S, value: S::f32s, sign: S::f32s) -> S::f32s {
    simd.or_f32s(value, simd.and_f32s(sign, simd.splat_f32s(-0.0)))
}

/// The number itself.
#[inline(always)]
pub(crate) fn value<S: Simd>(simd: S, x: Fraction<S::f32s>) -> S::f32s {
    simd.div_f32s(x.above, x.below)
}

/// Two of them by one division, the slowest operation of all. If one is NaN, both are.
#[inline(always)]
pub(crate) fn two_values<S: Simd>(
    simd: S,
    a: Fraction<S::f32s>,
    b: Fraction<S::f32s>,
) -> [S::f32s; 2] {
    let both = simd.mul_f32s(a.below, b.below);
    let one = simd.div_f32s(simd.splat_f32s(1.0), both);
    [
        simd.mul_f32s(a.above, simd.mul_f32s(b.below, one)),
        simd.mul_f32s(b.above, simd.mul_f32s(a.below, one)),
    ]
}

/// The slope of the sigmoid where its value is y: y (1 − y).
#[inline(always)]
pub(crate) fn sigmoid_slope<S: Simd>(simd: S, y: S::f32s) -> S::f32s {
    simd.mul_f32s(y, simd.sub_f32s(simd.splat_f32s(1.0), y))
}

/// That of tanh: 1 − y².
#[inline(always)]
pub(crate) fn tanh_slope<S: Simd>(simd: S, y: S::f32s) -> S::f32s {
    simd.negate_mul_add_e_f32s(y, y, simd.splat_f32s(1.0))
}

/// The smaller of two numbers, and NaN if the second is.
#[inline(always)]
fn at_most<S: Simd>(simd: S, largest: f32, x: S::f32s) -> S::f32s {
    let largest = simd.splat_f32s(largest);
    // Vectors' minima let a NaN in the second place through; that of `f32` does not.
    if S::IS_SCALAR {
        simd.select_f32s(simd.less_than_f32s(largest, x), largest, x)
    } else {
        simd.min_f32s(largest, x)
    }
}

/// max(x, 0), and NaN for NaN.
#[inline(always)]
pub(crate) fn relu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let zero = simd.splat_f32s(0.0);
    simd.select_f32s(simd.less_than_f32s(x, zero), zero, x)
}

/// 2ⁿ and p of e⁻ᵃ, for 0 ≤ a ≤ [`LARGEST`]; a NaN makes p one.
#[inline(always)]
fn exponential<S: Simd>(simd: S, a: S::f32s) -> (S::f32s, S::f32s) {
    // Added to a number of moderate size, it leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 as a number with zeros in its last places, whose product with n is exact, and the rest.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let of = |v| simd.splat_f32s(v);
    let rounded = simd.mul_add_e_f32s(a, of(-std::f32::consts::LOG2_E), of(ROUND));
    let n = simd.sub_f32s(rounded, of(ROUND));
    let r = simd.mul_add_e_f32s(n, of(-LN_2_HIGH), simd.neg_f32s(a));
    let r = simd.mul_add_e_f32s(n, of(-LN_2_LOW), r);
    let q = of(1.388_251_7e-3);
    let q = simd.mul_add_e_f32s(q, r, of(8.366_548e-3));
    let q = simd.mul_add_e_f32s(q, r, of(4.166_72e-2));
    let q = simd.mul_add_e_f32s(q, r, of(1.666_654_3e-1));
    let q = simd.mul_add_e_f32s(q, r, of(0.5));
    let p = simd.mul_add_e_f32s(simd.mul_f32s(r, r), q, r);
    // The exponent of 1 plus n; what lies above it in `rounded` is shifted out.
    let shifted = simd.wrapping_dyn_shl_u32s(
        simd.transmute_u32s_f32s(rounded),
        simd.splat_u32s(f32::MANTISSA_DIGITS - 1),
    );
    let power = simd.add_u32s(shifted, simd.splat_u32s(1f32.to_bits()));
    (simd.transmute_f32s_u32s(power), p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::tests::everywhere;
    use pulp::WithSimd;

    /// Applies a function to every number of a slice, divided alone or with others.
    struct Map<'a> {
        tanh: bool,
        divided: usize,
        values: &'a mut [f32],
    }

    impl WithSimd for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (head, tail) = S::as_mut_simd_f32s(self.values);
            assert!(tail.is_empty());
            for v in head {
                let x = match self.tanh {
                    true => tanh(simd, tanh_decay(simd, *v)),
                    false => sigmoid(simd, sigmoid_decay(simd, *v)),
                };
                let of = |x| sigmoid(simd, sigmoid_decay(simd, simd.splat_f32s(x)));
                // The others' denominators are the largest, the smallest and one between.
                *v = match self.divided {
                    0 => value(simd, x),
                    1 => two_values(simd, of(-0.0), x)[1],
                    2 => two_values(simd, x, of(20.0))[0],
                    _ => two_values(simd, x, of(1.3))[0],
                };
            }
        }
    }

    /// Checks a function on numbers of all sizes and both signs; `subnormal` is the least number that
    /// is to be accurate.
    fn check(is_tanh: bool, exact: fn(f64) -> f64, subnormal: f64) {
        everywhere(|arch| {
            let mut worst = 0.0f64;
            let mut bits = 0u32;
            while bits < f32::INFINITY.to_bits() {
                let mut x = [0.0f32; 64];
                for (i, x) in x.iter_mut().enumerate() {
                    let magnitude = (bits + (i as u32 / 2) * 4999).min(f32::MAX.to_bits());
                    *x = f32::from_bits(magnitude | (i as u32 % 2) << 31);
                }
                bits += 32 * 4999;
                let mut y = x;
                arch.dispatch(Map {
                    tanh: is_tanh,
                    divided: (bits / (32 * 4999)) as usize % 4,
                    values: &mut y,
                });
                for (x, y) in x.into_iter().zip(y) {
                    let want = exact(f64::from(x));
                    if want.abs() < subnormal {
                        assert!(f64::from(y.abs()) <= subnormal, "{x:e}: {y:e}");
                        continue;
                    }
                    let near = (want as f32).abs();
                    let ulp = f64::from(near.next_up()) - f64::from(near);
                    let error = (f64::from(y) - want).abs() / ulp;
                    assert!(error <= 4.0, "{x:e}: {y:e}, not {want:e} ({error} ulp)");
                    worst = worst.max(error);
                }
            }
            assert!(worst > 0.4, "nothing was compared: {worst}");
        });
    }

    #[test]
    fn tanh_is_accurate() {
        check(true, f64::tanh, 0.0);
    }

    #[test]
    fn sigmoid_is_accurate() {
        let exact = |x: f64| 1.0 / (1.0 + (-x).exp());
        check(false, exact, 1.3 * f64::from(f32::MIN_POSITIVE));
    }

    #[test]
    fn extremes() {
        let tiny = f32::from_bits(1);
        let x = [
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -f32::NAN,
            0.0,
            -0.0,
            tiny,
            -tiny,
            f32::MAX,
            f32::MIN,
            1e4,
            -1e4,
            88.0,
            -88.0,
            f32::MIN_POSITIVE,
            -1e-41,
        ];
        everywhere(|arch| {
            for (is_tanh, divided) in (0..8).map(|i| (i % 2 == 0, i / 2)) {
                let mut y = x;
                arch.dispatch(Map {
                    tanh: is_tanh,
                    divided,
                    values: &mut y,
                });
                assert!(y[2].is_nan() && y[3].is_nan());
                let want: [f32; 16] = if is_tanh {
                    std::array::from_fn(|i| {
                        if x[i].abs() > 1.0 {
                            x[i].signum()
                        } else {
                            x[i]
                        }
                    })
                } else {
                    std::array::from_fn(|i| match x[i] {
                        v if v > 1.0 => 1.0,
                        v if v < -1.0 => 0.0,
                        _ => 0.5,
                    })
                };
                for (i, (y, want)) in y.into_iter().zip(want).enumerate() {
                    // Divided with others it may miss the last place.
                    let same = y.to_bits().abs_diff(want.to_bits()) <= u32::from(divided > 0);
                    assert!(same || x[i].is_nan(), "{}: {y}, not {want}", x[i]);
                }
            }
        });
    }
}
