//! `pack`: weights in blocks of units, `[blocks, K, G, U]` with zeros past the last unit and in a place
//! that no gate has.
//!
//! The destination may hold 16-bit floats: then each value is rounded to the nearest of them, ties to even.
//!
//! Who computes some units with all their gates, be it a vector register or a workgroup, finds what
//! it multiplies with in one piece and in the order of the sum.

use bytemuck::{Pod, Zeroable};

use super::index;
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Element, Kernel, Sample, no_loops};
use crate::kernels::simd::blocks::Packed;
use crate::plan::sequence::Precision;
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::twin;

/// `pack`
pub static PACK: Kernel = Kernel {
    name: "pack",
    wgsl: include_str!("../../shaders/pack.wgsl"),
    entry: "pack",
    bindings: &[
        Binding::read("source"),
        Binding::write("destination").or_half("HALF"),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(twin),
    sample: |[units, size, variant], rng| {
        let mut b = Builder::new("pack");
        let gates = 1 + variant % 4;
        let blocks = Blocks {
            gates,
            slots: gates + usize::from(variant % 5 < 2),
            empty: if variant % 5 == 1 { gates / 2 } else { gates },
            units,
            size,
            block: [1, 4, 16, 64][variant / 3 % 4],
            strides: if variant.is_multiple_of(2) {
                [units * size, size, 1]
            } else {
                [units * size, 1, units]
            },
        };
        let source = b.float("source", &[gates, units, size], Role::Input);
        let mut data = vec![(source, rng.uniforms(gates * units * size, -1.0, 1.0))];
        // Alone, or with other terms around them, which stay.
        let (first, behind) = if variant % 7 < 3 { (1, 2) } else { (0, 0) };
        let all = first + size + behind;
        let packed = Blocks {
            size: all,
            ..blocks
        };
        // At the front, or behind others.
        let start = if variant % 3 == 2 { packed.len() } else { 0 };
        let len = start + packed.len();
        // In halves only what is made of whole words.
        let even = (blocks.slots * blocks.block).is_multiple_of(2);
        let precision = match even && rng.below(2) == 1 {
            true => Precision::F16,
            false => Precision::F32,
        };
        let destination = b.stored(precision, "destination", &[len], Role::Output);
        let round = precision == Precision::F32 && rng.below(3) == 0;
        blocks.push_as(&mut b, source, (destination, start), [first, all], round)?;
        if all > size || start > 0 {
            data.push((destination, rng.uniforms(len, -1.0, 1.0)));
        }
        let data = data.into_iter().map(|(id, v)| (id, Data::Float(v)));
        Ok(Sample {
            plan: b.finish(),
            data: data.collect(),
        })
    },
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    len: u32,
    k: u32,
    g: u32,
    u: u32,
    units: u32,
    empty: u32,
    row_g: u32,
    row_u: u32,
    row_k: u32,
    all: u32,
    first: u32,
    start: u32,
}

/// Which weights are packed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// How many gates there are.
    pub gates: usize,
    /// G: places for gates, as many or one more.
    pub slots: usize,
    /// The place that no gate has, which is filled with zeros.
    pub empty: usize,
    /// How many units there are; the last block is filled with zeros.
    pub units: usize,
    /// K: what a unit's sum runs over.
    pub size: usize,
    /// U: units of a block.
    pub block: usize,
    /// The distances in the source from a gate to the next, from a unit and from a term of the sum.
    pub strides: [usize; 3],
}

impl Blocks {
    /// What differs between two packings, as each has it.
    pub(crate) fn differences(&self, other: &Self) -> [String; 2] {
        let all = |b: &Self| {
            [
                format!("{} gates", b.gates),
                format!("places for {} gates", b.slots),
                format!("place {} empty", b.empty),
                format!("{} units", b.units),
                format!("sums over {} terms", b.size),
                format!("blocks of {} units", b.block),
                format!("terms in the order of strides {:?}", b.strides),
            ]
        };
        let pairs = all(self).into_iter().zip(all(other));
        let differing = pairs.filter(|(one, other)| one != other);
        let (own, others): (Vec<_>, Vec<_>) = differing.unzip();
        [own.join(", "), others.join(", ")]
    }

    /// W_hh `[G·H, P]` for products with h: the units are H, the sums run over P.
    pub fn forward([gates, hidden, output]: [usize; 3], block: usize) -> Self {
        Self {
            gates,
            slots: gates,
            empty: gates,
            units: hidden,
            size: output,
            block,
            strides: [hidden.saturating_mul(output), output, 1],
        }
    }

    /// The same for products with the gates' gradients: the units are P, the sums run over all gates.
    pub fn backward([gates, hidden, output]: [usize; 3], block: usize) -> Self {
        Self {
            gates: 1,
            slots: 1,
            empty: 1,
            units: output,
            size: gates.saturating_mul(hidden),
            block,
            strides: [0, 1, output],
        }
    }

