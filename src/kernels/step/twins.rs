//! The twins of the kernels of GRU, LSTM and RNN, in every form, made of one step of the cell.

use super::products::{from_quads, unpacked};
use super::{Rows, StepParams};
use crate::cell::Cell;
use crate::error::Result;
use crate::kernel::{Args, Twin};
use crate::kernels::gates::{Gates, stores_halves};
use crate::kernels::pack::Blocks;
use crate::kernels::simd::backward::BackwardArgs;
use crate::kernels::simd::forward::ForwardArgs;
use crate::kernels::simd::pack::{Packing, fitting};
use crate::real::Real;

/// Kernels each of which does a cell's step in one, forward or back; a projection has kernels of its own.
pub(crate) trait FusedStep {
    /// The cell, or one of those that these kernels run: all have the same gates.
    const CELL: &'static Cell;
    const FORWARD_AT: ForwardPlaces;
    const BACKWARD_AT: BackwardPlaces;
    /// What a forward kernel has besides [`ForwardBindings`].
    type ForwardOwn<'a, R: Real>;
    /// What a backward kernel has besides [`BackwardBindings`].
    type BackwardOwn<'a, R: Real>: Copy;

    /// Takes the buffers of its own.
    fn bind_forward<'a, R: Real>(
        args: &mut Args<'a, R>,
        p: &StepParams,
    ) -> Result<Self::ForwardOwn<'a, R>>;

    /// Takes the buffers of its own.
    fn bind_backward<'a, R: Real>(
        args: &mut Args<'a, R>,
        p: &StepParams,
    ) -> Result<Self::BackwardOwn<'a, R>>;

    /// One step forward, with W_hh transposed.
    fn forward<R: Real>(
        bound: &mut ForwardBindings<'_, R>,
        own: &mut Self::ForwardOwn<'_, R>,
        rows: &Rows<'_>,
        weight_hh_t: &[R],
    ) -> Result<()>;

    /// One step back, with W_hh as PyTorch has it.
    fn backward<R: Real>(
        bound: &mut BackwardBindings<'_, R>,
        own: Self::BackwardOwn<'_, R>,
        rows: &Rows<'_>,
        weight_hh: &[R],
    ) -> Result<()>;

    /// All steps forward of the lane that `rows` are of, in single precision, with vectors and threads.
    fn fast_forward(
        args: ForwardArgs<'_>,
        own: &mut Self::ForwardOwn<'_, f32>,
        rows: &Rows<'_>,
    ) -> Result<()>;

    /// All steps back of that lane likewise.
    fn fast_backward(
        args: BackwardArgs<'_>,
        own: Self::BackwardOwn<'_, f32>,
        rows: &Rows<'_>,
    ) -> Result<()>;
}

/// Where a forward kernel has its buffers among its bindings.
pub(crate) struct ForwardPlaces {
    pub(crate) gates: usize,
    pub(crate) weight: usize,
    pub(crate) bias_hh: usize,
    pub(crate) h: usize,
    pub(crate) y: usize,
}

/// Where a backward kernel has them.
pub(crate) struct BackwardPlaces {
    pub(crate) saved_gates: usize,
    pub(crate) weight: usize,
    pub(crate) dy: usize,
    pub(crate) dgates: usize,
    pub(crate) dstate: usize,
}

/// What a step forward of every cell works with.
pub(crate) struct ForwardBindings<'a, R> {
    pub(crate) act: Gates<R>,
    /// Whether `gates` is to have what the backward pass needs.
    pub(crate) save: bool,
    pub(crate) gates: &'a mut [R],
    pub(crate) bias_hh: &'a [R],
    pub(crate) h: &'a mut [R],
    pub(crate) y: &'a mut [R],
}

/// What a step back of every cell works with.
pub(crate) struct BackwardBindings<'a, R> {
    pub(crate) act: Gates<R>,
    pub(crate) saved_gates: &'a [R],
    pub(crate) dy: &'a [R],
    pub(crate) dgates: &'a mut [R],
    pub(crate) dstate: &'a mut [R],
}

/// The twins of a forward kernel in the plain form.
pub(crate) const fn forward<C: FusedStep>() -> Twin {
    Twin {
        f32: forward_plain::<C, f32>,
        f64: forward_plain::<C, f64>,
    }
}

/// The twins of a forward kernel in a form over quads.
pub(crate) const fn forward_in_quads<C: FusedStep>() -> Twin {
    Twin {
        f32: forward_quads::<C, f32>,
        f64: forward_quads::<C, f64>,
    }
}

