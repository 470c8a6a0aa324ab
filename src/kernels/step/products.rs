//! The products of a step in the twins of its kernels, and the weights that they take.

use super::Rows;
use crate::cell::Blocks;
use crate::error::Result;
use crate::kernels::gemm::{Strided, StridedMut, product};
use crate::kernels::pack::Blocks as PackedBlocks;
use crate::real::Real;

/// What a forward step multiplies: the operand of W_hh (h, or `inner`) and, for streams, x.
#[derive(Debug)]
pub struct Forward<'a, R> {
    /// What the step has bound as `gates`; for streams it holds x.
    pub gates: &'a [R],
    /// W_hh transposed.
    pub weight_hh_t: &'a [R],
    /// What W_hh multiplies.
    pub operand: &'a [R],
    /// The length of a row of it.
    pub size: usize,
    /// G
    pub of_gates: usize,
    /// The gates whose products are wanted.
    pub wanted: std::ops::Range<usize>,
}

/// The contributions to the pre-activations of the wanted gates, `[N, gates, H]` each.
#[derive(Debug)]
pub struct Products<R> {
    recurrent: Vec<R>,
    input: Option<Vec<R>>,
    width: usize,
    hidden: usize,
}

impl<R: Real> Products<R> {
    /// W_hh times the operand, of one unit of the wanted gate that comes `nth`.
    pub fn recurrent(&self, n: usize, nth: usize, unit: usize) -> R {
        self.recurrent[n * self.width + nth * self.hidden + unit]
    }

    /// W_ih x + b_ih likewise: `stored` is what `gates` holds, which streams compute here.
    pub fn input(&self, n: usize, nth: usize, unit: usize, stored: impl Fn() -> R) -> R {
        match &self.input {
            None => stored(),
            Some(input) => input[n * self.width + nth * self.hidden + unit],
        }
    }
}

impl<R: Real> Forward<'_, R> {
    /// The products of a step; `place` says where the operand's row of a sequence starts.
    ///
    /// # Errors
    /// If a matrix leaves its buffer.
    pub fn products(&self, rows: &Rows<'_>, place: impl Fn(usize) -> usize) -> Result<Products<R>> {
        let p = &rows.p;
        let (count, hidden, input) = (rows.count(), p.hidden as usize, p.input as usize);
        let (all, width) = (self.of_gates * hidden, self.wanted.len() * hidden);
        let column = self.wanted.start * hidden;
        let weights = |row: usize, count: usize| {
            let start = (row * all + column) as u32;
            Strided::new(self.weight_hh_t, [start, all as u32, 1], [count, width])
        };
        let mut recurrent = vec![R::ZERO; count * width];
        let sums = StridedMut::new(&mut recurrent, [0, width as u32, 1], [count, width]);
        let size = self.size;
        let done = |recurrent, input| Products {
            recurrent,
            input,
            width,
            hidden,
        };
        if !rows.stream() {
            let stride = [place(0), place(1) - place(0), 1].map(|v| v as u32);
            let operand = Strided::new(self.operand, stride, [count, size]);
            product(operand, weights(0, size), sums, R::ONE, R::ZERO)?;
            return Ok(done(recurrent, None));
        }
        // The rows of streams are anywhere.
        let gathered: Vec<R> = (0..count)
            .flat_map(|n| self.operand[place(n)..place(n) + size].iter().copied())
            .collect();
        let operand = Strided::new(&gathered, [0, size as u32, 1], [count, size]);
        // Behind the weights of the inputs stand their biases.
        product(operand, weights(input + 1, size), sums, R::ONE, R::ZERO)?;
        let bias = input * all + column;
        let mut from_x = self.weight_hh_t[bias..bias + width].repeat(count);
        let sums = StridedMut::new(&mut from_x, [0, width as u32, 1], [count, width]);
        let x = Strided::new(self.gates, [0, input as u32, 1], [count, input]);
        product(x, weights(0, input), sums, R::ONE, R::ONE)?;
        Ok(done(recurrent, Some(from_x)))
    }
}

/// W_hh as the kernels of single steps have it, `[K, G, units]`, from the blocks that
/// [`pack`](crate::kernels::pack) made of it, every one of whose places is a gate's.
pub(crate) fn unpacked<R: Real>(packed: &[R], blocks: &PackedBlocks) -> Vec<R> {
    let PackedBlocks {
        gates,
        units,
        size,
        block,
        ..
    } = *blocks;
    let mut out = vec![R::ZERO; gates * size * units];
    for (at, lanes) in packed
        .chunks_exact(block)
        .take(blocks.len() / block)
        .enumerate()
    {
        let (g, k, first) = (at % gates, at / gates % size, at / (gates * size) * block);
        let count = block.min(units.saturating_sub(first));
        let to = (k * gates + g) * units + first;
        out[to..to + count].copy_from_slice(&lanes[..count]);
    }
    out
}

/// The weights of a step forward over quads as the plain kernel has them: W_hh transposed, for streams
/// behind those of the input.
pub(crate) fn from_quads<R: Real>(packed: &[R], gates: usize, rows: &Rows<'_>) -> Vec<R> {
    let [hidden, output, input] = [rows.p.hidden, rows.p.output, rows.p.input].map(|v| v as usize);
    let of_h = PackedBlocks::quads([gates, hidden, output]);
    let of_x = PackedBlocks::quads_of_input([gates, hidden, input]);
    let first = if rows.stream() { input + 1 } else { 0 };
    let all = PackedBlocks {
        gates: of_h.slots,
        empty: of_h.slots,
        size: first + output,
        ..of_h
    };
    let mut out = Vec::with_capacity((first + output) * gates * hidden);
    let slots = unpacked(packed, &all);
    for (k, slots) in slots.chunks_exact(of_h.slots * hidden).enumerate() {
        for gate in 0..gates {
            let slot = if k < first { &of_x } else { &of_h }.slot(gate);
            out.extend_from_slice(&slots[slot * hidden..(slot + 1) * hidden]);
        }
    }
    out
}

/// The gradient that reaches h through the gates of the next step: dgates W_hh, `[N, P]`, 0 for
/// sequences that have no next step.
///
/// # Errors
/// If a matrix leaves its buffer.
pub fn gradient_product<'b, R: Real>(
    rows: &Rows<'_>,
    dgates: &[R],
    weight_hh: &[R],
    blocks: impl IntoIterator<Item = &'b Blocks>,
) -> Result<Vec<R>> {
    let p = &rows.p;
    let (hidden, output) = (p.hidden as usize, p.output as usize);
    let count = p.next_count.min(p.count) as usize;
    let mut out = vec![R::ZERO; p.count as usize * output];
    if count == 0 {
        return Ok(out);
    }
    for b in blocks {
        let start = p.dgates_next + b.slot as u32 * p.hidden;
        let width = b.count * hidden;
        let weight_start = b.gate as u32 * p.hidden * p.output;
        product(
            Strided::new(dgates, [start, p.dgates_row, 1], [count, width]),
            Strided::new(weight_hh, [weight_start, p.output, 1], [width, output]),
            StridedMut::new(&mut out, [0, p.output, 1], [count, output]),
            R::ONE,
            R::ONE,
        )?;
    }
    Ok(out)
}