    /// W_hh for products with h in quads `[quads, P, 4]`: four gates of a unit, with zeros behind them
    /// where there are three, or where there is one gate four units.
    pub fn quads([gates, hidden, output]: [usize; 3]) -> Self {
        let (slots, block) = if gates == 1 { (1, 4) } else { (4, 1) };
        Self {
            slots,
            ..Self::forward([gates, hidden, output], block)
        }
    }

    /// W_ih `[G·H, I]` for products with x likewise. Of three gates the last stands in the fourth place,
    /// so that its sum over x stays apart from that over h.
    pub fn quads_of_input([gates, hidden, input]: [usize; 3]) -> Self {
        let quads = Self::quads([gates, hidden, input]);
        Self {
            empty: if gates < quads.slots {
                gates - 1
            } else {
                gates
            },
            ..quads
        }
    }

    /// W_hh for products with the gates' gradients in quads `[quads, G·H, 4]`: four units, whose sums run
    /// over all gates.
    pub fn quads_back([gates, hidden, output]: [usize; 3]) -> Self {
        Self::backward([gates, hidden, output], 4)
    }

    /// The place of a gate.
    pub fn slot(&self, gate: usize) -> usize {
        gate + usize::from(gate >= self.empty)
    }

    /// Numbers one after another, as they are but for zeros behind the last that fill a word of two 16-bit
    /// floats.
    pub fn copy(len: usize) -> Self {
        Self {
            gates: 1,
            slots: 1,
            empty: 1,
            units: len,
            size: 1,
            block: 2,
            strides: [0, 1, 0],
        }
    }

    /// Elements of the packed weights; `usize::MAX` if there are more, and none in blocks of nothing, which no plan takes.
    pub fn len(&self) -> usize {
        let Self {
            units,
            block,
            size,
            slots,
            ..
        } = *self;
        match block {
            0 => 0,
            _ => product([units.div_ceil(block), block, size, slots]),
        }
    }

    /// True if there is nothing to pack.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the packing to a plan.
    ///
    /// # Errors
    /// If a block has no unit, a buffer is too short, a term takes half a word of 16-bit floats, or an index would not
    /// fit 32 bits.
    pub fn push(&self, b: &mut Builder, source: BufferId, destination: BufferId) -> Result<()> {
        self.push_to(b, source, (destination, 0))
    }

    /// Adds the packing to a place in the destination.
    ///
    /// # Errors
    /// As [`Self::push`]; if the place is within a word.
    pub fn push_to(
        &self,
        b: &mut Builder,
        source: BufferId,
        destination: (BufferId, usize),
    ) -> Result<()> {
        self.push_as(b, source, destination, [0, self.size], false)
    }

    /// Adds the same to a destination of floats, each of which is rounded to the nearest 16-bit float.
    ///
    /// # Errors
    /// As [`Self::push`]; if the destination holds no floats.
    pub fn push_rounded(
        &self,
        b: &mut Builder,
        source: BufferId,
        destination: BufferId,
    ) -> Result<()> {
        let element = b.buffer(destination)?.element;
        if element != Element::Float {
            return Err(Error::shape(
                PACK.name,
                "destination",
                Element::Float,
                element,
            ));
        }
        self.push_as(b, source, (destination, 0), [0, self.size], true)
    }

    /// Adds the packing of some terms of blocks that have `all` of them, from the place `first` on.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_part(
        &self,
        b: &mut Builder,
        source: BufferId,
        destination: BufferId,
        first: usize,
        all: usize,
    ) -> Result<()> {
        self.push_as(b, source, (destination, 0), [first, all], false)
    }

    fn push_as(
        &self,
        b: &mut Builder,
        source: BufferId,
        (destination, start): (BufferId, usize),
        [first, all]: [usize; 2],
        round: bool,
    ) -> Result<()> {
        let name = PACK.name;
        if self.block == 0 {
            return Err(Error::value(name, "block", "at least 1", self.block));
        }
        let elements = product([self.gates, self.units, self.size]);
        let whole = Self { size: all, ..*self };
        for (arg, id, needed) in [
            ("source", source, elements),
            (
                "destination",
                destination,
                start.saturating_add(whole.len()),
            ),
        ] {
            let have = b.buffer(id)?.len();
            if have < needed {
                return Err(Error::shape(name, arg, needed, have));
            }
        }
        let terms = first.saturating_add(self.size);
        if terms > all {
            let expected = format!("at most {all} terms");
            return Err(Error::value(name, "terms", expected, terms));
        }
        let element = b.buffer(destination)?.element;
        let (width, half) = (self.slots * self.block, element == Element::Half);
        if half && !width.is_multiple_of(2) {
            return Err(Error::value(name, "elements of a term", "even", width));
        }
        if half && !start.is_multiple_of(2) {
            return Err(Error::value(name, "place", "even", start));
        }
        index(name, start.saturating_add(whole.len()))?;
        b.push(Dispatch {
            kernel: &PACK,
            constants: &[("ROUND", u32::from(round))],
            bindings: &[source, destination],
            params: self.params([first, all], start)?,
            grid: Grid::Flat(if half { self.len() / 2 } else { self.len() }),
            cost: Cost {
                flops: 0,
                bytes: (4 * elements + element.bytes(self.len())) as u64,
                length: 1,
            },
        })
    }

    fn params(&self, [first, all]: [usize; 2], start: usize) -> Result<Params> {
        let name = PACK.name;
        let [row_g, row_u, row_k] = self.strides;
        Ok(Params {
            len: index(name, self.len())?,
            k: index(name, self.size)?,
            g: index(name, self.slots)?,
            u: index(name, self.block)?,
            units: index(name, self.units)?,
            empty: index(name, self.empty)?,
            row_g: index(name, row_g)?,
            row_u: index(name, row_u)?,
            row_k: index(name, row_k)?,
            all: index(name, all)?,
            first: index(name, first)?,
            start: index(name, start)?,
        })
    }
}

