//! How weights get into their blocks `[blocks, K, G, U]`: what [`pack`](crate::kernels::pack) says, in
//! vectors and on several threads, where the terms of a sum or the units are neighbours in the source.
//!
//! Where the terms are, packing is a transposition: eight rows are read side by side from their first number to
//! their last, so that the processor's own prefetching follows them, and squares of 8 x 8 are turned in registers. Where
//! the units are, whole rows of a block are copied.

use super::shared::prefetch_soon;
use crate::threads;

/// Rows of a square that is turned.
const SIDE: usize = 8;
/// How far ahead of a row's squares its next numbers are asked for: two cache lines.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 32;
/// Numbers in a cache line.
const LINE: usize = 16;
/// Terms that are copied into one block before the next; so many rows further on the source is asked for.
const TERMS: usize = 4;
/// Numbers that are not worth another thread: some microseconds.
const ALONE: usize = 1 << 14;
/// Parts for each thread, so that one that comes late leaves some to the others.
const PARTS: usize = 2;

/// What is packed, and how: the parameters of the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packed<'a> {
    pub(crate) source: &'a [f32],
    /// From a gate to the next in the source, from a unit and from a term of the sum.
    pub(crate) strides: [usize; 3],
    /// G
    pub(crate) slots: usize,
    /// The slot that no gate has.
    pub(crate) empty: usize,
    pub(crate) units: usize,
    /// U
    pub(crate) block: usize,
    /// How many terms there are to pack.
    pub(crate) size: usize,
    /// K: how many a block has, and which of them is the first of these.
    pub(crate) all: usize,
    pub(crate) first: usize,
}

impl Packed<'_> {
    /// Whether neighbours in the source are neighbours in a sum or in a block.
    pub(crate) fn has_neighbours(&self) -> bool {
        let [_, unit, term] = self.strides;
        unit == 1 || term == 1
    }

    /// Packs into the blocks, of which there are as many as the units fill.
    pub(crate) fn into_blocks(self, to: &mut [f32]) {
        let (blocks, of_block) = (self.units.div_ceil(self.block), self.all * self.width());
        if blocks * self.size == 0 {
            return;
        }
        let workers = match blocks * self.size * self.width() < ALONE {
            true => 1,
            false => rayon::current_num_threads().min(blocks),
        };
        let parts = if workers > 1 { PARTS * workers } else { 1 };
        let of_part = blocks.div_ceil(parts);
        let parts = to[..blocks * of_block].chunks_mut(of_part * of_block);
        let parts: Vec<_> = parts.enumerate().collect();
        threads::share_out(workers, parts, |(nth, to)| match self.strides {
            [_, 1, _] => self.copy(nth * of_part, to),
            _ => self.turn(nth * of_part, to),
        });
    }

    /// Numbers in a row of a block.
    fn width(&self) -> usize {
        self.slots * self.block
    }

    /// Where the units of a block and their rows start in the source; `None` in the slot that no gate has.
    fn start(&self, block: usize, slot: usize) -> Option<usize> {
        let gate = slot - usize::from(slot > self.empty);
        let start = gate * self.strides[0] + block * self.block * self.strides[1];
        (slot != self.empty).then_some(start)
    }

    /// How many units a block has.
    fn count(&self, block: usize) -> usize {
        self.block.min(self.units - block * self.block)
    }

    /// Fills neighbouring blocks from the `nth` on with rows of the source, whose units are neighbours.
    fn copy(&self, nth: usize, to: &mut [f32]) {
        let (width, of_block) = (self.width(), self.all * self.width());
        for first in (0..self.size).step_by(TERMS) {
            let terms = first..(first + TERMS).min(self.size);
            for (block, to) in (nth..).zip(to.chunks_exact_mut(of_block)) {
                let count = self.count(block);
                let rows = to[(self.first + first) * width..].chunks_exact_mut(width);
                for (term, row) in terms.clone().zip(rows) {
                    for (slot, row) in row.chunks_exact_mut(self.block).enumerate() {
                        let Some(start) = self.start(block, slot) else {
                            row.fill(0.0);
                            continue;
                        };
                        let start = start + term * self.strides[2];
                        let (units, rest) = row.split_at_mut(count);
                        for line in (start..start + count).step_by(LINE) {
                            prefetch_soon(self.source, line + TERMS * self.strides[2]);
                        }
                        units.copy_from_slice(&self.source[start..start + count]);
                        rest.fill(0.0);
                    }
                }
            }
        }
    }

    /// Fills neighbouring blocks from the `nth` on from rows of the source, each of which has a unit's terms.
    fn turn(&self, nth: usize, to: &mut [f32]) {
        let (width, of_block) = (self.width(), self.all * self.width());
        for (block, to) in (nth..).zip(to.chunks_exact_mut(of_block)) {
            let to = &mut to[self.first * width..][..self.size * width];
            for slot in 0..self.slots {
                let start = self.start(block, slot);
                let count = start.map_or(0, |_| self.count(block));
                for unit in (0..self.block).step_by(SIDE) {
                    // The last block may lack units.
                    let from = start.map_or(0, |s| s + unit * self.strides[1]);
                    Strip {
                        from: self.source.get(from..).unwrap_or_default(),
                        pitch: self.strides[1],
                        rows: count.saturating_sub(unit).min(SIDE),
                        columns: self.size,
                        to: &mut to[slot * self.block + unit..],
                        width: SIDE.min(self.block - unit),
                        to_pitch: width,
                    }
                    .turn();
                }
            }
        }
    }
}

