//! `mask`: which steps of which sequences count, from lengths and resets, for the step kernels.
//!
//! A row of the mask belongs to one step of one sequence: 1 if the step lies past the sequence's
//! length, plus 2 if the state is zeroed before the step. `clear` copies rows without those past a length, for the
//! products over all rows in the backward pass.

use bytemuck::{Pod, Zeroable};

use super::index;
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample, no_loops};
use crate::plan::sequence::Precision;
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Matrix, Role};
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
    rounds: no_loops,
    twin: twin!(twin),
    sample: |[steps, batch, variant], rng| {
        let mut b = Builder::new("mask");
        let rows = steps.saturating_mul(batch);
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

/// `mask.clear`: rows without what stands past a length.
pub static CLEAR: Kernel = Kernel {
    name: "mask.clear",
    wgsl: include_str!("../../shaders/mask.wgsl"),
    entry: "clear",
    bindings: &[
        Binding::read("made").uint(),
        Binding::read("source").or_f16("SOURCE_HALF"),
        Binding::write("destination"),
    ],
    params_size: size_of::<ClearParams>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(clear_twin),
    sample: |[rows, cols, variant], rng| {
        let mut b = Builder::new("clear");
        let start = variant % 4;
        let mask = b.uint("mask", &[start + rows], Role::Saved);
        let precision = Precision::ALL[usize::from(variant % 6 == 1)];
        let source = b.stored(precision, "source", &[(rows + 1) * (cols + 1)], Role::Input);
        let matrix = Matrix {
            offset: variant % 2,
            row_stride: cols + 1,
            ..Matrix::dense(source, rows, cols)
        };
        let destination = b.float("destination", &[rows, cols], Role::Output);
        Clear {
            mask: (mask, start),
            source: matrix,
            destination: (destination, 0),
        }
        .push(&mut b)?;
        let bits: Vec<u32> = (0..start + rows).map(|_| rng.below(4)).collect();
        let mut values = rng.uniforms((rows + 1) * (cols + 1), -1.0, 1.0);
        for (i, _) in bits[start..]
            .iter()
            .enumerate()
            .filter(|(_, bits)| **bits & 1 != 0)
        {
            let row = matrix.offset + i * matrix.row_stride;
            values[row..row + cols].fill(f32::NAN);
        }
        Ok(Sample {
            plan: b.finish(),
            data: vec![(mask, Data::Uint(bits)), (source, Data::Float(values))],
        })
    },
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ClearParams {
    rows: u32,
    cols: u32,
    from: [u32; 3],
    mask_start: u32,
    to: u32,
}

/// The arguments of a copy of rows, with 0 for those that lie past a sequence's length.
#[derive(Debug, Clone, Copy)]
pub struct Clear {
    /// The mask, and where in it the first of the rows stands.
    pub mask: (BufferId, usize),
    /// The rows.
    pub source: Matrix,
    /// Where they go, dense, and from which element on.
    pub destination: (BufferId, usize),
}

impl Clear {
    /// Adds the copy to a plan.
    ///
    /// # Errors
    /// If a range leaves its buffer.
    pub fn push(self, b: &mut Builder) -> Result<()> {
        let name = CLEAR.name;
        let Matrix { rows, cols, .. } = self.source;
        let elements = rows.saturating_mul(cols);
        let needs = [
            ("mask", self.mask.0, self.mask.1.saturating_add(rows)),
            ("source", self.source.buffer, self.source.reach()),
            (
                "destination",
                self.destination.0,
                self.destination.1.saturating_add(elements),
            ),
        ];
        for (arg, id, len) in needs {
            if b.buffer(id)?.len() < len {
                return Err(Error::shape(name, arg, len, b.buffer(id)?.len()));
            }
        }
        b.push(Dispatch {
            kernel: &CLEAR,
            constants: &[],
            bindings: &[self.mask.0, self.source.buffer, self.destination.0],
            params: ClearParams {
                rows: index(name, rows)?,
                cols: index(name, cols)?,
                from: self.source.indices(name)?,
                mask_start: index(name, self.mask.1)?,
                to: index(name, self.destination.1)?,
            },
            grid: Grid::Flat(elements),
            cost: Cost {
                flops: 0,
                bytes: 4 * (rows + 2 * elements) as u64,
                length: 1,
            },
        })
    }
}

fn clear_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: ClearParams = args.params()?;
    let (mask, source, destination) = (args.read_uint(0)?, args.read(1)?, args.write(2)?);
    let [rows, cols, to, mask_start] = [p.rows, p.cols, p.to, p.mask_start].map(|v| v as usize);
    let [start, row_stride, col_stride] = p.from.map(|v| v as usize);
    let masks = &mask[mask_start..mask_start + rows];
    let rows = destination[to..to + rows * cols].chunks_exact_mut(cols.max(1));
    for ((i, row), mask) in rows.enumerate().zip(masks) {
        match mask & 1 {
            0 => {
                let from = source[start + i * row_stride..]
                    .iter()
                    .step_by(col_stride.max(1));
                row.iter_mut()
                    .zip(from)
                    .for_each(|(to, &value)| *to = value);
            }
            _ => row.fill(R::ZERO),
        }
    }
    Ok(())
}

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
        let rows = steps.saturating_mul(batch);
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
            ("mask", Some(self.mask.0), self.mask.1.saturating_add(rows)),
        ];
        for (arg, id, len) in needs {
            if let Some(id) = id
                && b.buffer(id)?.len() < len
            {
                return Err(Error::shape(name, arg, len, b.buffer(id)?.len()));
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
                bytes: 4 * (2 * rows as u64 + batch as u64),
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
