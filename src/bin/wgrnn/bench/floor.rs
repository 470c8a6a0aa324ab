//! The least time that a call could take on a device with these measured peaks.
//!
//! ```text
//! step of a level      max(2 N |W| / F, 4 |W| / B)         W the recurrent weights
//! product over rows    max(flops / F, bytes / B)           input projection, gradients
//! forward              input products + T steps of every level + L (T + layers - 1)
//! backward             the same steps + gradients of x, W_ih and W + L (T + layers - 1)
//! ```
//!
//! F is the best rate of any product, B the best rate at which as many bytes were read or copied again and
//! again, L the time of one dispatch that waits for the one before. Both directions, and the layers on
//! a diagonal, can share a dispatch, so L counts once for all of them. A kernel that runs many steps in
//! one dispatch, or keeps weights in registers, can go below this floor: [`Floor::work`] is the same
//! without L.

use super::shapes::{Mode, Shape};

/// What a device did at most, as [`super::peaks`] measured it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Peaks {
    /// F, floating-point operations per second.
    pub(super) flops: f64,
    /// The rates over working sets of several sizes.
    pub(super) bandwidths: Vec<Bandwidth>,
    /// L, seconds.
    pub(super) dispatch: f64,
}

/// How fast a working set is read or copied again and again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bandwidth {
    /// Its size.
    pub(super) bytes: f64,
    /// Bytes per second.
    pub(super) rate: f64,
}

impl Peaks {
    /// B for so many bytes. What a larger set reached holds for a smaller one, which is in the same
    /// memory or a nearer one; past the largest set that was measured its own rate holds.
    pub(super) fn bandwidth(&self, bytes: f64) -> f64 {
        let largest = self.memory();
        let as_large = self.bandwidths.iter().filter(|b| b.bytes >= bytes);
        as_large.map(|b| b.rate).fold(largest, f64::max)
    }

    /// The rate over the largest set.
    pub(super) fn memory(&self) -> f64 {
        let largest = self
            .bandwidths
            .iter()
            .max_by(|a, b| a.bytes.total_cmp(&b.bytes));
        largest.map_or(f64::INFINITY, |b| b.rate)
    }

    fn seconds(&self, work: Work) -> f64 {
        (work.flops / self.flops).max(work.bytes / self.bandwidth(work.bytes))
    }
}

/// Operations, and bytes that must be moved for them.
#[derive(Debug, Clone, Copy)]
struct Work {
    flops: f64,
    bytes: f64,
}

impl Work {
    /// The product of an m × k with a k × n matrix.
    fn product(m: f64, n: f64, k: f64) -> Self {
        Self {
            flops: 2.0 * m * n * k,
            bytes: 4.0 * (m * k + k * n + m * n),
        }
    }
}

/// The floor of a call, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Floor {
    /// Of one dispatch for each step.
    pub(super) stepwise: f64,
    /// Of the arithmetic and the memory traffic alone.
    pub(super) work: f64,
}

/// The floor of a shape's call.
pub(super) fn floor(shape: &Shape, mode: Mode, peaks: &Peaks) -> Floor {
    let spec = shape.spec();
    let (steps, batch) = (shape.steps as f64, shape.batch as f64);
    let (width, units) = (spec.width() as f64, spec.output_size() as f64);
    let rows = steps * batch;
    let mut weights = width * units;
    if spec.cell.projected {
        weights += units * spec.hidden_size as f64;
    }
    let step = Work {
        flops: 2.0 * batch * weights,
        bytes: 4.0 * weights,
    };
    let mut work = 0.0;
    for level in spec.levels() {
        let input = level.input_size as f64;
        work += peaks.seconds(Work::product(rows, width, input));
        work += steps * peaks.seconds(step);
        if mode == Mode::Train {
            work += steps * peaks.seconds(step);
            // dx = dgates · W_ih, dW_ih = dgatesᵀ · x, dW = dgatesᵀ · h
            work += peaks.seconds(Work::product(rows, input, width));
            work += peaks.seconds(Work::product(width, input, rows));
            work += peaks.seconds(Work::product(width, units, rows));
        }
    }
    let passes = match mode {
        Mode::Infer => 1.0,
        Mode::Train => 2.0,
    };
    let dispatches = passes * (steps + spec.num_layers as f64 - 1.0);
    Floor {
        stepwise: work + dispatches * peaks.dispatch,
        work,
    }
}

