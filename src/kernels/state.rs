//! `state`: brings initial states to the rows of a sequence's first step, zeroed where a mask says
//! so, and takes the gradient of that.

use bytemuck::{Pod, Zeroable};

use super::index;
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample, no_loops};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::rng::Rng;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/state.wgsl");

/// `state.load`
pub static LOAD: Kernel = Kernel {
    name: "state.load",
    wgsl: WGSL,
    entry: "load",
    bindings: &[
        Binding::read("mask").uint(),
        Binding::read("source"),
        Binding::update("state"),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(load_twin),
    sample: |[count, width, extra], rng| {
        let mut b = Builder::new("load");
        let source = b.float("source", &[count * width + 2], Role::Input);
        let (to_row, to_start) = (width + extra % 3, extra % 4);
        let state = b.float("state", &[to_start + count * to_row], Role::State);
        let args = Load {
            mask: None,
            count,
            width,
            source: (source, 2),
            state,
            to_start,
            to_row,
        };
        sample(b, count, extra, rng, |b, mask| {
            Load { mask, ..args }.push(b)
        })
    },
};

/// `state.unset`
pub static UNSET: Kernel = Kernel {
    name: "state.unset",
    wgsl: WGSL,
    entry: "unset",
    bindings: &[Binding::read("mask").uint(), Binding::update("gradient")],
    params_size: size_of::<Params>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(unset_twin),
    sample: |[count, width, extra], rng| {
        let mut b = Builder::new("unset");
        let gradient = b.float("gradient", &[3 + count * width], Role::Gradient);
        // Without a mask there is nothing to unset.
        sample(b, count, 2 * extra, rng, |b, mask| match mask {
            Some(mask) => unset(b, mask, (gradient, 3), [count, width]),
            None => Ok(()),
        })
    },
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    count: u32,
    width: u32,
    from_start: u32,
    to_start: u32,
    to_row: u32,
    mask_start: u32,
    mask_row: u32,
}

/// The rows of a mask that belong to some sequences.
#[derive(Debug, Clone, Copy)]
pub struct MaskRows {
    /// The mask; see [`super::mask`].
    pub mask: BufferId,
    /// The first sequence's row.
    pub start: usize,
    /// From one sequence to the next.
    pub row: usize,
}

impl MaskRows {
    /// The element behind the last one of so many sequences.
    fn end(&self, count: usize) -> usize {
        let last = count.saturating_sub(1).saturating_mul(self.row);
        self.start.saturating_add(last).saturating_add(1)
    }
}

/// The arguments of a load: `state[to_start + n · to_row + u] = source[from + n · width + u]`, 0 where
/// the mask says that the state is zeroed.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// The rows of the mask; a buffer alone, which is not read, stands in where there is none.
    pub mask: Option<MaskRows>,
    /// How many sequences.
    pub count: usize,
    /// How many units.
    pub width: usize,
    /// Where their states stand, dense, and from which element on.
    pub source: (BufferId, usize),
    /// Where they go.
    pub state: BufferId,
    /// The first element there.
    pub to_start: usize,
    /// From one sequence to the next.
    pub to_row: usize,
}

impl Load {
    /// Adds the load to a plan; `no_mask` is an integer buffer to bind where there is no mask.
    ///
    /// # Errors
    /// If a range leaves its buffer.
    pub fn push_with(self, b: &mut Builder, no_mask: BufferId) -> Result<()> {
        let name = LOAD.name;
        let (count, width) = (self.count, self.width);
        let last = count.saturating_sub(1).saturating_mul(self.to_row);
        let end = self.to_start.saturating_add(last).saturating_add(width);
        let dense = count.saturating_mul(width);
        fits(
            b,
            "source",
            self.source.0,
            self.source.1.saturating_add(dense),
        )?;
        fits(b, "state", self.state, end)?;
        let mask = self.mask.unwrap_or(MaskRows {
            mask: no_mask,
            start: 0,
            row: 0,
        });
        if self.mask.is_some() {
            fits(b, "mask", mask.mask, mask.end(count))?;
        }
        b.push(Dispatch {
            kernel: &LOAD,
            constants: &[("MASKED", u32::from(self.mask.is_some()))],
            bindings: &[mask.mask, self.source.0, self.state],
            params: Params {
                count: index(name, count)?,
                width: index(name, width)?,
                from_start: index(name, self.source.1)?,
                to_start: index(name, self.to_start)?,
                to_row: index(name, self.to_row)?,
                mask_start: index(name, mask.start)?,
                mask_row: index(name, mask.row)?,
            },
            grid: Grid::Flat(count * width),
            cost: cost(count * width),
        })
    }

