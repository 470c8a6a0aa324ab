//! `mask`: which steps of which sequences count, from lengths and resets, for the step kernels.
//!
//! A row of the mask belongs to one step of one sequence: 1 if the step lies past the sequence's
//! length, plus 2 if the state is zeroed before the step.

use bytemuck::{Pod, Zeroable};

use super::index;
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::twin;

/// `mask.make`
pub static MAKE: Kernel = Kernel {
    name: "mask.make",
    wgsl: include_str!("../../shaders/mask.wgsl"),
    entry: "make",
    bindings: &[
        Binding::read("lengths").uint(),
        Binding::read("resets").uint(),
        Binding::update("mask").uint(),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    twin: twin!(twin),
    sample: |[steps, batch, variant], rng| {
        let mut b = Builder::new("mask");
        let rows = steps * batch;
        let [lengths, resets] =
            [("lengths", batch), ("resets", rows)].map(|(n, len)| b.uint(n, &[len], Role::Input));
        // Something else may stand in front.
        let start = variant % 4;
        let mask = b.uint("mask", &[start + rows], Role::Saved);
        let [row_t, row_n] = [[batch, 1], [1, steps]][variant / 3 % 2];
        let args = Mask {
            lengths: (variant % 3 != 1).then_some(lengths),
            resets: (variant % 3 != 2).then_some(resets),
            mask: (mask, start),
            size: [steps, batch],
            rows: [row_t, row_n],
        };
        args.push(&mut b)?;
        let below = |rng: &mut crate::rng::Rng, len, bound| {
            Data::Uint((0..len).map(|_| rng.below(bound)).collect())
        };
        let data = vec![
            (lengths, below(rng, batch, steps as u32 + 1)),
            (resets, below(rng, rows, 2)),
            (mask, below(rng, start + rows, 9)),
        ];
        Ok(Sample {
            plan: b.finish(),
            data,
        })
    },
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    batch: u32,
    row_t: u32,
    row_n: u32,
    start: u32,
}

/// The arguments of a mask.
#[derive(Debug, Clone, Copy)]
pub struct Mask {
    /// `[N]`, from 0 to T.
    pub lengths: Option<BufferId>,
    /// In the order of the mask; other than 0 where the state is zeroed before the step.
    pub resets: Option<BufferId>,
    /// What is written, from an element on.
    pub mask: (BufferId, usize),
    /// T and N.
    pub size: [usize; 2],
    /// From one step to the next, and from one sequence to the next.
    pub rows: [usize; 2],
}

impl Mask {
    /// Adds the mask to a plan.
    ///
    /// # Errors
    /// If there are neither lengths nor resets, or a buffer is too short.
    pub fn push(self, b: &mut Builder) -> Result<()> {
        let name = MAKE.name;
        let [steps, batch] = self.size;
        let rows = steps * batch;
        // What is not there is not read; the other stands in.
        let Some(any) = self.lengths.or(self.resets) else {
            return Err(Error::value(
                name,
                "mask",
                "of lengths or resets",
                "neither",
            ));
        };
        let (lengths, resets) = (self.lengths.unwrap_or(any), self.resets.unwrap_or(any));
        let needs = [
            ("lengths", self.lengths, batch),
            ("resets", self.resets, rows),
            ("mask", Some(self.mask.0), self.mask.1 + rows),
        ];
        for (arg, id, len) in needs {
            if let Some(id) = id
                && b.buffer(id).len() < len
            {
                return Err(Error::shape(name, arg, len, b.buffer(id).len()));
            }
        }
        b.push(Dispatch {
            kernel: &MAKE,
            constants: &[
                ("LENGTHS", u32::from(self.lengths.is_some())),
                ("RESETS", u32::from(self.resets.is_some())),
            ],
            bindings: &[lengths, resets, self.mask.0],
            params: Params {
                rows: index(name, rows)?,
                batch: index(name, batch)?,
                row_t: index(name, self.rows[0])?,
                row_n: index(name, self.rows[1])?,
                start: index(name, self.mask.1)?,
            },
            grid: Grid::Flat(rows),
            cost: Cost {
                flops: 0,
                bytes: 4 * (2 * rows + batch) as u64,
                length: 1,
            },
        })
    }
}

fn twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (with_lengths, with_resets) = (args.constant("LENGTHS")?, args.constant("RESETS")?);
    let (lengths, resets, mask) = (args.read_uint(0)?, args.read_uint(1)?, args.write_uint(2)?);
    for i in 0..p.rows {
        let (t, n) = (i / p.batch, i % p.batch);
        let row = (t * p.row_t + n * p.row_n) as usize;
        let past = with_lengths != 0 && t >= lengths[n as usize];
        let reset = with_resets != 0 && resets[row] != 0;
        mask[p.start as usize + row] = u32::from(past) + 2 * u32::from(reset);
    }
    Ok(())
}