#[cfg(test)]
mod tests {
    use super::super::shapes::parse;
    use super::*;

    fn shape(change: &[(&str, &str)]) -> Shape {
        let text = "[[shape]]\nname = \"a\"\nsource = \"\"\ncell = \"lstm\"\ninput = 10\nhidden = 100\n\
            layers = 1\nbidirectional = false\nproj = 0\nbatch = 1\nsteps = 1000\n\
            mode = [\"infer\"]\ngroup = \"long\"\n";
        let text = change
            .iter()
            .fold(text.to_owned(), |t, (from, to)| t.replace(from, to));
        parse(&text).unwrap().remove(0)
    }

    fn peaks(flops: f64, rate: f64, dispatch: f64) -> Peaks {
        Peaks {
            flops,
            bandwidths: vec![Bandwidth { bytes: 1e3, rate }],
            dispatch,
        }
    }

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() <= 1e-12 * want.abs(), "{got} {want}");
    }

    #[test]
    fn a_small_set_is_as_fast_as_any_larger_one() {
        let at = |bytes, rate| Bandwidth { bytes, rate };
        let peaks = Peaks {
            flops: 1.0,
            // The smallest is slowed down by its dispatches, the largest is in main memory.
            bandwidths: vec![at(64.0, 20.0), at(1.0, 5.0), at(8.0, 90.0), at(512.0, 10.0)],
            dispatch: 0.0,
        };
        let of = |bytes| peaks.bandwidth(bytes);
        assert_eq!((of(0.5), of(1.0), of(8.0)), (90.0, 90.0, 90.0));
        assert_eq!((of(9.0), of(65.0), of(1e9)), (20.0, 10.0, 10.0));
        assert_eq!(peaks.memory(), 10.0);
    }

    #[test]
    fn bound_by_arithmetic() {
        let shape = shape(&[]);
        // Memory and dispatches cost nothing: then it is the operations, three times in training.
        let free = peaks(1e9, 1e30, 0.0);
        for mode in [Mode::Infer, Mode::Train] {
            let floor = floor(&shape, mode, &free);
            close(floor.work, shape.flops(mode, 1000) / 1e9);
            assert_eq!(floor.stepwise, floor.work);
        }
    }

    #[test]
    fn bound_by_memory() {
        let free = peaks(1e30, 1e9, 0.0);
        // W_hh in every step, and the input product once.
        let (w_hh, gates, x, w_ih) = (400.0 * 100.0, 1000.0 * 400.0, 1000.0 * 10.0, 400.0 * 10.0);
        let forward = 4.0 * (1000.0 * w_hh + gates + x + w_ih) / 1e9;
        close(floor(&shape(&[]), Mode::Infer, &free).work, forward);
        // A batch reads the weights no more often; only the products over all rows grow.
        let batch = shape(&[("batch = 1", "batch = 8")]);
        let forward = 4.0 * (1000.0 * w_hh + 8.0 * (gates + x) + w_ih) / 1e9;
        close(floor(&batch, Mode::Infer, &free).work, forward);
    }

    #[test]
    fn bound_by_dispatches() {
        let free = peaks(1e30, 1e30, 1e-6);
        let of = |change: &[(&str, &str)], mode| floor(&shape(change), mode, &free).stepwise;
        close(of(&[], Mode::Infer), 1000e-6);
        close(of(&[], Mode::Train), 2000e-6);
        close(of(&[("false", "true")], Mode::Infer), 1000e-6);
        close(of(&[("layers = 1", "layers = 3")], Mode::Infer), 1002e-6);
    }

    #[test]
    fn a_projection_has_weights_too() {
        let free = peaks(1e9, 1e30, 0.0);
        let projected = shape(&[("proj = 0", "proj = 50")]);
        let products = 400.0 * 10.0 + 400.0 * 50.0 + 50.0 * 100.0;
        let work = floor(&projected, Mode::Infer, &free).work;
        close(work, 2.0 * 1000.0 * products / 1e9);
    }
}
