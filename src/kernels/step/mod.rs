//! What the step kernels of all cells share: parameters, where rows stand, the products in
//! their twins, and for GRU, LSTM and RNN whole twins. `shaders/shared/step.wgsl` is the same for the shaders.
//!
//! A kernel of a cell's own needs, on both sides, what this module and [`super::gates`] make public:
//! a descriptor from [`kernel`], [`Rows`] to find the places of a sequence, and the two products,
//! [`Forward`] and [`gradient_product`]. `examples/mgu` is such a cell.

mod params;
mod products;
pub mod rounds;
mod rows;
pub(crate) mod twins;

pub use params::{Moment, StepParams};
pub(crate) use products::unpacked;
pub use products::{Forward, Products, gradient_product};
pub use rows::{HandOn, Rows, StateGradient};

use crate::error::{Error, Result};
use crate::kernel::{Binding, Kernel, Sample, Twin};
use crate::rng::Rng;

/// Sequences that one invocation serves.
pub const ROWS: usize = 4;
/// Hidden units, and invocations, of one workgroup.
pub const WORKGROUP: usize = 64;
/// Quads, and invocations, of a workgroup of the form that works in registers alone.
pub(crate) const LANES: usize = 8;

/// The first binding of every step kernel.
pub const MASK: Binding = Binding::read("mask").uint();

/// The descriptor of a step kernel: one whose shader imports `step`; also of one that runs all steps, whose workgroups
/// the plan shapes. The entry point is what stands behind the dot in `name`; the first of the `bindings` is [`MASK`], the
/// others are among those that [`crate::cell`] lists; `sample` calls [`super::sample::forward`] or
/// [`super::sample::backward`]. Its loops run over I, in streams, and over the units of no more than four gates
/// ([`rounds::of_four_gates`]); for others set [`Kernel::rounds`].
///
/// ```
/// use wgrnn::cell::RNN_TANH;
/// use wgrnn::kernel::{Args, Binding, Kernel};
/// use wgrnn::kernels::{sample, step};
/// use wgrnn::{Result, real::Real};
///
/// static FORWARD: Kernel = step::kernel(
///     "constant.forward",
///     "#import step\n…",
///     &[step::MASK, Binding::update("h"), Binding::update("y")],
///     wgrnn::twin!(forward),
///     |size, rng| sample::forward(&[&RNN_TANH], 0, size, rng),
/// );
/// assert_eq!(FORWARD.entry, "forward");
///
/// fn forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
///     let rows = step::Rows::new(args)?;
///     let (h, y) = (args.write(1)?, args.write(2)?);
///     (0..rows.count()).for_each(|n| rows.hold_state(h, y, n));
///     Ok(())
/// }
/// ```
pub const fn kernel(
    name: &'static str,
    wgsl: &'static str,
    bindings: &'static [Binding],
    twin: Twin,
    sample: fn([usize; 3], &mut Rng) -> Result<Sample>,
) -> Kernel {
    Kernel {
        name,
        wgsl,
        entry: behind_dot(name),
        bindings,
        params_size: size_of::<StepParams>(),
        workgroup_size: WORKGROUP as u32,
        workgroup_memory: 0,
        rounds: rounds::of_four_gates,
        twin,
        sample,
    }
}

const fn behind_dot(name: &str) -> &str {
    let bytes = name.as_bytes();
    let mut start = bytes.len();
    while start > 0 && bytes[start - 1] != b'.' {
        start -= 1;
    }
    name.split_at(start).1
}

/// What the descriptors of a step over quads have in common; name, text and sizes are those of a form.
pub(crate) const fn quads_kernel(bindings: &'static [Binding], twin: Twin) -> Kernel {
    Kernel {
        name: "",
        wgsl: "",
        entry: "",
        bindings,
        params_size: size_of::<StepParams>(),
        workgroup_size: 0,
        workgroup_memory: 0,
        rounds: rounds::of_four_gates,
        twin,
        sample: |_, _| {
            Err(Error::value(
                "a step",
                "form",
                "one of those over quads",
                "none",
            ))
        },
    }
}

/// The bindings of a step with packed weights in the place of its own.
pub(crate) const fn packed<const N: usize>(
    mut bindings: [Binding; N],
    weights: usize,
    name: &'static str,
) -> [Binding; N] {
    bindings[weights] = Binding::read(name).or_half("HALF");
    bindings
}
