//! `pack`: recurrent weights in blocks of units, `[blocks, K, G, U]` with zeros past the last unit.
//!
//! Who computes some units with all their gates, be it a vector register or a workgroup, finds what
//! it multiplies with in one piece and in the order of the sum.

use bytemuck::{Pod, Zeroable};

use super::index;
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::twin;

/// `pack`
pub static PACK: Kernel = Kernel {
    name: "pack",
    wgsl: include_str!("../../shaders/pack.wgsl"),
    entry: "pack",
    bindings: &[Binding::read("source"), Binding::write("destination")],
    params_size: size_of::<Params>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    twin: twin!(twin),
    sample: |[units, size, variant], rng| {
        let mut b = Builder::new("pack");
        let gates = 1 + variant % 4;
        let blocks = Blocks {
            gates,
            units,
            size,
            block: [4, 16, 64][variant % 3],
            strides: if variant.is_multiple_of(2) {
                [units * size, size, 1]
            } else {
                [units * size, 1, units]
            },
        };
        let source = b.float("source", &[gates, units, size], Role::Input);
        let destination = b.float("destination", &[blocks.len()], Role::Output);
        blocks.push(&mut b, source, destination)?;
        let data = rng.uniforms(gates * units * size, -1.0, 1.0);
        Ok(Sample {
            plan: b.finish(),
            data: vec![(source, Data::Float(data))],
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
    row_g: u32,
    row_u: u32,
    row_k: u32,
}

/// Which weights are packed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// G
    pub gates: usize,
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
    /// W_hh `[G·H, P]` for products with h: the units are H, the sums run over P.
    pub fn forward([gates, hidden, output]: [usize; 3], block: usize) -> Self {
        Self {
            gates,
            units: hidden,
            size: output,
            block,
            strides: [hidden * output, output, 1],
        }
    }

    /// The same for products with the gates' gradients: the units are P, and each gate has a sum over H.
    pub fn backward([gates, hidden, output]: [usize; 3], block: usize) -> Self {
        Self {
            gates,
            units: output,
            size: hidden,
            block,
            strides: [hidden * output, 1, output],
        }
    }

    /// Elements of the packed weights.
    pub fn len(&self) -> usize {
        self.units.div_ceil(self.block) * self.block * self.size * self.gates
    }

    /// True if there is nothing to pack.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the packing to a plan.
    ///
    /// # Errors
    /// If a buffer is too short, or an index would not fit 32 bits.
    pub fn push(&self, b: &mut Builder, source: BufferId, destination: BufferId) -> Result<()> {
        let name = PACK.name;
        let elements = self.gates * self.units * self.size;
        for (arg, id, needed) in [
            ("source", source, elements),
            ("destination", destination, self.len()),
        ] {
            let have = b.buffer(id).len();
            if have < needed {
                return Err(Error::shape(name, arg, needed, have));
            }
        }
        let [row_g, row_u, row_k] = self.strides;
        b.push(Dispatch {
            kernel: &PACK,
            constants: &[],
            bindings: &[source, destination],
            params: Params {
                len: index(name, self.len())?,
                k: index(name, self.size)?,
                g: index(name, self.gates)?,
                u: index(name, self.block)?,
                units: index(name, self.units)?,
                row_g: index(name, row_g)?,
                row_u: index(name, row_u)?,
                row_k: index(name, row_k)?,
            },
            grid: Grid::Flat(self.len()),
            cost: Cost {
                flops: 0,
                bytes: 4 * (elements + self.len()) as u64,
                length: 1,
            },
        })
    }
}

fn twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (source, destination) = (args.read(0)?, args.write(1)?);
    let [gates, size, block, units] = [p.g, p.k, p.u, p.units].map(|v| v as usize);
    let [row_g, row_u, row_k] = [p.row_g, p.row_u, p.row_k].map(|v| v as usize);
    let lanes = destination[..p.len as usize].chunks_exact_mut(block);
    for (at, lanes) in lanes.enumerate() {
        let (g, k, b) = (at % gates, at / gates % size, at / (gates * size));
        let first = b * block;
        let start = g * row_g + first * row_u + k * row_k;
        for (u, lane) in lanes.iter_mut().enumerate() {
            *lane = match first + u < units {
                true => source[start + u * row_u],
                false => R::ZERO,
            };
        }
    }
    Ok(())
}
