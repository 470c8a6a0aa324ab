//! How far two arrays are apart.

/// The largest difference between two arrays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The largest |got − want| over the largest |want| (over 1 where all of `want` is 0);
    /// infinite if any value on either side is NaN, or if infinities differ.
    pub error: f64,
    /// Where it is.
    pub at: usize,
    /// What came there.
    pub got: f64,
    /// What was expected there.
    pub want: f64,
}

/// Compares element by element; arrays of unequal length are infinitely far apart.
pub fn compare(got: &[f64], want: &[f64]) -> Difference {
    let mut worst = Difference {
        error: 0.0,
        at: 0,
        got: got.first().copied().unwrap_or_default(),
        want: want.first().copied().unwrap_or_default(),
    };
    if got.len() != want.len() {
        worst.error = f64::INFINITY;
        return worst;
    }
    let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let scale = if largest > 0.0 { largest } else { 1.0 };
    for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = if got.is_nan() || want.is_nan() {
            f64::INFINITY
        } else if got == want {
            0.0
        } else if got.is_infinite() || want.is_infinite() {
            f64::INFINITY
        } else {
            (got - want).abs() / scale
        };
        if error > worst.error {
            worst = Difference {
                error,
                at,
                got,
                want,
            };
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_to_the_largest() {
        let d = compare(&[10.0, 1.5], &[10.0, 1.0]);
        assert_eq!((d.error, d.at), (0.05, 1));
        assert_eq!(compare(&[0.25], &[0.0]).error, 0.25);
    }

    #[test]
    fn nan_and_infinity_never_pass() {
        assert_eq!(compare(&[f64::NAN], &[f64::NAN]).error, f64::INFINITY);
        assert_eq!(compare(&[1.0, f64::NAN], &[1.0, 2.0]).error, f64::INFINITY);
        assert_eq!(compare(&[f64::INFINITY], &[1.0]).error, f64::INFINITY);
        assert_eq!(compare(&[1.0], &[1.0, 2.0]).error, f64::INFINITY);
        assert_eq!(compare(&[f64::INFINITY], &[f64::INFINITY]).error, 0.0);
    }
}