/// As many as a number can be.
fn product<const N: usize>(sizes: [usize; N]) -> usize {
    sizes.into_iter().fold(1, usize::saturating_mul)
}

fn twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (source, destination) = (args.read(0)?, args.write(1)?);
    let half = args.constant("HALF")? != 0 || args.constant("ROUND")? != 0;
    let destination = &mut destination[p.start as usize..];
    if half || !fast(&p, source, destination) {
        plain(&p, source, destination, half);
    }
    Ok(())
}

/// Packs numbers in single precision as they are, where neighbours stay some: true if so.
fn fast<R: Real>(p: &Params, source: &[R], destination: &mut [R]) -> bool {
    let (Ok(source), Ok(destination)) = (
        bytemuck::try_cast_slice(source),
        bytemuck::try_cast_slice_mut(destination),
    ) else {
        return false;
    };
    let packed = Packed {
        source,
        strides: [p.row_g, p.row_u, p.row_k].map(|v| v as usize),
        slots: p.g as usize,
        empty: p.empty as usize,
        units: p.units as usize,
        block: p.u as usize,
        size: p.k as usize,
        all: p.all as usize,
        first: p.first as usize,
    };
    let single = size_of::<R>() == size_of::<f32>();
    if single && packed.has_neighbours() {
        packed.into_blocks(destination);
        return true;
    }
    false
}

/// Packs number by number.
fn plain<R: Real>(p: &Params, source: &[R], destination: &mut [R], half: bool) {
    let [slots, size, block, units] = [p.g, p.k, p.u, p.units].map(|v| v as usize);
    let [row_g, row_u, row_k] = [p.row_g, p.row_u, p.row_k].map(|v| v as usize);
    let [all, first_term, empty] = [p.all, p.first, p.empty].map(|v| v as usize);
    for at in 0..p.len as usize / block {
        let (g, k, b) = (at % slots, at / slots % size, at / (slots * size));
        let first = b * block;
        let gate = g - usize::from(g > empty);
        let start = gate * row_g + first * row_u + k * row_k;
        let to = ((b * all + first_term + k) * slots + g) * block;
        for (u, lane) in destination[to..to + block].iter_mut().enumerate() {
            *lane = match first + u < units && g != empty {
                true if half => source[start + u * row_u].to_half(),
                true => source[start + u * row_u],
                false => R::ZERO,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Whole blocks and squares and some that are not, one part and several, terms before and behind, and an
    /// empty slot, of units and of terms that are neighbours.
    #[test]
    fn fast_and_plain_are_the_same() {
        let mut rng = Rng::new(3);
        for (gates, empty, units, size, block) in [
            (4, 4, 32, 16, 16),
            (4, 4, 50, 41, 16),
            (3, 3, 200, 203, 16),
            (1, 1, 200, 600, 64),
            (1, 1, 333, 70, 48),
            (3, 2, 21, 19, 1),
            (3, 0, 9, 8, 4),
            (2, 1, 7, 1, 24),
            (1, 1, 1, 1, 16),
        ] {
            for (strides, first, behind) in [
                ([units * size, size, 1], 0, 0),
                ([units * size, 1, units], 0, 0),
                ([units * size, size, 1], 2, 1),
                ([units * size, 1, units], 3, 2),
                ([1, gates, gates * units], 1, 0),
            ] {
                let blocks = Blocks {
                    gates,
                    slots: gates + usize::from(empty < gates),
                    empty,
                    units,
                    size,
                    block,
                    strides,
                };
                let all = first + size + behind;
                let whole = Blocks {
                    size: all,
                    ..blocks
                };
                let p = blocks.params([first, all], 0).unwrap();
                let source = rng.uniforms(gates * units * size, -1.0, 1.0);
                let old = rng.uniforms(whole.len() + 1, -1.0, 1.0);
                let (mut got, mut want) = (old.clone(), old);
                let neighbours = strides[1..].contains(&1);
                assert_eq!(fast(&p, &source, &mut got), neighbours, "{blocks:?}");
                plain(&p, &source, &mut want, false);
                if neighbours {
                    assert_eq!(got, want, "{blocks:?}");
                }
            }
        }
    }
}