/// The twins of a forward kernel of all steps.
pub(crate) const fn sequence_forward<C: FusedStep>() -> Twin {
    Twin {
        f32: forward_fast::<C>,
        f64: forward_steps::<C, f64>,
    }
}

/// The twins of a backward kernel in the plain form.
pub(crate) const fn backward<C: FusedStep>() -> Twin {
    Twin {
        f32: backward_plain::<C, f32>,
        f64: backward_plain::<C, f64>,
    }
}

/// The twins of a backward kernel in a form over quads.
pub(crate) const fn backward_in_quads<C: FusedStep>() -> Twin {
    Twin {
        f32: backward_quads::<C, f32>,
        f64: backward_quads::<C, f64>,
    }
}

/// The twins of a backward kernel of all steps.
pub(crate) const fn sequence_backward<C: FusedStep>() -> Twin {
    Twin {
        f32: backward_fast::<C>,
        f64: backward_steps::<C, f64>,
    }
}

/// A call of a forward kernel.
struct ForwardCall<'a, C: FusedStep, R: Real> {
    rows: Rows<'a>,
    bound: ForwardBindings<'a, R>,
    own: C::ForwardOwn<'a, R>,
    /// As the kernel's form has it.
    weight: &'a [R],
}

impl<'a, C: FusedStep, R: Real> ForwardCall<'a, C, R> {
    fn new(args: &mut Args<'a, R>) -> Result<Self> {
        let rows = Rows::new(args)?;
        let at = C::FORWARD_AT;
        Ok(Self {
            bound: ForwardBindings {
                act: Gates::new(args, &rows.p)?,
                save: args.constant("SAVE")? != 0,
                gates: args.write(at.gates)?,
                bias_hh: args.read(at.bias_hh)?,
                h: args.write(at.h)?,
                y: args.write(at.y)?,
            },
            own: C::bind_forward(args, &rows.p)?,
            weight: args.read(at.weight)?,
            rows,
        })
    }

    /// The weights of a lane.
    fn weight(&self, rows: &Rows<'_>) -> Result<&'a [R]> {
        rows.own(self.weight, rows.p.lane_weights)
    }

    /// The blocks of the weights of a kernel that runs all steps.
    fn blocks(&self, args: &Args<'_, R>) -> Result<Blocks> {
        let hidden = self.rows.p.hidden as usize;
        let block = args.constant("UNITS")? as usize;
        let sizes = [C::CELL.gates, hidden, self.rows.terms()];
        Ok(Blocks::forward(sizes, block))
    }

    fn step(&mut self, rows: &Rows<'_>, weight_hh_t: &[R]) -> Result<()> {
        C::forward(&mut self.bound, &mut self.own, rows, weight_hh_t)
    }
}

fn forward_plain<C: FusedStep, R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let mut call = ForwardCall::<C, R>::new(args)?;
    let (rows, weight) = (call.rows.clone(), call.weight);
    call.step(&rows, weight)
}

fn forward_quads<C: FusedStep, R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let mut call = ForwardCall::<C, R>::new(args)?;
    for rows in call.rows.lanes_of_step()? {
        let weight = from_quads(call.weight(&rows)?, C::CELL.gates, &rows);
        call.step(&rows, &weight)?;
    }
    Ok(())
}

fn forward_steps<C: FusedStep, R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let mut call = ForwardCall::<C, R>::new(args)?;
    let blocks = call.blocks(args)?;
    for lane in call.rows.lanes() {
        let weight = unpacked(call.weight(&lane)?, &blocks);
        let steps = match lane.stream() {
            true => vec![lane],
            false => lane.steps()?,
        };
        for rows in &steps {
            call.step(rows, &weight)?;
        }
    }
    Ok(())
}