    fn push(self, b: &mut Builder) -> Result<()> {
        let nothing = b.uint("no mask", &[1], Role::Input);
        self.push_with(b, nothing)
    }
}

/// Adds `gradient[to + n · width + u] = 0` where the mask says that the state of sequence n is zeroed;
/// the size is that of sequences and units.
///
/// # Errors
/// If a range leaves its buffer.
pub fn unset(
    b: &mut Builder,
    mask: MaskRows,
    (gradient, to): (BufferId, usize),
    [count, width]: [usize; 2],
) -> Result<()> {
    let name = UNSET.name;
    let end = to.saturating_add(count.saturating_mul(width));
    fits(b, "gradient", gradient, end)?;
    fits(b, "mask", mask.mask, mask.end(count))?;
    b.push(Dispatch {
        kernel: &UNSET,
        constants: &[("MASKED", 1)],
        bindings: &[mask.mask, gradient],
        params: Params {
            count: index(name, count)?,
            width: index(name, width)?,
            from_start: 0,
            to_start: index(name, to)?,
            to_row: index(name, width)?,
            mask_start: index(name, mask.start)?,
            mask_row: index(name, mask.row)?,
        },
        grid: Grid::Flat(count * width),
        cost: cost(count * width),
    })?;
    b.changed(gradient);
    Ok(())
}

fn fits(b: &Builder, arg: &'static str, id: BufferId, end: usize) -> Result<()> {
    let have = b.buffer(id)?.len();
    if have < end {
        return Err(Error::shape("state", format!("end in {arg}"), have, end));
    }
    Ok(())
}

fn cost(elements: usize) -> Cost {
    Cost {
        flops: 0,
        bytes: 8 * elements as u64,
        length: 1,
    }
}

fn sample(
    mut b: Builder,
    count: usize,
    extra: usize,
    rng: &mut Rng,
    push: impl Fn(&mut Builder, Option<MaskRows>) -> Result<()>,
) -> Result<Sample> {
    let row = 1 + extra % 2;
    let mask = b.uint("mask", &[1 + count * row], Role::Input);
    let rows = MaskRows {
        mask,
        start: 1,
        row,
    };
    push(&mut b, (extra % 4 != 1).then_some(rows))?;
    let plan = b.finish();
    let mut data = Vec::new();
    for (id, buffer) in plan.ids() {
        data.push(if id == mask {
            let bits = (0..buffer.len()).map(|_| rng.below(4)).collect();
            (id, Data::Uint(bits))
        } else if buffer.name == "no mask" {
            (id, Data::Uint(vec![0]))
        } else {
            (id, Data::Float(rng.uniforms(buffer.len(), -1.0, 1.0)))
        });
    }
    Ok(Sample { plan, data })
}

fn reset(p: &Params, mask: &[u32], n: usize) -> bool {
    mask[p.mask_start as usize + n * p.mask_row as usize] & 2 != 0
}

fn load_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let masked = args.constant("MASKED")? != 0;
    let (mask, source, state) = (args.read_uint(0)?, args.read(1)?, args.write(2)?);
    let width = p.width as usize;
    for n in 0..p.count as usize {
        let from = p.from_start as usize + n * width;
        let to = p.to_start as usize + n * p.to_row as usize;
        let row = &mut state[to..to + width];
        if masked && reset(&p, mask, n) {
            row.fill(R::ZERO);
        } else {
            row.copy_from_slice(&source[from..from + width]);
        }
    }
    Ok(())
}

fn unset_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (mask, gradient) = (args.read_uint(0)?, args.write(1)?);
    let width = p.width as usize;
    for n in 0..p.count as usize {
        if reset(&p, mask, n) {
            let to = p.to_start as usize + n * width;
            gradient[to..to + width].fill(R::ZERO);
        }
    }
    Ok(())
}
