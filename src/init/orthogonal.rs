//! Random orthogonal matrices: the Q of the QR decomposition of a matrix of normal numbers.
//!
//! A. Saxe, J. McClelland, S. Ganguli, *Exact solutions to the nonlinear dynamics of learning in deep
//! linear neural networks*, 2013 (arXiv:1312.6120). With R's diagonal positive, as Gram and Schmidt's
//! method has it, Q is uniform among all orthogonal matrices (F. Mezzadri, *How to generate random
//! matrices from the classical compact groups*, 2007). The method is the modified one, run twice over
//! each vector, which keeps Q orthogonal to rounding ("twice is enough": L. Giraud, J. Langou,
//! M. Rozložník, 2005).

use crate::error::Result;
use crate::host::zeroed;
use crate::rng::Rng;

/// The part of a drawn vector that must be left outside the span of those before; a vector with less,
/// which is as good as never drawn, is drawn again.
const SMALLEST: f64 = 1e-6;

/// `min(rows, columns)` orthonormal vectors of length `max(rows, columns)`, one after another: the rows of
/// a wide matrix, or the columns of a tall one.
///
/// # Errors
/// [`crate::Error::Device`] if the machine has not that much memory.
pub(super) fn orthonormal(rows: usize, columns: usize, rng: &mut Rng) -> Result<Vec<f64>> {
    let (count, len) = (rows.min(columns), rows.max(columns));
    let mut vectors = zeroed(count * len)?;
    for k in 0..count {
        let (before, rest) = vectors.split_at_mut(k * len);
        let vector = &mut rest[..len];
        loop {
            vector.fill_with(|| f64::from(rng.normal()));
            let drawn = norm(vector);
            for _ in 0..2 {
                before
                    .chunks_exact(len)
                    .for_each(|q| subtract(vector, dot(q, vector), q));
            }
            let left = norm(vector);
            if left > SMALLEST * drawn {
                vector.iter_mut().for_each(|v| *v /= left);
                break;
            }
        }
    }
    Ok(vectors)
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// In eight sums, which a processor can add side by side.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

fn subtract(from: &mut [f64], factor: f64, q: &[f64]) {
    for (v, q) in from.iter_mut().zip(q) {
        *v -= factor * q;
    }
}