/// The same in single precision with vectors and threads.
fn forward_fast<C: FusedStep>(args: &mut Args<'_, f32>) -> Result<()> {
    if stores_halves(args) {
        return forward_steps::<C, f32>(args);
    }
    let mut call = ForwardCall::<C, f32>::new(args)?;
    let blocks = call.blocks(args)?;
    let of_gates = C::CELL.gates;
    let packing = Packing::forward(of_gates, call.rows.p.hidden as usize, call.rows.terms());
    let mut sums = Vec::new();
    for rows in call.rows.lanes() {
        let steps = rows.all_params(of_gates)?;
        let weight = fitting(&packing, call.weight(&rows)?, &blocks);
        let bound = &mut call.bound;
        let (gates, input) = rows.gates_and_input(bound.gates, of_gates, &mut sums);
        let all = ForwardArgs {
            steps: rows.all(&steps),
            save: bound.save,
            act: bound.act,
            weight: &weight,
            bias_hh: rows.own(bound.bias_hh, rows.p.lane_bias)?,
            gates,
            h: bound.h,
            y: bound.y,
            input,
        };
        C::fast_forward(all, &mut call.own, &rows)?;
    }
    Ok(())
}

/// A call of a backward kernel.
struct BackwardCall<'a, C: FusedStep, R: Real> {
    rows: Rows<'a>,
    bound: BackwardBindings<'a, R>,
    own: C::BackwardOwn<'a, R>,
    /// As the kernel's form has it.
    weight: &'a [R],
}

impl<'a, C: FusedStep, R: Real> BackwardCall<'a, C, R> {
    fn new(args: &mut Args<'a, R>) -> Result<Self> {
        let rows = Rows::new(args)?;
        let at = C::BACKWARD_AT;
        Ok(Self {
            bound: BackwardBindings {
                act: Gates::new(args, &rows.p)?,
                saved_gates: args.read(at.saved_gates)?,
                dy: args.read(at.dy)?,
                dgates: args.write(at.dgates)?,
                dstate: args.write(at.dstate)?,
            },
            own: C::bind_backward(args, &rows.p)?,
            weight: args.read(at.weight)?,
            rows,
        })
    }

    /// The weights of a lane.
    fn weight(&self, rows: &Rows<'_>) -> Result<&'a [R]> {
        rows.own(self.weight, rows.p.lane_weights)
    }

    /// G, H and P of W_hh.
    fn sizes(&self) -> [usize; 3] {
        let p = &self.rows.p;
        [C::CELL.gates, p.hidden as usize, p.output as usize]
    }

    /// The blocks of the weights of a kernel that runs all steps.
    fn blocks(&self, args: &Args<'_, R>) -> Result<Blocks> {
        let block = args.constant("UNITS")? as usize;
        Ok(Blocks::backward(self.sizes(), block))
    }

    fn step(&mut self, rows: &Rows<'_>, weight_hh: &[R]) -> Result<()> {
        C::backward(&mut self.bound, self.own, rows, weight_hh)
    }
}

fn backward_plain<C: FusedStep, R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let mut call = BackwardCall::<C, R>::new(args)?;
    let (rows, weight) = (call.rows.clone(), call.weight);
    call.step(&rows, weight)
}

fn backward_quads<C: FusedStep, R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let mut call = BackwardCall::<C, R>::new(args)?;
    let blocks = Blocks::quads_back(call.sizes());
    for rows in call.rows.lanes_of_step()? {
        let weight = unpacked(call.weight(&rows)?, &blocks);
        call.step(&rows, &weight)?;
    }
    Ok(())
}

fn backward_steps<C: FusedStep, R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let mut call = BackwardCall::<C, R>::new(args)?;
    let blocks = call.blocks(args)?;
    for lane in call.rows.lanes() {
        let weight = unpacked(call.weight(&lane)?, &blocks);
        for rows in lane.steps()?.iter().rev() {
            call.step(rows, &weight)?;
        }
    }
    Ok(())
}

/// The same in single precision with vectors and threads.
fn backward_fast<C: FusedStep>(args: &mut Args<'_, f32>) -> Result<()> {
    let mut call = BackwardCall::<C, f32>::new(args)?;
    let blocks = call.blocks(args)?;
    let [gates, hidden, output] = call.sizes();
    let packing = Packing::backward(gates, hidden, output);
    for rows in call.rows.lanes() {
        let steps: Vec<StepParams> = rows.steps()?.iter().rev().map(|rows| rows.p).collect();
        let weight = fitting(&packing, call.weight(&rows)?, &blocks);
        let bound = &mut call.bound;
        let all = BackwardArgs {
            steps: rows.all(&steps),
            act: bound.act,
            weight: &weight,
            saved_gates: bound.saved_gates,
            dy: bound.dy,
            dgates: bound.dgates,
            dstate: rows.own_mut(bound.dstate, rows.p.lane_dstate)?,
        };
        C::fast_backward(all, call.own, &rows)?;
    }
    Ok(())
}
