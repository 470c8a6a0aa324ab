//! What the kernels of a product compute, on the CPU.

use super::Activation;
use super::library::{Strided, StridedMut, product};
use super::params::Product;
use crate::error::Result;
use crate::kernel::Args;
use crate::real::Real;
use crate::threads;

/// The twin of every kernel that multiplies.
pub(super) fn multiply<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let (a, b) = (args.read(0)?, args.read(3)?);
    product_of(args, a, b)
}

/// The same of both factors rounded to 16-bit floats.
pub(super) fn multiply_rounded<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rounded = |values: &[R]| values.iter().map(|v| v.to_half()).collect::<Vec<R>>();
    let (a, b) = (rounded(args.read(0)?), rounded(args.read(3)?));
    product_of(args, &a, &b)
}

fn product_of<R: Real>(args: &mut Args<'_, R>, a: &[R], b: &[R]) -> Result<()> {
    let p: Product = args.params()?;
    let end = Epilogue::of(args)?;
    let (bias, c) = (args.read(1)?, args.write(2)?);
    let [m, n, k] = [p.m, p.n, p.k].map(|v| v as usize);
    let chunk = (p.chunk as usize).max(1);
    for part in 0..k.div_ceil(chunk).max(1) {
        let (first, len) = (part * chunk, chunk.min(k - part * chunk));
        let from =
            |place: [u32; 3], stride: u32| [place[0] + first as u32 * stride, place[1], place[2]];
        let to = [p.c[0] + part as u32 * p.c_part, p.c[1], p.c[2]];
        product(
            Strided::new(a, from(p.a, p.a[2]), [m, len]),
            Strided::new(b, from(p.b, p.b[1]), [len, n]),
            StridedMut::new(c, to, [m, n]),
            R::from_f32(p.alpha),
            R::from_f32(p.beta),
        )?;
        end.apply(bias, c, to, [m, n]);
    }
    Ok(())
}

/// The twin of the second pass where k is split: A holds k matrices on top of each other.
pub(super) fn sum<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Product = args.params()?;
    let end = Epilogue::of(args)?;
    let (a, bias, c) = (args.read(0)?, args.read(1)?, args.write(2)?);
    let [m, n, parts] = [p.m, p.n, p.k].map(|v| v as usize);
    let [start, row, col] = p.c.map(|v| v as usize);
    for (at, values) in (0..m * n).map(|at| (at, a.iter().skip(at).step_by(m * n))) {
        let value = &mut c[start + at / n * row + at % n * col];
        let sum: R = values.take(parts).copied().sum();
        let old = match p.beta {
            0.0 => R::ZERO,
            beta => R::from_f32(beta) * *value,
        };
        *value = R::from_f32(p.alpha) * sum + old;
    }
    end.apply(bias, c, p.c, [m, n]);
    Ok(())
}

/// Elements for which another thread is worth it: some microseconds.
const WORTH_A_THREAD: usize = 1 << 15;

/// What comes after the sums.
struct Epilogue {
    bias: u32,
    activation: Activation,
    half: bool,
}

impl Epilogue {
    fn of<R: Real>(args: &Args<'_, R>) -> Result<Self> {
        Ok(Self {
            bias: args.constant("BIAS")?,
            activation: Activation::ALL[args.constant("ACTIVATION")? as usize],
            half: args.constant("C_HALF")? != 0,
        })
    }

    fn apply<R: Real>(&self, bias: &[R], c: &mut [R], place: [u32; 3], [m, n]: [usize; 2]) {
        let nothing = self.bias == 0 && self.activation == Activation::None && !self.half;
        if nothing || m == 0 || n == 0 {
            return;
        }
        let [start, row, col] = place.map(|v| v as usize);
        let finish = |value: &mut R, bias: R| {
            let whole = self.activation.apply(*value + bias);
            *value = if self.half { whole.to_half() } else { whole };
        };
        let bias_of = |i: usize, j: usize| match self.bias {
            1 => bias[j],
            2 => bias[i],
            _ => R::ZERO,
        };
        if col != 1 || row < n {
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                finish(&mut c[start + i * row + j * col], bias_of(i, j));
            }
            return;
        }
        let rows = m.div_ceil((m * n / WORTH_A_THREAD).clamp(1, m));
        let parts = c[start..].chunks_mut(row * rows).take(m.div_ceil(rows));
        let parts: Vec<_> = parts.enumerate().collect();
        let workers = parts.len().min(rayon::current_num_threads());
        threads::share_out(workers, parts, |(nth, part)| {
            for (i, values) in (nth * rows..m).zip(part.chunks_mut(row)) {
                let values = &mut values[..n];
                match (self.bias, self.activation) {
                    // A loop of its own, for vectors.
                    (1, Activation::None) if !self.half => {
                        for (value, bias) in values.iter_mut().zip(bias) {
                            *value += *bias;
                        }
                    }
                    _ => {
                        for (j, value) in values.iter_mut().enumerate() {
                            finish(value, bias_of(i, j));
                        }
                    }
                }
            }
        });
    }
}