/// Up to eight rows of a matrix that become columns of another.
struct Strip<'a> {
    /// From the first row on; the others follow at `pitch`.
    from: &'a [f32],
    pitch: usize,
    rows: usize,
    columns: usize,
    /// From the first row on, which has a number of each of these rows and zeros up to `width`; the others
    /// follow at `to_pitch`.
    to: &'a mut [f32],
    width: usize,
    to_pitch: usize,
}

impl Strip<'_> {
    fn turn(mut self) {
        let done = self.squares();
        for (column, to) in self
            .to
            .chunks_mut(self.to_pitch)
            .enumerate()
            .take(self.columns)
            .skip(done)
        {
            let (own, rest) = to[..self.width].split_at_mut(self.rows);
            for (row, to) in own.iter_mut().enumerate() {
                *to = self.from[row * self.pitch + column];
            }
            rest.fill(0.0);
        }
    }

    /// Turns whole squares in registers, where the machine has vectors for that; returns how many columns it did.
    #[cfg(target_arch = "x86_64")]
    fn squares(&mut self) -> usize {
        let whole = self.columns - self.columns % SIDE;
        match pulp::x86::V3::try_new() {
            Some(simd) if self.rows == SIDE => simd.vectorize(Squares {
                simd,
                strip: self,
                whole,
            }),
            _ => return 0,
        }
        whole
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn squares(&mut self) -> usize {
        0
    }
}

/// The squares of a strip.
#[cfg(target_arch = "x86_64")]
struct Squares<'s, 'a> {
    simd: pulp::x86::V3,
    strip: &'s mut Strip<'a>,
    whole: usize,
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for Squares<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Strip {
            from,
            pitch,
            ref mut to,
            to_pitch,
            ..
        } = *self.strip;
        for column in (0..self.whole).step_by(SIDE) {
            let mut square = [[0.0; SIDE]; SIDE];
            for (row, side) in square.iter_mut().enumerate() {
                let at = row * pitch + column;
                side.copy_from_slice(&from[at..at + SIDE]);
                if column % LINE == 0 {
                    prefetch_soon(from, at + AHEAD);
                }
            }
            for (nth, side) in turned(self.simd, square).iter().enumerate() {
                to[(column + nth) * to_pitch..][..SIDE].copy_from_slice(side);
            }
        }
    }
}

/// The transpose of a square.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turned(simd: pulp::x86::V3, square: [[f32; SIDE]; SIDE]) -> [[f32; SIDE]; SIDE] {
    let avx = simd.avx;
    let rows = square.map(bytemuck::cast);
    // Pairs, then fours of each half of a vector, then the halves.
    let pairs = |a, b| [avx._mm256_unpacklo_ps(a, b), avx._mm256_unpackhi_ps(a, b)];
    let fours = |[a, b]: [_; 2], [c, d]: [_; 2]| {
        [
            avx._mm256_shuffle_ps::<0b01_00_01_00>(a, c),
            avx._mm256_shuffle_ps::<0b11_10_11_10>(a, c),
            avx._mm256_shuffle_ps::<0b01_00_01_00>(b, d),
            avx._mm256_shuffle_ps::<0b11_10_11_10>(b, d),
        ]
    };
    let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
    let upper = fours(pairs(r0, r1), pairs(r2, r3));
    let lower = fours(pairs(r4, r5), pairs(r6, r7));
    let mut columns = [[0.0; SIDE]; SIDE];
    for (nth, (upper, lower)) in upper.into_iter().zip(lower).enumerate() {
        columns[nth] = bytemuck::cast(avx._mm256_permute2f128_ps::<0x20>(upper, lower));
        columns[nth + 4] = bytemuck::cast(avx._mm256_permute2f128_ps::<0x31>(upper, lower));
    }
    columns
}
